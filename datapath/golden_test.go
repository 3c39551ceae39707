package datapath

import (
	"encoding/hex"
	"errors"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"github.com/ebpnet/ebpnet/bpf"
	"github.com/ebpnet/ebpnet/internal/testutil"
	"github.com/ebpnet/ebpnet/loader"
)

// row is one golden packet: an input and all expected results. The output is
// compared byte for byte. A packet that leaves through bpf_redirect_neigh()
// still has the Ethernet header of the input; the kernel writes the new one
// later.
type row struct {
	name   string
	hook   loader.Hook
	device string
	before []step // packets sent earlier; not counted
	setup  func(testing.TB, *world)
	undo   func(testing.TB, *world)
	in     []byte
	skb    skbContext

	verdict    int
	out        []byte              // nil: same as the input
	outOf      func([]byte) []byte // instead of out: derives the expected output from the output
	mark       uint32              // of the output packet
	reason     string              // drop reason, if the packet is dropped
	unwrapped  bool                // out is dropped, without outer headers
	sender     *host               // endpoint that counts the input as sent
	receivers  []host              // endpoints that count the output as received
	flooded    bool                // receivers get copies of out at their devices
	detours    []uint32            // tunnels that get copies through the detour
	fragments  []uint32            // marks of copies of out that become fragments
	fromTunnel uint32              // 0: none
	toTunnel   uint32
	example    path
}

// step is a packet that is sent before the row's packet.
type step struct {
	hook   loader.Hook
	device string
	frame  []byte
	skb    skbContext
}

// These functions say where a row's packet arrives. The methods below say what
// the datapath does with it.
func fromEndpoint(name string, from host, in []byte) row {
	return row{name: name, hook: loader.FromEndpoint, device: from.device, in: in, sender: &from}
}

func fromHost(name string, in []byte) row {
	return row{name: name, hook: loader.FromHost, device: "ebpnet1", in: in}
}

// toGateway is a frame that the host sends to containers. If arrived is set,
// the host received it from this device and forwards it.
func toGateway(name string, arrived uint32, in []byte) row {
	return row{name: name, hook: loader.ToGateway, device: "ebpnet0", in: in, skb: skbContext{arrived: arrived}}
}

func fromUplink(name string, in []byte) row {
	return row{name: name, hook: loader.FromUplink, device: "up0", in: in}
}

func fromLoopback(name string, in []byte) row {
	return row{name: name, hook: loader.FromLoopback, device: "lo", in: in}
}

func toUplink(name string, in []byte) row {
	return row{name: name, hook: loader.ToUplink, device: "up0", in: in}
}

// outOfTunnel is fromUplink for a frame that counts for a tunnel.
func outOfTunnel(name string, in []byte) row { return outOf(theTunnel, name, in) }

func outOf(tunnel uint32, name string, in []byte) row {
	r := fromUplink(name, in)
	r.fromTunnel = tunnel
	return r
}

// toTunnel is a frame with a mark, after the detour.
func toTunnel(name string, mark uint32, in []byte) row {
	return row{name: name, hook: loader.ToTunnel, device: "ebpnet0", in: in, skb: skbContext{mark: mark}}
}

func (r row) after(steps ...row) row {
	for _, s := range steps {
		r.before = append(r.before, step{s.hook, s.device, s.in, s.skb})
	}
	return r
}

// given runs setup after the steps before the packet, and undo at the end.
func (r row) given(setup, undo func(testing.TB, *world)) row {
	r.setup, r.undo = setup, undo
	return r
}

func (r row) dropped(reason string) row {
	r.verdict, r.reason = verdictShot, reason
	return r
}

// alsoDropped expects a drop count although receivers get copies.
func (r row) alsoDropped(reason string) row {
	r.reason = reason
	return r
}

func (r row) passed() row {
	r.verdict = verdictPass
	return r
}

func (r row) rewritten(out []byte) row {
	r.verdict, r.out = verdictPass, out
	return r
}

func (r row) delivered(to host, out []byte) row {
	r.verdict, r.out, r.receivers = verdictDirect, out, []host{to}
	return r
}

func (r row) deliveredAs(to host, outOf func([]byte) []byte) row {
	r.verdict, r.outOf, r.receivers = verdictDirect, outOf, []host{to}
	return r
}

func (r row) redirected(out []byte) row {
	r.verdict, r.out = verdictDirect, out
	return r
}

func (r row) redirectedAs(outOf func([]byte) []byte) row {
	r.verdict, r.outOf = verdictDirect, outOf
	return r
}

func (r row) tunnelled(out []byte) row { return r.tunnelledBy(theTunnel, out) }

func (r row) tunnelledBy(tunnel uint32, out []byte) row {
	r.verdict, r.out, r.toTunnel = verdictDirect, out, tunnel
	return r
}

// detoured expects that the packet is sent through the far end of the host's
// veth, with a mark.
func (r row) detoured(mark uint32) row {
	r.verdict, r.mark = verdictDirect, mark
	return r
}

func (r row) floodedTo(receivers ...host) row {
	r.verdict, r.flooded, r.receivers = verdictShot, true, receivers
	return r
}

// into expects copies into tunnels too.
func (r row) into(tunnels ...uint32) row {
	r.detours = tunnels
	return r
}

// floodedAs is floodedTo for a packet from a tunnel, whose inner packet is out.
func (r row) floodedAs(out []byte, receivers ...host) row {
	r.out = out
	return r.floodedTo(receivers...)
}

