package cni

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/ebpnet/ebpnet/internal/agent"
	"github.com/ebpnet/ebpnet/internal/host"
	"github.com/ebpnet/ebpnet/internal/ipam"
	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
	"github.com/ebpnet/ebpnet/loader"
)

// errAmiss says that a container is not on the network as it should be.
var errAmiss = errors.New("amiss")

// check compares what the store and the kernel have with the result of ADD.
func (c *call) check(ctx context.Context) error {
	result, err := c.previous()
	if err != nil {
		return err
	}
	if len(result.Interfaces) == 0 {
		return types.NewError(types.ErrInvalidNetworkConfig, "prevResult is missing: CHECK needs what ADD gave", "")
	}
	ports, err := published(c.conf.RuntimeConfig.PortMappings)
	if err != nil {
		return err
	}
	err = c.withAgent(ctx, func(a *agent.Agent) error {
		var (
			e spec.Endpoint
			n spec.Network
		)
		err := a.View(func(tx *store.Tx) (err error) {
			if e, err = tx.Endpoint(c.endpoint()); err != nil {
				return err
			}
			n, err = tx.Network(e.Network)
			return err
		})
		if err != nil {
			return c.amiss("%w", err)
		}
		missing, err := a.Unpublished(e.Container, n, ports)
		if err != nil {
			return err
		}
		if len(missing) > 0 {
			return c.amiss("port %s is not published", missing[0])
		}
		return c.compare(e, n, result)
	})
	if err != nil {
		return err
	}
	return c.delegate(ctx, invoke.DelegateCheck)
}

func (c *call) amiss(format string, details ...any) error {
	return fmt.Errorf("interface %s of container %s on network %q is %w: %w", c.args.IfName, c.args.ContainerID, c.conf.Name, errAmiss,
		fmt.Errorf(format, details...))
}

func (c *call) compare(e spec.Endpoint, n spec.Network, result *types100.Result) error {
	outside, err := host.Look(host.VethName(e.ID))
	if err != nil {
		return c.amiss("%w", err)
	}
	inside, err := host.LookInside(c.args.Netns, c.args.IfName)
	if err != nil {
		return c.amiss("%w", err)
	}
	if !outside.Up || !inside.Up {
		return c.amiss("it is down")
	}
	if got := inside.MAC.String(); got != e.MAC.String() {
		return c.amiss("it has MAC %s, not %s", got, e.MAC)
	}
	index := slices.IndexFunc(result.Interfaces, func(i *types100.Interface) bool {
		return i.Name == c.args.IfName && i.Sandbox == c.args.Netns
	})
	if index < 0 {
		return c.amiss("prevResult does not have it")
	}
	if told := result.Interfaces[index].Mac; told != "" && told != e.MAC.String() {
		return c.amiss("prevResult has it with MAC %s, the network with %s", told, e.MAC)
	}
	wanted := prefixesOf(e, n)
	for _, ip := range result.IPs {
		if ip.Interface != nil && *ip.Interface == index {
			wanted = append(wanted, prefixOf(ip.Address))
		}
	}
	for _, p := range wanted {
		if !slices.Contains(inside.Addresses, p) {
			return c.amiss("it lacks address %s", p)
		}
	}
	for _, r := range result.Routes {
		route := spec.Route{Destination: prefixOf(r.Dst), Gateway: addressOf(r.GW)}
		if owns(e, n, route) && !slices.Contains(inside.Routes, route) {
			return c.amiss("the route to %s is not there", route.Destination)
		}
	}
	return nil
}

// owns tells whether a route of the result was made with the endpoint; another
// plugin of the chain may have made it.
func owns(e spec.Endpoint, n spec.Network, r spec.Route) bool {
	return r.Destination.Bits() == 0 && r.Gateway == n.Gateway(r.Destination.Addr()) || slices.Contains(e.Routes, r)
}

// status tells whether an ADD would succeed.
func (c *call) status(ctx context.Context) error {
	err := c.withAgent(ctx, func(a *agent.Agent) error {
		if _, err := c.known(a); errors.Is(err, store.ErrNotFound) && c.conf.describes() {
			_, err = c.conf.network() // that ADD would make
			return err
		}
		n, err := c.network(a)
		if err != nil || c.delegates() {
			return err
		}
		return a.View(func(tx *store.Tx) error { return checkRoom(tx, n) })
	})
	if errors.Is(err, loader.ErrNotLoaded) || errors.Is(err, store.ErrNotFound) || errors.Is(err, ipam.ErrExhausted) {
		return types.NewError(errNotAvailable, agent.OneLine(err), "")
	}
	if err != nil {
		return err
	}
	return c.delegate(ctx, invoke.DelegateStatus)
}

// checkRoom gives ipam.ErrExhausted if a subnet has no free address.
func checkRoom(tx *store.Tx, n spec.Network) error {
	taken := func(address netip.Addr) bool {
		_, taken := tx.AddressOwner(address)
		return taken
	}
	for _, subnet := range n.Subnets {
		if _, err := ipam.Next(n, subnet, tx.LastAddress(n.Name, subnet), taken); err != nil {
			return err
		}
	}
	return nil
}
