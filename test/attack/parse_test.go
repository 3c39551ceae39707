package attack

import (
	"encoding/binary"
	"net"
	"net/netip"
)

// parsed is what a receiver makes of a frame.
type parsed struct {
	src, dst   net.HardwareAddr
	ethertype  uint16
	ip, ipDst  netip.Addr // invalid unless IP
	l3, l4     int        // offsets; l4 is 0 if it cannot be found
	ttl        uint8
	proto      uint8
	later      bool // a fragment without the transport header
	fragment   bool
	sport      uint16
	dport      uint16
	icmp, code uint8
	fault      string // what is wrong with the headers
}

func parse(frame []byte) (p parsed) {
	if len(frame) < ethLength {
		p.fault = "no Ethernet header"
		return p
	}
	p.dst, p.src = frame[:6], frame[6:12]
	p.ethertype = binary.BigEndian.Uint16(frame[12:])
	p.l3 = ethLength
	switch p.ethertype {
	case typeIPv4:
		p.parseIP4(frame[ethLength:])
	case typeIPv6:
		p.parseIP6(frame[ethLength:])
	}
	if p.l4 != 0 && p.fault == "" {
		p.parseTransport(frame[p.l4:])
	}
	return p
}

func (p *parsed) parseIP4(b []byte) {
	if len(b) < ip4Length || b[0]>>4 != 4 || b[0]&0xf < 5 || len(b) < int(b[0]&0xf)*4 {
		p.fault = "no IPv4 header"
		return
	}
	header := int(b[0]&0xf) * 4
	if sum(0, b[:header]) != 0xffff {
		p.fault = "wrong IPv4 header checksum"
	}
	p.ip, p.ipDst = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
	p.ttl, p.proto = b[8], b[9]
	offset := binary.BigEndian.Uint16(b[6:])
	p.fragment, p.later = offset&0x3fff != 0, offset&0x1fff != 0
	if !p.later {
		p.l4 = p.l3 + header
	}
}

// parseIP6 walks the extension headers that a receiver walks. It ends at AH,
// which a receiver drops that shares no key with the sender, and at those of
// mobility, HIP and Shim6, behind which Linux does not look.
func (p *parsed) parseIP6(b []byte) {
	if len(b) < ip6Length || b[0]>>4 != 6 {
		p.fault = "no IPv6 header"
		return
	}
	p.ip, p.ipDst = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
	p.ttl, p.proto = b[7], b[6]
	for at := ip6Length; ; {
		length := 0
		switch p.proto {
		case extHopByHop, extRouting, extDestination:
			if at+2 > len(b) {
				return
			}
			length = (int(b[at+1]) + 1) * 8
		case extFragment:
			if at+8 > len(b) {
				return
			}
			offset := binary.BigEndian.Uint16(b[at+2:])
			p.fragment = p.fragment || offset&0xfff9 != 0
			p.later = p.later || offset>>3 != 0
			length = 8
		default:
			if !p.later && at <= len(b) {
				p.l4 = p.l3 + at
			}
			return
		}
		p.proto = b[at]
		at += length
		if p.later {
			return // its bytes are not headers
		}
	}
}

func (p *parsed) parseTransport(b []byte) {
	switch p.proto {
	case protoTCP, protoUDP, protoSCTP:
		if len(b) >= 4 {
			p.sport, p.dport = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
		}
	case protoICMP, protoICMPv6, protoIGMP:
		if len(b) >= 2 {
			p.icmp, p.code = b[0], b[1]
		}
	}
}

// isError leaves out source quench, which nobody heeds any more (RFC 6633), and
// redirects, which are a router's.
func (p parsed) isError() bool {
	switch {
	case p.later || p.l4 == 0:
	case p.proto == protoICMP:
		return p.icmp == 3 || p.icmp == 11 || p.icmp == 12
	case p.proto == protoICMPv6:
		return p.icmp < 128
	}
	return false
}

// quoted is the packet that an ICMP error is about.
func (p parsed) quoted(frame []byte) parsed {
	const before = 8
	if p.l4 == 0 || p.l4+before > len(frame) {
		return parsed{fault: "no quote"}
	}
	quote := eth(zeroMAC, zeroMAC, typeIPv4, frame[p.l4+before:])
	if p.proto == protoICMPv6 {
		quote = eth(zeroMAC, zeroMAC, typeIPv6, frame[p.l4+before:])
	}
	return parse(quote)
}

// inner is the frame inside Ethernet in GRE, and its key.
func inner(gre []byte) (frame []byte, key int) {
	if len(gre) < 4 || gre[1]&7 != 0 || binary.BigEndian.Uint16(gre[2:]) != typeTEB {
		return nil, 0
	}
	at := 4
	if gre[0]&0x80 != 0 {
		at += 4
	}
	key = -1
	if gre[0]&0x20 != 0 && len(gre) >= at+4 {
		key = int(binary.BigEndian.Uint32(gre[at:]))
		at += 4
	}
	if gre[0]&0x10 != 0 {
		at += 4
	}
	if len(gre) < at {
		return nil, key
	}
	return gre[at:], key
}
