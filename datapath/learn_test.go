package datapath

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ebpnet/ebpnet/bpf"
	"github.com/ebpnet/ebpnet/internal/testutil"
	"github.com/ebpnet/ebpnet/loader"
)

// newSharedWorld is a world with trunks and tunnels; timeouts that are zero are
// those compiled in.
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

// Stations are counted on their network once, wherever they go, and where they
// are now; and so are their addresses.
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
			t.Errorf("at %+v are counted %+v, want %+v", place, got, want)
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

// A place has no more stations than it may, as they are counted.
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
		startSweep(t, w.Programs.SweepFlows) // which counts what has no record
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
	fill(learnedAPlace - 1)
	w.send(t, seen(t, first, false, theTunnel))
	expect("the last that there is room for", learnedAPlace, learnedAPlace)
	w.send(t, seen(t, second, false, theTunnel))
	expect("one more", learnedAPlace, learnedAPlace)
	w.send(t, seen(t, second, false, sixTunnel))
	expect("one elsewhere", learnedAPlace+1, learnedAPlace)
	if n := len(w.learned(t)); n != learnedAPlace+1 {
		t.Errorf("%d stations are learned, want %d", n, learnedAPlace+1)
	}
	if err := w.ForgetLearned(LearnedFilter{Tunnel: theTunnel}); err != nil {
		t.Fatal(err)
	}
	w.send(t, seen(t, first, false, theTunnel))
	expect("one after the others have been forgotten", 2, 1)
}

// Who has not been seen for too long is forgotten, without any packet; the
// addresses once no flow of theirs can be.
func TestLearnedAreForgotten(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	// More than the precision with which the programs note who was seen.
	const after = 3 * time.Second
	const address, used = "172.30.1.92 on 1 behind 6/0", "station 91 on 1 behind 6/0"
	for name, c := range map[string]struct {
		timeouts loader.Timeouts
		left     []string
	}{
		"after flows":       {loader.Timeouts{Learned: after, TCPEstablished: after, UDPEstablished: after}, []string{used}},
		"before TCP's":      {loader.Timeouts{Learned: after, UDPEstablished: after}, []string{address, used}},
		"before UDP's":      {loader.Timeouts{Learned: after, TCPEstablished: after}, []string{address, used}},
		"before any's flow": {loader.Timeouts{Learned: after}, []string{address, used}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newSharedWorld(t, c.timeouts)
			toHost := fromEndpoint("", trunk, outgoing(stranger(trunk, 92), false, udp(1, 2)).frame(t))
			w.send(t, seen(t, stranger(host{}, 90), false, theTunnel))
			w.send(t, toHost)
			if n := len(w.learned(t)); n != 3 {
				t.Fatalf("%d stations and addresses are learned, want 3", n)
			}
			want := bpf.EbpnetLearnedCount{Stations: 1, Neighbors: uint32(len(c.left) - 1)}
			testutil.Eventually(t, "the end of what is idle", func() bool {
				w.send(t, seen(t, stranger(trunk, 91), false, 0))
				return w.counted(t)[openPlace] == want
			})
			if diff := cmp.Diff(c.left, w.learned(t)); diff != "" {
				t.Errorf("learned (-want +got):\n%s", diff)
			}
		})
	}
}
