package test

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// expectNoContainerAddress watches the outside with tcpdump until the test
// ends, and fails it if a container address shows there.
func expectNoContainerAddress(t *testing.T, u *testutil.Underlay) {
	t.Helper()
	dump := u.Outside.Start(t, "tcpdump", "-i", "bridge", "-n", "-l", "--immediate-mode",
		fmt.Sprintf("net %s or net %s or net %s or net %s", subnet4, subnet6, other4, other6))
	dump.Await(t, "listening on")
	t.Cleanup(func() {
		if out := dump.Interrupt(); !strings.Contains(out, "\n0 packets captured") {
			t.Errorf("the outside sees container addresses:\n%s", out)
		}
	})
}

// paths are the ways between a host and the outside.
func paths(h *testutil.Host, u *testutil.Underlay) []struct{ host, outside netip.Addr } {
	return []struct{ host, outside netip.Addr }{{h.IP4, u.IP4}, {h.IP6, u.IP6}}
}

func TestOutsideSeesTheHost(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	expectNoContainerAddress(t, u)
	a := h.NewContainer(t, "a", "net")
	serveHTTP(t, u.Outside)
	serve(t, u.Outside, service)

	for _, path := range paths(h, u) {
		ping(t, a.Netns, path.outside)
		page := a.Run(t, "curl", "--silent", "--show-error", "--max-time", "5", "http://"+at(path.outside, 80))
		if page != path.host.String() {
			t.Errorf("the web server sees %q, want %s", page, path.host)
		}
		for _, network := range []string{"tcp", "udp"} {
			c := a.MustDialFrom(t, network, ":40000", at(path.outside, service))
			if got, want := c.MustAsk(t), netip.AddrPortFrom(path.host, 40000); got != want {
				t.Errorf("%s: the outside sees %s, want %s: the host's address and the port kept", network, got, want)
			}
		}
		iperf(t, a.Netns, u.Outside, path.outside)
		iperf(t, a.Netns, u.Outside, path.outside, "--reverse")
		iperf(t, a.Netns, u.Outside, path.outside, "--udp", "--bitrate", "50M")
		if _, err := a.Dial(t, "tcp", at(path.outside, service+1)); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("a port without a server outside: %v, want it refused", err)
		}
	}
}

func TestContainersWithTheSameSourcePort(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	expectNoContainerAddress(t, u)
	a, b := h.NewContainer(t, "a", "net"), h.NewContainer(t, "b", "net")
	serve(t, u.Outside, service)
	for _, path := range paths(h, u) {
		for _, network := range []string{"tcp", "udp"} {
			first := a.MustDialFrom(t, network, ":41000", at(path.outside, service))
			if got, want := first.MustAsk(t), netip.AddrPortFrom(path.host, 41000); got != want {
				t.Errorf("%s: the first comes from %s, want %s", network, got, want)
			}
			second := b.MustDialFrom(t, network, ":41000", at(path.outside, service))
			if got := second.MustAsk(t); got.Addr() != path.host || got.Port() == 41000 {
				t.Errorf("%s: the second comes from %s, want another port of %s", network, got, path.host)
			}
			takeTurns(t, first, second)
		}
	}
}

func TestHostsOwnConnectionsAreNotDisturbed(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	expectNoContainerAddress(t, u)
	a := h.NewContainer(t, "a", "net")
	serve(t, u.Outside, service)
	for _, path := range paths(h, u) {
		for _, network := range []string{"tcp", "udp"} {
			before := h.MustDialFrom(t, network, ":42000", at(path.outside, service))
			before.MustAsk(t)
			container := a.MustDialFrom(t, network, ":42000", at(path.outside, service))
			if got := container.MustAsk(t); got.Addr() != path.host || got.Port() == 42000 {
				t.Errorf("%s: the container comes from %s, want another port of %s", network, got, path.host)
			}
			if got, want := before.MustAsk(t), netip.AddrPortFrom(path.host, 42000); got != want {
				t.Errorf("%s: the host comes from %s, want %s", network, got, want)
			}
			takeTurns(t, before, container)

			container = a.MustDialFrom(t, network, ":43000", at(path.outside, service))
			if got, want := container.MustAsk(t), netip.AddrPortFrom(path.host, 43000); got != want {
				t.Errorf("%s: the container comes from %s, want %s", network, got, want)
			}
			after := h.MustDialFrom(t, network, ":43000", at(path.outside, service))
			takeTurns(t, container, after)
		}
	}
}

func TestEchoesWithTheSameIdentifier(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	expectNoContainerAddress(t, u)
	a, b := h.NewContainer(t, "a", "net"), h.NewContainer(t, "b", "net")
	for _, path := range paths(h, u) {
		var pings []*testutil.Process
		for _, n := range []*testutil.Netns{a.Netns, h.Netns, b.Netns} {
			p := n.Start(t, "ping", "-n", "-c", "20", "-i", "0.05", "-W", "2", "-e", "77", path.outside.String())
			// A flow that nobody has answered gives way to the host's own.
			p.Await(t, "icmp_seq=1 ")
			pings = append(pings, p)
		}
		for _, p := range pings {
			if out := p.Wait(t); !strings.Contains(out, " 0% packet loss") || strings.Contains(out, "DUP") {
				t.Errorf("answers are lost or doubled:\n%s", out)
			}
		}
	}
}

