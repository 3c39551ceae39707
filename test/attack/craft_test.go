package attack

import (
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
)

// Protocols of IP, and ethertypes.
const (
	protoICMP   = 1
	protoIGMP   = 2
	protoIPIP   = 4
	protoTCP    = 6
	protoUDP    = 17
	protoIPv6   = 41
	protoGRE    = 47
	protoESP    = 50
	protoAH     = 51
	protoICMPv6 = 58
	protoSCTP   = 132

	extHopByHop    = 0
	extRouting     = 43
	extFragment    = 44
	extNone        = 59
	extDestination = 60
	extMobility    = 135
	extHIP         = 139
	extShim        = 140

	typeIPv4 = 0x0800
	typeARP  = 0x0806
	typeTEB  = 0x6558
	typeVLAN = 0x8100
	typeIPv6 = 0x86dd
	typeQinQ = 0x88a8
)

// Sizes of headers, and places in them.
const (
	ethLength  = 14
	ip4Length  = 20
	ip6Length  = 40
	udpLength  = 8
	tcpLength  = 20
	vnetLength = 10

	ip4Checksum = 10
	udpChecksum = 6
	tcpChecksum = 16
)

// vnet is struct virtio_net_hdr of linux/virtio_net.h, in the CPU's order.
type vnet struct {
	flags, gso                             uint8
	hdrLength, gsoSize, csumStart, csumOff uint16
}

// Flags and types of struct virtio_net_hdr.
const (
	needsChecksum = 1
	gsoNone       = 0
	gsoTCP4       = 1
	gsoUDP        = 3
	gsoTCP6       = 4
	gsoUDPL4      = 5
	gsoECN        = 0x80
)

func (v vnet) bytes() []byte {
	b := []byte{v.flags, v.gso}
	for _, field := range []uint16{v.hdrLength, v.gsoSize, v.csumStart, v.csumOff} {
		b = binary.NativeEndian.AppendUint16(b, field)
	}
	return b
}

func readVnet(b []byte) vnet {
	field := func(i int) uint16 { return binary.NativeEndian.Uint16(b[2+2*i:]) }
	return vnet{b[0], b[1], field(0), field(1), field(2), field(3)}
}

// crafted is a frame to send, and what its sender claims of it.
type crafted struct {
	vnet  vnet
	frame []byte
	index uint32
}

// craft is what the rows make frames with.
type craft struct {
	w    *world
	me   *member
	rnd  *rand.Rand
	next uint32 // number of the next frame
	out  []crafted
}

// The tag of a frame is its number between two words, twice: what rewrites two
// bytes leaves one of them whole.
const tagWord = "eBaT"

func tagOf(index uint32) []byte {
	one := append([]byte(tagWord), 0, 0, 0, 0)
	binary.BigEndian.PutUint32(one[len(tagWord):], index)
	return append(one, one...)
}

// tag is that of the next frame.
func (c *craft) tag() []byte { return tagOf(c.next) }

func (c *craft) send(frame []byte) { c.sendAs(vnet{}, frame) }

func (c *craft) sendAs(v vnet, frame []byte) {
	c.out = append(c.out, crafted{v, slices.Clone(frame), c.next})
	c.next++
}

func eth(dst, src net.HardwareAddr, ethertype uint16, payload ...[]byte) []byte {
	b := slices.Concat(dst, src)
	b = binary.BigEndian.AppendUint16(b, ethertype)
	return slices.Concat(b, slices.Concat(payload...))
}

// sum is the ones' complement sum of bytes on top of another.
func sum(start uint32, b []byte) uint16 {
	for ; len(b) > 1; b = b[2:] {
		start += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		start += uint32(b[0]) << 8
	}
	for start>>16 != 0 {
		start = start&0xffff + start>>16
	}
	return uint16(start)
}

// ip4 is an IPv4 header to fill in before it is turned into bytes.
type ip4 struct {
	src, dst netip.Addr
	proto    uint8
	ttl      uint8
	tos      uint8
	id       uint16
	frag     uint16 // flags and offset
	options  []byte
}

func (h ip4) packet(payload ...[]byte) []byte {
	body := slices.Concat(payload...)
	options := h.options
	for len(options)%4 != 0 {
		options = append(slices.Clone(options), 0)
	}
	length := ip4Length + len(options)
	if h.ttl == 0 {
		h.ttl = 64
	}
	b := []byte{0x40 | byte(length/4), h.tos}
	b = binary.BigEndian.AppendUint16(b, uint16(length+len(body)))
	b = binary.BigEndian.AppendUint16(b, h.id)
	b = binary.BigEndian.AppendUint16(b, h.frag)
	b = append(b, h.ttl, h.proto, 0, 0)
	b = slices.Concat(b, as4(h.src), as4(h.dst), options)
	fixIP4(b)
	return append(b, body...)
}

