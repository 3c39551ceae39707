package datapath

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/ebpnet/ebpnet/loader"
)

// For every packet that leaves a program, for any input: its checksums are
// correct, it stays in its network, and its source is an address of its sender
// or of the host.

// verdict is the result of a program run on a frame.
type verdict struct {
	hook   loader.Hook // or earlyHook
	device string
	in     []byte
	skb    skbContext
	outcome
}

// earlyHook stands for the XDP program, which has no hook.
var earlyHook loader.Hook

// fault returns an error if the output breaks a rule. A packet that does not
// leave breaks none.
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
			// The program before the detour has already checked the frame.
			return j.intoTunnel(v.skb.mark>>markNetwork&markMask, out, v.frame, nil)
		}
	}
	return nil
}

const markMask = 1<<markNetwork - 1

// checksums checks that a program keeps correct checksums correct, and that the
// packets that it makes have correct checksums.
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

func (j *judge) fromEndpoint(v verdict, in, out headers) error {
	e, ok := j.sender(v.device)
	if !ok {
		return errors.New("the device has no endpoint")
	}
	network := j.networks[e.Network]
	if !e.Trunk && in.src != e.MAC {
		return fmt.Errorf("source MAC %x at %s", in.src, v.device)
	}
	switch wrapped, _ := out.within(v.frame); {
	case v.mark&^0xfffff == frameKind:
		if n := v.mark >> markNetwork & markMask; n != e.Network || !j.carries(v.mark&markMask, n) {
			return fmt.Errorf("the mark has network %d and tunnel %d", n, v.mark&markMask)
		}
		return j.identity(e, v.frame, out)
	case out.src == mac{} && out.dst == mac{} && wrapped != nil:
		return j.intoTunnel(e.Network, out, v.frame, v.in)
	case out.src == mac{} && out.dst == mac{}:
		return nil // to a client on lo
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

// answer checks a packet back to the sender: the datapath answers for a
// neighbor or for the gateway.
func (j *judge) answer(e Endpoint, network Network, frame []byte, in, out headers) error {
	about := out.ip
	if out.ethertype == typeARP {
		about = netip.AddrFrom4([4]byte(frame[atIP+14:]))
	}
	if n, ok := j.gateways[about]; ok {
		if n != network.ID || out.src != gatewayMAC {
			return fmt.Errorf("answer for the gateway %s of network %d, from another network or MAC", about, n)
		}
		return nil
	}
	owner, ok := j.byAddress[about]
	if !ok || owner.Network != e.Network || owner.MAC != out.src {
		return fmt.Errorf("answer for %s with MAC %x", about, out.src)
	}
	return nil
}

// identity checks that a frame has source addresses of its endpoint.
func (j *judge) identity(e Endpoint, frame []byte, h headers) error {
	if !e.Trunk && h.src != e.MAC {
		return fmt.Errorf("source MAC %x", h.src)
	}
	address := h.ip
	switch h.ethertype {
	case typeARP:
		if len(frame) < atIP+28 || mac(frame[atIP+8:atIP+14]) != h.src {
			return errors.New("ARP with the MAC of another station")
		}
		address = netip.AddrFrom4([4]byte(frame[atIP+14:]))
	case typeIPv4, typeIPv6:
	default:
		return fmt.Errorf("ethertype %#x", h.ethertype)
	}
	if !address.IsValid() || !j.owns(e, h.src, address) {
		return fmt.Errorf("source address %s", address)
	}
	return nil
}

// toGateway checks a packet to the host, or to the outside from the host's
// address.
func (j *judge) toGateway(e Endpoint, network Network, v verdict, in, out headers) error {
	switch {
	case j.isHost(out.to), out.to.IsLinkLocalUnicast(), out.to.IsMulticast():
		if network.Internal && j.gateways[out.to] != e.Network {
			return fmt.Errorf("packet from an internal network to %s", out.to)
		}
		return j.identity(e, v.frame, out)
	case network.Internal:
		return fmt.Errorf("packet from an internal network to %s", out.to)
	}
	if _, known := j.byAddress[out.to]; known {
		return fmt.Errorf("packet outside to the container address %s", out.to)
	}
	if out.ip == uplink.ip4 || out.ip == uplink.ip6 {
		return nil
	}
	if network.Masquerade && !j.isService(out) {
		return fmt.Errorf("packet outside from %s", out.ip)
	}
	return j.identity(e, v.frame, out)
}

// routed checks a packet from the gateway to a local endpoint that has the
// destination address.
func (j *judge) routed(e Endpoint, in, out headers, outside bool) error {
	to, known := j.byAddress[out.to]
	if known && (to.Remote() || to.MAC != out.dst) {
		return fmt.Errorf("packet to %s with MAC %x", out.to, out.dst)
	}
	if !known && !j.shared[openNet] {
		return fmt.Errorf("packet to the unknown address %s", out.to)
	}
	if outside {
		if _, inside := j.byAddress[out.ip]; inside || j.isHost(out.ip) && out.ip != in.ip {
			return fmt.Errorf("packet from outside with source %s", out.ip)
		}
		return nil
	}
	if !j.isHost(out.ip) && !j.owns(e, in.src, out.ip) {
		return fmt.Errorf("routed packet with source %s", out.ip)
	}
	if known && to.Network != e.Network && !j.isHost(out.ip) && out.ports && !j.isService(out) &&
		!j.targets[netip.AddrPortFrom(out.to, out.dport)][out.protocol] {
		return fmt.Errorf("packet from %s to %s on another network, port %d", out.ip, out.to, out.dport)
	}
	return nil
}

// bridged checks that a packet stays in the sender's network, and that the
// policy allows it.
func (j *judge) bridged(e Endpoint, network Network, frame []byte, in, out headers) error {
	if err := j.identity(e, frame, out); err != nil {
		return err
	}
	to, known := j.byMAC[e.Network][out.dst]
	switch {
	case !known && !j.shared[e.Network]:
		return fmt.Errorf("frame to the unknown MAC %x", out.dst)
	case known && to.Remote():
		return fmt.Errorf("frame to %x behind a tunnel, without outer headers", out.dst)
	case known && !network.ICC:
		return j.linked(e, to, out)
	}
	return nil
}

// linked checks that a link between the endpoints allows a packet.
func (j *judge) linked(from, to Endpoint, h headers) error {
	if !h.ports {
		return nil // a later fragment, or a packet that no receiver accepts
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
		return nil // it can belong to a flow of a link: golden packets check this
	}
	return fmt.Errorf("packet of protocol %d to port %d without a link", h.protocol, h.dport)
}

// intoTunnel checks that a frame of the network goes unchanged into one of the
// network's tunnels.
func (j *judge) intoTunnel(network uint32, out headers, frame, in []byte) error {
	tunnel, ok := j.tunnelOf(out.ip, out.to)
	if !ok {
		return fmt.Errorf("GRE from %s to %s without a tunnel", out.ip, out.to)
	}
	inner, k := out.within(frame)
	if inner == nil {
		return errors.New("GRE without a frame")
	}
	if n, ok := j.networkBy(tunnel.ID, k); !ok || n != network {
		return fmt.Errorf("frame of network %d in tunnel %d with a wrong key", network, tunnel.ID)
	}
	if in == nil {
		return nil
	}
	before, after := headersOf(in), headersOf(inner)
	if after.src != before.src || after.ip != before.ip || after.to != before.to {
		return errors.New("the frame in the tunnel differs from the input")
	}
	if to, known := j.byMAC[network][after.dst]; known && to.Tunnel != tunnel.ID {
		return fmt.Errorf("frame to %x in tunnel %d", after.dst, tunnel.ID)
	}
	return nil
}

func (j *judge) fromUplink(v verdict, in, out headers) error {
	inner, k := in.within(v.in)
	tunnel, ok := j.tunnelOf(in.to, in.ip)
	if inner == nil || !ok || len(v.frame) >= len(v.in) {
		if out.src != gatewayMAC {
			return fmt.Errorf("frame from outside with source MAC %x", out.src)
		}
		return j.routed(Endpoint{}, in, out, true)
	}
	n, ok := j.networkBy(tunnel.ID, k)
	if !ok {
		return fmt.Errorf("frame of no network from tunnel %d", tunnel.ID)
	}
	to, known := j.byMAC[n][out.dst]
	switch {
	case known && to.Remote():
		return fmt.Errorf("frame from a tunnel into a tunnel, to %x", out.dst)
	case !known && out.dst[0]&1 == 0 && !j.shared[n]:
		return fmt.Errorf("frame to the unknown MAC %x", out.dst)
	}
	from, told := j.byMAC[n][out.src]
	if told && from.Tunnel != tunnel.ID || !told && !j.networks[n].ICC {
		return fmt.Errorf("frame from %x out of tunnel %d", out.src, tunnel.ID)
	}
	if owner, known := j.byAddress[out.ip]; known && (!told || owner.ID != from.ID) || j.isGateway(out.ip) {
		return fmt.Errorf("source address %s out of tunnel %d", out.ip, tunnel.ID)
	}
	if told && known && !j.networks[n].ICC {
		return j.linked(from, to, out)
	}
	return nil
}

// fromHost checks that a packet goes to the local endpoint with its destination
// address, or is an answer to the host.
func (j *judge) fromHost(v verdict, in, out headers) error {
	if v.hook == loader.FromHost && (out.dst == in.src && out.src != in.src || isAdvertOfAnother(v.frame, in, out)) {
		return nil
	}
	to, known := j.byAddress[out.to]
	if known && (to.Remote() || to.MAC != out.dst) || !known && !j.shared[openNet] {
		return fmt.Errorf("packet to %s with MAC %x", out.to, out.dst)
	}
	return nil
}

// copyFault returns an error if the copy of a flooded frame at an endpoint
// breaks a rule.
func (j *judge) copyFault(device string, frame []byte) error {
	to, ok := j.sender(device)
	if !ok {
		return errors.New("copy at a device without an endpoint")
	}
	h := headersOf(frame)
	if !j.networks[to.Network].ICC {
		return fmt.Errorf("copy on network %d, which has no ICC", to.Network)
	}
	from, told := j.byMAC[to.Network][h.src]
	if !told && !j.shared[to.Network] {
		return fmt.Errorf("copy from the unknown MAC %x", h.src)
	}
	address := h.ip
	if h.ethertype == typeARP && len(frame) >= atIP+28 {
		address = netip.AddrFrom4([4]byte(frame[atIP+14:]))
	}
	if owner, known := j.byAddress[address]; known && (owner.Network != to.Network || told && owner.ID != from.ID) || j.isGateway(address) {
		return fmt.Errorf("copy with source address %s", address)
	}
	return nil
}
