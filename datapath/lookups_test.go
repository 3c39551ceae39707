package datapath

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// calls are the map calls of a path for one packet: names of maps in
// alphabetical order, with "*n" for n calls.
type calls struct {
	hash    string // lookups in hashes and tries, which call the kernel
	array   string // lookups in arrays, which are part of the program
	updates string
	deletes string
}

// String returns the line of callsOfPaths for these calls.
func (c calls) String() string {
	var parts []string
	for _, p := range []struct{ name, value string }{
		{"hash", c.hash}, {"array", c.array}, {"updates", c.updates}, {"deletes", c.deletes},
	} {
		if p.value != "" {
			parts = append(parts, fmt.Sprintf("%s: %q", p.name, p.value))
		}
	}
	return "{" + strings.Join(parts, ", ") + "}"
}

// total returns the number of calls.
func total(passed map[callSite]uint64) (n uint64) {
	for _, times := range passed {
		n += times
	}
	return n
}

// calls sorts the counted calls by kind.
func (c *countedWorld) calls(passed map[callSite]uint64) calls {
	hash, array, updates, deletes := map[string]uint64{}, map[string]uint64{}, map[string]uint64{}, map[string]uint64{}
	for s, times := range passed {
		switch kind := c.tables[s.table]; {
		case s.call == asm.FnMapUpdateElem:
			updates[s.table] += times
		case s.call == asm.FnMapDeleteElem:
			deletes[s.table] += times
		case kind == ebpf.Array || kind == ebpf.PerCPUArray:
			array[s.table] += times
		default:
			hash[s.table] += times
		}
	}
	return calls{formatCalls(hash), formatCalls(array), formatCalls(updates), formatCalls(deletes)}
}

func formatCalls(times map[string]uint64) string {
	var words []string
	for _, name := range slices.Sorted(maps.Keys(times)) {
		if n := times[name]; n > 1 {
			name = fmt.Sprintf("%s*%d", name, n)
		}
		words = append(words, name)
	}
	return strings.Join(words, " ")
}

// TestLookups counts the map calls of each path, because they are most of the
// cost of a packet. If a path needs fewer calls, its line must be changed too.
// Otherwise the path could later need more again without notice.
func TestLookups(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	for _, g := range pathGroups(t) {
		t.Run(g.name, func(t *testing.T) {
			t.Parallel()
			c := newCountedWorld(t)
			if g.change != nil {
				g.change(&c.wanted)
				remember(t, c.world)
			}
			taps, ends := c.newTaps(t), c.newEnds(t)
			for _, r := range g.rows(t) {
				t.Run(r.example.name, func(t *testing.T) { r.checkCalls(t, c, taps, ends) })
			}
		})
	}
}

// checkCalls fails unless the row passes with counting, and its path makes the
// calls of callsOfPaths.
func (r row) checkCalls(t *testing.T, c *countedWorld, taps map[string]*testutil.Tap, ends vethEnds) {
	r.check(t, c.world, taps, ends)
	// A cached route is valid until the next tick of the clock. Of some
	// packets, the test takes one that needed no route lookup. On a slow
	// machine, ticks are short relative to a packet: then it tries more
	// packets.
	const attempts, mostAttempts = 3, 50
	want := callsOfPaths()[lineOf(r.example.name)]
	var least map[callSite]uint64
	for i := 0; i < attempts || i < mostAttempts && c.calls(least) != want; i++ {
		r.prepare(t, c.world)
		if !r.example.opens {
			c.run(t, c.program(r.hook), r.device, r.in, r.skb)
		}
		passed := c.during(t, r.hook.String(), func() { c.run(t, c.program(r.hook), r.device, r.in, r.skb) })
		if least == nil || total(passed) < total(least) {
			least = passed
		}
	}
	if got := c.calls(least); got != want {
		t.Errorf("%s: the line must be\n\t\t%q: %s,\nbut it is\n\t\t%q: %s,", r.example.name, lineOf(r.example.name), got, lineOf(r.example.name), want)
	}
}

// lineOf returns the key of a path in callsOfPaths. Both families share one
// line.
func lineOf(path string) string { return strings.TrimSuffix(path, "-ipv6") }

func TestEveryLineOfCallsHasItsPath(t *testing.T) {
	t.Parallel()
	left := callsOfPaths()
	for _, g := range pathGroups(t) {
		for _, r := range g.rows(t) {
			delete(left, lineOf(r.example.name))
		}
	}
	if len(left) > 0 {
		t.Errorf("no golden packet for the paths %v", slices.Sorted(maps.Keys(left)))
	}
}

