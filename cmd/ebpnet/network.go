package main

import (
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/ebpnet/ebpnet/internal/agent"
	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
)

func networkCommand() *cli.Command {
	// What is not given stays as it is where a network is changed.
	policy := func(unsaid string) []cli.Flag {
		flags := []*cli.BoolFlag{
			{Name: "icc", Usage: "endpoints may talk to each other; with =false only by links", Value: true},
			{Name: "masquerade", Usage: "the outside sees the host's address", Value: true},
			{Name: "internal", Usage: "no way out of the host, and no published ports"},
		}
		all := make([]cli.Flag, len(flags), len(flags)+1)
		for i, f := range flags {
			f.DefaultText = unsaid
			all[i] = f
		}
		filtering := &cli.StringFlag{
			Name:        "filtering",
			Usage:       "`WHO` may send to a port that masquerade gave: endpoint-independent is everybody, address-and-port-dependent those that were sent to",
			DefaultText: unsaid,
		}
		if unsaid == "" {
			filtering.Value = spec.AddressAndPortDependent.String()
		}
		return append(all, filtering)
	}
	return &cli.Command{
		Name:        "network",
		Usage:       "layer-2 segments: subnets, gateway, policy",
		Description: "Example: ebpnet network create web --subnet 10.1.0.0/24",
		Subcommands: []*cli.Command{
			{
				Name:    "create",
				Aliases: []string{"add"},
				Usage:   "make a network",
				UsageText: "ebpnet network create NAME --subnet CIDR [--subnet CIDR6] [--gateway IP]\n" +
					"   [--icc=true|false] [--masquerade=true|false] [--internal] [--key N] [--mtu N]\n" +
					"   [--filtering endpoint-independent|address-and-port-dependent]",
				Description: "Example: ebpnet network create web --subnet 10.1.0.0/24 --subnet fd00:1::/64 --icc=false",
				Flags: append([]cli.Flag{
					&cli.StringSliceFlag{Name: "subnet", Usage: "`CIDR`, at most one a family"},
					&cli.StringFlag{Name: "gateway", Usage: "`IP` of the host on the network (default: a subnet's first)"},
					&cli.StringFlag{Name: "key", Usage: "GRE key `N` in tunnels to other hosts (default: only tunnels that name the network carry it, without a key)"},
					&cli.IntFlag{Name: "mtu", Usage: "`N` bytes", DefaultText: "what fits the uplinks and tunnels"},
				}, policy("")...),
				Action: createNetwork,
			},
			{
				Name:  "set",
				Usage: "change a network's policy, with effect on the next packet, or its MTU, with effect on all endpoints",
				UsageText: "ebpnet network set NAME [--icc=true|false] [--masquerade=true|false] [--internal=true|false]\n" +
					"   [--filtering endpoint-independent|address-and-port-dependent] [--mtu N]",
				Description: "Example: ebpnet network set web --icc=false",
				Flags: append([]cli.Flag{
					&cli.IntFlag{Name: "mtu", Usage: "`N` bytes; 0 for what fits the uplinks and tunnels", DefaultText: "as it is"},
				}, policy("as it is")...),
				Action: setNetwork,
			},
			{
				Name:        "rm",
				Usage:       "remove a network without endpoints that no tunnel names",
				UsageText:   "ebpnet network rm NAME [--force]",
				Description: "Example: ebpnet network rm web",
				Flags:       []cli.Flag{forceFlag()},
				Action: func(c *cli.Context) error {
					name, err := argumentCalled(c, "NAME", networkCalled)
					if err != nil {
						return err
					}
					return withAgent(c, func(a *agent.Agent) error {
						if !c.Bool("force") {
							if err := a.CheckOwnNetwork(name); err != nil {
								return err
							}
						}
						return a.RemoveNetwork(name)
					})
				},
			},
			{
				Name:        "ls",
				Usage:       "list networks",
				UsageText:   "ebpnet network ls",
				Description: "Example: ebpnet network ls -o json",
				Action:      listNetworks,
			},
			{
				Name:        "inspect",
				Usage:       "show a network whole, as JSON",
				UsageText:   "ebpnet network inspect NAME",
				Description: "Example: ebpnet network inspect web",
				Action: func(c *cli.Context) error {
					name, err := argumentCalled(c, "NAME", networkCalled)
					if err != nil {
						return err
					}
					return read(c, func(tx *store.Tx) error {
						n, err := tx.Network(name)
						if err != nil {
							return err
						}
						return inspect(c, n)
					})
				},
			},
		},
	}
}

