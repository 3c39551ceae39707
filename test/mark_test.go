package test

import (
	"fmt"
	"testing"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// TestMarksOfTheHostAreNotTheDatapaths: a firewall or a service mesh on the
// host may use any mark. The datapath does not take a packet with such a mark
// for a copy that the datapath has marked itself.
func TestMarksOfTheHostAreNotTheDatapaths(t *testing.T) {
	p := newPair(t, greKey, greKey)
	h := p.a
	serve(t, p.web.Netns, service)
	for _, mark := range []uint32{0xeb100401, 0xeb200000, 0xeb380001, 0xeb300b81} {
		h.Run(t, "nft", "add table inet mesh; flush table inet mesh; add chain inet mesh out { type filter hook output priority mangle; }; "+
			fmt.Sprintf("add rule inet mesh out oif ebpnet0 meta mark set %#x", mark))
		for _, address := range p.web.Addresses() {
			h.Run(t, "ip", "neigh", "flush", "dev", "ebpnet0")
			ping(t, h.Netns, address)
			connects(t, h.Netns, "tcp", at(address, service))
		}
	}
	for _, reason := range []string{"malformed", "unknown_tunnel", "no_route"} {
		if n := h.Drops(t, reason); n > 0 {
			t.Errorf("%d packets of the host are dropped as %s", n, reason)
		}
	}
	// The datapath's own marks are kept: ARP asks in copies for the tunnel, and
	// a large packet goes into it in fragments.
	p.web.Run(t, "ip", "neigh", "flush", "dev", testutil.Device)
	ping(t, p.web.Netns, p.redis1.IP4, "-s", "4000", "-M", "dont")
}
