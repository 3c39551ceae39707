package attack

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// The rules say what may arrive at a sniffer while a member attacks. Each gives
// the first thing that is wrong with a frame, or nothing.

// firstFault gives the first of these that is wrong.
func firstFault(faults ...string) string {
	for _, f := range faults {
		if f != "" {
			return f
		}
	}
	return ""
}

func hasTagIn(frame []byte) bool { return bytes.Contains(frame, []byte(tagWord)) }

// offloadFault checks what a frame asks a device to do: the checksum of its own
// transport header, and segments of its own protocol. For a frame in a tunnel of
// the hosts that is the inner one's. What a container wraps itself it may also
// have completed behind its outer transport header: those bytes are its own.
func (w *world) offloadFault(s seen) string {
	if s.vnet.gso == 0xff {
		return "an offload that no device has"
	}
	if s.vnet.flags&needsChecksum == 0 && s.vnet.gso == gsoNone {
		return ""
	}
	base, p := 0, parse(s.data)
	if p.proto == protoGRE && p.l4 != 0 && (p.ip == w.a.IP4 || p.ip == w.b.IP4) {
		within, _ := inner(s.data[p.l4:])
		if within == nil {
			return "an offload of a packet in GRE that holds no frame"
		}
		base = len(s.data) - len(within)
		p = parse(within)
	}
	wrapped := false
	if s.vnet.flags&needsChecksum != 0 {
		start, at := int(s.vnet.csumStart)-base, int(s.vnet.csumOff)
		right, known := map[uint8]int{protoTCP: tcpChecksum, protoUDP: udpChecksum, protoSCTP: 8}[p.proto]
		switch own := p.l4 != 0 && start == p.l4 && at == right; {
		case p.l4 == 0 || p.fragment:
			return "a checksum of a fragment, or of no transport"
		case p.proto == protoUDP:
			wrapped = !own && start >= p.l4+udpLength
			known = own || wrapped
		case known:
			known = own
		default:
			wrapped = start >= p.l4
			known = wrapped && p.proto != protoICMP && p.proto != protoICMPv6 && p.proto != protoIGMP
		}
		if !known {
			return fmt.Sprintf("a checksum of protocol %d at %d+%d, with its transport header at %d", p.proto, start, at, p.l4)
		}
	}
	switch kind := s.vnet.gso &^ gsoECN; {
	case kind == gsoNone:
		return ""
	case s.vnet.gsoSize == 0:
		return "segments of no length"
	case kind == gsoTCP4 && p.ethertype == typeIPv4 && p.proto == protoTCP:
	case kind == gsoTCP6 && p.ethertype == typeIPv6 && p.proto == protoTCP:
	case (kind == gsoUDP || kind == gsoUDPL4) && p.proto == protoUDP:
	case !wrapped:
		return fmt.Sprintf("segments of type %d for ethertype %#x and protocol %d", kind, p.ethertype, p.proto)
	}
	return ""
}

// messageFault finds what only a router or a DHCP server may send.
func messageFault(p parsed) string {
	if p.l4 == 0 || p.later {
		return ""
	}
	switch {
	case p.proto == protoICMPv6 && (p.icmp == 130 || p.icmp == 134 || p.icmp == 137),
		p.proto == protoICMP && (p.icmp == 5 || p.icmp == 9),
		p.proto == protoIGMP && p.icmp == 0x11:
		return fmt.Sprintf("a router's message, type %d of protocol %d", p.icmp, p.proto)
	case p.proto == protoUDP && (p.sport == 67 && p.dport == 68 || p.sport == 547 && p.dport == 546):
		return "a DHCP server's message"
	}
	return ""
}

// mayBeUnspecified tells whether a packet from no address is one of the few that
// have none: DHCP asks, and what RFC 4861, 2710 and 3810 allow.
func (p parsed) mayBeUnspecified() bool {
	if p.ip.Is4() {
		return p.proto == protoUDP && p.sport == 68 && p.dport == 67 && p.ipDst == broadcast4
	}
	return p.proto == protoICMPv6 && slices.Contains([]uint8{131, 132, 133, 135, 143}, p.icmp)
}

