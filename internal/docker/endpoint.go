package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/ebpnet/ebpnet/internal/host"
	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
)

// ifnamePrefix begins the names of a container's interfaces; the engine counts
// them.
const ifnamePrefix = "eth"

// endpointCall is the engine's CreateEndpoint.
type endpointCall struct {
	idCall
	Interface *endpointInterface
	Options   map[string]json.RawMessage
}

// endpointInterface says what an endpoint is given, or, in an answer, what it
// was given that was not asked for; addresses in CIDR notation.
type endpointInterface struct {
	Address, AddressIPv6, MacAddress string
}

// endpointAnswer is the answer to it.
type endpointAnswer struct{ Interface endpointInterface }

// createEndpoint makes an endpoint whose interface waits for the engine to take
// it. An engine that got no answer asks again.
func (p *Plugin) createEndpoint(ctx context.Context, c endpointCall) (answer endpointAnswer, err error) {
	var asked endpointInterface
	if c.Interface != nil {
		asked = *c.Interface
	}
	options, err := c.endpoint(asked)
	if err != nil {
		return answer, err
	}
	exposed, err := parseExposed(c.Options[exposedPortsOption])
	if err != nil {
		return answer, err
	}
	err = p.with(ctx, func(h hostAgent) error {
		var (
			n spec.Network
			e spec.Endpoint
		)
		err := h.View(func(tx *store.Tx) (err error) {
			if n, err = networkOf(tx, c.NetworkID); err != nil {
				return err
			}
			if e, err = tx.Endpoint(shortID(c.EndpointID)); errors.Is(err, store.ErrNotFound) {
				return nil
			}
			return err
		})
		if err != nil {
			return err
		}
		if e.Name == "" {
			options.Network = n.Name
			options.Routes = routesOf(n, options.Addresses)
			if e, err = spec.NewEndpoint(options); err != nil {
				return err
			}
			e.Expose = exposed
			if err := removeStale(h, n, e.Addresses); err != nil {
				return err
			}
			if e, _, err = h.AddEndpoint(e, nil); err != nil {
				return err
			}
		}
		p.holds.drop(e.Addresses...) // the store has them now
		answer.Interface = given(e, n, asked)
		return nil
	})
	return answer, err
}

