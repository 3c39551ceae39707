//go:build kernels

package test

import (
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// The kernel's own GRE device is at the other end of the tunnel. Its host is
// itself the station behind the tunnel.
func TestGREDeviceOfTheKernel(t *testing.T) {
	const device, mac = "gre1", "02:00:00:00:00:20" // each device has the MAC: it is one station
	t.Parallel()
	h, peer := testutil.NewHost(t, "a"), testutil.NewHost(t, "peer")
	u := testutil.NewUnderlay(t, h, peer)
	// A wire completes the checksum of GRE, a veth leaves it out.
	fillChecksums(t, peer.Netns, testutil.Uplink)
	h.Ebpnet(t, "load", "--uplink", testutil.Uplink)
	createNet(t, h, "--key", keyed.key)
	h.Ebpnet(t, "tunnel", "add", "elsewhere", "--remote", u.IP4.String())
	web := h.NewContainer(t, "web", "net", "--ip", "172.30.0.10", "--ip", "fd00:30::10")
	far := &testutil.Container{
		Netns: peer.Netns, IP4: netip.MustParseAddr("172.30.0.20"), IP6: netip.MustParseAddr("fd00:30::20"),
	}
	serve(t, web.Netns, service)
	serve(t, far.Netns, service)
	for _, f := range []form{
		{name: "key", headers: 42},
		{name: "checksums", tunnel: []string{"--csum"}, options: []string{"csum"}, headers: 46},
		{name: "checksums and sequence numbers", tunnel: []string{"--csum", "--seq"}, options: []string{"csum", "seq"}, headers: 50},
		{name: "IPv6", v6: true, headers: 62},
	} {
		kind, local, remote := "gretap", h.IP4, peer.IP4
		if f.v6 {
			kind, local, remote = "ip6gretap", h.IP6, peer.IP6
		}
		t.Log(f.name)
		h.Ebpnet(t, append([]string{"tunnel", "add", "peer", "--local", local.String(), "--remote", remote.String()}, f.tunnel...)...)
		add := []string{"link", "add", device, "address", mac, "type", kind, "local", remote.String(), "remote", local.String(), "key", keyed.key}
		if f.v6 {
			add = append(add, "encaplimit", "none")
		}
		peer.Run(t, "ip", append(add, f.options...)...)
		peer.Run(t, "ip", "link", "set", device, "up", "mtu", strconv.Itoa(underlayMTU-f.headers))
		for _, address := range []string{far.IP4.String() + "/24", far.IP6.String() + "/64"} {
			peer.Run(t, "ip", "addr", "add", address, "dev", device, "nodad")
		}
		expectMTU(t, web, underlayMTU-f.headers)

		for i, address := range far.Addresses() {
			header := 20 + 8 // IP and ICMP echo
			if address.Is6() {
				header = 40 + 8
			}
			largest := strconv.Itoa(underlayMTU - f.headers - header)
			for _, way := range []struct {
				from *testutil.Netns
				to   netip.Addr
			}{{web.Netns, address}, {far.Netns, web.Addresses()[i]}} {
				ping(t, way.from, way.to, "-M", "do", "-s", largest)
				ping(t, way.from, way.to, "-s", "4000")
				for _, network := range protocols {
					connects(t, way.from, network, at(way.to, service))
				}
			}
		}
		h.Ebpnet(t, "tunnel", "rm", "peer")
		if !f.v6 { // there is no other tunnel of that family
			noPing(t, h, "unknown_tunnel", far.Netns, web.IP4)
		}
		peer.Run(t, "ip", "link", "del", device)
	}
	if neighbors := web.Run(t, "ip", "neigh", "show", "dev", testutil.Device); !strings.Contains(neighbors, far.IP4.String()) {
		t.Errorf("%s is no neighbor: %s", far.IP4, neighbors)
	}
}
