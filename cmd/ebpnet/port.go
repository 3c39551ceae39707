package main

import (
	"fmt"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/ebpnet/ebpnet/internal/agent"
	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
)

// leftOut is about the names of ports that are published.
const leftOut = "HOSTIP and HOSTPORT may be left out if only one published port is meant then.\n"

func portCommand() *cli.Command {
	return &cli.Command{
		Name:        "port",
		Usage:       "ports of the host that lead to an endpoint's",
		Description: "Example: ebpnet port add web 8080:80",
		Subcommands: []*cli.Command{
			{
				Name:    "add",
				Aliases: []string{"create"},
				Usage:   "publish a port, or a range, of an endpoint",
				UsageText: "ebpnet port add ENDPOINT [[HOSTIP:][HOSTPORT[-END]]:]PORT[-END][/tcp|udp|sctp] [--allow-from CIDR]...\n" +
					"      [--max-flows N|default]",
				Description: "Without HOSTIP, at every address of the host, of both families as the endpoint has them; 0.0.0.0 is every\n" +
					"IPv4 address, [::] every IPv6 address; 127.0.0.1 and [::1] are for the host itself. Without HOSTPORT, free\n" +
					fmt.Sprintf("ports from %d to %d are chosen.\n", spec.FirstChosenPort, spec.LastChosenPort) +
					"--max-flows limits the established flows from outside. By default a port never has more than are still free.\n" +
					"A flow that is closing counts until tcp-transitory (4 minutes) is over.\n" +
					"Example: ebpnet port add web 192.0.2.1:8080:80/tcp --allow-from 198.51.100.0/24",
				Flags: []cli.Flag{
					&cli.StringSliceFlag{
						Name:  "allow-from",
						Usage: fmt.Sprintf("`CIDR` of clients, all others are refused; may be repeated, up to %d times", spec.MaxSources),
					},
					portLimitFlag("what is still free"),
				},
				Action: addPort,
			},
			{
				Name:      "set",
				Usage:     "change the limit of a published port, with effect on new flows",
				UsageText: "ebpnet port set ENDPOINT [[HOSTIP:][HOSTPORT[-END]]:]PORT[-END][/tcp|udp|sctp] --max-flows N|default",
				Description: "--max-flows limits the established flows from outside. By default a port never has more than are still free.\n" +
					"A flow that is closing counts until tcp-transitory (4 minutes) is over.\n" +
					leftOut + "Example: ebpnet port set web 8080:80 --max-flows 20000",
				Flags:  []cli.Flag{portLimitFlag("as it is")},
				Action: setPort,
			},
			{
				Name:        "rm",
				Usage:       "take a published port away; its connections end with the next packet",
				UsageText:   "ebpnet port rm ENDPOINT [[HOSTIP:][HOSTPORT[-END]]:]PORT[-END][/tcp|udp|sctp]",
				Description: leftOut + "Example: ebpnet port rm web 8080:80",
				Action: func(c *cli.Context) error {
					endpoint, p, err := portArguments(c)
					if err != nil {
						return err
					}
					return withAgent(c, func(a *agent.Agent) error { return a.RemovePort(endpoint, p) })
				},
			},
			{
				Name:        "ls",
				Usage:       "list published ports",
				UsageText:   "ebpnet port ls [ENDPOINT]",
				Description: "Example: ebpnet port ls -o json",
				Action:      listPorts,
			},
			{
				Name:        "inspect",
				Usage:       "show a published port whole, as JSON",
				UsageText:   "ebpnet port inspect ENDPOINT [[HOSTIP:][HOSTPORT[-END]]:]PORT[-END][/tcp|udp|sctp]",
				Description: leftOut + "Example: ebpnet port inspect web 8080:80",
				Action: func(c *cli.Context) error {
					endpoint, p, err := portArguments(c)
					if err != nil {
						return err
					}
					return read(c, func(tx *store.Tx) error {
						found, err := agent.FindPort(tx, endpoint, p)
						if err != nil {
							return err
						}
						view := portInspection{Port: found}
						if err := withTables(c, view.read); err != nil {
							return err
						}
						return inspect(c, view)
					})
				},
			},
		},
	}
}

