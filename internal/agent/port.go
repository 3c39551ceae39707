package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/ebpnet/ebpnet/datapath"
	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
)

// maxPorts bounds the ids of publications, and so how many there are.
const maxPorts = 65535

// AddPort publishes a port or range of an endpoint, and gives it back with
// what it was given: id, and ports of the host if none were asked for.
func (a *Agent) AddPort(endpoint string, p spec.Port) (spec.Port, error) {
	var (
		e       spec.Endpoint
		network spec.Network
		ports   []spec.Port
	)
	if err := a.followPathsFor(endpoint); err != nil {
		return p, err
	}
	err := a.do(change{
		noun: store.Change{Kind: store.KindPort, Key: endpoint},
		write: func(tx *store.Tx) (err error) {
			if e, network, err = endpointOn(tx, endpoint); err != nil {
				return err
			}
			ports, err = publishAll(tx, e, network, []spec.Port{p})
			return err
		},
		apply:  func() error { return a.putPorts(ports, e, network) },
		revert: func(tx *store.Tx) error { return tx.DeletePort(store.PortKeyOf(ports[0])) },
	})
	if err != nil {
		return p, err
	}
	return ports[0], nil
}

func endpointOn(tx *store.Tx, name string) (e spec.Endpoint, n spec.Network, err error) {
	if e, err = tx.Endpoint(name); err != nil {
		return e, n, err
	}
	n, err = tx.Network(e.Network)
	return e, n, err
}

// RemovePort takes away what an endpoint publishes as the user says it (see
// spec.Port.Matches).
func (a *Agent) RemovePort(endpoint string, p spec.Port) error {
	var (
		e       spec.Endpoint
		network spec.Network
		found   spec.Port
	)
	return a.do(change{
		noun: store.Change{Kind: store.KindPort, Key: endpoint},
		write: func(tx *store.Tx) (err error) {
			if e, network, err = endpointOn(tx, endpoint); err != nil {
				return err
			}
			if found, err = FindPort(tx, endpoint, p); err != nil {
				return err
			}
			return tx.DeletePort(store.PortKeyOf(found))
		},
		apply:  func() error { return a.deletePorts([]spec.Port{found}, e, network) },
		revert: func(tx *store.Tx) error { return tx.PutPort(found) },
	})
}

// SetPort limits the established flows from outside by what an endpoint publishes
// as the user says it; 0 is the default. It gives what flows there are.
func (a *Agent) SetPort(endpoint string, p spec.Port, maxFlows uint32) (flows datapath.FlowShare, err error) {
	var before, after spec.Port
	err = a.do(change{
		noun: store.Change{Kind: store.KindPort, Key: endpoint},
		write: func(tx *store.Tx) (err error) {
			if before, err = FindPort(tx, endpoint, p); err != nil {
				return err
			}
			after = before
			after.MaxFlows = maxFlows
			return tx.PutPort(after)
		},
		apply: func() (err error) {
			if err := a.tables.SetPortLimit(after.ID, maxFlows); err != nil {
				return err
			}
			flows, err = a.tables.PortFlowShare(after.ID)
			return err
		},
		revert: func(tx *store.Tx) error { return tx.PutPort(before) },
	})
	return flows, err
}

// SetPorts has an endpoint publish what an engine wants, and nothing else that
// this had asked for before, and gives it back with what it was given. What is
// published already stays as it is, and so does what the user publishes.
func (a *Agent) SetPorts(endpoint, engine string, wanted []spec.Port) ([]spec.Port, error) {
	var (
		e             spec.Endpoint
		network       spec.Network
		kept          []spec.Port
		gone, arrived []spec.Port
	)
	if err := a.followPathsFor(endpoint); err != nil {
		return nil, err
	}
	err := a.do(change{
		noun: store.Change{Kind: store.KindPort, Key: endpoint},
		write: func(tx *store.Tx) (err error) {
			if e, network, err = endpointOn(tx, endpoint); err != nil {
				return err
			}
			if gone, err = tx.PortsOf(endpoint); err != nil {
				return err
			}
			var missing []spec.Port
			for _, w := range wanted {
				i := slices.IndexFunc(gone, func(p spec.Port) bool { return p.Fulfills(w) })
				if i < 0 {
					w.Engine = engine
					missing = append(missing, w)
					continue
				}
				kept = append(kept, gone[i])
				gone = slices.Delete(gone, i, i+1)
			}
			gone = slices.DeleteFunc(gone, func(p spec.Port) bool { return p.Engine != engine })
			for _, p := range gone {
				if err := tx.DeletePort(store.PortKeyOf(p)); err != nil {
					return err
				}
			}
			arrived, err = publishAll(tx, e, network, missing)
			return err
		},
		apply: func() error {
			if err := a.deletePorts(gone, e, network); err != nil {
				return err
			}
			return a.putPorts(arrived, e, network)
		},
		revert: func(tx *store.Tx) error {
			for _, p := range arrived {
				if err := tx.DeletePort(store.PortKeyOf(p)); err != nil {
					return err
				}
			}
			return putPorts(tx, gone)
		},
	})
	return append(kept, arrived...), err
}

// FindPort finds what an endpoint publishes as the user says it, or gives
// store.ErrNotFound; ErrUnfit if that may be several.
func FindPort(tx *store.Tx, endpoint string, p spec.Port) (spec.Port, error) {
	if _, err := tx.Endpoint(endpoint); err != nil {
		return p, err
	}
	ports, err := tx.PortsOf(endpoint)
	if err != nil {
		return p, err
	}
	ports = slices.DeleteFunc(ports, func(o spec.Port) bool { return !o.Matches(p) })
	switch len(ports) {
	case 0:
		return p, store.NotFound("endpoint %q publishes no %s: see 'ebpnet port ls %s'", endpoint, p, endpoint)
	case 1:
		return ports[0], nil
	}
	return p, fmt.Errorf("%s of endpoint %q %w: it is published as %s; name one of them", p, endpoint, ErrUnfit, listSome(ports))
}

