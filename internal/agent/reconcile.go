package agent

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/ebpnet/ebpnet/datapath"
	"github.com/ebpnet/ebpnet/internal/host"
	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
	"github.com/ebpnet/ebpnet/loader"
)

// everything is what the store wants of this host.
type everything struct {
	host      spec.Host
	networks  map[string]spec.Network
	endpoints map[string]spec.Endpoint
	tunnels   map[string]spec.Tunnel
	links     []spec.Link
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
			return loader.ErrNotLoaded
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
		w.pending, err = tx.Pending()
		return err
	})
	return w, err
}

// Reconcile brings the devices and tables of this host to what the store
// wants, whatever they were. Nothing is changed that is right already. An
// endpoint whose namespace has gone is forgotten, with its links.
func (a *Agent) Reconcile() error {
	w, err := a.everything()
	if err != nil {
		return err
	}
	gateway, err := a.host.EnsureGateway(w.host.GatewayMAC)
	if err != nil {
		return err
	}
	if err := a.host.SetGatewayAddresses(gatewayPrefixes(w.networks)); err != nil {
		return err
	}
	uplinks, err := a.uplinks(w.host)
	if err != nil {
		return err
	}
	ifindexes, unfinished, err := a.reconcileVeths(&w, uplinks)
	if err != nil {
		return err
	}
	if err := a.tables.Replace(w.tablesFor(ifindexes, uplinks)); err != nil {
		return err
	}
	if err := a.attachAll(gateway, uplinks, ifindexes); err != nil {
		return err
	}
	for _, ifindex := range unfinished {
		if err := a.host.SetUp(ifindex); err != nil {
			return err
		}
	}
	return a.store.Update(func(tx *store.Tx) error {
		for _, c := range w.pending {
			if err := tx.ClearPending(c); err != nil {
				return err
			}
		}
		return nil
	})
}

func gatewayPrefixes(networks map[string]spec.Network) []netip.Prefix {
	var prefixes []netip.Prefix
	for _, n := range networks {
		for i, g := range n.Gateways {
			prefixes = append(prefixes, netip.PrefixFrom(g, n.Subnets[i].Bits()))
		}
	}
	return prefixes
}

// reconcileVeths sees to it that every local endpoint has its veth and nobody
// else has one. It gives their ifindexes by the endpoints' names, and those
// that are still to be set up.
func (a *Agent) reconcileVeths(w *everything, uplinks []host.Uplink) (
	ifindexes map[string]int, unfinished []int, err error,
) {
	stray, err := a.host.Veths()
	if err != nil {
		return nil, nil, err
	}
	ifindexes = map[string]int{}
	for name, e := range w.endpoints {
		if e.Remote() {
			continue
		}
		ifindex, up, err := a.host.FindVeth(e.ID)
		if err == nil && !up {
			err = errors.Join(a.host.RemoveVeth(e.ID), host.ErrNoDevice)
		}
		if isGone(err) {
			n := w.networks[e.Network]
			if ifindex, err = a.createVeth(e, n, mtu(n, uplinks)); err == nil {
				unfinished = append(unfinished, ifindex)
			}
		}
		if errors.Is(err, host.ErrNoNamespace) {
			a.log.Warn("endpoint removed: its namespace has gone", "endpoint", name, "namespace", e.Netns.Path)
			if err := a.forget(w, e); err != nil {
				return nil, nil, err
			}
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("endpoint %q: %w", name, err)
		}
		delete(stray, e.ID)
		ifindexes[name] = ifindex
	}
	for id := range stray {
		if err := a.host.RemoveVeth(id); err != nil {
			return nil, nil, err
		}
	}
	return ifindexes, unfinished, nil
}

func isGone(err error) bool { return errors.Is(err, host.ErrNoDevice) }

// createVeth makes an endpoint's veth. A namespace that is found by a process
// id must still be the one it was.
func (a *Agent) createVeth(e spec.Endpoint, n spec.Network, mtu int) (ifindex int, err error) {
	inode, err := host.Namespace(e.Netns.Path)
	if err != nil {
		return 0, err
	}
	if e.Netns.Ephemeral() && inode != e.Netns.Inode {
		return 0, fmt.Errorf("%w at %s: another one is", host.ErrNoNamespace, e.Netns.Path)
	}
	v := host.Veth{
		ID:       e.ID,
		Alias:    e.Name,
		Netns:    e.Netns,
		Ifname:   e.Ifname,
		MAC:      e.MAC,
		MTU:      mtu,
		Gateways: n.Gateways,
	}
	for _, address := range e.Addresses {
		for _, subnet := range n.Subnets {
			if subnet.Contains(address) {
				v.Addresses = append(v.Addresses, netip.PrefixFrom(address, subnet.Bits()))
			}
		}
	}
	return a.host.CreateVeth(v)
}

