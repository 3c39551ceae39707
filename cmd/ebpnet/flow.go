package main

import (
	"net/netip"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/ebpnet/ebpnet/datapath"
	"github.com/ebpnet/ebpnet/internal/agent"
	"github.com/ebpnet/ebpnet/internal/store"
)

func flowCommand() *cli.Command {
	return &cli.Command{
		Name:        "flow",
		Usage:       "tracked connections: those of links, and those to the outside",
		Description: "Example: ebpnet flow ls",
		Subcommands: []*cli.Command{
			{
				Name:        "ls",
				Usage:       "list flows",
				UsageText:   "ebpnet flow ls",
				Description: "Example: ebpnet flow ls -o json",
				Action:      listFlows,
			},
			{
				Name:        "flush",
				Usage:       "forget all flows; what still sends opens new ones",
				UsageText:   "ebpnet flow flush",
				Description: "Example: ebpnet flow flush",
				Action: func(c *cli.Context) error {
					if _, err := arguments(c); err != nil {
						return err
					}
					return withAgent(c, (*agent.Agent).FlushFlows)
				},
			},
		},
	}
}

// flow is a flow as `flow ls -o json` prints it.
type flow struct {
	Protocol    string             `json:"protocol"`
	Network     string             `json:"network,omitempty"` // not for the host's own
	From        netip.AddrPort     `json:"from"`
	To          netip.AddrPort     `json:"to"`
	Translated  netip.AddrPort     `json:"translated,omitzero"`
	State       datapath.FlowState `json:"state"`
	AgeSeconds  float64            `json:"age_seconds"`
	IdleSeconds float64            `json:"idle_seconds"`
}

func listFlows(c *cli.Context) error {
	if _, err := arguments(c); err != nil {
		return err
	}
	tables, err := datapath.Open(c.String("pin"))
	if err != nil {
		return err
	}
	defer tables.Close()
	found, err := tables.Flows()
	if err != nil {
		return err
	}
	names := map[uint32]string{}
	err = read(c, func(tx *store.Tx) error {
		networks, err := tx.Networks()
		for _, n := range networks {
			names[n.ID] = n.Name
		}
		return err
	})
	if err != nil {
		return err
	}

	flows := make([]flow, 0, len(found))
	t := table{headings: []string{"PROTOCOL", "NETWORK", "FROM", "TO", "TRANSLATED", "STATE", "AGE", "IDLE"}}
	for _, f := range found {
		view := flow{
			Protocol:    datapath.ProtocolName(f.Protocol),
			Network:     names[f.Network],
			From:        f.From,
			To:          f.To,
			Translated:  f.Translated,
			State:       f.State,
			AgeSeconds:  f.Age.Seconds(),
			IdleSeconds: f.Idle.Seconds(),
		}
		flows = append(flows, view)
		translated := ""
		if f.Translated.IsValid() {
			translated = f.Translated.String()
		}
		t.add(view.Protocol, view.Network, f.From.String(), f.To.String(), translated, string(f.State),
			f.Age.Round(time.Second).String(), f.Idle.Round(time.Second).String())
	}
	return print(c, flows, one(t))
}
