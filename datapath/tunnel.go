package datapath

import (
	"fmt"
	"net/netip"

	"github.com/ebpnet/ebpnet/bpf"
)

// Tunnel is GRE to another host.
type Tunnel struct {
	ID            uint32
	Local, Remote netip.Addr // of one family

	Checksums    bool  // are sent: RFC 2784
	Sequence     bool  // numbers are sent: RFC 2890
	Fragmentable bool  // over IPv4 it is sent without DF
	CopyDSCP     bool  // from the inner packet to the outer
	TTL          uint8 // of the outer packet; hop limit of IPv6

	MaxFlood uint32 // copies a second that are flooded out of it; 0: the default
}

func (t Tunnel) ends() bpf.EbpnetTunnelEnds {
	return bpf.EbpnetTunnelEnds{Local: addressOf(t.Local), Remote: addressOf(t.Remote)}
}

// claim marks the local address as one at which all Ethernet in GRE is
// ebpnet's, so that a stranger's is dropped and not left to the host.
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

// PutTunnel writes a tunnel. It carries nothing until PutTunnelNetwork.
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

// DeleteTunnel takes a tunnel away, which carries nothing any more, and forgets
// the stations that were learned there; shared tells whether another tunnel has
// its local address.
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

// cutTunnels shuts the tunnels that are not wanted between the same ends, and
// forgets what was learned there.
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
