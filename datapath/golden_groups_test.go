package datapath

import (
	"fmt"
	"slices"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/ebpnet/ebpnet/bpf"
	"github.com/ebpnet/ebpnet/internal/testutil"
	"github.com/ebpnet/ebpnet/loader"
)

// group is rows that share a world.
type group struct {
	name   string
	load   func(testing.TB, loader.Config) *Tables // nil: loadPinned
	rows   func(testing.TB) []row
	change func(*Wanted) // changes the world; nil: no change
}

// world makes the world of the group.
func (g group) world(t testing.TB, more ...func(*Wanted)) *world {
	t.Helper()
	load := g.load
	if load == nil {
		load = loadPinned
	}
	w := newWorld(t, load)
	if g.change != nil {
		more = append(more, g.change)
	}
	w.change(t, more...)
	return w
}

// change changes what is wanted of the world.
func (w *world) change(t testing.TB, changes ...func(*Wanted)) {
	t.Helper()
	for _, change := range changes {
		change(&w.wanted)
	}
	if len(changes) > 0 {
		remember(t, w)
	}
}

// unchanged names the group of all rows that use the world of newWorld without
// a change.
const unchanged = "unchanged"

// shareWorld merges the groups that do not change their world, because loading
// the programs takes longer than all their rows.
func shareWorld(t testing.TB, all []group) []group {
	t.Helper()
	var rows []row
	var shared []group
	for _, g := range all {
		if g.load != nil || g.change != nil {
			shared = append(shared, g)
			continue
		}
		for _, r := range g.rows(t) {
			r.name = g.name + "/" + r.name
			rows = append(rows, r)
		}
	}
	return append(shared, group{name: unchanged, rows: func(testing.TB) []row { return rows }})
}

func groups() []group {
	small := loadChanged(func(spec *ebpf.CollectionSpec) error {
		spec.Maps[bpf.EbpnetMapFlowIndex].MaxEntries = smallIndex
		return nil
	})
	return []group{
		{name: "parse", rows: parseRows},
		{name: "length", rows: lengthRows},
		{name: "bridge", rows: bridgeRows},
		{name: "neighbors", rows: neighborRows},
		{name: "guard", rows: guardRows},
		{name: "policy", rows: policyRows},
		{name: "gateway", rows: gatewayRows},
		{name: "masquerade", rows: masqueradeRows},
		{name: "host", rows: hostRows},
		{name: "tunnel", rows: tunnelRows},
		{name: "tunnel forms", rows: greRows, change: withForms},
		{name: "tunnel forms, short", load: loadDecap(decapIPv4, decapIPv6), rows: greShortRows, change: withForms},
		{name: "tunnel forms, before Linux 6.3", load: loadDecap(0, 0), rows: greOldKernelRows, change: withForms},
		{name: "tunnel marks", rows: ecnRows, change: withForms},
		{name: "tunnel sizes", rows: sizeRows, change: withForms},
		{name: "flood", rows: floodRows, change: withShared},
		{name: "storm", rows: stormRows, change: withShared},
		{name: "learning", rows: learnRows, change: withShared},
		{name: "trunk", rows: trunkRows, change: withShared},
		{name: "roles", rows: roleRows, change: withShared},
		{name: "uplink", rows: uplinkRows},
		{name: "rerouted", rows: rerouteRows},
		{name: "fragments", rows: fragmentRows},
		{name: "fragmented", rows: fragmentedRows},
		{name: "published", rows: publicationRows},
		{name: "several networks", rows: severalRows, change: withSeveral},
		{name: "superframes", rows: superRows},
		{name: "routed", rows: routedRows, change: withRouted},
		{name: "loopback", rows: localRows},
		{name: "hairpin", rows: hairpinRows},
		{name: "mappings", rows: mappingRows},
		{name: "established", rows: establishedRows},
		{name: "one port", load: loadRange(40000, 40000), rows: onePortRows},
		{name: "errors", rows: errorRows},
		{name: "stray errors", rows: strayErrorRows},
		{name: "forged errors", rows: forgedErrorRows},
		{name: "misled host", rows: misledRows},
		{name: "refusals", rows: refusalRows},
		{name: "full", load: small, rows: fullRows},
		{name: "no slots", rows: noSlotRows},
		{name: "limits", rows: limitRows},
	}
}

func TestGolden(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	for _, g := range shareWorld(t, groups()) {
		t.Run(g.name, func(t *testing.T) {
			t.Parallel()
			w := g.world(t)
			ends := w.newEnds(t)
			taps := w.newTaps(t)
			for _, r := range g.rows(t) {
				t.Run(r.name, func(t *testing.T) { r.check(t, w, taps, ends) })
			}
		})
	}
}

// TestEveryReasonHasAGoldenPacket checks that the rows cover enum reason.
func TestEveryReasonHasAGoldenPacket(t *testing.T) {
	t.Parallel()
	var seen []string
	for _, g := range groups() {
		for _, r := range g.rows(t) {
			seen = append(seen, r.reason)
		}
	}
	reasons, err := Reasons()
	if err != nil {
		t.Fatal(err)
	}
	for _, reason := range reasons {
		if !slices.Contains(seen, reason) {
			t.Errorf("no golden packet is dropped as %s", reason)
		}
	}
}

// bothFamilies returns the rows for IPv4 and for IPv6.
func bothFamilies(rows func(v6 bool) []row) []row {
	var all []row
	for _, v6 := range []bool{false, true} {
		for _, r := range rows(v6) {
			r.example = r.example.of(v6)
			r.name = fmt.Sprintf("IPv%d/%s", map[bool]int{false: 4, true: 6}[v6], r.name)
			all = append(all, r)
		}
	}
	return all
}
