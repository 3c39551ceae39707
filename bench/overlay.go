package main

import (
	"fmt"
	"net/netip"
	"strconv"
)

// underlayDevice joins the hosts of the families of two hosts.
const underlayDevice = "up0"

// overlayKey tells the network from others on the wire: a GRE key, a VNI.
const overlayKey = 42

// What the headers of an overlay, and the inner Ethernet header, leave of an
// underlay's 1500 bytes: 20 of IPv4, 8 of GRE with a key or 16 of UDP and
// VXLAN, 14.
const (
	mtuInGRE   = 1458
	mtuInVXLAN = 1450
)

// vxlanPort is VXLAN's, RFC 7348.
const vxlanPort = 4789

// Over the wire, where hosts route, the server is in a network of its own:
// TEST-NET-3, RFC 5737.
var (
	routedServerAddr  = netip.MustParseAddr("203.0.113.3")
	routedGatewayAddr = netip.MustParseAddr("203.0.113.1")
)

func acrossHosts() []topology {
	return []topology{
		{family: overlay, name: "overlay-wire", about: "two hosts that route and do nothing else", kind: wire, build: buildOverlayWire},
		{family: overlay, name: "overlay-ebpnet", about: "an ebpnet network in GRE, endpoints known to both hosts", kind: ebpnet, build: buildKnown},
		{family: overlay, name: "overlay-ebpnet-learned", about: "the same, where the hosts have to learn", kind: ebpnet, build: buildLearned},
		{family: overlay, name: "overlay-vxlan", about: "the kernel's VXLAN and a Linux bridge on each host", kind: vxlan, build: buildVXLAN},
		{family: overlay, name: "overlay-vxlan-bare", about: "the same, and the bridge shows its packets to no iptables", kind: bare, build: buildBareVXLAN},
		{family: overlay, name: "overlay-ovs", about: "Open vSwitch on each host, GRE by its userspace datapath", kind: ovs, build: buildOVS},
	}
}

// side is one of two hosts, and the container on it.
type side struct {
	host, container string     // namespaces
	underlay        netip.Addr // the host's
	addr            netip.Addr // the container's
	mac             string     // the container's, where it is told
	name            string     // of the container as an endpoint
}

// sides are two hosts, the client's and the server's.
type sides [2]side

// each does the same for both sides.
func (s sides) each(do func(here, there side)) {
	do(s[0], s[1])
	do(s[1], s[0])
}

func (s sides) path() path {
	return path{
		client: s[0].container, server: s[1].container,
		dial: netip.AddrPortFrom(s[1].addr, serverPort),
	}
}

// sides makes two hosts, joined by the underlay, and a container beside each.
// The underlay has no addresses yet.
func (l *lab) sides() sides {
	s := sides{
		{l.netns("near"), l.netns("client"), uplinkAddr, clientAddr, "02:00:5e:00:00:02", "client"},
		{l.netns("far"), l.netns("server"), outsideAddr, serverAddr, "02:00:5e:00:00:03", "server"},
	}
	l.veth(s[0].host, underlayDevice, s[1].host, underlayDevice)
	return s
}

// containerDevice is the host's end of the veth to its container.
const containerDevice = "veth-container"

// buildOverlayWire makes two hosts that route, as those of the other wires.
func buildOverlayWire(l *lab) path {
	s := l.sides()
	s[1].addr = routedServerAddr
	gateways := map[string]netip.Addr{s[0].host: gatewayAddr, s[1].host: routedGatewayAddr}
	s.each(func(here, there side) {
		gateway := gateways[here.host]
		l.address(here.host, underlayDevice, here.underlay)
		l.veth(here.container, "eth0", here.host, containerDevice)
		l.address(here.container, "eth0", here.addr)
		l.address(here.host, containerDevice, gateway)
		l.run("ip", "-n", here.container, "route", "add", "default", "via", gateway.String())
		l.in(here.host, "sysctl", "-qw", "net.ipv4.ip_forward=1")
	})
	s.each(func(here, there side) {
		l.run("ip", "-n", here.host, "route", "add", there.addr.String(), "via", there.underlay.String())
	})
	return s.path()
}

func buildVXLAN(l *lab) path {
	s := l.sides()
	s.each(func(here, there side) { l.vxlan(here, "remote", there.underlay.String()) })
	return s.path()
}

func buildBareVXLAN(l *lab) path {
	s := l.sides()
	s.each(func(here, there side) {
		l.vxlan(here, "remote", there.underlay.String())
		if bridgeNetfilter() {
			l.in(here.host, "sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=0",
				"net.bridge.bridge-nf-call-ip6tables=0", "net.bridge.bridge-nf-call-arptables=0")
		}
	})
	return s.path()
}

