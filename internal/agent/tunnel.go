package agent

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
)

// maxTunnels leaves out id 0, which is no tunnel (MAX_TUNNELS in
// bpf/types.h).
const maxTunnels = 1023

// AddTunnel makes a tunnel. Without a local address it is the host's tunnel
// address, or its first uplink's.
func (a *Agent) AddTunnel(t spec.Tunnel) (spec.Tunnel, error) {
	if err := a.completeTunnel(&t); err != nil {
		return t, fmt.Errorf("tunnel %q: %w", t.Name, err)
	}
	err := a.do(change{
		noun: store.Change{Kind: store.KindTunnel, Key: t.Name},
		write: func(tx *store.Tx) error {
			others, err := tx.Tunnels()
			if err != nil {
				return err
			}
			for _, other := range others {
				if other.Name == t.Name {
					return fmt.Errorf("tunnel %q %w: choose another name, or remove it first", t.Name, ErrExists)
				}
				if other.Remote == t.Remote && other.Local == t.Local {
					return fmt.Errorf("tunnel %q %w: tunnel %q joins %s and %s already", t.Name, ErrUnfit, other.Name, t.Local, t.Remote)
				}
			}
			if t.ID, err = tx.NextID(store.KindTunnel, 1, maxTunnels); err != nil {
				return err
			}
			return tx.PutTunnel(t)
		},
		apply: func() error {
			if err := a.tables.ResetTunnelTraffic(t.ID); err != nil {
				return err
			}
			return a.tables.PutTunnel(tunnelEntry(t))
		},
		revert: func(tx *store.Tx) error { return tx.DeleteTunnel(t.Name) },
	})
	return t, err
}

func (a *Agent) completeTunnel(t *spec.Tunnel) error {
	if !t.Remote.Is4() {
		return fmt.Errorf("%w remote %s: tunnels run over IPv4; give the other host's IPv4 address", spec.ErrInvalid, t.Remote)
	}
	if !t.Remote.IsGlobalUnicast() || t.Remote == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return fmt.Errorf("%w remote %s: no other host has it", spec.ErrInvalid, t.Remote)
	}
	own, err := a.isOwn(t.Remote)
	if err != nil {
		return err
	}
	if own {
		return fmt.Errorf("%w remote %s: it is this host's own address; give the other host's", spec.ErrInvalid, t.Remote)
	}
	networks, err := a.networks()
	if err != nil {
		return err
	}
	for _, n := range networks {
		for _, subnet := range n.Subnets {
			if subnet.Contains(t.Remote) {
				return fmt.Errorf("%w remote %s: it lies in network %q; give the other host's own address", spec.ErrInvalid, t.Remote, n.Name)
			}
		}
	}
	if !t.Local.IsValid() {
		if t.Local, err = a.tunnelAddress(); err != nil {
			return err
		}
	}
	return a.checkTunnelEnd("local", t.Local)
}

// checkTunnelEnd checks that tunnels can end at an address of this host.
func (a *Agent) checkTunnelEnd(what string, address netip.Addr) error {
	if !address.Is4() {
		return fmt.Errorf("%w %s %s: tunnels run over IPv4; give an IPv4 address of this host", spec.ErrInvalid, what, address)
	}
	own, err := a.isOwn(address)
	if err != nil {
		return err
	}
	if !own || address.IsLoopback() {
		return fmt.Errorf("%w %s %s: it is no address of this host that others can reach", spec.ErrInvalid, what, address)
	}
	return nil
}

// isOwn tells whether the host has the address on a device other than its own
// veth.
func (a *Agent) isOwn(address netip.Addr) (bool, error) {
	own, err := a.host.Addresses()
	return slices.ContainsFunc(own, func(p netip.Prefix) bool { return p.Addr() == address }), err
}

func (a *Agent) networks() (networks []spec.Network, err error) {
	err = a.store.View(func(tx *store.Tx) (err error) {
		networks, err = tx.Networks()
		return err
	})
	return networks, err
}

// tunnelAddress is where this host's tunnels end unless they say otherwise.
func (a *Agent) tunnelAddress() (netip.Addr, error) {
	var wanted spec.Host
	err := a.store.View(func(tx *store.Tx) (err error) {
		wanted, _, err = tx.Host()
		return err
	})
	if err != nil || wanted.TunnelAddress.IsValid() {
		return wanted.TunnelAddress, err
	}
	uplinks, err := a.uplinks(wanted)
	if err != nil {
		return netip.Addr{}, err
	}
	for _, u := range uplinks {
		if u.IPv4.IsValid() {
			return u.IPv4, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("local address %w: no uplink has an IPv4 address; name one with --local", ErrUnfit)
}

// RemoveTunnel removes a tunnel that no endpoint is behind.
func (a *Agent) RemoveTunnel(name string) error {
	var (
		t      spec.Tunnel
		shared bool
	)
	return a.do(change{
		noun: store.Change{Kind: store.KindTunnel, Key: name},
		write: func(tx *store.Tx) (err error) {
			if t, err = tx.Tunnel(name); err != nil {
				return err
			}
			endpoints, err := tx.Endpoints()
			if err != nil {
				return err
			}
			for _, e := range endpoints {
				if e.Tunnel == name {
					return fmt.Errorf("tunnel %q is %w: endpoint %q is behind it; remove that first", name, ErrInUse, e.Name)
				}
			}
			others, err := tx.Tunnels()
			if err != nil {
				return err
			}
			for _, other := range others {
				shared = shared || other.Name != name && other.Local == t.Local
			}
			return tx.DeleteTunnel(name)
		},
		apply:  func() error { return a.tables.DeleteTunnel(tunnelEntry(t), shared) },
		revert: func(tx *store.Tx) error { return tx.PutTunnel(t) },
	})
}
