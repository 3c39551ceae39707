package test

import (
	"bufio"
	"errors"
	"fmt"
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

// The far side of a router, and the router's own addresses there.
var (
	far4, far6 = netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8:1::1")
	behind4    = "198.51.100.254/24"
	behind6    = "2001:db8:1::fe/64"
)

// farPath is a way from a host by the router to the far side, of one family.
type farPath struct{ gateway, host, router, far netip.Addr }

func farPaths(h *testutil.Host, u *testutil.Underlay) []farPath {
	return []farPath{{gateway4, h.IP4, u.IP4, far4}, {gateway6, h.IP6, u.IP6, far6}}
}

// newRouted makes a loaded host whose outside is a router to a namespace
// beyond it, by a wire of the given MTU.
func newRouted(t *testing.T, mtu int) (*testutil.Host, *testutil.Underlay, *testutil.Netns) {
	t.Helper()
	h, u := newOutside(t)
	far := testutil.NewNetns(t, "far")
	far.Run(t, "ip", "link", "set", "lo", "up")
	testutil.Wire(t, u.Outside, "behind", []string{behind4, behind6},
		far, "wire", []string{far4.String() + "/24", far6.String() + "/64"})
	u.Outside.Run(t, "ip", "link", "set", "behind", "mtu", fmt.Sprint(mtu))
	far.Run(t, "ip", "link", "set", "wire", "mtu", fmt.Sprint(mtu))
	for _, name := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		u.Outside.SetSysctl(t, name, "1")
	}
	// Errors are what these tests are about.
	u.Outside.SetSysctl(t, "ipv4/icmp_ratelimit", "0")
	u.Outside.SetSysctl(t, "ipv6/icmp/ratelimit", "0")
	for _, router := range []string{behind4, behind6} {
		// It does not say in its handshakes how narrow its way is, so that the
		// other side has to find out.
		far.Run(t, "ip", "route", "add", "default", "via", netip.MustParsePrefix(router).Addr().String(), "advmss", "1440")
	}
	return h, u, far
}

// What traceroute does, by UDP, and ping by echoes: each router on the way
// tells of itself, the gateway as the first.
func TestTraceroute(t *testing.T) {
	h, u, far := newRouted(t, 1500)
	createNet(t, h)
	a := h.NewContainer(t, "a", "net")
	serve(t, far, service)
	for _, path := range farPaths(h, u) {
		exceeded := uint8(layers.ICMPv4TypeTimeExceeded)
		if path.far.Is6() {
			exceeded = layers.ICMPv6TypeTimeExceeded
		}
		for i, hop := range []netip.Addr{path.gateway, path.router} {
			c := a.MustDial(t, "udp", at(path.far, service+1+i))
			listensToErrors(t, c, i+1)
			send(t, c)
			if got, want := awaitError(t, c), (told{kind: exceeded, offender: hop}); got != want {
				t.Errorf("hop %d of UDP to %s: %+v, want %+v", i+1, path.far, got, want)
			}
			out, err := a.Try("ping", "-n", "-c", "1", "-W", "2", "-t", fmt.Sprint(i+1), path.far.String())
			if err == nil || !strings.Contains(out, "From "+hop.String()) || !strings.Contains(out, "xceeded") {
				t.Errorf("hop %d of ping to %s: %v, want the word of %s:\n%s", i+1, path.far, err, hop, out)
			}
		}
		ping(t, a.Netns, path.far, "-t", "3")
		c := a.MustDial(t, "udp", at(path.far, service))
		listensToErrors(t, c, 3)
		c.MustAsk(t)
		// By TCP, in the handshake.
		for i, hop := range []netip.Addr{path.gateway, path.router} {
			if got := tcpHop(t, a, path.far, i+1); got != hop {
				t.Errorf("hop %d of TCP to %s: %s, want %s", i+1, path.far, got, hop)
			}
		}
	}
}

