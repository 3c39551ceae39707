package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// report is a whole run. Its JSON field names are stable.
type report struct {
	Started time.Time `json:"started"`
	Kernel  string    `json:"kernel"`
	CPU     int       `json:"cpu"`
	Rounds  int       `json:"rounds"`
	Seconds float64   `json:"seconds"` // of one measurement
	// BridgeNetfilter tells whether the bridge showed its packets to iptables.
	BridgeNetfilter bool     `json:"bridge_netfilter"`
	Iptables        string   `json:"iptables"` // version and backend; empty: none here
	Results         []result `json:"results"`  // by family, measure, topology
}

// result is what one measure gave over one topology.
type result struct {
	Family   string  `json:"family"`
	Measure  string  `json:"measure"`
	Topology string  `json:"topology"`
	Ports    int     `json:"ports"`   // published
	Tunnels  int     `json:"tunnels"` // flooded into
	Unit     string  `json:"unit"`
	Median   float64 `json:"median"`
	Min      float64 `json:"min"`
	Max      float64 `json:"max"`
	// Ratios to topologies of the family; nil: not measured.
	ToWire     *float64  `json:"ratio_to_wire"`
	ToBridge   *float64  `json:"ratio_to_bridge"`
	ToIptables *float64  `json:"ratio_to_iptables"`
	ToNftables *float64  `json:"ratio_to_nftables"`
	ToVXLAN    *float64  `json:"ratio_to_vxlan"`
	ToFew      *float64  `json:"ratio_to_few"`
	Lost       float64   `json:"lost"`    // median share of packets
	Samples    []float64 `json:"samples"` // one a round, in their order

	kind string
	lost []float64
}

func newReport(opt options) report {
	rep := report{
		Started: time.Now().UTC().Truncate(time.Second), CPU: opt.cpu, Rounds: opt.rounds,
		Seconds: opt.duration.Seconds(), BridgeNetfilter: bridgeNetfilter(),
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err == nil {
		rep.Kernel = unix.ByteSliceToString(name.Release[:])
	}
	if version, err := exec.Command("iptables", "-V").Output(); err == nil {
		rep.Iptables = string(bytes.TrimSpace(version))
	}
	for _, each := range opt.turns(0) {
		m, t := each.measure, each.topology
		rep.Results = append(rep.Results, result{
			Family: t.family, Measure: m.name, Topology: t.name, Ports: t.ports, Tunnels: t.tunnels, Unit: m.unit, kind: t.kind,
		})
	}
	return rep
}

// find gives the result of a measure over a topology, or nil.
func (rep *report) find(measure, topology string) *result {
	at := slices.IndexFunc(rep.Results, func(r result) bool { return r.Measure == measure && r.Topology == topology })
	if at < 0 {
		return nil
	}
	return &rep.Results[at]
}

func (rep *report) add(m measure, t topology, s sample) {
	r := rep.find(m.name, t.name)
	r.Samples = append(r.Samples, s.value)
	r.lost = append(r.lost, s.lost)
}

// finish works out what the samples amount to.
func (rep *report) finish() {
	for i := range rep.Results {
		r := &rep.Results[i]
		r.Median, r.Min, r.Max = median(r.Samples), slices.Min(r.Samples), slices.Max(r.Samples)
		r.Lost = median(r.lost)
		r.ToWire, r.ToBridge = ratio(r, rep.base(r, wire)), ratio(r, rep.base(r, bridge))
		r.ToIptables, r.ToNftables = ratio(r, rep.base(r, iptables)), ratio(r, rep.base(r, nftables))
		r.ToVXLAN, r.ToFew = ratio(r, rep.base(r, vxlan)), ratio(r, rep.base(r, few))
	}
}

// base gives the result of a kind that r is compared with, or nil: of the
// same family, measure and number of ports and tunnels, but the wire has none.
func (rep *report) base(r *result, kind string) *result {
	at := slices.IndexFunc(rep.Results, func(b result) bool {
		return b.Family == r.Family && b.Measure == r.Measure && b.kind == kind &&
			(b.Ports == r.Ports && b.Tunnels == r.Tunnels || kind == wire)
	})
	if at < 0 {
		return nil
	}
	return &rep.Results[at]
}

// to gives the ratio to a kind.
func (r *result) to(kind string) *float64 {
	return map[string]*float64{
		wire: r.ToWire, bridge: r.ToBridge, iptables: r.ToIptables, nftables: r.ToNftables, vxlan: r.ToVXLAN, few: r.ToFew,
	}[kind]
}

// ratio is the median over the rounds of r by base in the same round: what a
// round's other load did to both, it leaves out. Nil where base is.
func ratio(r, base *result) *float64 {
	if base == nil {
		return nil
	}
	each := make([]float64, len(r.Samples))
	for i := range each {
		each[i] = r.Samples[i] / base.Samples[i]
	}
	m := median(each)
	return &m
}

// median of at least one value; of an even number, the mean of the middle two.
func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

// table writes the report for people, a table for each family measured.
func (rep *report) table(w io.Writer) error {
	var b strings.Builder
	netfilter := "with"
	if !rep.BridgeNetfilter {
		netfilter = "without"
	}
	fmt.Fprintf(&b, "Linux %s, CPU %d, %d rounds of %gs, bridge %s br_netfilter, %s, %s\n",
		rep.Kernel, rep.CPU, rep.Rounds, rep.Seconds, netfilter, cmp.Or(rep.Iptables, "no iptables"),
		rep.Started.Format(time.RFC3339))
	for _, f := range families() {
		if rows := rep.rows(f); len(rows) > 1 {
			fmt.Fprintf(&b, "\n%s: %s\n\n", f.name, f.about)
			align(&b, rows)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// rows are a family's table, its first the names of the columns.
func (rep *report) rows(f family) [][]string {
	head := []string{"MEASURE", "TOPOLOGY", "MEDIAN", "MIN", "MAX", "UNIT"}
	for _, kind := range f.bases {
		head = append(head, "TO "+strings.ToUpper(kind))
	}
	rows := [][]string{append(head, "LOST")}
	for _, r := range rep.Results {
		if r.Family != f.name {
			continue
		}
		row := []string{r.Measure, r.Topology, figure(r.Median), figure(r.Min), figure(r.Max), r.Unit}
		for _, kind := range f.bases {
			row = append(row, ratioText(r.to(kind)))
		}
		rows = append(rows, append(row, fmt.Sprintf("%.1f%%", 100*r.Lost)))
	}
	return rows
}

// align writes rows as columns, text to the left and figures to the right.
func align(b *strings.Builder, rows [][]string) {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], len(cell))
		}
	}
	for _, row := range rows {
		for i, cell := range row {
			width := widths[i]
			if name := i < 2 || i == 5; name {
				width = -width // to the left
			}
			row[i] = fmt.Sprintf("%*s", width, cell)
		}
		fmt.Fprintln(b, strings.Join(row, "  "))
	}
}

// figure writes a value with three digits or more.
func figure(v float64) string {
	const large = 1000
	if v >= large {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

func ratioText(r *float64) string {
	if r == nil {
		return "-"
	}
	return fmt.Sprintf("%.2f", *r)
}

func (rep *report) writeJSON(file string) error {
	text, err := json.MarshalIndent(rep, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(text, '\n'), 0o644)
}
