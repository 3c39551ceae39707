package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/ebpnet/ebpnet/datapath"
	"github.com/ebpnet/ebpnet/internal/agent"
	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
	"github.com/ebpnet/ebpnet/loader"
)

// check is what `check -o json` prints.
type check struct {
	Features []loader.Feature  `json:"features"`
	XDP      []agent.DeviceXDP `json:"xdp"` // of each device
}

func checkCommand() *cli.Command {
	return &cli.Command{
		Name:      "check",
		Usage:     "tell whether this kernel can run the datapath",
		UsageText: "ebpnet check",
		Description: "Lists what is needed and what is used where it is there, with its fallback; and which XDP the uplinks\n" +
			"could have, or the physical devices if there are none yet.\nExample: ebpnet check -o json",
		Action: func(c *cli.Context) error {
			if _, err := arguments(c); err != nil {
				return err
			}
			found := check{Features: loader.Probe()}
			var uplinks []string
			err := read(c, func(tx *store.Tx) error {
				wanted, _, err := tx.Host()
				uplinks = wanted.Uplinks
				return err
			})
			if err != nil {
				return err
			}
			if found.XDP, err = agent.CheckXDP(place(c), uplinks); err != nil {
				return err
			}
			if err := print(c, found, found.tables); err != nil {
				return err
			}
			return loader.CheckFeatures(found.Features)
		},
	}
}

func (found check) tables() []table {
	features := table{headings: []string{"FEATURE", "SINCE", "NEED", "PRESENT", "WITHOUT IT"}}
	for _, f := range found.Features {
		need, without := "optional", f.Fallback
		if f.Needed {
			need, without = "needed", "does not run"
		}
		present := yesNo(f.Present)
		if f.Err != nil {
			present = "not known: " + f.Err.Error()
		}
		features.add(f.Name, f.Since, need, present, without)
	}
	if len(found.XDP) == 0 {
		return []table{features}
	}
	devices := table{headings: []string{"DEVICE", "NATIVE XDP", "GENERIC XDP", "AUTO", "WHY"}}
	for _, d := range found.XDP {
		devices.add(d.Device, yesNo(d.Native), yesNo(d.Generic), string(d.Auto), d.Why)
	}
	return []table{features, devices}
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
		UsageText: "ebpnet load [--uplink DEV]... [--xdp auto|native|generic|off] [--tunnel-address IP] [--flows N] [--masquerade-ports FIRST-LAST] [--timeout NAME=DURATION]...",
		Description: "Everything that the store wants is made or kept. Options that are not given stay as they were;\n" +
			"as long as there are none, the uplinks are the devices that default routes lead to. With another number of flows\n" +
			"those that fit are carried over. 'ebpnet status' shows what holds, and the memory it takes.\n" +
			"Example: ebpnet load --uplink eth0 --flows 1000000 --timeout udp-answered=10m",
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "uplink", Usage: "`DEV` that leads outside; may be repeated"},
			&cli.StringFlag{Name: "xdp", Usage: "`MODE` of XDP on uplinks: auto, native, generic or off", DefaultText: "as before; at first off"},
			&cli.StringFlag{Name: "tunnel-address", Usage: "`IP` of this host at which tunnels of its family end"},
			&cli.Uint64Flag{Name: "flows", Usage: "room for `N` answered flows, 1024 to 4194304", DefaultText: "as before; at first 262144"},
			&cli.StringFlag{Name: "masquerade-ports", Usage: "`FIRST-LAST` of the host's ports to masquerade by; 1-65535 if nothing is said"},
			&cli.StringSliceFlag{Name: "timeout", Usage: timeoutUsage()},
		},
		Action: func(c *cli.Context) (err error) {
			if _, err := arguments(c); err != nil {
				return err
			}
			given := spec.Host{Uplinks: c.StringSlice("uplink")}
			if c.IsSet("xdp") {
				if given.XDP, err = spec.ParseXDPMode(c.String("xdp")); err != nil {
					return err
				}
			}
			if c.IsSet("tunnel-address") {
				if given.TunnelAddress, err = spec.ParseAddress(c.String("tunnel-address")); err != nil {
					return err
				}
			}
			if c.IsSet("flows") {
				if given.Flows, err = spec.CheckFlows(c.Uint64("flows")); err != nil {
					return err
				}
			}
			if c.IsSet("masquerade-ports") {
				if given.MasqueradePorts, err = spec.ParseMasqueradePorts(c.String("masquerade-ports")); err != nil {
					return err
				}
			}
			if given.Timeouts, err = spec.ParseTimeouts(c.StringSlice("timeout")); err != nil {
				return err
			}
			return agent.Load(c.Context, place(c), warnings(os.Stderr), given)
		},
	}
}

func timeoutUsage() string {
	var names []string
	for _, name := range spec.Timeouts() {
		names = append(names, fmt.Sprintf("%s (%s)", name, name.Default()))
	}
	return "`NAME=DURATION` after which a flow without a packet ends, or (fdb) a learned station is forgotten, such as 90s or 2h4m, or NAME=default; may be repeated; " +
		strings.Join(names, ", ")
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
			return agent.Unload(c.Context, place(c), warnings(os.Stderr))
		},
	}
}

