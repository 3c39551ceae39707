package datapath

import (
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/bpf"
	"github.com/ebpnet/ebpnet/internal/testutil"
)

// checkLists fails unless each endpoint's list has exactly the flows of that
// endpoint, in either direction, and its links are consistent.
func (w *world) checkLists(t testing.TB) {
	t.Helper()
	flows := map[uint32]bpf.EbpnetFlow{}
	want := map[uint32][]uint32{} // slots, by endpoint
	err := eachBatch(w.Maps.Flows, func(slots []uint32, entries []bpf.EbpnetFlow) {
		for i, f := range entries {
			flows[slots[i]] = f
			switch f.State {
			case bpf.EbpnetFlowStateFLOW_HALF_OPEN, bpf.EbpnetFlowStateFLOW_ESTABLISHED, bpf.EbpnetFlowStateFLOW_REVOKED:
				for side, endpoint := range []uint32{f.Owner, f.Server} {
					if endpoint != 0 && endpoint < ownerPorts {
						want[endpoint] = append(want[endpoint], 2*slots[i]+uint32(side)+1)
					}
				}
			}
		}
	})
	must(t, err)
	err = eachBatch(w.Maps.FlowShares, func(owners []uint32, shares []bpf.EbpnetFlowShare) {
		for i, owner := range owners {
			var got []uint32
			before := uint32(0)
			for place := shares[i].First; place != 0; {
				f, there := flows[(place-1)/2]
				link := f.Links[(place-1)%2]
				if !there || link.Before != before {
					t.Fatalf("the list of endpoint %d is inconsistent at slot %d: %+v", owner, place, link)
				}
				if got = append(got, place); len(got) > 2*len(flows) {
					t.Fatalf("the list of endpoint %d has no end", owner)
				}
				before, place = place, link.After
			}
			slices.Sort(got)
			slices.Sort(want[owner])
			if !slices.Equal(got, want[owner]) || shares[i].Unlisted != 0 {
				t.Errorf("endpoint %d lists %v and misses %d, want %v", owner, got, shares[i].Unlisted, want[owner])
			}
		}
	})
	must(t, err)
}

// openEveryKind opens flows of every kind for alice, and one flow of bob.
func (w *world) openEveryKind(t testing.TB) {
	t.Helper()
	w.establish(t, alice, 2000, 53)
	w.establish(t, bob, 2000, 53)
	w.send(t, fromEndpoint("", alice, outgoing(alice, true, udp(2001, 53)).frame(t)))
	toPort := tcp(3000, 80, "S")
	w.send(t, fromUplink("", incoming(false, toPort).frame(t)))
	w.send(t, fromEndpoint("", bob, toPublished(bob, toPort).frame(t)))
	w.send(t, fromEndpoint("", alice, toPublished(alice, toPort).frame(t)))
}

// toPublished is a packet of an endpoint to the uplink's address.
func toPublished(from host, l4 transport) packet {
	p := outgoing(from, false, l4)
	p.dst = uplink.ip4
	return p
}

// publishAlice publishes a port of alice.
func publishAlice() Port {
	return Port{
		ID: 9, Address: netip.IPv4Unspecified(), Protocol: unix.IPPROTO_TCP, First: 80, Last: 80,
		Target: alice.ip4, TargetFirst: 8080, Network: alice.network, Endpoint: alice.id,
	}
}

// endpoint returns the wanted endpoint of a host.
func (w *world) endpoint(t testing.TB, h host) Endpoint {
	t.Helper()
	i := slices.IndexFunc(w.wanted.Endpoints, func(e Endpoint) bool { return e.ID == h.id })
	if i < 0 {
		t.Fatalf("no endpoint %s", h.device)
	}
	return w.wanted.Endpoints[i]
}

// TestListsOfFlows opens flows of every kind, and deletes their endpoints.
func TestListsOfFlows(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	w := newWorld(t, loadSlots(64, nil))
	must(t, w.PutPorts([]Port{publishAlice()}))
	w.openEveryKind(t)
	w.checkShares(t)
	flows := w.listed(t, FlowFilter{})
	if len(flows) != 6 {
		t.Fatalf("%d flows, want 6: %+v", len(flows), flows)
	}
	must(t, w.DeletePorts([]Port{publishAlice()}))
	w.checkShares(t)
	must(t, w.DeleteEndpoint(w.endpoint(t, alice)))
	w.checkShares(t)
	flows = w.listed(t, FlowFilter{})
	if len(flows) != 1 || flows[0].From.Addr() != bob.ip4 {
		t.Errorf("flows after alice was deleted: %+v, want bob's", flows)
	}
}

