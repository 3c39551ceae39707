package datapath

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/ebpnet/ebpnet/bpf"
	"github.com/ebpnet/ebpnet/internal/testutil"
	"github.com/ebpnet/ebpnet/loader"
)

// TestFloodsAreLimited checks that no copies of an endpoint are flooded after
// its burst. Only this endpoint counts limited frames.
func TestFloodsAreLimited(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	w := newSharedWorld(t, loader.Timeouts{})
	w.calm(t)
	group := fromEndpoint("", alice, multicast(alice, false).frame(t))
	const limit, members = 5, 5 // of openNet without alice: two trunks, two tunnels and bob
	set := func(limit uint32) {
		t.Helper()
		for _, e := range w.wanted.Endpoints {
			if e.ID == alice.id {
				e.MaxFlood = limit
				if err := w.SetEndpoint(e); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	drops := func() uint64 {
		t.Helper()
		return w.counters(t).Drops["flood_limit"].Packets
	}
	set(limit)
	started := time.Now()
	const frames = 20
	for range frames {
		w.send(t, group)
	}
	// The limit allows two seconds' worth of copies at once, one frame more,
	// and the copies of the elapsed time.
	passed := uint64(frames) - drops()
	if most := uint64(2*limit/members+1) + uint64(time.Since(started).Seconds()*limit/members+1); passed > most || passed == 0 {
		t.Errorf("%d frames to %d members were flooded, want 1 to %d", passed, members, most)
	}
	for id, want := range map[uint32]uint64{alice.id: frames - passed, bob.id: 0, trunk.id: 0} {
		if got, err := w.FloodShare(id); err != nil || got.LimitedPackets != want {
			t.Errorf("endpoint %d: %d frames limited, want %d; error %v", id, got.LimitedPackets, want, err)
		}
	}
	// Endpoint 0 has the default limit again. It does not limit normal use,
	// such as a burst of 100 frames to 1,000 members.
	w.calm(t)
	set(0)
	before := drops()
	for range 100_000 / members {
		w.send(t, group)
	}
	if after := drops(); after != before {
		t.Errorf("%d frames were limited at the default limit", after-before)
	}
}

// TestLoopIsFoundByProbe checks that each trunk sends at most one probe per
// second. A probe that arrives at the later trunk blocks it and identifies the
// trunk that sent it.
func TestLoopIsFoundByProbe(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	w := newSharedWorld(t, loader.Timeouts{})
	w.calm(t)
	for _, h := range []host{trunk, otherTrunk} {
		if err := w.Maps.Trunks.Put(h.id, bpf.EbpnetTrunk{}); err != nil {
			t.Fatal(err)
		}
	}
	taps := map[uint32]*testutil.Tap{}
	for _, h := range []host{trunk, otherTrunk, bob} {
		taps[h.id] = w.containers.NewTap(t, "c-"+h.device)
	}
	group := multicast(alice, false).frame(t)
	if _, out := w.run(t, w.Programs.FromEndpoint, alice.device, group, skbContext{}); string(out) != string(group) {
		t.Errorf("the frame after the flood is %x, want %x", out, group)
	}
	isProbe := func(p gopacket.Packet) bool {
		eth, ok := p.Layer(layers.LayerTypeEthernet).(*layers.Ethernet)
		return ok && eth.EthernetType == loopEthertype
	}
	probes := map[uint32][]byte{}
	for _, h := range []host{trunk, otherTrunk} {
		p := taps[h.id].Await(t, "a probe", isProbe).Data()
		if id := binary.NativeEndian.Uint32(p[16:]); id != h.id {
			t.Errorf("the probe of trunk %d has id %d", h.id, id)
		}
		probes[h.id] = p
	}
	if p := taps[bob.id].Receive(t, 0, isProbe); p != nil {
		t.Errorf("an endpoint that is no trunk got the probe %x", p.Data())
	}
	blocked := func(h host) bool {
		t.Helper()
		loop, err := w.EndpointLoop(h.id)
		if err != nil {
			t.Fatal(err)
		}
		return loop.Blocked > 0
	}
	// The earlier trunk never blocks because of a later trunk's probe.
	w.run(t, w.Programs.FromEndpoint, otherTrunk.device, probes[trunk.id], skbContext{})
	w.run(t, w.Programs.FromEndpoint, trunk.device, probes[trunk.id], skbContext{})
	if blocked(trunk) || blocked(otherTrunk) {
		t.Fatal("a trunk is blocked, but no probe of an earlier trunk has arrived")
	}
	w.run(t, w.Programs.FromEndpoint, trunk.device, probes[otherTrunk.id], skbContext{})
	loop, err := w.EndpointLoop(trunk.id)
	if err != nil || loop.Times != 1 || loop.Other != otherTrunk.id || loop.Blocked <= 0 || loop.Blocked > loopBlocked {
		t.Errorf("loop state of the later trunk: %+v, error %v", loop, err)
	}
	if blocked(otherTrunk) {
		t.Error("the earlier trunk is blocked too")
	}
}

// TestBlockedTrunkStaysBlocked checks that a trunk stays blocked when the agent
// writes its settings or all tables. Only the next flooded frame passes.
func TestBlockedTrunkStaysBlocked(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	w := newSharedWorld(t, loader.Timeouts{})
	w.calm(t)
	frame := multicast(trunk, false).frame(t)
	drops := func() uint64 {
		t.Helper()
		return w.counters(t).Drops["loop"].Packets
	}
	for name, write := range map[string]func() error{
		"SetEndpoint": func() error { return w.SetEndpoint(w.endpoint(t, trunk)) },
		"Replace":     func() error { return w.Replace(w.wanted) },
	} {
		markBlocked(trunk, loopBlocked)(t, w)
		must(t, write())
		w.send(t, fromEndpoint("", trunk, frame))
		before := drops()
		w.send(t, fromEndpoint("", trunk, frame))
		if after := drops(); after != before+1 {
			t.Errorf("after %s: a frame of the blocked trunk is not dropped", name)
		}
	}
}
