package test

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// linkMTU reads the MTU of a device.
func linkMTU(t *testing.T, n *testutil.Netns, device string) int {
	t.Helper()
	words := strings.Fields(n.Run(t, "ip", "-o", "link", "show", device))
	i := slices.Index(words, "mtu")
	if i < 0 || i+1 == len(words) {
		t.Fatalf("no MTU in %q", words)
	}
	mtu, err := strconv.Atoi(words[i+1])
	if err != nil {
		t.Fatal(err)
	}
	return mtu
}

// expectMTU looks at both ends of a container's veth.
func expectMTU(t *testing.T, c *testutil.Container, want int) {
	t.Helper()
	if got := linkMTU(t, c.Netns, testutil.Device); got != want {
		t.Errorf("%s has an MTU of %d, want %d", c.Endpoint, got, want)
	}
}

func TestEndpointMTUFollowsTheTunnels(t *testing.T) {
	h, _ := newOutside(t)
	createNet(t, h, "--key", "42")
	createOther(t, h)
	keyed, plain := h.NewContainer(t, "keyed", "net"), h.NewContainer(t, "plain", "other")
	expect := func(when string, keyedMTU, plainMTU int) {
		t.Helper()
		t.Log(when)
		expectMTU(t, keyed, keyedMTU)
		expectMTU(t, plain, plainMTU)
	}
	add := func(name, remote string, args ...string) {
		t.Helper()
		h.Ebpnet(t, append([]string{"tunnel", "add", name, "--remote", remote}, args...)...)
	}
	expect("no tunnel", 1458, 1500)
	add("four", "192.0.2.2")
	expect("IPv4", 1458, 1500)
	add("sums", "192.0.2.3", "--csum", "--seq")
	expect("IPv4, checksums and sequence numbers", 1450, 1500)
	add("six", "2001:db8::2")
	expect("IPv6", 1438, 1500)
	add("all", "2001:db8::3", "--csum", "--seq", "--network", "other", "--network", "net")
	expect("IPv6, all options, both networks", 1430, 1434)
	h.Ebpnet(t, "load")
	expect("loaded again", 1430, 1434)
	late := h.NewContainer(t, "late", "other")
	expectMTU(t, late, 1434)
	h.Ebpnet(t, "tunnel", "rm", "all")
	expect("IPv6 again", 1438, 1500)
	expectMTU(t, late, 1500)
	add("plain", "192.0.2.4", "--network", "other")
	expect("IPv4 without key", 1438, 1462)
	for _, name := range []string{"six", "sums", "four", "plain"} {
		h.Ebpnet(t, "tunnel", "rm", name)
	}
	expect("no tunnel any more", 1458, 1500)

	// Whatever the interface is called by now.
	keyed.Run(t, "ip", "link", "set", testutil.Device, "down")
	keyed.Run(t, "ip", "link", "set", testutil.Device, "name", "renamed")
	keyed.Run(t, "ip", "link", "set", "renamed", "up")
	add("six", "2001:db8::2")
	if got := linkMTU(t, keyed.Netns, "renamed"); got != 1438 {
		t.Errorf("an interface of another name has an MTU of %d, want 1438", got)
	}
}

func TestNetworkMTUIsSetOnLiveEndpoints(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h, "--key", "42")
	createOther(t, h, "--mtu", "1400")
	a, b, stranger := h.NewContainer(t, "a", "net"), h.NewContainer(t, "b", "net"), h.NewContainer(t, "stranger", "other")
	serve(t, u.Outside, service)
	running := connects(t, a.Netns, "tcp", at(u.IP4, service))
	expect := func(ab, others int) {
		t.Helper()
		expectMTU(t, a, ab)
		expectMTU(t, b, ab)
		expectMTU(t, stranger, others)
		running.MustAsk(t)
		pingAll(t, a, b)
	}
	shown := func(mtu string) {
		t.Helper()
		if table := h.Ebpnet(t, "network", "ls"); !slices.ContainsFunc(lines(table), func(line string) bool {
			words := strings.Fields(line)
			return words[0] == "net" && words[len(words)-1] == mtu
		}) {
			t.Errorf("want MTU %s for net in\n%s", mtu, table)
		}
	}
	expect(1458, 1400)
	shown("auto")
	h.Ebpnet(t, "network", "set", "net", "--mtu", "1300")
	expect(1300, 1400)
	shown("1300")
	h.Ebpnet(t, "tunnel", "add", "six", "--remote", "2001:db8::2")
	h.Ebpnet(t, "network", "set", "net", "--icc=true")
	h.Ebpnet(t, "load")
	expect(1300, 1400)
	expectMTU(t, h.NewContainer(t, "late", "net"), 1300)
	h.Ebpnet(t, "network", "set", "other", "--mtu", "0")
	expect(1300, 1500)
	h.Ebpnet(t, "network", "set", "net", "--mtu", "0", "--masquerade=true")
	expect(1438, 1500)
	shown("auto")
	h.Ebpnet(t, "network", "set", "net", "--mtu", "9000")
	expect(9000, 1500)
}

func TestServeFollowsTheUplinksMTU(t *testing.T) {
	h, _ := newOutside(t)
	createNet(t, h, "--key", "42")
	a := h.NewContainer(t, "a", "net")
	startServe(t, h)
	for _, mtu := range []string{"1400", "1500"} {
		h.Run(t, "ip", "link", "set", testutil.Uplink, "mtu", mtu)
		want := linkMTU(t, h.Netns, testutil.Uplink) - 42
		testutil.Eventually(t, fmt.Sprintf("an MTU of %d", want), func() bool {
			return linkMTU(t, a.Netns, testutil.Device) == want
		})
	}
}
