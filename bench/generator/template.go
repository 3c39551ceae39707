package generator

import (
	"encoding/binary"
	"net/netip"
)

// Lengths of headers in bytes, none with options.
const (
	ethernetLength = 14
	ipv4Length     = 20
	ipv6Length     = 40
	udpLength      = 8
	tcpLength      = 20
	greLength      = 4
	greKeyLength   = 4
)

// What headers hold.
const (
	etherTypeIPv4     = 0x0800
	etherTypeIPv6     = 0x86dd
	etherTypeEthernet = 0x6558 // in GRE: a frame is inside
	protocolTCP       = 6
	protocolUDP       = 17
	protocolGRE       = 47
	ipv4Version       = 0x45 // and five words of header
	ipv6Version       = 0x60
	dontFragment      = 0x4000
	hopLimit          = 64
	greKeyPresent     = 0x2000
	tcpSYN            = 0x5002 // five words of header, and the flag
	tcpWindow         = 65535
)

// template is what all frames of a stream have in common, and where they
// differ. Where they differ it holds zeros, the checksums too.
type template struct {
	frame   []byte
	headers int // bytes of all headers, which a receiver may have changed

	sourcePort    int      // offset
	sourceAddress int      // offset of its last four bytes
	header        checksum // of IPv4, where there is one
	transport     checksum
}

// checksum is where one is, and the sum of what it is over but for the source
// port and the last four bytes of the source address.
type checksum struct {
	offset int // 0: there is none
	sum    uint32
}

// newTemplate lays a stream's frames out. The frame is longer than the
// stream's size where the headers are.
func newTemplate(s Stream) template {
	t := template{frame: make([]byte, 0, MaxSize)}
	inner := s.Size
	if g := s.GRE; g != nil {
		before := ethernetLength + ipLength(g.Source) + greLength
		if g.Key != nil {
			before += greKeyLength
		}
		inner -= before
		t.ethernet(g.To, g.From, etherTypeOf(g.Source))
		t.ip(g.Source, g.Destination, protocolGRE, s.Size-len(t.frame)-ipLength(g.Source))
		t.gre(g.Key)
	}
	source := s.Source.Addr()
	t.ethernet(s.To, s.From, etherTypeOf(source))
	at := len(t.frame)
	segment, protocol := inner-ethernetLength-ipLength(source), uint8(protocolUDP)
	if s.Protocol == TCPSYN {
		segment, protocol = tcpLength, protocolTCP
	}
	t.ip(source, s.Destination.Addr(), protocol, segment)
	t.vary(source, at)
	pseudo := add(uint32(protocol)+uint32(segment), without(source))
	t.l4(s, segment, add(pseudo, s.Destination.Addr().AsSlice()))
	t.headers = len(t.frame)
	t.frame = append(t.frame, make([]byte, max(0, s.Size-len(t.frame)))...)
	return t
}

func (t *template) put16(values ...uint16) {
	for _, v := range values {
		t.frame = binary.BigEndian.AppendUint16(t.frame, v)
	}
}

func (t *template) ethernet(to, from [6]byte, etherType uint16) {
	t.frame = append(append(t.frame, to[:]...), from[:]...)
	t.put16(etherType)
}

// ip is an IP header with so many bytes behind it, whole with its checksum.
func (t *template) ip(source, destination netip.Addr, protocol uint8, length int) {
	at := len(t.frame)
	if source.Is4() {
		t.put16(ipv4Version<<8, uint16(ipv4Length+length), 0, dontFragment, hopLimit<<8|uint16(protocol), 0)
	} else {
		t.put16(ipv6Version<<8, 0, uint16(length), uint16(protocol)<<8|hopLimit)
	}
	t.frame = append(append(t.frame, source.AsSlice()...), destination.AsSlice()...)
	if source.Is4() {
		const checksumOffset = 10
		binary.BigEndian.PutUint16(t.frame[at+checksumOffset:], ^uint16(fold(add(0, t.frame[at:]))))
	}
}

// vary takes out of the IP header at an offset what differs between flows.
func (t *template) vary(source netip.Addr, at int) {
	const ipv4Checksum, ipv4SourceEnd, ipv6SourceEnd, low = 10, 16, 24, 4
	t.sourceAddress = at + ipv6SourceEnd - low
	if source.Is4() {
		t.sourceAddress = at + ipv4SourceEnd - low
	}
	clear(t.frame[t.sourceAddress:][:low])
	if source.Is4() {
		clear(t.frame[at+ipv4Checksum:][:2])
		t.header = checksum{at + ipv4Checksum, fold(add(0, t.frame[at:]))}
	}
}

func (t *template) gre(key *uint32) {
	if key == nil {
		t.put16(0, etherTypeEthernet)
		return
	}
	t.put16(greKeyPresent, etherTypeEthernet)
	t.frame = binary.BigEndian.AppendUint32(t.frame, *key)
}

// l4 is the innermost header; pseudo sums up the pseudo header.
func (t *template) l4(s Stream, segment int, pseudo uint32) {
	const udpChecksum, tcpChecksum = 6, 16
	at := len(t.frame)
	t.sourcePort = at
	t.put16(0, s.Destination.Port())
	if s.Protocol == TCPSYN {
		t.put16(0, 0, 0, 0, tcpSYN, tcpWindow, 0, 0)
		t.transport.offset = at + tcpChecksum
	} else {
		t.put16(uint16(segment), 0)
		t.transport.offset = at + udpChecksum
	}
	t.transport.sum = fold(add(pseudo, t.frame[at:]))
}

func ipLength(a netip.Addr) int {
	if a.Is4() {
		return ipv4Length
	}
	return ipv6Length
}

func etherTypeOf(a netip.Addr) uint16 {
	if a.Is4() {
		return etherTypeIPv4
	}
	return etherTypeIPv6
}

// lowBits are the last 32 bits of an address.
func lowBits(a netip.Addr) uint32 {
	b := a.AsSlice()
	return binary.BigEndian.Uint32(b[len(b)-4:])
}

// without is an address without its last 32 bits.
func without(a netip.Addr) []byte {
	b := a.AsSlice()
	return b[:len(b)-4]
}

// add goes on with an Internet checksum's sum, RFC 1071, over an even number
// of bytes: fewer than 65536 words, so that it need not be folded.
func add(sum uint32, b []byte) uint32 {
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	return sum
}

func fold(sum uint32) uint32 {
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return sum
}
