package test

import (
	"net"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// Hand-made frames, as a container sends them that wants to cheat.

const ndHopLimit = 255 // RFC 4861, section 7.1

// from matches frames with this source MAC.
func from(mac net.HardwareAddr) func(gopacket.Packet) bool {
	return func(p gopacket.Packet) bool {
		eth, ok := p.LinkLayer().(*layers.Ethernet)
		return ok && eth.SrcMAC.String() == mac.String()
	}
}

func ethernet(src, dst net.HardwareAddr, next layers.EthernetType) *layers.Ethernet {
	return &layers.Ethernet{SrcMAC: src, DstMAC: dst, EthernetType: next}
}

// ip is the header of a packet of either family, with the link's type for it.
func ip(src, dst netip.Addr, protocol layers.IPProtocol) (gopacket.SerializableLayer, layers.EthernetType) {
	const ttl = 64
	if src.Is4() {
		return &layers.IPv4{Version: 4, TTL: ttl, Protocol: protocol, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()},
			layers.EthernetTypeIPv4
	}
	return &layers.IPv6{Version: 6, HopLimit: ttl, NextHeader: protocol, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()},
		layers.EthernetTypeIPv6
}

// udpFrame is a UDP packet with any addresses.
func udpFrame(t *testing.T, srcMAC, dstMAC net.HardwareAddr, src, dst netip.AddrPort, payload string) []byte {
	t.Helper()
	header, next := ip(src.Addr(), dst.Addr(), layers.IPProtocolUDP)
	return testutil.Frame(t, ethernet(srcMAC, dstMAC, next), header,
		&layers.UDP{SrcPort: layers.UDPPort(src.Port()), DstPort: layers.UDPPort(dst.Port())},
		gopacket.Payload(payload))
}

// datagram is an honest UDP packet of a container.
func datagram(t *testing.T, c *testutil.Container, dstMAC net.HardwareAddr, dst netip.Addr, payload string) []byte {
	t.Helper()
	src := c.IP4
	if dst.Is6() {
		src = c.IP6
	}
	return udpFrame(t, c.MAC, dstMAC, netip.AddrPortFrom(src, service), netip.AddrPortFrom(dst, service), payload)
}

// arp is an ARP packet whose Ethernet source is mac and who claims to be
// sender at senderMAC.
func arp(t *testing.T, operation uint16, mac, senderMAC net.HardwareAddr, sender, target netip.Addr) []byte {
	t.Helper()
	return testutil.Frame(t, ethernet(mac, layers.EthernetBroadcast, layers.EthernetTypeARP), &layers.ARP{
		AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4,
		Operation: operation, SourceHwAddress: senderMAC, SourceProtAddress: sender.AsSlice(),
		DstHwAddress: make([]byte, 6), DstProtAddress: target.AsSlice(),
	})
}

func arpRequest(t *testing.T, mac net.HardwareAddr, sender, target netip.Addr) []byte {
	t.Helper()
	return arp(t, layers.ARPRequest, mac, mac, sender, target)
}

// isARPReply matches an answer for the address.
func isARPReply(a netip.Addr) func(gopacket.Packet) bool {
	return func(p gopacket.Packet) bool {
		arp, ok := p.Layer(layers.LayerTypeARP).(*layers.ARP)
		return ok && arp.Operation == layers.ARPReply && netip.AddrFrom4([4]byte(arp.SourceProtAddress)) == a
	}
}

// nd is a neighbour discovery message.
func nd(t *testing.T, mac, dstMAC net.HardwareAddr, src, dst netip.Addr, kind uint8, body gopacket.SerializableLayer) []byte {
	t.Helper()
	return testutil.Frame(t, ethernet(mac, dstMAC, layers.EthernetTypeIPv6),
		&layers.IPv6{Version: 6, HopLimit: ndHopLimit, NextHeader: layers.IPProtocolICMPv6, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()},
		&layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(kind, 0)}, body)
}

// solicitation asks for the MAC of target; from "::" it looks for duplicates.
func solicitation(t *testing.T, mac net.HardwareAddr, src, target netip.Addr) []byte {
	t.Helper()
	low := target.As16()
	group := netip.MustParseAddr("ff02::1:ff00:0").As16()
	copy(group[13:], low[13:])
	dst := netip.AddrFrom16(group)
	body := &layers.ICMPv6NeighborSolicitation{TargetAddress: target.AsSlice()}
	if !src.IsUnspecified() {
		body.Options = layers.ICMPv6Options{{Type: layers.ICMPv6OptSourceAddress, Data: mac}}
	}
	return nd(t, mac, multicastMAC(dst), src, dst, layers.ICMPv6TypeNeighborSolicitation, body)
}

// advertisement tells all nodes that target is at targetMAC.
func advertisement(t *testing.T, mac, targetMAC net.HardwareAddr, src, target netip.Addr) []byte {
	t.Helper()
	const override = 0x20
	return nd(t, mac, multicastMAC(netip.IPv6LinkLocalAllNodes()), src, netip.IPv6LinkLocalAllNodes(),
		layers.ICMPv6TypeNeighborAdvertisement, &layers.ICMPv6NeighborAdvertisement{
			Flags: override, TargetAddress: target.AsSlice(),
			Options: layers.ICMPv6Options{{Type: layers.ICMPv6OptTargetAddress, Data: targetMAC}},
		})
}

// multicastMAC is RFC 2464, section 7.
func multicastMAC(group netip.Addr) net.HardwareAddr {
	low := group.As16()
	return append(net.HardwareAddr{0x33, 0x33}, low[12:]...)
}
