package datapath

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

type mac = [6]byte

var broadcastMAC = mac{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// multicastMAC is the MAC of an IPv6 multicast group: RFC 2464, section 7.
func multicastMAC(group netip.Addr) mac {
	b := group.As16()
	return mac{0x33, 0x33, b[12], b[13], b[14], b[15]}
}

// solicitedNode is the group to which solicitations for an address are sent:
// RFC 4291, section 2.7.1.
func solicitedNode(a netip.Addr) netip.Addr {
	b := a.As16()
	group := netip.MustParseAddr("ff02::1:ff00:0").As16()
	copy(group[13:], b[13:])
	return netip.AddrFrom16(group)
}

// linkLocal is the link-local address of RFC 4291, appendix A.
func linkLocal(m mac) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]})
}

// packet describes an IP packet in an Ethernet frame. It is a value: rows
// describe the expected output by changing a copy of the input.
type packet struct {
	from, to mac
	src, dst netip.Addr
	ttl      uint8 // 0: 64
	class    uint8 // TOS or traffic class
	l4       transport
	payload  string

	options  []byte // options of IPv4, or of an IPv6 hop-by-hop header
	whole    bool   // IPv4: DF is set
	fragment fragment
}

// fragment describes a fragment. The zero value means no fragment. With an
// offset, there is no transport header.
type fragment struct {
	more   bool
	offset uint16 // in units of 8 bytes
	id     uint32
}

func (f fragment) is() bool { return f != fragment{} }

// transport describes everything after the IP header. For ICMP, the body starts
// with identifier and sequence of an echo, or the value of an error.
type transport struct {
	protocol     layers.IPProtocol
	sport, dport uint16
	flags        string // TCP flags, a subset of "SAFR"
	ahead        uint32 // added to the right TCP acknowledgment
	noChecksum   bool   // UDP over IPv4: RFC 768 allows none
	icmp, code   uint8  // ICMP type and code
	body         string // ICMP data after the checksum
}

func tcp(sport, dport uint16, flags string) transport {
	return transport{protocol: layers.IPProtocolTCP, sport: sport, dport: dport, flags: flags}
}

func udp(sport, dport uint16) transport {
	return transport{protocol: layers.IPProtocolUDP, sport: sport, dport: dport}
}

func sctp(sport, dport uint16) transport {
	return transport{protocol: layers.IPProtocolSCTP, sport: sport, dport: dport}
}

func icmp4(kind uint8, body string) transport {
	return transport{protocol: layers.IPProtocolICMPv4, icmp: kind, body: body}
}

func icmp6(kind uint8, body string) transport {
	return transport{protocol: layers.IPProtocolICMPv6, icmp: kind, body: body}
}

// ICMP types: RFC 792, 4443, 2710, 4861.
const (
	echoReply4     = 0
	unreachable4   = 3
	echoRequest4   = 8
	echoRequest6   = 128
	echoReply6     = 129
	mldQuery       = 130
	mldReport      = 131
	routerSolicit  = 133
	routerAdvert   = 134
	neighborAsk    = 135
	neighborAnswer = 136
	redirect6      = 137
)

// echo is an echo request or reply with an identifier.
func echo(v6, reply bool, id uint16) transport {
	body := string(binary.BigEndian.AppendUint16(nil, id)) + "\x00\x01"
	switch {
	case v6 && reply:
		return icmp6(echoReply6, body)
	case v6:
		return icmp6(echoRequest6, body)
	case reply:
		return icmp4(echoReply4, body)
	}
	return icmp4(echoRequest4, body)
}

const (
	optionSourceMAC = 1
	optionTargetMAC = 2
)

// ndOption is an ND option with a MAC: RFC 4861, section 4.6.1.
func ndOption(kind byte, m mac) string { return string([]byte{kind, 1}) + string(m[:]) }

func ndBody(flags byte, target netip.Addr, options string) string {
	a := target.As16()
	return string([]byte{flags, 0, 0, 0}) + string(a[:]) + options
}

// ask is a neighbor solicitation to the solicited-node group of target.
func ask(from mac, src, target netip.Addr, options string) packet {
	group := solicitedNode(target)
	return packet{
		from: from, to: multicastMAC(group), src: src, dst: group, ttl: 255,
		l4: icmp6(neighborAsk, ndBody(0, target, options)),
	}
}

const (
	ndSolicited = 0x40
	ndOverride  = 0x20
)

// tell is a neighbor advertisement of the owner of target.
func tell(owner, to mac, target, dst netip.Addr, flags byte) packet {
	return packet{
		from: owner, to: to, src: target, dst: dst, ttl: 255,
		l4: icmp6(neighborAnswer, ndBody(flags, target, ndOption(optionTargetMAC, owner))),
	}
}

