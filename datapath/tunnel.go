package datapath

import (
	"fmt"
	"net/netip"

	"github.com/ebpnet/ebpnet/bpf"
)

// Tunnel is a GRE tunnel to another host.
type Tunnel struct {
	ID            uint32
	Local, Remote netip.Addr // of the same family

	Checksums    bool  // send checksums: RFC 2784
	Sequence     bool  // send sequence numbers: RFC 2890
	Fragmentable bool  // over IPv4: send without DF
	CopyDSCP     bool  // copy from the inner packet to the outer one
	TTL          uint8 // of the outer packet; hop limit over IPv6

	MaxFlood uint32 // flooded copies per second out of it; 0: the default
}

func (t Tunnel) ends() bpf.EbpnetTunnelEnds {
	return bpf.EbpnetTunnelEnds{Local: addressOf(t.Local), Remote: addressOf(t.Remote)}
}

// claim is the entry that reserves Ethernet in GRE at the local address for
// ebpnet. The programs drop such packets of unknown peers instead of passing
// them to the host.
func (t Tunnel) claim() bpf.EbpnetTunnelEnds {
	return bpf.EbpnetTunnelEnds{Local: addressOf(t.Local)}
}

func (t Tunnel) entry() bpf.EbpnetTunnel {
	e := bpf.EbpnetTunnel{Ends: t.ends(), Ttl: t.TTL}
	if t.Checksums {
		e.Flags |= bpf.EbpnetTunnelFlagTUNNEL_CSUM
	}
	if t.Sequence {
		e.Flags |= bpf.EbpnetTunnelFlagTUNNEL_SEQ
	}
	if t.Fragmentable {
		e.Flags |= bpf.EbpnetTunnelFlagTUNNEL_FRAGMENTABLE
	}
	if t.CopyDSCP {
		e.Flags |= bpf.EbpnetTunnelFlagTUNNEL_COPY_DSCP
	}
	return e
}

// PutTunnel writes a tunnel. It carries no network until PutTunnelNetwork.
func (t *Tables) PutTunnel(tunnel Tunnel) error {
	if err := t.SetTunnelLimit(tunnel.ID, tunnel.MaxFlood); err != nil {
		return err
	}
	if err := put(t.Maps.Tunnels, tunnel.ID, tunnel.entry()); err != nil {
		return err
	}
	if err := t.tunnelIDs().put(tunnel.claim(), 0); err != nil {
		return err
	}
	return t.tunnelIDs().put(tunnel.ends(), tunnel.ID)
}

// DeleteTunnel removes a tunnel that carries no network, and the stations
// learned behind it. The parameter shared says whether another tunnel has the
// same local address.
func (t *Tables) DeleteTunnel(tunnel Tunnel, shared bool) error {
	if err := t.tunnelIDs().remove(tunnel.ends()); err != nil {
		return err
	}
	if !shared {
		if err := t.tunnelIDs().remove(tunnel.claim()); err != nil {
			return err
		}
	}
	if err := put(t.Maps.Tunnels, tunnel.ID, bpf.EbpnetTunnel{}); err != nil {
		return err
	}
	if err := t.setLimits(ownerTunnels+tunnel.ID, Limits{}); err != nil {
		return err
	}
	return t.ForgetLearned(LearnedFilter{Tunnel: tunnel.ID})
}

// cutTunnels closes the tunnels that are not wanted or have other ends, and
// forgets the stations learned behind them.
func (t *Tables) cutTunnels(wanted map[uint32]bpf.EbpnetTunnel) error {
	for id := range t.Maps.Tunnels.MaxEntries() {
		var tunnel bpf.EbpnetTunnel
		if err := t.Maps.Tunnels.Lookup(id, &tunnel); err != nil {
			return fmt.Errorf("read tunnel %d: %w", id, err)
		}
		if tunnel == (bpf.EbpnetTunnel{}) || tunnel.Ends == wanted[id].Ends {
			continue
		}
		if err := put(t.Maps.Tunnels, id, bpf.EbpnetTunnel{}); err != nil {
			return err
		}
		if err := t.ForgetLearned(LearnedFilter{Tunnel: id}); err != nil {
			return err
		}
	}
	return nil
}
