package test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// ICMP errors that are forged: they quote packets of others.

const (
	ethernetHeader        = 14
	echoReply4            = 0
	echoReply6            = 129
	leastPMTU4, leastMTU6 = 552, 1280 // the smallest path MTU that Linux accepts
)

// quotedEcho is the reply to a ping, without its Ethernet header.
func quotedEcho(t *testing.T, src, dst netip.Addr) []byte {
	t.Helper()
	const rest = "\x00\x07\x00\x01quoted"
	if src.Is4() {
		header, next := ip(src, dst, layers.IPProtocolICMPv4)
		return testutil.Frame(t, ethernet(nobodysMAC, nobodysMAC, next), header,
			&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(echoReply4, 0)}, gopacket.Payload(rest))[ethernetHeader:]
	}
	header, next := ip(src, dst, layers.IPProtocolICMPv6)
	return testutil.Frame(t, ethernet(nobodysMAC, nobodysMAC, next), header,
		&layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(echoReply6, 0)}, gopacket.Payload(rest))[ethernetHeader:]
}

// tooBig is an error that says that no more than mtu bytes fit, made by hand.
func tooBig(t *testing.T, srcMAC, dstMAC net.HardwareAddr, src, dst netip.Addr, mtu uint16, quoted []byte) []byte {
	t.Helper()
	if src.Is4() {
		header, next := ip(src, dst, layers.IPProtocolICMPv4)
		return testutil.Frame(t, ethernet(srcMAC, dstMAC, next), header, &layers.ICMPv4{
			TypeCode: layers.CreateICMPv4TypeCode(layers.ICMPv4TypeDestinationUnreachable, layers.ICMPv4CodeFragmentationNeeded),
			Seq:      mtu,
		}, gopacket.Payload(quoted))
	}
	header, next := ip(src, dst, layers.IPProtocolICMPv6)
	return testutil.Frame(t, ethernet(srcMAC, dstMAC, next), header,
		&layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypePacketTooBig, 0)},
		gopacket.Payload(append([]byte{0, 0, byte(mtu >> 8), byte(mtu)}, quoted...)))
}

// pathMTU is what the kernel of a namespace has learned of the way to an
// address, "" if nothing.
func pathMTU(t *testing.T, n *testutil.Netns, to netip.Addr) string {
	t.Helper()
	_, after, _ := strings.Cut(n.Run(t, "ip", "route", "get", to.String()), " mtu ")
	mtu, _, _ := strings.Cut(after, " ")
	return mtu
}

// carriesFull expects full packets through the tunnel from a to b, by ping and
// by TCP, of which none is too big.
func carriesFull(t *testing.T, h *testutil.Host, a, b *testutil.Container, mtu int) {
	t.Helper()
	before := h.Drops(t, "too_big")
	for _, to := range b.Addresses() {
		ping(t, a.Netns, to, "-M", "do", "-s", fmt.Sprint(mtu-echoHeaders(to)))
		transfer(t, a.Netns, at(to, service))
		if got := pathMTU(t, a.Netns, to); got != "" {
			t.Errorf("the container has learned a path MTU of %s to %s", got, to)
		}
	}
	if n := h.Drops(t, "too_big"); n > before {
		t.Errorf("%d packets are too big", n-before)
	}
}

