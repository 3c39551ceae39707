package datapath

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ebpnet/ebpnet/bpf"
	"github.com/ebpnet/ebpnet/internal/testutil"
	"github.com/ebpnet/ebpnet/loader"
)

// newSharedWorld makes a world with trunks and tunnels. A timeout of zero keeps
// the default.
func newSharedWorld(t *testing.T, timeouts loader.Timeouts) *world {
	t.Helper()
	w := newWorld(t, func(t testing.TB, c loader.Config) *Tables {
		c.Timeouts = timeouts
		return loadPinned(t, c)
	})
	withShared(&w.wanted)
	remember(t, w)
	return w
}

// TestLearnedAreCounted moves stations. A network counts each station once, and
// so does the place where it is now. The same holds for addresses.
func TestLearnedAreCounted(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	w := newSharedWorld(t, loader.Timeouts{})
	far, here, second := stranger(host{}, 90), stranger(trunk, 90), stranger(otherTrunk, 91)
	toHost := func(h host, v6 bool) row {
		return fromEndpoint("", h, outgoing(h, v6, udp(1, 2)).frame(t))
	}
	moved := second
	moved.device, moved.mac = trunk.device, here.mac
	for _, r := range []row{
		seen(t, far, false, theTunnel), seen(t, far, true, theTunnel), seen(t, far, false, sixTunnel),
		seen(t, here, false, 0), seen(t, here, false, 0), seen(t, second, true, 0),
		toHost(here, false), toHost(here, true), toHost(second, false), toHost(moved, false), toHost(moved, false),
		seen(t, bob, false, 0), seen(t, remote, false, theTunnel), toHost(trunk, false),
	} {
		w.send(t, r)
	}
	counted := w.counted(t)
	for place, want := range map[bpf.EbpnetLearnedPlace]bpf.EbpnetLearnedCount{
		openPlace:           {Stations: 2, Neighbors: 3},
		inTunnel(theTunnel): {},
		inTunnel(sixTunnel): {},
		onTrunk(trunk):      {Stations: 1, Neighbors: 3},
		onTrunk(otherTrunk): {Stations: 1},
	} {
		if got := counted[place]; got != want {
			t.Errorf("place %+v counts %+v, want %+v", place, got, want)
		}
	}
	want := []string{
		"172.30.1.90 on 1 behind 6/0", "172.30.1.91 on 1 behind 6/0",
		"fd00:30:1::5a on 1 behind 6/0", "station 90 on 1 behind 6/0", "station 91 on 1 behind 5/0",
	}
	if diff := cmp.Diff(want, w.learned(t)); diff != "" {
		t.Errorf("learned (-want +got):\n%s", diff)
	}
}

// TestFullPlaceLearnsNoMore checks that a place does not learn more stations
// than its limit.
func TestFullPlaceLearnsNoMore(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	w := newSharedWorld(t, loader.Timeouts{})
	now, err := coarseNow()
	if err != nil {
		t.Fatal(err)
	}
	fill := func(n uint32) {
		t.Helper()
		stations := map[bpf.EbpnetFdbKey]bpf.EbpnetLearned{}
		for i := range n {
			s := behindTunnel(theTunnel, openNet, 0)
			s.Mac.Byte[4], s.Mac.Byte[5] = byte(i>>8), byte(i)
			stations[fdbKey(openNet, s.Mac)] = bpf.EbpnetLearned{Station: s, Seen: uint64(now)}
		}
		if err := putAll(w.Maps.LearnedFdb, stations); err != nil {
			t.Fatal(err)
		}
		startSweep(t, w.Programs.SweepFlows) // it counts the entries without a record
	}
	expect := func(what string, network, tunnel uint32) {
		t.Helper()
		want := map[bpf.EbpnetLearnedPlace]bpf.EbpnetLearnedCount{openPlace: {Stations: network}, inTunnel(theTunnel): {Stations: tunnel}}
		if tunnel < network {
			want[inTunnel(sixTunnel)] = bpf.EbpnetLearnedCount{Stations: network - tunnel}
		}
		if diff := cmp.Diff(want, w.counted(t)); diff != "" {
			t.Errorf("%s: counted (-want +got):\n%s", what, diff)
		}
	}
	first, second := stranger(host{}, 90), stranger(host{}, 91)
	fill(learnedPerPlace - 1)
	w.send(t, seen(t, first, false, theTunnel))
	expect("the last station within the limit", learnedPerPlace, learnedPerPlace)
	w.send(t, seen(t, second, false, theTunnel))
	expect("one station more", learnedPerPlace, learnedPerPlace)
	w.send(t, seen(t, second, false, sixTunnel))
	expect("a station at another place", learnedPerPlace+1, learnedPerPlace)
	if n := len(w.learned(t)); n != learnedPerPlace+1 {
		t.Errorf("%d learned stations, want %d", n, learnedPerPlace+1)
	}
	if err := w.ForgetLearned(LearnedFilter{Tunnel: theTunnel}); err != nil {
		t.Fatal(err)
	}
	w.send(t, seen(t, first, false, theTunnel))
	expect("a station after the others are forgotten", 2, 1)
}

// TestLearnedAreForgotten checks that idle stations are forgotten without any
// packet. Their addresses are forgotten when no flow can use them any more.
func TestLearnedAreForgotten(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	// More than the precision of the time of last use.
	const after = 3 * time.Second
	const address, used = "172.30.1.92 on 1 behind 6/0", "station 91 on 1 behind 6/0"
	for name, c := range map[string]struct {
		timeouts loader.Timeouts
		left     []string
	}{
		"after flows":      {loader.Timeouts{Learned: after, TCPEstablished: after, UDPEstablished: after}, []string{used}},
		"before TCP's":     {loader.Timeouts{Learned: after, UDPEstablished: after}, []string{address, used}},
		"before UDP's":     {loader.Timeouts{Learned: after, TCPEstablished: after}, []string{address, used}},
		"before all flows": {loader.Timeouts{Learned: after}, []string{address, used}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newSharedWorld(t, c.timeouts)
			toHost := fromEndpoint("", trunk, outgoing(stranger(trunk, 92), false, udp(1, 2)).frame(t))
			w.send(t, seen(t, stranger(host{}, 90), false, theTunnel))
			w.send(t, toHost)
			if n := len(w.learned(t)); n != 3 {
				t.Fatalf("%d learned stations and addresses, want 3", n)
			}
			want := bpf.EbpnetLearnedCount{Stations: 1, Neighbors: uint32(len(c.left) - 1)}
			testutil.Eventually(t, "the end of idle entries", func() bool {
				w.send(t, seen(t, stranger(trunk, 91), false, 0))
				return w.counted(t)[openPlace] == want
			})
			if diff := cmp.Diff(c.left, w.learned(t)); diff != "" {
				t.Errorf("learned (-want +got):\n%s", diff)
			}
		})
	}
}