// forget takes an endpoint out of the store and out of w, with its links.
func (a *Agent) forget(w *everything, e spec.Endpoint) error {
	delete(w.endpoints, e.Name)
	kept := w.links[:0]
	for _, l := range w.links {
		if l.Client != e.Name && l.Server != e.Name {
			kept = append(kept, l)
		}
	}
	w.links = kept
	if err := a.store.Update(func(tx *store.Tx) error { return deleteEndpoint(tx, e.Name) }); err != nil {
		return err
	}
	return a.tables.FlushFlows(w.networks[e.Network].ID, e.Addresses)
}

// deleteEndpoint takes an endpoint out of the store with its links.
func deleteEndpoint(tx *store.Tx, name string) error {
	links, err := tx.LinksOf(name)
	if err != nil {
		return err
	}
	for _, l := range links {
		if err := tx.DeleteLink(l.Client, l.Server); err != nil {
			return err
		}
	}
	return tx.DeleteEndpoint(name)
}

// attachAll attaches the current programs to every device that is to have
// them, and detaches them from every other.
func (a *Agent) attachAll(gateway host.Gateway, uplinks []host.Uplink, endpoints map[string]int) error {
	wanted := map[loader.Hook]map[int]bool{
		loader.FromHost:     {gateway.Far: true},
		loader.ToGateway:    {gateway.Near: true},
		loader.FromEndpoint: {},
		loader.FromUplink:   {},
		loader.ToUplink:     {},
	}
	for _, u := range uplinks {
		wanted[loader.FromUplink][u.Ifindex] = true
		wanted[loader.ToUplink][u.Ifindex] = true
	}
	for _, ifindex := range endpoints {
		wanted[loader.FromEndpoint][ifindex] = true
	}
	for hook, devices := range wanted {
		linked, err := a.tables.Linked(hook)
		if err != nil {
			return err
		}
		for _, ifindex := range linked {
			if devices[ifindex] {
				continue
			}
			if err := a.tables.Detach(hook, ifindex); err != nil {
				return err
			}
		}
		for ifindex := range devices {
			if err := a.tables.Attach(hook, ifindex); err != nil {
				return err
			}
		}
	}
	return nil
}

// tablesFor puts everything into the tables' terms. ifindexes are those of
// the local endpoints, by name.
func (w everything) tablesFor(ifindexes map[string]int, uplinks []host.Uplink) datapath.Wanted {
	var d datapath.Wanted
	for _, n := range w.networks {
		d.Networks = append(d.Networks, networkEntry(n, w.host))
	}
	for name, e := range w.endpoints {
		d.Endpoints = append(d.Endpoints, endpointEntry(e, w.networks[e.Network], ifindexes[name], w.tunnels[e.Tunnel]))
	}
	for _, l := range w.links {
		d.Links = append(d.Links, linkEntries(l, w.endpoints[l.Client], w.endpoints[l.Server])...)
	}
	for _, t := range w.tunnels {
		d.Tunnels = append(d.Tunnels, tunnelEntry(t))
	}
	for _, u := range uplinks {
		d.Uplinks = append(d.Uplinks, datapath.Uplink{Ifindex: u.Ifindex, IPv4: u.IPv4, IPv6: u.IPv6, Default: u.Default})
	}
	return d
}

func networkEntry(n spec.Network, h spec.Host) datapath.Network {
	return datapath.Network{
		ID:         n.ID,
		ICC:        n.ICC,
		Masquerade: n.Masquerade,
		Internal:   n.Internal,
		Key:        n.Key,
		Gateways:   n.Gateways,
		GatewayMAC: h.GatewayMAC,
	}
}

func endpointEntry(e spec.Endpoint, n spec.Network, ifindex int, t spec.Tunnel) datapath.Endpoint {
	return datapath.Endpoint{
		ID:        e.ID,
		Network:   n.ID,
		MAC:       e.MAC,
		Addresses: e.Addresses,
		Ifindex:   ifindex,
		Tunnel:    t.ID,
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
	return datapath.Tunnel{ID: t.ID, Local: t.Local, Remote: t.Remote}
}
