package agent

import (
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"

	"github.com/ebpnet/ebpnet/datapath"
	"github.com/ebpnet/ebpnet/internal/host"
	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
	"github.com/ebpnet/ebpnet/loader"
)

// maxTunnels leaves out id 0, which is no tunnel (MAX_TUNNELS in
// bpf/types_tables.h).
const maxTunnels = 1023

// AddTunnel makes a tunnel. Without a local address it is the host's tunnel
// address, or its first uplink's, of the remote's family.
func (a *Agent) AddTunnel(t spec.Tunnel) (spec.Tunnel, error) {
	if err := a.completeTunnel(&t); err != nil {
		return t, fmt.Errorf("tunnel %q: %w", t.Name, err)
	}
	var (
		networks []datapath.TunnelNetwork
		changed  []resized
	)
	err := a.do(change{
		noun: store.Change{Kind: store.KindTunnel, Key: t.Name},
		write: func(tx *store.Tx) error {
			others, err := tx.Tunnels()
			if err != nil {
				return err
			}
			if err := checkNewTunnel(tx, t, others); err != nil {
				return err
			}
			if t.ID, err = tx.NextID(store.KindTunnel, 1, maxTunnels); err != nil {
				return err
			}
			if networks, err = tunnelNetworksIn(tx, t); err != nil {
				return err
			}
			if changed, err = a.resizedBy(tx, others, append(slices.Clone(others), t)); err != nil {
				return err
			}
			return tx.PutTunnel(t)
		},
		apply:  func() error { return a.startTunnel(t, networks, changed) },
		revert: func(tx *store.Tx) error { return tx.DeleteTunnel(t.Name) },
	})
	return t, err
}

// checkNewTunnel checks whether a tunnel fits those that are there, and the
// networks.
func checkNewTunnel(tx *store.Tx, t spec.Tunnel, others []spec.Tunnel) error {
	for _, other := range others {
		if other.Name == t.Name {
			err := fmt.Errorf("tunnel %q %w: choose another name, or remove it first", t.Name, ErrExists)
			if t.MaxFlood != 0 {
				err = fmt.Errorf("%w; 'ebpnet tunnel set' changes its limit", err)
			}
			return err
		}
		if other.Remote == t.Remote && other.Local == t.Local {
			return fmt.Errorf("tunnel %q %w: tunnel %q joins %s and %s already", t.Name, ErrUnfit, other.Name, t.Local, t.Remote)
		}
	}
	keyless := ""
	for _, name := range t.Networks {
		n, err := tx.Network(name)
		if err != nil {
			return fmt.Errorf("tunnel %q: %w", t.Name, err)
		}
		if n.Key != nil {
			continue
		}
		if keyless != "" {
			return fmt.Errorf("tunnel %q %w: networks %q and %q have no key, so that nothing would tell their packets apart; name one of them",
				t.Name, ErrUnfit, keyless, name)
		}
		keyless = name
	}
	return nil
}

// tunnelNetworksIn gives the networks that a tunnel carries.
func tunnelNetworksIn(tx *store.Tx, t spec.Tunnel) ([]datapath.TunnelNetwork, error) {
	networks, err := tx.Networks()
	if err != nil {
		return nil, err
	}
	var entries []datapath.TunnelNetwork
	for _, n := range networks {
		entries = append(entries, tunnelNetworksOf([]spec.Tunnel{t}, n)...)
	}
	return entries, nil
}

// startTunnel brings a new tunnel into the kernel: nothing goes into it that
// does not fit, or has no way there.
func (a *Agent) startTunnel(t spec.Tunnel, networks []datapath.TunnelNetwork, changed []resized) error {
	if err := a.resize(changed); err != nil {
		return err
	}
	gateway, err := a.host.FindGateway()
	if err != nil {
		return err
	}
	if err := a.attach([]attachment{detourOf(gateway, true)}); err != nil {
		return err
	}
	if err := a.tables.ResetTunnelTraffic(t.ID); err != nil {
		return err
	}
	if err := a.tables.PutTunnel(tunnelEntry(t)); err != nil {
		return err
	}
	return a.putTunnelNetworks(networks)
}

// detourOf is the program by which some packets get into tunnels (to_tunnel in
// bpf/ebpnet.bpf.c), which is needed only where there are some.
func detourOf(gateway host.Gateway, needed bool) attachment {
	if !needed {
		return attachment{hook: loader.ToTunnel}
	}
	return attachment{loader.ToTunnel, []int{gateway.Near}}
}

func (a *Agent) putTunnelNetworks(entries []datapath.TunnelNetwork) error {
	for _, c := range entries {
		if err := a.tables.PutTunnelNetwork(c); err != nil {
			return err
		}
	}
	return nil
}

func (a *Agent) deleteTunnelNetworks(entries []datapath.TunnelNetwork) error {
	for _, c := range entries {
		if err := a.tables.DeleteTunnelNetwork(c); err != nil {
			return err
		}
	}
	return nil
}

