package attack

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// A flag of IPv4's fragment field.
const moreFragments = 0x2000

// cut returns the fragments of a transport message. All but the last have size
// bytes.
func cut(src, dst netip.Addr, proto uint8, id uint32, message []byte, size int) (all [][]byte) {
	for at := 0; at < len(message); at += size {
		piece := message[at:min(at+size, len(message))]
		all = append(all, fragmentOf(src, dst, proto, id, at/8, at+size < len(message), piece))
	}
	return all
}

func fragmentOf(src, dst netip.Addr, proto uint8, id uint32, offset int, more bool, piece []byte) []byte {
	if dst.Is4() {
		field := uint16(offset)
		if more {
			field |= moreFragments
		}
		return ip4{src: src, dst: dst, proto: proto, id: uint16(id), frag: field}.packet(piece)
	}
	return ip6{src: src, dst: dst, next: extFragment}.packet(fragmentHeader(proto, id, offset, more), piece)
}

func fragmentHeader(next uint8, id uint32, offset int, more bool) []byte {
	field := uint16(offset) << 3
	if more {
		field |= 1
	}
	b := binary.BigEndian.AppendUint16([]byte{next, 0}, field)
	return binary.BigEndian.AppendUint32(b, id)
}

// fragments sends fragmented packets of its own address and of another one, in
// order and in reverse order.
func (c *craft) fragments() {
	for i, to := range c.few() {
		own := c.source(to.ip)
		spoofed := c.w.members["vault1"].IP4
		if to.ip.Is6() {
			spoofed = c.w.members["vault1"].IP6
		}
		for j, src := range []netip.Addr{own, spoofed} {
			for k, proto := range []uint8{protoUDP, protoTCP, protoGRE, protoICMP} {
				id := uint32(1000 + 100*i + 10*j + k)
				payload := slices.Concat(c.tag(), make([]byte, 48), c.tag())
				message := payload
				switch proto {
				case protoUDP:
					message = udpMessage(ports(src, service), ports(to.ip, service), payload)
				case protoTCP:
					message = tcpMessage(ports(src, service), ports(to.ip, service), tcpSYN, payload)
				case protoICMP:
					message = icmpMessage(src, to.ip, 8, 0, 1, payload)
					if to.ip.Is6() {
						message = icmpMessage(src, to.ip, 128, 0, 1, payload)
						proto = protoICMPv6
					}
				}
				pieces := cut(src, to.ip, proto, id, message, 32)
				for _, p := range pieces {
					c.send(c.frameTo(to.mac, p))
				}
				if k > 1 {
					continue
				}
				pieces = cut(src, to.ip, proto, id+5000, message, 32)
				slices.Reverse(pieces)
				for _, p := range pieces {
					c.send(c.frameTo(to.mac, p))
				}
			}
		}
	}
}

// tinyFragments sends fragments that split the transport header or overlap it:
// RFC 1858, RFC 3128.
func (c *craft) tinyFragments() {
	for i, to := range c.few() {
		src := c.source(to.ip)
		refused := tcpMessage(ports(src, service), ports(to.ip, 22), tcpSYN, c.tag(), c.tag())
		allowed := tcpMessage(ports(src, service), ports(to.ip, service), tcpSYN, c.tag(), c.tag())
		id := uint32(20000 + 10*i)
		send := func(id uint32, offset int, more bool, piece []byte) {
			c.send(c.frameTo(to.mac, fragmentOf(src, to.ip, protoTCP, id, offset, more, piece)))
		}
		send(id, 0, true, allowed[:8]) // no flags yet
		send(id, 1, false, refused[8:])
		send(id+1, 0, true, allowed[:16])
		send(id+1, 0, true, refused[:16]) // again, with another port
		send(id+1, 2, false, allowed[16:])
		send(id+2, 0, true, allowed[:24])
		send(id+2, 1, true, refused[8:24]) // overlaps the flags
		send(id+2, 3, false, allowed[24:])
		send(id+3, 0, true, nil)
		send(id+3, 0, true, allowed[:1])
		send(id+3, 0, false, allowed[:3])
		send(id+4, 8191, false, refused)         // past 65535
		send(id+4, 8191, true, refused)          // with more fragments
		send(id+5, 0, true, allowed[:13])        // not a multiple of 8 bytes
		send(id+6, 1, false, refused[:8])        // without a first fragment
		send(id+7, 0, false, refused)            // IPv6: an atomic fragment
		send(id+8, 0, true, refused[:tcpLength]) // the refused part first
		send(id+8, 2, false, refused[16:])
	}
}

