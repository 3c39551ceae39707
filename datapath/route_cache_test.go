package datapath

import (
	"testing"

	"github.com/ebpnet/ebpnet/bpf"
	"github.com/ebpnet/ebpnet/internal/testutil"
)

// TestRouteCacheKeepsAllSenders checks that containers that send to one
// destination do not evict each other's entries from the route cache.
func TestRouteCacheKeepsAllSenders(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	w := newWorld(t, loadPinned)
	for _, v6 := range []bool{false, true} {
		w.clearRouteCache(t)
		senders := []host{alice, bob, client, server, plain}
		for _, from := range senders {
			w.send(t, fromEndpoint("", from, outgoing(from, v6, udp(40000, 53)).frame(t)))
		}
		kept := 0
		for place := range w.Maps.Ways.MaxEntries() {
			var perCPU []bpf.EbpnetCachedRoute
			if err := w.Maps.Ways.Lookup(place, &perCPU); err != nil {
				t.Fatal(err)
			}
			for _, route := range perCPU {
				if route.Found != 0 && route.Dst == addressOf(website.ip(v6)) {
					kept++
				}
			}
		}
		if kept < len(senders) {
			t.Errorf("IPv6 %t: the route cache keeps %d entries for %d senders", v6, kept, len(senders))
		}
	}
}
