package test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// allowed reads which roles an endpoint has.
func allowed(t *testing.T, h *testutil.Host, endpoint string) []string {
	t.Helper()
	var e struct {
		Allow []string `json:"allow"`
	}
	h.EbpnetJSON(t, &e, "endpoint", "inspect", endpoint)
	return e.Allow
}

func TestBadEndpointSettingsAreRefused(t *testing.T) {
	h, _ := newOutside(t)
	createNet(t, h, "--key", "42")
	h.NewContainer(t, "a", "net")
	h.Ebpnet(t, "tunnel", "add", "peer", "--remote", "192.0.2.2")
	h.Ebpnet(t, "endpoint", "add", "far", "--network", "net", "--tunnel", "peer", "--ip", "172.30.0.20", "--mac", "02:00:00:00:00:20")
	before := everything(t, h)
	for _, c := range []struct {
		code  int
		args  []string
		words []string
	}{
		{exitUsage, []string{"a"}, []string{"nothing to set", "--allow"}},
		{exitUsage, []string{"--allow", "router"}, []string{"NAME"}},
		{exitUsage, []string{"a", "b", "--allow", "router"}, []string{"b"}},
		{exitUsage, []string{"a", "--allow"}, []string{"needs an argument", "allow"}},
		{exitUsage, []string{"a", "--allow", ""}, []string{`""`, "dhcp-server", "router", "none"}},
		{exitUsage, []string{"a", "--allow", "king"}, []string{"king", "dhcp-server", "router", "none"}},
		{exitUsage, []string{"a", "--allow", "router,"}, []string{`""`, "router"}},
		{exitUsage, []string{"a", "--allow", "router, dhcp-server"}, []string{`" dhcp-server"`}},
		{exitUsage, []string{"a", "--allow", "none,router"}, []string{"none"}},
		{exitUsage, []string{"a", "--allow", "x\x1b[2J\n"}, []string{`\x1b`}},
		{exitUsage, []string{"nobody", "--allow", "king"}, []string{"king"}},
		{exitFailure, []string{"nobody", "--allow", "router"}, []string{"endpoint", "nobody"}},
		{exitFailure, []string{"far", "--allow", "router"}, []string{"far", "another host", "peer"}},
	} {
		refused(t, h, c.code, append([]string{"endpoint", "set"}, c.args...), c.words...)
		if after := everything(t, h); after != before {
			t.Fatalf("endpoint set %q was refused, and changed\n%s\nto\n%s", c.args, before, after)
		}
	}
	completion, _ := h.Try(h.Command()[0], "endpoint", "--generate-bash-completion")
	if !slices.Contains(strings.Fields(completion), "set") {
		t.Errorf("completion of endpoint has no set: %q", completion)
	}
	if completion, _ = h.Try(h.Command()[0], "endpoint", "set", "--", "--generate-bash-completion"); !strings.Contains(completion, "--allow") {
		t.Errorf("completion of endpoint set has no --allow: %q", completion)
	}
}

func TestAllowedRouterMayAdvertise(t *testing.T) {
	h := newHost(t)
	createNet(t, h)
	a, b := h.NewContainer(t, "a", "net"), h.NewContainer(t, "b", "net")
	tap, peer := a.NewTap(t, testutil.Device), b.NewTap(t, testutil.Device)
	advert := nd(t, a.MAC, multicastMAC(netip.IPv6LinkLocalAllNodes()), linkLocal(a.MAC),
		netip.IPv6LinkLocalAllNodes(), layers.ICMPv6TypeRouterAdvertisement, &layers.ICMPv6RouterAdvertisement{HopLimit: 64, RouterLifetime: 1800})
	isAdvert := func(p gopacket.Packet) bool { return string(p.Data()) == string(advert) }
	hasRoute := func() bool {
		return strings.Contains(b.Run(t, "ip", "-6", "route", "show", "default"), linkLocal(a.MAC).String())
	}
	refuses := func(when string) {
		t.Helper()
		h.ExpectDrops(t, "rogue_router", func() { tap.Send(t, advert) })
		if p := peer.Receive(t, 0, isAdvert); p != nil {
			t.Errorf("%s: the advertisement arrives:\n%s", when, p)
		}
		if hasRoute() {
			t.Errorf("%s: the peer routes by it", when)
		}
	}
	b.SetSysctl(t, "ipv6/conf/"+testutil.Device+"/accept_ra", "2")
	refuses("at first")
	h.Ebpnet(t, "endpoint", "set", "a", "--allow", "dhcp-server")
	refuses("with another role")
	h.Ebpnet(t, "endpoint", "set", "b", "--allow", "router")
	refuses("with a peer that is a router")
	h.Ebpnet(t, "endpoint", "set", "a", "--allow", "router,dhcp-server")
	if got := allowed(t, h, "a"); !slices.Equal(got, []string{"dhcp-server", "router"}) {
		t.Errorf("inspect: allowed %v", got)
	}
	for _, when := range []string{"allowed", "loaded again", "loaded after all was gone"} {
		t.Log(when)
		tap.Send(t, advert)
		peer.Await(t, when, isAdvert)
		testutil.Eventually(t, "the peer routes by it", hasRoute)
		if when == "loaded again" {
			removePins(t, h)
		}
		h.Ebpnet(t, "load")
	}
	h.Ebpnet(t, "endpoint", "set", "a", "--allow", "none")
	b.Run(t, "ip", "-6", "route", "flush", "default")
	refuses("taken back")
	if got := allowed(t, h, "a"); len(got) != 0 {
		t.Errorf("inspect: still allowed %v", got)
	}
}