// droppedAs is dropped for a packet from a tunnel, whose inner packet is out.
func (r row) droppedAs(reason string, out []byte) row {
	r.out, r.unwrapped = out, true
	return r.dropped(reason)
}

// counted returns the expected counters.
func (r row) counted(out []byte) counters {
	c := counters{map[string]Counter{}, map[string]Traffic{}, map[uint32]Traffic{}, map[uint32]Traffic{}}
	count := func(into *Counter, frame []byte) {
		segments := r.skb.segments
		if size := int(r.skb.size); segments == 0 && size > 0 {
			segments = uint32((len(frame) + size - 1) / size)
		}
		into.Packets += uint64(max(segments, 1))
		into.Bytes += uint64(len(frame))
	}
	if r.reason != "" {
		var drop Counter
		dropped := r.in
		if r.unwrapped {
			dropped = out
		}
		count(&drop, dropped)
		c.Drops[r.reason] = drop
	}
	if r.sender != nil {
		e, n := c.Endpoints[r.sender.device], c.Networks[r.sender.network]
		count(&e.Tx, r.in)
		count(&n.Tx, r.in)
		c.Endpoints[r.sender.device], c.Networks[r.sender.network] = e, n
	}
	for _, to := range r.receivers {
		e, n := c.Endpoints[to.device], c.Networks[to.network]
		count(&e.Rx, out)
		count(&n.Rx, out)
		c.Endpoints[to.device], c.Networks[to.network] = e, n
	}
	if id := r.fromTunnel; id != 0 {
		tunnel := c.Tunnels[id]
		count(&tunnel.Rx, r.in)
		c.Tunnels[id] = tunnel
	}
	if id := r.toTunnel; id != 0 {
		tunnel := c.Tunnels[id]
		count(&tunnel.Tx, out)
		c.Tunnels[id] = tunnel
	}
	return c
}

func (w *world) program(h loader.Hook) *ebpf.Program {
	return map[loader.Hook]*ebpf.Program{
		loader.FromEndpoint: w.Programs.FromEndpoint,
		loader.FromHost:     w.Programs.FromHost,
		loader.FromUplink:   w.Programs.FromUplink,
		loader.FromLoopback: w.Programs.FromLoopback,
		loader.ToGateway:    w.Programs.ToGateway,
		loader.ToUplink:     w.Programs.ToUplink,
		loader.ToTunnel:     w.Programs.ToTunnel,
	}[h]
}

// clearRouteCache clears the route cache, as after a tick of the clock.
func (w *world) clearRouteCache(t testing.TB) {
	t.Helper()
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		t.Fatal(err)
	}
	places := make([]uint32, w.Maps.Ways.MaxEntries())
	for i := range places {
		places[i] = uint32(i)
	}
	if _, err := w.Maps.Ways.BatchUpdate(places, make([]bpf.EbpnetCachedRoute, len(places)*cpus), nil); err != nil {
		t.Fatal(err)
	}
}

// clearState clears all state of earlier packets.
func (w *world) clearState(t testing.TB) {
	t.Helper()
	err := errors.Join(
		w.FlushFlows(FlowFilter{}),
		w.ForgetLearned(LearnedFilter{}),
		replace(w.Maps.Datagrams, map[bpf.EbpnetFragmentPlace]bpf.EbpnetDatagram{}),
	)
	for _, tunnel := range w.wanted.Tunnels {
		err = errors.Join(
			err,
			w.Maps.TunnelPaths.Put(tunnel.ID, bpf.EbpnetTunnelPath{}),
		)
	}
	if err != nil {
		t.Fatal(err)
	}
	w.calm(t)
}

// prepare resets the world and sends the packets before the row's packet.
func (r row) prepare(t testing.TB, w *world) {
	t.Helper()
	w.clearState(t)
	w.clearRouteCache(t)
	for _, s := range r.before {
		w.run(t, w.program(s.hook), s.device, s.frame, s.skb)
	}
	if r.setup != nil {
		r.setup(t, w)
		w.clearRouteCache(t)
	}
}

func (r row) check(t *testing.T, w *world, taps map[string]*testutil.Tap, ends vethEnds) {
	if r.undo != nil {
		defer r.undo(t, w)
	}
	r.prepare(t, w)
	before := w.counters(t)
	o, err := w.try(w.program(r.hook), r.device, r.in, r.skb)
	if err != nil {
		t.Fatalf("test run with frame %x: %v", r.in, err)
	}
	counted := w.counters(t).since(before)

	want := r.in
	switch {
	case r.outOf != nil:
		want = r.outOf(o.frame)
	case r.out != nil:
		want = r.out
	}
	if len(r.fragments) > 0 && r.fragments[0]&fragmentTunnel == 0 {
		want = withIfindex(want, w.ifindex["up0"])
	}
	if r.toTunnel != 0 && r.outOf == nil {
		want = withAnyLabel(want, o.frame)
	}
	if o.verdict != r.verdict {
		t.Errorf("verdict %d, want %d", o.verdict, r.verdict)
	}
	if string(o.frame) != string(want) {
		t.Errorf("wrong packet (-want +got):\n%s", cmp.Diff(hex.Dump(want), hex.Dump(o.frame)))
	}
	if o.mark != r.mark && r.verdict != verdictShot {
		t.Errorf("mark %#x, want %#x", o.mark, r.mark)
	}
	if diff := cmp.Diff(r.counted(want), counted); diff != "" {
		t.Errorf("wrong counters (-want +got):\n%s", diff)
	}
	if r.flooded {
		r.checkFlood(t, want, taps)
		ends.near.check(t, r, want)
		ends.far.checkMarks(t, want, r.fragments)
	}
}