// completeTunnel gives a new tunnel its local end, and checks both ends against
// the host.
func (a *Agent) completeTunnel(t *spec.Tunnel) error {
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
		if within(n, t.Remote) {
			return fmt.Errorf("%w remote %s: it lies in network %q; give the other host's own address", spec.ErrInvalid, t.Remote, n.Name)
		}
	}
	if !t.Local.IsValid() {
		if t.Local, err = a.tunnelAddress(t.Remote); err != nil {
			return err
		}
	}
	return a.checkTunnelEnd("local", t.Local)
}

// checkTunnelEnd checks that tunnels can end at an address of this host.
func (a *Agent) checkTunnelEnd(what string, address netip.Addr) error {
	own, err := a.isOwn(address)
	if err != nil {
		return err
	}
	if !own || !address.IsGlobalUnicast() {
		return fmt.Errorf("%w %s %s: it is no address of this host that others can reach", spec.ErrInvalid, what, address)
	}
	return nil
}

// warnOfTunnels tells of tunnels that end at addresses which the host has not,
// or not any more: no answer comes to these.
func (a *Agent) warnOfTunnels(tunnels iter.Seq[spec.Tunnel]) error {
	own, err := a.host.Addresses()
	if err != nil {
		return err
	}
	for t := range tunnels {
		if !hasAddress(own, t.Local) {
			a.log.Warn("tunnel ends at an address that this host does not have: give it back, or remove the tunnel and add it again",
				"tunnel", t.Name, "local", t.Local)
		}
	}
	return nil
}

// isOwn tells whether the host has the address on a device other than its own
// veth.
func (a *Agent) isOwn(address netip.Addr) (bool, error) {
	own, err := a.host.Addresses()
	return hasAddress(own, address), err
}

func hasAddress(prefixes []netip.Prefix, address netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Addr() == address })
}

func (a *Agent) networks() (networks []spec.Network, err error) {
	err = a.store.View(func(tx *store.Tx) (err error) {
		networks, err = tx.Networks()
		return err
	})
	return networks, err
}

// tunnelAddress is where this host's tunnels to the remote end unless they say
// otherwise.
func (a *Agent) tunnelAddress(remote netip.Addr) (netip.Addr, error) {
	var wanted spec.Host
	err := a.store.View(func(tx *store.Tx) (err error) {
		wanted, _, err = tx.Host()
		return err
	})
	if err != nil {
		return netip.Addr{}, err
	}
	if wanted.TunnelAddress.IsValid() && wanted.TunnelAddress.Is4() == remote.Is4() {
		return wanted.TunnelAddress, nil
	}
	uplinks, err := a.uplinks(wanted)
	if err != nil {
		return netip.Addr{}, err
	}
	family := "IPv6"
	if remote.Is4() {
		family = "IPv4"
	}
	for _, u := range uplinks {
		address := u.IPv6
		if remote.Is4() {
			address = u.IPv4
		}
		if address.IsValid() {
			return address, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("local address %w: no uplink has an %s address, as the remote %s has; name one with --local", ErrUnfit, family, remote)
}

// SetTunnel limits the copies a second that are flooded out of a tunnel; 0 is the
// default.
func (a *Agent) SetTunnel(name string, maxFlood uint32) error {
	var before, after spec.Tunnel
	return a.do(change{
		noun: store.Change{Kind: store.KindTunnel, Key: name},
		write: func(tx *store.Tx) (err error) {
			if before, err = tx.Tunnel(name); err != nil {
				return err
			}
			after = before
			after.MaxFlood = maxFlood
			return tx.PutTunnel(after)
		},
		apply:  func() error { return a.tables.SetTunnelLimit(after.ID, maxFlood) },
		revert: func(tx *store.Tx) error { return tx.PutTunnel(before) },
	})
}

// RemoveTunnel removes a tunnel that no endpoint is behind.
func (a *Agent) RemoveTunnel(name string) error {
	var (
		t        spec.Tunnel
		others   []spec.Tunnel
		networks []datapath.TunnelNetwork
		changed  []resized
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
			if networks, err = tunnelNetworksIn(tx, t); err != nil {
				return err
			}
			all, err := tx.Tunnels()
			if err != nil {
				return err
			}
			others = slices.DeleteFunc(slices.Clone(all), func(other spec.Tunnel) bool { return other.Name == name })
			if changed, err = a.resizedBy(tx, all, others); err != nil {
				return err
			}
			return tx.DeleteTunnel(name)
		},
		apply: func() error {
			shared := slices.ContainsFunc(others, func(other spec.Tunnel) bool { return other.Local == t.Local })
			err := errors.Join(a.deleteTunnelNetworks(networks), a.tables.DeleteTunnel(tunnelEntry(t), shared))
			if err != nil {
				return err
			}
			if len(others) == 0 {
				if err := a.attach([]attachment{detourOf(host.Gateway{}, false)}); err != nil {
					return err
				}
			}
			return a.resize(changed)
		},
		revert: func(tx *store.Tx) error { return tx.PutTunnel(t) },
	})
}
