// Package datapath is the API of the loaded datapath: typed tables over the
// maps of the programs, one file per noun, and their counters. It does not know
// names, the store, or devices other than by their index. The caller decides
// what a table contains.
//
// The tables identify nouns by ids. The id of a network or a tunnel is its
// index, from 1. Endpoints share one id space, from 1 to MaxEndpointID: ids up to
// MaxLocalID are local endpoints.
package datapath

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/ebpnet/ebpnet/bpf"
	"github.com/ebpnet/ebpnet/loader"
)

// Tables are the maps of a loaded datapath. Only one process at a time may
// change them; the store's lock ensures that. Everybody may read them. To read
// the counters of networks, NetworkTraffic takes a lock.
type Tables struct {
	*loader.Objects

	dir string // of the pins; its lock protects the counters of networks
}

// Open opens the datapath pinned under dir. It returns loader.ErrNotLoaded if
// there is none.
func Open(dir string) (*Tables, error) {
	objects, err := loader.Open(dir)
	if err != nil {
		return nil, err
	}
	return &Tables{objects, dir}, nil
}

// Load loads the datapath under dir and replaces one that is already there: see
// loader.Load.
func Load(dir string, c loader.Config) (*Tables, error) {
	objects, err := loader.Load(dir, c)
	if err != nil {
		return nil, err
	}
	return &Tables{objects, dir}, nil
}

// Wanted is the complete desired content of the tables.
type Wanted struct {
	Networks       []Network
	Endpoints      []Endpoint
	Links          []Link
	Tunnels        []Tunnel
	TunnelNetworks []TunnelNetwork
	Uplinks        []Uplink
	Ports          []Port

	Broadcasts []netip.Addr // delivered to the host, but not addresses of the host
}

// contents are the entries of the tables for a Wanted.
type contents struct {
	networks       map[uint32]bpf.EbpnetNetwork
	devices        map[uint32]bpf.EbpnetDevice
	locals         map[uint32]bool // ids of endpoints that have a device
	fdb            map[bpf.EbpnetFdbKey]bpf.EbpnetStation
	neighbors      map[bpf.EbpnetAddress]bpf.EbpnetStation
	members        map[bpf.EbpnetMemberKey]bpf.EbpnetStation
	links          map[bpf.EbpnetLinkKey]uint32
	tunnels        map[uint32]bpf.EbpnetTunnel
	tunnelIDs      map[bpf.EbpnetTunnelEnds]uint32
	tunnelNetworks map[bpf.EbpnetTunnelNetworkKey]uint32
	uplinks        map[uint32]bpf.EbpnetUplink
	broadcasts     map[bpf.EbpnetAddress]uint32
	ports          published
	places         map[place]bool // places where stations can be learned
	limits         limitEntries
}

func contentsOf(w Wanted) contents {
	c := contents{
		networks:       map[uint32]bpf.EbpnetNetwork{},
		devices:        map[uint32]bpf.EbpnetDevice{},
		locals:         map[uint32]bool{},
		fdb:            map[bpf.EbpnetFdbKey]bpf.EbpnetStation{},
		neighbors:      map[bpf.EbpnetAddress]bpf.EbpnetStation{},
		members:        map[bpf.EbpnetMemberKey]bpf.EbpnetStation{},
		links:          map[bpf.EbpnetLinkKey]uint32{},
		tunnels:        map[uint32]bpf.EbpnetTunnel{},
		tunnelIDs:      map[bpf.EbpnetTunnelEnds]uint32{},
		tunnelNetworks: map[bpf.EbpnetTunnelNetworkKey]uint32{},
		uplinks:        uplinkEntries(w.Uplinks),
		broadcasts:     broadcastEntries(w.Broadcasts),
		ports:          publish(w.Ports),
		places:         map[place]bool{},
	}
	c.limits = maps.Clone(c.ports.limits)
	for _, l := range w.Links {
		for _, key := range l.keys() {
			c.links[key] = 1
		}
	}
	for _, n := range w.Networks {
		c.networks[n.ID] = n.entry()
		for _, g := range n.gateways() {
			c.fdb[fdbKey(n.ID, g.station.Mac)] = g.station
			c.neighbors[g.address] = g.station
		}
	}
	for _, e := range w.Endpoints {
		c.fdb[fdbKey(e.Network, e.mac())] = e.station()
		for _, a := range e.Addresses {
			c.neighbors[addressOf(a)] = e.station()
		}
		if !e.Remote() {
			c.devices[uint32(e.Ifindex)] = e.device()
			c.locals[e.ID] = true
			c.join(e.station())
			c.limits.add(e.ID, e.limits())
		}
	}
	for _, tunnel := range w.Tunnels {
		c.tunnels[tunnel.ID] = tunnel.entry()
		c.limits.add(ownerTunnels+tunnel.ID, tunnel.limits())
		c.tunnelIDs[tunnel.ends()] = tunnel.ID
		c.tunnelIDs[tunnel.claim()] = 0
	}
	for _, network := range w.TunnelNetworks {
		c.tunnelNetworks[network.key()] = network.Network
		c.join(network.member())
	}
	return c
}

