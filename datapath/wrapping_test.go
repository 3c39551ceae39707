package datapath

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// wrapping is the headers that a tunnel adds to a frame: outer headers and GRE.
// The Ethernet header of a packet that has not left is zero.
type wrapping struct {
	from, to     mac
	src, dst     netip.Addr
	ttl, class   uint8 // ttl 0: tunnelTTL
	fragmentable bool  // IPv4 without DF
	options      []layers.IPv4Option

	key, sequence *uint32 // nil: none
	checksum      bool
	flags         uint16              // other GRE flags than those of the fields
	inside        layers.EthernetType // 0: Ethernet
}

// GRE flags: RFC 2784, RFC 2890.
const (
	greChecksum = 0x8000
	greKey      = 0x2000
	greSequence = 0x1000
)

// gre returns the GRE packet with a frame, without outer headers.
func (w wrapping) gre(inner []byte) []byte {
	flags, inside := w.flags, w.inside
	if inside == 0 {
		inside = layers.EthernetTypeTransparentEthernetBridging
	}
	var fields []byte
	if w.checksum {
		flags |= greChecksum
		fields = make([]byte, 4)
	}
	if w.key != nil {
		flags |= greKey
		fields = binary.BigEndian.AppendUint32(fields, *w.key)
	}
	if w.sequence != nil {
		flags |= greSequence
		fields = binary.BigEndian.AppendUint32(fields, *w.sequence)
	}
	packet := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, flags), uint16(inside))
	packet = slices.Concat(packet, fields, inner)
	if w.checksum {
		binary.BigEndian.PutUint16(packet[4:], internetChecksum(packet))
	}
	return packet
}

// around returns the frame with all headers of the tunnel.
func (w wrapping) around(t testing.TB, inner []byte) []byte {
	t.Helper()
	ttl := w.ttl
	if ttl == 0 {
		ttl = tunnelTTL
	}
	eth := &layers.Ethernet{SrcMAC: w.from[:], DstMAC: w.to[:], EthernetType: layers.EthernetTypeIPv4}
	if w.dst.Is6() {
		eth.EthernetType = layers.EthernetTypeIPv6
		ip := &layers.IPv6{
			Version: 6, TrafficClass: w.class, HopLimit: ttl, NextHeader: layers.IPProtocolGRE,
			SrcIP: w.src.AsSlice(), DstIP: w.dst.AsSlice(),
		}
		return testutil.Frame(t, eth, ip, gopacket.Payload(w.gre(inner)))
	}
	ip := &layers.IPv4{
		Version: 4, TOS: w.class, TTL: ttl, Flags: layers.IPv4DontFragment, Protocol: layers.IPProtocolGRE,
		SrcIP: w.src.AsSlice(), DstIP: w.dst.AsSlice(), Options: w.options,
	}
	if w.fragmentable {
		ip.Flags = 0
	}
	return testutil.Frame(t, eth, ip, gopacket.Payload(w.gre(inner)))
}

// arriving is the wrapping of a frame from the peer; leaving is that of a frame
// from this host.
func arriving(v6 bool, key *uint32) wrapping {
	return wrapping{from: routerMAC, to: uplinkMAC, src: peer.ip(v6), dst: uplink.ip(v6), key: key}
}

func leaving(v6 bool, key *uint32) wrapping {
	return wrapping{src: uplink.ip(v6), dst: peer.ip(v6), key: key}
}

// internetChecksum is the checksum of RFC 1071.
func internetChecksum(b []byte) uint16 {
	var sum uint32
	for i, octet := range b {
		if i%2 == 0 {
			sum += uint32(octet) << 8
		} else {
			sum += uint32(octet)
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