func createNetwork(c *cli.Context) error {
	args, err := arguments(c, "NAME")
	if err != nil {
		return err
	}
	if err := required(c, "subnet"); err != nil {
		return err
	}
	n, err := spec.NewNetwork(args[0], c.StringSlice("subnet"), c.String("gateway"), c.String("key"), c.Int("mtu"))
	if err != nil {
		return err
	}
	n.ICC, n.Masquerade, n.Internal = c.Bool("icc"), c.Bool("masquerade"), c.Bool("internal")
	if n.Filtering, err = spec.ParseFiltering(c.String("filtering")); err != nil {
		return err
	}
	return withAgent(c, func(a *agent.Agent) error {
		n, err := a.CreateNetwork(n)
		if err != nil {
			return err
		}
		return printNetworks(c, n, []spec.Network{n})
	})
}

func setNetwork(c *cli.Context) error {
	name, err := argumentCalled(c, "NAME", networkCalled)
	if err != nil {
		return err
	}
	var change agent.NetworkChange
	given := false
	for flag, to := range map[string]**bool{"icc": &change.ICC, "masquerade": &change.Masquerade, "internal": &change.Internal} {
		if c.IsSet(flag) {
			value := c.Bool(flag)
			*to = &value
			given = true
		}
	}
	if c.IsSet("filtering") {
		filtering, err := spec.ParseFiltering(c.String("filtering"))
		if err != nil {
			return err
		}
		change.Filtering = &filtering
		given = true
	}
	if c.IsSet("mtu") {
		mtu := c.Int("mtu")
		if err := spec.CheckMTU(mtu); err != nil {
			return err
		}
		change.MTU = &mtu
		given = true
	}
	if !given {
		return usagef("nothing to set; want at least one of --icc, --masquerade, --internal, --filtering, --mtu")
	}
	return withAgent(c, func(a *agent.Agent) error { return a.SetNetwork(name, change) })
}

func listNetworks(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	return read(c, func(tx *store.Tx) error {
		networks, err := tx.Networks()
		if err != nil {
			return err
		}
		return printNetworks(c, emptyIfNil(networks), networks)
	})
}

// usersText shows the engines' networks that a network is.
func usersText(users []spec.Identity) string {
	texts := make([]string, len(users))
	for i, user := range users {
		texts[i] = user.Engine + " " + user.String()
	}
	return strings.Join(texts, ",")
}

func printNetworks(c *cli.Context, data any, networks []spec.Network) error {
	t := table{headings: []string{"NAME", "SUBNETS", "GATEWAYS", "ICC", "MASQUERADE", "FILTERING", "INTERNAL", "KEY", "MTU"}}
	engines := slices.ContainsFunc(networks, func(n spec.Network) bool { return len(n.Users) > 0 })
	if engines {
		t.headings = append(t.headings, "USED BY")
	}
	for _, n := range networks {
		key, mtu := "", "auto"
		if n.Key != nil {
			key = strconv.FormatUint(uint64(*n.Key), 10)
		}
		if n.MTU != 0 {
			mtu = strconv.Itoa(n.MTU)
		}
		cells := []string{n.Name, join(n.Subnets), join(n.Gateways), yesNo(n.ICC), yesNo(n.Masquerade), n.Filtering.String(), yesNo(n.Internal), key, mtu}
		if engines {
			cells = append(cells, usersText(n.Users))
		}
		t.add(cells...)
	}
	return print(c, data, one(t))
}
