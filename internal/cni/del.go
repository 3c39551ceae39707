package cni

import (
	"context"
	"errors"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/ebpnet/ebpnet/internal/agent"
	"github.com/ebpnet/ebpnet/internal/host"
	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
	"github.com/ebpnet/ebpnet/loader"
)

// del takes the container off the network, if it is on it. The addresses are
// given back last: until then the endpoint has them.
func (c *call) del(ctx context.Context) error {
	if err := c.removeEndpoint(ctx); err != nil {
		return err
	}
	return c.delegate(ctx, invoke.DelegateDel)
}

func (c *call) removeEndpoint(ctx context.Context) error {
	err := c.withAgent(ctx, func(a *agent.Agent) error { return a.EnsureNoEndpoint(c.endpoint()) })
	if errors.Is(err, loader.ErrNotLoaded) {
		return c.withoutDatapath(ctx, err)
	}
	return err
}

// withoutDatapath gives nil if nothing is left to remove: an endpoint without a
// namespace is forgotten by the next load.
func (c *call) withoutDatapath(ctx context.Context, notLoaded error) error {
	e, err := c.stored(ctx)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if _, err := host.Namespace(e.Netns.Path); errors.Is(err, host.ErrNoNamespace) {
		return nil
	}
	return notLoaded
}

// stored gives the attachment's endpoint without opening the host.
func (c *call) stored(ctx context.Context) (e spec.Endpoint, err error) {
	s, err := store.OpenReadOnly(ctx, c.place.State)
	if err != nil {
		return e, err
	}
	err = s.View(func(tx *store.Tx) (err error) {
		e, err = tx.Endpoint(c.endpoint())
		return err
	})
	return e, errors.Join(err, s.Close())
}

// gc removes the endpoints of this network of CNI that are not among the
// attachments that the runtime knows. Each is tried, whatever fails.
func (c *call) gc(ctx context.Context) error {
	return errors.Join(
		c.withAgent(ctx, func(a *agent.Agent) error {
			stale, err := c.stale(a)
			for _, name := range stale {
				err = errors.Join(err, a.RemoveEndpoint(name))
			}
			return err
		}),
		c.delegate(ctx, invoke.DelegateGC))
}

func (c *call) stale(a *agent.Agent) ([]string, error) {
	valid := map[string]bool{}
	for _, list := range [][]types.GCAttachment{c.conf.ValidAttachments, c.conf.Attachments} {
		for _, attachment := range list {
			valid[c.conf.endpointOf(attachment.ContainerID, attachment.IfName)] = true
		}
	}
	var stale []string
	err := a.View(func(tx *store.Tx) error {
		endpoints, err := tx.Endpoints()
		for _, e := range endpoints {
			ours := e.Container.Engine == Engine && e.Name == c.conf.endpointOf(e.Container.ID, e.Ifname)
			if ours && !valid[e.Name] {
				stale = append(stale, e.Name)
			}
		}
		return err
	})
	return stale, err
}
