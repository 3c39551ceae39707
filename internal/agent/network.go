package agent

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
)

// CreateNetwork makes a network, and gives it back with its id.
func (a *Agent) CreateNetwork(n spec.Network) (spec.Network, error) {
	if err := a.checkForeign(n); err != nil {
		return n, err
	}
	var tunnels []spec.Tunnel
	err := a.do(change{
		noun: store.Change{Kind: store.KindNetwork, Key: n.Name},
		write: func(tx *store.Tx) (err error) {
			if tunnels, err = tx.Tunnels(); err != nil {
				return err
			}
			if err := checkNewNetwork(tx, n, tunnels); err != nil {
				return err
			}
			if n.ID, err = tx.NextID(store.KindNetwork, 1, spec.MaxNetworks); err != nil {
				return err
			}
			return tx.PutNetwork(n)
		},
		apply: func() error {
			if err := a.tables.ResetNetworkTraffic(n.ID); err != nil {
				return err
			}
			if err := a.applyNetworks(n); err != nil {
				return err
			}
			return a.putTunnelNetworks(tunnelNetworksOf(tunnels, n))
		},
		revert: func(tx *store.Tx) error { return tx.DeleteNetwork(n.Name) },
	})
	return n, err
}

// checkForeign checks that a network's subnets are not those of the host's
// other devices, whose traffic would then go astray.
func (a *Agent) checkForeign(n spec.Network) error {
	own, err := a.host.Addresses()
	if err != nil {
		return err
	}
	for _, p := range own {
		for _, subnet := range n.Subnets {
			if subnet.Overlaps(p.Masked()) {
				return fmt.Errorf("network %q %w: %s overlaps %s, where the host has %s; choose another", n.Name, ErrUnfit, subnet, p.Masked(), p.Addr())
			}
		}
	}
	return nil
}

func checkNewNetwork(tx *store.Tx, n spec.Network, tunnels []spec.Tunnel) error {
	others, err := tx.Networks()
	if err != nil {
		return err
	}
	for _, other := range others {
		if other.Name == n.Name {
			return fmt.Errorf("network %q %w: choose another name, or remove it first", n.Name, ErrExists)
		}
		if subnet, overlap := n.Overlaps(other); overlap {
			return fmt.Errorf("network %q %w: %s overlaps subnet %s of network %s; choose another", n.Name, ErrUnfit, joined(n.Subnets), subnet, other.Title())
		}
		if n.Key != nil && other.Key != nil && *n.Key == *other.Key {
			return fmt.Errorf("network %q %w: network %s has GRE key %d; choose another", n.Name, ErrUnfit, other.Title(), *n.Key)
		}
	}
	for _, t := range tunnels {
		if within(n, t.Remote) {
			return fmt.Errorf("network %q %w: %s holds %s, where tunnel %q leads; choose another", n.Name, ErrUnfit, joined(n.Subnets), t.Remote, t.Name)
		}
	}
	return nil
}

func joined[T fmt.Stringer](list []T) string {
	texts := make([]string, len(list))
	for i, s := range list {
		texts[i] = s.String()
	}
	return strings.Join(texts, " or ")
}

// applyNetworks brings the tables and the gateway's addresses to the store,
// after a change of the given network.
func (a *Agent) applyNetworks(n spec.Network) error {
	w, err := a.everything()
	if err != nil {
		return err
	}
	if err := a.tables.PutNetwork(networkEntry(n, w.host)); err != nil {
		return err
	}
	return a.host.SetGatewayAddresses(gatewayPrefixes(w.networks))
}

// NetworkChange is what SetNetwork changes; what is nil stays.
type NetworkChange struct {
	ICC, Masquerade, Internal *bool
	Filtering                 *spec.Filtering
	MTU                       *int // 0: follows the uplinks and the tunnels
}

// SetNetwork changes a network's policy, with effect on the next packet, and
// its MTU, with effect on the endpoints that are there.
func (a *Agent) SetNetwork(name string, c NetworkChange) error {
	var (
		before, after spec.Network
		changed       []resized
	)
	return a.do(change{
		noun: store.Change{Kind: store.KindNetwork, Key: name},
		write: func(tx *store.Tx) (err error) {
			if before, err = tx.Network(name); err != nil {
				return err
			}
			after = before
			for from, to := range map[*bool]*bool{c.ICC: &after.ICC, c.Masquerade: &after.Masquerade, c.Internal: &after.Internal} {
				if from != nil {
					*to = *from
				}
			}
			if c.Filtering != nil {
				after.Filtering = *c.Filtering
			}
			if c.MTU != nil {
				after.MTU = *c.MTU
				size, err := a.networkMTU(tx, after)
				if err != nil {
					return err
				}
				if changed, err = resizedOn(tx, after, size); err != nil {
					return err
				}
			}
			return tx.PutNetwork(after)
		},
		apply: func() error {
			if err := a.applyNetworks(after); err != nil {
				return err
			}
			return a.resize(changed)
		},
		revert: func(tx *store.Tx) error { return tx.PutNetwork(before) },
	})
}

// RemoveNetwork removes a network that no endpoint is on and no tunnel names.
func (a *Agent) RemoveNetwork(name string) error {
	var (
		n       spec.Network
		tunnels []spec.Tunnel
	)
	return a.do(change{
		noun: store.Change{Kind: store.KindNetwork, Key: name},
		write: func(tx *store.Tx) (err error) {
			if n, err = tx.Network(name); err != nil {
				return err
			}
			on, err := tx.EndpointsOn(name)
			if err != nil {
				return err
			}
			if len(on) > 0 {
				return fmt.Errorf("network %s is %w by endpoint %s (%d in all): remove them first", n.Title(), ErrInUse, on[0].Title(), len(on))
			}
			if tunnels, err = tx.Tunnels(); err != nil {
				return err
			}
			for _, t := range tunnels {
				if slices.Contains(t.Networks, name) {
					return fmt.Errorf("network %q is %w by tunnel %q, which carries it by name: remove that first", name, ErrInUse, t.Name)
				}
			}
			return tx.DeleteNetwork(name)
		},
		apply: func() error {
			w, err := a.everything()
			if err != nil {
				return err
			}
			return errors.Join(
				a.deleteTunnelNetworks(tunnelNetworksOf(tunnels, n)),
				a.tables.DeleteNetwork(networkEntry(n, w.host)),
				a.host.SetGatewayAddresses(gatewayPrefixes(w.networks)))
		},
		revert: func(tx *store.Tx) error { return tx.PutNetwork(n) },
	})
}
