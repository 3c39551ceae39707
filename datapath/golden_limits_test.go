package datapath

import (
	"testing"
)

// addFlows adds n to an owner's count of established flows, and undoes it.
func addFlows(owner uint32, n int) (setup, undo func(testing.TB, *world)) {
	add := func(n int) func(testing.TB, *world) {
		return func(t testing.TB, w *world) {
			t.Helper()
			share := w.share(t, owner)
			share.Established += uint32(n)
			if err := w.Maps.FlowShares.Put(owner, share); err != nil {
				t.Fatal(err)
			}
		}
	}
	return add(n), add(-n)
}

// addHalfOpen adds n to an owner's count of half-open flows, and undoes it.
func addHalfOpen(owner uint32, n int) (setup, undo func(testing.TB, *world)) {
	add := func(n int) func(testing.TB, *world) {
		return func(t testing.TB, w *world) {
			t.Helper()
			share := w.share(t, owner)
			share.HalfOpen += uint32(n)
			must(t, w.Maps.FlowShares.Put(owner, share))
		}
	}
	return add(n), add(-n)
}

// givenLimits sets an owner's limits while the row's packets pass.
func (r row) givenLimits(owner uint32, l Limits) row {
	setup, undo := r.setup, r.undo
	return r.given(
		func(t testing.TB, w *world) {
			t.Helper()
			must(t, w.setLimits(owner, l))
			if setup != nil {
				setup(t, w)
			}
		},
		func(t testing.TB, w *world) {
			t.Helper()
			must(t, w.setLimits(owner, Limits{}))
			if undo != nil {
				undo(t, w)
			}
		})
}

