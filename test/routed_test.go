package test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// TestRoutedPortIsReachedAtTheEndpointItself: on a network that is routed to, a
// port opens the way to the endpoint's own address, and nothing else does.
func TestRoutedPortIsReachedAtTheEndpointItself(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h, "--masquerade=false")
	createOther(t, h)
	web := h.NewContainer(t, "web", "net")
	translated := h.NewContainer(t, "translated", "other", "--publish", "7000:7000")
	guest := h.NewContainer(t, "guest", "other")
	h.Ebpnet(t, "network", "create", "inside", "--subnet", third4, "--internal")
	insider := h.NewContainer(t, "insider", "inside")
	for _, server := range []*testutil.Container{web, translated} {
		serve(t, server.Netns, service)
		serve(t, server.Netns, service+1)
	}
	for subnet, via := range map[string]netip.Addr{subnet4: h.IP4, subnet6: h.IP6, other4: h.IP4, other6: h.IP6} {
		u.Outside.Run(t, "ip", "route", "add", subnet, "via", via.String())
	}
	for _, address := range web.Addresses() {
		isNotRouted(t, u.Outside, "tcp", at(address, service))
		h.Ebpnet(t, "port", "add", "web", netip.AddrPortFrom(address, service).String()+":7000")
	}
	sees(t, u.Outside, "tcp", at(web.IP4, service), u.IP4)
	sees(t, u.Outside, "tcp", at(web.IP6, service), u.IP6)
	sees(t, u.Outside, "tcp", at(h.IP4, service), u.IP4) // another's: the numbers are the same, the addresses are not

	sees(t, guest.Netns, "tcp", at(web.IP4, service), guest.IP4)
	sees(t, guest.Netns, "tcp", at(web.IP6, service), guest.IP6)
	kept := connects(t, guest.Netns, "tcp", at(web.IP4, service))
	connectsNot(t, h, "isolated", guest.Netns, "tcp", at(web.IP4, service+1))
	connectsNot(t, h, "isolated", guest.Netns, "udp", at(web.IP4, service))
	connectsNot(t, h, "isolated", web.Netns, "tcp", at(translated.IP4, service))
	connectsNot(t, h, "isolated", insider.Netns, "tcp", at(web.IP4, service))
	noPing(t, h, "isolated", guest.Netns, web.IP4)

	isNotRouted(t, u.Outside, "tcp", at(web.IP4, service+1))
	isNotRouted(t, u.Outside, "udp", at(web.IP4, service))
	isNotRouted(t, u.Outside, "tcp", at(translated.IP4, service)) // published, but at the host's addresses

	h.Ebpnet(t, "port", "rm", "web", web.IP4.String()+":7000:7000")
	stalls(t, kept)
	connectsNot(t, h, "isolated", guest.Netns, "tcp", at(web.IP4, service))

	for _, c := range []struct{ endpoint, port, want string }{
		{"web", web.IP4.String() + ":7002:7001", "want a network without masquerade, and the same port"},
		{"translated", translated.IP4.String() + ":7000:7000", "want a network without masquerade, and the same port"},
		{"web", translated.IP4.String() + ":7000:7000", "will be no address of this host"},
	} {
		_, stderr, code := h.TryEbpnet("port", "add", c.endpoint, c.port)
		if code != 1 || !strings.Contains(stderr, c.want) {
			t.Errorf("port add %s %s: exit code %d, %q, want 1 and %q", c.endpoint, c.port, code, stderr, c.want)
		}
	}
}

// isNotRouted expects no answer at an endpoint's own address. The packets are
// the host's to forward, which it does not.
func isNotRouted(t *testing.T, from *testutil.Netns, network, address string) {
	t.Helper()
	c, err := from.Dial(t, network, address)
	if err != nil {
		return
	}
	if _, err := c.Ask(aMoment); err == nil {
		t.Errorf("%s is reached at %s %s", from.Name, network, address)
	}
}
