package test

import (
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// Endpoints behind which there are others: a host of virtual machines, or
// containers in a container.

// nest makes a namespace behind an endpoint, joined to it by the kind of
// device, with the last number id in both subnets of "net" and its gateways.
type nest func(t *testing.T, trunk *testutil.Container, name string, id int) *testutil.Container

// bridged joins it to a Linux bridge, of which the endpoint's interface is a
// port. The bridge has the endpoint's MAC and addresses then.
func bridged(t *testing.T, trunk *testutil.Container, name string, id int) *testutil.Container {
	t.Helper()
	const bridge = "br0"
	if _, err := trunk.Try("ip", "link", "show", bridge); err != nil {
		trunk.Run(t, "ip", "link", "add", bridge, "address", trunk.MAC.String(), "type", "bridge", "forward_delay", "0", "mcast_snooping", "0")
		trunk.SetSysctl(t, "ipv6/conf/"+bridge+"/accept_dad", "0")
		trunk.Run(t, "ip", "link", "set", bridge, "mtu", fmt.Sprint(linkMTU(t, trunk.Netns, testutil.Device)), "up")
		trunk.Run(t, "ip", "addr", "flush", "dev", testutil.Device)
		trunk.Run(t, "ip", "link", "set", testutil.Device, "master", bridge)
		configure(t, trunk.Netns, bridge, trunk.IP4, trunk.IP6)
	}
	n := testutil.NewNetns(t, name)
	port := "to-" + name
	testutil.Wire(t, trunk.Netns, port, nil, n, testutil.Device, nil)
	trunk.Run(t, "ip", "link", "set", port, "master", bridge)
	return nested(t, trunk, n, id)
}

// macvlan gives it a MAC of its own on the endpoint's interface.
func macvlan(t *testing.T, trunk *testutil.Container, name string, id int) *testutil.Container {
	t.Helper()
	n := testutil.NewNetns(t, name)
	trunk.Run(t, "ip", "link", "add", testutil.Device, "netns", n.Name, "link", testutil.Device, "type", "macvlan", "mode", "bridge")
	n.Run(t, "ip", "link", "set", testutil.Device, "up")
	return nested(t, trunk, n, id)
}

func nested(t *testing.T, trunk *testutil.Container, n *testutil.Netns, id int) *testutil.Container {
	t.Helper()
	c := &testutil.Container{
		Netns: n, MAC: deviceMAC(t, n, testutil.Device),
		IP4: netip.MustParseAddr(fmt.Sprintf("172.30.0.%d", id)), IP6: netip.MustParseAddr(fmt.Sprintf("fd00:30::%x", id)),
	}
	n.Run(t, "ip", "link", "set", "lo", "up")
	n.Run(t, "ip", "link", "set", testutil.Device, "mtu", fmt.Sprint(linkMTU(t, trunk.Netns, testutil.Device)))
	configure(t, n, testutil.Device, c.IP4, c.IP6)
	return c
}

// configure gives a device addresses on "net", and routes to its gateways.
func configure(t *testing.T, n *testutil.Netns, device string, ip4, ip6 netip.Addr) {
	t.Helper()
	n.Run(t, "ip", "addr", "add", netip.PrefixFrom(ip4, 24).String(), "dev", device)
	n.Run(t, "ip", "addr", "add", netip.PrefixFrom(ip6, 64).String(), "dev", device, "nodad")
	n.Run(t, "ip", "route", "replace", "default", "via", gateway4.String(), "dev", device)
	n.Run(t, "ip", "-6", "route", "replace", "default", "via", gateway6.String(), "dev", device)
}

var nests = []struct {
	name string
	make nest
}{{"bridge", bridged}, {"macvlan", macvlan}}

func TestNestedContainersReachEverybody(t *testing.T) {
	for _, kind := range nests {
		t.Run(kind.name, func(t *testing.T) {
			m := newMesh(t, false, true)
			a, u := m.hosts[0], m.underlay
			expectNoContainerAddress(t, u)
			trunk := m.newContainer(t, 0, "trunk", "net", 50, "--trunk")
			first, second := kind.make(t, trunk, "first", 51), kind.make(t, trunk, "second", 52)
			serve(t, u.Outside, service)
			for _, c := range append(m.containers, first) {
				serve(t, c.Netns, service)
			}

			pingAll(t, first, second)
			for _, inside := range []*testutil.Container{first, second} {
				for _, other := range m.containers { // here and on other hosts
					pingAll(t, inside, other)
					pingAll(t, other, inside)
				}
				for i, gateway := range []netip.Addr{gateway4, gateway6} {
					path := paths(a, u)[i]
					ping(t, inside.Netns, gateway)
					ping(t, inside.Netns, path.outside)
					for _, network := range protocols {
						sees(t, inside.Netns, network, at(path.outside, service), path.host)
					}
				}
			}
			for _, address := range first.Addresses() {
				ping(t, a.Netns, address) // the host asks for it
				for _, from := range []*testutil.Netns{m.containers[0].Netns, m.containers[1].Netns, a.Netns} {
					for _, network := range protocols {
						connects(t, from, network, at(address, service))
					}
				}
			}
			for i, address := range m.containers[1].Addresses() {
				for _, network := range protocols {
					sees(t, first.Netns, network, at(address, service), first.Addresses()[i])
				}
				carries(t, first.Netns, m.containers[1].Netns, address, "--bytes", "8M")
				carries(t, first.Netns, m.containers[1].Netns, address, "--bytes", "8M", "--reverse")
			}
			carries(t, first.Netns, u.Outside, u.IP4, "--bytes", "8M")
			carries(t, first.Netns, u.Outside, u.IP6, "--bytes", "8M", "--reverse")

			for _, s := range learnedStations(t, a) {
				if s.MAC == first.MAC.String() && s.Endpoint != "trunk" {
					t.Errorf("learned at the wrong place: %+v", s)
				}
			}
			expectLearned(t, m.hosts[1], first.MAC, "a")
			expectLearned(t, m.hosts[1], second.MAC, "a")
		})
	}
}

// Without --trunk an endpoint is alone behind its interface.
func TestNothingIsNestedWithoutTrunk(t *testing.T) {
	for _, kind := range nests {
		t.Run(kind.name, func(t *testing.T) {
			h, u := newOutside(t)
			createNet(t, h)
			other := h.NewContainer(t, "other", "net", addressArgs("net", 10)...)
			plain := h.NewContainer(t, "plain", "net", addressArgs("net", 50)...)
			inside := kind.make(t, plain, "inside", 51)
			for _, to := range []netip.Addr{other.IP4, other.IP6, gateway4, gateway6, u.IP4, u.IP6} {
				noPing(t, h, "spoofed_mac", inside.Netns, to)
			}
			if list := learnedStations(t, h); len(list) != 0 {
				t.Errorf("learned: %+v", list)
			}
			if kind.name == "bridge" {
				pingAll(t, plain, other)
			}
		})
	}
}

// Those behind a trunk may be anybody but who is known to be elsewhere, and
// no router.
func TestNestedContainersCannotImpersonate(t *testing.T) {
	m := newMesh(t, false, true)
	a := m.hosts[0]
	trunk := m.newContainer(t, 0, "trunk", "net", 50, "--trunk")
	inside := bridged(t, trunk, "inside", 51)
	here, known := m.containers[0], m.newContainer(t, 0, "known", "net", 11)
	farMAC, far4 := net.HardwareAddr{2, 0, 0, 0, 0, 0x60}, netip.MustParseAddr("172.30.0.60")
	a.Ebpnet(t, "endpoint", "add", "far", "--network", "net", "--tunnel", "b", "--ip", far4.String(), "--mac", farMAC.String())
	gatewaysMAC := gatewayMAC(t, a)
	attacker := inside.NewTap(t, testutil.Device)
	taps := []*testutil.Tap{here.NewTap(t, testutil.Device), m.containers[1].NewTap(t, testutil.Device)}

	const mark = "spoofed"
	udp := func(mac net.HardwareAddr, src netip.Addr) []byte {
		dst := here.IP4
		if src.Is6() {
			dst = here.IP6
		}
		return udpFrame(t, mac, here.MAC, netip.AddrPortFrom(src, service), netip.AddrPortFrom(dst, service), mark)
	}
	for _, s := range []spoof{
		{"a container's MAC", "spoofed_mac", udp(known.MAC, inside.IP4)},
		{"a container's MAC and address", "spoofed_mac", udp(known.MAC, known.IP4)},
		{"a remote container's MAC", "spoofed_mac", udp(farMAC, inside.IP4)},
		{"the gateway's MAC", "spoofed_mac", udp(gatewaysMAC, inside.IP4)},
		{"a container's address", "spoofed_address", udp(inside.MAC, known.IP4)},
		{"a container's IPv6 address", "spoofed_address", udp(inside.MAC, known.IP6)},
		{"a container's link-local address", "spoofed_address", udp(inside.MAC, linkLocal(known.MAC))},
		{"a remote container's address", "spoofed_address", udp(inside.MAC, far4)},
		{"the gateway's address", "spoofed_address", udp(inside.MAC, gateway4)},
		{"the gateway's IPv6 address", "spoofed_address", udp(inside.MAC, gateway6)},
		{"ARP answer for a container", "spoofed_address", arp(t, layers.ARPReply, inside.MAC, inside.MAC, known.IP4, here.IP4)},
		{"ARP answer for the gateway", "spoofed_address", arp(t, layers.ARPReply, inside.MAC, inside.MAC, gateway4, here.IP4)},
		{"ARP with another's MAC inside", "spoofed_mac", arp(t, layers.ARPReply, inside.MAC, known.MAC, inside.IP4, here.IP4)},
		{"ND answer for a container", "spoofed_address", advertisement(t, inside.MAC, inside.MAC, inside.IP6, known.IP6)},
		{"ND answer for the gateway", "spoofed_address", advertisement(t, inside.MAC, inside.MAC, inside.IP6, gateway6)},
		{"a router", "rogue_router", nd(t, inside.MAC, multicastMAC(netip.IPv6LinkLocalAllNodes()), linkLocal(inside.MAC),
			netip.IPv6LinkLocalAllNodes(), layers.ICMPv6TypeRouterAdvertisement, &layers.ICMPv6RouterAdvertisement{HopLimit: 64, RouterLifetime: 1800})},
	} {
		a.ExpectDrops(t, s.reason, func() { attacker.Send(t, s.frame) })
		for _, tap := range taps {
			if f := tap.Receive(t, 0, func(p gopacket.Packet) bool { return string(p.Data()) == string(s.frame) }); f != nil {
				t.Errorf("%s gets through:\n%s", s.what, f)
			}
		}
	}
	// Nobody who is known has come to be learned, and all go on.
	for _, s := range learnedStations(t, a) {
		if s.MAC == known.MAC.String() || s.MAC == farMAC.String() || s.MAC == gatewaysMAC.String() {
			t.Errorf("learned: %+v", s)
		}
	}
	attacker.Send(t, udp(inside.MAC, inside.IP4))
	taps[0].Await(t, "an honest frame", isDatagram(mark))
	pingAll(t, inside, here)
	pingAll(t, here, known)

	a.Ebpnet(t, "endpoint", "rm", "trunk")
	for _, s := range learnedStations(t, a) {
		if s.Endpoint != "" {
			t.Errorf("the trunk has gone, and this is still learned: %+v", s)
		}
	}
}
