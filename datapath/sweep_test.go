package datapath

import (
	"math"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"github.com/ebpnet/ebpnet/bpf"
	"github.com/ebpnet/ebpnet/internal/testutil"
	"github.com/ebpnet/ebpnet/loader"
)

// The most work of one tick of the sweep: see bpf/sweep.h and bpf/learn_age.h.
const (
	sweepSlots = 1024
	sweepEnds  = 32
	learnTick  = 64
)

// newStillWorld makes a world with trunks and tunnels, and this many slots for
// flows. The sweep runs only if a test runs it.
func newStillWorld(t *testing.T, slots uint32) *world {
	t.Helper()
	w := newWorld(t, loadStill(func(spec *ebpf.CollectionSpec) error {
		spec.Maps[bpf.EbpnetMapFlows].MaxEntries = slots
		return setConstant(spec, bpf.EbpnetVarFlowSlots, slots)
	}))
	withShared(&w.wanted)
	remember(t, w)
	return w
}

// tick runs one tick of the sweep.
func (w *world) tick(t testing.TB) {
	t.Helper()
	if status, _, err := w.Programs.SweepOnce.Test(make([]byte, skbSize)); err != nil || status != 0 {
		t.Fatalf("a tick of the sweep: status %d, error %v", status, err)
	}
}

// cursor is the slot where the next tick starts.
func (w *world) cursor(t testing.TB) uint32 {
	t.Helper()
	var s bpf.EbpnetSweeper
	if err := w.Maps.Sweepers.Lookup(uint32(0), &s); err != nil {
		t.Fatal(err)
	}
	return s.Cursor
}

// fillFlows writes an established flow into every slot, with this time of last
// use.
func (w *world) fillFlows(t testing.TB, seen uint64) {
	t.Helper()
	flows := map[uint32]bpf.EbpnetFlow{}
	for slot := range w.Maps.Flows.MaxEntries() {
		flow := bpf.EbpnetFlow{State: bpf.EbpnetFlowStateFLOW_ESTABLISHED, Seen: seen, Mapping: math.MaxUint32}
		flow.Original.Protocol, flow.Original.Network = protocolUDP, slot
		flows[slot] = flow
	}
	if err := putAll(w.Maps.Flows, flows); err != nil {
		t.Fatal(err)
	}
}

// TestTickLooksAtFewFlows checks that a tick checks a bounded number of flows,
// and that a round of ticks checks each flow once.
func TestTickLooksAtFewFlows(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	now, err := coarseNow()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		slots uint32
		hands []uint32
	}{
		{100, []uint32{0, 0}},
		{sweepSlots, []uint32{0, 0}},
		{3*sweepSlots + 1, []uint32{sweepSlots, 2 * sweepSlots, 3 * sweepSlots, sweepSlots - 1}},
	} {
		w := newStillWorld(t, c.slots)
		w.fillFlows(t, uint64(now))
		for i, want := range c.hands {
			w.tick(t)
			if got := w.cursor(t); got != want {
				t.Errorf("of %d slots, after tick %d: the next slot is %d, want %d", c.slots, i+1, got, want)
			}
		}
		if all, _, err := w.countFlows(); err != nil || all != int(c.slots) {
			t.Errorf("%d flows remain of %d, error %v", all, c.slots, err)
		}
	}
}

// TestTickEndsFewFlows checks that a tick ends a bounded number of flows, and
// that the next tick starts after the last of them.
func TestTickEndsFewFlows(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	const slots = 10*sweepEnds + 5
	w := newStillWorld(t, slots)
	w.fillFlows(t, 1)
	for left := slots; left > 0; {
		w.tick(t)
		left = max(0, left-sweepEnds)
		if all, _, err := w.countFlows(); err != nil || all != left {
			t.Fatalf("%d flows remain, want %d, error %v", all, left, err)
		}
	}
}

