package test

import (
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// What has outer headers already, and what is longer than an Ethernet's, on its
// way into a tunnel.

func TestContainersOwnOverlayIsCarried(t *testing.T) {
	for _, options := range [][]string{nil, {"--csum", "--seq"}} {
		t.Run(strings.Join(options, " "), func(t *testing.T) {
			m := newMesh(t, false, true)
			a, b := m.containers[0], m.containers[1]
			for i := range 2 {
				m.hosts[i].Ebpnet(t, "tunnel", "rm", meshNames[1-i])
				m.addTunnel(t, i, 1-i, options...)
			}
			// Of VXLAN the kernel leaves the inner checksums to the device.
			for _, end := range []struct {
				in, peer *testutil.Container
				address  string
			}{{a, b, "198.51.100.1/24"}, {b, a, "198.51.100.2/24"}} {
				end.in.Run(t, "ip", "link", "add", "vx0", "type", "vxlan", "id", "5", "dstport", "4789",
					"local", end.in.IP4.String(), "remote", end.peer.IP4.String(), "dev", testutil.Device)
				end.in.Run(t, "ip", "addr", "add", end.address, "dev", "vx0")
				end.in.Run(t, "ip", "link", "set", "vx0", "up")
			}
			inside := netip.MustParseAddr("198.51.100.2")
			ping(t, a.Netns, inside)
			iperf(t, a.Netns, b.Netns, inside)
			iperf(t, a.Netns, b.Netns, inside, "--reverse")
		})
	}
}

// On an underlay of jumbo frames, also what takes the detour goes through.
func TestJumboFramesAreCarried(t *testing.T) {
	for _, options := range [][]string{nil, {"--csum"}} {
		t.Run(strings.Join(options, " "), func(t *testing.T) {
			const jumbo = "9000"
			m := newMesh(t, false, true)
			a, b := m.containers[0], m.containers[1]
			for i := range 2 {
				m.hosts[i].Ebpnet(t, "tunnel", "rm", meshNames[1-i])
				m.addTunnel(t, i, 1-i, options...)
			}
			for i, h := range m.hosts {
				m.underlay.Outside.Run(t, "ip", "link", "set", "port"+strconv.Itoa(i+1), "mtu", jumbo)
				h.Run(t, "ip", "link", "set", testutil.Uplink, "mtu", jumbo)
				h.Ebpnet(t, "load")
			}
			m.underlay.Outside.Run(t, "ip", "link", "set", "bridge", "mtu", jumbo)
			large := []string{"-M", "do", "-s", "8000"}
			pingWith := func(what string) {
				t.Helper()
				t.Log(what)
				ping(t, a.Netns, b.IP4, large...)
				ping(t, b.Netns, a.IP6, large...)
			}
			pingWith("to who is asked for")
			for _, h := range m.hosts {
				h.Ebpnet(t, "fdb", "flush")
			}
			pingWith("to who was forgotten, by flooding")
		})
	}
}

func TestLostTunnelAddressIsTold(t *testing.T) {
	h, _ := newOutside(t)
	h.Ebpnet(t, "tunnel", "add", "lost", "--remote", "192.0.2.77")
	expect := func(told bool) {
		t.Helper()
		_, stderr, code := h.TryEbpnet("load")
		if code != 0 || strings.Contains(stderr, "tunnel=lost") != told {
			t.Errorf("load exits with %d and says %q", code, stderr)
		}
	}
	address := h.IP4.String() + "/24"
	expect(false)
	h.Run(t, "ip", "addr", "add", "192.0.2.51/24", "dev", testutil.Uplink)
	h.Run(t, "ip", "addr", "del", address, "dev", testutil.Uplink)
	expect(true)
	h.Run(t, "ip", "addr", "add", address, "dev", testutil.Uplink)
	expect(false)
}
