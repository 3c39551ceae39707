package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"slices"

	"github.com/ebpnet/ebpnet/loader"
)

// This holds for each packet that leaves a program, for any packet that came
// in: its checksums are right, it stays in its network, and it carries the
// address of its sender or of the host.

// headers are the fields of a frame.
type headers struct {
	src, dst   mac
	ethertype  uint16
	ip, to     netip.Addr // invalid unless IP
	l3, l4     int        // offsets; l4 is 0 where there is no transport header
	end        int        // of the IP packet, by its length
	protocol   uint8
	ports      bool // are there, within the packet's length
	sport      uint16
	dport      uint16
	fragment   bool // any but a whole packet
	ipChecksum bool // is right, or there is none
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

// extensionsOf walks the extension headers of IPv6 to the transport header.
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

// transport tells whether the transport checksum is right; known is false if
// there is none, or if the frame lacks a part of its data.
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
			return h.ip.Is4(), true // none
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

// within gives the frame inside Ethernet in GRE, and its key (nil: none).
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

// judge checks the outcome of programs against the tables of its world.
type judge struct {
	w         *world
	byAddress map[netip.Addr]Endpoint
	byMAC     map[uint32]map[mac]Endpoint // of each network
	host      map[netip.Addr]bool         // the host's addresses, but for gateways
	gateways  map[netip.Addr]uint32       // network
	networks  map[uint32]Network
	shared    map[uint32]bool // networks on which stations are learned
	targets   map[netip.AddrPort]map[uint8]bool
	services  map[netip.AddrPort]map[uint8]bool
}

func (w *world) judge() *judge {
	j := &judge{
		w: w, byAddress: map[netip.Addr]Endpoint{}, byMAC: map[uint32]map[mac]Endpoint{}, gateways: map[netip.Addr]uint32{},
		networks: map[uint32]Network{}, shared: map[uint32]bool{},
		targets: map[netip.AddrPort]map[uint8]bool{}, services: map[netip.AddrPort]map[uint8]bool{},
		host: map[netip.Addr]bool{
			uplink.ip4: true, uplink.ip6: true, netip.MustParseAddr("192.0.2.255"): true,
		},
	}
	for _, n := range w.wanted.Networks {
		j.networks[n.ID], j.byMAC[n.ID] = n, map[mac]Endpoint{}
		for _, g := range n.Gateways {
			j.gateways[g.Addr()] = n.ID
			// The host also has the subnet's anycast or broadcast address.
			all := g.Masked().Addr().AsSlice()
			if g.Addr().Is4() {
				all[3] = 255
			}
			a, _ := netip.AddrFromSlice(all)
			j.host[a] = true
		}
	}
	for _, e := range w.wanted.Endpoints {
		j.byMAC[e.Network][e.MAC] = e
		j.shared[e.Network] = j.shared[e.Network] || e.Trunk
		for _, a := range e.Addresses {
			j.byAddress[a] = e
		}
	}
	for _, c := range w.wanted.TunnelNetworks {
		j.shared[c.Network] = j.shared[c.Network] || j.networks[c.Network].ICC
	}
	for _, p := range w.wanted.Ports {
		for i := range p.Last - p.First + 1 {
			note(j.targets, netip.AddrPortFrom(p.Target, p.TargetFirst+i), p.Protocol)
			note(j.services, netip.AddrPortFrom(p.Address, p.First+i), p.Protocol)
		}
	}
	return j
}

func note(in map[netip.AddrPort]map[uint8]bool, at netip.AddrPort, protocol uint8) {
	if in[at] == nil {
		in[at] = map[uint8]bool{}
	}
	in[at][protocol] = true
}

// isHost tells whether the host has the address.
func (j *judge) isHost(a netip.Addr) bool {
	return j.isGateway(a) || j.host[a] || a.IsLoopback()
}

func (j *judge) isGateway(a netip.Addr) bool {
	_, ok := j.gateways[a]
	return ok
}

// verdict is the outcome of a program's run on a frame.
type verdict struct {
	hook   loader.Hook // or earlyHook
	device string
	in     []byte
	skb    skbContext
	outcome
}

// earlyHook names the program of XDP among hooks.
var earlyHook loader.Hook

// fault tells the error in a packet that left a program; nil if there is none,
// or if no packet left.
func (j *judge) fault(v verdict) error {
	if v.verdict == verdictShot {
		return nil
	}
	in, out := headersOf(v.in), headersOf(v.frame)
	inner, outInner := v.in, v.frame
	switch v.hook {
	case loader.FromUplink, earlyHook:
		if within, _ := in.within(v.in); within != nil && v.verdict == verdictDirect && len(v.frame) < len(v.in) {
			inner = within
		}
	case loader.FromEndpoint, loader.ToTunnel:
		if within, _ := out.within(v.frame); within != nil && len(v.frame) > len(v.in) {
			if !out.ipChecksum {
				return errors.New("wrong outer IPv4 header checksum")
			}
			outInner = within
		}
	}
	if err := j.checksums(v, inner, outInner); err != nil {
		return err
	}
	if v.verdict != verdictDirect {
		return nil
	}
	switch v.hook {
	case loader.FromEndpoint:
		return j.fromEndpoint(v, in, out)
	case loader.FromUplink, earlyHook:
		return j.fromUplink(v, in, out)
	case loader.FromHost, loader.FromLoopback:
		return j.fromHost(v, in, out)
	case loader.ToTunnel:
		if v.skb.mark&^0xfffff == frameKind {
			// What takes the detour has been looked at before.
			return j.intoTunnel(v.skb.mark>>markNetwork&markMask, out, v.frame, nil)
		}
	}
	return nil
}

const markMask = 1<<markNetwork - 1

// checksums checks that checksums are right if they were before, and in packets
// that a program makes itself.
func (j *judge) checksums(v verdict, in, out []byte) error {
	before, after := headersOf(in), headersOf(out)
	made := v.hook == loader.FromEndpoint && after.dst == before.src && j.isGateway(after.ip) && (after.protocol == protoICMP || after.protocol == protoICMPv6) &&
		before.protocol != protoICMP && before.protocol != protoICMPv6
	if !after.ipChecksum && (before.ipChecksum || made) {
		return errors.New("wrong IPv4 header checksum")
	}
	if v.skb.segments > 0 {
		return nil
	}
	was, _ := before.transport(in)
	right, known := after.transport(out)
	if known && !right && (was || made) {
		return fmt.Errorf("wrong checksum of protocol %d", after.protocol)
	}
	return nil
}

// sender is the local endpoint behind a device.
func (j *judge) sender(device string) (Endpoint, bool) {
	for _, e := range j.w.wanted.Endpoints {
		if !e.Remote() && e.Ifindex == int(j.w.ifindex[device]) {
			return e, true
		}
	}
	return Endpoint{}, false
}

// owns tells whether a frame may carry the address as its endpoint's own.
// Behind a trunk that is any address without a static entry.
func (j *judge) owns(e Endpoint, src mac, a netip.Addr) bool {
	if a.IsUnspecified() || slices.Contains(e.Addresses, a) || a == linkLocal(src) {
		return true
	}
	if !e.Trunk || j.isGateway(a) || a.IsMulticast() {
		return false
	}
	_, known := j.byAddress[a]
	return !known
}

func (j *judge) fromEndpoint(v verdict, in, out headers) error {
	e, ok := j.sender(v.device)
	if !ok {
		return errors.New("a frame of nobody")
	}
	network := j.networks[e.Network]
	if !e.Trunk && in.src != e.MAC {
		return fmt.Errorf("a frame of %x by %s", in.src, v.device)
	}
	switch wrapped, _ := out.within(v.frame); {
	case v.mark&^0xfffff == frameKind:
		if n := v.mark >> markNetwork & markMask; n != e.Network || !j.carried(v.mark&markMask, n) {
			return fmt.Errorf("network %d marked for tunnel %d", n, v.mark&markMask)
		}
		return j.identity(e, v.frame, out)
	case out.src == mac{} && out.dst == mac{} && wrapped != nil:
		return j.intoTunnel(e.Network, out, v.frame, v.in)
	case out.src == mac{} && out.dst == mac{}:
		return nil // to who asked by lo
	case out.src == gatewayMAC && in.src != gatewayMAC && j.byAddress[out.to].MAC == out.dst && !j.isGateway(out.ip):
		return j.routed(e, in, out, false)
	case out.dst == in.src && out.src != in.src, isAdvertOfAnother(v.frame, in, out):
		return j.answer(e, network, v.frame, in, out)
	case out.dst == gatewayMAC:
		return j.toGateway(e, network, v, in, out)
	case out.src == gatewayMAC && in.src != gatewayMAC:
		return j.routed(e, in, out, false)
	}
	return j.bridged(e, network, v.frame, in, out)
}

// isAdvertOfAnother tells whether the packet is the answer to duplicate address
// detection, which goes to all nodes.
func isAdvertOfAnother(frame []byte, in, out headers) bool {
	return out.protocol == protoICMPv6 && out.l4 != 0 && out.l4 < len(frame) && frame[out.l4] == neighborAnswer && out.src != in.src
}

// answer checks a packet that goes back to the sender: the answer for a
// neighbor, or one of its gateway.
func (j *judge) answer(e Endpoint, network Network, frame []byte, in, out headers) error {
	about := out.ip
	if out.ethertype == typeARP {
		about = netip.AddrFrom4([4]byte(frame[atIP+14:]))
	}
	if n, ok := j.gateways[about]; ok {
		if n != network.ID || out.src != gatewayMAC {
			return fmt.Errorf("an answer for the gateway %s of network %d", about, n)
		}
		return nil
	}
	owner, ok := j.byAddress[about]
	if !ok || owner.Network != e.Network || owner.MAC != out.src {
		return fmt.Errorf("an answer for %s at %x", about, out.src)
	}
	return nil
}

// identity is of a frame as its endpoint sent it.
func (j *judge) identity(e Endpoint, frame []byte, h headers) error {
	if !e.Trunk && h.src != e.MAC {
		return fmt.Errorf("the MAC %x", h.src)
	}
	address := h.ip
	switch h.ethertype {
	case typeARP:
		if len(frame) < atIP+28 || mac(frame[atIP+8:atIP+14]) != h.src {
			return errors.New("ARP of another's MAC")
		}
		address = netip.AddrFrom4([4]byte(frame[atIP+14:]))
	case typeIPv4, typeIPv6:
	default:
		return fmt.Errorf("ethertype %#x", h.ethertype)
	}
	if !address.IsValid() || !j.owns(e, h.src, address) {
		return fmt.Errorf("the source %s", address)
	}
	return nil
}

// toGateway goes to the host as it came, or outside under the host's address.
func (j *judge) toGateway(e Endpoint, network Network, v verdict, in, out headers) error {
	switch {
	case j.isHost(out.to), out.to.IsLinkLocalUnicast(), out.to.IsMulticast():
		if network.Internal && j.gateways[out.to] != e.Network {
			return fmt.Errorf("%s from an internal network", out.to)
		}
		return j.identity(e, v.frame, out)
	case network.Internal:
		return fmt.Errorf("%s from an internal network", out.to)
	}
	if _, known := j.byAddress[out.to]; known {
		return fmt.Errorf("the container address %s outside", out.to)
	}
	if out.ip == uplink.ip4 || out.ip == uplink.ip6 {
		return nil
	}
	if network.Masquerade && !j.isService(out) {
		return fmt.Errorf("the source %s outside", out.ip)
	}
	return j.identity(e, v.frame, out)
}

// isService tells whether the packet is from a published port.
func (j *judge) isService(h headers) bool {
	return j.services[netip.AddrPortFrom(h.ip, h.sport)][h.protocol] || h.protocol == protoICMP || h.protocol == protoICMPv6
}

// routed comes from the gateway to a local endpoint that has the destination.
func (j *judge) routed(e Endpoint, in, out headers, outside bool) error {
	to, known := j.byAddress[out.to]
	if known && (to.Remote() || to.MAC != out.dst) {
		return fmt.Errorf("%s at %x", out.to, out.dst)
	}
	if !known && !j.shared[openNet] {
		return fmt.Errorf("%s, whom nobody knows", out.to)
	}
	if outside {
		if _, inside := j.byAddress[out.ip]; inside || j.isHost(out.ip) && out.ip != in.ip {
			return fmt.Errorf("%s from outside", out.ip)
		}
		return nil
	}
	if !j.isHost(out.ip) && !j.owns(e, in.src, out.ip) {
		return fmt.Errorf("the source %s, routed", out.ip)
	}
	if known && to.Network != e.Network && !j.isHost(out.ip) && out.ports && !j.isService(out) &&
		!j.targets[netip.AddrPortFrom(out.to, out.dport)][out.protocol] {
		return fmt.Errorf("%s to %s of another network, port %d", out.ip, out.to, out.dport)
	}
	return nil
}

// bridged stays in the sender's network, and passes its policy.
func (j *judge) bridged(e Endpoint, network Network, frame []byte, in, out headers) error {
	if err := j.identity(e, frame, out); err != nil {
		return err
	}
	to, known := j.byMAC[e.Network][out.dst]
	switch {
	case !known && !j.shared[e.Network]:
		return fmt.Errorf("a frame for %x, whom nobody knows", out.dst)
	case known && to.Remote():
		return fmt.Errorf("a frame for %x behind a tunnel, unwrapped", out.dst)
	case known && !network.ICC:
		return j.linked(e, to, out)
	}
	return nil
}

// linked passes by a link of the two.
func (j *judge) linked(from, to Endpoint, h headers) error {
	if !h.ports {
		return nil // a later fragment, or what no receiver takes
	}
	for _, l := range j.w.wanted.Links {
		if l.Protocol != h.protocol {
			continue
		}
		if l.Client == from.ID && l.Server == to.ID && l.First <= h.dport && h.dport <= l.Last ||
			l.Client == to.ID && l.Server == from.ID && l.First <= h.sport && h.sport <= l.Last {
			return nil
		}
	}
	if h.protocol == protoICMP || h.protocol == protoICMPv6 {
		return nil // of a flow that a link allows: golden packets show which
	}
	return fmt.Errorf("protocol %d to port %d, which no link allows", h.protocol, h.dport)
}

func (j *judge) carried(tunnel, network uint32) bool {
	return slices.ContainsFunc(j.w.wanted.TunnelNetworks, func(c TunnelNetwork) bool { return c.Tunnel == tunnel && c.Network == network })
}

// tunnelOf is the tunnel with these ends.
func (j *judge) tunnelOf(local, remote netip.Addr) (Tunnel, bool) {
	for _, t := range j.w.wanted.Tunnels {
		if t.Local == local && t.Remote == remote {
			return t, true
		}
	}
	return Tunnel{}, false
}

// networkBy is the network that a tunnel carries under a key.
func (j *judge) networkBy(tunnel uint32, k *uint32) (uint32, bool) {
	for _, c := range j.w.wanted.TunnelNetworks {
		if c.Tunnel == tunnel && (c.Key == nil) == (k == nil) && (k == nil || *c.Key == *k) {
			return c.Network, true
		}
	}
	return 0, false
}

// intoTunnel carries a frame of the network to one of its tunnels, unchanged.
func (j *judge) intoTunnel(network uint32, out headers, frame, in []byte) error {
	tunnel, ok := j.tunnelOf(out.ip, out.to)
	if !ok {
		return fmt.Errorf("GRE from %s to %s", out.ip, out.to)
	}
	inner, k := out.within(frame)
	if inner == nil {
		return errors.New("GRE without a frame")
	}
	if n, ok := j.networkBy(tunnel.ID, k); !ok || n != network {
		return fmt.Errorf("a frame of network %d in tunnel %d under another's key", network, tunnel.ID)
	}
	if in == nil {
		return nil
	}
	before, after := headersOf(in), headersOf(inner)
	if after.src != before.src || after.ip != before.ip || after.to != before.to {
		return errors.New("another frame in the tunnel")
	}
	if to, known := j.byMAC[network][after.dst]; known && to.Tunnel != tunnel.ID {
		return fmt.Errorf("a frame for %x in tunnel %d", after.dst, tunnel.ID)
	}
	return nil
}

func (j *judge) fromUplink(v verdict, in, out headers) error {
	inner, k := in.within(v.in)
	tunnel, ok := j.tunnelOf(in.to, in.ip)
	if inner == nil || !ok || len(v.frame) >= len(v.in) {
		if out.src != gatewayMAC {
			return fmt.Errorf("a frame of %x from outside", out.src)
		}
		return j.routed(Endpoint{}, in, out, true)
	}
	n, ok := j.networkBy(tunnel.ID, k)
	if !ok {
		return fmt.Errorf("a frame of no network out of tunnel %d", tunnel.ID)
	}
	to, known := j.byMAC[n][out.dst]
	switch {
	case known && to.Remote():
		return fmt.Errorf("out of a tunnel into another, for %x", out.dst)
	case !known && out.dst[0]&1 == 0 && !j.shared[n]:
		return fmt.Errorf("a frame for %x, whom nobody knows", out.dst)
	}
	from, told := j.byMAC[n][out.src]
	if told && from.Tunnel != tunnel.ID || !told && !j.networks[n].ICC {
		return fmt.Errorf("a frame of %x out of tunnel %d", out.src, tunnel.ID)
	}
	if owner, known := j.byAddress[out.ip]; known && (!told || owner.ID != from.ID) || j.isGateway(out.ip) {
		return fmt.Errorf("the source %s out of tunnel %d", out.ip, tunnel.ID)
	}
	if told && known && !j.networks[n].ICC {
		return j.linked(from, to, out)
	}
	return nil
}

// fromHost goes to the local endpoint that has the destination, or is an answer
// to the host.
func (j *judge) fromHost(v verdict, in, out headers) error {
	if v.hook == loader.FromHost && (out.dst == in.src && out.src != in.src || isAdvertOfAnother(v.frame, in, out)) {
		return nil
	}
	to, known := j.byAddress[out.to]
	if known && (to.Remote() || to.MAC != out.dst) || !known && !j.shared[openNet] {
		return fmt.Errorf("%s at %x", out.to, out.dst)
	}
	return nil
}

// copyFault tells the error in a copy of a flooded frame at an endpoint; nil if
// there is none.
func (j *judge) copyFault(device string, frame []byte) error {
	to, ok := j.sender(device)
	if !ok {
		return errors.New("a copy for nobody")
	}
	h := headersOf(frame)
	if !j.networks[to.Network].ICC {
		return fmt.Errorf("a copy on network %d, without ICC", to.Network)
	}
	from, told := j.byMAC[to.Network][h.src]
	if !told && !j.shared[to.Network] {
		return fmt.Errorf("a copy of %x's", h.src)
	}
	address := h.ip
	if h.ethertype == typeARP && len(frame) >= atIP+28 {
		address = netip.AddrFrom4([4]byte(frame[atIP+14:]))
	}
	if owner, known := j.byAddress[address]; known && (owner.Network != to.Network || told && owner.ID != from.ID) || j.isGateway(address) {
		return fmt.Errorf("a copy from %s", address)
	}
	return nil
}
