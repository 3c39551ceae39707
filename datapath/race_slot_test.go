package datapath

import (
	"testing"

	"github.com/cilium/ebpf"

	"github.com/ebpnet/ebpnet/bpf"
	"github.com/ebpnet/ebpnet/internal/testutil"
)

// TestReusedSlots has one CPU find flows while the other CPU ends all flows and
// opens its own flows in the same slots. No packet leaves with the translation
// of another flow, even if slots have no grace period. With the grace period,
// the counts are exact too.
func TestReusedSlots(t *testing.T) {
	testutil.RequireRoot(t)
	const slots, talks = 4, 16
	for _, grace := range []bool{false, true} {
		name := "without grace"
		if grace {
			name = "with grace"
		}
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, loadChanged(func(spec *ebpf.CollectionSpec) error {
				spec.Maps[bpf.EbpnetMapFlows].MaxEntries = slots
				if !grace {
					if err := setConstant(spec, bpf.EbpnetVarFlowGrace, uint64(0)); err != nil {
						return err
					}
				}
				return setConstant(spec, bpf.EbpnetVarFlowSlots, uint32(slots))
			}))
			var both [2][]*talk
			for i := range uint16(talks) {
				both[0] = append(both[0], w.talkOutside(t, plain, i%2 == 1, 2000+i, 200))
				both[1] = append(both[1], w.talkOutside(t, bob, i%2 == 1, 3000+i, 1))
			}
			w.raceTalks(t, both, func(cpu, _ int) error {
				if cpu == 0 {
					return nil
				}
				return w.FlushFlows(FlowFilter{})
			})
			if grace {
				w.checkCounts(t)
			}
		})
	}
}