// An ICMP error that quotes a ping between the hosts of a tunnel does not
// narrow the tunnel, whoever sends it.
func TestForgedErrorsDoNotNarrowTunnels(t *testing.T) {
	for _, form := range []struct {
		name    string
		v6      bool
		headers int
		mtu     uint16
	}{{"IPv4", false, 42, leastPMTU4}, {"IPv6", true, 62, leastMTU6}} {
		t.Run(form.name, func(t *testing.T) {
			m := newMesh(t, form.v6, true)
			h, a, b := m.hosts[0], m.containers[0], m.containers[1]
			serve(t, b.Netns, service)
			local, remote, own, attacker := h.IP4, m.hosts[1].IP4, a.IP4, m.underlay.IP4
			if form.v6 {
				local, remote, own, attacker = h.IP6, m.hosts[1].IP6, a.IP6, m.underlay.IP6
			}
			quoted := quotedEcho(t, local, remote)
			gateway := gateway4
			if form.v6 {
				gateway = gateway6
			}
			mtu := underlayMTU - form.headers

			tap := a.NewTap(t, testutil.Device)
			for _, to := range []netip.Addr{gateway, local} {
				h.ExpectDrops(t, "unknown_flow", func() {
					tap.Send(t, tooBig(t, a.MAC, gatewayMAC(t, h), own, to, form.mtu, quoted))
				})
			}
			if got := pathMTU(t, h.Netns, remote); got != "" {
				t.Errorf("a container has told the host of a path MTU of %s", got)
			}
			carriesFull(t, h, a, b, mtu)

			// From outside the host itself believes it, as every Linux does.
			outside := m.underlay.Outside.NewTap(t, "bridge")
			outside.Send(t, tooBig(t, nobodysMAC, deviceMAC(t, h.Netns, testutil.Uplink), attacker, local, form.mtu, quoted))
			testutil.Eventually(t, "the host believes the attacker", func() bool {
				return pathMTU(t, h.Netns, remote) == fmt.Sprint(form.mtu)
			})
			carriesFull(t, h, a, b, mtu)
		})
	}
}

// The path MTU that the host has learned is not that of containers.
func TestForgedErrorsDoNotNarrowTheWayOut(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h, "--mtu", fmt.Sprint(underlayMTU))
	a := h.NewContainer(t, "a", "net")
	serve(t, u.Outside, service)
	outside := u.Outside.NewTap(t, "bridge")
	for _, path := range paths(h, u) {
		mtu := uint16(leastPMTU4)
		if path.host.Is6() {
			mtu = leastMTU6
		}
		outside.Send(t, tooBig(t, nobodysMAC, deviceMAC(t, h.Netns, testutil.Uplink), path.outside, path.host, mtu, quotedEcho(t, path.host, path.outside)))
		testutil.Eventually(t, "the host believes it", func() bool { return pathMTU(t, h.Netns, path.outside) == fmt.Sprint(mtu) })
		ping(t, a.Netns, path.outside, "-M", "do", "-s", fmt.Sprint(underlayMTU-echoHeaders(path.outside)))
		transfer(t, a.Netns, at(path.outside, service))
		if got := pathMTU(t, a.Netns, path.outside); got != "" {
			t.Errorf("the container has learned a path MTU of %s to %s", got, path.outside)
		}
	}
	if n := h.Drops(t, "too_big"); n > 0 {
		t.Errorf("%d packets are too big", n)
	}
}

// inFragments cuts the packet in a frame in two, the first with so many bytes
// behind the IP header.
func inFragments(t *testing.T, frame []byte, first int) [2][]byte {
	t.Helper()
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	eth := p.LinkLayer().(*layers.Ethernet)
	if ip, ok := p.NetworkLayer().(*layers.IPv4); ok {
		head, tail := *ip, *ip
		head.Id, head.Flags = 0x2001, layers.IPv4MoreFragments
		tail.Id, tail.FragOffset = 0x2001, uint16(first/8)
		return [2][]byte{
			testutil.Frame(t, eth, &head, gopacket.Payload(ip.Payload[:first])),
			testutil.Frame(t, eth, &tail, gopacket.Payload(ip.Payload[first:])),
		}
	}
	ip := p.NetworkLayer().(*layers.IPv6)
	next, payload := byte(ip.NextHeader), ip.Payload
	header := *ip
	header.NextHeader = layers.IPProtocolIPv6Fragment
	piece := func(offset uint16, data []byte) []byte {
		return testutil.Frame(t, eth, &header, gopacket.Payload(append([]byte{next, 0, byte(offset >> 8), byte(offset), 0, 0, 0x20, 1}, data...)))
	}
	return [2][]byte{piece(1, payload[:first]), piece(uint16(first), payload[first:])}
}