// identityFault checks that a frame speaks for its sender only.
func identityFault(from *member, frame []byte, p parsed) string {
	if p.fault != "" {
		return p.fault
	}
	if p.src.String() != from.MAC.String() {
		return "the MAC " + p.src.String()
	}
	switch p.ethertype {
	case typeARP:
		if len(frame) < ethLength+28 {
			return "half an ARP packet"
		}
		mac, address := net.HardwareAddr(frame[ethLength+8:ethLength+14]), netip.AddrFrom4([4]byte(frame[ethLength+14:]))
		if mac.String() != from.MAC.String() || (address != from.IP4 && address != zero4) {
			return fmt.Sprintf("ARP of %s at %s", address, mac)
		}
		return ""
	case typeIPv4, typeIPv6:
	default:
		return fmt.Sprintf("ethertype %#x", p.ethertype)
	}
	if !from.owns(p.ip) && (!p.ip.IsUnspecified() || !p.mayBeUnspecified()) {
		return "the source " + p.ip.String()
	}
	if p.proto == protoICMPv6 && p.icmp == 136 && p.l4 != 0 && !p.later {
		if len(frame) < p.l4+24 || !from.owns(netip.AddrFrom16([16]byte(frame[p.l4+8:]))) {
			return "an advertisement of another's address"
		}
	}
	return messageFault(p)
}

// bridgedFault checks a frame that attacker sent to receiver on their network.
func (w *world) bridgedFault(attacker, receiver *member, frame []byte, p parsed) string {
	may, byLink := w.mayReach(attacker, receiver)
	switch {
	case p.fault != "":
		return p.fault
	case !may:
		return "a frame that may not get here"
	case byLink && (p.proto != protoTCP || !p.later && p.dport != service):
		return fmt.Sprintf("protocol %d to port %d, which no link allows", p.proto, p.dport)
	case p.dst[0]&1 == 0 && p.dst.String() != receiver.MAC.String():
		return "a frame for " + p.dst.String()
	case p.dst[0]&1 == 1 && byLink:
		return "a copy of what is flooded"
	}
	return identityFault(attacker, frame, p)
}

// isReport tells whether the frame is what a kernel says of its groups when it
// is asked, or what it says to all when it looks for a neighbor that only the
// attacker's packets name, or when the attacker asks for one of its addresses.
func (p parsed) isReport() bool {
	return p.proto == protoIGMP || p.proto == protoICMPv6 && slices.Contains([]uint8{131, 132, 135, 136, 143}, p.icmp)
}

// isTrueAnswer tells whether the frame answers who asked for a neighbor: the
// datapath answers for everybody whom it knows.
func (w *world) isTrueAnswer(frame []byte, p parsed) bool {
	var address netip.Addr
	switch {
	case hasTagIn(frame) || p.dst[0]&1 == 1:
		return false
	case p.ethertype == typeARP && len(frame) >= ethLength+28 && frame[ethLength+7] == 2 && bytes.Equal(frame[ethLength+8:ethLength+14], p.src):
		address = netip.AddrFrom4([4]byte(frame[ethLength+14:]))
	case p.proto == protoICMPv6 && p.icmp == 136 && p.l4 != 0 && len(frame) >= p.l4+24:
		address = netip.AddrFrom16([16]byte(frame[p.l4+8:]))
	default:
		return false
	}
	if who := w.byMAC(p.src); who != nil {
		return who.owns(address)
	}
	for _, h := range []*testutil.Host{w.a, w.b} {
		if p.src.String() != w.gateways[h].String() {
			continue
		}
		for _, n := range []network{sealed, open, closed, vault} {
			if address == n.gateway4() || address == n.gateway6() {
				return true
			}
		}
		return address == linkLocal(p.src)
	}
	return false
}

