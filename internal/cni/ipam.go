package cni

import (
	"context"
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/ebpnet/ebpnet/internal/spec"
)

// delegates tells whether another plugin chooses the addresses.
func (c *call) delegates() bool { return !c.conf.IPAM.IsEmpty() }

// delegateAdd has the other plugin choose, and takes its choice back if that
// cannot be read.
func (c *call) delegateAdd(ctx context.Context) (*types100.Result, error) {
	given, err := invoke.DelegateAdd(ctx, c.conf.IPAM.Type, c.args.StdinData, nil)
	var result *types100.Result
	if err == nil {
		result, err = types100.NewResultFromResult(given)
	}
	if err != nil {
		return nil, c.takeBack(ctx, c.delegateFailed(err))
	}
	return result, nil
}

// takeBack has the other plugin forget what it chose for an ADD that failed.
func (c *call) takeBack(ctx context.Context, failed error) error {
	return errors.Join(failed, c.delegate(ctx, invoke.DelegateDel))
}

// delegate has the other plugin do its part of a verb, if there is one.
func (c *call) delegate(ctx context.Context, verb func(context.Context, string, []byte, invoke.Exec) error) error {
	if !c.delegates() {
		return nil
	}
	return c.delegateFailed(verb(ctx, c.conf.IPAM.Type, c.args.StdinData, nil))
}

func (c *call) delegateFailed(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("ipam plugin %s: %w", c.conf.IPAM.Type, err)
}

// chosen puts what another plugin chose into the endpoint's options.
func chosen(o *spec.EndpointOptions, n spec.Network, result *types100.Result) error {
	o.Addresses = nil
	for _, ip := range result.IPs {
		address := addressOf(ip.Address.IP)
		if own := n.Gateway(address); ip.Gateway != nil && addressOf(ip.Gateway) != own {
			return fmt.Errorf("%w gateway %s: network %q has %s; make them the same, by \"gateway\" of either", spec.ErrInvalid, ip.Gateway, n.Name, own)
		}
		o.Addresses = append(o.Addresses, address.String())
	}
	if len(o.Addresses) == 0 {
		return fmt.Errorf("%w choice of addresses: there is none", spec.ErrInvalid)
	}
	for _, r := range result.Routes {
		route, err := routeOf(n, r)
		if err != nil {
			return err
		}
		// The network itself brings the default ones.
		if route.Destination.Bits() > 0 {
			o.Routes = append(o.Routes, route)
		}
	}
	return nil
}

// routeOf puts a route into ebpnet's terms. Without a gateway it is by the
// network's.
func routeOf(n spec.Network, r *types.Route) (spec.Route, error) {
	route := spec.Route{Destination: prefixOf(r.Dst).Masked(), Gateway: addressOf(r.GW)}
	own := n.Gateway(route.Destination.Addr())
	switch {
	case r.MTU != 0 || r.AdvMSS != 0 || r.Priority != 0 || r.Table != nil || r.Scope != nil:
		return route, fmt.Errorf("%w route to %s: mtu, advmss, priority, table and scope are not supported, want dst and gw alone", spec.ErrInvalid, route.Destination)
	case !own.IsValid():
		return route, fmt.Errorf("%w route to %s: network %q has no subnet of that family", spec.ErrInvalid, route.Destination, n.Name)
	case !route.Gateway.IsValid():
		route.Gateway = own
	case route.Destination.Bits() == 0 && route.Gateway != own:
		return route, fmt.Errorf("%w default route by %s: network %q has gateway %s", spec.ErrInvalid, route.Gateway, n.Name, own)
	}
	return route, nil
}
