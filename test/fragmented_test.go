package test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

const containerMTU = 9000

// withoutDF has a UDP socket over IPv4 send packets that may be fragmented.
func withoutDF(t *testing.T, c *testutil.Conn) *testutil.Conn {
	t.Helper()
	raw, err := c.Conn.(*net.UDPConn).SyscallConn()
	if err == nil {
		var set error
		err = raw.Control(func(fd uintptr) {
			set = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
		})
		err = errors.Join(err, set)
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Packets without DF that are too large for the uplink get outside in fragments,
// whatever the host forwards.
func TestPacketsWithoutDFAreFragmented(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h, "--mtu", fmt.Sprint(containerMTU))
	createOther(t, h, "--mtu", fmt.Sprint(containerMTU), "--masquerade=false")
	a, b, routed := h.NewContainer(t, "a", "net"), h.NewContainer(t, "b", "net"), h.NewContainer(t, "routed", "other")
	u.Outside.Run(t, "ip", "route", "add", other4, "via", h.IP4.String())
	h.Run(t, "iptables", "-P", "FORWARD", "DROP")
	// What is sent with a checksum to be completed is completed on the way out.
	h.Run(t, "ethtool", "-K", testutil.Uplink, "tx", "off")
	serveLarge(t, u.Outside, service)
	wire := u.Outside.NewTap(t, "bridge")
	for _, from := range []*testutil.Container{a, b, routed} { // b has another port outside than a
		want := h.IP4
		if from == routed {
			want = routed.IP4
		}
		exchangeLarge(t, withoutDF(t, from.MustDialFrom(t, "udp", ":41000", at(u.IP4, service))))
		expectFragments(t, wire, want, u.IP4)
		ping(t, from.Netns, u.IP4, "-s", "4000", "-M", "dont")
		expectFragments(t, wire, want, u.IP4)
		// Fragments that are too large themselves.
		from.Run(t, "ip", "route", "add", u.IP4.String(), "via", gatewayFor(from).String(), "mtu", "lock", "4000")
		exchangeLarge(t, withoutDF(t, from.MustDialFrom(t, "udp", ":42000", at(u.IP4, service))))
		expectFragments(t, wire, want, u.IP4)
	}
	for _, reason := range []string{"fragment", "too_big", "kernel_error", "malformed"} {
		if n := h.Drops(t, reason); n > 0 {
			t.Errorf("%d packets are dropped as %s", n, reason)
		}
	}
}

// So do packets that are too large for a tunnel get to the other host.
func TestPacketsWithoutDFAreFragmentedIntoTunnels(t *testing.T) {
	p := newPair(t, greKey, greKey, "--mtu", fmt.Sprint(containerMTU))
	for _, h := range []*testutil.Host{p.a, p.b} {
		h.Run(t, "iptables", "-P", "FORWARD", "DROP")
		h.Run(t, "ethtool", "-K", testutil.Uplink, "tx", "off")
	}
	for _, c := range []*testutil.Container{p.web, p.redis1} {
		c.SetSysctl(t, "ipv4/ip_no_pmtu_disc", "1") // the server's answers, too
	}
	serveLarge(t, p.redis1.Netns, service)
	exchange := func() {
		t.Helper()
		exchangeLarge(t, withoutDF(t, p.web.MustDial(t, "udp", at(p.redis1.IP4, service))))
		ping(t, p.web.Netns, p.redis1.IP4, "-s", "4000", "-M", "dont")
	}
	exchange()
	for _, reason := range []string{"fragment", "too_big", "kernel_error", "malformed"} {
		for _, h := range []*testutil.Host{p.a, p.b} {
			if n := h.Drops(t, reason); n > 0 {
				t.Errorf("on %s, %d packets are dropped as %s", h.Name, n, reason)
			}
		}
	}
	// Into a tunnel that wants the detour besides, where the others are learned.
	for _, end := range []struct {
		host, peer *testutil.Host
		remote     []string
	}{{p.a, p.b, []string{"redis1"}}, {p.b, p.a, []string{"web", "other"}}} {
		for _, name := range end.remote {
			end.host.Ebpnet(t, "endpoint", "rm", name)
		}
		end.host.Ebpnet(t, "tunnel", "rm", "peer")
		end.host.Ebpnet(t, "tunnel", "add", "peer", "--remote", end.peer.IP4.String(), "--csum", "--seq")
	}
	// What is flooded for want of a learned MAC is not fragmented.
	ping(t, p.web.Netns, p.redis1.IP4)
	exchange()
}

// gatewayFor is the gateway of a container's network.
func gatewayFor(c *testutil.Container) netip.Addr {
	return netip.PrefixFrom(c.IP4, 24).Masked().Addr().Next()
}

// expectFragments expects later fragments on a wire, which fit it, and none from
// another source.
func expectFragments(t *testing.T, wire *testutil.Tap, src, dst netip.Addr) {
	t.Helper()
	const mtu = 1500
	found := 0
	wire.Receive(t, 0, func(p gopacket.Packet) bool {
		ip, ok := p.NetworkLayer().(*layers.IPv4)
		if !ok || !ip.DstIP.Equal(dst.AsSlice()) {
			return false
		}
		if ip.Length > mtu {
			t.Errorf("a packet of %d bytes on a wire of %d", ip.Length, mtu)
		}
		if ip.FragOffset == 0 {
			return false
		}
		found++
		if !ip.SrcIP.Equal(src.AsSlice()) {
			t.Errorf("a later fragment is from %s, want %s", ip.SrcIP, src)
		}
		return false
	})
	if found == 0 {
		t.Errorf("no later fragment from %s", src)
	}
}
