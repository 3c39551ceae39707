package datapath

import (
	"net/netip"
	"slices"
)

// judge checks the output of programs against the tables of its world.
type judge struct {
	w         *world
	byAddress map[netip.Addr]Endpoint
	byMAC     map[uint32]map[mac]Endpoint // by network
	host      map[netip.Addr]bool         // the host's addresses without gateways
	gateways  map[netip.Addr]uint32       // address to network
	networks  map[uint32]Network
	shared    map[uint32]bool // networks that learn stations
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
			// The anycast or broadcast address of the subnet is also the
			// host's.
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

// isHost reports whether an address is the host's.
func (j *judge) isHost(a netip.Addr) bool {
	return j.isGateway(a) || j.host[a] || a.IsLoopback()
}

func (j *judge) isGateway(a netip.Addr) bool {
	_, ok := j.gateways[a]
	return ok
}

// sender returns the local endpoint behind a device.
func (j *judge) sender(device string) (Endpoint, bool) {
	for _, e := range j.w.wanted.Endpoints {
		if !e.Remote() && e.Ifindex == int(j.w.ifindex[device]) {
			return e, true
		}
	}
	return Endpoint{}, false
}

// owns reports whether an endpoint may send from an address. Behind a trunk,
// these are all addresses without a static entry.
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

// isService reports whether a packet is from a published port.
func (j *judge) isService(h headers) bool {
	return j.services[netip.AddrPortFrom(h.ip, h.sport)][h.protocol] || h.protocol == protoICMP || h.protocol == protoICMPv6
}

func (j *judge) carries(tunnel, network uint32) bool {
	return slices.ContainsFunc(j.w.wanted.TunnelNetworks, func(c TunnelNetwork) bool { return c.Tunnel == tunnel && c.Network == network })
}

// tunnelOf returns the tunnel with these ends.
func (j *judge) tunnelOf(local, remote netip.Addr) (Tunnel, bool) {
	for _, t := range j.w.wanted.Tunnels {
		if t.Local == local && t.Remote == remote {
			return t, true
		}
	}
	return Tunnel{}, false
}

// networkBy returns the network that a tunnel carries with a key.
func (j *judge) networkBy(tunnel uint32, k *uint32) (uint32, bool) {
	for _, c := range j.w.wanted.TunnelNetworks {
		if c.Tunnel == tunnel && (c.Key == nil) == (k == nil) && (k == nil || *c.Key == *k) {
			return c.Network, true
		}
	}
	return 0, false
}