// extension returns an IPv6 extension header with this next header and body.
func extension(next uint8, body ...byte) []byte {
	b := append([]byte{next, 0}, body...)
	for len(b)%8 != 0 {
		b = append(b, 1, 0)[:len(b)+1] // pad with zeros, because PadN needs two bytes
		b[len(b)-1] = 0
	}
	b[1] = byte(len(b)/8 - 1)
	return b
}

// chain puts extension headers of these types before a message.
func chain(types []uint8, last uint8, message []byte) (first uint8, packet []byte) {
	packet, first = message, last
	for _, kind := range slices.Backward(types) {
		var header []byte
		switch kind {
		case extFragment:
			header = fragmentHeader(first, 7, 0, false)
		case extRouting:
			header = slices.Concat([]byte{first, 2, 0, 1, 0, 0, 0, 0}, as16(allNodes)) // type 0
		case protoAH:
			header = []byte{first, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1}
		default:
			header = extension(first, 0, 0, 0, 0, 0, 0)
		}
		packet, first = slices.Concat(header, packet), kind
	}
	return first, packet
}

func (c *craft) extensionChains() {
	chains := [][]uint8{
		{extHopByHop},
		{extDestination},
		{extRouting},
		{extFragment},
		{protoAH},
		{extMobility},
		{extHIP},
		{extShim},
		{extHopByHop, extDestination, extRouting, extFragment, extDestination},
		{extDestination, extHopByHop},
		{extHopByHop, extHopByHop},
		{extFragment, extFragment},
		{extFragment, extDestination},
		{extDestination, extFragment},
		slices.Repeat([]uint8{extDestination}, 4),
		slices.Repeat([]uint8{extDestination}, 8),
		slices.Repeat([]uint8{extDestination}, 16),
		slices.Repeat([]uint8{extHopByHop, extDestination}, 20),
		{protoAH, extDestination},
		{extDestination, protoAH, extFragment},
	}
	other := c.w.members["vault1"]
	for _, to := range c.few() {
		if to.ip.Is4() {
			continue
		}
		for _, types := range chains {
			for _, src := range []netip.Addr{c.me.IP6, other.IP6} {
				first, body := chain(types, protoUDP, udpMessage(ports(src, service), ports(to.ip, service), c.tag()))
				c.send(c.frameTo(to.mac, ip6{src: src, dst: to.ip, next: first}.packet(body)))
			}
			// A router message, and the address of another member, after the chain.
			src := linkLocal(c.me.MAC)
			first, body := chain(types, protoICMPv6, c.routerAdvert(src, to.ip))
			c.send(c.frameTo(to.mac, ip6{src: src, dst: to.ip, next: first, hop: 255}.packet(body)))
			first, body = chain(types, protoICMPv6, c.advert(src, to.ip, other.IP6, c.me.MAC))
			c.send(c.frameTo(to.mac, ip6{src: src, dst: to.ip, next: first, hop: 255}.packet(body)))
		}
		message := udpMessage(ports(c.me.IP6, service), ports(to.ip, service), c.tag())
		for _, raw := range [][]byte{
			{protoUDP, 0xff, 0, 0, 0, 0, 0, 0},             // longer than the packet
			{protoUDP, 0, 0xc2, 4, 0, 1, 0, 0},             // jumbo payload
			{protoUDP, 0, 5, 2, 0, 0, 0, 0},                // router alert
			{protoUDP, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 1}, // options past the end
			{protoUDP},
			{},
		} {
			for _, kind := range []uint8{extHopByHop, extDestination, extRouting, extFragment, protoAH} {
				c.send(c.frameTo(to.mac, ip6{src: c.me.IP6, dst: to.ip, next: kind}.packet(raw, message)))
				c.send(c.frameTo(to.mac, ip6{src: c.me.IP6, dst: to.ip, next: kind}.packet(raw)))
			}
		}
		for _, kind := range []uint8{extNone, 253, 255, protoIPv6, protoIPIP} {
			c.send(c.frameTo(to.mac, ip6{src: c.me.IP6, dst: to.ip, next: kind}.packet(message)))
		}
	}
}
