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
	load   func(testing.TB, loader.Config) *Tables
	rows   func(testing.TB) []row
	change func(*Wanted) // what is wanted of the world; nil: as it is
}

func groups() []group {
	small := loadChanged(func(spec *ebpf.CollectionSpec) error {
		spec.Maps[bpf.EbpnetMapFlowIndex].MaxEntries = smallIndex
		return nil
	})
	return []group{
		{name: "parse", load: loadPinned, rows: parseRows},
		{name: "length", load: loadPinned, rows: lengthRows},
		{name: "bridge", load: loadPinned, rows: bridgeRows},
		{name: "neighbors", load: loadPinned, rows: neighborRows},
		{name: "guard", load: loadPinned, rows: guardRows},
		{name: "policy", load: loadPinned, rows: policyRows},
		{name: "gateway", load: loadPinned, rows: gatewayRows},
		{name: "masquerade", load: loadPinned, rows: masqueradeRows},
		{name: "host", load: loadPinned, rows: hostRows},
		{name: "tunnel", load: loadPinned, rows: tunnelRows},
		{name: "tunnel forms", load: loadPinned, rows: greRows, change: withForms},
		{name: "tunnel forms, short", load: loadDecap(decapIPv4, decapIPv6), rows: greShortRows, change: withForms},
		{name: "tunnel forms, before Linux 6.3", load: loadDecap(0, 0), rows: greBeforeRows, change: withForms},
		{name: "tunnel marks", load: loadPinned, rows: ecnRows, change: withForms},
		{name: "tunnel sizes", load: loadPinned, rows: sizeRows, change: withForms},
		{name: "flood", load: loadPinned, rows: floodRows, change: withShared},
		{name: "storm", load: loadPinned, rows: stormRows, change: withShared},
		{name: "learning", load: loadPinned, rows: learnRows, change: withShared},
		{name: "trunk", load: loadPinned, rows: trunkRows, change: withShared},
		{name: "roles", load: loadPinned, rows: roleRows, change: withShared},
		{name: "uplink", load: loadPinned, rows: uplinkRows},
		{name: "rerouted", load: loadPinned, rows: rerouteRows},
		{name: "fragments", load: loadPinned, rows: fragmentRows},
		{name: "fragmented", load: loadPinned, rows: fragmentedRows},
		{name: "published", load: loadPinned, rows: publicationRows},
		{name: "several networks", load: loadPinned, rows: severalRows, change: withSeveral},
		{name: "superframes", load: loadPinned, rows: superRows},
		{name: "routed", load: loadPinned, rows: routedRows, change: withRouted},
		{name: "loopback", load: loadPinned, rows: localRows},
		{name: "hairpin", load: loadPinned, rows: hairpinRows},
		{name: "mappings", load: loadPinned, rows: mappingRows},
		{name: "established", load: loadPinned, rows: establishedRows},
		{name: "one port", load: loadRange(40000, 40000), rows: onePortRows},
		{name: "errors", load: loadPinned, rows: errorRows},
		{name: "stray errors", load: loadPinned, rows: strayErrorRows},
		{name: "forged errors", load: loadPinned, rows: forgedErrorRows},
		{name: "misled host", load: loadPinned, rows: misledRows},
		{name: "refusals", load: loadPinned, rows: refusalRows},
		{name: "full", load: small, rows: fullRows},
		{name: "no slots", load: loadPinned, rows: noSlotRows},
		{name: "limits", load: loadPinned, rows: limitRows},
	}
}

func TestGolden(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	for _, g := range groups() {
		t.Run(g.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, g.load)
			if g.change != nil {
				g.change(&w.wanted)
				remember(t, w)
			}
			ends := w.newEnds(t)
			taps := w.newTaps(t)
			for _, r := range g.rows(t) {
				t.Run(r.name, func(t *testing.T) { r.check(t, w, taps, ends) })
			}
		})
	}
}

// TestEveryReasonHasAGoldenPacket holds the rows against enum reason.
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

// bothFamilies makes rows for IPv4 and for IPv6.
func bothFamilies(rows func(v6 bool) []row) []row {
	var all []row
	for _, v6 := range []bool{false, true} {
		for _, r := range rows(v6) {
			r.way = r.way.of(v6)
			r.name = fmt.Sprintf("IPv%d/%s", map[bool]int{false: 4, true: 6}[v6], r.name)
			all = append(all, r)
		}
	}
	return all
}
