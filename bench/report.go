package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"slices"
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
	ToWire     *float64 `json:"ratio_to_wire"`
	ToBridge   *float64 `json:"ratio_to_bridge"`
	ToIptables *float64 `json:"ratio_to_iptables"`
	ToNftables *float64 `json:"ratio_to_nftables"`
	ToVXLAN    *float64 `json:"ratio_to_vxlan"`
	ToFew      *float64 `json:"ratio_to_few"`
	// Ratios to what else the family compares with, by kind.
	Ratios  map[string]float64 `json:"ratios,omitempty"`
	Lost    float64            `json:"lost"`    // median share of packets
	Samples []float64          `json:"samples"` // one a round, in their order
	// In microseconds; nil: not measured.
	CPU *spread `json:"cpu_us_per_unit"`
	P50 *spread `json:"p50_us"`
	P99 *spread `json:"p99_us"`

	of            measure
	over          topology
	lost          []float64
	cpu, p50, p99 []float64
	latencies     []time.Duration // of all rounds
}

// spread is what a figure was over the rounds.
type spread struct {
	Median  float64   `json:"median"`
	Min     float64   `json:"min"`
	Max     float64   `json:"max"`
	Samples []float64 `json:"samples"` // one a round, in their order
}

// spreadOf gives nil where every sample is 0: there was nothing to measure.
func spreadOf(samples []float64) *spread {
	if slices.Max(samples) == 0 {
		return nil
	}
	return &spread{median(samples), slices.Min(samples), slices.Max(samples), samples}
}

const microsecondsPerSecond = 1e6

func microseconds(d time.Duration) float64 { return d.Seconds() * microsecondsPerSecond }

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
			Family: t.family, Measure: m.name, Topology: t.name, Ports: t.ports, Tunnels: t.tunnels, Unit: m.unit,
			of: m, over: t,
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
	r.cpu = append(r.cpu, s.cpu*microsecondsPerSecond)
	r.p50 = append(r.p50, microseconds(s.p50))
	r.p99 = append(r.p99, microseconds(s.p99))
	r.latencies = append(r.latencies, s.latencies...)
}

// finish works out what the samples amount to.
func (rep *report) finish() {
	for i := range rep.Results {
		r := &rep.Results[i]
		r.Median, r.Min, r.Max = median(r.Samples), slices.Min(r.Samples), slices.Max(r.Samples)
		r.Lost = median(r.lost)
		r.CPU, r.P50, r.P99 = spreadOf(r.cpu), spreadOf(r.p50), spreadOf(r.p99)
		known := map[string]**float64{
			wire: &r.ToWire, bridge: &r.ToBridge, iptables: &r.ToIptables,
			nftables: &r.ToNftables, vxlan: &r.ToVXLAN, few: &r.ToFew,
		}
		for _, kind := range r.over.bases() {
			to := ratio(r, rep.base(r, kind))
			if field, ok := known[kind]; ok {
				*field = to
			} else if to != nil {
				if r.Ratios == nil {
					r.Ratios = map[string]float64{}
				}
				r.Ratios[kind] = *to
			}
		}
	}
}

// base gives the result of a kind that r is compared with, or nil.
func (rep *report) base(r *result, kind string) *result {
	at := slices.IndexFunc(rep.Results, func(b result) bool {
		return b.Measure == r.Measure && b.over.isBaseOf(r.over, kind)
	})
	if at < 0 {
		return nil
	}
	return &rep.Results[at]
}

// ratio is the median over the rounds of r by base in the same round: what a
// round's other load did to both, it leaves out. Nil where base is, or is 0.
func ratio(r, base *result) *float64 {
	if base == nil {
		return nil
	}
	m := median(ratios(r, base))
	if math.IsNaN(m) || math.IsInf(m, 0) {
		return nil
	}
	return &m
}

// ratios gives r by base of each round.
func ratios(r, base *result) []float64 {
	each := make([]float64, len(r.Samples))
	for i := range each {
		each[i] = r.Samples[i] / base.Samples[i]
	}
	return each
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

// tryFiles fails where what is measured could not be written: measuring takes
// long.
func (opt options) tryFiles() error {
	if opt.json != "" {
		if err := tryFile(opt.json); err != nil {
			return fmt.Errorf("--json: %w", err)
		}
	}
	if opt.svg != "" {
		if err := os.MkdirAll(opt.svg, 0o755); err != nil {
			return fmt.Errorf("--svg: %w", err)
		}
		if err := unix.Access(opt.svg, unix.W_OK|unix.X_OK); err != nil {
			return fmt.Errorf("--svg %s: cannot write into it: %w", opt.svg, err)
		}
	}
	return nil
}

// tryFile opens a file to write, and leaves it, or that there is none, as it was.
func tryFile(name string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err == nil {
		return errors.Join(f.Close(), os.Remove(name))
	}
	if !errors.Is(err, os.ErrExist) {
		return err
	}
	if f, err = os.OpenFile(name, os.O_WRONLY, 0); err != nil {
		return err
	}
	return f.Close()
}

func (rep *report) writeJSON(file string) error {
	text, err := json.MarshalIndent(rep, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(text, '\n'), 0o644)
}