// removeStale removes those of the engine's endpoints that have addresses which
// it gives out anew and that no container has: it was killed, and has forgotten
// them.
func removeStale(h hostAgent, n spec.Network, addresses []netip.Addr) error {
	var owners []spec.Endpoint
	err := h.View(func(tx *store.Tx) error {
		for _, address := range addresses {
			owner, taken := tx.AddressOwner(address)
			if !taken {
				continue
			}
			e, err := tx.Endpoint(owner)
			if err != nil {
				return err
			}
			same := func(o spec.Endpoint) bool { return o.Name == owner }
			if isDocker(e.Container) && e.Network == n.Name && !slices.ContainsFunc(owners, same) {
				owners = append(owners, e)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, e := range owners {
		idle, err := h.IsIdle(e)
		if err == nil && idle {
			err = h.RemoveEndpoint(e.Name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// endpoint puts the call into what package spec takes, but for the network and
// the exposed ports.
func (c endpointCall) endpoint(asked endpointInterface) (spec.EndpointOptions, error) {
	o := spec.EndpointOptions{
		Name: shortID(c.EndpointID), MAC: asked.MacAddress, Handed: true,
		Container: spec.Identity{Engine: engineName},
	}
	for _, key := range slices.Sorted(maps.Keys(c.Options)) {
		if !strings.HasPrefix(key, engineOptions) || key == ifnameOption {
			return o, fmt.Errorf("%w option %q: a container's connection has no options of ebpnet's, its network has, see docs/docker.md", spec.ErrInvalid, key)
		}
	}
	for _, text := range []string{asked.Address, asked.AddressIPv6} {
		if text == "" {
			continue
		}
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return o, fmt.Errorf("%w address %q: want ADDRESS/BITS", spec.ErrInvalid, text)
		}
		o.Addresses = append(o.Addresses, p.Addr().String())
	}
	return o, nil
}

// given gives what an endpoint has that was not asked for.
func given(e spec.Endpoint, n spec.Network, asked endpointInterface) (g endpointInterface) {
	if asked.MacAddress == "" {
		g.MacAddress = e.MAC.String()
	}
	for _, address := range e.Addresses {
		switch text := n.Prefix(address).String(); {
		case address.Is4() && asked.Address == "":
			g.Address = text
		case address.Is6() && asked.AddressIPv6 == "":
			g.AddressIPv6 = text
		}
	}
	return g
}

func (p *Plugin) deleteEndpoint(ctx context.Context, c idCall) (nothing, error) {
	return nothing{}, p.finish(ctx, func(h hostAgent) error {
		err := h.RemoveEndpoint(shortID(c.EndpointID))
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		return err
	})
}

// find gives an endpoint of the engine's with its network.
func (c idCall) find(h hostAgent) (e spec.Endpoint, n spec.Network, err error) {
	err = h.View(func(tx *store.Tx) (err error) {
		if n, err = networkOf(tx, c.NetworkID); err != nil {
			return err
		}
		e, err = tx.Endpoint(shortID(c.EndpointID))
		return err
	})
	return e, n, err
}

// joinAnswer says what the engine is to do in the container's namespace.
type joinAnswer struct {
	InterfaceName         interfaceName
	Gateway, GatewayIPv6  string `json:",omitempty"` // of the default routes
	StaticRoutes          []staticRoute
	DisableGatewayService bool // no further interface on a bridge of Docker's own
}

// interfaceName is what the interface is called where it waits, and how its
// name in the container begins.
type interfaceName struct{ SrcName, DstPrefix string }

// staticRoute is a route by a gateway, where RouteType is 0.
type staticRoute struct {
	Destination string
	RouteType   int
	NextHop     string
}

// containerCall is a call about an endpoint with the options of its container.
type containerCall struct {
	idCall
	Options map[string]json.RawMessage
}

func (p *Plugin) join(ctx context.Context, c containerCall) (answer joinAnswer, err error) {
	// When it makes an endpoint on an internal network, Docker 20.10 does not tell.
	text, told := c.Options[exposedPortsOption]
	exposed, err := parseExposed(text)
	if err != nil {
		return answer, err
	}
	err = p.with(ctx, func(h hostAgent) error {
		e, n, err := c.find(h)
		if err == nil && told {
			err = h.SetExpose(e.Name, exposed)
		}
		answer = joining(e, n)
		return err
	})
	return answer, err
}

func joining(e spec.Endpoint, n spec.Network) joinAnswer {
	answer := joinAnswer{
		InterfaceName:         interfaceName{host.HandedName(e.ID), ifnamePrefix},
		DisableGatewayService: true,
	}
	for _, address := range e.Addresses {
		gateway := n.Gateway(address)
		switch {
		case n.Internal:
		case gateway.Is4():
			answer.Gateway = gateway.String()
		default:
			answer.GatewayIPv6 = gateway.String()
		}
	}
	for _, r := range e.Routes {
		answer.StaticRoutes = append(answer.StaticRoutes, staticRoute{Destination: r.Destination.String(), NextHop: r.Gateway.String()})
	}
	return answer
}

// routesOf gives the routes of a network in a container that asks for the
// addresses; for none, it gets one of each family.
func routesOf(n spec.Network, addresses []string) (routes []spec.Route) {
	for _, to := range n.Routes {
		has := func(text string) bool { return strings.Contains(text, ":") == to.Addr().Is6() }
		if len(addresses) == 0 || slices.ContainsFunc(addresses, has) {
			routes = append(routes, spec.Route{Destination: to, Gateway: n.Gateway(to.Addr())})
		}
	}
	return routes
}
