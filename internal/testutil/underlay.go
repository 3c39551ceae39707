package testutil

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// Uplink is the name of a host's device on the underlay.
const Uplink = "up0"

const (
	underlay4 = "192.0.2.%d"   // RFC 5737
	underlay6 = "2001:db8::%x" // RFC 3849
	outsideID = 254            // the outside's last number in both subnets
	bits4     = 24
	bits6     = 64
)

// Underlay joins hosts with a namespace that is the world outside.
type Underlay struct {
	Outside  *Netns // its device "bridge" sees every frame between hosts
	IP4, IP6 netip.Addr
}

// NewUnderlay gives each host a device up0 with addresses of 192.0.2.0/24 and
// 2001:db8::/64, the first host .1, and default routes to the outside. The
// outside has a route to nothing else, so that it cannot answer a container
// address.
func NewUnderlay(t testing.TB, hosts ...*Host) *Underlay {
	t.Helper()
	u := &Underlay{Outside: NewNetns(t, "outside")}
	u.IP4, u.IP6 = underlayAddresses(outsideID)
	u.Outside.prepare(t)
	ip := func(args ...string) { t.Helper(); u.Outside.Run(t, "ip", args...) }
	// Snooping would hold back neighbour solicitations until a querier is heard.
	ip("link", "add", "bridge", "up", "type", "bridge", "forward_delay", "0", "mcast_snooping", "0")
	ip("addr", "add", withBits(u.IP4), "dev", "bridge")
	ip("addr", "add", withBits(u.IP6), "dev", "bridge", "nodad")
	for i, h := range hosts {
		h.IP4, h.IP6 = underlayAddresses(i + 1)
		port := fmt.Sprintf("port%d", i+1)
		Wire(t, u.Outside, port, nil, h.Netns, Uplink, []string{withBits(h.IP4), withBits(h.IP6)})
		ip("link", "set", port, "master", "bridge")
		h.Run(t, "ip", "route", "add", "default", "via", u.IP4.String())
		h.Run(t, "ip", "route", "add", "default", "via", u.IP6.String())
	}
	return u
}

func underlayAddresses(id int) (ip4, ip6 netip.Addr) {
	return netip.MustParseAddr(fmt.Sprintf(underlay4, id)), netip.MustParseAddr(fmt.Sprintf(underlay6, id))
}

func withBits(a netip.Addr) string {
	if a.Is4() {
		return netip.PrefixFrom(a, bits4).String()
	}
	return netip.PrefixFrom(a, bits6).String()
}

// Wire joins two namespaces by a veth pair, with addresses (ADDRESS/BITS) on
// its ends. It waits until the kernel has found that both ends are up: a frame
// sent before that is lost.
func Wire(t testing.TB, a *Netns, aDevice string, aAddresses []string, b *Netns, bDevice string, bAddresses []string) {
	t.Helper()
	a.Run(t, "ip", "link", "add", aDevice, "type", "veth", "peer", "name", bDevice, "netns", b.Name)
	for _, end := range []struct {
		in        *Netns
		device    string
		addresses []string
	}{{a, aDevice, aAddresses}, {b, bDevice, bAddresses}} {
		end.in.Run(t, "ip", "link", "set", end.device, "up")
		for _, address := range end.addresses {
			add := []string{"addr", "add", address, "dev", end.device}
			if netip.MustParsePrefix(address).Addr().Is6() {
				add = append(add, "nodad")
			}
			end.in.Run(t, "ip", add...)
		}
	}
	Eventually(t, "both ends of the wire are up", func() bool {
		return strings.Contains(a.Run(t, "ip", "-o", "link", "show", aDevice), "state UP") &&
			strings.Contains(b.Run(t, "ip", "-o", "link", "show", bDevice), "state UP")
	})
}