func portArguments(c *cli.Context) (endpoint string, p spec.Port, err error) {
	args, err := arguments(c, "ENDPOINT", "[[HOSTIP:][HOSTPORT[-END]]:]PORT[-END][/tcp|udp|sctp]")
	if err != nil {
		return "", p, err
	}
	if p, err = spec.ParsePort(args[1]); err != nil {
		return "", p, err
	}
	endpoint, err = endpointCalled(c, args[0])
	return endpoint, p, err
}

// parsePublished reads what --publish says.
func parsePublished(list []string) ([]spec.Port, error) {
	var ports []spec.Port
	for _, s := range list {
		p, err := spec.ParsePort(s)
		if err != nil {
			return nil, err
		}
		ports = append(ports, p)
	}
	return ports, nil
}

func addPort(c *cli.Context) error {
	endpoint, p, err := portArguments(c)
	if err != nil {
		return err
	}
	if err := p.Restrict(c.StringSlice("allow-from")); err != nil {
		return err
	}
	if c.IsSet("max-flows") {
		if p.MaxFlows, err = spec.ParseMaxFlows(c.String("max-flows")); err != nil {
			return err
		}
	}
	return withAgent(c, func(a *agent.Agent) error {
		p, err := a.AddPort(endpoint, p)
		if err != nil {
			return err
		}
		return printPorts(c, p, []spec.Port{p})
	})
}

func portLimitFlag(byDefault string) cli.Flag {
	return &cli.StringFlag{Name: "max-flows", Usage: "`N` established flows from outside, 1 to 4194304; or default", DefaultText: byDefault}
}

func setPort(c *cli.Context) error {
	endpoint, p, err := portArguments(c)
	if err != nil {
		return err
	}
	if err := required(c, "max-flows"); err != nil {
		return err
	}
	most, err := spec.ParseMaxFlows(c.String("max-flows"))
	if err != nil {
		return err
	}
	return withAgent(c, func(a *agent.Agent) error {
		flows, err := a.SetPort(endpoint, p, most)
		if err == nil && flows.Set && flows.Established > int(most) {
			warnings(os.Stderr).Warn("the limit is for new flows: the port has more established ones, which go on",
				"endpoint", endpoint, "port", p, "established", flows.Established, "limit", most)
		}
		return err
	})
}

func listPorts(c *cli.Context) error {
	var names []string
	if c.Args().Present() {
		names = append(names, "ENDPOINT")
	}
	args, err := arguments(c, names...)
	if err != nil {
		return err
	}
	return read(c, func(tx *store.Tx) error {
		list := tx.Ports
		if len(args) > 0 {
			name, err := tx.EndpointCalled(args[0])
			if err != nil {
				return err
			}
			if _, err := tx.Endpoint(name); err != nil {
				return err
			}
			list = func() ([]spec.Port, error) { return tx.PortsOf(name) }
		}
		ports, err := list()
		if err != nil {
			return err
		}
		return printPorts(c, emptyIfNil(ports), ports)
	})
}

// printPorts prints HOST and PORT so that with a colon in between they are
// what `port rm` takes.
func printPorts(c *cli.Context, data any, ports []spec.Port) error {
	t := table{headings: []string{"ENDPOINT", "HOST", "PORT", "PROTOCOL", "ALLOW FROM"}}
	for _, p := range ports {
		sources := "everywhere"
		if len(p.AllowFrom) > 0 {
			sources = join(p.AllowFrom)
		}
		t.add(p.Endpoint, p.Host(), p.TargetText(), p.Protocol.String(), sources)
	}
	return print(c, data, one(t))
}
