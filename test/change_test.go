package test

import (
	"bufio"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

func TestNetworkTurnsInternal(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	a := h.NewContainer(t, "a", "net")
	serve(t, u.Outside, service)
	container, outside := a.NewTap(t, testutil.Device), u.Outside.NewTap(t, "bridge")
	const port, mark = 45000, "from outside"
	uplink := deviceMAC(t, h.Netns, testutil.Uplink)
	arrived := func(p gopacket.Packet) bool { return strings.Contains(string(p.Data()), mark) }
	for _, path := range paths(h, u) {
		stream := connects(t, a.Netns, "tcp", at(path.outside, service))
		datagrams := a.MustDialFrom(t, "udp", fmt.Sprintf(":%d", port), at(path.outside, service))
		datagrams.MustAsk(t)
		answer := udpFrame(t, nobodysMAC, uplink, netip.AddrPortFrom(path.outside, service), netip.AddrPortFrom(path.host, port), mark)
		outside.Send(t, answer)
		container.Await(t, "an answer", arrived)

		h.Ebpnet(t, "network", "set", "net", "--internal=true")
		h.ExpectDrops(t, "internal", func() { outside.Send(t, answer) })
		if p := container.Receive(t, 0, arrived); p != nil {
			t.Errorf("an internal network is reached from outside:\n%s", p)
		}
		stalls(t, stream)
		stalls(t, datagrams)
		noPing(t, h, "internal", a.Netns, path.outside)
		ping(t, a.Netns, gateway4)

		h.Ebpnet(t, "network", "set", "net", "--internal=false")
		stream.MustAsk(t)
		ping(t, a.Netns, path.outside)
		datagrams.Close()
	}
}

func TestMasqueradeIsSwitched(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h, "--masquerade=false")
	a := h.NewContainer(t, "a", "net")
	serve(t, u.Outside, service)
	outside := u.Outside.NewTap(t, "bridge")
	const mark = "as I am"
	type open struct {
		*testutil.Conn
		host netip.Addr
	}
	var flows []open
	for i, path := range paths(h, u) {
		c := a.MustDial(t, "udp", at(path.outside, service))
		flows = append(flows, open{c, path.host})
		if _, err := fmt.Fprint(c, mark); err != nil {
			t.Fatal(err)
		}
		p := outside.Await(t, "a packet of a network that is not masqueraded", func(p gopacket.Packet) bool {
			return strings.Contains(string(p.Data()), mark)
		})
		if src := p.NetworkLayer().NetworkFlow().Src().String(); src != a.Addresses()[i].String() {
			t.Errorf("it comes from %s, want %s", src, a.Addresses()[i])
		}
	}
	for range 3 {
		h.Ebpnet(t, "network", "set", "net", "--masquerade=false")
		h.Ebpnet(t, "network", "set", "net", "--masquerade=true")
	}
	expectNoContainerAddress(t, u)
	for _, f := range flows {
		h.ExpectDrops(t, "address_lost", func() { stalls(t, f.Conn) })
		if got := f.MustAsk(t); got.Addr() != f.host {
			t.Errorf("the outside sees %s, want %s", got.Addr(), f.host)
		}
	}
	for _, path := range paths(h, u) {
		ping(t, a.Netns, path.outside)
	}
}

// renumber gives the host's uplink other addresses.
func renumber(t *testing.T, h *testutil.Host, u *testutil.Underlay) (ip4, ip6 netip.Addr) {
	t.Helper()
	ip := func(args ...string) { t.Helper(); h.Run(t, "ip", args...) }
	ip("addr", "flush", "dev", testutil.Uplink, "scope", "global")
	ip("addr", "add", "192.0.2.77/24", "dev", testutil.Uplink)
	ip("addr", "add", "2001:db8::77/64", "dev", testutil.Uplink, "nodad")
	ip("route", "replace", "default", "via", u.IP4.String())
	ip("route", "replace", "default", "via", u.IP6.String())
	return netip.MustParseAddr("192.0.2.77"), netip.MustParseAddr("2001:db8::77")
}

