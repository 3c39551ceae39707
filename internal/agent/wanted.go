package agent

import (
	"errors"
	"maps"
	"net/netip"
	"slices"

	"github.com/ebpnet/ebpnet/datapath"
	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
	"github.com/ebpnet/ebpnet/loader"
)

// errUnknownHost says that a loaded host is changed by another store than its
// own, or that this has been lost.
var errUnknownHost = errors.New("the store knows nothing of this host: is --state right? 'ebpnet load' begins anew")

// everything is what the store wants of this host.
type everything struct {
	host      spec.Host
	networks  map[string]spec.Network
	endpoints map[string]spec.Endpoint
	tunnels   map[string]spec.Tunnel
	links     []spec.Link
	ports     []spec.Port
	pending   []store.Change
}

func (a *Agent) everything() (w everything, err error) {
	w.networks = map[string]spec.Network{}
	w.endpoints = map[string]spec.Endpoint{}
	w.tunnels = map[string]spec.Tunnel{}
	err = a.store.View(func(tx *store.Tx) (err error) {
		var known bool
		if w.host, known, err = tx.Host(); err != nil {
			return err
		}
		if !known {
			return errUnknownHost
		}
		networks, err := tx.Networks()
		if err != nil {
			return err
		}
		for _, n := range networks {
			w.networks[n.Name] = n
		}
		endpoints, err := tx.Endpoints()
		if err != nil {
			return err
		}
		for _, e := range endpoints {
			w.endpoints[e.Name] = e
		}
		tunnels, err := tx.Tunnels()
		if err != nil {
			return err
		}
		for _, t := range tunnels {
			w.tunnels[t.Name] = t
		}
		if w.links, err = tx.Links(); err != nil {
			return err
		}
		if w.ports, err = tx.Ports(); err != nil {
			return err
		}
		w.pending, err = tx.Pending()
		return err
	})
	return w, err
}

// drop leaves an endpoint out, with its links and ports.
func (w *everything) drop(name string) {
	delete(w.endpoints, name)
	w.links = slices.DeleteFunc(w.links, func(l spec.Link) bool { return l.Client == name || l.Server == name })
	w.ports = slices.DeleteFunc(w.ports, func(p spec.Port) bool { return p.Endpoint == name })
}

func gatewayPrefixes(networks map[string]spec.Network) []netip.Prefix {
	var prefixes []netip.Prefix
	for _, n := range networks {
		prefixes = append(prefixes, gatewaysOf(n)...)
	}
	return prefixes
}

// gatewaysOf gives a network's gateways with their subnets' lengths.
func gatewaysOf(n spec.Network) []netip.Prefix {
	prefixes := make([]netip.Prefix, len(n.Gateways))
	for i, g := range n.Gateways {
		prefixes[i] = netip.PrefixFrom(g, n.Subnets[i].Bits())
	}
	return prefixes
}

// tablesFor puts everything into the tables' terms. ifindexes are those of
// the local endpoints, by name, and napi are those of them that take frames from
// XDP.
func (w everything) tablesFor(ifindexes map[string]int, napi map[string]bool, uplinks []plannedUplink) datapath.Wanted {
	var d datapath.Wanted
	for _, n := range w.networks {
		d.Networks = append(d.Networks, networkEntry(n, w.host))
	}
	for name, e := range w.endpoints {
		entry := endpointEntry(e, w.networks[e.Network], ifindexes[name], w.tunnels[e.Tunnel])
		entry.NAPI = napi[name]
		d.Endpoints = append(d.Endpoints, entry)
	}
	for _, l := range w.links {
		d.Links = append(d.Links, linkEntries(l, w.endpoints[l.Client], w.endpoints[l.Server])...)
	}
	for _, p := range w.ports {
		e := w.endpoints[p.Endpoint]
		d.Ports = append(d.Ports, portEntries(p, e, w.networks[e.Network])...)
	}
	for _, t := range w.tunnels {
		d.Tunnels = append(d.Tunnels, tunnelEntry(t))
	}
	tunnels := slices.Collect(maps.Values(w.tunnels))
	for _, n := range w.networks {
		d.TunnelNetworks = append(d.TunnelNetworks, tunnelNetworksOf(tunnels, n)...)
	}
	d.Uplinks = uplinkEntries(uplinks)
	return d
}

func uplinkEntries(uplinks []plannedUplink) []datapath.Uplink {
	entries := make([]datapath.Uplink, len(uplinks))
	for i, u := range uplinks {
		entries[i] = datapath.Uplink{
			Ifindex: u.Ifindex, MTU: u.MTU, MAC: u.MAC, IPv4: u.IPv4, IPv6: u.IPv6,
			Native:  u.xdp == loader.XDPNative,
			Default: u.Default,
		}
	}
	return entries
}

func networkEntry(n spec.Network, h spec.Host) datapath.Network {
	return datapath.Network{
		ID:         n.ID,
		ICC:        n.ICC,
		Masquerade: n.Masquerade,
		Internal:   n.Internal,
		Open:       n.Filtering == spec.EndpointIndependent,
		Routed:     n.Routed,
		Key:        n.Key,
		Gateways:   gatewaysOf(n),
		GatewayMAC: h.GatewayMAC,
	}
}

func endpointEntry(e spec.Endpoint, n spec.Network, ifindex int, t spec.Tunnel) datapath.Endpoint {
	return datapath.Endpoint{
		ID:         e.ID,
		Network:    n.ID,
		MAC:        e.MAC,
		Addresses:  e.Addresses,
		Ifindex:    ifindex,
		Tunnel:     t.ID,
		Trunk:      e.Trunk,
		DHCPServer: slices.Contains(e.Allow, spec.AllowDHCPServer),
		Router:     slices.Contains(e.Allow, spec.AllowRouter),
		Limits:     datapath.Limits(e.Limits),
	}
}

func linkEntries(l spec.Link, client, server spec.Endpoint) []datapath.Link {
	entries := make([]datapath.Link, len(l.Ports))
	for i, p := range l.Ports {
		entries[i] = datapath.Link{
			Client:   client.ID,
			Server:   server.ID,
			Protocol: uint8(p.Protocol),
			First:    p.First,
			Last:     p.Last,
		}
	}
	return entries
}

func tunnelEntry(t spec.Tunnel) datapath.Tunnel {
	return datapath.Tunnel{
		ID:           t.ID,
		Local:        t.Local,
		Remote:       t.Remote,
		Checksums:    t.Checksums,
		Sequence:     t.Sequence,
		Fragmentable: t.Fragmentable,
		CopyDSCP:     t.CopyDSCP,
		TTL:          t.HopLimit(),
		MaxFlood:     t.MaxFlood,
	}
}

// tunnelNetworksOf gives the network as each of the tunnels carries it that does.
func tunnelNetworksOf(tunnels []spec.Tunnel, n spec.Network) []datapath.TunnelNetwork {
	var entries []datapath.TunnelNetwork
	for _, t := range tunnels {
		if t.Carries(n) {
			entries = append(entries, datapath.TunnelNetwork{Tunnel: t.ID, Network: n.ID, Key: n.Key})
		}
	}
	return entries
}
