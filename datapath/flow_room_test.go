package datapath

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/ebpnet/ebpnet/bpf"
	"github.com/ebpnet/ebpnet/internal/testutil"
)

// halfOpenTurns is HALF_OPEN_TURNS of bpf/types.h.
const halfOpenTurns = 512

// TestHalfOpenFlowsMakeRoom floods: new flows of an endpoint take the places of
// its own half-open ones, of nobody else's, and of none that was answered.
func TestHalfOpenFlowsMakeRoom(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	w := newWorld(t, loadPinned)
	for _, v6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("IPv6 %v", v6), func(t *testing.T) { w.flood(t, v6) })
		if err := w.FlushFlows(FlowFilter{}); err != nil {
			t.Fatal(err)
		}
	}
}

func (w *world) flood(t *testing.T, v6 bool) {
	const first, flood = 2000, 3 * halfOpenTurns / 2
	open := func(h host, port uint16) {
		if verdict, _ := w.send(t, sentBy(t, h, v6, udp(port, 53))); verdict != verdictDirect {
			t.Fatalf("verdict %d", verdict)
		}
	}
	expect := func(after string, h host, count int, ports ...uint16) {
		t.Helper()
		got := map[uint16]bool{}
		for _, f := range w.flows(t) {
			if f.From.Addr() == h.ip(v6) {
				got[f.From.Port()] = true
			}
		}
		if len(got) != count {
			t.Errorf("%s: %d flows of %s, want %d", after, len(got), h.ip(v6), count)
		}
		for _, port := range ports {
			if !got[port] {
				t.Errorf("%s: the flow of %s from port %d has gone", after, h.ip(v6), port)
			}
		}
	}
	others := map[uint16]host{1501: bob, 1502: client, 1503: plain}
	for port, h := range others {
		open(h, port)
	}
	for i := range uint16(halfOpenTurns) {
		open(alice, first+i)
	}
	expect("as many as have room", alice, halfOpenTurns)
	w.send(t, fromUplink("", incoming(v6, udp(53, first)).frame(t)))
	open(alice, first+halfOpenTurns)
	expect("one more, one answered", alice, halfOpenTurns+1, first)
	open(alice, first+halfOpenTurns+1)
	expect("two more, one answered", alice, halfOpenTurns+1, first, first+halfOpenTurns+1)
	for i := range uint16(flood) {
		open(alice, first+halfOpenTurns+2+i)
	}
	expect("a flood", alice, halfOpenTurns+1, first, first+halfOpenTurns+1+flood)

	// From outside, towards her published port: a share of its own. Here an
	// answer is not enough, as the source may be made up.
	ask := func(port uint16) packet {
		p := incoming(v6, udp(port, dnsPort))
		w.send(t, fromUplink("", p.frame(t)))
		return p
	}
	for _, port := range []uint16{first - 1, first - 2} {
		w.send(t, fromEndpoint("", alice, replying(reached(ask(port), alice, 53), "").frame(t)))
	}
	ask(first - 1)
	for i := range uint16(flood) {
		ask(first + i)
	}
	expect("a flood from outside", website, halfOpenTurns+1, first-1, first+flood-1)
	expect("a flood from outside", alice, halfOpenTurns+1, first)
	for port, h := range others {
		expect("floods of another", h, 1, port)
	}

	// Who was displaced leaves nothing behind.
	want := 0
	for _, f := range w.flows(t) {
		want += 2
		if f.TranslatedFrom.IsValid() {
			want += 2
		}
	}
	if n := w.indexed(t); n != want {
		t.Errorf("%d entries in the index, want %d", n, want)
	}
}