// status is what `status -o json` prints.
type status struct {
	Version       string     `json:"version"`
	Loaded        bool       `json:"loaded"`
	Uplinks       []string   `json:"uplinks"`
	TunnelAddress netip.Addr `json:"tunnel_address,omitzero"`
	Networks      int        `json:"networks"`
	Endpoints     int        `json:"endpoints"`
	Ports         int        `json:"ports"`
	Links         int        `json:"links"`
	Tunnels       int        `json:"tunnels"`
	Pending       int        `json:"pending"` // begun by a command that died

	Flows           uint32               `json:"flows"` // established ones that there is room for
	MasqueradePorts spec.MasqueradePorts `json:"masquerade_ports"`
	Timeouts        map[string]float64   `json:"timeout_seconds"`

	XDP []agent.UplinkXDP `json:"xdp"` // of each uplink

	Storms []storm `json:"storms"` // endpoints whose floods were limited, or that were blocked for a loop

	Tables []datapath.MapUsage `json:"tables"`
	Memory uint64              `json:"memory_bytes"` // of all tables
}

func statusCommand() *cli.Command {
	return &cli.Command{
		Name:        "status",
		Usage:       "show whether the datapath is loaded, how uplinks have XDP, and how full the tables are",
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
	s := status{Version: version, Uplinks: []string{}, Storms: []storm{}, Tables: []datapath.MapUsage{}, Timeouts: map[string]float64{}}
	var host spec.Host
	err := read(c, func(tx *store.Tx) (err error) {
		if host, _, err = tx.Host(); err != nil {
			return err
		}
		if host.Uplinks != nil {
			s.Uplinks = host.Uplinks
		}
		s.TunnelAddress = host.TunnelAddress
		s.Flows, s.MasqueradePorts = host.FlowCapacity(), host.MasqueradePorts
		for _, name := range spec.Timeouts() {
			s.Timeouts[string(name)] = host.Timeout(name).Seconds()
		}
		for _, count := range []struct {
			to   *int
			list func(*store.Tx) (int, error)
		}{
			{&s.Networks, func(tx *store.Tx) (int, error) { return length(tx.Networks()) }},
			{&s.Endpoints, func(tx *store.Tx) (int, error) { return length(tx.Endpoints()) }},
			{&s.Ports, func(tx *store.Tx) (int, error) { return length(tx.Ports()) }},
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
		s.XDP, err = agent.XDPOf(host, nil)
		return s, err
	}
	if err != nil {
		return s, err
	}
	defer tables.Close()
	s.Loaded = true
	if s.XDP, err = agent.XDPOf(host, tables); err != nil {
		return s, err
	}
	err = read(c, func(tx *store.Tx) (err error) {
		s.Storms, err = readStorms(tables, tx)
		return err
	})
	if err != nil {
		return s, err
	}
	s.Tables, err = tables.Usage()
	for _, u := range s.Tables {
		s.Memory += u.Memory
	}
	return s, err
}

func length[T any](list []T, err error) (int, error) { return len(list), err }

func (s status) tables() []table {
	summary := table{headings: []string{"VERSION", "LOADED", "UPLINKS", "NETWORKS", "ENDPOINTS", "PORTS", "LINKS", "TUNNELS", "PENDING"}}
	uplinks := ""
	for i, name := range s.Uplinks {
		if i > 0 {
			uplinks += ","
		}
		uplinks += name
	}
	summary.add(s.Version, yesNo(s.Loaded), uplinks, strconv.Itoa(s.Networks), strconv.Itoa(s.Endpoints),
		strconv.Itoa(s.Ports), strconv.Itoa(s.Links), strconv.Itoa(s.Tunnels), strconv.Itoa(s.Pending))
	tables := []table{summary}
	if len(s.XDP) > 0 {
		xdp := table{headings: []string{"UPLINK", "XDP", "WHY"}}
		for _, u := range s.XDP {
			xdp.add(u.Uplink, string(u.Mode), u.Why)
		}
		tables = append(tables, xdp)
	}
	if !s.Loaded {
		return tables
	}
	flows := table{headings: []string{"FLOWS", "MASQUERADE PORTS"}}
	settings := []string{number(uint64(s.Flows)), s.MasqueradePorts.String()}
	for _, name := range spec.Timeouts() {
		flows.headings = append(flows.headings, strings.ToUpper(string(name)))
		settings = append(settings, time.Duration(s.Timeouts[string(name)]*float64(time.Second)).String())
	}
	flows.add(settings...)
	if len(s.Storms) > 0 {
		tables = append(tables, stormTable(s.Storms))
	}
	usage := table{headings: []string{"TABLE", "ENTRIES", "CAPACITY", "MEMORY"}}
	for _, u := range s.Tables {
		usage.add(u.Name, strconv.Itoa(u.Entries), number(uint64(u.Capacity)), byteSize(u.Memory))
	}
	usage.add("all", "", "", byteSize(s.Memory))
	return append(tables, flows, usage)
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
