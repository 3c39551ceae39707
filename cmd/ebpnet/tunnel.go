package main

import (
	"github.com/urfave/cli/v2"

	"github.com/ebpnet/ebpnet/internal/agent"
	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
)

func tunnelCommand() *cli.Command {
	return &cli.Command{
		Name:        "tunnel",
		Usage:       "GRE to other hosts",
		Description: "Example: ebpnet tunnel add hostB --remote 192.0.2.2",
		Subcommands: []*cli.Command{
			{
				Name:        "add",
				Aliases:     []string{"create"},
				Usage:       "make a tunnel; only its remote is accepted as a peer",
				UsageText:   "ebpnet tunnel add NAME --remote IP [--local IP]",
				Description: "Example: ebpnet tunnel add hostB --remote 192.0.2.2",
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "remote", Usage: "`IP` of the other host"},
					&cli.StringFlag{Name: "local", Usage: "`IP` of this host (default: its tunnel address, or its first uplink's)"},
				},
				Action: addTunnel,
			},
			{
				Name:        "rm",
				Usage:       "remove a tunnel that no endpoint is behind",
				UsageText:   "ebpnet tunnel rm NAME",
				Description: "Example: ebpnet tunnel rm hostB",
				Action: func(c *cli.Context) error {
					args, err := arguments(c, "NAME")
					if err != nil {
						return err
					}
					return withAgent(c, func(a *agent.Agent) error { return a.RemoveTunnel(args[0]) })
				},
			},
			{
				Name:        "ls",
				Usage:       "list tunnels",
				UsageText:   "ebpnet tunnel ls",
				Description: "Example: ebpnet tunnel ls -o json",
				Action: func(c *cli.Context) error {
					if _, err := arguments(c); err != nil {
						return err
					}
					return read(c, func(tx *store.Tx) error {
						tunnels, err := tx.Tunnels()
						if err != nil {
							return err
						}
						return printTunnels(c, emptyIfNil(tunnels), tunnels)
					})
				},
			},
			{
				Name:        "inspect",
				Usage:       "show a tunnel whole, as JSON",
				UsageText:   "ebpnet tunnel inspect NAME",
				Description: "Example: ebpnet tunnel inspect hostB",
				Action: func(c *cli.Context) error {
					args, err := arguments(c, "NAME")
					if err != nil {
						return err
					}
					return read(c, func(tx *store.Tx) error {
						t, err := tx.Tunnel(args[0])
						if err != nil {
							return err
						}
						return inspect(c, t)
					})
				},
			},
		},
	}
}

func addTunnel(c *cli.Context) error {
	args, err := arguments(c, "NAME")
	if err != nil {
		return err
	}
	if err := required(c, "remote"); err != nil {
		return err
	}
	t := spec.Tunnel{Name: args[0]}
	if err := spec.Name("tunnel", t.Name); err != nil {
		return err
	}
	if t.Remote, err = spec.ParseAddress(c.String("remote")); err != nil {
		return err
	}
	if c.IsSet("local") {
		if t.Local, err = spec.ParseAddress(c.String("local")); err != nil {
			return err
		}
	}
	return withAgent(c, func(a *agent.Agent) error {
		t, err := a.AddTunnel(t)
		if err != nil {
			return err
		}
		return printTunnels(c, t, []spec.Tunnel{t})
	})
}

func printTunnels(c *cli.Context, data any, tunnels []spec.Tunnel) error {
	t := table{headings: []string{"NAME", "LOCAL", "REMOTE"}}
	for _, tunnel := range tunnels {
		t.add(tunnel.Name, tunnel.Local.String(), tunnel.Remote.String())
	}
	return print(c, data, one(t))
}
