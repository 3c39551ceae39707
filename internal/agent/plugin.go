package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"

	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
)

// What the plugins have in common that an engine starts for one interface of a
// container at a time.

// With opens the host for f, as Open does.
func With(ctx context.Context, p Place, log *slog.Logger, f func(*Agent) error) error {
	a, err := Open(ctx, p, log)
	if err != nil {
		return err
	}
	return errors.Join(a.explain(f(a)), a.Close())
}

// explain adds to the error that an endpoint is not found why that is, if this
// Agent has forgotten it. Nothing else tells of that endpoint then.
func (a *Agent) explain(err error) error {
	i := slices.IndexFunc(a.gone, func(e spec.Endpoint) bool { return store.IsMissing(err, store.KindEndpoint, e.Name) })
	if i < 0 {
		return err
	}
	e := a.gone[i]
	a.gone = slices.Delete(a.gone, i, i+1)
	return fmt.Errorf("%w; it was removed, as its namespace %s has gone", err, e.Netns.Path)
}

// OneLine gives an error's text without line breaks: the protocols have room
// for one line, and errors.Join puts each of its own on another.
func OneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// EnsureNoEndpoint is RemoveEndpoint, but nothing is left to do if the endpoint
// is not there: engines ask again, and for what failed.
func (a *Agent) EnsureNoEndpoint(name string) error {
	err := a.RemoveEndpoint(name)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}

// Unpublished gives what the container's endpoint on n still has to publish of
// the container's ports. Engines ask for all of them by each of its networks,
// and each port of the host leads to one endpoint: in each family that of the
// network that comes first and has it; an internal one publishes nothing.
func (a *Agent) Unpublished(container spec.Identity, n spec.Network, wanted []spec.Port) ([]spec.Port, error) {
	var addresses []netip.Addr
	if !n.Internal {
		addresses = n.Gateways // of the families that the endpoint has
	}
	var there []spec.Port
	err := a.View(func(tx *store.Tx) (err error) {
		there, err = publishedFor(tx, container)
		return err
	})
	if err != nil {
		return nil, err
	}
	var missing []spec.Port
	for _, p := range wanted {
		parts := byFamily(p, addresses)
		if len(parts) == 0 {
			a.log.Warn("port is not published by a network that is internal or lacks the family of its address", "port", p, "network", n.Name)
		}
		missing = append(missing, lacking(p, parts, there)...)
	}
	return missing, nil
}

// publishedFor gives what all endpoints of a container publish, by family.
func publishedFor(tx *store.Tx, container spec.Identity) ([]spec.Port, error) {
	endpoints, err := tx.Endpoints()
	if err != nil {
		return nil, err
	}
	var all []spec.Port
	for _, e := range endpoints {
		if !e.Container.Same(container) {
			continue
		}
		ports, err := tx.PortsOf(e.Name)
		if err != nil {
			return nil, err
		}
		for _, p := range ports {
			all = append(all, byFamily(p, e.Addresses)...)
		}
	}
	return all, nil
}

// byFamily parts p into one publication for each family that it has in an
// endpoint with addresses of these.
func byFamily(p spec.Port, addresses []netip.Addr) []spec.Port {
	var parts []spec.Port
	for _, at := range addressesOf(p, spec.Endpoint{Addresses: addresses}) {
		part := p
		part.Address = at.host
		parts = append(parts, part)
	}
	return parts
}

// lacking gives those of p's parts that are not there: p itself, as one
// publication, if that is both families.
func lacking(p spec.Port, parts, there []spec.Port) []spec.Port {
	left := slices.DeleteFunc(slices.Clone(parts), func(part spec.Port) bool {
		return slices.ContainsFunc(there, func(t spec.Port) bool {
			return t.Target() == part.Target() && t.First == part.First && spec.AddressesOverlap(t.Address, part.Address)
		})
	})
	if len(left) > 1 {
		return []spec.Port{p}
	}
	return left
}
