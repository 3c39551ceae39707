package datapath

import (
	"net/netip"

	"github.com/ebpnet/ebpnet/bpf"
)

// Tunnel is GRE to another host.
type Tunnel struct {
	ID            uint32
	Local, Remote netip.Addr
}

func (t Tunnel) entry() bpf.EbpnetTunnel {
	return bpf.EbpnetTunnel{Local: addressOf(t.Local), Remote: addressOf(t.Remote)}
}

// claim marks the local address as one at which all Ethernet in GRE is
// ebpnet's, so that a stranger's is dropped and not left to the host.
func (t Tunnel) claim() bpf.EbpnetTunnel {
	return bpf.EbpnetTunnel{Local: addressOf(t.Local)}
}

// PutTunnel writes a tunnel.
func (t *Tables) PutTunnel(tunnel Tunnel) error {
	if err := put(t.Maps.Tunnels, tunnel.ID, tunnel.entry()); err != nil {
		return err
	}
	if err := put(t.Maps.TunnelIds, tunnel.claim(), uint32(0)); err != nil {
		return err
	}
	return put(t.Maps.TunnelIds, tunnel.entry(), tunnel.ID)
}

// DeleteTunnel takes a tunnel away; shared tells whether another tunnel has
// its local address.
func (t *Tables) DeleteTunnel(tunnel Tunnel, shared bool) error {
	if err := remove(t.Maps.TunnelIds, tunnel.entry()); err != nil {
		return err
	}
	if !shared {
		if err := remove(t.Maps.TunnelIds, tunnel.claim()); err != nil {
			return err
		}
	}
	return put(t.Maps.Tunnels, tunnel.ID, bpf.EbpnetTunnel{})
}
