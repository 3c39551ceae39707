package test

import (
	"net/netip"
	"strconv"
	"testing"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

func TestHostFirewallAndForwardingDoNotMatter(t *testing.T) {
	p := newPair(t, greKey, greKey, "--icc=false")
	expectNoContainerAddress(t, p.underlay)
	p.on(t, "link", "add", "web", "redis1", "--port", strconv.Itoa(service)+"/tcp")
	serve(t, p.redis1.Netns, service)
	serve(t, p.underlay.Outside, service)
	var established []*testutil.Conn
	for _, address := range []netip.Addr{p.redis1.IP4, p.redis1.IP6, p.underlay.IP4, p.underlay.IP6} {
		established = append(established, connects(t, p.web.Netns, "tcp", at(address, service)))
	}

	for _, change := range []struct {
		what  string
		apply func(*testutil.Host)
	}{
		{"FORWARD DROP", func(h *testutil.Host) {
			h.Run(t, "iptables", "-P", "FORWARD", "DROP")
			h.Run(t, "ip6tables", "-P", "FORWARD", "DROP")
		}},
		{"nftables forward drop", func(h *testutil.Host) {
			h.Run(t, "nft", "add table inet other; add chain inet other forward { type filter hook forward priority 0; policy drop; }")
		}},
		{"nftables flushed", func(h *testutil.Host) { h.Run(t, "nft", "flush", "ruleset") }},
		{"forwarding switched on", func(h *testutil.Host) { setForwarding(t, h, "1") }},
		{"forwarding switched off", func(h *testutil.Host) { setForwarding(t, h, "0") }},
	} {
		t.Log(change.what)
		change.apply(p.a)
		change.apply(p.b)
		takeTurns(t, established...)
		for _, address := range []netip.Addr{p.underlay.IP4, p.underlay.IP6} {
			ping(t, p.web.Netns, address)
			connects(t, p.other.Netns, "udp", at(address, service))
		}
		for _, address := range p.redis1.Addresses() {
			connects(t, p.web.Netns, "tcp", at(address, service))
			connectsNot(t, p.a, "policy", p.other.Netns, "tcp", at(address, service))
		}
		for _, address := range p.web.Addresses() {
			ping(t, p.a.Netns, address)
		}
	}
}

func setForwarding(t *testing.T, h *testutil.Host, value string) {
	t.Helper()
	h.SetSysctl(t, "ipv4/ip_forward", value)
	h.SetSysctl(t, "ipv6/conf/all/forwarding", value)
}

// ebpnet itself leaves all of that alone.
func TestNothingOfTheHostIsTouched(t *testing.T) {
	t.Parallel()
	h := testutil.NewHost(t, "host")
	testutil.NewUnderlay(t, h)
	look := func() string {
		return h.Run(t, "nft", "list", "ruleset") +
			h.Run(t, "sysctl", "net.ipv4.ip_forward", "net.ipv4.conf.all.forwarding", "net.ipv4.conf.default.forwarding",
				"net.ipv6.conf.all.forwarding", "net.ipv6.conf.default.forwarding", "net.ipv4.conf."+testutil.Uplink+".forwarding") +
			h.Run(t, "ip", "-o", "link", "show", "type", "bridge")
	}
	before := look()
	h.Ebpnet(t, "load", "--uplink", testutil.Uplink)
	createNet(t, h, "--icc=false")
	a, b := h.NewContainer(t, "a", "net"), h.NewContainer(t, "b", "net")
	h.Ebpnet(t, "link", "add", a.Endpoint, b.Endpoint, "--port", "80/tcp")
	if after := look(); after != before {
		t.Errorf("the host was\n%s\nand is now\n%s", before, after)
	}
}
