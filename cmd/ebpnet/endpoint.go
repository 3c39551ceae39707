package main

import (
	"github.com/urfave/cli/v2"

	"github.com/ebpnet/ebpnet/internal/agent"
	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
)

func endpointCommand() *cli.Command {
	return &cli.Command{
		Name:        "endpoint",
		Usage:       "interfaces on a network, of containers here or behind a tunnel",
		Description: "Example: ebpnet endpoint add c1 --network web --netns c1",
		Subcommands: []*cli.Command{
			{
				Name:    "add",
				Aliases: []string{"create"},
				Usage:   "put a namespace on a network, or tell of an endpoint behind a tunnel",
				UsageText: "ebpnet endpoint add NAME --network NET --netns PATH|NAME|pid:N [--ifname eth0]\n" +
					"      [--ip IP]... [--mac MAC] [--trunk] [--expose PORT[-END][/tcp|udp]]...\n" +
					"      [--publish [[HOSTIP:][HOSTPORT[-END]]:]PORT[-END][/tcp|udp|sctp]]...\n" +
					"      [--max-flows N] [--max-half-open N] [--max-ports N] [--max-fragments N] [--max-flood N]\n" +
					"   ebpnet endpoint add NAME --network NET --tunnel TUNNEL --ip IP [--ip IP6] --mac MAC [--expose ...]...",
				Description: "A trunk has other stations behind it, as the host of virtual machines or of nested containers has:\n" +
					"it may send as any MAC and address of the network that nobody else on this host has.\n" +
					"--max-flows and the other limits: see 'ebpnet endpoint set --help'.\n" +
					"Example: ebpnet endpoint add redis1 --network web --netns redis1 --expose 6379/tcp",
				Flags: append([]cli.Flag{
					&cli.StringFlag{Name: "network", Usage: "`NET` to be on"},
					&cli.StringFlag{Name: "netns", Usage: "`NAMESPACE`: a path, a name of 'ip netns', or pid:N"},
					&cli.StringFlag{Name: "ifname", Usage: "`NAME` of the interface in the namespace", Value: "eth0"},
					&cli.StringSliceFlag{Name: "ip", Usage: "`IP`, at most one a family (default: the next free one of each subnet)"},
					&cli.StringFlag{Name: "mac", Usage: "`MAC` (default: follows from the first address)"},
					&cli.StringSliceFlag{Name: "expose", Usage: "`PORT` that links without --port open"},
					&cli.StringSliceFlag{Name: "publish", Usage: "`[[HOSTIP:][HOSTPORT]:]PORT` of the host that leads to it, see 'ebpnet port add --help'"},
					&cli.BoolFlag{Name: "trunk", Usage: "it is a bridge: other MACs are behind it, which are learned"},
					&cli.StringFlag{Name: "tunnel", Usage: "`TUNNEL` that it is behind"},
				}, endpointLimitFlags("none set")...),
				Action: addEndpoint,
			},
			{
				Name:  "set",
				Usage: "change what an endpoint of this host may do, with effect on its next packet",
				UsageText: "ebpnet endpoint set NAME [--allow none|dhcp-server|router|dhcp-server,router] [--max-flows N|default]\n" +
					"      [--max-half-open N|default] [--max-ports N|default] [--max-fragments N|default] [--max-flood N|default]",
				Description: "Only DHCP servers and relays may send as such, and only routers may send as such, also in DHCPv6 and IPv6.\n" +
					"--allow gives an endpoint these roles, in place of those that it had; 'none' takes all of them back.\n" +
					"The limits hold for what the endpoint opens or sends from then on:\n" +
					"--max-flows: its established flows. By default it never has more than are still free. A flow that is\n" +
					"closing counts until tcp-transitory (4 minutes) is over.\n" +
					"--max-half-open: its flows that nobody has answered yet. By default the endpoint that has most makes room.\n" +
					"--max-ports: its ports towards one destination. It never has more than are still free there; N lowers that.\n" +
					"--max-fragments: datagrams whose fragments are on their way. By default 64.\n" +
					"--max-flood: copies a second that are made of what it sends to many or to unknown MACs, one for each\n" +
					"member of the network. By default 50000, and 200000 for a trunk.\n" +
					"Example: ebpnet endpoint set dnsmasq --allow dhcp-server\n" +
					"Example: ebpnet endpoint set redis1 --max-flows 20000 --max-ports 5000",
				Flags: append([]cli.Flag{
					&cli.StringFlag{Name: "allow", Usage: "`ROLES`: dhcp-server, router, or both with a comma; or none", DefaultText: "as it is"},
				}, endpointLimitFlags("as it is")...),
				Action: setEndpoint,
			},
			{
				Name:        "rm",
				Usage:       "remove an endpoint with its interface, ports and links",
				UsageText:   "ebpnet endpoint rm NAME [--force]",
				Description: "Example: ebpnet endpoint rm redis1",
				Flags:       []cli.Flag{forceFlag()},
				Action: func(c *cli.Context) error {
					name, err := argumentCalled(c, "NAME", endpointCalled)
					if err != nil {
						return err
					}
					return withAgent(c, func(a *agent.Agent) error {
						if !c.Bool("force") {
							if err := a.CheckOwnEndpoint(name); err != nil {
								return err
							}
						}
						return a.RemoveEndpoint(name)
					})
				},
			},
			{
				Name:        "ls",
				Usage:       "list endpoints",
				UsageText:   "ebpnet endpoint ls [--network NET]",
				Description: "Example: ebpnet endpoint ls --network web",
				Flags:       []cli.Flag{&cli.StringFlag{Name: "network", Usage: "only those on `NET`"}},
				Action:      listEndpoints,
			},
			{
				Name:        "inspect",
				Usage:       "show an endpoint whole, as JSON",
				UsageText:   "ebpnet endpoint inspect NAME",
				Description: "Example: ebpnet endpoint inspect redis1",
				Action: func(c *cli.Context) error {
					name, err := argumentCalled(c, "NAME", endpointCalled)
					if err != nil {
						return err
					}
					return read(c, func(tx *store.Tx) error {
						e, err := tx.Endpoint(name)
						if err != nil {
							return err
						}
						view, err := inspectEndpoint(c, tx, e)
						if err != nil {
							return err
						}
						return inspect(c, view)
					})
				},
			},
		},
	}
}

