package main

import (
	"cmp"
	"fmt"
	"net"
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/ebpnet/ebpnet/datapath"
	"github.com/ebpnet/ebpnet/internal/agent"
	"github.com/ebpnet/ebpnet/internal/store"
)

func fdbCommand() *cli.Command {
	ofNetwork := &cli.StringFlag{Name: "network", Usage: "only those on `NET`"}
	return &cli.Command{
		Name:        "fdb",
		Usage:       "stations: which MAC of a network is where, known or learned",
		Description: "Example: ebpnet fdb ls",
		Subcommands: []*cli.Command{
			{
				Name:      "ls",
				Usage:     "list stations",
				UsageText: "ebpnet fdb ls [--network NET]",
				Description: "Endpoints and gateways are known. What is behind a trunk or a tunnel is learned from what it sends;\n" +
					"AGE is since when it has been silent, 'ebpnet load --timeout fdb=DURATION' for how long it may be.\n" +
					"Example: ebpnet fdb ls --network web -o json",
				Flags:  []cli.Flag{ofNetwork},
				Action: listStations,
			},
			{
				Name:      "flush",
				Usage:     "forget learned stations; they are learned anew from what they send",
				UsageText: "ebpnet fdb flush [--network NET] [--tunnel TUNNEL] [--endpoint ENDPOINT]",
				Description: "Those are forgotten that fit all that is given. Known ones stay.\n" +
					"Example: ebpnet fdb flush --tunnel hostB",
				Flags: []cli.Flag{
					ofNetwork,
					&cli.StringFlag{Name: "tunnel", Usage: "only those behind `TUNNEL`"},
					&cli.StringFlag{Name: "endpoint", Usage: "only those behind `ENDPOINT`, a trunk"},
				},
				Action: flushStations,
			},
		},
	}
}

// choice gives the name that a flag chooses by, "" if it was not given.
func choice(c *cli.Context, flag string) (string, error) {
	name := c.String(flag)
	if name == "" && c.IsSet(flag) {
		return "", usagef("--%s is empty: want a name, or leave it out for all", flag)
	}
	return name, nil
}

func flushStations(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	var filter agent.LearnedFilter
	for flag, to := range map[string]*string{"network": &filter.Network, "tunnel": &filter.Tunnel, "endpoint": &filter.Endpoint} {
		var err error
		if *to, err = choice(c, flag); err != nil {
			return err
		}
	}
	return withAgent(c, func(a *agent.Agent) error { return a.FlushLearned(filter) })
}

// station is a station as `fdb ls -o json` prints it.
type station struct {
	Network    string   `json:"network"`
	MAC        string   `json:"mac"`
	Endpoint   string   `json:"endpoint,omitempty"` // that it is, or is behind
	Tunnel     string   `json:"tunnel,omitempty"`   // that it is behind
	Gateway    bool     `json:"gateway"`
	Learned    bool     `json:"learned"`
	AgeSeconds *float64 `json:"age_seconds,omitempty"` // of a learned one
}

func listStations(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	network, err := choice(c, "network")
	if err != nil {
		return err
	}
	stations, err := readStations(c, network)
	if err != nil {
		return err
	}
	t := table{headings: []string{"NETWORK", "MAC", "WHERE", "KIND", "AGE"}}
	for _, s := range stations {
		kind, age := "known", ""
		if s.Learned {
			kind, age = "learned", fmt.Sprintf("%.0fs", *s.AgeSeconds)
		}
		t.add(s.Network, s.MAC, s.where(), kind, age)
	}
	return print(c, stations, one(t))
}

func (s station) where() string {
	switch {
	case s.Gateway:
		return "gateway"
	case s.Endpoint != "":
		return "endpoint " + s.Endpoint
	}
	return "tunnel " + s.Tunnel
}

// readStations reads the stations of a network, or all if it is "", by network
// and MAC. Nothing is changed meanwhile, so that all have names.
func readStations(c *cli.Context, network string) ([]station, error) {
	tables, err := datapath.Open(c.String("pin"))
	if err != nil {
		return nil, err
	}
	defer tables.Close()
	stations := []station{}
	err = read(c, func(tx *store.Tx) error {
		if network != "" {
			if _, err := tx.Network(network); err != nil {
				return err
			}
		}
		names, err := namesOf(tx)
		if err != nil {
			return err
		}
		found, err := tables.Stations()
		for _, s := range found {
			if network == "" || names.networks[s.Network] == network {
				stations = append(stations, names.station(s))
			}
		}
		return err
	})
	slices.SortStableFunc(stations, func(a, b station) int { return cmp.Compare(a.Network, b.Network) })
	return stations, err
}

// stationNames are the names of what stations have ids of.
type stationNames struct {
	networks, endpoints, tunnels map[uint32]string
}

func namesOf(tx *store.Tx) (stationNames, error) {
	names := stationNames{map[uint32]string{}, map[uint32]string{}, map[uint32]string{}}
	networks, err := tx.Networks()
	if err != nil {
		return names, err
	}
	for _, n := range networks {
		names.networks[n.ID] = n.Name
	}
	endpoints, err := tx.Endpoints()
	if err != nil {
		return names, err
	}
	for _, e := range endpoints {
		names.endpoints[e.ID] = e.Name
	}
	tunnels, err := tx.Tunnels()
	for _, t := range tunnels {
		names.tunnels[t.ID] = t.Name
	}
	return names, err
}

func (n stationNames) station(s datapath.Station) station {
	view := station{
		Network:  n.networks[s.Network],
		MAC:      net.HardwareAddr(s.MAC[:]).String(),
		Endpoint: n.endpoints[s.Endpoint],
		Tunnel:   n.tunnels[s.Tunnel],
		Gateway:  s.Gateway,
		Learned:  s.Learned,
	}
	if s.Learned {
		age := s.Age.Seconds()
		view.AgeSeconds = &age
	}
	return view
}