// as4 and as16 are the bytes of an address in the family of a header.
func as4(a netip.Addr) []byte {
	if !a.Is4() {
		return []byte{0, 0, 0, 0}
	}
	return a.AsSlice()
}

func as16(a netip.Addr) []byte {
	b := a.As16()
	return b[:]
}

// fixIP4 writes the header checksum of an IPv4 packet.
func fixIP4(p []byte) {
	length := min(int(p[0]&0xf)*4, len(p))
	if length < ip4Length {
		return
	}
	p[ip4Checksum], p[ip4Checksum+1] = 0, 0
	binary.BigEndian.PutUint16(p[ip4Checksum:], ^sum(0, p[:length]))
}

// ip6 is an IPv6 header.
type ip6 struct {
	src, dst netip.Addr
	next     uint8
	hop      uint8
}

func (h ip6) packet(payload ...[]byte) []byte {
	body := slices.Concat(payload...)
	if h.hop == 0 {
		h.hop = 64
	}
	b := []byte{0x60, 0, 0, 0}
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	b = append(b, h.next, h.hop)
	return slices.Concat(b, as16(h.src), as16(h.dst), body)
}

func pseudo(src, dst netip.Addr, proto uint8, length int) uint32 {
	return uint32(sum(0, src.AsSlice())) + uint32(sum(0, dst.AsSlice())) + uint32(proto) + uint32(length)
}

// transport is a message of UDP, TCP or ICMP with a right checksum.
func transport(src, dst netip.Addr, proto uint8, message []byte) []byte {
	at := map[uint8]int{protoUDP: udpChecksum, protoTCP: tcpChecksum, protoICMP: 2, protoICMPv6: 2, protoIGMP: 2}[proto]
	if at == 0 || len(message) < at+2 {
		return message
	}
	message[at], message[at+1] = 0, 0
	start := uint32(0)
	if proto != protoICMP && proto != protoIGMP {
		start = pseudo(src, dst, proto, len(message))
	}
	check := ^sum(start, message)
	if check == 0 && proto == protoUDP {
		check = 0xffff
	}
	binary.BigEndian.PutUint16(message[at:], check)
	return message
}

func udpMessage(src, dst netip.AddrPort, payload ...[]byte) []byte {
	body := slices.Concat(payload...)
	b := binary.BigEndian.AppendUint16(nil, src.Port())
	b = binary.BigEndian.AppendUint16(b, dst.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(udpLength+len(body)))
	return transport(src.Addr(), dst.Addr(), protoUDP, slices.Concat(b, []byte{0, 0}, body))
}

// Flags of TCP.
const (
	tcpFIN = 1
	tcpSYN = 2
	tcpRST = 4
	tcpACK = 16
)

func tcpMessage(src, dst netip.AddrPort, flags uint8, payload ...[]byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, src.Port())
	b = binary.BigEndian.AppendUint16(b, dst.Port())
	b = append(b, 0, 0, 0, 1, 0, 0, 0, 2, tcpLength/4<<4, flags, 0x20, 0, 0, 0, 0, 0)
	return transport(src.Addr(), dst.Addr(), protoTCP, slices.Concat(b, slices.Concat(payload...)))
}

// icmpMessage has the four bytes after the checksum, and what follows.
func icmpMessage(src, dst netip.Addr, kind, code uint8, rest uint32, payload ...[]byte) []byte {
	b := binary.BigEndian.AppendUint32([]byte{kind, code, 0, 0}, rest)
	proto := uint8(protoICMP)
	if src.Is6() {
		proto = protoICMPv6
	}
	return transport(src, dst, proto, slices.Concat(b, slices.Concat(payload...)))
}

// ipPacket is a packet of the addresses' family around a transport message.
func ipPacket(src, dst netip.Addr, proto uint8, message []byte) []byte {
	if dst.Is4() {
		return ip4{src: src, dst: dst, proto: proto}.packet(message)
	}
	return ip6{src: src, dst: dst, next: proto}.packet(message)
}

func ethertypeOf(a netip.Addr) uint16 {
	if a.Is4() {
		return typeIPv4
	}
	return typeIPv6
}

// udpFrom is a UDP packet, with the tag of the next frame.
func (c *craft) udpFrom(src, dst netip.AddrPort) []byte {
	return ipPacket(src.Addr(), dst.Addr(), protoUDP, udpMessage(src, dst, c.tag()))
}

func (c *craft) tcpFrom(src, dst netip.AddrPort, flags uint8) []byte {
	return ipPacket(src.Addr(), dst.Addr(), protoTCP, tcpMessage(src, dst, flags, c.tag()))
}