// TestRemovalLooksAtItsOwnFlows checks that the removal of an endpoint ends
// only flows of its list. A check of all flows would also end flows of another
// endpoint that does not exist.
func TestRemovalLooksAtItsOwnFlows(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	w := newWorld(t, loadSlots(64, nil))
	must(t, w.PutPorts([]Port{publishAlice()}))
	w.establish(t, alice, 2000, 53)
	w.establish(t, bob, 2000, 53)
	must(t, remove(w.Maps.Neighbors, addressOf(bob.ip4)))
	must(t, w.DeletePorts([]Port{publishAlice()}))
	must(t, w.DeleteEndpoint(w.endpoint(t, alice)))
	flows := w.listed(t, FlowFilter{})
	if len(flows) != 1 || flows[0].From.Addr() != bob.ip4 {
		t.Errorf("flows: %+v, want bob's", flows)
	}
	must(t, w.endUnbackedFlows())
	if flows = w.listed(t, FlowFilter{}); len(flows) != 0 {
		t.Errorf("flows after a check of all flows: %+v, want none", flows)
	}
}

// TestListInParts ends the flows of a list, a few per run. The list also has
// flows that stay.
func TestListInParts(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	w := newWorld(t, loadSlots(64, nil))
	must(t, w.PutPorts([]Port{publishAlice()}))
	for i := range uint16(10) {
		w.send(t, fromUplink("", incoming(false, tcp(3000+i, 80, "S")).frame(t)))
		w.establish(t, alice, 2000+i, 53)
	}
	filter := bpf.EbpnetFlowFilter{Choice: bpf.EbpnetFlowChoiceFLOWS_UNBACKED, Endpoint: alice.id, Count: 3}
	for runs := 1; ; runs++ {
		var err error
		filter, err = command(w.Programs.EndFlows, filter)
		must(t, err)
		if filter.First == 0 {
			if runs != 7 {
				t.Errorf("%d runs for 20 flows, 3 per run, want 7", runs)
			}
			break
		}
	}
	if flows := w.listed(t, FlowFilter{}); len(flows) != 20 {
		t.Errorf("%d flows, want 20: nothing was deleted", len(flows))
	}
	must(t, w.DeletePorts([]Port{publishAlice()}))
	if flows := w.listed(t, FlowFilter{}); len(flows) != 10 {
		t.Errorf("%d flows after the port was deleted, want 10", len(flows))
	}
	w.checkShares(t)
}

// TestUnlistedFlowsEnd removes an endpoint whose list misses its flow.
func TestUnlistedFlowsEnd(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	w := newWorld(t, loadSlots(64, nil))
	w.establish(t, alice, 2000, 53)
	share := w.share(t, alice.id)
	share.First, share.Unlisted = 0, 1
	must(t, w.Maps.FlowShares.Put(alice.id, share))
	must(t, w.DeleteEndpoint(w.endpoint(t, alice)))
	w.checkShares(t)
	if flows := w.listed(t, FlowFilter{}); len(flows) != 0 {
		t.Errorf("flows after alice was deleted: %+v, want none", flows)
	}
}

// TestListWithoutEnd removes an endpoint whose list has a loop.
func TestListWithoutEnd(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	w := newWorld(t, loadSlots(64, nil))
	w.establish(t, alice, 2000, 53)
	w.establish(t, alice, 2001, 53)
	first := w.share(t, alice.id).First
	w.changeFlows(t, bpf.EbpnetFlowStateFLOW_ESTABLISHED, func(f *bpf.EbpnetFlow) {
		f.Links[bpf.EbpnetFlowSideFLOW_ORIGINAL].After = first
	})
	must(t, w.DeleteEndpoint(w.endpoint(t, alice)))
	if flows := w.listed(t, FlowFilter{}); len(flows) != 0 {
		t.Errorf("flows after alice was deleted: %+v, want none", flows)
	}
}

// TestPortOfUnknownEndpoint deletes a port whose endpoint is unknown.
func TestPortOfUnknownEndpoint(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	w := newWorld(t, loadSlots(flowsPerRun+64, nil))
	p := publishAlice()
	p.Endpoint = 0
	must(t, w.PutPorts([]Port{p}))
	for i := range uint16(64) {
		w.send(t, fromUplink("", incoming(false, tcp(3000+i, 80, "S")).frame(t)))
	}
	must(t, w.DeletePorts([]Port{p}))
	if flows := w.listed(t, FlowFilter{}); len(flows) != 0 {
		t.Errorf("%d flows after the port was deleted, want 0", len(flows))
	}
}