// behindOptions puts a destination options header in front of the transport
// header of an IPv6 packet.
func behindOptions(t *testing.T, frame []byte) []byte {
	t.Helper()
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	ip := p.NetworkLayer().(*layers.IPv6)
	padding := []byte{byte(ip.NextHeader), 0, 1, 4, 0, 0, 0, 0}
	header := *ip
	header.NextHeader = layers.IPProtocolIPv6Destination
	return testutil.Frame(t, p.LinkLayer().(*layers.Ethernet), &header, gopacket.Payload(append(padding, ip.Payload...)))
}

// Containers tell the host only of its packets to themselves.
func TestForgedErrorsDoNotReachTheHost(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	createOther(t, h, "--internal")
	a, b := h.NewContainer(t, "a", "net"), h.NewContainer(t, "b", "net")
	trunk, insider := h.NewContainer(t, "trunk", "net", "--trunk"), h.NewContainer(t, "insider", "other")
	serve(t, u.Outside, service)
	serve(t, b.Netns, service)
	fromA, fromTrunk, fromInsider := a.NewTap(t, testutil.Device), trunk.NewTap(t, testutil.Device), insider.NewTap(t, testutil.Device)
	mac := gatewayMAC(t, h)
	const port = 41000
	for i, path := range paths(h, u) {
		gateway, inner := []netip.Addr{gateway4, gateway6}[i], []string{"172.31.0.1", "fd00:31::1"}[i]
		own, behind := a.Addresses()[i], []netip.Addr{nobody4, nobody6}[i]
		mtu := []uint16{leastPMTU4, leastMTU6}[i]
		headers := ethernetHeader + []int{20, 40 + 8}[i] // of a fragment
		for _, c := range []struct {
			from, to netip.Addr // of the host's socket
		}{{path.host, path.outside}, {gateway, b.Addresses()[i]}} {
			socket := h.MustDialFrom(t, "udp", at(c.from, port), at(c.to, service))
			listensToErrors(t, socket, 0)
			socket.MustAsk(t)
			quoted := quotedUDP(t, netip.AddrPortFrom(c.from, port), netip.AddrPortFrom(c.to, service))
			refused := func(from *testutil.Tap, mac, src net.HardwareAddr, of, to netip.Addr) func() {
				return func() { from.Send(t, icmpError(t, src, mac, of, to, quoted)) }
			}
			attacks := []func(){
				refused(fromA, mac, a.MAC, own, c.from),
				refused(fromA, mac, a.MAC, own, gateway),
				refused(fromTrunk, mac, nobodysMAC, behind, c.from),
				refused(fromInsider, mac, insider.MAC, insider.Addresses()[i], netip.MustParseAddr(inner)),
				func() { fromA.Send(t, tooBig(t, a.MAC, mac, own, c.from, mtu, quoted)) },
			}
			for _, first := range []int{8, 48} {
				for _, to := range []netip.Addr{c.from, gateway} {
					attacks = append(attacks, func() {
						for _, f := range inFragments(t, icmpError(t, a.MAC, mac, own, to, quoted), first) {
							fromA.Send(t, f)
						}
					})
				}
			}
			// What Ethernet pads the first fragment with quotes another packet.
			attacks = append(attacks, func() {
				pieces := inFragments(t, icmpError(t, a.MAC, mac, own, c.from, quoted), 8)
				honest := quotedUDP(t, netip.AddrPortFrom(c.from, port), netip.AddrPortFrom(own, service))
				fromA.Send(t, append(pieces[0][:headers+8], honest...))
				fromA.Send(t, pieces[1])
			})
			if path.host.Is6() {
				unknown := icmpError(t, a.MAC, mac, own, c.from, quoted)
				attacks = append(attacks, func() { fromA.Send(t, behindOptions(t, unknown)) })
				local := linkLocal(a.MAC)
				attacks = append(attacks, refused(fromA, mac, a.MAC, local, linkLocal(mac)))
			}
			for n, attack := range attacks {
				before := h.Drops(t, "unknown_flow") + h.Drops(t, "malformed")
				attack()
				testutil.Eventually(t, fmt.Sprintf("attack %d on the socket from %s is refused", n, c.from), func() bool {
					return h.Drops(t, "unknown_flow")+h.Drops(t, "malformed") > before
				})
				if _, err := socket.Ask(aMoment); err != nil {
					t.Errorf("attack %d: the socket from %s to %s: %v", n, c.from, c.to, err)
				}
			}
			if got := pathMTU(t, h.Netns, c.to); got != "" {
				t.Errorf("the host has learned a path MTU of %s to %s", got, c.to)
			}
		}
	}
}

