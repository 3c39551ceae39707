package main

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestMedian(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		values []float64
		want   float64
	}{
		{[]float64{7}, 7},
		{[]float64{9, 1}, 5},
		{[]float64{9, 1, 2}, 2},
		{[]float64{4, 100, 1, 2}, 3},
	} {
		given := append([]float64(nil), c.values...)
		if got := median(c.values); got != c.want {
			t.Errorf("median(%v) = %v, want %v", c.values, got, c.want)
		}
		if diff := cmp.Diff(given, c.values); diff != "" {
			t.Errorf("median changed its argument:\n%s", diff)
		}
	}
}

// filled is a report of one measure with the samples given by topology.
func filled(t *testing.T, samples map[string][]float64) report {
	t.Helper()
	opt := options{rounds: 3, duration: time.Second}
	opt.measures = measures()[:1]
	for _, topology := range topologies() {
		if samples[topology.name] != nil {
			opt.topologies = append(opt.topologies, topology)
		}
	}
	rep := newReport(opt)
	rep.Started, rep.Kernel, rep.BridgeNetfilter, rep.Iptables = time.Unix(0, 0).UTC(), "6.18", true, "iptables v1"
	for _, topology := range opt.topologies {
		for _, v := range samples[topology.name] {
			rep.add(opt.measures[0], topology, sample{value: v, lost: v / 1e6})
		}
	}
	rep.finish()
	return rep
}

// Ratios are those of each round: here the ratio of the medians would be 0.5.
func TestRatioIsPerRound(t *testing.T) {
	t.Parallel()
	rep := filled(t, map[string][]float64{wire: {1000, 2000, 4000}, bridge: {800, 1000, 3200}})
	b := rep.find(measures()[0].name, bridge)
	if b.ToWire == nil || *b.ToWire != 0.8 {
		t.Errorf("bridge to wire: %s, want 0.80", ratioText(b.ToWire))
	}
	if *b.ToBridge != 1 {
		t.Errorf("bridge to itself: %v, want 1", *b.ToBridge)
	}
	if b.Median != 1000 || b.Min != 800 || b.Max != 3200 {
		t.Errorf("median, min, max = %v, %v, %v", b.Median, b.Min, b.Max)
	}
}

func TestNoRatioWithoutBase(t *testing.T) {
	t.Parallel()
	rep := filled(t, map[string][]float64{wire: {1, 2, 3}})
	r := rep.find(measures()[0].name, wire)
	if r.ToBridge != nil {
		t.Errorf("ratio %v to a bridge that was not measured", *r.ToBridge)
	}
}

// The wire has no ports and is compared with all; the others only with what
// publishes as many.
func TestRatiosOfPorts(t *testing.T) {
	t.Parallel()
	rep := filled(t, map[string][]float64{
		wire: {7, 7, 7}, "port-wire": {8, 8, 8},
		"port-iptables-10": {4, 4, 4}, "port-iptables-1000": {1, 1, 1},
		"port-ebpnet-1000": {2, 2, 2}, "port-ebpnet-10000": {2, 2, 2},
	})
	for _, c := range []struct{ topology, toWire, toIptables string }{
		{"port-wire", "1.00", "-"},
		{"port-iptables-10", "0.50", "1.00"},
		{"port-ebpnet-1000", "0.25", "2.00"},
		{"port-ebpnet-10000", "0.25", "-"},
	} {
		r := rep.find(measures()[0].name, c.topology)
		if got := ratioText(r.ToWire) + " " + ratioText(r.ToIptables); got != c.toWire+" "+c.toIptables {
			t.Errorf("%s to wire and iptables: %s, want %s %s", c.topology, got, c.toWire, c.toIptables)
		}
	}
}

// A flood is compared with that into as many tunnels, a large table with a
// small one.
func TestRatiosAcrossHosts(t *testing.T) {
	t.Parallel()
	rep := filled(t, map[string][]float64{
		"overlay-wire": {8, 8, 8}, "overlay-vxlan": {4, 4, 4}, "overlay-vxlan-bare": {5, 5, 5}, "overlay-ovs": {1, 1, 1},
		"scale-2": {10, 10, 10}, "scale-256": {9, 9, 9},
	})
	for _, c := range []struct{ topology, toWire, toVXLAN, toFew string }{
		{"overlay-wire", "1.00", "2.00", "-"},
		{"overlay-vxlan-bare", "0.62", "1.25", "-"},
		{"overlay-ovs", "0.12", "0.25", "-"},
		{"scale-2", "-", "-", "1.00"},
		{"scale-256", "-", "-", "0.90"},
	} {
		r := rep.find(requests, c.topology)
		got := []string{ratioText(r.ToWire), ratioText(r.ToVXLAN), ratioText(r.ToFew)}
		if diff := cmp.Diff([]string{c.toWire, c.toVXLAN, c.toFew}, got); diff != "" {
			t.Errorf("%s to wire, vxlan, few:\n%s", c.topology, diff)
		}
	}

	flooding := measures()[slices.IndexFunc(measures(), func(m measure) bool { return m.name == copies })]
	opt := options{rounds: 1, duration: time.Second, measures: []measure{flooding}, topologies: toFlood()}
	rep = newReport(opt)
	for i, topology := range opt.topologies {
		rep.add(flooding, topology, sample{value: float64(i + 1)})
	}
	rep.finish()
	if r := rep.find(copies, "flood-ebpnet-16"); ratioText(r.ToVXLAN) != "1.33" { // 4th to 3rd
		t.Errorf("flood into 16 tunnels to VXLAN: %s, want 1.33", ratioText(r.ToVXLAN))
	}
}

