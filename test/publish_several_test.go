package test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// secondInterface is what a container's interface on another network is called.
const secondInterface = "eth1"

// A third network, and the gateways of those beside "net".
const third4, third6 = "172.29.0.0/24", "fd00:29::/64"

var (
	otherGateway4, otherGateway6 = netip.MustParseAddr("172.31.0.1"), netip.MustParseAddr("fd00:31::1")
	thirdGateway4, thirdGateway6 = netip.MustParseAddr("172.29.0.1"), netip.MustParseAddr("fd00:29::1")
)

// seesFrom is sees, whatever the port: many clients are seen from one address.
func seesFrom(t *testing.T, from *testutil.Netns, network, address string, want netip.Addr) {
	t.Helper()
	c, err := from.Dial(t, network, address)
	if err != nil {
		t.Errorf("from %s to %s %s: %v", from.Name, network, address, err)
		return
	}
	defer c.Close()
	switch got, err := c.Ask(aMoment); {
	case err != nil:
		t.Errorf("from %s to %s %s: %v", from.Name, network, address, err)
	case got.Addr().Unmap() != want:
		t.Errorf("from %s to %s %s: the server sees %s, want %s", from.Name, network, address, got, want)
	}
}

// localOf gives a device's own link-local address, with its zone.
func localOf(t *testing.T, n *testutil.Netns, device string) netip.Addr {
	t.Helper()
	for line := range strings.Lines(n.Run(t, "ip", "-6", "-o", "addr", "show", "dev", device, "scope", "link")) {
		_, rest, found := strings.Cut(line, " inet6 ")
		if prefix, _, cut := strings.Cut(rest, "/"); found && cut {
			return netip.MustParseAddr(prefix).WithZone(device)
		}
	}
	t.Fatalf("%s has no link-local address on %s", n.Name, device)
	return netip.Addr{}
}

// TestPublishedBySeveralNetworks has every kind of client call a server that is
// on two networks, whose default route is by either of them or by none. The
// server sees the gateway of the port's network where it would not answer by
// that, and else the client.
func TestPublishedBySeveralNetworks(t *testing.T) {
	for _, c := range []struct {
		name string
		// The network that the port is published by, and the one of the first
		// interface, which has the default route.
		port, first string
		without     bool // any default route
	}{
		{name: "by the network of the default route", port: "net", first: "net"},
		{name: "by the other network", port: "net", first: "other"},
		{name: "without a default route", port: "net", first: "net", without: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			h, u := newOutside(t)
			createNet(t, h)
			createOther(t, h)
			h.Ebpnet(t, "network", "create", "third", "--subnet", third4, "--subnet", third6)
			away := map[string]string{"net": "other", "other": "net"}[c.first]
			web := h.NewContainer(t, "web", c.first)
			web2 := web.Again(t, "web2", away, secondInterface)
			on := map[string]*testutil.Container{c.first: web, away: web2}
			if c.without {
				web.Run(t, "ip", "route", "del", "default")
				web.Run(t, "ip", "-6", "route", "del", "default")
			}
			for _, protocol := range protocols {
				publish(t, h, on[c.port].Endpoint, fmt.Sprintf("%d:%d/%s", published, service, protocol))
			}
			publish(t, h, on[c.port].Endpoint, fmt.Sprintf("%d:%d/udp", published+1, service+1)) // where nobody listens
			sibling, peer, guest := h.NewContainer(t, "sibling", "net"), h.NewContainer(t, "peer", "other"), h.NewContainer(t, "guest", "third")
			serve(t, web.Netns, service)
			local := localOf(t, h.Netns, testutil.Uplink)

			own := func(a, gateway netip.Addr) netip.Addr {
				if c.without || c.first != c.port {
					return gateway
				}
				return a
			}
			for _, network := range protocols {
				for i, path := range paths(h, u) {
					gateway := []netip.Addr{gateway4, gateway6}[i]
					second := []netip.Addr{otherGateway4, otherGateway6}[i]
					third := []netip.Addr{thirdGateway4, thirdGateway6}[i]
					loopback := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}[i]
					seesFrom(t, u.Outside, network, at(path.host, published), own(path.outside, gateway))
					seesFrom(t, h.Netns, network, at(path.host, published), own(path.host, gateway))
					seesFrom(t, h.Netns, network, at(loopback, published), gateway)
					seesFrom(t, h.Netns, network, at(gateway, published), gateway)
					seesFrom(t, h.Netns, network, at(second, published), gateway)
					seesFrom(t, h.Netns, network, at(third, published), own(third, gateway))
					for _, target := range []netip.Addr{path.host, gateway, second, third} {
						seesFrom(t, sibling.Netns, network, at(target, published), gateway)
						seesFrom(t, peer.Netns, network, at(target, published), gateway)
						seesFrom(t, guest.Netns, network, at(target, published), own(guest.Addresses()[i], gateway))
						if !c.without || target == gateway || target == second {
							seesFrom(t, web.Netns, network, at(target, published), gateway)
						}
					}
				}
				seesFrom(t, h.Netns, network, at(local, published), gateway6)
			}
			for _, target := range []netip.Addr{h.IP4, h.IP6, otherGateway4, local} {
				refusesConnections(t, h.Netns, "udp", at(target, published+1))
			}
			refusesConnections(t, u.Outside, "udp", at(h.IP4, published+1))
			refusesConnections(t, peer.Netns, "udp", at(h.IP6, published+1))

			// A client keeps its address as soon as that is answered again.
			switch {
			case c.without:
				web.Run(t, "ip", "route", "add", "default", "via", gateway4.String())
				h.Ebpnet(t, "load")
				seesFrom(t, u.Outside, "tcp", at(h.IP4, published), u.IP4)
				seesFrom(t, peer.Netns, "tcp", at(h.IP4, published), gateway4)
			case c.first == c.port:
				h.Ebpnet(t, "endpoint", "rm", "web2")
				seesFrom(t, peer.Netns, "tcp", at(h.IP4, published), peer.IP4)
			}
		})
	}
}
