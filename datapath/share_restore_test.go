package datapath

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/ebpnet/ebpnet/bpf"
	"github.com/ebpnet/ebpnet/internal/testutil"
)

// TestRestoredFlowsCount checks that restored flows count as before, and that
// the limit of their owner does not refuse them.
func TestRestoredFlowsCount(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	old, w := newWorld(t, loadSlots(64, nil)), newWorld(t, loadSlots(64, nil))
	if err := w.setLimits(alice.id, Limits{MaxFlows: 1}); err != nil {
		t.Fatal(err)
	}
	for i := range uint16(3) {
		old.establish(t, alice, 2000+i, 53)
		old.establish(t, alice, 2000+i, 54)
		old.send(t, sentBy(t, bob, false, udp(3000+i, 53)))
	}
	old.checkShares(t)
	for _, f := range old.raw(t) {
		if status := w.restore(t, f); status != 0 {
			t.Errorf("status %d for %+v", status, f)
		}
	}
	w.checkShares(t)
	if got := w.share(t, alice.id); got.Established != 6 {
		t.Errorf("%+v, want 6 established", got)
	}
}

// TestRestoredFlowsOfAGatewayCount checks that a restored flow with a port at a
// gateway's address counts for the class of that port, with any range of
// masquerade ports.
func TestRestoredFlowsOfAGatewayCount(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	load := loadChanged(func(spec *ebpf.CollectionSpec) error {
		return errors.Join(setConstant(spec, bpf.EbpnetVarFirstPort, uint16(1)), setConstant(spec, bpf.EbpnetVarLastPort, uint16(1000)))
	})
	old, w := newWorld(t, load), newWorld(t, load)
	for _, world := range []*world{old, w} {
		must(t, world.PutPorts([]Port{publishAlice()}))
	}
	// The masquerade ports have no port of this class.
	open := func(world *world, port uint16) {
		t.Helper()
		if verdict, _ := world.send(t, fromEndpoint("", bob, toPublished(bob, tcp(port, 80, "S")).frame(t))); verdict != verdictDirect {
			t.Fatalf("verdict %d", verdict)
		}
	}
	open(old, 3000)
	for _, f := range old.raw(t) {
		if status := w.restore(t, f); status != 0 {
			t.Errorf("status %d for %+v", status, f)
		}
	}
	open(w, 3001)
	var counts []uint32
	must(t, eachBatch(w.Maps.PortCounts, func(_ []uint32, cells []uint32) {
		for _, c := range cells {
			if c != 0 {
				counts = append(counts, c)
			}
		}
	}))
	if want := []uint32{2, 2, 2, 2}; !slices.Equal(counts, want) {
		t.Errorf("the cells count %v, want %v", counts, want)
	}
}

// TestCommandsKeepThePacketsScratch checks that the programs of commands do
// not write the scratch record of packets. A packet may arrive on the same CPU
// while such a program runs.
func TestCommandsKeepThePacketsScratch(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	old, w := newWorld(t, loadSlots(64, nil)), newWorld(t, loadSlots(64, nil))
	old.establish(t, alice, 2000, 53)
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		t.Fatal(err)
	}
	marked := make([]byte, w.Maps.Scratches.ValueSize())
	for i := range marked {
		marked[i] = 0xa5
	}
	every := make([][]byte, cpus)
	for i := range every {
		every[i] = marked
	}
	if err := w.Maps.Scratches.Put(uint32(0), every); err != nil {
		t.Fatal(err)
	}
	for _, f := range old.raw(t) {
		if status := w.restore(t, f); status != 0 {
			t.Errorf("status %d for %+v", status, f)
		}
	}
	for _, err := range []error{
		w.endUnbackedFlows(), w.FlushFlows(FlowFilter{Network: alice.network, Addresses: []netip.Addr{alice.ip4}}),
		w.ForgetLearned(LearnedFilter{}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	var got [][]byte
	if err := w.Maps.Scratches.Lookup(uint32(0), &got); err != nil {
		t.Fatal(err)
	}
	for cpu := range got {
		if string(got[cpu]) != string(marked) {
			t.Errorf("the scratch record of packets on CPU %d has changed", cpu)
		}
	}
}
