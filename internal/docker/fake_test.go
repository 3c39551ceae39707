package docker

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/ebpnet/ebpnet/internal/agent"
	"github.com/ebpnet/ebpnet/internal/ipam"
	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
)

// fakeAgent is an agent of a host without a datapath: it writes the store as
// the real one does. Tests of test/ run the driver with that.
type fakeAgent struct {
	*store.Store
	used []uint16 // ports of the host that somebody listens on
	busy []string // endpoints that containers have
}

// loaded gives a plugin on a host on which ebpnet is loaded.
func loaded(t *testing.T) (*Plugin, *fakeAgent) {
	t.Helper()
	s, err := store.Open(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	f := &fakeAgent{Store: s}
	return newPlugin(quiet(), func(context.Context) (hostAgent, error) { return f, nil }), f
}

// Close leaves the store open for the next call.
func (f *fakeAgent) Close() error { return nil }

func (f *fakeAgent) CreateNetwork(n spec.Network) (spec.Network, error) {
	return n, f.Update(func(tx *store.Tx) (err error) {
		all, err := tx.Networks()
		if err != nil {
			return err
		}
		for _, other := range all {
			if _, overlap := n.Overlaps(other); overlap || n.Name == other.Name {
				return fmt.Errorf("network %q %w: %q", n.Name, agent.ErrUnfit, other.Name)
			}
		}
		if n.ID, err = tx.NextID(store.KindNetwork, 1, spec.MaxNetworks); err != nil {
			return err
		}
		return tx.PutNetwork(n)
	})
}

func (f *fakeAgent) JoinNetwork(name string, user spec.Identity) (n spec.Network, err error) {
	return n, f.Update(func(tx *store.Tx) error {
		if n, err = tx.Network(name); err != nil {
			return err
		}
		n.Users = append(n.Users, user)
		return tx.PutNetwork(n)
	})
}

func (f *fakeAgent) LeaveNetwork(name string, user spec.Identity) error {
	return f.Update(func(tx *store.Tx) error {
		n, err := tx.Network(name)
		if err != nil {
			return err
		}
		n.Users = slices.DeleteFunc(n.Users, user.Same)
		if !n.Transient || len(n.Users) > 0 {
			return tx.PutNetwork(n)
		}
		if on, err := tx.EndpointsOn(name); err != nil || len(on) > 0 {
			return fmt.Errorf("%w by %d endpoints: %w", agent.ErrInUse, len(on), err)
		}
		return tx.DeleteNetwork(name)
	})
}

func (f *fakeAgent) AddEndpoint(e spec.Endpoint, _ []spec.Port) (spec.Endpoint, []spec.Port, error) {
	return e, nil, f.Update(func(tx *store.Tx) error {
		n, err := tx.Network(e.Network)
		if err != nil {
			return err
		}
		if e.ID, err = tx.NextID(store.KindEndpoint, 1, 100); err != nil {
			return err
		}
		for _, a := range e.Addresses {
			if _, taken := tx.AddressOwner(a); taken {
				return fmt.Errorf("address %s %w", a, agent.ErrInUse)
			}
		}
		for _, subnet := range n.Subnets {
			if !slices.ContainsFunc(e.Addresses, subnet.Contains) {
				e.Addresses = append(e.Addresses, spec.LastAddress(subnet).Prev())
			}
		}
		if e.MAC.IsZero() {
			e.MAC = spec.MACFor(e.Addresses[0])
		}
		return tx.PutEndpoint(e)
	})
}

func (f *fakeAgent) RemoveEndpoint(name string) error {
	return f.Update(func(tx *store.Tx) error {
		ports, err := tx.PortsOf(name)
		if err != nil {
			return err
		}
		for _, p := range ports {
			if err := tx.DeletePort(store.PortKeyOf(p)); err != nil {
				return err
			}
		}
		if _, err := tx.Endpoint(name); err != nil {
			return err
		}
		return tx.DeleteEndpoint(name)
	})
}

func (f *fakeAgent) SetExpose(endpoint string, ports []spec.Ports) error {
	return f.Update(func(tx *store.Tx) error {
		e, err := tx.Endpoint(endpoint)
		if err != nil {
			return err
		}
		e.Expose = ports
		return tx.PutEndpoint(e)
	})
}

// firstChosen is the first port that it chooses.
const firstChosen = 61000

func (f *fakeAgent) SetOutward(endpoint string, outward bool) error {
	return f.Update(func(tx *store.Tx) error {
		e, err := tx.Endpoint(endpoint)
		if err != nil {
			return err
		}
		e.Outward = outward
		return tx.PutEndpoint(e)
	})
}

// IsIdle says of every endpoint that no container has it, but of those in use.
func (f *fakeAgent) IsIdle(e spec.Endpoint) (bool, error) {
	return !slices.Contains(f.busy, e.Name), nil
}

func (f *fakeAgent) SetPorts(endpoint, engine string, wanted []spec.Port) ([]spec.Port, error) {
	wanted = slices.Clone(wanted)
	return wanted, f.Update(func(tx *store.Tx) error {
		before, err := tx.PortsOf(endpoint)
		if err != nil {
			return err
		}
		for _, p := range before {
			if p.Engine != engine {
				continue
			}
			if err := tx.DeletePort(store.PortKeyOf(p)); err != nil {
				return err
			}
		}
		for i := range wanted {
			wanted[i].Engine = engine
			p := &wanted[i]
			if p.ID, err = tx.NextID(store.KindPort, 1, 100); err != nil {
				return err
			}
			p.Endpoint = endpoint
			if p.First == 0 {
				p.First, p.Last = firstChosen, firstChosen
			}
			if slices.Contains(f.used, p.First) {
				return fmt.Errorf("port %d %w", p.First, agent.ErrInUse)
			}
			if err := tx.PutPort(*p); err != nil {
				return err
			}
		}
		return nil
	})
}

func (f *fakeAgent) FreeSubnet(pools []ipam.Pool, held []netip.Prefix) (netip.Prefix, error) {
	err := f.View(func(tx *store.Tx) error {
		all, err := tx.Networks()
		for _, n := range all {
			held = append(held, n.Subnets...)
		}
		return err
	})
	if err != nil {
		return netip.Prefix{}, err
	}
	return ipam.FreeSubnet(pools, held)
}

func (f *fakeAgent) ChooseAddress(network string, within netip.Prefix, held func(netip.Addr) bool) (chosen netip.Addr, err error) {
	return chosen, f.View(func(tx *store.Tx) error {
		n, err := tx.Network(network)
		if err != nil {
			return err
		}
		for chosen = within.Addr(); within.Contains(chosen); chosen = chosen.Next() {
			if _, taken := tx.AddressOwner(chosen); !taken && !held(chosen) && n.CheckAddress(chosen) == nil {
				return nil
			}
		}
		return ipam.ErrExhausted
	})
}
