package datapath

import (
	"testing"

	"github.com/ebpnet/ebpnet/bpf"
)

// The most learned stations, and the most learned addresses, of a network and
// of one place: bpf/types_flows.h.
const (
	learnedPerNetwork = 4096
	learnedPerPlace   = 1024
)

// openPlace counts all of openNet. inTunnel and onTrunk count one place of it.
var openPlace = bpf.EbpnetLearnedPlace{Network: openNet}

func inTunnel(tunnel uint32) bpf.EbpnetLearnedPlace {
	return bpf.EbpnetLearnedPlace{Network: openNet, Tunnel: tunnel}
}

func onTrunk(h host) bpf.EbpnetLearnedPlace {
	return bpf.EbpnetLearnedPlace{Network: openNet, Endpoint: h.id}
}

// counting sets the counts of learned stations and addresses of a place, and
// then sends packets. recount resets all counts.
func counting(place bpf.EbpnetLearnedPlace, stations, neighbors uint32, then ...row) func(testing.TB, *world) {
	return func(t testing.TB, w *world) {
		count := bpf.EbpnetLearnedCount{Stations: stations, Neighbors: neighbors}
		if err := w.Maps.LearnedCounts.Put(place, count); err != nil {
			t.Fatal(err)
		}
		for _, r := range then {
			w.send(t, r)
		}
	}
}

func recount(t testing.TB, w *world) {
	w.clearState(t)
	if err := replace(w.Maps.LearnedCounts, map[bpf.EbpnetLearnedPlace]bpf.EbpnetLearnedCount{}); err != nil {
		t.Fatal(err)
	}
}

// shareRows are networks and places at their limit of stations.
func shareRows(t testing.TB, v6 bool) []row {
	far, here := stranger(host{}, 90), stranger(trunk, 90)
	there := stranger(otherTrunk, 90)
	seenFar, seenSix, seenHere, seenThere := seen(t, far, v6, theTunnel), seen(t, far, v6, sixTunnel), seen(t, here, v6, 0), seen(t, there, v6, 0)
	full := func(then ...row) func(testing.TB, *world) { return counting(openPlace, learnedPerNetwork, 0, then...) }
	fullTunnel := func(then ...row) func(testing.TB, *world) {
		return counting(inTunnel(theTunnel), learnedPerPlace, 0, then...)
	}
	fullTrunk := func(then ...row) func(testing.TB, *world) {
		return counting(onTrunk(trunk), learnedPerPlace, 0, then...)
	}
	to := func(name string, h host, given func(testing.TB, *world), before ...row) row {
		return reaches(t, name, h, v6).after(before...).given(given, recount)
	}
	return []row{
		to("the last station of a network", far, counting(openPlace, learnedPerNetwork-1, 0, seenFar)).found(t, far, theTunnel),
		to("one station more than a network's limit", far, full(seenFar)).unknown(),
		to("one station more behind a trunk", here, full(seenHere)).unknown(),
		to("a station that moves in a full network", here, full(seenHere), seenFar).found(t, here, 0),
		to("a static station in a full network", bob, full()).delivered(bob, nil),
		to("a station in a network with many addresses", far, counting(openPlace, 0, learnedPerNetwork, seenFar)).found(t, far, theTunnel),

		to("the last station of a tunnel", far, counting(inTunnel(theTunnel), learnedPerPlace-1, 0, seenFar)).found(t, far, theTunnel),
		to("one station more than a tunnel's limit", far, fullTunnel(seenFar)).unknown(),
		to("a station behind another tunnel than the full one", far, fullTunnel(seenSix)).found(t, far, sixTunnel),
		to("a station behind a trunk beside a full tunnel", here, fullTunnel(seenHere)).found(t, here, 0),
		to("a station that moves into a full tunnel", far, fullTunnel(seenFar), seenHere).found(t, far, theTunnel),
		to("a station that moves out of a full tunnel", here, fullTunnel(seenHere), seenFar).found(t, here, 0),
		to("the last station of a trunk", here, counting(onTrunk(trunk), learnedPerPlace-1, 0, seenHere)).found(t, here, 0),
		to("one station more than a trunk's limit", here, fullTrunk(seenHere)).unknown(),
		to("a station behind another trunk than the full one", there, fullTrunk(seenThere)).found(t, there, 0),
		to("a station behind a tunnel beside a full trunk", far, fullTrunk(seenFar)).found(t, far, theTunnel),
		to("a station that moves to a full trunk", here, fullTrunk(seenHere), seenThere).found(t, here, 0),
		to("a station of a trunk with many addresses", here, counting(onTrunk(trunk), 0, learnedPerPlace, seenHere)).found(t, here, 0),
	}
}

// trunkShareRows are calls of the host while a network or a place is at its
// limit of addresses.
func trunkShareRows(t testing.TB, v6 bool) []row {
	behind, beside := stranger(trunk, 80), stranger(otherTrunk, 80)
	hello := func(from host) row { return fromEndpoint("", from, outgoing(from, v6, udp(40001, 7)).frame(t)) }
	calls := func(name string, to host, given func(testing.TB, *world), before ...row) row {
		p := packet{from: gatewayMAC, to: to.mac, src: gatewayOf(openNet).ip(v6), dst: to.ip(v6), l4: udp(7, 40001), payload: "hello"}
		return fromHost("from the host, "+name, p.frame(t)).after(before...).given(given, recount)
	}
	const unknown = "unknown_destination"
	full, fullTrunk := counting(openPlace, 0, learnedPerNetwork, hello(behind)), counting(onTrunk(trunk), 0, learnedPerPlace, hello(behind))
	return []row{
		calls("the last address of a network", behind, counting(openPlace, 0, learnedPerNetwork-1, hello(behind))).delivered(behind, nil),
		calls("one address more than a network's limit", behind, full).dropped(unknown),
		calls("an address that moves in a full network", behind, full, hello(beside)).delivered(behind, nil),
		calls("an address in a network with many stations", behind, counting(openPlace, learnedPerNetwork, 0, hello(behind))).delivered(behind, nil),
		calls("the last address of a trunk", behind, counting(onTrunk(trunk), 0, learnedPerPlace-1, hello(behind))).delivered(behind, nil),
		calls("one address more than a trunk's limit", behind, fullTrunk).dropped(unknown),
		calls("an address behind another trunk than the full one", beside, counting(onTrunk(trunk), 0, learnedPerPlace, hello(beside))).delivered(beside, nil),
		calls("an address that moves to a full trunk", behind, fullTrunk, hello(beside)).delivered(behind, nil),
		calls("an address of a trunk with many stations", behind, counting(onTrunk(trunk), learnedPerPlace, 0, hello(behind))).delivered(behind, nil),
	}
}
