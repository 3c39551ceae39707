// Package datapath is the loaded datapath in the words of the domain: typed
// tables over the maps of the programs, one file a noun, and what they count.
// It knows nothing of names, of the store or of devices beyond their numbers:
// whoever writes a table says what should be in it.
//
// Ids are what the tables know nouns by. A network's and a tunnel's id is
// their index, from 1; endpoints have one numbering, in which only local
// endpoints stand below MaxLocalEndpoints.
package datapath

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/ebpnet/ebpnet/bpf"
	"github.com/ebpnet/ebpnet/loader"
)

// Tables are the maps of a loaded datapath. Only one process at a time may
// change them, which the store's lock sees to; reading is free to all.
type Tables struct {
	*loader.Objects
}

// Open opens the datapath pinned under dir; loader.ErrNotLoaded if there is
// none.
func Open(dir string) (*Tables, error) {
	objects, err := loader.Open(dir)
	if err != nil {
		return nil, err
	}
	return &Tables{objects}, nil
}

// Load loads the datapath under dir, in place of one that is there: see
// loader.Load.
func Load(dir string, c loader.Config) (*Tables, error) {
	objects, err := loader.Load(dir, c)
	if err != nil {
		return nil, err
	}
	return &Tables{objects}, nil
}

// Wanted is everything that the tables should hold.
type Wanted struct {
	Networks  []Network
	Endpoints []Endpoint
	Links     []Link
	Tunnels   []Tunnel
	Uplinks   []Uplink
	Ports     []Port
}

// Replace makes the tables hold what is wanted and nothing else. What
// forbids comes before what allows: at no moment may anything pass that is
// allowed neither before nor after. Flows stay, but for those whose endpoint or
// published port has gone.
func (t *Tables) Replace(w Wanted) error {
	var (
		networks  = map[uint32]bpf.EbpnetNetwork{}
		keys      = map[uint32]uint32{}
		devices   = map[uint32]bpf.EbpnetDevice{}
		fdb       = map[bpf.EbpnetFdbKey]bpf.EbpnetStation{}
		neighbors = map[bpf.EbpnetAddress]bpf.EbpnetStation{}
		members   = map[bpf.EbpnetMemberKey]bpf.EbpnetStation{}
		links     = map[bpf.EbpnetLinkKey]uint32{}
		tunnels   = map[uint32]bpf.EbpnetTunnel{}
		tunnelIDs = map[bpf.EbpnetTunnel]uint32{}
		uplinks   = map[uint32]bpf.EbpnetUplink{}
		ports     = publish(w.Ports)
	)
	for _, l := range w.Links {
		for _, key := range l.keys() {
			links[key] = 1
		}
	}
	for _, n := range w.Networks {
		networks[n.ID] = n.entry()
		if n.Key != nil {
			keys[networkOrder32(*n.Key)] = n.ID
		}
		for _, g := range n.gateways() {
			fdb[fdbKey(n.ID, g.station.Mac)] = g.station
			neighbors[g.address] = g.station
		}
	}
	for _, e := range w.Endpoints {
		fdb[fdbKey(e.Network, e.mac())] = e.station()
		for _, a := range e.Addresses {
			neighbors[addressOf(a)] = e.station()
		}
		if e.Remote() {
			continue
		}
		devices[uint32(e.Ifindex)] = e.device()
		network := networks[e.Network]
		members[bpf.EbpnetMemberKey{Network: e.Network, Index: network.Members}] = e.station()
		network.Members++
		networks[e.Network] = network
	}
	for _, tunnel := range w.Tunnels {
		tunnels[tunnel.ID] = tunnel.entry()
		tunnelIDs[tunnel.entry()] = tunnel.ID
		tunnelIDs[tunnel.claim()] = 0
	}
	for _, u := range w.Uplinks {
		uplinks[uint32(u.Ifindex)] = u.entry()
		if u.Default {
			uplinks[defaultUplink] = u.entry()
		}
	}

	missing, err := t.withdraw(ports)
	return errors.Join(
		err,
		replace(t.Maps.Links, links),
		replaceArray(t.Maps.Networks, networks),
		replace(t.Maps.Members, members),
		replace(t.Maps.Devices, devices),
		replace(t.Maps.Fdb, fdb),
		replace(t.Maps.Neighbors, neighbors),
		replace(t.Maps.NetworkKeys, keys),
		replaceArray(t.Maps.Tunnels, tunnels),
		replace(t.Maps.TunnelIds, tunnelIDs),
		replace(t.Maps.Uplinks, uplinks),
		t.putPublished(missing),
		replaceArray(t.Maps.PublishedPorts, ports.words),
		t.EndUnbackedFlows(),
	)
}

// replace makes a hash hold what is wanted and nothing else, touching only
// what differs.
func replace[K, V comparable](m *ebpf.Map, wanted map[K]V) error {
	var (
		key   K
		value V
		gone  []K
		same  = make(map[K]bool, len(wanted))
	)
	entries := m.Iterate()
	for entries.Next(&key, &value) {
		if want, ok := wanted[key]; !ok {
			gone = append(gone, key)
		} else if want == value {
			same[key] = true
		}
	}
	if err := entries.Err(); err != nil {
		return fmt.Errorf("read %v: %w", m, err)
	}
	for _, key := range gone {
		if err := remove(m, key); err != nil {
			return err
		}
	}
	for key, value := range wanted {
		if same[key] {
			continue
		}
		if err := put(m, key, value); err != nil {
			return err
		}
	}
	return nil
}

// replaceArray does the same for an array, whose empty places are zero.
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

// ErrFull says that a table has no room left.
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

// remove deletes a key; it need not be there.
func remove(m *ebpf.Map, key any) error {
	if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("delete from %v: %w", m, err)
	}
	return nil
}
