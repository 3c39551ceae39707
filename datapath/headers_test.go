package datapath

import (
	"encoding/binary"
	"hash/crc32"
	"net/netip"
	"slices"
)

// headers are the fields of a frame.
type headers struct {
	src, dst   mac
	ethertype  uint16
	ip, to     netip.Addr // invalid if not IP
	l3, l4     int        // offsets; l4 is 0 if there is no transport header
	end        int        // end of the IP packet, from its length field
	protocol   uint8
	ports      bool // the ports are within the packet
	sport      uint16
	dport      uint16
	fragment   bool // not a whole packet
	ipChecksum bool // correct, or there is none
}

const (
	typeIPv4 = 0x0800
	typeARP  = 0x0806
	typeIPv6 = 0x86dd
	typeTEB  = 0x6558

	protoICMP   = 1
	protoGRE    = 47
	protoICMPv6 = 58

	extHopByHop    = 0
	extRouting     = 43
	extFragment    = 44
	extDestination = 60
)

func headersOf(frame []byte) (h headers) {
	if len(frame) < atIP {
		return h
	}
	h.dst, h.src = mac(frame[:6]), mac(frame[6:12])
	h.ethertype = binary.BigEndian.Uint16(frame[atEthertype:])
	h.l3, h.ipChecksum = atIP, true
	switch b := frame[atIP:]; {
	case h.ethertype == typeIPv4 && len(b) >= 20 && b[0]>>4 == 4 && b[0]&0xf >= 5 && len(b) >= int(b[0]&0xf)*4:
		length := int(b[0]&0xf) * 4
		h.ip, h.to = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
		h.protocol = b[9]
		h.ipChecksum = internetChecksum(b[:length]) == 0
		h.end = atIP + int(binary.BigEndian.Uint16(b[2:]))
		field := binary.BigEndian.Uint16(b[6:])
		h.fragment = field&0x3fff != 0
		if field&0x1fff == 0 {
			h.l4 = atIP + length
		}
	case h.ethertype == typeIPv6 && len(b) >= 40 && b[0]>>4 == 6:
		h.ip, h.to = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
		h.end = atL4v6 + int(binary.BigEndian.Uint16(b[4:]))
		h.l4, h.protocol, h.fragment = extensionsOf(frame, b[6])
	}
	if h.l4 != 0 && h.l4+4 <= min(h.end, len(frame)) {
		h.ports = true
		h.sport, h.dport = binary.BigEndian.Uint16(frame[h.l4:]), binary.BigEndian.Uint16(frame[h.l4+2:])
	}
	return h
}

// extensionsOf skips the extension headers of IPv6, up to the transport header.
func extensionsOf(frame []byte, next uint8) (l4 int, protocol uint8, fragment bool) {
	for at := atL4v6; ; {
		length := 8
		switch next {
		case extHopByHop, extRouting, extDestination:
			if at+2 > len(frame) {
				return 0, next, fragment
			}
			length = (int(frame[at+1]) + 1) * 8
		case extFragment:
			if at+8 > len(frame) {
				return 0, next, fragment
			}
			field := binary.BigEndian.Uint16(frame[at+2:])
			fragment = fragment || field&0xfff9 != 0
			if field>>3 != 0 {
				return 0, frame[at], true
			}
		default:
			if at > len(frame) {
				return 0, next, fragment
			}
			return at, next, fragment
		}
		next = frame[at]
		at += length
	}
}

// transport reports whether the transport checksum is correct. known is false
// if there is no checksum, or if a part of the packet is missing.
func (h headers) transport(frame []byte) (right, known bool) {
	if h.l4 == 0 || h.fragment || h.end > len(frame) || h.end < h.l4 {
		return false, false
	}
	message := frame[h.l4:h.end]
	pseudo := func() []byte {
		b := slices.Concat(h.ip.AsSlice(), h.to.AsSlice())
		return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(b, uint32(len(message))), uint32(h.protocol))
	}
	switch h.protocol {
	case protocolTCP:
		return len(message) >= 20 && internetChecksum(append(pseudo(), message...)) == 0, len(message) >= 20
	case protocolUDP:
		if len(message) < 8 || int(binary.BigEndian.Uint16(message[4:])) != len(message) {
			return false, false
		}
		if message[6] == 0 && message[7] == 0 {
			return h.ip.Is4(), true // no checksum
		}
		return internetChecksum(append(pseudo(), message...)) == 0, true
	case protoICMP:
		return internetChecksum(message) == 0, len(message) >= 8
	case protoICMPv6:
		return internetChecksum(append(pseudo(), message...)) == 0, len(message) >= 8
	case protocolSCTP:
		if len(message) < 12 {
			return false, false
		}
		sum := binary.LittleEndian.Uint32(message[8:])
		zeroed := slices.Clone(message)
		clear(zeroed[8:12])
		return crc32.Checksum(zeroed, castagnoli) == sum, true
	}
	return false, false
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// within returns the Ethernet frame inside a GRE packet, and its key (nil:
// none).
func (h headers) within(frame []byte) (inner []byte, k *uint32) {
	if h.l4 == 0 || h.protocol != protoGRE || h.l4+4 > len(frame) || binary.BigEndian.Uint16(frame[h.l4+2:]) != typeTEB {
		return nil, nil
	}
	flags, at := frame[h.l4], h.l4+4
	if flags&0x80 != 0 {
		at += 4
	}
	if flags&0x20 != 0 {
		if at+4 > len(frame) {
			return nil, nil
		}
		k = key(binary.BigEndian.Uint32(frame[at:]))
		at += 4
	}
	if flags&0x10 != 0 {
		at += 4
	}
	if at > len(frame) {
		return nil, k
	}
	return frame[at:], k
}

// isAdvertOfAnother reports whether the packet is the reply to duplicate
// address detection. That reply goes to all nodes.
func isAdvertOfAnother(frame []byte, in, out headers) bool {
	return out.protocol == protoICMPv6 && out.l4 != 0 && out.l4 < len(frame) && frame[out.l4] == neighborAnswer && out.src != in.src
}