// vxlan makes a side with a bridge, the container on it and VXLAN, to which
// more arguments may be given.
func (l *lab) vxlan(here side, more ...string) {
	l.address(here.host, underlayDevice, here.underlay)
	// With snooping the bridge would send reports of its own into a flood.
	l.run("ip", "-n", here.host, "link", "add", "bridge", "type", "bridge", "mcast_snooping", "0")
	if bridgeNetfilter() {
		l.in(here.host, "sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1")
	}
	l.run(append([]string{
		"ip", "-n", here.host, "link", "add", "vxlan", "type", "vxlan", "id", strconv.Itoa(overlayKey),
		"local", here.underlay.String(), "dev", underlayDevice, "dstport", strconv.Itoa(vxlanPort),
	}, more...)...)
	l.overlaid(here, mtuInVXLAN)
	for _, device := range []string{"vxlan", containerDevice} {
		l.run("ip", "-n", here.host, "link", "set", device, "master", "bridge", "up")
	}
	l.run("ip", "-n", here.host, "link", "set", "bridge", "up")
}

// overlaid makes the veth to a side's container, whose packets fit the overlay.
func (l *lab) overlaid(here side, mtu int) {
	l.veth(here.container, "eth0", here.host, containerDevice)
	l.address(here.container, "eth0", here.addr)
	l.run("ip", "-n", here.container, "link", "set", "eth0", "mtu", strconv.Itoa(mtu))
}

func buildKnown(l *lab) path {
	s := l.sides()
	s.each(func(here, there side) {
		ebpnet := l.tunnelled(here, there, subnet, gatewayAddr)
		tellOf(ebpnet, there)
	})
	return s.path()
}

func buildLearned(l *lab) path {
	s := l.sides()
	s.each(func(here, there side) { l.tunnelled(here, there, subnet, gatewayAddr) })
	return s.path()
}

// tunnelled makes a side with ebpnet: a network with the container as its
// endpoint, and a tunnel to the other side, the first of their kinds. It gives
// what runs ebpnet there.
func (l *lab) tunnelled(here, there side, subnet netip.Prefix, gateway netip.Addr) func(args ...string) bool {
	l.address(here.host, underlayDevice, here.underlay)
	ebpnet := l.ebpnet(here.host, "--uplink", underlayDevice)
	ebpnet("network", "create", "bench", "--subnet", subnet.String(), "--gateway", gateway.String(),
		"--key", strconv.Itoa(overlayKey))
	ebpnet("tunnel", "add", there.name, "--remote", there.underlay.String())
	ebpnet("endpoint", "add", here.name, "--network", "bench", "--netns", here.container,
		"--ip", here.addr.String(), "--mac", here.mac)
	return ebpnet
}

// tellOf makes the other side's endpoint known.
func tellOf(ebpnet func(args ...string) bool, there side) {
	ebpnet("endpoint", "add", there.name, "--network", "bench", "--tunnel", there.name,
		"--ip", there.addr.String(), "--mac", there.mac)
}

// buildOVS makes Open vSwitch as its documentation of userspace tunnels has
// it: a bridge with the containers and the tunnel, and one with the underlay
// and the host's address there.
func buildOVS(l *lab) path {
	s := l.sides()
	s.each(func(here, there side) {
		l.overlaid(here, mtuInGRE)
		// This datapath takes packets as they are: neither checksums nor
		// cutting can be left to a device.
		l.in(here.container, "ethtool", "-K", "eth0", "tx", "off")
		// What Open vSwitch has got, the host's own stack must not look at too.
		for _, device := range []string{underlayDevice, containerDevice} {
			l.dropIngress(here.host, device)
		}
		vsctl := l.openVSwitch(here.host)
		vsctl("add-br", "br-phy", "--", "set", "bridge", "br-phy", "datapath_type=netdev",
			"--", "add-port", "br-phy", underlayDevice,
			"--", "add-br", "br-int", "--", "set", "bridge", "br-int", "datapath_type=netdev",
			"--", "add-port", "br-int", containerDevice,
			"--", "add-port", "br-int", "gre", "--", "set", "interface", "gre", "type=gre",
			"options:remote_ip="+there.underlay.String(), fmt.Sprintf("options:key=%d", overlayKey))
		l.address(here.host, "br-phy", here.underlay)
		l.run("ip", "-n", here.host, "link", "set", "br-phy", "up")
	})
	p := s.path()
	p.daemons = l.daemons
	return p
}
