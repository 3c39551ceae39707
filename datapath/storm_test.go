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

// An endpoint has as many copies flooded as its burst allows, and no more; what
// is limited is counted for it alone.
func TestFloodsAreLimited(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	w := newSharedWorld(t, loader.Timeouts{})
	w.calm(t)
	group := fromEndpoint("", alice, multicast(alice, false).frame(t))
	const limit, members = 5, 5 // of openNet besides alice: two trunks, two tunnels and bob
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
	// Two seconds' worth at once and one frame more; and what time allows.
	passed := uint64(frames) - drops()
	if most := uint64(2*limit/members+1) + uint64(time.Since(started).Seconds()*limit/members+1); passed > most || passed == 0 {
		t.Errorf("%d frames to %d members were flooded, want 1 to %d", passed, members, most)
	}
	for id, want := range map[uint32]uint64{alice.id: frames - passed, bob.id: 0, trunk.id: 0} {
		if got, err := w.FloodShare(id); err != nil || got.LimitedPackets != want {
			t.Errorf("of endpoint %d were limited %d frames, want %d; error %v", id, got.LimitedPackets, want, err)
		}
	}
	// Endpoint 0 has the default again: what honest endpoints send passes, as
	// 100 frames at once to 1,000 members do.
	w.calm(t)
	set(0)
	before := drops()
	for range 100_000 / members {
		w.send(t, group)
	}
	if after := drops(); after != before {
		t.Errorf("%d frames were limited at the default", after-before)
	}
}

// A probe goes out by each trunk once a second at most; one that comes in by the
// later trunk blocks it, and says by which other one it went out.
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
		t.Errorf("the frame is left as %x, want %x", out, group)
	}
	isProbe := func(p gopacket.Packet) bool {
		eth, ok := p.Layer(layers.LayerTypeEthernet).(*layers.Ethernet)
		return ok && eth.EthernetType == loopEthertype
	}
	probes := map[uint32][]byte{}
	for _, h := range []host{trunk, otherTrunk} {
		p := taps[h.id].Await(t, "a probe", isProbe).Data()
		if id := binary.NativeEndian.Uint32(p[16:]); id != h.id {
			t.Errorf("the probe that went out by %d says %d", h.id, id)
		}
		probes[h.id] = p
	}
	if p := taps[bob.id].Receive(t, 0, isProbe); p != nil {
		t.Errorf("one that is no trunk got the probe %x", p.Data())
	}
	blocked := func(h host) bool {
		t.Helper()
		loop, err := w.EndpointLoop(h.id)
		if err != nil {
			t.Fatal(err)
		}
		return loop.Blocked > 0
	}
	// The earlier trunk stays open whatever comes in by it.
	w.run(t, w.Programs.FromEndpoint, otherTrunk.device, probes[trunk.id], skbContext{})
	w.run(t, w.Programs.FromEndpoint, trunk.device, probes[trunk.id], skbContext{})
	if blocked(trunk) || blocked(otherTrunk) {
		t.Fatal("a trunk is blocked, but no earlier trunk's probe has come in")
	}
	w.run(t, w.Programs.FromEndpoint, trunk.device, probes[otherTrunk.id], skbContext{})
	loop, err := w.EndpointLoop(trunk.id)
	if err != nil || loop.Times != 1 || loop.Other != otherTrunk.id || loop.Blocked <= 0 || loop.Blocked > loopBlocked {
		t.Errorf("the later trunk's loop is %+v, error %v", loop, err)
	}
	if blocked(otherTrunk) {
		t.Error("the earlier trunk is blocked too")
	}
}
