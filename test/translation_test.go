package test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// One port of a container is one port outside, whoever it speaks to, also
// where it could not be kept.
func TestMappingIsEndpointIndependent(t *testing.T) {
	const elsewhere = "192.0.2.253:6999"
	h, u, second := newTwoUplinks(t)
	createNet(t, h)
	a, b := h.NewContainer(t, "a", "net"), h.NewContainer(t, "b", "net")
	for port := service; port < service+3; port++ {
		serve(t, u.Outside, port)
	}
	serve(t, second, service)
	u.Outside.Run(t, "ip", "addr", "add", "192.0.2.253/24", "dev", "bridge")
	for _, network := range []string{"tcp4", "udp4"} {
		u.Outside.Serve(t, network, elsewhere)
	}
	for _, network := range protocols {
		for _, path := range paths(h, u) {
			b.MustDialFrom(t, network, ":41000", at(path.outside, service)).MustAsk(t)
			var open []*testutil.Conn
			var mapped netip.AddrPort
			for i, to := range []string{
				at(path.outside, service), at(path.outside, service+1), at(path.outside, service+2), elsewhere,
			} {
				if path.outside.Is6() && to == elsewhere {
					continue
				}
				c := a.MustDialFrom(t, network, ":41000", to)
				open = append(open, c)
				switch got := c.MustAsk(t); {
				case i == 0 && (got.Port() == 41000 || got.Addr() != path.host):
					t.Errorf("%s: seen as %s, want another port of %s", network, got, path.host)
				case i == 0:
					mapped = got
				case got != mapped:
					t.Errorf("%s: %s sees %s, the first saw %s", network, to, got, mapped)
				}
			}
			takeTurns(t, open...)
		}
		// Another uplink has another address, where the port is free.
		c := a.MustDialFrom(t, network, ":41000", at(beyond4, service))
		if got, want := c.MustAsk(t), netip.AddrPortFrom(second4, 41000); got != want {
			t.Errorf("%s: seen as %s by the other uplink, want %s", network, got, want)
		}
	}
}

// Identifiers of echoes are mapped as ports are.
func TestEchoMappingIsEndpointIndependent(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	a, b := h.NewContainer(t, "a", "net"), h.NewContainer(t, "b", "net")
	u.Outside.Run(t, "ip", "addr", "add", "192.0.2.253/24", "dev", "bridge")
	u.Outside.Run(t, "ip", "addr", "add", "2001:db8::fd/64", "dev", "bridge", "nodad")
	outside := u.Outside.NewTap(t, "bridge")
	identifier := func(from *testutil.Container, to string) uint16 {
		t.Helper()
		ping(t, from.Netns, netip.MustParseAddr(to), "-e", "77")
		p := outside.Await(t, "the echo", isEcho)
		if echo, ok := p.Layer(layers.LayerTypeICMPv6Echo).(*layers.ICMPv6Echo); ok {
			return echo.Identifier
		}
		return p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4).Id
	}
	for _, to := range [][]string{{u.IP4.String(), "192.0.2.253"}, {u.IP6.String(), "2001:db8::fd"}} {
		if got := identifier(a, to[0]); got != 77 {
			t.Errorf("the first has identifier %d outside, want its own, 77", got)
		}
		mapped := identifier(b, to[0])
		if again := identifier(b, to[1]); mapped == 77 || again != mapped {
			t.Errorf("the second has identifiers %d and %d outside, want one, and not 77", mapped, again)
		}
	}
}