// bystanderFault checks a frame with the MAC of a member that does not attack:
// its kernel may have answered the attacker, or a query.
func (w *world) bystanderFault(attacker *member, frame []byte, p parsed) string {
	who := w.byMAC(p.src)
	switch {
	case who == nil:
		return "the MAC " + p.src.String()
	case w.attacked[w.byMAC(p.dst)] && !hasTagIn(frame): // a late answer
		return ""
	case p.isReport() && !hasTagIn(frame), p.dst.String() == attacker.MAC.String(), attacker.owns(p.ipDst):
		return identityFault(who, frame, p)
	}
	return "a frame of " + who.Endpoint
}

// container gives the rule of a container's sniffer.
func (w *world) container(receiver *member) func(*member, seen, []byte) string {
	gateway := w.gatewayA
	if receiver.Host == w.b {
		gateway = nil // nothing is routed there
	}
	return func(attacker *member, s seen, frame []byte) string {
		p := parse(frame)
		if s.vlan {
			return "a VLAN tag"
		}
		if fault := w.offloadFault(s); fault != "" {
			return fault
		}
		if p.fault == "" && w.isTrueAnswer(frame, p) {
			return ""
		}
		switch p.src.String() {
		case attacker.MAC.String():
			return w.bridgedFault(attacker, receiver, frame, p)
		case gateway.String():
			return w.routedFault(attacker, receiver, p)
		}
		return w.bystanderFault(attacker, frame, p)
	}
}

// routedFault checks what comes by the gateway: only the published port leads
// there.
func (w *world) routedFault(attacker, receiver *member, p parsed) string {
	switch {
	case p.fault != "":
		return p.fault
	case receiver.Endpoint != "server1" || attacker.network.internal:
		return "a routed packet from " + p.ip.String()
	case p.proto != protoTCP || !p.later && p.dport != service:
		return fmt.Sprintf("protocol %d to port %d, which is not published", p.proto, p.dport)
	case !attacker.owns(p.ip) && !slices.Contains(w.hostAddresses(open), p.ip):
		return "the source " + p.ip.String()
	}
	return ""
}

// stack gives the rule of the sniffer at host a's ebpnet0.
func (w *world) stack() func(*member, seen, []byte) string {
	return func(attacker *member, s seen, frame []byte) string {
		p := parse(frame)
		if s.vlan {
			return "a VLAN tag"
		}
		if fault := firstFault(w.offloadFault(s), p.fault); fault != "" {
			return fault
		}
		if w.isTrueAnswer(frame, p) {
			return ""
		}
		if p.src.String() != attacker.MAC.String() {
			return w.bystanderFault(attacker, frame, p)
		}
		own := w.hostAddresses(attacker.network)
		if !slices.Contains(own, p.ipDst) {
			return "a packet for " + p.ipDst.String()
		}
		if p.isError() {
			q := p.quoted(frame)
			if !slices.Contains(own, q.ip) || !attacker.owns(q.ipDst) {
				return fmt.Sprintf("an ICMP error about %s > %s", q.ip, q.ipDst)
			}
		}
		return identityFault(attacker, frame, p)
	}
}

// nothing is the rule where no frame of an attacker may arrive.
func (w *world) nothing() func(*member, seen, []byte) string {
	return func(attacker *member, _ seen, frame []byte) string {
		if hasTagIn(frame) {
			return "a frame that may not get here"
		}
		if len(frame) >= ethLength && bytes.Equal(frame[6:12], attacker.MAC) {
			return "a frame of the attacker"
		}
		return ""
	}
}

