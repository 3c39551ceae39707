package datapath

import (
	"encoding/hex"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"github.com/ebpnet/ebpnet/bpf"
	"github.com/ebpnet/ebpnet/internal/testutil"
)

// loadDry loads programs that share the tables of a world. If dry is true, they
// only decide.
func loadDry(t *testing.T, w *world, spec *ebpf.CollectionSpec, dry bool) map[string]*ebpf.Program {
	t.Helper()
	if err := setConstant(spec, bpf.EbpnetVarDryRun, dry); err != nil {
		t.Fatal(err)
	}
	shared := map[string]*ebpf.Map{}
	maps := reflect.ValueOf(w.Maps)
	for i := range maps.NumField() {
		name := maps.Type().Field(i).Tag.Get("ebpf")
		if m := spec.Maps[name]; m != nil {
			shared[name] = maps.Field(i).Interface().(*ebpf.Map)
			m.MaxEntries = shared[name].MaxEntries()
		}
	}
	collection, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: shared})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(collection.Close)
	return collection.Programs
}

// newDryWorld makes a world with small tables of flows, because the test reads all
// of them. It also returns the programs of that world.
func newDryWorld(t *testing.T) (*world, *ebpf.CollectionSpec) {
	t.Helper()
	var spec *ebpf.CollectionSpec
	w := newWorld(t, loadStill(func(s *ebpf.CollectionSpec) error {
		const slots, halfOpen = 2048, 1024
		s.Maps[bpf.EbpnetMapFlows].MaxEntries = slots
		s.Maps[bpf.EbpnetMapFlowIndex].MaxEntries = 4 * slots
		s.Maps[bpf.EbpnetMapHalfOpen].MaxEntries = halfOpen
		err := errors.Join(
			setConstant(s, bpf.EbpnetVarFlowSlots, uint32(slots)),
			setConstant(s, bpf.EbpnetVarHalfOpenSlots, uint32(halfOpen)))
		spec = s.Copy()
		return err
	}))
	return w, spec
}

// verdictsOf returns the verdicts that an action can lead to.
func verdictsOf(action bpf.EbpnetAction) []int {
	switch action {
	case bpf.EbpnetActionACTION_PASS:
		return []int{verdictPass}
	case bpf.EbpnetActionACTION_DROP, bpf.EbpnetActionACTION_IGNORE, bpf.EbpnetActionACTION_FLOOD,
		bpf.EbpnetActionACTION_SEND_FRAGMENTS, bpf.EbpnetActionACTION_ENCAPSULATE_FRAGMENTS:
		return []int{verdictShot}
	case bpf.EbpnetActionACTION_REFUSE:
		return []int{verdictShot, verdictDirect}
	case bpf.EbpnetActionACTION_UNDECIDED, bpf.EbpnetActionACTION_BRIDGE, bpf.EbpnetActionACTION_HAIRPIN:
		return nil // never a final action
	}
	return []int{verdictDirect}
}

// written lists the content of all tables that the datapath writes, except
// scratch records.
func (w *world) written(t *testing.T) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	err := errors.Join(
		noteUsed(all, "flows", w.Maps.Flows, func(_ uint32, f bpf.EbpnetFlow) bool { return f.State != bpf.EbpnetFlowStateFLOW_FREE }),
		noteUsed(all, "flow_index", w.Maps.FlowIndex, func(bpf.EbpnetFlowKey, bpf.EbpnetFlowRef) bool { return true }),
		noteUsed(all, "half_open", w.Maps.HalfOpen, func(_, slot uint32) bool { return slot != 0 }),
		noteUsed(all, "port_counts", w.Maps.PortCounts, func(_, count uint32) bool { return count != 0 }),
		noteUsed(all, "datagrams", w.Maps.Datagrams, func(bpf.EbpnetFragmentPlace, bpf.EbpnetDatagram) bool { return true }),
		noteUsed(all, "learned_fdb", w.Maps.LearnedFdb, func(bpf.EbpnetFdbKey, bpf.EbpnetLearned) bool { return true }),
		noteUsed(all, "learned_neigh", w.Maps.LearnedNeigh, func(bpf.EbpnetAddress, bpf.EbpnetLearned) bool { return true }),
		noteUsed(all, "learned_counts", w.Maps.LearnedCounts, func(bpf.EbpnetLearnedPlace, bpf.EbpnetLearnedCount) bool { return true }),
		noteUsed(all, "tunnel_paths", w.Maps.TunnelPaths, func(_ uint32, p bpf.EbpnetTunnelPath) bool { return p != bpf.EbpnetTunnelPath{} }),
		noteUsed(all, "trunks", w.Maps.Trunks, func(_ uint32, trunk bpf.EbpnetTrunk) bool { return trunk != bpf.EbpnetTrunk{} }),
		noteUsed(all, "refusals", w.Maps.Refusals, func(_ uint32, r bpf.EbpnetRefused) bool { return r != bpf.EbpnetRefused{} }),
		noteUsed(all, "flood_budgets", w.Maps.FloodBudgets, func(_ uint32, b bpf.EbpnetFloodBudget) bool { return b != bpf.EbpnetFloodBudget{} }),
		noteUsed(all, "flow_shares", w.Maps.FlowShares, func(_ uint32, s bpf.EbpnetFlowShare) bool { return s.HalfOpen+s.Established+s.First != 0 }),
	)
	if err != nil {
		t.Fatal(err)
	}
	all["counters"] = []string{fmt.Sprintf("%+v", w.counters(t))}
	return all
}