// Only who was sent to may send, and others are not even told that.
func TestFiltering(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	a := h.NewContainer(t, "a", "net")
	serve(t, u.Outside, service)
	serve(t, a.Netns, 41000)
	container := a.NewTap(t, testutil.Device)
	u.Outside.Run(t, "ip", "addr", "add", "192.0.2.253/24", "dev", "bridge")
	u.Outside.Run(t, "ip", "addr", "add", "2001:db8::fd/64", "dev", "bridge", "nodad", "preferred_lft", "0")
	strangers := []string{"192.0.2.253:5555", "[2001:db8::fd]:5555"}
	for _, path := range paths(h, u) {
		// The port has a server, so that a frame made by hand opens the flow.
		for _, network := range protocols {
			openMapping(t, a, container, network, 41000, path.outside, h)
		}
	}
	waitForMappings(t, h, 4)

	var shut []attempt
	for i, path := range paths(h, u) {
		for _, network := range protocols {
			for _, local := range []string{strangers[i], at(path.outside, 5555)} {
				shut = append(shut, attempt{u.Outside, network, local, at(path.host, 41000)})
			}
		}
	}
	noneConnects(t, h, "unsolicited", shut)
	unsolicited := func(p gopacket.Packet) bool { return strings.Contains(fmt.Sprint(p.TransportLayer()), "SrcPort=5555") }
	if p := container.Receive(t, 0, unsolicited); p != nil {
		t.Errorf("unsolicited, and in:\n%s", p)
	}

	h.Ebpnet(t, "network", "set", "net", "--filtering", "endpoint-independent")
	var open []*testutil.Conn
	for i, path := range paths(h, u) {
		for _, network := range protocols {
			c := u.Outside.MustDialFrom(t, network, strangers[i], at(path.host, 41000))
			if got, want := c.MustAsk(t), netip.MustParseAddrPort(strangers[i]); got != want {
				t.Errorf("%s: the container sees %s, want %s", network, got, want)
			}
			open = append(open, c)
			// A port that no container has is the host's.
			refusesConnections(t, u.Outside, network, at(path.host, 41001))
		}
	}
	// Whom it has answered it has sent to.
	h.Ebpnet(t, "network", "set", "net", "--filtering", "address-and-port-dependent")
	takeTurns(t, open...)
	h.ExpectDrops(t, "unsolicited", func() {
		if _, err := u.Outside.MustDial(t, "udp", at(h.IP4, 41000)).Ask(aMoment); err == nil {
			t.Error("the port is open still")
		}
	})
}

// discard is a port on which nobody listens, so that a server that sends there
// is not answered, and does not answer that, and so on.
const discard = 9

// openMapping has a container send from a port on which its server listens.
func openMapping(t *testing.T, c *testutil.Container, tap *testutil.Tap, network string, port int, to netip.Addr, h *testutil.Host) {
	t.Helper()
	src := c.IP4
	if to.Is6() {
		src = c.IP6
	}
	if network == "udp" {
		tap.Send(t, udpFrame(t, c.MAC, gatewayMAC(t, h), netip.AddrPortFrom(src, uint16(port)), netip.AddrPortFrom(to, discard), "\n"))
		return
	}
	header, next := ip(src, to, layers.IPProtocolTCP)
	tap.Send(t, testutil.Frame(t, ethernet(c.MAC, gatewayMAC(t, h), next), header,
		&layers.TCP{SrcPort: layers.TCPPort(port), DstPort: service, SYN: true, Window: 1024}))
}

func waitForMappings(t *testing.T, h *testutil.Host, n int) {
	t.Helper()
	testutil.Eventually(t, fmt.Sprintf("%d flows", n), func() bool { return len(flowsOf(t, h)) == n })
}

// Two containers of one host meet at their outside addresses.
func TestHairpin(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h, "--icc=false")
	createOther(t, h)
	expectNoContainerAddress(t, u)
	a, b, c := h.NewContainer(t, "a", "net"), h.NewContainer(t, "b", "net"), h.NewContainer(t, "c", "other")
	serve(t, b.Netns, 42000)
	serve(t, u.Outside, service)
	tap := b.NewTap(t, testutil.Device)
	for _, path := range paths(h, u) {
		for _, network := range protocols {
			openMapping(t, b, tap, network, 42000, path.outside, h)
		}
	}
	waitForMappings(t, h, 4)
	var shut []attempt
	for _, path := range paths(h, u) {
		for _, network := range protocols {
			for _, from := range []*testutil.Container{a, c} {
				shut = append(shut, attempt{from.Netns, network, "", at(path.host, 42000)})
			}
		}
	}
	noneConnects(t, h, "unsolicited", shut) // filtering holds for containers as for anybody else
	h.Ebpnet(t, "network", "set", "net", "--filtering", "endpoint-independent")
	for _, path := range paths(h, u) {
		for _, network := range protocols {
			var open []*testutil.Conn
			for i, from := range []*testutil.Container{a, c, b} {
				port := 43000 + i
				conn := from.MustDialFrom(t, network, fmt.Sprintf(":%d", port), at(path.host, 42000))
				if got, want := conn.MustAsk(t), netip.AddrPortFrom(path.host, uint16(port)); got != want {
					t.Errorf("%s from %s: seen as %s, want %s", network, from.Endpoint, got, want)
				}
				open = append(open, conn)
			}
			takeTurns(t, open...)
		}
	}
}