// wire gives the rule of the underlay, for what leaves host.
func (w *world) wire(fromA bool) func(*member, seen, []byte) string {
	host, peer, uplink := w.a, w.b, w.uplinkA
	if !fromA {
		host, peer, uplink = w.b, w.a, w.uplinkB
	}
	own := []netip.Addr{host.IP4, host.IP6, linkLocal(uplink)}
	return func(attacker *member, s seen, frame []byte) string {
		p := parse(frame)
		if s.vlan {
			return "a VLAN tag"
		}
		if fault := firstFault(w.offloadFault(s), p.fault); fault != "" {
			return fault
		}
		if p.src.String() != uplink.String() {
			return "the MAC " + p.src.String()
		}
		switch p.ethertype {
		case typeARP:
			if hasTagIn(frame) || len(frame) < ethLength+28 || netip.AddrFrom4([4]byte(frame[ethLength+14:])) != host.IP4 {
				return "ARP of another"
			}
			return ""
		case typeIPv4, typeIPv6:
		default:
			return fmt.Sprintf("ethertype %#x", p.ethertype)
		}
		if !slices.Contains(own, p.ip) {
			return "the source " + p.ip.String()
		}
		if p.ttl == 0 {
			return "a TTL of 0"
		}
		if p.proto == protoGRE {
			return w.tunnelFault(attacker, peer.IP4, frame, p)
		}
		return w.outwardFault(attacker, frame, p)
	}
}

// outwardFault checks what leaves a host other than in its tunnel.
func (w *world) outwardFault(attacker *member, frame []byte, p parsed) string {
	if !hasTagIn(frame) {
		return ""
	}
	switch {
	case attacker.network.internal:
		return "a packet of an internal network"
	case p.ipDst.IsMulticast() || p.ipDst == broadcast4 || p.dst[0]&1 == 1:
		return "a packet for the group " + p.ipDst.String()
	}
	for _, n := range []network{sealed, open, closed, vault} {
		if n.subnet4().Contains(p.ipDst) || n.subnet6().Contains(p.ipDst) {
			return "a packet for the container address " + p.ipDst.String()
		}
	}
	if p.isError() {
		q := p.quoted(frame)
		for _, v := range w.victims {
			if q.ip == v.dst.Addr() && q.sport == v.dst.Port() && q.ipDst == v.outside.Addr() && q.dport == v.outside.Port() {
				return "an ICMP error about the flow of " + v.what
			}
		}
	}
	return ""
}

// tunnelFault checks what leaves a host in its tunnel: only frames of networks
// with this key, from a member here that may reach somebody there.
func (w *world) tunnelFault(attacker *member, peer netip.Addr, frame []byte, p parsed) string {
	if p.ipDst != peer {
		return "GRE to " + p.ipDst.String()
	}
	within, key := inner(frame[p.l4:])
	if within == nil {
		return "GRE without a frame"
	}
	in := parse(within)
	if in.src.String() != attacker.MAC.String() {
		who := w.byMAC(in.src)
		if who == nil || who.network.key != key || who.Host.IP4 == peer {
			return fmt.Sprintf("key %d with the MAC %s", key, in.src)
		}
		return w.bystanderFault(attacker, within, in)
	}
	if key != attacker.network.key {
		return fmt.Sprintf("key %d of another network", key)
	}
	if in.dst[0]&1 == 1 && attacker.network.icc {
		return identityFault(attacker, within, in)
	}
	receiver := w.byMAC(in.dst)
	if (receiver == nil || receiver.network != attacker.network) && attacker.network.icc {
		return identityFault(attacker, within, in) // an unknown station, which may be there
	}
	if receiver == nil || receiver.Host.IP4 != peer {
		return "a frame for " + in.dst.String()
	}
	return w.bridgedFault(attacker, receiver, within, in)
}

// indexIn finds the number of the frame whose tag is in another.
func indexIn(frame []byte) (uint32, bool) {
	at := bytes.Index(frame, []byte(tagWord))
	if at < 0 || at+len(tagWord)+4 > len(frame) {
		return 0, false
	}
	return binary.BigEndian.Uint32(frame[at+len(tagWord):]), true
}
