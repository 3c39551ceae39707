package datapath

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"github.com/ebpnet/ebpnet/bpf"
	"github.com/ebpnet/ebpnet/internal/testutil"
)

// TestLostRecordRemovesItsEntry has another CPU fill the queue of records
// after a tick removes a record and before the tick puts it back. The entry
// must go too: without a record, it would never age.
func TestLostRecordRemovesItsEntry(t *testing.T) {
	testutil.RequireRoot(t)
	const rounds = 20000
	w := newWorld(t, loadStill(func(spec *ebpf.CollectionSpec) error {
		spec.Maps[bpf.EbpnetMapLearnedQueue].MaxEntries = 2
		return nil
	}))
	withShared(&w.wanted)
	remember(t, w)
	row := seen(t, stranger(trunk, 90), false, 0)
	w.race(t, rounds, func(cpu, _ int) error {
		if cpu == 0 {
			if _, err := w.program(row.hook).Run(w.options(row.device, row.in, row.skb)); err != nil {
				return err
			}
			_, _, err := w.Programs.SweepOnce.Test(make([]byte, skbSize))
			return err
		}
		for range 2 { // it fails if the queue is full
			_ = w.Maps.LearnedQueue.Update(nil, bpf.EbpnetLearnedRecord{}, ebpf.UpdateAny)
		}
		return nil
	})
	recorded := map[uint32]bool{}
	var record bpf.EbpnetLearnedRecord
	for w.Maps.LearnedQueue.LookupAndDelete(nil, &record) == nil {
		recorded[record.Number] = true
	}
	err := eachBatch(w.Maps.LearnedFdb, func(_ []bpf.EbpnetFdbKey, entries []bpf.EbpnetLearned) {
		for _, e := range entries {
			if !recorded[e.Number] {
				t.Errorf("%+v has no record", e)
			}
		}
	})
	must(t, err)
}

// TestLearnWhileForgetting has one CPU learn stations while the other CPU
// forgets them. In the end, no station is counted.
func TestLearnWhileForgetting(t *testing.T) {
	testutil.RequireRoot(t)
	const rounds = 10000
	w := newStillWorld(t, 64)
	row := seen(t, stranger(trunk, 90), false, 0)
	w.race(t, rounds, func(cpu, _ int) error {
		if cpu == 0 {
			_, err := w.program(row.hook).Run(w.options(row.device, row.in, row.skb))
			return err
		}
		return w.ForgetLearned(LearnedFilter{Network: openNet})
	})
	must(t, w.ForgetLearned(LearnedFilter{Network: openNet}))
	if diff := cmp.Diff(map[bpf.EbpnetLearnedPlace]bpf.EbpnetLearnedCount{}, w.counted(t)); diff != "" {
		t.Errorf("counted (-want +got):\n%s", diff)
	}
}