// tcpHop sends a SYN with so many hops to live, and tells who dropped it.
func tcpHop(t *testing.T, from *testutil.Container, to netip.Addr, hops int) netip.Addr {
	t.Helper()
	tap := from.NewTap(t, testutil.Device)
	d := net.Dialer{Timeout: time.Second, FallbackDelay: -1, Control: func(_, _ string, raw syscall.RawConn) error {
		var set error
		err := raw.Control(func(fd uintptr) {
			if to.Is4() {
				set = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TTL, hops)
			} else {
				set = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, hops)
			}
		})
		return errors.Join(err, set)
	}}
	from.Do(func() {
		if c, err := d.Dial("tcp", at(to, service)); err == nil {
			t.Errorf("a SYN with %d hops to live reaches %s", hops, to)
			c.Close()
		}
	})
	p := tap.Await(t, "time exceeded", func(p gopacket.Packet) bool {
		if icmp, ok := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4); ok {
			return icmp.TypeCode.Type() == layers.ICMPv4TypeTimeExceeded && quotesTCP(icmp.Payload[9:])
		}
		icmp, ok := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
		return ok && icmp.TypeCode.Type() == layers.ICMPv6TypeTimeExceeded && quotesTCP(icmp.Payload[4+6:])
	})
	address, _ := netip.AddrFromSlice(p.NetworkLayer().NetworkFlow().Src().Raw())
	return address
}

func quotesTCP(protocol []byte) bool { return layers.IPProtocol(protocol[0]) == layers.IPProtocolTCP }

// transfer sends a long line to a server of Serve, and expects it back: it
// takes packets of every size in both directions.
func transfer(t *testing.T, from *testutil.Netns, address string) {
	t.Helper()
	const size = 1 << 20
	c := from.MustDial(t, "tcp", address)
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write([]byte(strings.Repeat("x", size) + "\n")); err != nil {
		t.Fatalf("to %s: %v", address, err)
	}
	line, err := bufio.NewReader(c.Conn).ReadString('\n')
	if err != nil || strings.Count(line, "x") != size {
		t.Fatalf("from %s: %d bytes of %d came back: %v", address, strings.Count(line, "x"), size, err)
	}
}

// expectTooBig sends datagrams of a size until the sender is told what fits.
func expectTooBig(t *testing.T, c *testutil.Conn, size, mtu int, offender netip.Addr) {
	t.Helper()
	kind, code := uint8(layers.ICMPv4TypeDestinationUnreachable), uint8(layers.ICMPv4CodeFragmentationNeeded)
	if offender.Is6() {
		kind, code = layers.ICMPv6TypePacketTooBig, 0
	}
	listensToErrors(t, c, 0)
	payload := []byte(strings.Repeat("x", size) + "\n")
	if _, err := c.Write(payload); err != nil {
		t.Fatalf("the first of %d bytes to %s: %v", size, c.RemoteAddr(), err)
	}
	if got, want := awaitError(t, c), (told{kind, code, uint32(mtu), offender}); got != want {
		t.Errorf("%d bytes to %s: %+v, want %+v", size, c.RemoteAddr(), got, want)
	}
	if _, err := c.Write(payload); !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("again %d bytes to %s: %v, want %v", size, c.RemoteAddr(), err, unix.EMSGSIZE)
	}
}

// A router beyond the host has a way on that is narrower than the container's.
func TestPathMTUDiscovery(t *testing.T) {
	const mtu = 1300
	h, u, far := newRouted(t, mtu)
	createNet(t, h)
	a := h.NewContainer(t, "a", "net", bothPublished()...)
	serve(t, far, service)
	serve(t, a.Netns, service)
	for _, path := range farPaths(h, u) {
		transfer(t, a.Netns, at(path.far, service))
		if route := a.Run(t, "ip", "route", "get", path.far.String()); !strings.Contains(route, fmt.Sprintf("mtu %d", mtu)) {
			t.Errorf("the container has not learnt what fits: %s", route)
		}
		a.Run(t, "ip", familyOf(path.far), "route", "flush", "cache")
		expectTooBig(t, a.MustDial(t, "udp", at(path.far, service)), 1400, mtu, path.router)

		// What answers at a published port learns it, too.
		a.Run(t, "ip", familyOf(path.far), "route", "flush", "cache")
		transfer(t, far, at(path.host, published))
		if route := a.Run(t, "ip", "route", "get", path.far.String()); !strings.Contains(route, fmt.Sprintf("mtu %d", mtu)) {
			t.Errorf("the server has not learnt what fits: %s", route)
		}
	}
	if n := h.Drops(t, "too_big"); n > 0 {
		t.Errorf("the host itself has dropped %d packets as too big", n)
	}
}

