package datapath

import (
	"net/netip"

	"github.com/ebpnet/ebpnet/bpf"
)

// Network is a layer-2 segment on this host.
type Network struct {
	ID                        uint32
	ICC, Masquerade, Internal bool
	Open                      bool    // anybody may send to a port that it is masqueraded by
	Key                       *uint32 // GRE key; nil: no tunnels
	Gateways                  []netip.Addr
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
	if n.Key != nil {
		e.Key = networkOrder32(*n.Key)
	}
	for _, a := range n.Gateways {
		if a.Is4() {
			e.Gateway4 = addressOf(a)
		} else {
			e.Gateway6 = addressOf(a)
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
	for i, a := range n.Gateways {
		out[i] = gateway{addressOf(a), bpf.EbpnetStation{
			Network: n.ID,
			Kind:    bpf.EbpnetStationKindSTATION_GATEWAY,
			Mac:     bpf.EbpnetMac{Byte: n.GatewayMAC},
		}}
	}
	return out
}

// PutNetwork writes a network. Its policy holds from the next packet on.
func (t *Tables) PutNetwork(n Network) error {
	var old bpf.EbpnetNetwork
	if err := t.Maps.Networks.Lookup(n.ID, &old); err != nil {
		return err
	}
	e := n.entry()
	e.Members = old.Members
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
	if n.Key == nil {
		return nil
	}
	return put(t.Maps.NetworkKeys, networkOrder32(*n.Key), n.ID)
}

// DeleteNetwork takes a network away. Its endpoints have gone before it.
func (t *Tables) DeleteNetwork(n Network) error {
	if n.Key != nil {
		if err := remove(t.Maps.NetworkKeys, networkOrder32(*n.Key)); err != nil {
			return err
		}
	}
	for _, g := range n.gateways() {
		if err := remove(t.Maps.Fdb, fdbKey(n.ID, g.station.Mac)); err != nil {
			return err
		}
		if err := remove(t.Maps.Neighbors, g.address); err != nil {
			return err
		}
	}
	return put(t.Maps.Networks, n.ID, bpf.EbpnetNetwork{})
}