func (c *craft) echoFrom(src, dst netip.Addr) []byte {
	kind, proto := uint8(8), uint8(protoICMP)
	if src.Is6() {
		kind, proto = 128, protoICMPv6
	}
	return ipPacket(src, dst, proto, icmpMessage(src, dst, kind, 0, c.next, c.tag()))
}

// frameTo is an IP packet to a MAC, from the attacker's own.
func (c *craft) frameTo(mac net.HardwareAddr, packet []byte) []byte {
	ethertype := uint16(typeIPv4)
	if packet[0]>>4 == 6 {
		ethertype = typeIPv6
	}
	return eth(mac, c.me.MAC, ethertype, packet)
}

// source is the attacker's own address in the family of another.
func (c *craft) source(of netip.Addr) netip.Addr {
	if of.Is4() {
		return c.me.IP4
	}
	return c.me.IP6
}

// target is whom a frame is sent to.
type target struct {
	mac net.HardwareAddr
	ip  netip.Addr
}

// targets are all ways to all others: by their own MAC, by the gateway's, and
// by those of groups.
func (c *craft) targets() (all []target) {
	w := c.w
	add := func(mac net.HardwareAddr, addresses ...netip.Addr) {
		for _, a := range addresses {
			all = append(all, target{mac, a})
		}
	}
	for _, name := range memberNames {
		m := w.members[name]
		if m == c.me {
			continue
		}
		add(m.MAC, m.IP4, m.IP6, linkLocal(m.MAC))
		add(w.gatewayA, m.IP4, m.IP6)
	}
	for _, n := range []network{sealed, open, closed, vault} {
		add(w.gatewayA, n.gateway4(), n.gateway6())
	}
	add(w.gatewayA, w.a.IP4, w.a.IP6, w.b.IP4, w.b.IP6, w.underlay.IP4, w.underlay.IP6, linkLocal(w.gatewayA))
	add(broadcastMAC, broadcast4, lastOf(c.me.network.subnet4()), allHosts4)
	add(groupMAC(allNodes), allNodes)
	add(w.gatewayA, broadcast4, allHosts4, allNodes, loopback4, loopback6)
	return all
}

// few are the targets that matter most: a neighbor here, one behind the tunnel,
// the host, a container of another network, and the outside.
func (c *craft) few() []target {
	w := c.w
	local, remote := w.members[c.me.network.name+"2"], w.members[c.me.network.name+"3"]
	if c.me.network == closed {
		local, remote = w.members["server1"], w.members["server3"]
	}
	gw := w.gatewayA
	return []target{
		{local.MAC, local.IP4},
		{local.MAC, local.IP6},
		{remote.MAC, remote.IP4},
		{remote.MAC, remote.IP6},
		{gw, c.me.network.gateway4()},
		{gw, c.me.network.gateway6()},
		{gw, w.members["vault1"].IP4},
		{gw, w.members["vault3"].IP6},
		{gw, w.underlay.IP4},
		{gw, w.underlay.IP6},
		{gw, w.b.IP4},
		{broadcastMAC, broadcast4},
		{groupMAC(allNodes), allNodes},
	}
}

var memberNames = []string{
	"sealed1", "sealed2", "sealed3", "open1", "open2", "open3",
	"linked1", "server1", "bystander1", "server3", "vault1", "vault3",
}

var (
	broadcastMAC = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	nobodysMAC   = net.HardwareAddr{2, 0, 0, 0, 0, 0x77}
	zeroMAC      = make(net.HardwareAddr, 6)

	broadcast4 = netip.MustParseAddr("255.255.255.255")
	allHosts4  = netip.MustParseAddr("224.0.0.1")
	routers4   = netip.MustParseAddr("224.0.0.2")
	loopback4  = netip.MustParseAddr("127.0.0.1")
	loopback6  = netip.IPv6Loopback()
	allNodes   = netip.IPv6LinkLocalAllNodes()
	allRouters = netip.IPv6LinkLocalAllRouters()
	zero4      = netip.IPv4Unspecified()
	zero6      = netip.IPv6Unspecified()
)

// groupMAC is RFC 2464, section 7, and RFC 1112, section 6.4.
func groupMAC(group netip.Addr) net.HardwareAddr {
	low := group.As16()
	if group.Is4() {
		return net.HardwareAddr{1, 0, 0x5e, low[13] & 0x7f, low[14], low[15]}
	}
	return append(net.HardwareAddr{0x33, 0x33}, low[12:]...)
}

// lastOf is the broadcast address of a /24.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().As4()
	b[3] = 255
	return netip.AddrFrom4(b)
}

func ports(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }
