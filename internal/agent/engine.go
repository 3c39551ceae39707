package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/ebpnet/ebpnet/internal/host"
	"github.com/ebpnet/ebpnet/internal/ipam"
	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
)

// What container engines ask for beyond what a user of the command line does.

// View reads the store.
func (a *Agent) View(f func(*store.Tx) error) error { return a.store.View(f) }

// EnsureNetwork is CreateNetwork, but takes the network of that name that is
// there if its subnets and gateways are the same, adds n's users to it, and
// leaves all else of it as it is. The error is ErrUnfit if they differ.
func (a *Agent) EnsureNetwork(n spec.Network) (spec.Network, error) {
	there, err := a.network(n.Name)
	if errors.Is(err, store.ErrNotFound) {
		return a.CreateNetwork(n)
	}
	if err != nil {
		return n, err
	}
	if !slices.Equal(there.Subnets, n.Subnets) || !slices.Equal(there.Gateways, n.Gateways) {
		return n, fmt.Errorf("network %q %w: it is there with subnets %s and gateways %s, wanted are %s and %s; choose another name, or 'ebpnet network rm %s' first",
			n.Name, ErrUnfit, joined(there.Subnets), joined(there.Gateways), joined(n.Subnets), joined(n.Gateways), n.Name)
	}
	for _, user := range n.Users {
		if there, err = a.JoinNetwork(n.Name, user); err != nil {
			return n, err
		}
	}
	return there, nil
}

func (a *Agent) network(name string) (n spec.Network, err error) {
	err = a.store.View(func(tx *store.Tx) (err error) {
		n, err = tx.Network(name)
		return err
	})
	return n, err
}

// JoinNetwork makes an engine's network a user of one that is there, or, if it
// is that already, keeps what it is called now.
func (a *Agent) JoinNetwork(name string, user spec.Identity) (n spec.Network, err error) {
	err = a.store.Update(func(tx *store.Tx) (err error) {
		if n, err = tx.Network(name); err != nil {
			return err
		}
		if i := slices.IndexFunc(n.Users, user.Same); i >= 0 {
			n.Users[i] = user
		} else {
			n.Users = append(n.Users, user)
		}
		return tx.PutNetwork(n)
	})
	return n, err
}

// LeaveNetwork takes an engine's network from the users of one, and removes
// this if it was made for it and has no other. Nothing is left to do if either
// is gone.
func (a *Agent) LeaveNetwork(name string, user spec.Identity) error {
	n, err := a.network(name)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	n.Users = slices.DeleteFunc(n.Users, user.Same)
	if n.Transient && len(n.Users) == 0 {
		return a.RemoveNetwork(name)
	}
	return a.store.Update(func(tx *store.Tx) error { return tx.PutNetwork(n) })
}

// CheckOwnNetwork gives ErrInUse for a network that an engine made and will
// tell when it removes it.
func (a *Agent) CheckOwnNetwork(name string) error {
	n, err := a.network(name)
	if err != nil || !n.Transient || len(n.Users) == 0 {
		return err
	}
	user := n.Users[0]
	return fmt.Errorf("network %s %w: remove it there, as with '%s network rm'; --force if %s is gone", n.Title(), ErrInUse, user.Engine, user.Engine)
}

// CheckOwnEndpoint gives ErrInUse for an endpoint that an engine made.
func (a *Agent) CheckOwnEndpoint(name string) error {
	var e spec.Endpoint
	err := a.store.View(func(tx *store.Tx) (err error) {
		e, err = tx.Endpoint(name)
		return err
	})
	if err != nil || e.Container.Engine == "" {
		return err
	}
	return fmt.Errorf("endpoint %s %w: a container of %s's has it, remove or disconnect that there; --force if it is gone", e.Title(), ErrInUse, e.Container.Engine)
}

// PlaceEndpoint keeps where an engine took the interface of an endpoint that
// was handed to it, and for which container; it gives the interface the
// network's MTU and announces the endpoint. Without a namespace it keeps the
// container alone. The error is host.ErrStrangeInterface if the interface is
// not there.
func (a *Agent) PlaceEndpoint(name string, container spec.Identity, ns spec.Netns) error {
	var (
		e    spec.Endpoint
		n    spec.Network
		size int
	)
	err := a.store.View(func(tx *store.Tx) (err error) {
		if e, n, err = endpointOn(tx, name); err != nil {
			return err
		}
		size, err = a.networkMTU(tx, n)
		return err
	})
	if err != nil {
		return err
	}
	taken := e.Handed() && ns.Path != ""
	if taken {
		if e.Netns, err = found(ns); err == nil {
			e.Ifname, err = a.host.Place(vethOf(e, n, 0))
		}
		if err != nil {
			return fmt.Errorf("endpoint %q: %w", name, err)
		}
	}
	e.Container = container
	if err := a.store.Update(func(tx *store.Tx) error { return tx.PutEndpoint(e) }); err != nil {
		return err
	}
	if taken {
		a.resizeEndpoint(resized{e, n, size})
		a.announce(vethOf(e, n, 0), n)
		if err := a.tellNAPI(e, n); err != nil {
			return err
		}
		return a.followPaths(e)
	}
	return nil
}

