package main

import (
	"errors"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/ebpnet/ebpnet/datapath"
	"github.com/ebpnet/ebpnet/internal/agent"
	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
	"github.com/ebpnet/ebpnet/loader"
)

// limit is an option of `endpoint add` and `endpoint set` that sets a limit.
type limit struct {
	name, usage string
	parse       func(string) (uint32, error)
	field       func(*spec.LimitsChange) **uint32
}

func endpointLimits() []limit {
	return []limit{
		{
			"max-flows", "`N` established flows, 1 to 4194304; or default", spec.ParseMaxFlows,
			func(c *spec.LimitsChange) **uint32 { return &c.MaxFlows },
		},
		{
			"max-half-open", "`N` half-open flows, 1 to 65536; or default", spec.ParseMaxHalfOpen,
			func(c *spec.LimitsChange) **uint32 { return &c.MaxHalfOpen },
		},
		{
			"max-ports", "`N` ports towards one destination, 1 to 65535; or default", spec.ParseMaxPorts,
			func(c *spec.LimitsChange) **uint32 { return &c.MaxPorts },
		},
		{
			"max-fragments", "`N` datagrams in fragments at once, 1 to 64; or default", spec.ParseMaxFragments,
			func(c *spec.LimitsChange) **uint32 { return &c.MaxFragments },
		},
		{
			"max-flood", "`N` copies a second that are flooded for it, 1 to 100000000; or default", spec.ParseMaxFlood,
			func(c *spec.LimitsChange) **uint32 { return &c.MaxFlood },
		},
	}
}

func endpointLimitFlags(byDefault string) []cli.Flag {
	var flags []cli.Flag
	for _, l := range endpointLimits() {
		flags = append(flags, &cli.StringFlag{Name: l.name, Usage: l.usage, DefaultText: byDefault})
	}
	return flags
}

// parseLimits reads the limits that are given.
func parseLimits(c *cli.Context) (change spec.LimitsChange, err error) {
	for _, l := range endpointLimits() {
		if !c.IsSet(l.name) {
			continue
		}
		n, err := l.parse(c.String(l.name))
		if err != nil {
			return change, err
		}
		*l.field(&change) = &n
	}
	return change, nil
}

// warnOfUse says so if an endpoint has more than the limits allow that were just
// set.
func warnOfUse(a *agent.Agent, endpoint string, change spec.LimitsChange) error {
	use, err := a.EndpointUse(endpoint)
	if err != nil {
		return err
	}
	for _, l := range []struct {
		set     *uint32
		what    string
		inUse   int
		message string
	}{
		{change.MaxFlows, "established", use.Flows.Established, "the limit is for new flows: the endpoint has more established ones, which go on"},
		{change.MaxHalfOpen, "half_open", use.Flows.HalfOpen, "the limit is for new flows: the endpoint has more half-open ones, which go on"},
		{change.MaxPorts, "ports", use.Ports.Most, "the limit is for new flows: the endpoint has more ports towards " + use.Ports.Towards + ", which it keeps"},
		{change.MaxFragments, "datagrams", use.Fragments.Datagrams, "the limit is for new datagrams: the endpoint has more on their way, whose next fragments may be dropped"},
	} {
		if l.set != nil && *l.set != 0 && l.inUse > int(*l.set) {
			warnings(os.Stderr).Warn(l.message, "endpoint", endpoint, l.what, l.inUse, "limit", *l.set)
		}
	}
	return nil
}

// withTables runs f on the datapath, if it is loaded.
func withTables(c *cli.Context, f func(*datapath.Tables) error) error {
	tables, err := datapath.Open(c.String("pin"))
	if errors.Is(err, loader.ErrNotLoaded) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(f(tables), tables.Close())
}

// endpointInspection is an endpoint with what it has of what is limited.
type endpointInspection struct {
	endpointView
	Ports []portInspection `json:"ports"`

	// The rest is of a local endpoint, if the datapath is loaded.
	Flows        *datapath.EndpointFlows `json:"flows,omitempty"`
	OutwardPorts *datapath.PortShare     `json:"outward_ports,omitempty"`
	Fragments    *datapath.FragmentShare `json:"fragments,omitempty"`
	Flood        *flood                  `json:"flood,omitempty"`
}

// portInspection is a published port with the flows from outside by it.
type portInspection struct {
	spec.Port
	Flows *datapath.FlowShare `json:"flows,omitempty"` // if the datapath is loaded
}

// tunnelInspection is a tunnel with what is flooded out of it.
type tunnelInspection struct {
	spec.Tunnel
	Flood *tunnelFlood `json:"flood,omitempty"` // if the datapath is loaded
}

type tunnelFlood struct {
	datapath.FloodShare
	Set bool `json:"set"` // the limit, by the user
}

func inspectEndpoint(c *cli.Context, tx *store.Tx, e spec.Endpoint) (view endpointInspection, err error) {
	views, err := withPorts(tx, []spec.Endpoint{e})
	if err != nil {
		return view, err
	}
	view = endpointInspection{endpointView: views[0], Ports: []portInspection{}}
	for _, p := range views[0].Ports {
		view.Ports = append(view.Ports, portInspection{Port: p})
	}
	if e.Remote() {
		return view, nil
	}
	host, _, err := tx.Host()
	if err != nil {
		return view, err
	}
	masquerade := datapath.PortRange(host.MasqueradePorts.Effective())
	return view, withTables(c, func(t *datapath.Tables) error {
		use, err := t.EndpointUse(e.ID, masquerade)
		if err != nil {
			return err
		}
		view.Flows, view.OutwardPorts, view.Fragments = &use.Flows, &use.Ports, &use.Fragments
		if view.Flood, err = readFlood(t, tx, e); err != nil {
			return err
		}
		for i := range view.Ports {
			if err := view.Ports[i].read(t); err != nil {
				return err
			}
		}
		return nil
	})
}

func (p *portInspection) read(t *datapath.Tables) error {
	flows, err := t.PortFlowShare(p.ID)
	p.Flows = &flows
	return err
}

func inspectTunnel(c *cli.Context, t spec.Tunnel) (tunnelInspection, error) {
	view := tunnelInspection{Tunnel: t}
	return view, withTables(c, func(tables *datapath.Tables) error {
		share, err := tables.TunnelFloodShare(t.ID)
		view.Flood = &tunnelFlood{share, t.MaxFlood != 0}
		return err
	})
}