// forceFlag is of commands that keep their hands off what an engine made.
func forceFlag() cli.Flag {
	return &cli.BoolFlag{Name: "force", Usage: "also what a container engine made, and still counts on"}
}

func addEndpoint(c *cli.Context) error {
	args, err := arguments(c, "NAME")
	if err != nil {
		return err
	}
	if err := required(c, "network"); err != nil {
		return err
	}
	options := spec.EndpointOptions{
		Name:      args[0],
		Network:   c.String("network"),
		Netns:     c.String("netns"),
		Ifname:    c.String("ifname"),
		Addresses: c.StringSlice("ip"),
		MAC:       c.String("mac"),
		Expose:    c.StringSlice("expose"),
		Tunnel:    c.String("tunnel"),
		Trunk:     c.Bool("trunk"),
	}
	if options.Tunnel != "" && c.IsSet("ifname") {
		return usagef("--ifname is of an endpoint on this host, not of one behind a tunnel")
	}
	if options.Tunnel != "" && c.IsSet("publish") {
		return usagef("--publish is for an endpoint on this host; publish one behind a tunnel on its own host")
	}
	limits, err := parseLimits(c)
	if err != nil {
		return err
	}
	if options.Tunnel != "" && limits != (spec.LimitsChange{}) {
		return usagef("limits are for an endpoint on this host; limit one behind a tunnel on its own host")
	}
	e, err := spec.NewEndpoint(options)
	if err != nil {
		return err
	}
	limits.Apply(&e.Limits)
	publish, err := parsePublished(c.StringSlice("publish"))
	if err != nil {
		return err
	}
	return withAgent(c, func(a *agent.Agent) error {
		e, ports, err := a.AddEndpoint(e, publish)
		if err != nil {
			return err
		}
		view := endpointView{Endpoint: e, Ports: emptyIfNil(ports)}
		return printEndpoints(c, view, []endpointView{view})
	})
}

func setEndpoint(c *cli.Context) error {
	args, err := arguments(c, "NAME")
	if err != nil {
		return err
	}
	var change agent.EndpointChange
	if c.IsSet("allow") {
		allow, err := spec.ParseAllowances(c.String("allow"))
		if err != nil {
			return err
		}
		change.Allow = &allow
	}
	if change.Limits, err = parseLimits(c); err != nil {
		return err
	}
	if change == (agent.EndpointChange{}) {
		return usagef("nothing to set; want at least one of --allow, --max-flows, --max-half-open, --max-ports, --max-fragments, --max-flood")
	}
	name, err := endpointCalled(c, args[0])
	if err != nil {
		return err
	}
	return withAgent(c, func(a *agent.Agent) error {
		if err := a.SetEndpoint(name, change); err != nil || change.Limits == (spec.LimitsChange{}) {
			return err
		}
		return warnOfUse(a, name, change.Limits)
	})
}

func listEndpoints(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	return read(c, func(tx *store.Tx) error {
		list := tx.Endpoints
		if name := c.String("network"); name != "" {
			name, err := tx.NetworkCalled(name)
			if err != nil {
				return err
			}
			if _, err := tx.Network(name); err != nil {
				return err
			}
			list = func() ([]spec.Endpoint, error) { return tx.EndpointsOn(name) }
		}
		endpoints, err := list()
		if err != nil {
			return err
		}
		views, err := withPorts(tx, endpoints)
		if err != nil {
			return err
		}
		return printEndpoints(c, views, views)
	})
}

// endpointView is an endpoint as it is printed: with what it publishes.
type endpointView struct {
	spec.Endpoint
	Ports []spec.Port `json:"ports"`
}

func withPorts(tx *store.Tx, endpoints []spec.Endpoint) ([]endpointView, error) {
	views := make([]endpointView, len(endpoints))
	for i, e := range endpoints {
		ports, err := tx.PortsOf(e.Name)
		if err != nil {
			return nil, err
		}
		views[i] = endpointView{Endpoint: e, Ports: emptyIfNil(ports)}
	}
	return views, nil
}

func printEndpoints(c *cli.Context, data any, endpoints []endpointView) error {
	t := table{headings: []string{"NAME", "NETWORK", "CONTAINER", "ADDRESSES", "MAC", "WHERE", "INTERFACE", "EXPOSES", "PUBLISHES"}}
	for _, e := range endpoints {
		where := e.Netns.Path
		switch {
		case e.Remote():
			where = "tunnel " + e.Tunnel
		case e.Handed():
			where = "with " + e.Container.Engine
		}
		t.add(e.Name, e.Network, e.Container.String(), join(e.Addresses), e.MAC.String(), where, e.Ifname, join(e.Expose), join(e.Ports))
	}
	return print(c, data, one(t))
}