// SetOutward keeps whether the engine has a container's default routes go by an
// endpoint, for when its interface has to be made again.
func (a *Agent) SetOutward(endpoint string, outward bool) error {
	return a.store.Update(func(tx *store.Tx) error {
		e, err := tx.Endpoint(endpoint)
		if err != nil || e.Outward == outward {
			return err
		}
		e.Outward = outward
		return tx.PutEndpoint(e)
	})
}

// SetExpose keeps which ports an endpoint exposes, for links that name none.
func (a *Agent) SetExpose(endpoint string, ports []spec.Ports) error {
	return a.store.Update(func(tx *store.Tx) error {
		e, err := tx.Endpoint(endpoint)
		if err != nil || slices.Equal(e.Expose, ports) {
			return err
		}
		e.Expose = ports
		return tx.PutEndpoint(e)
	})
}

// IsIdle tells whether no container has the interface of an endpoint that was
// handed to an engine: it lies in the host's namespace, as it was not taken yet
// or was given back, or the container's process is gone.
func (a *Agent) IsIdle(e spec.Endpoint) (bool, error) {
	if waits, err := a.host.Waits(e.ID); waits || err != nil || e.Handed() {
		return waits, err
	}
	boot, err := host.BootID()
	if err != nil {
		return false, err
	}
	if _, err = namespaceOf(e, boot); errors.Is(err, host.ErrNoNamespace) {
		return true, nil
	}
	return false, err
}

// SetLinks gives an endpoint the links that an engine wants it to have, and
// takes away what that had asked for before. A link that the user made stays as
// it is.
func (a *Agent) SetLinks(client, engine string, wanted []spec.Link) error {
	var all []linked
	err := a.store.View(func(tx *store.Tx) (err error) {
		all, err = linksOf(tx, client)
		return err
	})
	if err != nil {
		return err
	}
	for _, l := range all {
		if l.Client != client {
			continue
		}
		i := slices.IndexFunc(wanted, func(w spec.Link) bool { return w.Server == l.Server })
		if i >= 0 && (l.Engine != engine || l.Alias == wanted[i].Alias && slices.Equal(l.Ports, wanted[i].Ports)) {
			wanted = slices.Delete(slices.Clone(wanted), i, i+1)
			continue
		}
		if l.Engine != engine {
			continue
		}
		if err := a.RemoveLink(client, l.Server); err != nil {
			return err
		}
	}
	var failed error
	for _, l := range wanted {
		l.Client, l.Engine = client, engine
		_, err := a.AddLink(l)
		failed = errors.Join(failed, err)
	}
	return failed
}

// ChooseAddress gives the next address of a network within a range of one of
// its subnets that no endpoint has and that is not held for one.
func (a *Agent) ChooseAddress(network string, within netip.Prefix, held func(netip.Addr) bool) (chosen netip.Addr, err error) {
	err = a.store.Update(func(tx *store.Tx) error {
		n, err := tx.Network(network)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(n.Subnets, func(s netip.Prefix) bool { return s.Bits() <= within.Bits() && s.Contains(within.Addr()) })
		if i < 0 {
			return fmt.Errorf("range %s %w: network %q has no subnet that holds it, but %s", within, ErrUnfit, network, joined(n.Subnets))
		}
		taken := func(address netip.Addr) bool {
			_, taken := tx.AddressOwner(address)
			return taken || !within.Contains(address) || held(address)
		}
		after := tx.LastAddress(network, n.Subnets[i])
		if !within.Contains(after) && within != n.Subnets[i] {
			after = within.Addr().Prev() // a small range in a large subnet is not searched for
		}
		if chosen, err = ipam.Next(n, n.Subnets[i], after, taken); err != nil {
			return err
		}
		return tx.SetLastAddress(network, n.Subnets[i], chosen)
	})
	return chosen, err
}

// FreeSubnet chooses a subnet for a network that shares no address with another
// network, what the host has or has a route to, or what is held for another.
func (a *Agent) FreeSubnet(pools []ipam.Pool, held []netip.Prefix) (netip.Prefix, error) {
	used, err := a.host.Subnets()
	if err != nil {
		return netip.Prefix{}, err
	}
	err = a.store.View(func(tx *store.Tx) error {
		networks, err := tx.Networks()
		for _, n := range networks {
			used = append(used, n.Subnets...)
		}
		return err
	})
	if err != nil {
		return netip.Prefix{}, err
	}
	return ipam.FreeSubnet(pools, append(used, held...))
}

// defaultRoutes gives the gateways of an endpoint's default routes. By an
// internal network an engine's container has none, as it may have another
// network; of several Docker chooses.
func defaultRoutes(e spec.Endpoint, n spec.Network) []netip.Addr {
	switch {
	case e.Container.Engine == spec.Docker && !e.Outward, e.Container.Engine != "" && n.Internal:
		return nil
	}
	return n.Gateways
}