// TestFullTable fills the table: what is new is refused until a flow ends, and
// until the slot of that has rested (FLOW_GRACE of bpf/mapping.h).
func TestFullTable(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	const slots, grace = 4, 10 * time.Millisecond
	w := newWorld(t, loadSlots(slots, nil))
	for i := range uint16(slots - 1) {
		w.send(t, sentBy(t, alice, false, udp(2000+i, 53)))
	}
	w.send(t, sentBy(t, bob, false, udp(3000, 53)))
	late := sentBy(t, client, false, udp(4000, 53))
	before := w.counters(t)
	if verdict, _ := w.send(t, late); verdict != verdictShot || w.counters(t).since(before).Drops["flow_table_full"].Packets != 1 {
		t.Fatal("a flow too many is not refused as flow_table_full")
	}
	if verdict, _ := w.send(t, sentBy(t, alice, false, udp(2000, 53))); verdict != verdictDirect {
		t.Error("a flow that is there does not go on in a full table")
	}
	flush := func(h host) {
		if err := w.FlushFlows(FlowFilter{Network: h.network, Addresses: []netip.Addr{h.ip4}}); err != nil {
			t.Fatal(err)
		}
	}
	flush(bob)
	// A stop of this process may be longer than the slot rests: then again.
	testutil.Eventually(t, "a look at the slot while it rests", func() bool {
		ended := time.Now()
		w.changeFlows(t, bpf.EbpnetFlowStateFLOW_DEAD, func(f *bpf.EbpnetFlow) {
			now, err := coarseNow()
			if err != nil {
				t.Fatal(err)
			}
			f.Seen = uint64(now)
		})
		verdict, _ := w.send(t, late)
		inTime := time.Since(ended) < grace
		if verdict == verdictDirect {
			if inTime {
				t.Fatal("the slot of a flow that has just ended is taken")
			}
			flush(client)
		}
		return inTime
	})
	testutil.Eventually(t, "the slot of the flow that ended", func() bool {
		verdict, _ := w.send(t, late)
		return verdict == verdictDirect
	})
	if verdict, _ := w.send(t, sentBy(t, alice, false, udp(4001, 53))); verdict != verdictShot {
		t.Error("the table takes more than it has slots")
	}
}

// changeFlows changes the entries of flows in a state.
func (w *world) changeFlows(t testing.TB, state bpf.EbpnetFlowState, change func(*bpf.EbpnetFlow)) {
	t.Helper()
	changed := map[uint32]bpf.EbpnetFlow{}
	err := eachBatch(w.Maps.Flows, func(slots []uint32, flows []bpf.EbpnetFlow) {
		for i := range slots {
			if flows[i].State == state {
				change(&flows[i])
				changed[slots[i]] = flows[i]
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	for slot, flow := range changed {
		if err := w.Maps.Flows.Put(slot, flow); err != nil {
			t.Fatal(err)
		}
	}
}

// TestPortsRunOut takes all of a small range of ports to one destination: the
// next flow is refused, and works as soon as one of the others has ended.
func TestPortsRunOut(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	const first, last = 40000, 40016
	w := newWorld(t, loadRange(first, last))
	for _, v6 := range []bool{false, true} {
		for _, l4 := range []transport{udp(1, 53), tcp(1, 80, "S"), sctp(1, 36), echo(v6, false, 1)} {
			taken := map[uint16]bool{}
			take := func(h host, id uint16) (int, uint16) {
				p := withIdentifier(outgoing(h, v6, l4), id)
				verdict, out := w.send(t, fromEndpoint("", h, p.frame(t)))
				return verdict, binary.BigEndian.Uint16(out[identifierAt(p):])
			}
			for i := range uint16(last - first) {
				_, port := take(alice, 1+i)
				if port < first || port > last || taken[port] {
					t.Errorf("port %d, want another of %d-%d; taken %v", port, first, last, taken)
				}
				taken[port] = true
			}
			_, bobs := take(bob, 7)
			if taken[bobs] || bobs < first || bobs > last {
				t.Errorf("port %d for bob, want the last of %d-%d; taken %v", bobs, first, last, taken)
			}
			before := w.counters(t)
			if verdict, _ := take(alice, 1000); verdict != verdictShot {
				t.Errorf("verdict %d for a flow too many", verdict)
			}
			if n := w.counters(t).since(before).Drops["ports_exhausted"].Packets; n != 1 {
				t.Errorf("%d counted as ports_exhausted, want 1", n)
			}
			if verdict, port := take(alice, 1); verdict != verdictDirect || !taken[port] {
				t.Errorf("verdict %d and port %d for a flow that has one", verdict, port)
			}
			if err := w.FlushFlows(FlowFilter{Network: openNet, Addresses: []netip.Addr{bob.ip(v6)}}); err != nil {
				t.Fatal(err)
			}
			if verdict, port := take(alice, 1000); verdict != verdictDirect || port != bobs {
				t.Errorf("verdict %d and port %d, want the one that was freed, %d", verdict, port, bobs)
			}
		}
	}
}
