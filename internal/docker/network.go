package docker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
)

// engineName is what Docker is called among the engines.
const engineName = spec.Docker

// shortID names what the engine has named by an id.
func shortID(id string) string { return id[:min(len(id), spec.ShortID)] }

// errGlobal is about networks of a swarm, which the driver's capabilities tell
// the engine not to ask for.
var errGlobal = errors.New("its networks are local to an engine, and none of a swarm; they span hosts by tunnels, see 'ebpnet tunnel add --help'")

func refuseGlobal(context.Context, []byte) (any, error) { return nil, errGlobal }

// networkOf gives the network that an engine's is.
func networkOf(tx *store.Tx, id string) (spec.Network, error) {
	all, err := tx.Networks()
	if err != nil {
		return spec.Network{}, err
	}
	for _, n := range all {
		if slices.ContainsFunc(n.Users, user(id).Same) {
			return n, nil
		}
	}
	return spec.Network{}, fmt.Errorf("network %s of Docker's: %w in the store; 'docker network rm' it and create it again", shortID(id), store.ErrNotFound)
}

// createNetwork makes a network for the engine's, or has that be one that is
// there. An engine that got no answer asks again.
func (p *Plugin) createNetwork(ctx context.Context, c networkCall) (nothing, error) {
	wanted, join, err := c.network()
	if err != nil {
		return nothing{}, err
	}
	return nothing{}, p.with(ctx, func(h hostAgent) error {
		var (
			known bool
			there spec.Network
		)
		err := h.View(func(tx *store.Tx) error {
			_, err := networkOf(tx, c.NetworkID)
			known = err == nil
			if errors.Is(err, store.ErrNotFound) {
				err = nil
				if join != "" {
					there, err = tx.Network(join)
				}
			}
			return err
		})
		switch {
		case err != nil || known:
			return err
		case join == "":
			_, err = h.CreateNetwork(wanted)
			return err
		}
		if err := checkSame(there, wanted); err != nil {
			return err
		}
		_, err = h.JoinNetwork(join, user(c.NetworkID))
		return err
	})
}

// checkSame checks that what the engine knows of a network is what it is.
func checkSame(there, known spec.Network) error {
	if known.Internal && !there.Internal {
		return fmt.Errorf("%w option --internal: network %q is not internal; leave it away, or 'ebpnet network set %s --internal'", spec.ErrInvalid, there.Name, there.Name)
	}
	same := len(there.Subnets) == len(known.Subnets)
	for i, subnet := range there.Subnets {
		same = same && slices.Contains(known.Subnets, subnet) && slices.Contains(known.Gateways, there.Gateways[i])
	}
	if same {
		return nil
	}
	return fmt.Errorf("%w options of 'docker network create': network %q does not have subnets %s with gateways %s; want %s",
		spec.ErrInvalid, there.Name, known.Subnets, known.Gateways, flagsOf(there))
}

// flagsOf gives the flags by which 'docker network create' knows a network as
// it is. Without the subnet, engines before Docker 27 refuse one that the host
// has a route to.
func flagsOf(n spec.Network) string {
	flags := []string{"--ipam-driver", driverName, "--ipam-opt", joinOption + "=" + n.Name}
	for i, subnet := range n.Subnets {
		if subnet.Addr().Is6() {
			flags = append(flags, "--ipv6")
		}
		flags = append(flags, "--subnet", subnet.String(), "--gateway", n.Gateways[i].String())
	}
	return strings.Join(flags, " ")
}

// idCall is a call about a network or one of its endpoints.
type idCall struct{ NetworkID, EndpointID string }

// deleteNetwork takes the network away with what a killed engine has left on
// it: there is none of its endpoints when an engine asks for it.
func (p *Plugin) deleteNetwork(ctx context.Context, c idCall) (nothing, error) {
	return nothing{}, p.finish(ctx, func(h hostAgent) error {
		var (
			n    spec.Network
			left []spec.Endpoint
		)
		err := h.View(func(tx *store.Tx) (err error) {
			if n, err = networkOf(tx, c.NetworkID); err == nil && n.Transient && len(n.Users) == 1 {
				left, err = tx.EndpointsOn(n.Name)
			}
			return err
		})
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, e := range left {
			if e.Container.Engine != engineName {
				continue
			}
			if err := h.RemoveEndpoint(e.Name); err != nil {
				return err
			}
		}
		return h.LeaveNetwork(n.Name, user(c.NetworkID))
	})
}
