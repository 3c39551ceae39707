package cni

import (
	"context"
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/ebpnet/ebpnet/internal/agent"
	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
)

// add puts the container on the network and prints the result.
func (c *call) add(ctx context.Context) error {
	options, err := c.options()
	if err != nil {
		return err
	}
	if _, err := spec.NewEndpoint(options); err != nil {
		return err
	}
	ports, err := published(c.conf.RuntimeConfig.PortMappings)
	if err != nil {
		return err
	}
	result, err := c.previous()
	if err != nil {
		return err
	}
	if err := c.addEndpoint(ctx, options, ports, result); err != nil {
		return err
	}
	return types.PrintResult(result, c.conf.CNIVersion)
}

// addEndpoint adds what it makes to the result. Another plugin is asked for
// addresses with the host closed: it may take its time, and others want to go
// on. Before that it must be sure that the attachment is new: what that plugin
// holds for it is taken back if this fails.
func (c *call) addEndpoint(ctx context.Context, options spec.EndpointOptions, ports []spec.Port, result *types100.Result) error {
	var ipam *types100.Result
	if c.delegates() {
		err := c.withAgent(ctx, func(a *agent.Agent) error {
			_, err := c.prepare(a)
			return err
		})
		if err != nil {
			return err
		}
		if ipam, err = c.delegateAdd(ctx); err != nil {
			return err
		}
	}
	err := c.withAgent(ctx, func(a *agent.Agent) error {
		n, err := c.prepare(a)
		if err != nil {
			return err
		}
		if ipam != nil {
			if err := chosen(&options, n, ipam); err != nil {
				return c.delegateFailed(err)
			}
			if !ipam.DNS.IsEmpty() {
				result.DNS = ipam.DNS
			}
		}
		e, err := spec.NewEndpoint(options)
		if err != nil {
			return err
		}
		if ports, err = a.Unpublished(e.Container, n, ports); err != nil {
			return err
		}
		if e, _, err = a.AddEndpoint(e, ports); err != nil {
			return err
		}
		if err := c.tell(result, e, n); err != nil {
			return errors.Join(err, a.RemoveEndpoint(e.Name))
		}
		return nil
	})
	if err != nil && ipam != nil {
		return c.takeBack(ctx, err)
	}
	return err
}

// prepare gives the network, which it makes if need be, and sees to it that
// the container is not on it yet.
func (c *call) prepare(a *agent.Agent) (spec.Network, error) {
	n, err := c.network(a)
	if err != nil {
		return n, err
	}
	return n, a.View(func(tx *store.Tx) error {
		_, err := tx.Endpoint(c.endpoint())
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err == nil {
			err = fmt.Errorf("interface %s of container %s on network %q %w: DEL it first", c.args.IfName, c.args.ContainerID, c.conf.Name, agent.ErrExists)
		}
		return err
	})
}

// network gives the network, which it makes if need be. The conflist has to fit
// one that is there.
func (c *call) network(a *agent.Agent) (n spec.Network, err error) {
	if c.conf.describes() {
		if n, err = c.conf.network(); err != nil {
			return n, err
		}
		return a.EnsureNetwork(n)
	}
	if err = c.conf.checkUndescribed(); err != nil {
		return n, err
	}
	if n, err = c.known(a); errors.Is(err, store.ErrNotFound) {
		err = fmt.Errorf("%w; or have it made, by \"subnets\" in the network configuration", err)
	}
	return n, err
}

// known gives the network as it is there, or store.ErrNotFound.
func (c *call) known(a *agent.Agent) (n spec.Network, err error) {
	err = a.View(func(tx *store.Tx) (err error) {
		n, err = tx.Network(c.conf.Network)
		return err
	})
	return n, err
}