func familyOf(a netip.Addr) string {
	if a.Is4() {
		return "-4"
	}
	return "-6"
}

// The host's own way out is narrower than the container's: the datapath says so.
func TestUplinkIsNarrowerThanTheNetwork(t *testing.T) {
	const mtu = 1300
	h, u := newOutside(t)
	createNet(t, h, "--mtu", "1500")
	a := h.NewContainer(t, "a", "net", bothPublished()...)
	serve(t, u.Outside, service)
	serve(t, a.Netns, service)
	h.Run(t, "ip", "link", "set", testutil.Uplink, "mtu", fmt.Sprint(mtu))
	u.Outside.Run(t, "ip", "link", "set", "port1", "mtu", fmt.Sprint(mtu))
	for i, path := range paths(h, u) {
		gateway := []netip.Addr{gateway4, gateway6}[i]
		transfer(t, a.Netns, at(path.outside, service))
		a.Run(t, "ip", familyOf(path.outside), "route", "flush", "cache")
		h.ExpectDrops(t, "too_big", func() {
			expectTooBig(t, a.MustDial(t, "udp", at(path.outside, service)), 1400, mtu, gateway)
		})
		a.Run(t, "ip", familyOf(path.outside), "route", "flush", "cache")
		transfer(t, u.Outside, at(path.host, published))
		transfer(t, h.Netns, at(path.host, published))
		connects(t, a.Netns, "udp", at(path.outside, service)) // what fits goes on
	}
}

// Nobody listens: whoever asked is told, and by whom it asked.
func TestUnreachablePortsAreTold(t *testing.T) {
	h, u, far := newRouted(t, 1500)
	createNet(t, h)
	createOther(t, h)
	a := h.NewContainer(t, "a", "net", "--publish", "8080:7000/udp")
	sibling, guest := h.NewContainer(t, "sibling", "net"), h.NewContainer(t, "guest", "other")
	for _, path := range farPaths(h, u) {
		kind, code := uint8(layers.ICMPv4TypeDestinationUnreachable), uint8(layers.ICMPv4CodePort)
		if path.far.Is6() {
			kind, code = layers.ICMPv6TypeDestinationUnreachable, layers.ICMPv6CodePortUnreachable
		}
		for _, c := range []struct {
			from     *testutil.Netns
			to       netip.Addr
			port     int
			offender netip.Addr
		}{
			{a.Netns, path.far, discard, path.far},
			{far, path.host, published, path.host},
			{u.Outside, path.host, published, path.host},
			{guest.Netns, path.host, published, path.host},
			{sibling.Netns, path.host, published, path.host},
			{a.Netns, path.host, published, path.host},
			{h.Netns, path.host, published, path.host},
		} {
			conn := c.from.MustDial(t, "udp", at(c.to, c.port))
			listensToErrors(t, conn, 0)
			send(t, conn)
			if got, want := awaitError(t, conn), (told{kind, code, 0, c.offender}); got != want {
				t.Errorf("from %s to %s: %+v, want %+v", c.from.Name, conn.RemoteAddr(), got, want)
			}
			refusesConnections(t, c.from, "udp", at(c.to, c.port))
		}
		loopback := netip.MustParseAddr("127.0.0.1")
		if path.far.Is6() {
			loopback = netip.IPv6Loopback()
		}
		refusesConnections(t, h.Netns, "udp", at(loopback, published))
	}
	// An error ends no flow.
	serve(t, a.Netns, service)
	sees(t, far, "udp", at(h.IP4, published), far4)
}