func TestEachUplinkHasItsOwnAddress(t *testing.T) {
	t.Parallel()
	h := testutil.NewHost(t, "host")
	u := testutil.NewUnderlay(t, h)
	expectNoContainerAddress(t, u)
	second, side := testutil.NewNetns(t, "second"), testutil.NewNetns(t, "side")
	testutil.Wire(t, h.Netns, "up1", []string{"198.51.100.1/24", "2001:db8:1::1/64"},
		second, "wire", []string{"198.51.100.254/24", "2001:db8:1::fe/64", "203.0.113.1/32"})
	testutil.Wire(t, h.Netns, "side", []string{"198.18.0.1/24"}, side, "wire", []string{"198.18.0.254/24"})
	h.Run(t, "ip", "route", "add", "203.0.113.0/24", "via", "198.51.100.254")
	h.Ebpnet(t, "load", "--uplink", testutil.Uplink, "--uplink", "up1")
	createNet(t, h)
	a := h.NewContainer(t, "a", "net")
	serve(t, u.Outside, service)
	serve(t, second, service)
	serve(t, side, service)

	for to, want := range map[string]string{
		"192.0.2.254":    "192.0.2.1",
		"2001:db8::fe":   "2001:db8::1",
		"198.51.100.254": "198.51.100.1",
		"2001:db8:1::fe": "2001:db8:1::1",
		"203.0.113.1":    "198.51.100.1", // behind a router
	} {
		ping(t, a.Netns, netip.MustParseAddr(to))
		c := a.MustDial(t, "tcp", at(netip.MustParseAddr(to), service))
		if got := c.MustAsk(t).Addr().String(); got != want {
			t.Errorf("what goes to %s comes from %s, want %s", to, got, want)
		}
	}
	// A device that load was not told of is no way out.
	ping(t, h.Netns, netip.MustParseAddr("198.18.0.254"))
	noPing(t, h, "not_uplink", a.Netns, netip.MustParseAddr("198.18.0.254"))
	connectsNot(t, h, "not_uplink", a.Netns, "tcp", "198.18.0.254:7000")
}

func TestPacketsToTheOutsideAreRouted(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	a := h.NewContainer(t, "a", "net")
	outside := u.Outside.NewTap(t, "bridge")
	const routed = 63 // one less than every packet starts with
	for _, address := range []netip.Addr{u.IP4, u.IP6} {
		ping(t, a.Netns, address)
		p := outside.Await(t, "the ping", isEcho)
		switch ip := p.NetworkLayer().(type) {
		case *layers.IPv4:
			if ip.TTL != routed {
				t.Errorf("TTL %d outside, want %d", ip.TTL, routed)
			}
		case *layers.IPv6:
			if ip.HopLimit != routed {
				t.Errorf("hop limit %d outside, want %d", ip.HopLimit, routed)
			}
		}
		h.ExpectDrops(t, "ttl_exceeded", func() {
			if _, err := a.Try("ping", "-n", "-c", "1", "-W", "0.4", "-t", "1", address.String()); err == nil {
				t.Errorf("a packet with one hop to live reaches %s", address)
			}
		})
		if p := outside.Receive(t, 0, isEcho); p != nil {
			t.Errorf("a packet with one hop to live is outside:\n%s", p)
		}
	}
}

// Each flow needs its room in the tables at once, whatever the kernel's memory
// allocator is doing.
func TestManyFlowsOpen(t *testing.T) {
	const flows = 2000
	h, u := newOutside(t)
	createNet(t, h)
	a := h.NewContainer(t, "a", "net")
	serve(t, u.Outside, service)
	refused := 0
	for range flows {
		c := a.MustDial(t, "udp", at(u.IP4, service))
		if _, err := c.Ask(aMoment); err != nil {
			refused++
		}
		c.Close()
		if refused > 10 {
			break
		}
	}
	if dropped := h.Drops(t, "flow_table_full"); refused > 0 || dropped > 0 {
		t.Errorf("%d flows of %d are not answered, %d packets are dropped for a full table", refused, flows, dropped)
	}
}

func TestFlowsAreListedAndFlushed(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	a := h.NewContainer(t, "a", "net")
	serve(t, u.Outside, service)
	c := connects(t, a.Netns, "tcp", at(u.IP4, service))
	list := h.Ebpnet(t, "flow", "ls")
	for _, want := range []string{"tcp", c.LocalAddr().String(), c.RemoteAddr().String(), h.IP4.String()} {
		if !strings.Contains(list, want) {
			t.Errorf("flow ls has no %s:\n%s", want, list)
		}
	}
	h.Ebpnet(t, "flow", "flush")
	if list := h.Ebpnet(t, "flow", "ls"); strings.Contains(list, c.LocalAddr().String()) {
		t.Errorf("a flushed flow is listed:\n%s", list)
	}
}

// takeTurns expects answers on all of the connections, again and again.
func takeTurns(t *testing.T, connections ...*testutil.Conn) {
	t.Helper()
	for range 3 {
		for _, c := range connections {
			c.MustAsk(t)
		}
	}
}

// isEcho matches echo requests of either family.
func isEcho(p gopacket.Packet) bool {
	if icmp, ok := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4); ok {
		return icmp.TypeCode.Type() == layers.ICMPv4TypeEchoRequest
	}
	icmp, ok := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
	return ok && icmp.TypeCode.Type() == layers.ICMPv6TypeEchoRequest
}

// serveHTTP starts a web server on port 80 whose page is the address of who
// asks for it.
func serveHTTP(t *testing.T, n *testutil.Netns) {
	t.Helper()
	var l net.Listener
	var err error
	n.Do(func() { l, err = net.Listen("tcp", ":80") })
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if peer, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
			fmt.Fprint(w, peer.Addr().Unmap())
		}
	})}
	go func() {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("web server: %v", err)
		}
	}()
	t.Cleanup(func() { _ = server.Close() }) // nothing is left to lose
}