// callsOfPaths returns the map calls of each path.
func callsOfPaths() map[string]calls {
	return map[string]calls{
		"same-host":                {hash: "devices fdb", array: "endpoint_stats*2 networks scratches"},
		"link-open":                {hash: "devices fdb flow_index*2 limits links", array: "endpoint_stats*2 flow_shares*6 flows*4 half_open*2 links_revision networks scratches*2", updates: "flow_index"},
		"link-out":                 {hash: "devices fdb flow_index", array: "endpoint_stats*2 flows links_revision networks scratches*2"},
		"link-back":                {hash: "devices fdb flow_index", array: "endpoint_stats*2 flows links_revision networks scratches*2"},
		"masquerade-open":          {hash: "devices flow_index*3 limits neighbors", array: "endpoint_stats flow_shares*5 flows*5 half_open*2 networks port_counts*8 port_secrets*2 published_ports scratches*5 uplink_buckets ways", updates: "flow_index*4"},
		"masquerade-out":           {hash: "devices flow_index", array: "endpoint_stats flows networks scratches*2 ways"},
		"masquerade-back":          {hash: "flow_index neighbors", array: "endpoint_stats flows networks scratches*2"},
		"masquerade-udp-out":       {hash: "devices flow_index", array: "endpoint_stats flows networks scratches*2 ways"},
		"masquerade-udp-back":      {hash: "flow_index neighbors", array: "endpoint_stats flows networks scratches*2"},
		"publish-open":             {hash: "broadcasts devices flow_index*2 limits neighbors*2 ports*2", array: "endpoint_stats flow_shares*5 flows*4 half_open*2 networks*2 published_ports scratches*7 uplink_buckets ways*2", updates: "flow_index*2"},
		"publish-in":               {hash: "flow_index neighbors", array: "endpoint_stats flows networks scratches*2"},
		"publish-back":             {hash: "devices flow_index", array: "endpoint_stats flows networks scratches*2 ways"},
		"publish-udp-in":           {hash: "flow_index neighbors", array: "endpoint_stats flows networks scratches*2"},
		"publish-udp-back":         {hash: "devices flow_index", array: "endpoint_stats flows networks scratches*2 ways"},
		"gateway-out":              {hash: "devices flow_index*2 neighbors", array: "endpoint_stats networks published_ports scratches*2"},
		"gateway-back":             {hash: "neighbors", array: "endpoint_stats scratches"},
		"host-out":                 {hash: "flow_index*2", array: "published_ports scratches"},
		"host-in":                  {hash: "flow_index*2", array: "published_ports scratches*3"},
		"gre-out":                  {hash: "devices fdb", array: "endpoint_stats networks scratches*2 tunnel_paths tunnel_stats tunnels*2 ways"},
		"gre-back":                 {hash: "carried fdb neighbors", array: "endpoint_stats networks scratches tunnel_buckets tunnel_stats"},
		"arp-answer":               {hash: "devices neighbors", array: "endpoint_stats networks scratches"},
		"nd-answer":                {hash: "devices neighbors", array: "endpoint_stats networks scratches"},
		"flood":                    {hash: "devices limits members*3", array: "endpoint_stats*2 flood_budgets networks scratches*4"},
		"drop-malformed":           {hash: "devices", array: "drops endpoint_stats networks scratches"},
		"drop-unknown-protocol":    {hash: "devices", array: "drops endpoint_stats networks scratches"},
		"drop-unknown-destination": {hash: "devices fdb learned_fdb", array: "drops endpoint_stats networks scratches*2"},
		"drop-spoofed-mac":         {hash: "devices", array: "drops endpoint_stats networks scratches"},
		"drop-spoofed-address":     {hash: "devices", array: "drops endpoint_stats networks scratches"},
		"drop-unknown-source":      {hash: "devices", array: "drops scratches"},
		"drop-policy":              {hash: "devices fdb flow_index links", array: "drops endpoint_stats links_revision networks scratches*2"},
		"drop-isolated":            {hash: "devices flow_index neighbors", array: "drops endpoint_stats networks published_ports scratches*2"},
		"drop-internal":            {hash: "devices flow_index neighbors", array: "drops endpoint_stats networks scratches*2"},
		"drop-not-from-host":       {array: "drops"},
		"drop-spoofed-overlay":     {hash: "carried fdb neighbors*2", array: "drops networks scratches tunnel_buckets tunnel_stats"},
		"drop-unknown-tunnel":      {array: "drops scratches tunnel_buckets*2"},
		"drop-bad-gre":             {array: "drops scratches tunnel_buckets"},
		"drop-unknown-key":         {hash: "carried", array: "drops scratches tunnel_buckets"},
		"drop-unsolicited":         {hash: "flow_index*2", array: "drops flows*3 networks published_ports scratches*3"},
		"drop-spoofed-outside":     {hash: "broadcasts devices flow_index neighbors ports*2", array: "drops networks published_ports scratches*4 ways*2"},
		"drop-source-not-allowed":  {hash: "broadcasts devices flow_index neighbors port_sources ports*2", array: "drops networks published_ports scratches*4 ways*2"},
		"drop-bad-offload":         {hash: "devices", array: "drops endpoint_stats networks scratches"},
		"drop-rogue-router":        {hash: "devices", array: "drops endpoint_stats networks scratches"},
		"drop-fragment":            {array: "drops scratches tunnel_buckets"},
		"drop-loopback-only":       {hash: "broadcasts flow_index ports*2", array: "drops networks published_ports scratches*3"},
		"drop-unknown-flow":        {hash: "broadcasts flow_index neighbors ports*2", array: "drops published_ports scratches*2 ways"},
	}
}