// join adds a station to the members of its network.
func (c contents) join(s bpf.EbpnetStation) {
	network := c.networks[s.Network]
	c.members[addMember(&network, s)] = s
	c.networks[s.Network] = network
	if isShared(s) {
		c.places[placeOf(s)] = true
	}
}

// Replace makes the tables hold the desired content and nothing else. It
// writes restrictions before permissions: at no moment does it allow a packet
// that is allowed neither before nor after. It keeps flows, except those whose
// endpoint or published port is gone. It keeps learned stations, except those
// behind an endpoint or a tunnel that is gone.
func (t *Tables) Replace(w Wanted) error {
	c := contentsOf(w)
	members, err := t.keepIndexes(c.members)
	if err != nil {
		return err
	}
	gone, err := t.devices()
	if err != nil {
		return err
	}
	gone = slices.DeleteFunc(gone, func(d bpf.EbpnetDevice) bool { return c.locals[d.Endpoint] })
	missing, err := t.withdraw(c.ports)
	missingIDs, err2 := t.tunnelIDs().removeOthers(c.tunnelIDs)
	missingTunnelNetworks, err3 := removeOthers(t.Maps.Carried, c.tunnelNetworks)
	return errors.Join(
		err, err2, err3,
		t.cutTunnels(c.tunnels),
		replace(t.Maps.Limits, c.limits),
		replace(t.Maps.Links, c.links),
		t.linksChanged(),
		replaceArray(t.Maps.Networks, c.networks),
		replace(t.Maps.Members, members),
		t.retire(gone, func() error { return replace(t.Maps.Devices, c.devices) }),
		replace(t.Maps.Fdb, c.fdb),
		replace(t.Maps.Neighbors, c.neighbors),
		t.forgetElsewhere(c.places),
		replaceArray(t.Maps.Tunnels, c.tunnels),
		t.tunnelIDs().putAll(missingIDs),
		putAll(t.Maps.Carried, missingTunnelNetworks),
		t.uplinks().replace(c.uplinks),
		replace(t.Maps.Broadcasts, c.broadcasts),
		t.putPublished(missing),
		replaceArray(t.Maps.PublishedPorts, c.ports.words),
		t.endUnbackedFlows(),
	)
}

// replace makes a hash hold exactly the wanted entries. It writes only
// differences.
func replace[K, V comparable](m *ebpf.Map, wanted map[K]V) error {
	var gone []K
	missing := maps.Clone(wanted)
	err := eachBatch(m, func(keys []K, values []V) {
		for i, key := range keys {
			if want, ok := wanted[key]; !ok {
				gone = append(gone, key)
			} else if want == values[i] {
				delete(missing, key)
			}
		}
	})
	if err != nil {
		return fmt.Errorf("read %v: %w", m, err)
	}
	if err := removeAll(m, gone); err != nil {
		return err
	}
	return putAll(m, missing)
}

// replaceArray does the same for an array. Unused entries are zero.
func replaceArray[V comparable](m *ebpf.Map, wanted map[uint32]V) error {
	for index := range m.MaxEntries() {
		var value V
		if err := m.Lookup(index, &value); err != nil {
			return fmt.Errorf("read %v: %w", m, err)
		}
		if value == wanted[index] {
			continue
		}
		if err := put(m, index, wanted[index]); err != nil {
			return err
		}
	}
	return nil
}

// ErrFull means that a table has no free entry.
var ErrFull = errors.New("table full")

func put(m *ebpf.Map, key, value any) error {
	err := m.Put(key, value)
	if errors.Is(err, errTooMany) {
		err = fmt.Errorf("%w at %d entries", ErrFull, m.MaxEntries())
	}
	if err != nil {
		return fmt.Errorf("write %v: %w", m, err)
	}
	return nil
}

// remove deletes a key. It is no error if the key does not exist.
func remove(m *ebpf.Map, key any) error {
	if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("delete from %v: %w", m, err)
	}
	return nil
}
