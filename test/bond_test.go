//go:build kernels

package test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// An 802.3ad bond is the uplink. One of its two cables is pulled, and all
// connections go on by the other.
func TestBondAsUplink(t *testing.T) {
	const bond = "bond0"
	t.Parallel()
	h := testutil.NewHost(t, "host")
	u := testutil.NewUnderlay(t, h)
	testutil.Wire(t, u.Outside, "port2", nil, h.Netns, "up1", nil)
	for _, end := range []struct {
		*testutil.Netns
		cables []string
	}{{h.Netns, []string{testutil.Uplink, "up1"}}, {u.Outside, []string{"port1", "port2"}}} {
		end.Run(t, "ip", "link", "add", bond, "type", "bond", "mode", "802.3ad",
			"miimon", "50", "lacp_rate", "fast", "xmit_hash_policy", "layer3+4")
		for _, cable := range end.cables {
			end.Run(t, "ip", "link", "set", cable, "nomaster", "down")
			end.Run(t, "ip", "link", "set", cable, "master", bond)
		}
		end.Run(t, "ip", "link", "set", bond, "up")
	}
	u.Outside.Run(t, "ip", "link", "set", bond, "master", "bridge")
	for _, path := range paths(h, u) {
		if path.host.Is4() {
			h.Run(t, "ip", "addr", "del", netip.PrefixFrom(path.host, 24).String(), "dev", testutil.Uplink)
			h.Run(t, "ip", "addr", "add", netip.PrefixFrom(path.host, 24).String(), "dev", bond)
		} else { // it went when up0 was down
			h.Run(t, "ip", "addr", "add", netip.PrefixFrom(path.host, 64).String(), "dev", bond, "nodad")
		}
		h.Run(t, "ip", "route", "replace", "default", "via", path.outside.String(), "dev", bond)
	}
	cables := func(number string) {
		t.Helper()
		testutil.Eventually(t, number+" cables carry", func() bool {
			return strings.Contains(h.Netns.Run(t, "ip", "-d", "-o", "link", "show", bond), "ad_num_ports "+number)
		})
	}
	cables("2")

	h.Ebpnet(t, "load", "--uplink", bond)
	createNet(t, h)
	a := h.NewContainer(t, "a", "net", bothPublished()...)
	serve(t, a.Netns, service)
	serve(t, u.Outside, service)
	works := func() (all []*testutil.Conn) {
		t.Helper()
		for _, path := range paths(h, u) {
			ping(t, a.Netns, path.outside)
			for _, network := range protocols {
				for range 4 { // some by each cable
					all = append(all,
						connects(t, a.Netns, network, at(path.outside, service)),
						connects(t, u.Outside, network, at(path.host, published)))
				}
			}
		}
		return all
	}
	established := works()
	u.Outside.Run(t, "ip", "link", "set", "port2", "down")
	cables("1")
	takeTurns(t, established...)
	works()
}
