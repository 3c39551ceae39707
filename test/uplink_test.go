package test

import (
	"net/netip"
	"testing"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// In these tests no process of ebpnet runs, and no command is given: what the
// datapath does, it does by itself.

// The uplink gets other addresses. New flows have the new ones; old ones end,
// and it is told why.
func TestUplinkChangesItsAddress(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	a := h.NewContainer(t, "a", "net", bothPublished()...)
	serve(t, u.Outside, service)
	serve(t, a.Netns, service)
	expectNoContainerAddress(t, u)
	var streams, datagrams []*testutil.Conn
	for _, path := range paths(h, u) {
		streams = append(streams, connects(t, a.Netns, "tcp", at(path.outside, service)))
		datagrams = append(datagrams, connects(t, a.Netns, "udp", at(path.outside, service)))
	}
	var ip4, ip6 netip.Addr
	losesItsFlows(t, h, append(streams, datagrams...), func() { ip4, ip6 = renumber(t, h, u) })
	for i, now := range []netip.Addr{ip4, ip6} {
		path := paths(h, u)[i]
		// The next datagram opens another flow.
		if got := datagrams[i].MustAsk(t); got.Addr() != now {
			t.Errorf("a datagram after that is seen as from %s, want %s", got, now)
		}
		for _, network := range protocols {
			sees(t, a.Netns, network, at(path.outside, service), now)
			sees(t, u.Outside, network, at(now, published), path.outside)
		}
		if c, err := u.Outside.Dial(t, "udp", at(path.host, published)); err == nil {
			stalls(t, c)
		}
		ping(t, a.Netns, path.outside)
	}
}

// losesItsFlows expects each flow to end when the host loses an address, with a
// packet dropped for that. It may be any packet, such as an acknowledgement.
func losesItsFlows(t *testing.T, h *testutil.Host, flows []*testutil.Conn, lose func()) {
	t.Helper()
	before := h.Drops(t, "address_lost")
	lose()
	for _, c := range flows {
		stalls(t, c)
	}
	testutil.Eventually(t, "a packet of each flow is dropped as address_lost", func() bool {
		return h.Drops(t, "address_lost") >= before+uint64(len(flows))
	})
}

// The uplink goes down and comes up, and its flows go on.
func TestUplinkGoesAndComes(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	a := h.NewContainer(t, "a", "net", bothPublished()...)
	serve(t, u.Outside, service)
	serve(t, a.Netns, service)
	// Else the kernel forgets the address with the link.
	h.SetSysctl(t, "ipv6/conf/"+testutil.Uplink+"/keep_addr_on_down", "1")
	var open []*testutil.Conn
	for _, path := range paths(h, u) {
		for _, network := range protocols {
			open = append(open, connects(t, a.Netns, network, at(path.outside, service)),
				connects(t, u.Outside, network, at(path.host, published)))
		}
	}
	h.Run(t, "ip", "link", "set", testutil.Uplink, "down")
	for _, path := range paths(h, u) {
		if c, err := a.Dial(t, "udp", at(path.outside, service)); err == nil {
			stalls(t, c)
		}
	}
	h.Run(t, "ip", "link", "set", testutil.Uplink, "up")
	for _, path := range paths(h, u) {
		h.Run(t, "ip", "route", "replace", "default", "via", path.outside.String())
	}
	for _, path := range paths(h, u) {
		ping(t, h.Netns, path.outside)
		ping(t, a.Netns, path.outside)
		for _, network := range protocols {
			sees(t, a.Netns, network, at(path.outside, service), path.host)
			sees(t, u.Outside, network, at(path.host, published), path.outside)
		}
	}
	for _, c := range open {
		if _, err := c.Ask(aMoment); err != nil {
			c.MustAsk(t) // what was lost while the link was down
		}
	}
}

// A second uplink takes the route. New flows go there; those of the first go on
// by it if the host routes its address that way.
func TestSecondUplinkTakesTheRoute(t *testing.T) {
	h, u, second := newTwoUplinks(t)
	createNet(t, h)
	a := h.NewContainer(t, "a", "net", bothPublished()...)
	// Somebody whom both reach.
	places := []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:2::1")}
	for _, n := range []*testutil.Netns{u.Outside, second} {
		n.Run(t, "ip", "link", "set", "lo", "up")
		serve(t, n, service)
		for i, place := range places {
			n.Run(t, "ip", "addr", "add", place.String(), "dev", "lo", "nodad")
			// At the place itself, as the answers have to come from there.
			n.Serve(t, "tcp", at(place, service+1))
			n.Serve(t, []string{"udp4", "udp6"}[i], at(place, service+1))
		}
	}
	serve(t, a.Netns, service)
	expectNoContainerAddress(t, u)
	for i, path := range paths(h, u) {
		now, beyond := []netip.Addr{second4, second6}[i], []netip.Addr{beyond4, beyond6}[i]
		first := map[string]*testutil.Conn{}
		for _, network := range protocols {
			first[network] = a.MustDial(t, network, at(places[i], service+1))
			if got := first[network].MustAsk(t); got.Addr() != path.host {
				t.Errorf("%s: seen as %s, want %s", network, got, path.host)
			}
		}
		inward := connects(t, u.Outside, "tcp", at(path.host, published))
		family := familyOf(path.host)
		h.Run(t, "ip", family, "route", "add", "default", "via", path.outside.String(), "table", "7")
		h.Run(t, "ip", family, "rule", "add", "from", path.host.String(), "table", "7")
		h.Run(t, "ip", "route", "replace", "default", "via", beyond.String())

		for _, network := range protocols {
			sees(t, a.Netns, network, at(places[i], service+1), now)
			if got := first[network].MustAsk(t); got.Addr() != path.host {
				t.Errorf("%s: an old flow is seen as %s, want %s", network, got, path.host)
			}
			// Both are reached from where they are.
			sees(t, u.Outside, network, at(path.host, published), path.outside)
			sees(t, second, network, at(now, published), beyond)
		}
		inward.MustAsk(t)

		// And with its address the first loses its flows.
		prefix := "/24"
		if now.Is6() {
			prefix = "/64"
		}
		losesItsFlows(t, h, []*testutil.Conn{first["tcp"], first["udp"]}, func() {
			h.Run(t, "ip", "addr", "del", path.host.String()+prefix, "dev", testutil.Uplink)
		})
		if got := first["udp"].MustAsk(t); got.Addr() != now {
			t.Errorf("a datagram after that is seen as from %s, want %s", got, now)
		}
	}
}
