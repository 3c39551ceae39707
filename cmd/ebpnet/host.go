package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"

	"github.com/urfave/cli/v2"

	"github.com/ebpnet/ebpnet/datapath"
	"github.com/ebpnet/ebpnet/internal/agent"
	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
	"github.com/ebpnet/ebpnet/loader"
)

func checkCommand() *cli.Command {
	return &cli.Command{
		Name:        "check",
		Usage:       "tell whether this kernel can run the datapath",
		UsageText:   "ebpnet check",
		Description: "Lists what is needed and what is used where it is there, with its fallback.\nExample: ebpnet check -o json",
		Action: func(c *cli.Context) error {
			if _, err := arguments(c); err != nil {
				return err
			}
			found := loader.Probe()
			t := table{headings: []string{"FEATURE", "SINCE", "NEED", "PRESENT", "WITHOUT IT"}}
			for _, f := range found {
				need, without := "optional", f.Fallback
				if f.Needed {
					need, without = "needed", "does not run"
				}
				present := yesNo(f.Present)
				if f.Err != nil {
					present = "not known: " + f.Err.Error()
				}
				t.add(f.Name, f.Since, need, present, without)
			}
			if err := print(c, found, one(t)); err != nil {
				return err
			}
			return loader.CheckFeatures(found)
		},
	}
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func loadCommand() *cli.Command {
	return &cli.Command{
		Name:      "load",
		Usage:     "load the datapath, or upgrade it under traffic",
		UsageText: "ebpnet load [--uplink DEV]... [--tunnel-address IP]",
		Description: "Everything that the store wants is made or kept. Options that are not given stay as they were;\n" +
			"at first the uplinks are the devices that default routes lead to.\nExample: ebpnet load --uplink eth0",
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "uplink", Usage: "`DEV` that leads outside; may be repeated"},
			&cli.StringFlag{Name: "tunnel-address", Usage: "`IP` of this host at which tunnels end"},
		},
		Action: func(c *cli.Context) (err error) {
			if _, err := arguments(c); err != nil {
				return err
			}
			given := spec.Host{Uplinks: c.StringSlice("uplink")}
			if c.IsSet("tunnel-address") {
				if given.TunnelAddress, err = spec.ParseAddress(c.String("tunnel-address")); err != nil {
					return err
				}
			}
			return agent.Load(c.Context, place(c), logger(), given)
		},
	}
}

func unloadCommand() *cli.Command {
	return &cli.Command{
		Name:        "unload",
		Usage:       "detach and remove everything but the store",
		UsageText:   "ebpnet unload",
		Description: "Endpoints lose their interfaces; 'ebpnet load' makes them again.\nExample: ebpnet unload",
		Action: func(c *cli.Context) error {
			if _, err := arguments(c); err != nil {
				return err
			}
			return agent.Unload(c.Context, place(c), logger())
		},
	}
}

// status is what `status -o json` prints.
type status struct {
	Version       string              `json:"version"`
	Loaded        bool                `json:"loaded"`
	Uplinks       []string            `json:"uplinks"`
	TunnelAddress netip.Addr          `json:"tunnel_address,omitzero"`
	Networks      int                 `json:"networks"`
	Endpoints     int                 `json:"endpoints"`
	Links         int                 `json:"links"`
	Tunnels       int                 `json:"tunnels"`
	Pending       int                 `json:"pending"` // begun by a command that died
	Tables        []datapath.MapUsage `json:"tables"`
}

func statusCommand() *cli.Command {
	return &cli.Command{
		Name:        "status",
		Usage:       "show whether the datapath is loaded, and how full its tables are",
		UsageText:   "ebpnet status",
		Description: "Example: ebpnet status -o json",
		Action: func(c *cli.Context) error {
			if _, err := arguments(c); err != nil {
				return err
			}
			s, err := readStatus(c)
			if err != nil {
				return err
			}
			return print(c, s, s.tables)
		},
	}
}

func readStatus(c *cli.Context) (status, error) {
	s := status{Version: version, Uplinks: []string{}, Tables: []datapath.MapUsage{}}
	err := read(c, func(tx *store.Tx) error {
		host, _, err := tx.Host()
		if err != nil {
			return err
		}
		if host.Uplinks != nil {
			s.Uplinks = host.Uplinks
		}
		s.TunnelAddress = host.TunnelAddress
		for _, count := range []struct {
			to   *int
			list func(*store.Tx) (int, error)
		}{
			{&s.Networks, func(tx *store.Tx) (int, error) { return length(tx.Networks()) }},
			{&s.Endpoints, func(tx *store.Tx) (int, error) { return length(tx.Endpoints()) }},
			{&s.Links, func(tx *store.Tx) (int, error) { return length(tx.Links()) }},
			{&s.Tunnels, func(tx *store.Tx) (int, error) { return length(tx.Tunnels()) }},
			{&s.Pending, func(tx *store.Tx) (int, error) { return length(tx.Pending()) }},
		} {
			if *count.to, err = count.list(tx); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return s, err
	}
	tables, err := datapath.Open(c.String("pin"))
	if errors.Is(err, loader.ErrNotLoaded) {
		return s, nil
	}
	if err != nil {
		return s, err
	}
	defer tables.Close()
	s.Loaded = true
	s.Tables, err = tables.Usage()
	return s, err
}

func length[T any](list []T, err error) (int, error) { return len(list), err }

func (s status) tables() []table {
	summary := table{headings: []string{"VERSION", "LOADED", "UPLINKS", "NETWORKS", "ENDPOINTS", "LINKS", "TUNNELS", "PENDING"}}
	uplinks := ""
	for i, name := range s.Uplinks {
		if i > 0 {
			uplinks += ","
		}
		uplinks += name
	}
	summary.add(s.Version, yesNo(s.Loaded), uplinks, strconv.Itoa(s.Networks), strconv.Itoa(s.Endpoints),
		strconv.Itoa(s.Links), strconv.Itoa(s.Tunnels), strconv.Itoa(s.Pending))
	if !s.Loaded {
		return []table{summary}
	}
	usage := table{headings: []string{"TABLE", "ENTRIES", "CAPACITY"}}
	for _, u := range s.Tables {
		usage.add(u.Name, strconv.Itoa(u.Entries), strconv.FormatUint(uint64(u.Capacity), 10))
	}
	return []table{summary, usage}
}

// inspect prints one noun whole, as JSON whatever the format: it is for
// reading fields.
func inspect(c *cli.Context, data any) error {
	encoder := json.NewEncoder(c.App.Writer)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(data); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}