// icmpError is an error about a packet, made by hand.
func icmpError(t *testing.T, srcMAC, dstMAC net.HardwareAddr, src, dst netip.Addr, quoted []byte) []byte {
	t.Helper()
	if src.Is4() {
		header, next := ip(src, dst, layers.IPProtocolICMPv4)
		return testutil.Frame(t, ethernet(srcMAC, dstMAC, next), header,
			&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(layers.ICMPv4TypeDestinationUnreachable, layers.ICMPv4CodePort)},
			gopacket.Payload(quoted))
	}
	header, next := ip(src, dst, layers.IPProtocolICMPv6)
	unused := make([]byte, 4)
	return testutil.Frame(t, ethernet(srcMAC, dstMAC, next), header,
		&layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeDestinationUnreachable, layers.ICMPv6CodePortUnreachable)},
		gopacket.Payload(append(unused, quoted...)))
}

// quotedUDP is a UDP packet without its Ethernet header.
func quotedUDP(t *testing.T, src, dst netip.AddrPort) []byte {
	t.Helper()
	const ethernetHeader = 14
	return udpFrame(t, nobodysMAC, nobodysMAC, src, dst, "quoted")[ethernetHeader:]
}

// Errors about what no flow has sent are nobody's, and nobody tells them about
// flows of others.
func TestErrorsAboutUnknownFlows(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h, "--icc=false")
	expectNoContainerAddress(t, u)
	a, b := h.NewContainer(t, "a", "net"), h.NewContainer(t, "b", "net")
	serve(t, u.Outside, service)
	fromA, fromB := a.NewTap(t, testutil.Device), b.NewTap(t, testutil.Device)
	outside := u.Outside.NewTap(t, "bridge")
	uplink, gateway := deviceMAC(t, h.Netns, testutil.Uplink), gatewayMAC(t, h)
	isError := func(p gopacket.Packet) bool {
		if icmp, ok := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4); ok {
			return icmp.TypeCode.Type() == layers.ICMPv4TypeDestinationUnreachable
		}
		icmp, ok := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
		return ok && icmp.TypeCode.Type() == layers.ICMPv6TypeDestinationUnreachable
	}
	for i, path := range paths(h, u) {
		c := a.MustDialFrom(t, "udp", ":41000", at(path.outside, service))
		c.MustAsk(t)
		server, mapped := netip.AddrPortFrom(path.outside, service), netip.AddrPortFrom(path.host, 41000)
		inside := netip.AddrPortFrom(a.Addresses()[i], 41000)

		// From outside: about a port that is not mapped, or another's flow with
		// the port, or as if it had been sent to somebody else.
		for _, quoted := range [][]byte{
			quotedUDP(t, netip.AddrPortFrom(path.host, 41001), server),
			quotedUDP(t, mapped, netip.AddrPortFrom(path.outside, service+1)),
			quotedUDP(t, inside, server),
			quotedUDP(t, mapped, server)[:20],
		} {
			outside.Send(t, icmpError(t, nobodysMAC, uplink, path.outside, path.host, quoted))
		}
		c.MustAsk(t)
		if p := fromA.Receive(t, aMoment, isError); p != nil {
			t.Errorf("an error about another flow is let in:\n%s", p)
		}
		// From a container: about a flow that is not there, or another's.
		for _, quoted := range [][]byte{
			quotedUDP(t, server, netip.AddrPortFrom(b.Addresses()[i], 41000)),
			quotedUDP(t, server, inside),
		} {
			h.ExpectDrops(t, "unknown_flow", func() {
				fromB.Send(t, icmpError(t, b.MAC, gateway, b.Addresses()[i], path.outside, quoted))
			})
		}
		if p := outside.Receive(t, aMoment, isError); p != nil {
			t.Errorf("an error about no flow of the container's is outside:\n%s", p)
		}

		// The same about the flow itself go through, translated.
		outside.Send(t, icmpError(t, nobodysMAC, uplink, path.outside, path.host, quotedUDP(t, mapped, server)))
		fromA.Await(t, "an error about the flow", isError)
		if _, err := c.Ask(2 * time.Second); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("the container's socket: %v, want it refused", err)
		}
		c.MustAsk(t)
		fromA.Send(t, icmpError(t, a.MAC, gateway, a.Addresses()[i], path.outside, quotedUDP(t, server, inside)))
		p := outside.Await(t, "an error of the container", isError)
		if src := p.NetworkLayer().NetworkFlow().Src().String(); src != path.host.String() {
			t.Errorf("it comes from %s, want %s", src, path.host)
		}
		c.MustAsk(t)
	}
}