func TestFlowsFollowTheUplinksAddress(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	a := h.NewContainer(t, "a", "net")
	serve(t, u.Outside, service)
	expectNoContainerAddress(t, u)
	running := map[netip.Addr]*testutil.Conn{
		h.IP4: connects(t, a.Netns, "udp", at(u.IP4, service)),
		h.IP6: connects(t, a.Netns, "udp", at(u.IP6, service)),
	}
	ip4, ip6 := renumber(t, h, u)
	h.Ebpnet(t, "load")
	for old, want := range map[netip.Addr]netip.Addr{h.IP4: ip4, h.IP6: ip6} {
		h.ExpectDrops(t, "address_lost", func() { stalls(t, running[old]) })
		if got := running[old].MustAsk(t); got.Addr() != want {
			t.Errorf("a running flow leaves from %s, want %s", got.Addr(), want)
		}
	}
}

// bound is a connection of the host that is bound to its uplink, as a VPN's or
// a DHCP client's.
type bound struct {
	net.Conn
	r *bufio.Reader
}

func dialBound(t *testing.T, h *testutil.Host, network string, port int, address string) bound {
	t.Helper()
	d := net.Dialer{Timeout: 2 * time.Second, FallbackDelay: -1, Control: func(_, _ string, raw syscall.RawConn) error {
		var set error
		err := raw.Control(func(fd uintptr) {
			set = errors.Join(unix.BindToDevice(int(fd), testutil.Uplink),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
		})
		return errors.Join(err, set)
	}}
	d.LocalAddr = &net.UDPAddr{Port: port}
	if network == "tcp" {
		d.LocalAddr = &net.TCPAddr{Port: port}
	}
	var c net.Conn
	var err error
	h.Do(func() { c, err = d.Dial(network, address) })
	if err != nil {
		t.Fatalf("%s by %s from port %d: %v", network, testutil.Uplink, port, err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return bound{c, bufio.NewReader(c)}
}

// mustAsk is Conn.MustAsk.
func (b bound) mustAsk(t *testing.T) {
	t.Helper()
	nonce := rand.Text()
	if err := b.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintln(b, nonce); err != nil {
		t.Fatal(err)
	}
	if line, err := b.r.ReadString('\n'); err != nil || !strings.HasSuffix(line, nonce+"\n") {
		t.Fatalf("bound to %s, %s to %s: %q, %v", testutil.Uplink, b.LocalAddr(), b.RemoteAddr(), line, err)
	}
}

func TestSocketsBoundToTheUplink(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	a := h.NewContainer(t, "a", "net")
	serve(t, u.Outside, service)
	expectNoContainerAddress(t, u)
	for _, path := range paths(h, u) {
		for _, network := range []string{"tcp", "udp"} {
			address := at(path.outside, service)
			first := dialBound(t, h, network, 48000, address)
			first.mustAsk(t)
			container := a.MustDialFrom(t, network, ":48000", address)
			if got := container.MustAsk(t); got.Port() == 48000 {
				t.Errorf("%s: the container is seen at the host's port", network)
			}
			container2 := a.MustDialFrom(t, network, ":49000", address)
			container2.MustAsk(t)
			second := dialBound(t, h, network, 49000, address)
			for range 3 {
				first.mustAsk(t)
				second.mustAsk(t)
				takeTurns(t, container, container2)
			}
		}
	}
}

// What the host forwards for others, as for a virtual machine, is left alone.
func TestGuestBehindTheHostIsNotDisturbed(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	a := h.NewContainer(t, "a", "net")
	serve(t, u.Outside, service)
	expectNoContainerAddress(t, u)
	guest := testutil.NewNetns(t, "guest")
	guest.Run(t, "ip", "link", "set", "lo", "up")
	testutil.Wire(t, h.Netns, "tap0", []string{"10.9.0.1/24"}, guest, "eth0", []string{"10.9.0.2/24"})
	guest.Run(t, "ip", "route", "add", "default", "via", "10.9.0.1")
	setForwarding(t, h, "1")
	h.Run(t, "iptables", "-t", "nat", "-A", "POSTROUTING", "-s", "10.9.0.0/24", "-o", testutil.Uplink, "-j", "MASQUERADE")
	for _, network := range []string{"tcp", "udp"} {
		address := at(u.IP4, service)
		first := guest.MustDialFrom(t, network, ":46000", address)
		if got, want := first.MustAsk(t), netip.AddrPortFrom(h.IP4, 46000); got != want {
			t.Errorf("%s: the guest comes from %s, want %s", network, got, want)
		}
		container := a.MustDialFrom(t, network, ":46000", address)
		if got := container.MustAsk(t); got.Addr() != h.IP4 || got.Port() == 46000 {
			t.Errorf("%s: the container comes from %s, want another port of %s", network, got, h.IP4)
		}
		takeTurns(t, first, container)

		before := a.MustDialFrom(t, network, ":47000", address)
		before.MustAsk(t)
		second := guest.MustDialFrom(t, network, ":47000", address)
		takeTurns(t, first, before, second, container)
	}
}

func TestEndpointsFollowTheUplinksMTU(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	createOther(t, h, "--key", "7")
	a, spanning := h.NewContainer(t, "a", "net"), h.NewContainer(t, "spanning", "other")
	const inGRE = 42
	for _, size := range []int{1500, 1400, 1500} {
		h.Run(t, "ip", "link", "set", testutil.Uplink, "mtu", fmt.Sprint(size))
		h.Ebpnet(t, "load")
		for c, want := range map[*testutil.Container]int{a: size, spanning: size - inGRE} {
			if link := c.Run(t, "ip", "-o", "link", "show", testutil.Device); !strings.Contains(link, fmt.Sprintf("mtu %d ", want)) {
				t.Errorf("uplink's MTU %d: %s: want %d: %s", size, c.Endpoint, want, link)
			}
		}
		const headers = 20 + 8 // of IP and of an echo
		ping(t, a.Netns, u.IP4, "-M", "do", "-s", fmt.Sprint(size-headers))
	}
}

func TestStatsCountPacketsNotSuperframes(t *testing.T) {
	const tolerance = 0.05
	p := newPair(t, greKey, greKey)
	agree := func(h *testutil.Host, what string, of func(testutil.Traffic) uint64, endpoint string, before testutil.Stats) {
		t.Helper()
		find := func(s []testutil.Traffic, name string) (n float64) {
			for _, traffic := range s {
				if traffic.Name == name {
					n = float64(of(traffic))
				}
			}
			return n
		}
		after := h.Stats(t)
		inner := find(after.Endpoints, endpoint) - find(before.Endpoints, endpoint)
		outer := find(after.Tunnels, "peer") - find(before.Tunnels, "peer")
		if inner < 1000 || math.Abs(inner-outer) > tolerance*inner {
			t.Errorf("%s: %v packets of %s, %v of the tunnel", what, inner, endpoint, outer)
		}
	}
	for _, address := range p.redis1.Addresses() {
		a, b := p.a.Stats(t), p.b.Stats(t)
		iperf(t, p.web.Netns, p.redis1.Netns, address)
		agree(p.a, "sent", func(t testutil.Traffic) uint64 { return t.TxPackets }, "web", a)
		agree(p.b, "received", func(t testutil.Traffic) uint64 { return t.RxPackets }, "redis1", b)
	}
}

// What comes in a VLAN is for the host's VLAN devices, though its tag is gone
// from the frame before the program sees it.
func TestVLANOnTheUplinkIsTheHosts(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	a := h.NewContainer(t, "a", "net")
	serve(t, u.Outside, service)
	const port, mark, tag = 45000, "from outside", "\x81\x00\x00\x05"
	a.MustDialFrom(t, "udp", fmt.Sprintf(":%d", port), at(u.IP4, service)).MustAsk(t)
	container, host, outside := a.NewTap(t, testutil.Device), h.NewTap(t, testutil.Uplink), u.Outside.NewTap(t, "bridge")
	arrived := func(p gopacket.Packet) bool { return strings.Contains(string(p.Data()), mark) }
	answer := udpFrame(t, nobodysMAC, deviceMAC(t, h.Netns, testutil.Uplink), netip.AddrPortFrom(u.IP4, service), netip.AddrPortFrom(h.IP4, port), mark)
	outside.Send(t, []byte(string(answer[:12])+tag+string(answer[12:])))
	host.Await(t, "the tagged frame", func(p gopacket.Packet) bool {
		return arrived(p) && p.Layer(layers.LayerTypeUDP) != nil
	})
	if p := container.Receive(t, aMoment, arrived); p != nil {
		t.Errorf("a container gets what came in a VLAN:\n%s", p)
	}
	outside.Send(t, answer)
	container.Await(t, "the same without a tag", arrived)
}
