package agent

import (
	"errors"
	"slices"

	"github.com/ebpnet/ebpnet/internal/host"
	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
)

// The server behind a published port answers by the routes of its namespace,
// which may lead by another network than the port's. The datapath is told of
// these routes, so that the server sees the gateway where it would answer by
// another way than the client's packet came.

// followPaths looks at the routes of an endpoint's namespace, and tells the
// datapath of what has changed for the endpoint and the namespace's others.
func (a *Agent) followPaths(e spec.Endpoint) error {
	if e.Remote() || e.Handed() {
		return nil
	}
	n, err := a.network(e.Network)
	if err != nil {
		return err
	}
	before := len(e.Paths)
	if e, err = a.followPathsOf(e, n); err != nil || before+len(e.Paths) == 0 {
		return err
	}
	return a.followSiblings(e)
}

// followSiblings does the same for the others of an endpoint's namespace.
func (a *Agent) followSiblings(e spec.Endpoint) error {
	siblings := map[string]spec.Network{}
	var endpoints []spec.Endpoint
	err := a.store.View(func(tx *store.Tx) (err error) {
		if endpoints, err = tx.Endpoints(); err != nil {
			return err
		}
		endpoints = slices.DeleteFunc(endpoints, func(o spec.Endpoint) bool { return o.Name == e.Name || !sameNamespace(e, o) })
		for _, o := range endpoints {
			if siblings[o.Name], err = tx.Network(o.Network); err != nil {
				return err
			}
		}
		return nil
	})
	for _, o := range endpoints {
		if err == nil {
			_, err = a.followPathsOf(o, siblings[o.Name])
		}
	}
	return err
}

func sameNamespace(a, b spec.Endpoint) bool {
	return !a.Remote() && !b.Remote() && !a.Handed() && !b.Handed() && a.Netns.Inode == b.Netns.Inode && a.Netns.Boot == b.Netns.Boot
}

// followPathsFor is followPaths for the endpoint of that name, if there is one.
func (a *Agent) followPathsFor(endpoint string) error {
	var e spec.Endpoint
	err := a.store.View(func(tx *store.Tx) (err error) {
		e, err = tx.Endpoint(endpoint)
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return a.followPaths(e)
}

// followPathsOf does so for one endpoint of the network n alone, and gives it as
// it is then.
func (a *Agent) followPathsOf(e spec.Endpoint, n spec.Network) (spec.Endpoint, error) {
	before := e
	var err error
	if e.Paths, err = a.pathsOf(e, n); err != nil || slices.Equal(before.Paths, e.Paths) {
		return before, err
	}
	var ports []spec.Port
	return e, a.do(change{
		noun: store.Change{Kind: store.KindPort, Key: e.Name},
		write: func(tx *store.Tx) (err error) {
			if ports, err = tx.PortsOf(e.Name); err != nil {
				return err
			}
			return tx.PutEndpoint(e)
		},
		apply:  func() error { return a.tables.MovePorts(allEntries(ports, before, n), allEntries(ports, e, n)) },
		revert: func(tx *store.Tx) error { return tx.PutEndpoint(before) },
	})
}

// pathsOf gives the routes of an endpoint's namespace, or those that are kept if
// it has just gone.
func (a *Agent) pathsOf(e spec.Endpoint, n spec.Network) ([]spec.Path, error) {
	paths, err := a.host.Paths(vethOf(e, n, 0))
	if errors.Is(err, host.ErrStrangeInterface) || errors.Is(err, host.ErrNoNamespace) || isGone(err) {
		return e.Paths, nil
	}
	return paths, err
}

// reconcilePaths brings what w has of the routes of those endpoints that publish
// ports to what they are.
func (a *Agent) reconcilePaths(w *everything) error {
	var changed []spec.Endpoint
	seen := map[string]bool{}
	for _, p := range w.ports {
		e := w.endpoints[p.Endpoint]
		if e.Remote() || e.Handed() || seen[e.Name] {
			continue
		}
		seen[e.Name] = true
		paths, err := a.pathsOf(e, w.networks[e.Network])
		if err != nil {
			return err
		}
		if !slices.Equal(paths, e.Paths) {
			e.Paths = paths
			w.endpoints[e.Name] = e
			changed = append(changed, e)
		}
	}
	if len(changed) == 0 {
		return nil
	}
	return a.store.Update(func(tx *store.Tx) error {
		for _, e := range changed {
			if err := tx.PutEndpoint(e); err != nil {
				return err
			}
		}
		return nil
	})
}
