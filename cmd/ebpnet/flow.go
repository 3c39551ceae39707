package main

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/ebpnet/ebpnet/datapath"
	"github.com/ebpnet/ebpnet/internal/agent"
	"github.com/ebpnet/ebpnet/internal/store"
)

func flowCommand() *cli.Command {
	ofEndpoint := &cli.StringFlag{Name: "endpoint", Usage: "only those of the endpoint `NAME`"}
	return &cli.Command{
		Name:        "flow",
		Usage:       "tracked connections: those of links, those to the outside, and those to published ports",
		Description: "Example: ebpnet flow ls",
		Subcommands: []*cli.Command{
			{
				Name:      "ls",
				Usage:     "list flows",
				UsageText: "ebpnet flow ls [--endpoint NAME]",
				Description: "FROM and TO are as the one who opened it sends, AS is how that reaches the other side where\n" +
					"it is translated. SENT and RECEIVED are the opener's, in packets and bytes of their frames.\n" +
					"Example: ebpnet flow ls --endpoint web -o json",
				Flags:  []cli.Flag{ofEndpoint},
				Action: listFlows,
			},
			{
				Name:        "flush",
				Usage:       "forget flows; what an endpoint still sends opens new ones",
				UsageText:   "ebpnet flow flush [--endpoint NAME]",
				Description: "Example: ebpnet flow flush --endpoint web",
				Flags:       []cli.Flag{ofEndpoint},
				Action:      flushFlows,
			},
		},
	}
}

// flow is a flow as `flow ls -o json` prints it.
type flow struct {
	Protocol        string             `json:"protocol"`
	Network         string             `json:"network,omitempty"` // of the one who opened it; none: outside
	ToNetwork       string             `json:"to_network,omitempty"`
	From            netip.AddrPort     `json:"from"`
	To              netip.AddrPort     `json:"to"`
	Translated      netip.AddrPort     `json:"translated,omitzero"` // what From becomes, if something else
	TranslatedTo    netip.AddrPort     `json:"translated_to,omitzero"`
	State           datapath.FlowState `json:"state"`
	AgeSeconds      float64            `json:"age_seconds"`
	IdleSeconds     float64            `json:"idle_seconds"`
	SentPackets     uint64             `json:"sent_packets"`
	SentBytes       uint64             `json:"sent_bytes"`
	ReceivedPackets uint64             `json:"received_packets"`
	ReceivedBytes   uint64             `json:"received_bytes"`
}

// endpointOfFlows gives the endpoint whose flows are meant; "": all are.
func endpointOfFlows(c *cli.Context) (string, error) {
	if _, err := arguments(c); err != nil {
		return "", err
	}
	name := c.String("endpoint")
	if name == "" && c.IsSet("endpoint") {
		return "", usagef("--endpoint is empty: want a name, or leave it out for all flows")
	}
	return endpointCalled(c, name)
}

func flushFlows(c *cli.Context) error {
	endpoint, err := endpointOfFlows(c)
	if err != nil {
		return err
	}
	return withAgent(c, func(a *agent.Agent) error { return a.FlushFlows(endpoint) })
}

func listFlows(c *cli.Context) error {
	endpoint, err := endpointOfFlows(c)
	if err != nil {
		return err
	}
	tables, err := datapath.Open(c.String("pin"))
	if err != nil {
		return err
	}
	defer tables.Close()
	var filter datapath.FlowFilter
	names := map[uint32]string{datapath.NetworkLoopback: "host"}
	err = read(c, func(tx *store.Tx) (err error) {
		if filter, err = agent.FlowsOf(tx, endpoint); err != nil {
			return err
		}
		networks, err := tx.Networks()
		for _, n := range networks {
			names[n.ID] = n.Name
		}
		return err
	})
	if err != nil {
		return err
	}
	found, err := tables.Flows(filter)
	if err != nil {
		return err
	}

	flows := make([]flow, 0, len(found))
	t := table{headings: []string{"PROTOCOL", "NETWORK", "FROM", "TO", "AS", "STATE", "AGE", "IDLE", "SENT", "RECEIVED"}}
	for _, f := range found {
		view := flow{
			Protocol:        datapath.ProtocolName(f.Protocol),
			Network:         names[f.Network],
			ToNetwork:       names[f.ToNetwork],
			From:            f.From,
			To:              f.To,
			Translated:      f.TranslatedFrom,
			TranslatedTo:    f.TranslatedTo,
			State:           f.State,
			AgeSeconds:      f.Age.Seconds(),
			IdleSeconds:     f.Idle.Seconds(),
			SentPackets:     f.Sent.Packets,
			SentBytes:       f.Sent.Bytes,
			ReceivedPackets: f.Received.Packets,
			ReceivedBytes:   f.Received.Bytes,
		}
		flows = append(flows, view)
		t.add(view.Protocol, view.networks(), f.From.String(), f.To.String(), view.translation(), string(f.State),
			f.Age.Round(time.Second).String(), f.Idle.Round(time.Second).String(),
			amount(f.Sent), amount(f.Received))
	}
	return print(c, flows, one(t))
}

// networks names the network, or where from and where to.
func (f flow) networks() string {
	if f.Network == f.ToNetwork {
		return f.Network
	}
	const outside = "outside"
	from, to := f.Network, f.ToNetwork
	if from == "" {
		from = outside
	}
	if to == "" {
		to = outside
	}
	return from + "→" + to
}

// translation is what the other side sees, if not the same.
func (f flow) translation() string {
	if !f.Translated.IsValid() && !f.TranslatedTo.IsValid() {
		return ""
	}
	from, to := f.From, f.To
	if f.Translated.IsValid() {
		from = f.Translated
	}
	if f.TranslatedTo.IsValid() {
		to = f.TranslatedTo
	}
	return from.String() + "→" + to.String()
}

func amount(c datapath.Counter) string {
	return fmt.Sprintf("%d (%s)", c.Packets, byteSize(c.Bytes))
}

// byteSize gives a number of bytes in three digits and a unit.
func byteSize(n uint64) string {
	const step = 1024
	if n < step {
		return fmt.Sprintf("%dB", n)
	}
	value, units := float64(n)/step, []string{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	for value >= step-0.5 && len(units) > 1 {
		value, units = value/step, units[1:]
	}
	if value < 10 {
		return fmt.Sprintf("%.1f%s", value, units[0])
	}
	return fmt.Sprintf("%.0f%s", value, units[0])
}
