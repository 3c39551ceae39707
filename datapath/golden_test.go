package datapath

import (
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket"

	"github.com/ebpnet/ebpnet/bpf"
	"github.com/ebpnet/ebpnet/internal/testutil"
	"github.com/ebpnet/ebpnet/loader"
)

// row is one golden packet: what goes in and all that should come of it. The
// output is compared byte for byte; where a packet leaves by
// bpf_redirect_neigh(), its Ethernet header is still that of the input, as
// the kernel writes it on the way out.
type row struct {
	name   string
	hook   loader.Hook
	device string
	before []step // what went by already; not counted
	setup  func(testing.TB, *world)
	undo   func(testing.TB, *world)
	in     []byte
	skb    skbContext

	verdict    int
	out        []byte              // nil: as it went in
	outOf      func([]byte) []byte // in place of out: it follows from what came out
	reason     string              // of the drop, if it is one
	sender     *host               // endpoint that is counted as having sent in
	receivers  []host              // endpoints that are counted as having got out
	flooded    bool                // receivers get copies of in, by their devices
	fromTunnel bool
	toTunnel   bool
}

// step is a packet that goes by before the one that matters.
type step struct {
	hook   loader.Hook
	device string
	frame  []byte
	skb    skbContext
}

// Where a row's packet comes in. What becomes of it is said by one of the
// methods below.
func fromEndpoint(name string, from host, in []byte) row {
	return row{name: name, hook: loader.FromEndpoint, device: from.device, in: in, sender: &from}
}

func fromHost(name string, in []byte) row {
	return row{name: name, hook: loader.FromHost, device: "ebpnet1", in: in}
}

// toGateway is a frame that the host sends to containers, or forwards to them
// if it arrived by a device.
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

// outOfTunnel is fromUplink for a frame that a tunnel takes credit for.
func outOfTunnel(name string, in []byte) row {
	r := fromUplink(name, in)
	r.fromTunnel = true
	return r
}

func (r row) after(steps ...row) row {
	for _, s := range steps {
		r.before = append(r.before, step{s.hook, s.device, s.in, s.skb})
	}
	return r
}

// given has setup done after the steps before, and undo after all.
func (r row) given(setup, undo func(testing.TB, *world)) row {
	r.setup, r.undo = setup, undo
	return r
}

func (r row) dropped(reason string) row {
	r.verdict, r.reason = verdictShot, reason
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

func (r row) tunnelled(out []byte) row {
	r.verdict, r.out, r.toTunnel = verdictDirect, out, true
	return r
}

func (r row) floodedTo(receivers ...host) row {
	r.verdict, r.flooded, r.receivers = verdictShot, true, receivers
	return r
}

// counted is what the counters should say.
func (r row) counted(out []byte) counters {
	c := counters{Drops: map[string]Counter{}, Endpoints: map[string]Traffic{}, Networks: map[uint32]Traffic{}}
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
		count(&drop, r.in)
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
	if r.fromTunnel {
		count(&c.Tunnel.Rx, r.in)
	}
	if r.toTunnel {
		count(&c.Tunnel.Tx, out)
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
	}[h]
}

// forgetPackets clears what the programs remember of packets.
func (w *world) forgetPackets(t testing.TB) {
	t.Helper()
	if err := errors.Join(w.FlushFlows(FlowFilter{}), replace(w.Maps.Fragmented, map[bpf.EbpnetFragmentKey]bpf.EbpnetDatagram{})); err != nil {
		t.Fatal(err)
	}
}

func (r row) check(t *testing.T, w *world, taps map[string]*testutil.Tap) {
	w.forgetPackets(t)
	for _, s := range r.before {
		w.run(t, w.program(s.hook), s.device, s.frame, s.skb)
	}
	if r.undo != nil {
		defer r.undo(t, w)
	}
	if r.setup != nil {
		r.setup(t, w)
	}
	before := w.counters(t)
	verdict, out := w.run(t, w.program(r.hook), r.device, r.in, r.skb)
	counted := w.counters(t).since(before)

	want := r.in
	switch {
	case r.outOf != nil:
		want = r.outOf(out)
	case r.out != nil:
		want = r.out
	}
	if verdict != r.verdict {
		t.Errorf("verdict %d, want %d", verdict, r.verdict)
	}
	if string(out) != string(want) {
		t.Errorf("wrong packet (-want +got):\n%s", cmp.Diff(hex.Dump(want), hex.Dump(out)))
	}
	if diff := cmp.Diff(r.counted(want), counted); diff != "" {
		t.Errorf("wrong counters (-want +got):\n%s", diff)
	}
	if r.flooded {
		r.checkFlood(t, taps)
	}
}

func (r row) checkFlood(t *testing.T, taps map[string]*testutil.Tap) {
	same := func(p gopacket.Packet) bool { return string(p.Data()) == string(r.in) }
	for _, e := range r.receivers {
		taps[e.device].Await(t, "a copy for "+e.device, same)
	}
	for name, tap := range taps {
		if tap.Receive(t, 0, same) != nil {
			t.Errorf("a copy too many for %s", name)
		}
	}
}

// group is rows that share a world.
type group struct {
	name string
	load func(testing.TB, loader.Config) *Tables
	rows func(testing.TB) []row
}

func groups() []group {
	small := loadChanged(func(spec *ebpf.CollectionSpec) error {
		spec.Maps[bpf.EbpnetMapFlowIndex].MaxEntries = smallIndex
		return nil
	})
	return []group{
		{"parse", loadPinned, parseRows},
		{"bridge", loadPinned, bridgeRows},
		{"neighbors", loadPinned, neighborRows},
		{"guard", loadPinned, guardRows},
		{"policy", loadPinned, policyRows},
		{"gateway", loadPinned, gatewayRows},
		{"masquerade", loadPinned, masqueradeRows},
		{"host", loadPinned, hostRows},
		{"tunnel", loadPinned, tunnelRows},
		{"uplink", loadPinned, uplinkRows},
		{"rerouted", loadPinned, rerouteRows},
		{"fragments", loadPinned, fragmentRows},
		{"published", loadPinned, publicationRows},
		{"loopback", loadPinned, localRows},
		{"hairpin", loadPinned, hairpinRows},
		{"mappings", loadPinned, mappingRows},
		{"one port", loadRange(40000, 40000), onePortRows},
		{"errors", loadPinned, errorRows},
		{"stray errors", loadPinned, strayErrorRows},
		{"refusals", loadPinned, refusalRows},
		{"full", small, fullRows},
		{"no slots", loadPinned, noSlotRows},
	}
}

func TestGolden(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	for _, g := range groups() {
		t.Run(g.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, g.load)
			taps := map[string]*testutil.Tap{}
			for _, e := range locals() {
				taps[e.device] = w.containers.NewTap(t, "c-"+e.device)
			}
			for _, r := range g.rows(t) {
				t.Run(r.name, func(t *testing.T) { r.check(t, w, taps) })
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
			r.name = fmt.Sprintf("IPv%d/%s", map[bool]int{false: 4, true: 6}[v6], r.name)
			all = append(all, r)
		}
	}
	return all
}
