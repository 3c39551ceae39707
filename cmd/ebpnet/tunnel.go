package main

import (
	"fmt"
	"strings"

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
				Name:    "add",
				Aliases: []string{"create"},
				Usage:   "make a tunnel; only its remote is accepted as a peer",
				UsageText: "ebpnet tunnel add NAME --remote IP [--local IP] [--network NET]...\n" +
					"   [--csum] [--seq] [--df=true|false] [--ttl N] [--copy-dscp] [--max-flood N|default]",
				Description: "It carries every network that has a key, or if it names some only those; of those, one may be without a key.\n" +
					"Checksums and sequence numbers are taken from the other side in any case. The MTU of the endpoints on the\n" +
					"networks that it carries is lowered at once if need be. Over IPv6, both addresses are IPv6.\n" +
					"Example: ebpnet tunnel add hostB --remote 192.0.2.2\n" +
					"Example: ebpnet tunnel add switch --remote 2001:db8::2 --network shop --network lab --csum",
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "remote", Usage: "`IP` of the other host"},
					&cli.StringFlag{Name: "local", Usage: "`IP` of this host (default: its tunnel address, or its first uplink's)"},
					&cli.StringSliceFlag{Name: "network", Usage: "`NET` to carry; may be repeated (default: all with a key)"},
					&cli.BoolFlag{Name: "csum", Usage: "send checksums: RFC 2784"},
					&cli.BoolFlag{Name: "seq", Usage: "send sequence numbers: RFC 2890"},
					&cli.BoolFlag{Name: "df", Usage: "forbid others to fragment it on its way; with =false, over IPv4, they may", Value: true},
					&cli.IntFlag{Name: "ttl", Usage: "send with TTL or hop limit `N`, 1 to 255", Value: spec.DefaultTTL},
					&cli.BoolFlag{Name: "copy-dscp", Usage: "send with the DSCP of the packet inside instead of 0"},
					tunnelLimitFlag("200000"),
				},
				Action: addTunnel,
			},
			{
				Name:      "set",
				Usage:     "change the limit of a tunnel, with effect on its next packet",
				UsageText: "ebpnet tunnel set NAME --max-flood N|default",
				Description: "--max-flood limits the copies a second that are made, in each network, of what comes out of the tunnel and is for many or for\n" +
					"unknown MACs: one for each local endpoint of the network. By default 200000.\n" +
					"Example: ebpnet tunnel set hostB --max-flood 10000",
				Flags:  []cli.Flag{tunnelLimitFlag("as it is")},
				Action: setTunnel,
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
						view, err := inspectTunnel(c, t)
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

func addTunnel(c *cli.Context) error {
	args, err := arguments(c, "NAME")
	if err != nil {
		return err
	}
	if err := required(c, "remote"); err != nil {
		return err
	}
	if c.IsSet("local") && c.String("local") == "" {
		return usagef("--local is empty: want an address of this host, or leave it out")
	}
	t, err := spec.NewTunnel(spec.TunnelOptions{
		Name:         args[0],
		Remote:       c.String("remote"),
		Local:        c.String("local"),
		Networks:     c.StringSlice("network"),
		Checksums:    c.Bool("csum"),
		Sequence:     c.Bool("seq"),
		Fragmentable: !c.Bool("df"),
		CopyDSCP:     c.Bool("copy-dscp"),
		TTL:          c.Int("ttl"),
	})
	if err != nil {
		return err
	}
	if c.IsSet("max-flood") {
		if t.MaxFlood, err = spec.ParseMaxFlood(c.String("max-flood")); err != nil {
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

func tunnelLimitFlag(byDefault string) cli.Flag {
	return &cli.StringFlag{Name: "max-flood", Usage: "`N` copies a second that are flooded out of it, 1 to 100000000; or default", DefaultText: byDefault}
}

func setTunnel(c *cli.Context) error {
	args, err := arguments(c, "NAME")
	if err != nil {
		return err
	}
	if err := required(c, "max-flood"); err != nil {
		return err
	}
	most, err := spec.ParseMaxFlood(c.String("max-flood"))
	if err != nil {
		return err
	}
	return withAgent(c, func(a *agent.Agent) error { return a.SetTunnel(args[0], most) })
}

func printTunnels(c *cli.Context, data any, tunnels []spec.Tunnel) error {
	t := table{headings: []string{"NAME", "LOCAL", "REMOTE", "NETWORKS", "OPTIONS"}}
	for _, tunnel := range tunnels {
		networks := "all with a key"
		if len(tunnel.Networks) > 0 {
			networks = strings.Join(tunnel.Networks, ",")
		}
		t.add(tunnel.Name, tunnel.Local.String(), tunnel.Remote.String(), networks, strings.Join(tunnelOptions(tunnel), " "))
	}
	return print(c, data, one(t))
}

// tunnelOptions gives what a tunnel was added with beyond its ends and
// networks, as it would be said again.
func tunnelOptions(t spec.Tunnel) []string {
	var options []string
	for _, o := range []struct {
		set  bool
		text string
	}{
		{t.Checksums, "--csum"},
		{t.Sequence, "--seq"},
		{t.Fragmentable, "--df=false"},
		{t.HopLimit() != spec.DefaultTTL, fmt.Sprintf("--ttl=%d", t.TTL)},
		{t.CopyDSCP, "--copy-dscp"},
		{t.MaxFlood != 0, fmt.Sprintf("--max-flood=%d", t.MaxFlood)},
	} {
		if o.set {
			options = append(options, o.text)
		}
	}
	return options
}