// listSome names publications, or the first of many.
func listSome(ports []spec.Port) string {
	const most = 4
	names := make([]string, min(len(ports), most))
	for i := range names {
		names[i] = ports[i].String()
	}
	text := strings.Join(names, ", ")
	if more := len(ports) - len(names); more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// publishAll writes new publications of an endpoint into the store.
func publishAll(tx *store.Tx, e spec.Endpoint, n spec.Network, wanted []spec.Port) ([]spec.Port, error) {
	var ports []spec.Port
	room := newRoom(tx, e)
	for _, p := range wanted {
		p.Endpoint = e.Name
		if err := checkPublishable(tx, e, n, p); err != nil {
			return nil, err
		}
		if err := room.take(&p, addressesOf(p, e)); err != nil {
			return nil, err
		}
		var err error
		if p.ID, err = tx.NextID(store.KindPort, 1, maxPorts); err != nil {
			return nil, err
		}
		if err := tx.PutPort(p); err != nil {
			return nil, err
		}
		ports = append(ports, p)
	}
	return ports, nil
}

// checkPublishable checks whether an endpoint can publish a port at all.
func checkPublishable(tx *store.Tx, e spec.Endpoint, n spec.Network, p spec.Port) error {
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("port %s of endpoint %q %w: %s", p, e.Name, ErrUnfit, fmt.Sprintf(format, args...))
	}
	if e.Remote() {
		return refuse("it is behind tunnel %q; publish it on its own host", e.Tunnel)
	}
	if n.Internal {
		return refuse("network %q is internal, and nothing gets in or out", n.Name)
	}
	if !p.Address.IsValid() {
		return nil
	}
	if len(addressesOf(p, e)) == 0 {
		return refuse("it has no address of the family of %s", p.Address)
	}
	if slices.Contains(e.Addresses, p.Address) {
		if n.Masquerade || p.First != p.TargetFirst {
			return refuse("its own address can be reached without translation only: want a network without masquerade, and the same port")
		}
		return nil
	}
	networks, err := tx.Networks()
	if err != nil {
		return err
	}
	for _, other := range networks {
		if within(other, p.Address) && !slices.Contains(other.Gateways, p.Address) {
			return refuse("%s lies in network %q, and will be no address of this host", p.Address, other.Name)
		}
	}
	return nil
}

func within(n spec.Network, a netip.Addr) bool {
	return slices.ContainsFunc(n.Subnets, func(subnet netip.Prefix) bool { return subnet.Contains(a) })
}

// published is a host address and what it leads to; the same, if the host
// routes to the endpoint.
type published struct{ host, target netip.Addr }

// addressesOf gives where an endpoint is published, at most once a family.
func addressesOf(p spec.Port, e spec.Endpoint) []published {
	var all []published
	for _, target := range e.Addresses {
		at := p.Address
		if !at.IsValid() {
			at = netip.IPv6Unspecified()
			if target.Is4() {
				at = netip.IPv4Unspecified()
			}
		}
		if at.Is4() == target.Is4() {
			all = append(all, published{at, target})
		}
	}
	return all
}

// portEntries puts a publication into the tables' terms.
func portEntries(p spec.Port, e spec.Endpoint, n spec.Network) []datapath.Port {
	var entries []datapath.Port
	routes := make([]datapath.PortRoute, len(e.Paths))
	for i, path := range e.Paths {
		routes[i] = datapath.PortRoute{Prefix: path.Destination, Elsewhere: path.Elsewhere}
	}
	for _, at := range addressesOf(p, e) {
		entries = append(entries, datapath.Port{
			ID:          p.ID,
			Address:     at.host,
			Protocol:    uint8(p.Protocol),
			First:       p.First,
			Last:        p.Last,
			Target:      at.target,
			TargetFirst: p.TargetFirst,
			Network:     n.ID,
			Endpoint:    e.ID,
			AllowFrom:   p.AllowFrom,
			MaxFlows:    p.MaxFlows,
			Routes:      routes,
		})
	}
	return entries
}

func allEntries(ports []spec.Port, e spec.Endpoint, n spec.Network) []datapath.Port {
	var entries []datapath.Port
	for _, p := range ports {
		entries = append(entries, portEntries(p, e, n)...)
	}
	return entries
}

// putPorts brings new publications of an endpoint into the kernel.
func (a *Agent) putPorts(ports []spec.Port, e spec.Endpoint, n spec.Network) error {
	if len(ports) == 0 {
		return nil
	}
	if err := a.openLoopback(); err != nil {
		return err
	}
	if err := a.tables.PutPorts(allEntries(ports, e, n)); err != nil {
		return fmt.Errorf("publish ports of endpoint %q: %w", e.Name, err)
	}
	return nil
}

// deletePorts takes publications of an endpoint out of the kernel.
func (a *Agent) deletePorts(ports []spec.Port, e spec.Endpoint, n spec.Network) error {
	if len(ports) == 0 {
		return nil
	}
	if err := a.tables.DeletePorts(allEntries(ports, e, n)); err != nil {
		return err
	}
	return a.closeLoopback()
}

// putPorts puts publications back into the store.
func putPorts(tx *store.Tx, ports []spec.Port) error {
	for _, p := range ports {
		if err := tx.PutPort(p); err != nil {
			return err
		}
	}
	return nil
}