// noteUsed adds the used entries of a table to all.
func noteUsed[K, V any](all map[string][]string, name string, m *ebpf.Map, used func(K, V) bool) error {
	var lines []string
	err := eachBatch(m, func(keys []K, values []V) {
		for i := range keys {
			if used(keys[i], values[i]) {
				lines = append(lines, fmt.Sprintf("%+v = %+v", keys[i], values[i]))
			}
		}
	})
	slices.Sort(lines)
	all[name] = lines
	return err
}

// TestDryRun checks that a dry run takes the same decisions as the programs,
// and writes no table.
func TestDryRun(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	for _, g := range pathGroups(t) {
		t.Run(g.name, func(t *testing.T) {
			w, spec := newDryWorld(t)
			if g.change != nil {
				w.change(t, g.change)
			}
			programs := loadDry(t, w, spec, true)
			for _, r := range g.rows(t) {
				t.Run(r.example.name, func(t *testing.T) { r.checkDry(t, w, programs[r.hook.String()]) })
			}
		})
	}
}

// checkDry fails unless a dry run with the row's packet writes nothing and
// takes the decision that the program then takes.
func (r row) checkDry(t *testing.T, w *world, dry *ebpf.Program) {
	if r.undo != nil {
		defer r.undo(t, w)
	}
	r.prepare(t, w)
	before := w.written(t)
	o, err := w.try(dry, r.device, r.in, r.skb)
	if err != nil {
		t.Fatalf("dry run with frame %x: %v", r.in, err)
	}
	w.expectUnwritten(t, before)
	verdict, _ := w.run(t, w.program(r.hook), r.device, r.in, r.skb)
	if action := bpf.EbpnetAction(o.verdict); !slices.Contains(verdictsOf(action), verdict) {
		t.Errorf("the dry run decided action %d, but the program returned verdict %d", action, verdict)
	}
}

func (w *world) expectUnwritten(t *testing.T, before map[string][]string) {
	t.Helper()
	if diff := cmp.Diff(before, w.written(t)); diff != "" {
		t.Errorf("the dry run wrote (-before +after):\n%s", diff)
	}
}

// TestDryRunOfXDP checks the same for the program of XDP, with the packets that
// this program delivers. For these packets it writes most.
func TestDryRunOfXDP(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	w, others := newDryWorld(t)
	w.change(t, withXDP)
	dry, live := loadXDP(t, w, others, true), loadXDP(t, w, others, false)
	for _, r := range slices.Concat(xdpTunnelRows(t), xdpFlowRows(t)) {
		if r.verdict == verdictDirect {
			t.Run(r.name, func(t *testing.T) { r.checkDryXDP(t, w, dry, live) })
		}
	}
}

func loadXDP(t *testing.T, w *world, others *ebpf.CollectionSpec, dry bool) *ebpf.Program {
	t.Helper()
	spec, err := bpf.LoadXdp()
	if err != nil {
		t.Fatal(err)
	}
	for name, constant := range spec.Variables {
		if same := others.Variables[name]; same != nil {
			constant.Value = slices.Clone(same.Value)
		}
	}
	return loadDry(t, w, spec, dry)[bpf.XdpProgXdpUplink]
}

func (r row) checkDryXDP(t *testing.T, w *world, dry, live *ebpf.Program) {
	if r.undo != nil {
		defer r.undo(t, w)
	}
	r.prepare(t, w)
	before := w.written(t)
	w.XDP = dry
	o, err := w.tryXDP(r.in)
	if err != nil {
		t.Fatalf("dry run with %x: %v", r.in, err)
	}
	w.expectUnwritten(t, before)
	if string(o.frame) != string(r.in) {
		t.Errorf("the dry run changed the frame:\n%s", cmp.Diff(hex.Dump(r.in), hex.Dump(o.frame)))
	}
	w.XDP = live
	decided := bpf.EbpnetAction(o.verdict)
	o, _ = w.runXDP(t, r.in)
	if want := verdictsOfXDP()[decided]; o.verdict != want {
		t.Errorf("the dry run decided action %d, but the program returned verdict %d, want %d", decided, o.verdict, want)
	}
}

func verdictsOfXDP() map[bpf.EbpnetAction]int {
	return map[bpf.EbpnetAction]int{
		bpf.EbpnetActionACTION_PASS:    xdpPass,
		bpf.EbpnetActionACTION_DROP:    xdpDrop,
		bpf.EbpnetActionACTION_DELIVER: xdpRedirect,
	}
}
