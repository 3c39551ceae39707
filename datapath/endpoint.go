package datapath

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/ebpnet/ebpnet/bpf"
)

// Endpoint is an interface on a network: local, behind the host-side veth
// Ifindex, or remote, behind a tunnel.
type Endpoint struct {
	ID        uint32
	Network   uint32
	MAC       [6]byte
	Addresses []netip.Addr // at most one a family
	Ifindex   int          // local
	Tunnel    uint32       // remote: the tunnel's id, else 0
}

// Remote tells whether e is behind a tunnel.
func (e Endpoint) Remote() bool { return e.Tunnel != 0 }

func (e Endpoint) mac() bpf.EbpnetMac { return bpf.EbpnetMac{Byte: e.MAC} }

func (e Endpoint) station() bpf.EbpnetStation {
	s := bpf.EbpnetStation{
		Network:  e.Network,
		Endpoint: e.ID,
		Kind:     bpf.EbpnetStationKindSTATION_LOCAL,
		Mac:      e.mac(),
	}
	if e.Remote() {
		s.Kind = bpf.EbpnetStationKindSTATION_REMOTE
		s.Tunnel = e.Tunnel
	} else {
		s.Ifindex = uint32(e.Ifindex)
	}
	return s
}

func (e Endpoint) device() bpf.EbpnetDevice {
	d := bpf.EbpnetDevice{Network: e.Network, Endpoint: e.ID, Mac: e.mac()}
	for _, a := range e.Addresses {
		if a.Is4() {
			d.Ipv4 = addressOf(a)
		} else {
			d.Ipv6 = addressOf(a)
		}
	}
	return d
}

func fdbKey(network uint32, mac bpf.EbpnetMac) bpf.EbpnetFdbKey {
	return bpf.EbpnetFdbKey{Network: network, Mac: mac}
}

// PutEndpoint writes an endpoint. A local one may send once this returns.
func (t *Tables) PutEndpoint(e Endpoint) error {
	if err := put(t.Maps.Fdb, fdbKey(e.Network, e.mac()), e.station()); err != nil {
		return err
	}
	for _, a := range e.Addresses {
		if err := put(t.Maps.Neighbors, addressOf(a), e.station()); err != nil {
			return err
		}
	}
	if e.Remote() {
		return nil
	}
	var old bpf.EbpnetDevice
	err := t.Maps.Devices.Lookup(uint32(e.Ifindex), &old)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		err = t.join(e.station())
	}
	if err != nil {
		return err
	}
	return put(t.Maps.Devices, uint32(e.Ifindex), e.device())
}

// DeleteEndpoint takes an endpoint away with its flows. Its links have gone
// before it.
func (t *Tables) DeleteEndpoint(e Endpoint) error {
	if !e.Remote() {
		if err := remove(t.Maps.Devices, uint32(e.Ifindex)); err != nil {
			return err
		}
		if err := t.leave(e); err != nil {
			return err
		}
	}
	if err := remove(t.Maps.Fdb, fdbKey(e.Network, e.mac())); err != nil {
		return err
	}
	for _, a := range e.Addresses {
		if err := remove(t.Maps.Neighbors, addressOf(a)); err != nil {
			return err
		}
	}
	return t.EndUnbackedFlows()
}

// join adds a station to those that its network floods to, of which it is none
// yet.
func (t *Tables) join(s bpf.EbpnetStation) error {
	var network bpf.EbpnetNetwork
	if err := t.Maps.Networks.Lookup(s.Network, &network); err != nil {
		return err
	}
	key := bpf.EbpnetMemberKey{Network: s.Network, Index: network.Members}
	if err := put(t.Maps.Members, key, s); err != nil {
		return err
	}
	network.Members++
	return put(t.Maps.Networks, s.Network, network)
}

// leave takes an endpoint out of those that its network floods to; the last
// member moves into its place.
func (t *Tables) leave(e Endpoint) error {
	var network bpf.EbpnetNetwork
	if err := t.Maps.Networks.Lookup(e.Network, &network); err != nil {
		return err
	}
	index, err := t.memberIndex(e.Network, network.Members, e.ID)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	last := bpf.EbpnetMemberKey{Network: e.Network, Index: network.Members - 1}
	var moved bpf.EbpnetStation
	if err := t.Maps.Members.Lookup(last, &moved); err != nil {
		return fmt.Errorf("read the members of network %d: %w", e.Network, err)
	}
	if err := put(t.Maps.Members, bpf.EbpnetMemberKey{Network: e.Network, Index: index}, moved); err != nil {
		return err
	}
	network.Members--
	if err := put(t.Maps.Networks, e.Network, network); err != nil {
		return err
	}
	return remove(t.Maps.Members, last)
}

// memberIndex finds an endpoint among the members of its network, from the
// youngest on; ebpf.ErrKeyNotExist if it is none.
func (t *Tables) memberIndex(network, count, endpoint uint32) (uint32, error) {
	for i := count; i > 0; i-- {
		var s bpf.EbpnetStation
		err := t.Maps.Members.Lookup(bpf.EbpnetMemberKey{Network: network, Index: i - 1}, &s)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("read the members of network %d: %w", network, err)
		}
		if s.Endpoint == endpoint {
			return i - 1, nil
		}
	}
	return 0, ebpf.ErrKeyNotExist
}

// LocalEndpoints lists the ids of the endpoints that a device belongs to.
func (t *Tables) LocalEndpoints() ([]uint32, error) {
	var ids []uint32
	err := eachBatch(t.Maps.Devices, func(_ []uint32, devices []bpf.EbpnetDevice) {
		for _, d := range devices {
			ids = append(ids, d.Endpoint)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list local endpoints: %w", err)
	}
	return ids, nil
}