// addPorts adds n to all cells of two rows of port_counts, so for every
// destination, and undoes it.
func addPorts(row uint32, n int) (setup, undo func(testing.TB, *world)) {
	add := func(n int) func(testing.TB, *world) {
		return func(t testing.TB, w *world) {
			t.Helper()
			changed := map[uint32]uint32{}
			err := eachBatch(w.Maps.PortCounts, func(cells []uint32, counts []uint32) {
				for i, cell := range cells {
					if cell/portCells/2 == row/2 {
						changed[cell] = counts[i] + uint32(n)
					}
				}
			})
			if err == nil {
				err = putAll(w.Maps.PortCounts, changed)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	return add(n), add(-n)
}

// Constants of bpf/types_flows.h and bpf/ports.h.
const (
	manyPorts   = 65535 - 1024 + 1
	portsForAll = manyPorts - manyPorts/16 // the rest is reserved for the host
	portsForOne = portsForAll - manyPorts/16
	fewPorts    = manyPorts / 4096
)

// limitRows are owners at their limits.
func limitRows(t testing.TB) []row {
	return bothFamilies(func(v6 bool) []row {
		const capacity = 262144
		const forAll = capacity - capacity/shareReserve
		limited := func(name string, r row, owner uint32, n int) row {
			setup, undo := addFlows(owner, n)
			r.name = name
			return r.given(setup, undo)
		}
		p := outgoing(alice, v6, udp(40000, 53))
		opens := fromEndpoint("", alice, p.frame(t)).redirected(masqueraded(p).frame(t))
		refused := fromEndpoint("", alice, p.frame(t)).dropped("flow_limit")
		asked := incoming(v6, tcp(40000, webPort, "S"))
		calls := fromUplink("", asked.frame(t)).delivered(alice, reached(asked, alice, 80).frame(t))
		linked := fromEndpoint("", client, between(client, server, v6, udp(40000, 53)).frame(t))
		setLimit := func(name string, r row, n int) row {
			return limited(name, r, alice.id, n).givenLimits(alice.id, Limits{MaxFlows: 100})
		}
		halfOpen := func(name string, r row, n int) row {
			setup, undo := addHalfOpen(alice.id, n)
			r.name = name
			return r.given(setup, undo)
		}
		ports := func(name string, r row, row uint32, n int) row {
			setup, undo := addPorts(row, n)
			r.name = name
			return r.given(setup, undo)
		}
		inward := outgoing(bob, v6, tcp(40000, webPort, "S"))
		inward.dst = uplink.ip(v6)
		next := fromEndpoint("", alice, p.frame(t)).after(opens).redirected(masqueraded(p).frame(t))
		return []row{
			limited("the last of an endpoint's share", opens, alice.id, forAll-1),
			limited("one more than an endpoint's share", refused, alice.id, forAll),
			limited("an endpoint's share beside the flows of others", refused, ownerAll, forAll).given(
				together(setupOf(addFlows(ownerAll, forAll)), setupOf(addFlows(alice.id, shareMinimum))),
				together(undoOf(addFlows(ownerAll, forAll)), undoOf(addFlows(alice.id, shareMinimum)))),
			limited("the minimum, beside the flows of others", opens, ownerAll, forAll).given(
				together(setupOf(addFlows(ownerAll, forAll)), setupOf(addFlows(alice.id, shareMinimum-1))),
				together(undoOf(addFlows(ownerAll, forAll)), undoOf(addFlows(alice.id, shareMinimum-1)))),
			limited("no room for the minimum", fromEndpoint("", alice, p.frame(t)).dropped("flow_table_full"), ownerAll, capacity),
			limited("an established flow at the limit of the share", next, alice.id, forAll),
			setLimit("the last flow within an endpoint's limit", opens, 99),
			setLimit("one flow more than an endpoint's limit", refused, 100),
			setLimit("an established flow at an endpoint's limit", next, 100),
			halfOpen("many half-open flows", opens, 60000),
			halfOpen("the last half-open flow within an endpoint's limit", opens, 99).givenLimits(alice.id, Limits{MaxHalfOpen: 100}),
			halfOpen("one half-open flow more than an endpoint's limit", refused, 100).givenLimits(alice.id, Limits{MaxHalfOpen: 100}),
			halfOpen("an existing flow at the limit of half-open flows", next, 100).givenLimits(alice.id, Limits{MaxHalfOpen: 100}),
			halfOpen("many half-open flows with a limit of established flows only", opens, 100).givenLimits(alice.id, Limits{MaxFlows: 100}),
			halfOpen("from outside to a port of an endpoint with many half-open flows", calls, 100).givenLimits(alice.id, Limits{MaxHalfOpen: 100}),
			limited("the last flow within a port's limit", calls, ownerPorts+webPort, 99).givenLimits(ownerPorts+webPort, Limits{MaxFlows: 100}),
			limited("one flow more than a port's limit", fromUplink("", asked.frame(t)).dropped("flow_limit"), ownerPorts+webPort, 100).
				givenLimits(ownerPorts+webPort, Limits{MaxFlows: 100}),
			limited("another port than the one with a limit", calls, ownerPorts+webPort, 100).givenLimits(ownerPorts+alsoWebPort, Limits{MaxFlows: 100}),
			limited("a port of an endpoint at its limit", calls, alice.id, 100).givenLimits(alice.id, Limits{MaxFlows: 100}),
			limited("one flow more than a port's share", fromUplink("", asked.frame(t)).dropped("flow_limit"), ownerPorts+webPort, forAll),
			limited("another port than the full one", calls, ownerPorts+alsoWebPort, forAll),
			limited("a port of an endpoint with a full share", calls, alice.id, forAll),
			limited("a link of a client with a full share", linked.dropped("flow_limit"), client.id, forAll),
			limited("a link to a server with a full share", linked.delivered(server, nil), server.id, forAll),

			ports("the last port towards a destination", opens, 0, portsForOne-1),
			ports("one port more than an endpoint's share", fromEndpoint("", alice, p.frame(t)).dropped("port_limit"), 0, portsForOne),
			ports("the last port within an endpoint's limit", opens, 0, 99).givenLimits(alice.id, Limits{MaxPorts: 100}),
			ports("one port more than an endpoint's limit", fromEndpoint("", alice, p.frame(t)).dropped("port_limit"), 0, 100).givenLimits(alice.id, Limits{MaxPorts: 100}),
			ports("as many ports as another endpoint's limit", opens, 0, 100).givenLimits(bob.id, Limits{MaxPorts: 100}),
			ports("a limit of ports higher than the free ports", fromEndpoint("", alice, p.frame(t)).dropped("port_limit"), 0, portsForOne).
				givenLimits(alice.id, Limits{MaxPorts: 65535}),
			ports("an existing flow at the limit of ports", next, 0, 100).givenLimits(alice.id, Limits{MaxPorts: 100}),
			ports("one gateway port more than an endpoint's limit", fromEndpoint("", bob, inward.frame(t)).dropped("port_limit"), 0, 100).
				givenLimits(bob.id, Limits{MaxPorts: 100}),
			ports("one gateway port more towards a neighbor's published port", fromEndpoint("", bob, inward.frame(t)).dropped("port_limit"), 0, portsForOne),
			ports("the last of few ports, beside the ports of others", opens, portRowsAll, portsForOne).given(
				together(setupOf(addPorts(portRowsAll, portsForOne)), setupOf(addPorts(0, fewPorts-1))),
				together(undoOf(addPorts(portRowsAll, portsForOne)), undoOf(addPorts(0, fewPorts-1)))),
			ports("more than few ports, beside the ports of others", fromEndpoint("", alice, p.frame(t)).dropped("port_limit"), portRowsAll, portsForOne).given(
				together(setupOf(addPorts(portRowsAll, portsForOne)), setupOf(addPorts(0, fewPorts))),
				together(undoOf(addPorts(portRowsAll, portsForOne)), undoOf(addPorts(0, fewPorts)))),
			ports("the last port that is not reserved for the host", opens, portRowsAll, portsForAll-1),
			ports("no port that is not reserved for the host", fromEndpoint("", alice, p.frame(t)).dropped("ports_exhausted"), portRowsAll, portsForAll),
		}
	})
}

func setupOf(a, _ func(testing.TB, *world)) func(testing.TB, *world) { return a }

func undoOf(_, b func(testing.TB, *world)) func(testing.TB, *world) { return b }

func together(a, b func(testing.TB, *world)) func(testing.TB, *world) {
	return func(t testing.TB, w *world) { a(t, w); b(t, w) }
}
