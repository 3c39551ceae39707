package main

import (
	"slices"
	"strconv"

	"github.com/urfave/cli/v2"

	"github.com/ebpnet/ebpnet/datapath"
	"github.com/ebpnet/ebpnet/internal/store"
)

// traffic is one line of `stats`, seen from the noun: tx is what it sent.
type traffic struct {
	Name      string `json:"name"`
	Network   string `json:"network,omitempty"`
	Container string `json:"container,omitempty"` // whose the endpoint is, as its engine calls it
	UsedBy    string `json:"used_by,omitempty"`   // the engines' networks that the network is
	TxPackets uint64 `json:"tx_packets"`
	TxBytes   uint64 `json:"tx_bytes"`
	RxPackets uint64 `json:"rx_packets"`
	RxBytes   uint64 `json:"rx_bytes"`
}

// stats is what `stats -o json` prints.
type stats struct {
	Endpoints []traffic       `json:"endpoints"`
	Networks  []traffic       `json:"networks"`
	Tunnels   []traffic       `json:"tunnels"`
	Drops     []datapath.Drop `json:"drops"`
}

func statsCommand() *cli.Command {
	return &cli.Command{
		Name:      "stats",
		Usage:     "show packets and bytes, and drops by reason",
		UsageText: "ebpnet stats",
		Description: "TX is what the endpoint sent. The table leaves out reasons that nothing was dropped for.\n" +
			"Example: ebpnet stats -o json",
		Action: func(c *cli.Context) error {
			if _, err := arguments(c); err != nil {
				return err
			}
			s, err := readStats(c)
			if err != nil {
				return err
			}
			return print(c, s, s.tables)
		},
	}
}

func readStats(c *cli.Context) (stats, error) {
	s := stats{Endpoints: []traffic{}, Networks: []traffic{}, Tunnels: []traffic{}}
	tables, err := datapath.Open(c.String("pin"))
	if err != nil {
		return s, err
	}
	defer tables.Close()
	err = read(c, func(tx *store.Tx) error {
		endpoints, err := tx.Endpoints()
		if err != nil {
			return err
		}
		for _, e := range endpoints {
			if e.Remote() {
				continue // counted where it is
			}
			counted, err := tables.EndpointTraffic(e.ID)
			if err != nil {
				return err
			}
			line := trafficOf(e.Name, e.Network, counted)
			line.Container = e.Container.String()
			s.Endpoints = append(s.Endpoints, line)
		}
		networks, err := tx.Networks()
		if err != nil {
			return err
		}
		counted, err := tables.NetworkTraffic()
		if err != nil {
			return err
		}
		for _, n := range networks {
			line := trafficOf(n.Name, "", counted[n.ID])
			line.UsedBy = usersText(n.Users)
			s.Networks = append(s.Networks, line)
		}
		tunnels, err := tx.Tunnels()
		if err != nil {
			return err
		}
		for _, t := range tunnels {
			counted, err := tables.TunnelTraffic(t.ID)
			if err != nil {
				return err
			}
			s.Tunnels = append(s.Tunnels, trafficOf(t.Name, "", counted))
		}
		return nil
	})
	if err != nil {
		return s, err
	}
	s.Drops, err = tables.Drops()
	return s, err
}

func trafficOf(name, network string, t datapath.Traffic) traffic {
	return traffic{
		Name: name, Network: network,
		TxPackets: t.Tx.Packets, TxBytes: t.Tx.Bytes, RxPackets: t.Rx.Packets, RxBytes: t.Rx.Bytes,
	}
}

func (s stats) tables() []table {
	var tables []table
	for _, noun := range []struct {
		heading string
		lines   []traffic
		whose   string // the heading of what engines call it
	}{{"ENDPOINT", s.Endpoints, "CONTAINER"}, {"NETWORK", s.Networks, "USED BY"}, {"TUNNEL", s.Tunnels, ""}} {
		if len(noun.lines) == 0 {
			continue
		}
		t := table{headings: []string{noun.heading, "TX PACKETS", "TX BYTES", "RX PACKETS", "RX BYTES"}}
		engines := slices.ContainsFunc(noun.lines, func(l traffic) bool { return l.Container+l.UsedBy != "" })
		if engines {
			t.headings = append(t.headings, noun.whose)
		}
		for _, line := range noun.lines {
			cells := []string{line.Name, number(line.TxPackets), number(line.TxBytes), number(line.RxPackets), number(line.RxBytes)}
			if engines {
				cells = append(cells, line.Container+line.UsedBy)
			}
			t.add(cells...)
		}
		tables = append(tables, t)
	}
	drops := table{headings: []string{"DROPPED FOR", "PACKETS", "BYTES"}}
	for _, d := range s.Drops {
		if d.Packets > 0 {
			drops.add(d.Reason, number(d.Packets), number(d.Bytes))
		}
	}
	return append(tables, drops)
}

func number(n uint64) string { return strconv.FormatUint(n, 10) }
