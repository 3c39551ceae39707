package test

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

var (
	nobodysMAC = net.HardwareAddr{2, 0, 0, 0, 0, 0x77}
	nobody4    = netip.MustParseAddr("172.30.0.77")
	nobody6    = netip.MustParseAddr("fd00:30::77")
)

// spoof is a frame that an attacker sends, and the reason why it is dropped.
type spoof struct {
	what   string
	reason string
	frame  []byte
}

func TestSpoofedSourcesAreDropped(t *testing.T) {
	h, _ := newOutside(t)
	createNet(t, h)
	a, b := h.NewContainer(t, "a", "net"), h.NewContainer(t, "b", "net")
	bystander := h.NewContainer(t, "bystander", "net")
	attacker := a.NewTap(t, testutil.Device)
	taps := []*testutil.Tap{b.NewTap(t, testutil.Device), bystander.NewTap(t, testutil.Device)}
	serve(t, b.Netns, service)

	const mark = "spoofed"
	udp := func(mac net.HardwareAddr, src, dst netip.Addr) []byte {
		return udpFrame(t, mac, b.MAC, netip.AddrPortFrom(src, 68), netip.AddrPortFrom(dst, service), mark)
	}
	spoofs := []spoof{
		{"the MAC of another", "spoofed_mac", udp(bystander.MAC, a.IP4, b.IP4)},
		{"nobody's MAC", "spoofed_mac", udp(nobodysMAC, a.IP4, b.IP4)},
		{"nobody's MAC, IPv6", "spoofed_mac", udp(nobodysMAC, a.IP6, b.IP6)},
		{"the address of another", "spoofed_address", udp(a.MAC, bystander.IP4, b.IP4)},
		{"the IPv6 address of another", "spoofed_address", udp(a.MAC, bystander.IP6, b.IP6)},
		{"nobody's address", "spoofed_address", udp(a.MAC, nobody4, b.IP4)},
		{"nobody's IPv6 address", "spoofed_address", udp(a.MAC, nobody6, b.IP6)},
		{"the gateway's address", "spoofed_address", udp(a.MAC, gateway4, b.IP4)},
		{"the gateway's IPv6 address", "spoofed_address", udp(a.MAC, gateway6, b.IP6)},
		{"the host's address", "spoofed_address", udp(a.MAC, h.IP4, b.IP4)},
		{"no address, and no DHCP", "spoofed_address", udp(a.MAC, netip.IPv4Unspecified(), b.IP4)},
		{"the link-local address of another", "spoofed_address", udp(a.MAC, linkLocal(b.MAC), b.IP6)},
		{"ARP answer for another", "spoofed_address", arp(t, layers.ARPReply, a.MAC, a.MAC, bystander.IP4, b.IP4)},
		{"ARP answer for the gateway", "spoofed_address", arp(t, layers.ARPReply, a.MAC, a.MAC, gateway4, b.IP4)},
		{"ARP request as another", "spoofed_address", arp(t, layers.ARPRequest, a.MAC, a.MAC, bystander.IP4, nobody4)},
		{"ARP with another's MAC inside", "spoofed_mac", arp(t, layers.ARPReply, a.MAC, bystander.MAC, a.IP4, b.IP4)},
		{"ARP with another's MAC outside", "spoofed_mac", arp(t, layers.ARPReply, bystander.MAC, a.MAC, a.IP4, b.IP4)},
		{"ND answer for another", "spoofed_address", advertisement(t, a.MAC, a.MAC, a.IP6, b.IP6)},
		{"ND answer for the gateway", "spoofed_address", advertisement(t, a.MAC, a.MAC, a.IP6, gateway6)},
		{"ND answer as another", "spoofed_address", advertisement(t, a.MAC, a.MAC, bystander.IP6, a.IP6)},
		{"ND question as another", "spoofed_address", solicitation(t, a.MAC, bystander.IP6, nobody6)},
		{"router advertisement", "rogue_router", nd(t, a.MAC, multicastMAC(netip.IPv6LinkLocalAllNodes()), linkLocal(a.MAC),
			netip.IPv6LinkLocalAllNodes(), layers.ICMPv6TypeRouterAdvertisement, &layers.ICMPv6RouterAdvertisement{HopLimit: 64, RouterLifetime: 1800})},
	}
	for _, s := range spoofs {
		h.ExpectDrops(t, s.reason, func() { attacker.Send(t, s.frame) })
		for _, tap := range taps {
			// What an honest container sends by itself (multicast listener
			// reports) may come in between.
			if p := tap.Receive(t, 0, func(p gopacket.Packet) bool { return string(p.Data()) == string(s.frame) }); p != nil {
				t.Errorf("%s gets through:\n%s", s.what, p)
			}
		}
	}

	// The same frames without a lie arrive.
	honest := udp(a.MAC, a.IP4, b.IP4)
	attacker.Send(t, honest)
	taps[0].Await(t, "an honest frame", func(p gopacket.Packet) bool { return string(p.Data()) == string(honest) })
	// Nobody learnt anything from the lies.
	pingAll(t, bystander, b)
	pingAll(t, b, a)
	if neighbors := b.Run(t, "ip", "neigh", "show", gateway4.String()); strings.Contains(neighbors, a.MAC.String()) {
		t.Errorf("the gateway has the attacker's MAC: %s", neighbors)
	}
}

