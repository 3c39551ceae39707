package datapath

import (
	"testing"
)

// addFlows has an owner count so many established flows more, and takes them
// back.
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

// addPorts has the cells of two rows of port_counts count so many more, whatever
// their destination, and takes them back.
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

// Of bpf/types.h and bpf/ports.h.
const (
	portCells   = 65536
	portRowsAll = 2
	userPorts   = 65535 - 1024 + 1
	portsForAll = userPorts - userPorts/16 // the others are the host's
	portsForOne = portsForAll - userPorts/16
	fewPorts    = userPorts / 4096
)

// limitRows are of owners that have as much as they may.
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
		hundred := func(t testing.TB, w *world) { must(t, w.setLimits(alice.id, Limits{MaxFlows: 100})) }
		none := func(t testing.TB, w *world) { must(t, w.setLimits(alice.id, Limits{})) }
		setLimit := func(name string, r row, n int) row {
			setup, undo := addFlows(alice.id, n)
			r.name = name
			return r.given(
				func(t testing.TB, w *world) { hundred(t, w); setup(t, w) },
				func(t testing.TB, w *world) { none(t, w); undo(t, w) })
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
			limited("an endpoint's share beside what others have", refused, ownerAll, forAll).given(
				together(setupOf(addFlows(ownerAll, forAll)), setupOf(addFlows(alice.id, shareMinimum))),
				together(undoOf(addFlows(ownerAll, forAll)), undoOf(addFlows(alice.id, shareMinimum)))),
			limited("the least, beside what others have", opens, ownerAll, forAll).given(
				together(setupOf(addFlows(ownerAll, forAll)), setupOf(addFlows(alice.id, shareMinimum-1))),
				together(undoOf(addFlows(ownerAll, forAll)), undoOf(addFlows(alice.id, shareMinimum-1)))),
			limited("no room for the least", fromEndpoint("", alice, p.frame(t)).dropped("flow_table_full"), ownerAll, capacity),
			limited("an established flow where the share is used up", next, alice.id, forAll),
			setLimit("the last that an endpoint was given", opens, 99),
			setLimit("one more than an endpoint was given", refused, 100),
			limited("one more than a port's share", fromUplink("", asked.frame(t)).dropped("flow_limit"), ownerPorts+webPort, forAll),
			limited("another port than the full one", calls, ownerPorts+alsoWebPort, forAll),
			limited("a port of an endpoint with a full share", calls, alice.id, forAll),
			limited("a link of a client with a full share", linked.dropped("flow_limit"), client.id, forAll),
			limited("a link to a server with a full share", linked.delivered(server, nil), server.id, forAll),

			ports("the last port towards a destination", opens, 0, portsForOne-1),
			ports("one port more than an endpoint's share", fromEndpoint("", alice, p.frame(t)).dropped("port_limit"), 0, portsForOne),
			ports("one port more of the gateway's, towards a neighbor's published port", fromEndpoint("", bob, inward.frame(t)).dropped("port_limit"), 0, portsForOne),
			ports("the last of few ports, beside what others have", opens, portRowsAll, portsForOne).given(
				together(setupOf(addPorts(portRowsAll, portsForOne)), setupOf(addPorts(0, fewPorts-1))),
				together(undoOf(addPorts(portRowsAll, portsForOne)), undoOf(addPorts(0, fewPorts-1)))),
			ports("more than few ports, beside what others have", fromEndpoint("", alice, p.frame(t)).dropped("port_limit"), portRowsAll, portsForOne).given(
				together(setupOf(addPorts(portRowsAll, portsForOne)), setupOf(addPorts(0, fewPorts))),
				together(undoOf(addPorts(portRowsAll, portsForOne)), undoOf(addPorts(0, fewPorts)))),
			ports("the last port that is not the host's", opens, portRowsAll, portsForAll-1),
			ports("no port that is not the host's", fromEndpoint("", alice, p.frame(t)).dropped("ports_exhausted"), portRowsAll, portsForAll),
		}
	})
}

func setupOf(a, _ func(testing.TB, *world)) func(testing.TB, *world) { return a }

func undoOf(_, b func(testing.TB, *world)) func(testing.TB, *world) { return b }

func together(a, b func(testing.TB, *world)) func(testing.TB, *world) {
	return func(t testing.TB, w *world) { a(t, w); b(t, w) }
}