// Two containers that may not talk to each other directly, and that both send
// first, get through: as peer-to-peer programs do.
func TestHairpinByHolePunching(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h, "--icc=false")
	a, b := h.NewContainer(t, "a", "net"), h.NewContainer(t, "b", "net")
	serve(t, b.Netns, 42000)
	tap := b.NewTap(t, testutil.Device)
	for i, path := range paths(h, u) {
		openMapping(t, b, tap, "udp", 42000, path.outside, h)
		waitForMappings(t, h, 3*i+1)
		c := a.MustDialFrom(t, "udp", ":43000", at(path.host, 42000))
		h.ExpectDrops(t, "unsolicited", func() { stalls(t, c) })
		tap.Send(t, udpFrame(t, b.MAC, gatewayMAC(t, h), netip.AddrPortFrom(b.Addresses()[i], 42000), netip.AddrPortFrom(path.host, 43000), "\n"))
		if got, want := c.MustAsk(t), netip.AddrPortFrom(path.host, 43000); got != want {
			t.Errorf("seen as %s, want %s", got, want)
		}
	}
}

func TestChangedPortsKeepClassAndParity(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	a, b, c := h.NewContainer(t, "a", "net"), h.NewContainer(t, "b", "net"), h.NewContainer(t, "c", "net")
	serve(t, u.Outside, service)
	for _, path := range paths(h, u) {
		for _, network := range protocols {
			for _, own := range []uint16{600, 601, 44000, 44001} {
				local := fmt.Sprintf(":%d", own)
				if got := a.MustDialFrom(t, network, local, at(path.outside, service)).MustAsk(t); got.Port() != own {
					t.Errorf("%s: port %d is free, and the outside sees %d", network, own, got.Port())
				}
				for _, from := range []*testutil.Container{b, c} {
					got := from.MustDialFrom(t, network, local, at(path.outside, service)).MustAsk(t).Port()
					if got == own || (got < 1024) != (own < 1024) || got%2 != own%2 {
						t.Errorf("%s: instead of %d the outside sees %d: not its class and parity", network, own, got)
					}
				}
			}
		}
	}
}

// What the host itself wants or gives away is never a container's.
func TestPortsOfTheHostAreNotTaken(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	a := h.NewContainer(t, "a", "net")
	h.NewContainer(t, "web", "net", "--publish", "44000:80/udp")
	serve(t, u.Outside, service)
	h.Serve(t, "udp4", ":44001")
	h.Serve(t, "udp6", ":44001")
	for _, path := range paths(h, u) {
		for _, port := range []uint16{44000, 44001} {
			c := a.MustDialFrom(t, "udp", fmt.Sprintf(":%d", port), at(path.outside, service))
			if got := c.MustAsk(t); got.Port() == port || got.Addr() != path.host {
				t.Errorf("seen as %s, a port that is taken", got)
			}
		}
		connects(t, u.Outside, "udp", at(path.host, 44001))
		c := a.MustDialFrom(t, "udp", ":44002", at(path.outside, service))
		if got := c.MustAsk(t); got.Port() != 44002 {
			t.Errorf("seen as %s, and 44002 is free", got)
		}
	}
	// What is published later than it was mapped goes to whom it was mapped for,
	// for as long as that speaks.
	c := a.MustDialFrom(t, "tcp", ":44003", at(u.IP4, service))
	c.MustAsk(t)
	publish(t, h, "web", "44003:7000")
	if got := c.MustAsk(t); got.Port() != 44003 {
		t.Errorf("seen as %s", got)
	}
}

