package datapath

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/ebpnet/ebpnet/bpf"
	"github.com/ebpnet/ebpnet/internal/testutil"
	"github.com/ebpnet/ebpnet/loader"
)

// shareMinimum and shareReserve are SHARE_MINIMUM and SHARE_RESERVE of
// bpf/share.h.
const (
	shareMinimum = 16
	shareReserve = 64
)

// loadShares returns a function that loads the programs with a flow table of
// this size, and this many half-open slots.
func loadShares(slots, halfOpen uint32) func(testing.TB, loader.Config) *Tables {
	return loadChanged(func(spec *ebpf.CollectionSpec) error {
		spec.Maps[bpf.EbpnetMapFlows].MaxEntries = slots
		if err := setConstant(spec, bpf.EbpnetVarHalfOpenSlots, halfOpen); err != nil {
			return err
		}
		return setConstant(spec, bpf.EbpnetVarFlowSlots, slots)
	})
}

// checkShares fails unless the counts and lists match the existing flows.
func (w *world) checkShares(t testing.TB) {
	t.Helper()
	want := map[uint32]bpf.EbpnetFlowShare{}
	err := eachBatch(w.Maps.Flows, func(_ []uint32, flows []bpf.EbpnetFlow) {
		for _, f := range flows {
			share, all := want[f.Owner], want[ownerAll]
			switch f.State {
			case bpf.EbpnetFlowStateFLOW_HALF_OPEN:
				share.HalfOpen++
			case bpf.EbpnetFlowStateFLOW_ESTABLISHED, bpf.EbpnetFlowStateFLOW_REVOKED, bpf.EbpnetFlowStateFLOW_ENDED:
				share.Established++
				all.Established++
			default:
				continue
			}
			want[f.Owner], want[ownerAll] = share, all
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	err = eachBatch(w.Maps.FlowShares, func(owners []uint32, shares []bpf.EbpnetFlowShare) {
		for i, owner := range owners {
			if shares[i].Established != want[owner].Established || shares[i].HalfOpen != want[owner].HalfOpen {
				t.Errorf("owner %d counts %+v, want %+v", owner, shares[i], want[owner])
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	w.checkLists(t)
}

// establish opens a flow from a host to the website and sends the reply; false
// if the flow is refused.
func (w *world) establish(t testing.TB, h host, port, to uint16) bool {
	t.Helper()
	p := outgoing(h, false, udp(port, to))
	verdict, out := w.send(t, fromEndpoint("", h, p.frame(t)))
	if verdict != verdictDirect {
		return false
	}
	answer := incoming(false, udp(to, binary.BigEndian.Uint16(out[identifierAt(p):])))
	if h.network == plainNet {
		answer.dst = h.ip4
	}
	w.send(t, fromUplink("", answer.frame(t)))
	return true
}

func (w *world) share(t testing.TB, owner uint32) bpf.EbpnetFlowShare {
	t.Helper()
	var share bpf.EbpnetFlowShare
	if err := w.Maps.FlowShares.Lookup(owner, &share); err != nil {
		t.Fatal(err)
	}
	return share
}

// TestSharesOfFlows has endpoints open as many established flows as they can.
// One endpoint gets half of the free flows, four endpoints do not get all, and
// an endpoint with few flows always gets more.
func TestSharesOfFlows(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	const capacity, halfOpen = 512, 256
	w := newWorld(t, loadShares(capacity+halfOpen, halfOpen))
	free, reserve := capacity, capacity/shareReserve
	for i, h := range []host{alice, client, server, plain} {
		before := w.counters(t)
		taken := 0
		for w.establish(t, h, uint16(2000+taken), uint16(1+i)) {
			taken++
			if taken > capacity {
				t.Fatalf("%s has %d flows of %d", h.device, taken, capacity)
			}
		}
		if want := max((free-reserve+1)/2, shareMinimum); taken != want {
			t.Errorf("%s has %d flows, want %d of the %d that were free", h.device, taken, want, free)
		}
		free -= taken
		if got := w.counters(t).since(before).Drops; len(got) != 1 || got["flow_limit"].Packets != 1 {
			t.Errorf("drops %v, want 1 for flow_limit", got)
		}
	}
	for port := range uint16(shareMinimum) {
		if !w.establish(t, bob, 2000+port, 9) {
			t.Fatalf("bob has too few flows, want %d", shareMinimum)
		}
	}
	w.checkShares(t)
	if verdict, _ := w.send(t, sentBy(t, alice, false, udp(2000, 1))); verdict != verdictDirect {
		t.Error("an established flow is dropped while its owner is at its limit")
	}
	if err := w.FlushFlows(FlowFilter{Network: alice.network, Addresses: []netip.Addr{alice.ip4}}); err != nil {
		t.Fatal(err)
	}
	w.checkShares(t)
	if !w.establish(t, server, 3000, 3) {
		t.Error("server gets no flow after others' flows ended")
	}
}

// TestRepliesBeyondTheShare opens flows within the limit of half-open flows
// and sends their replies when the limit of established flows is reached. They
// stay half-open, and their packets pass.
func TestRepliesBeyondTheShare(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	const limit = 20
	w := newWorld(t, loadShares(1024, 256))
	if err := w.setLimits(alice.id, Limits{MaxFlows: limit}); err != nil {
		t.Fatal(err)
	}
	const opened = 2 * limit
	for port := range uint16(opened) {
		w.send(t, sentBy(t, alice, false, udp(2000+port, 53)))
	}
	for port := range uint16(opened) {
		answer := answerTo(t, "", false, udp(53, 2000+port), row{})
		answer.checkOnly(t, w)
		answer.checkOnly(t, w)
	}
	if got := w.share(t, alice.id); got.Established != limit || got.HalfOpen != opened-limit {
		t.Errorf("%+v, want %d established and %d half-open", got, limit, opened-limit)
	}
	w.checkShares(t)
	if err := w.setLimits(alice.id, Limits{MaxFlows: limit + 1}); err != nil {
		t.Fatal(err)
	}
	w.send(t, fromUplink("", incoming(false, udp(53, 2000+opened-1)).frame(t)))
	if got := w.share(t, alice.id); got.Established != limit+1 || got.HalfOpen != opened-limit-1 {
		t.Errorf("%+v after the limit was raised, want %d established", got, limit+1)
	}
	if err := w.setLimits(alice.id, Limits{}); err != nil {
		t.Fatal(err)
	}
	if !w.establish(t, alice, 4000, 53) {
		t.Error("no new flow after the limit was removed")
	}
	w.checkShares(t)
}

// TestPortHasItsShare fills the share of a published port from outside. Other
// ports and endpoints still get flows.
func TestPortHasItsShare(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	const capacity, halfOpen = 256, 256
	w := newWorld(t, loadShares(capacity+halfOpen, halfOpen))
	call := func(client uint16, port uint16, to uint16) bool {
		asked := incoming(false, udp(client, port))
		if verdict, _ := w.send(t, fromUplink("", asked.frame(t))); verdict != verdictDirect {
			return false
		}
		w.send(t, fromEndpoint("", alice, replying(reached(asked, alice, to), "").frame(t)))
		w.send(t, fromUplink("", asked.frame(t)))
		return true
	}
	taken := 0
	for call(uint16(2000+taken), dnsPort, 53) {
		if taken++; taken > capacity {
			t.Fatalf("a port has all %d flows of %d", taken, capacity)
		}
	}
	if want := (capacity - capacity/shareReserve + 1) / 2; taken != want {
		t.Errorf("the port has %d flows, want %d", taken, want)
	}
	if got := w.share(t, ownerPorts+dnsPort); int(got.Established) != taken {
		t.Errorf("the port counts %+v, want %d", got, taken)
	}
	if !w.establish(t, alice, 2000, 53) {
		t.Error("the endpoint behind the port gets no flow")
	}
	if verdict, _ := w.send(t, fromUplink("", incoming(false, tcp(2000, webPort, "S")).frame(t))); verdict != verdictDirect {
		t.Error("another port gets no flow")
	}
	w.checkShares(t)
	// The slots of revoked flows count until the flows end.
	if err := w.DeletePorts(portsOf(w.wanted.Ports, dnsPort)); err != nil {
		t.Fatal(err)
	}
	w.checkShares(t)
	if err := w.FlushFlows(FlowFilter{}); err != nil {
		t.Fatal(err)
	}
	w.checkShares(t)
	if got := w.share(t, ownerAll); got.Established != 0 {
		t.Errorf("counts %+v after all flows ended", got)
	}
}

// TestSharesAfterAllEnds checks the counts after flows end in every way: flows
// whose mapping others use, displaced flows, and flows that the sweep ends.
func TestSharesAfterAllEnds(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	w := newWorld(t, loadSlots(64, map[string]time.Duration{bpf.EbpnetVarUdpNewTimeout: idleTooLong, bpf.EbpnetVarUdpEstablishedTimeout: idleTooLong}))
	for i := range uint16(4) {
		w.establish(t, alice, 2000+i, 53) // it opens the mapping
		w.establish(t, alice, 2000+i, 54)
		w.send(t, sentBy(t, alice, false, udp(2000+i, 55)))
		w.send(t, sentBy(t, bob, false, udp(2000+i, 53)))
	}
	w.checkShares(t)
	w.changeFlows(t, bpf.EbpnetFlowStateFLOW_ESTABLISHED, func(f *bpf.EbpnetFlow) {
		if f.Original.Dport == networkOrder16(53) {
			f.Seen = 0
		}
	})
	testutil.Eventually(t, "the end of the flows that hold mappings", func() bool {
		ended := 0
		w.changeFlows(t, bpf.EbpnetFlowStateFLOW_ENDED, func(*bpf.EbpnetFlow) { ended++ })
		return ended == 4
	})
	w.checkShares(t)
	if got := w.share(t, alice.id); got.Established != 8 || got.HalfOpen != 4 {
		t.Errorf("%+v, want 4 established, 4 kept for mappings and 4 half-open", got)
	}
	if err := w.FlushFlows(FlowFilter{}); err != nil {
		t.Fatal(err)
	}
	w.checkShares(t)
}

// TestHalfOpenFlowsHaveShares floods. Half-open flows displace flows of the
// owner with most half-open flows. They displace no flow of an endpoint with
// few, and no established flow.
func TestHalfOpenFlowsHaveShares(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	for _, v6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("IPv6 %v", v6), func(t *testing.T) {
			t.Parallel()
			newWorld(t, loadShares(4096, 256)).flood(t, v6)
		})
	}
}

func (w *world) flood(t *testing.T, v6 bool) {
	const first, few, many = 2000, 30, 700
	open := func(h host, port uint16) {
		if verdict, _ := w.send(t, sentBy(t, h, v6, udp(port, 53))); verdict != verdictDirect {
			t.Fatalf("verdict %d", verdict)
		}
	}
	// expect fails unless all flows from the first ports exist, and at most
	// this many in total.
	expect := func(after string, h host, ports int, most int) {
		t.Helper()
		got := map[uint16]bool{}
		for _, f := range w.flows(t) {
			if f.From.Addr() == h.ip(v6) {
				got[f.From.Port()] = true
			}
		}
		if len(got) > most {
			t.Errorf("%s: %d flows of %s, want at most %d", after, len(got), h.ip(v6), most)
		}
		for i := range ports {
			if !got[uint16(first+i)] {
				t.Errorf("%s: flow %d of %s was displaced", after, i, h.ip(v6))
			}
		}
	}
	for i := range uint16(few) {
		open(bob, first+i)
	}
	open(alice, first)
	w.send(t, fromUplink("", answerOf(t, w, alice, v6, first)))
	for i := range uint16(many) {
		open(alice, first+1+i)
	}
	expect("a flood", bob, few, few)
	expect("a flood", alice, 1, 256-few+1)
	for i := range uint16(few) {
		open(client, first+i)
	}
	expect("new flows of others after a flood", client, few, few)

	// Sources outside may be forged, so these flows count for the port.
	for i := range uint16(many) {
		w.send(t, fromUplink("", incoming(v6, udp(first+i, dnsPort)).frame(t)))
	}
	expect("a flood from outside", bob, few, few)
	expect("a flood from outside", client, few, few)
	expect("a flood from outside", alice, 1, 256)
	expect("a flood from outside", website, 0, 256-2*few)
	w.checkShares(t)

	// Displaced flows leave no entries in the index.
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

// answerOf is the reply to a packet of a host from a port to the website's port
// 53.
func answerOf(t testing.TB, w *world, h host, v6 bool, port uint16) []byte {
	t.Helper()
	for _, f := range w.flows(t) {
		if f.From == netip.AddrPortFrom(h.ip(v6), port) {
			return incoming(v6, udp(53, f.TranslatedFrom.Port())).frame(t)
		}
	}
	t.Fatalf("%s has no flow from port %d", h.device, port)
	return nil
}

// TestHalfOpenFlowsStayWhereThereIsRoom has one endpoint open flows beside many
// half-open flows of another. None of those ends while most slots are free.
func TestHalfOpenFlowsStayWhereThereIsRoom(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	const others, opened = 1000, 3000
	w := newWorld(t, loadPinned)
	for port := range uint16(others) {
		w.send(t, sentBy(t, alice, false, udp(2000+port, 53)))
	}
	for port := range uint16(opened) {
		w.send(t, sentBy(t, client, false, udp(2000+port, 54)))
	}
	if n := w.share(t, alice.id).HalfOpen; n != others {
		t.Errorf("%d half-open flows remain of %d", n, others)
	}
}

// portsOf returns the Ports of a publication, one per family.
func portsOf(ports []Port, id uint32) []Port {
	return slices.DeleteFunc(slices.Clone(ports), func(p Port) bool { return p.ID != id })
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
