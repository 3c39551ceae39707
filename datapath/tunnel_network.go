package datapath

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/ebpnet/ebpnet/bpf"
)

// TunnelNetwork is a network that a tunnel carries, by ids. Frames that the
// network floods go into the tunnel too.
type TunnelNetwork struct {
	Tunnel, Network uint32
	Key             *uint32 // GRE key; nil: none in packets
}

func (c TunnelNetwork) key() bpf.EbpnetTunnelNetworkKey {
	key := bpf.EbpnetTunnelNetworkKey{Tunnel: c.Tunnel}
	if c.Key != nil {
		key.Key, key.Keyed = networkOrder32(*c.Key), 1
	}
	return key
}

// member is the tunnel as a member of the network.
func (c TunnelNetwork) member() bpf.EbpnetStation {
	return bpf.EbpnetStation{Network: c.Network, Tunnel: c.Tunnel, Kind: bpf.EbpnetStationKindSTATION_REMOTE}
}

// PutTunnelNetwork lets a tunnel carry a network. Both must exist.
func (t *Tables) PutTunnelNetwork(c TunnelNetwork) error {
	_, err := t.findMember(c.member())
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		err = t.join(c.member())
	}
	if err != nil {
		return fmt.Errorf("flood network %d into tunnel %d: %w", c.Network, c.Tunnel, err)
	}
	return put(t.Maps.Carried, c.key(), c.Network)
}

// DeleteTunnelNetwork removes a network from a tunnel. Call it before the
// network or the tunnel is deleted; that deletion forgets the learned stations.
func (t *Tables) DeleteTunnelNetwork(c TunnelNetwork) error {
	if err := remove(t.Maps.Carried, c.key()); err != nil {
		return err
	}
	return t.leave(c.member())
}