// A container tells the host of the host's packets to itself, and only of the
// way there.
func TestErrorsOfContainersReachTheHost(t *testing.T) {
	const mtu = 1300
	h, u := newOutside(t)
	createNet(t, h)
	a, b := h.NewContainer(t, "a", "net"), h.NewContainer(t, "b", "net")
	tap := a.NewTap(t, testutil.Device)
	const port = 41000
	for i, gateway := range []netip.Addr{gateway4, gateway6} {
		own := a.Addresses()[i]
		refusesConnections(t, h.Netns, "udp", at(own, discard))
		uplink := paths(h, u)[i].host
		for _, from := range []netip.Addr{gateway, uplink} {
			socket := h.MustDialFrom(t, "udp", at(from, port), at(own, discard))
			listensToErrors(t, socket, 0)
			quoted := quotedUDP(t, netip.AddrPortFrom(from, port), netip.AddrPortFrom(own, discard))
			tap.Send(t, tooBig(t, a.MAC, gatewayMAC(t, h), own, from, mtu, quoted))
			if got := awaitError(t, socket); got.mtu != mtu || got.offender != own {
				t.Errorf("from %s: %+v, want an MTU of %d from %s", from, got, mtu, own)
			}
			if _, err := socket.Write(make([]byte, mtu)); !errors.Is(err, unix.EMSGSIZE) {
				t.Errorf("more than fits from %s: %v", from, err)
			}
		}
		if got := pathMTU(t, h.Netns, own); got != fmt.Sprint(mtu) {
			t.Errorf("the host has learned a path MTU of %q to %s, want %d", got, own, mtu)
		}
		for _, other := range []netip.Addr{b.Addresses()[i], paths(h, u)[i].outside} {
			if got := pathMTU(t, h.Netns, other); got != "" {
				t.Errorf("the host has learned a path MTU of %s to %s", got, other)
			}
		}
	}
}

// Containers of one network tell each other only of packets between them.
func TestForgedErrorsDoNotReachPeers(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	a, b := h.NewContainer(t, "a", "net"), h.NewContainer(t, "b", "net")
	serve(t, u.Outside, service)
	tap := a.NewTap(t, testutil.Device)
	broadcast := layers.EthernetBroadcast
	const port = 41000
	for i, path := range paths(h, u) {
		own, other := a.Addresses()[i], b.Addresses()[i]
		socket := b.MustDialFrom(t, "udp", at(other, port), at(path.outside, service))
		listensToErrors(t, socket, 0)
		socket.MustAsk(t)
		quoted := quotedUDP(t, netip.AddrPortFrom(other, port), netip.AddrPortFrom(path.outside, service))
		for _, to := range []net.HardwareAddr{b.MAC, gatewayMAC(t, h), broadcast} {
			h.ExpectDrops(t, "unknown_flow", func() { tap.Send(t, icmpError(t, a.MAC, to, own, other, quoted)) })
			h.ExpectDrops(t, "unknown_flow", func() {
				tap.Send(t, tooBig(t, a.MAC, to, own, other, leastMTU6, quotedEcho(t, other, path.outside)))
			})
			if _, err := socket.Ask(aMoment); err != nil {
				t.Errorf("to %s: the socket from %s to %s: %v", to, other, path.outside, err)
			}
		}
		if got := pathMTU(t, b.Netns, path.outside); got != "" {
			t.Errorf("a container has learned a path MTU of %s to %s", got, path.outside)
		}
		refusesConnections(t, b.Netns, "udp", at(own, discard))
		if _, err := socket.Ask(aMoment); errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("the socket from %s to %s is refused", other, path.outside)
		}
	}
}
