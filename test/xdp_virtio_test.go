//go:build kernels

package test

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// newVirtio joins the host and the outside by the machine's two network cards,
// between which there is a cable.
func newVirtio(t *testing.T) (*testutil.Host, *testutil.Underlay) {
	t.Helper()
	drivers, err := filepath.Glob("/sys/class/net/*/device/driver")
	if err != nil {
		t.Fatal(err)
	}
	cards := slices.DeleteFunc(drivers, func(driver string) bool {
		name, err := os.Readlink(driver)
		return err != nil || filepath.Base(name) != "virtio_net"
	})
	if len(cards) != 2 {
		t.Fatalf("want 2 cards of virtio_net, have %v", cards)
	}
	h := testutil.NewHost(t, "host")
	u := &testutil.Underlay{Outside: testutil.NewNetns(t, "outside"), IP4: netip.MustParseAddr("192.0.2.254"), IP6: netip.MustParseAddr("2001:db8::fe")}
	h.IP4, h.IP6 = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	for i, end := range []struct {
		*testutil.Netns
		device string
		ip4    netip.Addr
		ip6    netip.Addr
	}{{h.Netns, testutil.Uplink, h.IP4, h.IP6}, {u.Outside, "bridge", u.IP4, u.IP6}} {
		card := strings.Split(cards[i], "/")[4]
		if out, err := exec.Command("ip", "link", "set", card, "netns", end.Name).CombinedOutput(); err != nil {
			t.Fatalf("move %s: %v\n%s", card, err, out)
		}
		end.Run(t, "ip", "link", "set", "lo", "up")
		end.Run(t, "ip", "link", "set", card, "name", end.device, "up")
		end.Run(t, "ip", "addr", "add", end.ip4.String()+"/24", "dev", end.device)
		end.Run(t, "ip", "addr", "add", end.ip6.String()+"/64", "dev", end.device, "nodad")
	}
	h.Run(t, "ip", "route", "add", "default", "via", u.IP4.String())
	h.Run(t, "ip", "route", "add", "default", "via", u.IP6.String())
	return h, u
}

// Native XDP runs in a card's driver: it drops what is nobody's and takes
// datagrams of flows to the container, past the uplink.
func TestXDPOnVirtio(t *testing.T) {
	h, u := newVirtio(t)
	h.Ebpnet(t, "load", "--uplink", testutil.Uplink, "--xdp", "native")
	expectXDP(t, h, testutil.Uplink, "native", "native")
	createNet(t, h, "--key", keyed.key)
	h.Ebpnet(t, "tunnel", "add", "elsewhere", "--remote", "192.0.2.2")
	a := h.NewContainer(t, "a", "net", bothPublished()...)
	serve(t, a.Netns, service)
	serve(t, u.Outside, service)
	expectTaken(t, h, u, a, true)

	const mark = "of no tunnel"
	seen, outside := h.NewTap(t, testutil.Uplink), u.Outside.NewTap(t, "bridge")
	inner := udpFrame(t, nobodysMAC, a.MAC, netip.AddrPortFrom(nobody4, service), netip.AddrPortFrom(a.IP4, service), mark)
	frame := inGRE(t, deviceMAC(t, h.Netns, testutil.Uplink), u.IP4, h.IP4, withKey(greKey), inner)
	h.ExpectDrops(t, "unknown_tunnel", func() { outside.Send(t, frame) })
	if p := seen.Receive(t, 0, func(p gopacket.Packet) bool { return strings.Contains(string(p.Data()), mark) }); p != nil {
		t.Errorf("what XDP drops is seen on the uplink:\n%s", p)
	}

	// All goes on by TC alone.
	h.Ebpnet(t, "load", "--xdp", "off")
	expectTaken(t, h, u, a, false)
}