func TestSpoofedSourcesReachNeitherHostNorOutside(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	a, b := h.NewContainer(t, "a", "net"), h.NewContainer(t, "b", "net")
	gatewayMAC := learnGateway(t, a)
	attacker := a.NewTap(t, testutil.Device)
	outside := u.Outside.NewTap(t, "bridge")
	for _, dst := range []netip.Addr{gateway4, u.IP4} {
		for _, src := range []netip.Addr{b.IP4, nobody4, h.IP4, u.IP4} {
			h.ExpectDrops(t, "spoofed_address", func() {
				attacker.Send(t, udpFrame(t, a.MAC, gatewayMAC, netip.AddrPortFrom(src, service), netip.AddrPortFrom(dst, service), "lie"))
			})
		}
	}
	isLie := func(p gopacket.Packet) bool {
		return p.TransportLayer() != nil && strings.HasSuffix(string(p.TransportLayer().LayerPayload()), "lie")
	}
	if p := outside.Receive(t, aMoment, isLie); p != nil {
		t.Errorf("the outside receives:\n%s", p)
	}
}

func TestHonestExceptionsPassTheGuard(t *testing.T) {
	h := newHost(t)
	createNet(t, h)
	a, b := h.NewContainer(t, "a", "net"), h.NewContainer(t, "b", "net")
	tap, peer := a.NewTap(t, testutil.Device), b.NewTap(t, testutil.Device)
	for what, frame := range map[string][]byte{
		"DHCP discover": udpFrame(t, a.MAC, layers.EthernetBroadcast,
			netip.AddrPortFrom(netip.IPv4Unspecified(), 68),
			netip.AddrPortFrom(netip.MustParseAddr("255.255.255.255"), 67), "discover"),
		"ARP probe":                arp(t, layers.ARPRequest, a.MAC, a.MAC, netip.IPv4Unspecified(), nobody4),
		"ARP announcement":         arp(t, layers.ARPRequest, a.MAC, a.MAC, a.IP4, a.IP4),
		"duplicate address search": solicitation(t, a.MAC, netip.IPv6Unspecified(), nobody6),
		"ND announcement":          advertisement(t, a.MAC, a.MAC, a.IP6, a.IP6),
		"router solicitation": nd(t, a.MAC, multicastMAC(netip.IPv6LinkLocalAllRouters()), netip.IPv6Unspecified(),
			netip.IPv6LinkLocalAllRouters(), layers.ICMPv6TypeRouterSolicitation, &layers.ICMPv6RouterSolicitation{}),
		"link-local source": udpFrame(t, a.MAC, b.MAC, netip.AddrPortFrom(linkLocal(a.MAC), service),
			netip.AddrPortFrom(linkLocal(b.MAC), service), "link-local"),
	} {
		tap.Send(t, frame)
		peer.Await(t, what, func(p gopacket.Packet) bool { return string(p.Data()) == string(frame) })
	}
}

// learnGateway gives the MAC that the container knows its gateway by.
func learnGateway(t *testing.T, c *testutil.Container) net.HardwareAddr {
	t.Helper()
	ping(t, c.Netns, gateway4)
	fields := strings.Fields(c.Run(t, "ip", "-4", "neigh", "show", gateway4.String(), "dev", testutil.Device))
	for i, f := range fields {
		if f == "lladdr" {
			mac, err := net.ParseMAC(fields[i+1])
			if err != nil {
				t.Fatal(err)
			}
			return mac
		}
	}
	t.Fatalf("the gateway has no MAC: %v", fields)
	return nil
}

// linkLocal is the address made from a MAC: RFC 4291, appendix A.
func linkLocal(mac net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{
		0: 0xfe, 1: 0x80,
		8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5],
	})
}
