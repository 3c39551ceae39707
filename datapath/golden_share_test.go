package datapath

import (
	"testing"

	"github.com/ebpnet/ebpnet/bpf"
)

// How many stations, and as many addresses, a network may have that are learned,
// and one place of it: bpf/types_flows.h.
const (
	learnedANetwork = 4096
	learnedAPlace   = 1024
)

// openPlace is openNet as a whole; inTunnel and onTrunk are where stations of it
// are learned.
var openPlace = bpf.EbpnetLearnedPlace{Network: openNet}

func inTunnel(tunnel uint32) bpf.EbpnetLearnedPlace {
	return bpf.EbpnetLearnedPlace{Network: openNet, Tunnel: tunnel}
}

func onTrunk(h host) bpf.EbpnetLearnedPlace {
	return bpf.EbpnetLearnedPlace{Network: openNet, Endpoint: h.id}
}

// counting has a place count so many learned stations and addresses, and then
// packets go by; recount has all count none.
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
	w.forgetPackets(t)
	if err := replace(w.Maps.LearnedCounts, map[bpf.EbpnetLearnedPlace]bpf.EbpnetLearnedCount{}); err != nil {
		t.Fatal(err)
	}
}

// shareRows are of networks and places that have as many stations as they may.
func shareRows(t testing.TB, v6 bool) []row {
	far, here := stranger(host{}, 90), stranger(trunk, 90)
	there := stranger(otherTrunk, 90)
	seenFar, seenSix, seenHere, seenThere := seen(t, far, v6, theTunnel), seen(t, far, v6, sixTunnel), seen(t, here, v6, 0), seen(t, there, v6, 0)
	full := func(then ...row) func(testing.TB, *world) { return counting(openPlace, learnedANetwork, 0, then...) }
	fullTunnel := func(then ...row) func(testing.TB, *world) {
		return counting(inTunnel(theTunnel), learnedAPlace, 0, then...)
	}
	fullTrunk := func(then ...row) func(testing.TB, *world) {
		return counting(onTrunk(trunk), learnedAPlace, 0, then...)
	}
	to := func(name string, h host, given func(testing.TB, *world), before ...row) row {
		return reaches(t, name, h, v6).after(before...).given(given, recount)
	}
	return []row{
		to("the last that a network may have", far, counting(openPlace, learnedANetwork-1, 0, seenFar)).found(t, far, theTunnel),
		to("one more than a network may have", far, full(seenFar)).unknown(),
		to("one more behind a trunk", here, full(seenHere)).unknown(),
		to("one that moves in a full network", here, full(seenHere), seenFar).found(t, here, 0),
		to("one who is known, in a full network", bob, full()).delivered(bob, nil),
		to("one where a network has many addresses", far, counting(openPlace, 0, learnedANetwork, seenFar)).found(t, far, theTunnel),

		to("the last that a tunnel may have", far, counting(inTunnel(theTunnel), learnedAPlace-1, 0, seenFar)).found(t, far, theTunnel),
		to("one more than a tunnel may have", far, fullTunnel(seenFar)).unknown(),
		to("one behind another tunnel than the full one", far, fullTunnel(seenSix)).found(t, far, sixTunnel),
		to("one behind a trunk beside a full tunnel", here, fullTunnel(seenHere)).found(t, here, 0),
		to("one that moves into a full tunnel", far, fullTunnel(seenFar), seenHere).found(t, far, theTunnel),
		to("one that moves out of a full tunnel", here, fullTunnel(seenHere), seenFar).found(t, here, 0),
		to("the last that a trunk may have", here, counting(onTrunk(trunk), learnedAPlace-1, 0, seenHere)).found(t, here, 0),
		to("one more than a trunk may have", here, fullTrunk(seenHere)).unknown(),
		to("one behind another trunk than the full one", there, fullTrunk(seenThere)).found(t, there, 0),
		to("one behind a tunnel beside a full trunk", far, fullTrunk(seenFar)).found(t, far, theTunnel),
		to("one that moves to a full trunk", here, fullTrunk(seenHere), seenThere).found(t, here, 0),
		to("one where a trunk has many addresses", here, counting(onTrunk(trunk), 0, learnedAPlace, seenHere)).found(t, here, 0),
	}
}

// trunkShareRows are of the addresses that a network and a place may have, where
// the host calls them.
func trunkShareRows(t testing.TB, v6 bool) []row {
	behind, beside := stranger(trunk, 80), stranger(otherTrunk, 80)
	hello := func(from host) row { return fromEndpoint("", from, outgoing(from, v6, udp(40001, 7)).frame(t)) }
	calls := func(name string, to host, given func(testing.TB, *world), before ...row) row {
		p := packet{from: gatewayMAC, to: to.mac, src: gatewayOf(openNet).ip(v6), dst: to.ip(v6), l4: udp(7, 40001), payload: "hello"}
		return fromHost("from the host, "+name, p.frame(t)).after(before...).given(given, recount)
	}
	const unknown = "unknown_destination"
	full, fullTrunk := counting(openPlace, 0, learnedANetwork, hello(behind)), counting(onTrunk(trunk), 0, learnedAPlace, hello(behind))
	return []row{
		calls("the last that a network may have", behind, counting(openPlace, 0, learnedANetwork-1, hello(behind))).delivered(behind, nil),
		calls("one more than a network may have", behind, full).dropped(unknown),
		calls("one that moves in a full network", behind, full, hello(beside)).delivered(behind, nil),
		calls("where a network has many stations", behind, counting(openPlace, learnedANetwork, 0, hello(behind))).delivered(behind, nil),
		calls("the last that a trunk may have", behind, counting(onTrunk(trunk), 0, learnedAPlace-1, hello(behind))).delivered(behind, nil),
		calls("one more than a trunk may have", behind, fullTrunk).dropped(unknown),
		calls("one behind another trunk than the full one", beside, counting(onTrunk(trunk), 0, learnedAPlace, hello(beside))).delivered(beside, nil),
		calls("one that moves to a full trunk", behind, fullTrunk, hello(beside)).delivered(behind, nil),
		calls("where a trunk has many stations", behind, counting(onTrunk(trunk), learnedAPlace, 0, hello(behind))).delivered(behind, nil),
	}
}