// frame builds the packet with correct lengths and checksums, padded to the
// minimum of Ethernet, 60 bytes.
func (p packet) frame(t testing.TB) []byte {
	t.Helper()
	ttl := p.ttl
	if ttl == 0 {
		ttl = 64
	}
	eth := &layers.Ethernet{SrcMAC: p.from[:], DstMAC: p.to[:], EthernetType: layers.EthernetTypeIPv4}
	below := []gopacket.SerializableLayer{eth}
	var network gopacket.NetworkLayer
	if p.dst.Is4() {
		ip := &layers.IPv4{
			Version: 4, TOS: p.class, TTL: ttl, Protocol: p.l4.protocol, SrcIP: p.src.AsSlice(), DstIP: p.dst.AsSlice(),
			Id: uint16(p.fragment.id), FragOffset: p.fragment.offset,
		}
		if p.fragment.more {
			ip.Flags = layers.IPv4MoreFragments
		}
		if p.whole {
			ip.Flags |= layers.IPv4DontFragment
		}
		if p.options != nil {
			ip.Options = []layers.IPv4Option{{OptionType: p.options[0], OptionLength: uint8(len(p.options)), OptionData: p.options[2:]}}
		}
		network, below = ip, append(below, ip)
	} else {
		eth.EthernetType = layers.EthernetTypeIPv6
		ip := &layers.IPv6{Version: 6, TrafficClass: p.class, HopLimit: ttl, NextHeader: p.l4.protocol, SrcIP: p.src.AsSlice(), DstIP: p.dst.AsSlice()}
		network, below = ip, append(below, ip)
		next := p.l4.protocol
		var extensions []byte
		if p.fragment.is() {
			extensions = p.fragment.header(next)
			next = layers.IPProtocolIPv6Fragment
		}
		if p.options != nil {
			extensions = slices.Concat([]byte{byte(next), byte((len(p.options)+2)/8 - 1)}, p.options, extensions)
			next = layers.IPProtocolIPv6HopByHop
		}
		if extensions != nil {
			ip.NextHeader = next
			below = append(below, gopacket.Payload(extensions))
		}
	}
	if p.fragment.offset == 0 {
		below = append(below, p.l4.layers(t, network)...)
	}
	buf := gopacket.NewSerializeBuffer()
	options := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buf, options, append(below, gopacket.Payload(p.payload))...); err != nil {
		t.Fatal(err)
	}
	out := slices.Clone(buf.Bytes())
	if p.l4.noChecksum {
		out = patch(out, atL4+6, 0, 0)
	}
	return out
}

func (f fragment) header(next layers.IPProtocol) []byte {
	offset := f.offset << 3
	if f.more {
		offset |= 1
	}
	b := binary.BigEndian.AppendUint16([]byte{byte(next), 0}, offset)
	return binary.BigEndian.AppendUint32(b, f.id)
}

func (l transport) layers(t testing.TB, network gopacket.NetworkLayer) []gopacket.SerializableLayer {
	t.Helper()
	checksummed := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	has := func(flag byte) bool { return slices.Contains([]byte(l.flags), flag) }
	switch l.protocol {
	case layers.IPProtocolTCP:
		tcp := &layers.TCP{
			SrcPort: layers.TCPPort(l.sport), DstPort: layers.TCPPort(l.dport), Seq: 1, Window: 64000,
			SYN: has('S'), ACK: has('A'), FIN: has('F'), RST: has('R'),
		}
		if tcp.ACK {
			tcp.Ack = 2 + l.ahead // the peer's SYN had sequence 1
		}
		checksummed(tcp.SetNetworkLayerForChecksum(network))
		return []gopacket.SerializableLayer{tcp}
	case layers.IPProtocolUDP:
		udp := &layers.UDP{SrcPort: layers.UDPPort(l.sport), DstPort: layers.UDPPort(l.dport)}
		checksummed(udp.SetNetworkLayerForChecksum(network))
		return []gopacket.SerializableLayer{udp}
	case layers.IPProtocolSCTP:
		return []gopacket.SerializableLayer{&layers.SCTP{SrcPort: layers.SCTPPort(l.sport), DstPort: layers.SCTPPort(l.dport), VerificationTag: 1}}
	case layers.IPProtocolICMPv6:
		icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(l.icmp, l.code)}
		checksummed(icmp.SetNetworkLayerForChecksum(network))
		return []gopacket.SerializableLayer{icmp, gopacket.Payload(l.body)}
	case layers.IPProtocolICMPv4:
		body := []byte(l.body)
		return []gopacket.SerializableLayer{&layers.ICMPv4{
			TypeCode: layers.CreateICMPv4TypeCode(l.icmp, l.code),
			Id:       binary.BigEndian.Uint16(body),
			Seq:      binary.BigEndian.Uint16(body[2:]),
		}, gopacket.Payload(body[4:])}
	}
	return nil
}

// arp is an ARP packet. The parameters from and to are the Ethernet addresses.
func arp(t testing.TB, from, to mac, operation uint16, sender mac, senderIP netip.Addr, target mac, targetIP netip.Addr) []byte {
	t.Helper()
	return testutil.Frame(t,
		&layers.Ethernet{SrcMAC: from[:], DstMAC: to[:], EthernetType: layers.EthernetTypeARP},
		&layers.ARP{
			AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4,
			Operation: operation, SourceHwAddress: sender[:], SourceProtAddress: senderIP.AsSlice(),
			DstHwAddress: target[:], DstProtAddress: targetIP.AsSlice(),
		})
}

func arpRequest(t testing.TB, sender mac, senderIP, targetIP netip.Addr) []byte {
	t.Helper()
	return arp(t, sender, broadcastMAC, layers.ARPRequest, sender, senderIP, mac{}, targetIP)
}

// patch returns a copy of a frame with some bytes overwritten.
func patch(frame []byte, offset int, with ...byte) []byte {
	out := slices.Clone(frame)
	copy(out[offset:], with)
	return out
}

// Offsets into frames without options.
const (
	atEthertype = 12
	atIP        = 14
	atIPLength  = atIP + 2
	atL4        = atIP + 20
	atIP6Length = atIP + 4
	atIP6Source = atIP + 8
	atL4v6      = atIP + 40
)

func hardware(m mac) net.HardwareAddr { return m[:] }
