package datapath

import (
	"net/netip"

	"github.com/ebpnet/ebpnet/bpf"
)

// Network is a layer-2 segment on this host.
type Network struct {
	ID                        uint32
	ICC, Masquerade, Internal bool
	Open                      bool           // everybody may send to its masqueraded ports
	Routed                    bool           // everybody may ping the addresses of its endpoints
	Key                       *uint32        // GRE key; nil: none in packets
	Gateways                  []netip.Prefix // at most one per family, each with the length of its subnet
	GatewayMAC                [6]byte
}

func (n Network) entry() bpf.EbpnetNetwork {
	var e bpf.EbpnetNetwork
	if n.ICC {
		e.Flags |= bpf.EbpnetNetworkFlagNETWORK_ICC
	}
	if n.Masquerade {
		e.Flags |= bpf.EbpnetNetworkFlagNETWORK_MASQUERADE
	}
	if n.Internal {
		e.Flags |= bpf.EbpnetNetworkFlagNETWORK_INTERNAL
	}
	if n.Open {
		e.Flags |= bpf.EbpnetNetworkFlagNETWORK_OPEN
	}
	if n.Routed {
		e.Flags |= bpf.EbpnetNetworkFlagNETWORK_ROUTED
	}
	if n.Key != nil {
		e.Flags |= bpf.EbpnetNetworkFlagNETWORK_KEYED
		e.Key = networkOrder32(*n.Key)
	}
	for _, g := range n.Gateways {
		if g.Addr().Is4() {
			e.Gateway4, e.Prefix4 = addressOf(g.Addr()), uint8(g.Bits())
		} else {
			e.Gateway6, e.Prefix6 = addressOf(g.Addr()), uint8(g.Bits())
		}
	}
	return e
}

type gateway struct {
	address bpf.EbpnetAddress
	station bpf.EbpnetStation
}

func (n Network) gateways() []gateway {
	out := make([]gateway, len(n.Gateways))
	for i, g := range n.Gateways {
		out[i] = gateway{addressOf(g.Addr()), bpf.EbpnetStation{
			Network: n.ID,
			Kind:    bpf.EbpnetStationKindSTATION_GATEWAY,
			Mac:     bpf.EbpnetMac{Byte: n.GatewayMAC},
		}}
	}
	return out
}

// PutNetwork writes a network. Its policy holds from the next packet.
func (t *Tables) PutNetwork(n Network) error {
	old, err := t.network(n.ID)
	if err != nil {
		return err
	}
	e := n.entry()
	e.Members, e.Shared = old.Members, old.Shared
	if err := put(t.Maps.Networks, n.ID, e); err != nil {
		return err
	}
	for _, g := range n.gateways() {
		if err := put(t.Maps.Fdb, fdbKey(n.ID, g.station.Mac), g.station); err != nil {
			return err
		}
		if err := put(t.Maps.Neighbors, g.address, g.station); err != nil {
			return err
		}
	}
	return nil
}

// DeleteNetwork removes a network and the stations learned on it. Delete its
// endpoints and its entries in tunnels first.
func (t *Tables) DeleteNetwork(n Network) error {
	for _, g := range n.gateways() {
		if err := remove(t.Maps.Fdb, fdbKey(n.ID, g.station.Mac)); err != nil {
			return err
		}
		if err := remove(t.Maps.Neighbors, g.address); err != nil {
			return err
		}
	}
	if err := put(t.Maps.Networks, n.ID, bpf.EbpnetNetwork{}); err != nil {
		return err
	}
	return t.ForgetLearned(LearnedFilter{Network: n.ID})
}