func TestPortsRunOut(t *testing.T) {
	const ports = 4 // with which each of the two may have its share
	t.Parallel()
	h := testutil.NewHost(t, "host")
	u := testutil.NewUnderlay(t, h)
	h.Ebpnet(t, "load", "--masquerade-ports", "40000-40005")
	createNet(t, h)
	a, b := h.NewContainer(t, "a", "net"), h.NewContainer(t, "b", "net")
	serve(t, u.Outside, service)
	serve(t, u.Outside, service+1)
	for _, path := range paths(h, u) {
		for _, network := range protocols {
			var open []*testutil.Conn
			var seen []uint16
			for i := range ports {
				from := []*testutil.Container{a, b}[i%2]
				c := from.MustDialFrom(t, network, fmt.Sprintf(":%d", 50000+i), at(path.outside, service))
				got := c.MustAsk(t)
				if got.Port() < 40000 || got.Port() > 40005 || slices.Contains(seen, got.Port()) {
					t.Errorf("%s: seen as %s: not in the range, or the second time", network, got)
				}
				seen = append(seen, got.Port())
				open = append(open, c)
			}
			connectsNot(t, h, "port_limit", a.Netns, network, at(path.outside, service))

			// Each destination has its own.
			shared := b.MustDialFrom(t, network, ":50004", at(path.outside, service+1))
			if got := shared.MustAsk(t); got.Port() < 40000 || got.Port() > 40005 {
				t.Errorf("%s: seen as %s: not in the range", network, got)
			}
			takeTurns(t, append(open, shared)...)

			// And had again as soon as one is freed. Those outside are to know of
			// it, too.
			for _, c := range []*testutil.Conn{open[1], open[3], shared} {
				if network == "tcp" {
					linger(t, c)
				}
				c.Close()
			}
			h.Ebpnet(t, "flow", "flush", "--endpoint", "b")
			c := connects(t, a.Netns, network, at(path.outside, service))
			takeTurns(t, open[0], c, open[2])
			h.Ebpnet(t, "flow", "flush")
		}
	}
}

// Flows end by themselves, each by its own time-out; no process of ebpnet runs.
func TestFlowsExpire(t *testing.T) {
	t.Parallel()
	h := testutil.NewHost(t, "host")
	u := testutil.NewUnderlay(t, h)
	h.Ebpnet(t, "load", "--timeout", "udp-unanswered=2s", "--timeout", "udp-answered=1m", "--timeout", "tcp-transitory=2s", "--timeout", "icmp=2s")
	createNet(t, h)
	a := h.NewContainer(t, "a", "net", "--publish", "8080:7000/udp")
	serve(t, u.Outside, service)
	lasting := map[string]*testutil.Conn{}
	for _, path := range paths(h, u) {
		ping(t, a.Netns, path.outside)
		for _, network := range protocols {
			address := at(path.outside, service)
			lasting[network+address] = connects(t, a.Netns, network, address)
		}
		// Closed by both sides, reset, refused, not answered, and not answered
		// from outside.
		connects(t, a.Netns, "tcp", at(path.outside, service)).Close()
		reset := connects(t, a.Netns, "tcp", at(path.outside, service))
		linger(t, reset)
		reset.Close()
		refusesConnections(t, a.Netns, "tcp", at(path.outside, service+1))
		for range 3 {
			send(t, a.MustDial(t, "udp", at(path.outside, discard)))
		}
		send(t, u.Outside.MustDial(t, "udp", at(path.host, published)))
	}
	before := flowsOf(t, h)
	if len(before) < len(lasting)+2*3 {
		t.Errorf("%d flows are listed at first: %+v", len(before), before)
	}
	testutil.Eventually(t, "all but what lasts has expired", func() bool {
		var all []listedFlow
		h.EbpnetJSON(t, &all, "flow", "ls")
		return len(all) == len(lasting)
	})
	for _, c := range lasting {
		c.MustAsk(t)
	}
	for _, f := range flowsOf(t, h) {
		if f.State != "established" {
			t.Errorf("it lasts: %+v", f)
		}
	}
}

// linger has a connection end by a reset.
func linger(t *testing.T, c *testutil.Conn) {
	t.Helper()
	if err := c.Conn.(interface{ SetLinger(int) error }).SetLinger(0); err != nil {
		t.Fatal(err)
	}
}

// send sends a datagram and does not care for an answer.
func send(t *testing.T, c *testutil.Conn) {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte("hello\n")); err != nil {
		t.Fatal(err)
	}
}