func TestTableIsAligned(t *testing.T) {
	t.Parallel()
	rep := filled(t, map[string][]float64{
		wire: {66000, 66000, 66000}, "ebpnet": {12.345, 12.345, 12.345}, "outside-nftables": {12.345, 12.345, 12.345},
	})
	var b strings.Builder
	if err := rep.table(&b); err != nil {
		t.Fatal(err)
	}
	want := `Linux 6.18, CPU 0, 3 rounds of 1s, bridge with br_netfilter, iptables v1, 1970-01-01T00:00:00Z

inside: between two containers of a host

MEASURE  TOPOLOGY  MEDIAN    MIN    MAX  UNIT            TO WIRE  TO BRIDGE  TO NFTABLES  LOST
tcp_rr   wire       66000  66000  66000  transactions/s     1.00          -            -  6.6%
tcp_rr   ebpnet      12.3   12.3   12.3  transactions/s     0.00          -            -  0.0%

outside: from a container to the outside, which sees the host's address

MEASURE  TOPOLOGY          MEDIAN   MIN   MAX  UNIT            TO WIRE  TO IPTABLES  TO NFTABLES  LOST
tcp_rr   outside-nftables    12.3  12.3  12.3  transactions/s        -            -         1.00  0.0%
`
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
}

// Others read these names.
func TestJSONFieldNames(t *testing.T) {
	t.Parallel()
	rep := filled(t, map[string][]float64{wire: {2, 2, 2}})
	text, err := json.Marshal(rep)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"started":"1970-01-01T00:00:00Z","kernel":"6.18","cpu":0,"rounds":3,"seconds":1,"bridge_netfilter":true,` +
		`"iptables":"iptables v1","results":[{"family":"inside","measure":"tcp_rr","topology":"wire","ports":0,"tunnels":0,"unit":"transactions/s","median":2,"min":2,"max":2,` +
		`"ratio_to_wire":1,"ratio_to_bridge":null,"ratio_to_iptables":null,"ratio_to_nftables":null,"ratio_to_vxlan":null,"ratio_to_few":null,` +
		`"lost":0.000002,"samples":[2,2,2],"cpu_us_per_unit":null,"p50_us":null,"p99_us":null}]}`
	if diff := cmp.Diff(want, string(text)); diff != "" {
		t.Error(diff)
	}
}

// What a row tells besides its figure is a column, and is in the JSON.
func TestDetails(t *testing.T) {
	t.Parallel()
	opt := options{rounds: 2, duration: time.Second, measures: []measure{paced()}, topologies: []topology{named(t, wire), named(t, ebpnet)}}
	rep := newReport(opt)
	for _, p50 := range []time.Duration{10, 30} {
		p50 *= time.Microsecond
		rep.add(paced(), opt.topologies[0], sample{value: microseconds(p50), cpu: 2e-6, p50: p50, p99: 9 * p50})
		rep.add(paced(), opt.topologies[1], sample{value: 1})
	}
	rep.finish()
	rows := rep.rows(familyOf(opt.topologies[0]))
	var got []string
	for _, row := range rows {
		got = append(got, strings.Join(row[6:], ","))
	}
	// The median latency is the figure already.
	if diff := cmp.Diff([]string{"TO WIRE,TO BRIDGE,TO NFTABLES,CPU µs,P99 µs,LOST", "1.00,-,-,2,180,0.0%", "0.07,-,-,-,-,0.0%"}, got); diff != "" {
		t.Error(diff)
	}
	text, err := json.Marshal(rep.Results[0].P99)
	if want := `{"median":180,"min":90,"max":270,"samples":[90,270]}`; err != nil || string(text) != want {
		t.Errorf("%s, want %s (%v)", text, want, err)
	}
}

// A kind without a field of its own has its ratio among the others.
func TestOtherRatios(t *testing.T) {
	t.Parallel()
	one := toCost()[1]
	opt := options{rounds: 1, duration: time.Second, measures: costMeasures(), topologies: []topology{toCost()[0], one}}
	rep := newReport(opt)
	rep.add(opt.measures[0], opt.topologies[0], sample{value: 10})
	rep.add(opt.measures[0], one, sample{value: 40})
	rep.finish()
	if got := rep.find(packetCost, one.name).Ratios; got[empty] != 4 {
		t.Errorf("ratios %v, want 4 to %s", got, empty)
	}
}

// A rival that got nothing is compared with nobody, and does not lose the rest.
func TestNoRatioToNothing(t *testing.T) {
	t.Parallel()
	some, nothing := &result{Samples: []float64{1, 2}}, &result{Samples: []float64{0, 0}}
	for _, r := range []*result{some, nothing} {
		if got := ratio(r, nothing); got != nil {
			t.Errorf("ratio %v, want none", *got)
		}
	}
	if got := ratio(nothing, some); got == nil || *got != 0 {
		t.Errorf("ratio of nothing %v, want 0", got)
	}
}
