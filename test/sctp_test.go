//go:build kernels

package test

import (
	"net/netip"
	"strconv"
	"testing"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// SCTP goes out masqueraded, comes in by a published port, and goes on over an
// upgrade. Another port is refused by the host, not forwarded.
func TestSCTP(t *testing.T) {
	const port = 42000
	h, u := newOutside(t)
	createNet(t, h)
	publish := []string{"--publish", strconv.Itoa(published) + ":" + strconv.Itoa(service) + "/sctp"}
	a, b := h.NewContainer(t, "a", "net", publish...), h.NewContainer(t, "b", "net")
	var established []*testutil.Conn
	for i, path := range paths(h, u) {
		own := []netip.Addr{a.Addresses()[i], b.Addresses()[i]}
		u.Outside.Serve(t, "sctp", at(path.outside, service))
		a.Serve(t, "sctp", at(own[0], service))
		for _, c := range []struct {
			what     string
			from     *testutil.Netns
			local    string
			to       string
			seenFrom netip.Addr
		}{
			{"masqueraded", a.Netns, at(own[0], port), at(path.outside, service), path.host},
			{"masqueraded, of the same port", b.Netns, at(own[1], port), at(path.outside, service), path.host},
			{"published", u.Outside, at(path.outside, port), at(path.host, published), path.outside},
			{"between containers", b.Netns, at(own[1], port+1), at(own[0], service), own[1]},
		} {
			conn := c.from.MustDialFrom(t, "sctp", c.local, c.to)
			if seen := conn.MustAsk(t); seen.Addr() != c.seenFrom {
				t.Errorf("%s: the server sees %s, want %s", c.what, seen, c.seenFrom)
			}
			established = append(established, conn)
		}
		if conn, err := u.Outside.DialFrom(t, "sctp", at(path.outside, port+1), at(path.host, service)); err == nil {
			t.Errorf("%s connects to a port that is not published", conn.LocalAddr())
		}
	}
	h.Ebpnet(t, "load")
	takeTurns(t, established...)
}
