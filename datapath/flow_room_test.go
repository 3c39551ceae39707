package datapath

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/bpf"
	"github.com/ebpnet/ebpnet/internal/testutil"
)

// TestFullTable fills the table. It refuses new flows until a flow ends and the
// grace period of its slot is over (flow_grace of bpf/config.h).
func TestFullTable(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	const slots = 4
	w := newWorld(t, loadSlots(slots, nil))
	for i := range uint16(slots - 1) {
		w.send(t, sentBy(t, alice, false, udp(2000+i, 53)))
	}
	w.send(t, sentBy(t, bob, false, udp(3000, 53)))
	late := sentBy(t, client, false, udp(4000, 53))
	before := w.counters(t)
	if verdict, _ := w.send(t, late); verdict != verdictShot || w.counters(t).since(before).Drops["flow_table_full"].Packets != 1 {
		t.Fatal("a flow beyond the size of the table is not dropped as flow_table_full")
	}
	if verdict, _ := w.send(t, sentBy(t, alice, false, udp(2000, 53))); verdict != verdictDirect {
		t.Error("an existing flow is dropped while the table is full")
	}
	flush := func(h host) {
		if err := w.FlushFlows(FlowFilter{Network: h.network, Addresses: []netip.Addr{h.ip4}}); err != nil {
			t.Fatal(err)
		}
	}
	flush(bob)
	// Two ticks of the coarse clock; the first may be nearly over.
	var tick unix.Timespec
	must(t, unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &tick))
	ended := time.Now()
	w.changeFlows(t, bpf.EbpnetFlowStateFLOW_DEAD, func(f *bpf.EbpnetFlow) {
		now, err := coarseNow()
		if err != nil {
			t.Fatal(err)
		}
		f.Seen = uint64(now)
	})
	testutil.Eventually(t, "reuse of the ended flow's slot", func() bool {
		verdict, _ := w.send(t, late)
		return verdict == verdictDirect
	})
	if rested, want := time.Since(ended), 20*time.Millisecond-time.Duration(tick.Nano()); rested < want {
		t.Errorf("the slot of an ended flow was reused after %v, want at least %v", rested, want)
	}
	if verdict, _ := w.send(t, sentBy(t, alice, false, udp(4001, 53))); verdict != verdictShot {
		t.Error("the table accepts more flows than it has slots")
	}
}

// changeFlows calls change for all flows in a state, and writes them back.
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

// TestPortsRunOut has endpoints use the ports of a small range towards one
// destination. Each endpoint gets half of the free ports, after the host's
// reserve, and one more when it frees one.
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
			for _, c := range []struct {
				host  host
				ports uint16
			}{{alice, 8}, {bob, 4}, {client, 2}, {server, 1}} {
				for i := range c.ports {
					_, port := take(c.host, 1+i)
					if port < first || port > last || taken[port] {
						t.Errorf("port %d for %s, want a free one of %d-%d; used: %v", port, c.host.device, first, last, taken)
					}
					taken[port] = true
				}
				before := w.counters(t)
				if verdict, _ := take(c.host, 1000); verdict != verdictShot {
					t.Errorf("verdict %d for a port of %s beyond its share", verdict, c.host.device)
				}
				if n := w.counters(t).since(before).Drops["port_limit"].Packets; n != 1 {
					t.Errorf("%d counted as port_limit, want 1", n)
				}
			}
			if verdict, port := take(alice, 1); verdict != verdictDirect || !taken[port] {
				t.Errorf("verdict %d and port %d for an existing flow", verdict, port)
			}
			must(t, w.FlushFlows(FlowFilter{Network: openNet, Addresses: []netip.Addr{bob.ip(v6)}}))
			if verdict, _ := take(bob, 1000); verdict != verdictDirect {
				t.Error("bob gets no port after his ports were freed")
			}
			must(t, w.FlushFlows(FlowFilter{}))
			if n, err := countUsed[uint32](w.Maps.PortCounts); n != 0 || err != nil {
				t.Errorf("%d cells count ports after all flows ended, error %v", n, err)
			}
		}
	}
}