// TestTickForgetsFewStations checks that a tick checks a bounded number of
// learned stations, and that ticks reach each of them.
func TestTickForgetsFewStations(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	const stations = 3*learnTick + 5
	w := newStillWorld(t, 64)
	learned := func() int {
		n, err := w.countLearned(nil)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	for n := range stations {
		h := stranger(trunk, 90)
		h.mac[4], h.mac[5] = byte(n>>8), byte(n)
		w.send(t, seen(t, h, false, 0))
	}
	for range 10 {
		w.tick(t)
	}
	if n := learned(); n != stations {
		t.Fatalf("%d learned stations, want %d", n, stations)
	}
	age(learnedFor)(t, w)
	for left := stations; left > 0; {
		w.tick(t)
		left = max(0, left-learnTick)
		if n := learned(); n != left {
			t.Fatalf("%d stations remain, want %d", n, left)
		}
	}
	if diff := cmp.Diff(map[bpf.EbpnetLearnedPlace]bpf.EbpnetLearnedCount{}, w.counted(t)); diff != "" {
		t.Errorf("counted (-want +got):\n%s", diff)
	}
}

// TestEntriesWithoutRecordAreAdopted checks that a load counts the stations of
// a version without a queue, and that they are forgotten when they are idle.
func TestEntriesWithoutRecordAreAdopted(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	const after = 8 * time.Second
	w := newSharedWorld(t, loader.Timeouts{Learned: after, TCPEstablished: after, UDPEstablished: after})
	w.learn(t, behindTunnel(theTunnel, openNet, 9), address4(openNet, 80))
	counting(openPlace, 77, 78)(t, w)
	counting(inTunnel(sixTunnel), 5, 5)(t, w)
	startSweep(t, w.Programs.SweepFlows)
	want := []string{"172.30.1.80 on 1 behind 0/1", "station 9 on 1 behind 0/1"}
	if diff := cmp.Diff(want, w.learned(t)); diff != "" {
		t.Errorf("learned (-want +got):\n%s", diff)
	}
	testutil.Eventually(t, "the end of idle entries", func() bool { return len(w.counted(t)) == 0 })
	if found := w.learned(t); len(found) != 0 {
		t.Errorf("%q remains", found)
	}
}

// TestForgottenIsLearnedAgain checks that a station that is forgotten and
// learned again has exactly one valid record.
func TestForgottenIsLearnedAgain(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	w := newStillWorld(t, 64)
	for range 5 {
		w.send(t, seen(t, stranger(trunk, 90), false, 0))
		if err := w.ForgetLearned(LearnedFilter{Network: openNet}); err != nil {
			t.Fatal(err)
		}
	}
	w.send(t, seen(t, stranger(trunk, 90), false, 0))
	w.tick(t)
	want := []string{"station 90 on 1 behind 6/0"}
	if diff := cmp.Diff(want, w.learned(t)); diff != "" {
		t.Errorf("learned (-want +got):\n%s", diff)
	}
	age(learnedFor)(t, w)
	w.tick(t)
	if found := w.learned(t); len(found) != 0 {
		t.Errorf("%q remains", found)
	}
	var record bpf.EbpnetLearnedRecord
	if err := w.Maps.LearnedQueue.LookupAndDelete(nil, &record); err == nil {
		t.Errorf("the record %+v remains", record)
	}
}

// TestMovingStationsAreCounted moves stations on two CPUs while others forget
// them. In the end, each counts at its place.
func TestMovingStationsAreCounted(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	w := newSharedWorld(t, loader.Timeouts{})
	const times, stations = 3000, 4
	var rows []row
	for n := range uint32(stations) {
		rows = append(rows,
			seen(t, stranger(trunk, 90+n), false, 0), seen(t, stranger(otherTrunk, 90+n), false, 0),
			seen(t, stranger(host{}, 90+n), false, theTunnel))
	}
	var all sync.WaitGroup
	for first := range 2 {
		all.Go(func() {
			for n := range times {
				w.send(t, rows[(first+n)%len(rows)])
				if n%100 == 0 && first == 0 {
					if err := w.ForgetLearned(LearnedFilter{Network: openNet}); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	all.Wait()
	if n := len(w.learned(t)); n != stations {
		t.Errorf("%d learned stations, want %d", n, stations)
	}
}
