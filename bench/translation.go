package main

import (
	"fmt"
	"net/netip"
)

// Addresses of the container, and outside, in TEST-NET-2, RFC 5737. Only over
// the wire has the outside a route to the container: elsewhere what is not
// translated does not come back.
var (
	containerAddr = netip.MustParseAddr("192.0.2.4")
	uplinkAddr    = netip.MustParseAddr("198.51.100.1")
	outsideAddr   = netip.MustParseAddr("198.51.100.2")
)

// portCounts are the numbers of published ports to compare.
func portCounts() []int { return []int{10, 1_000, 10_000} }

// translator is a host between one container and the outside.
type translator struct {
	kind, about string
	// build publishes as many ports and gives the two namespaces.
	build func(l *lab, published int) (container, outside string)
}

func routed() translator {
	return translator{wire, "routed by a host that translates nothing", buildRouted}
}

func translators() []translator {
	return []translator{
		{iptables, "Docker's bridge and iptables rules", buildIptables},
		{nftables, "Docker's bridge and nftables rules", buildNftables},
		{ebpnet, "an endpoint of an ebpnet network", buildTranslating},
	}
}

func toOutside() []topology {
	var all []topology
	for _, t := range append([]translator{routed()}, translators()...) {
		all = append(all, topology{
			name: outside + "-" + t.kind, about: t.about, family: outside, kind: t.kind,
			build: func(l *lab) path {
				container, beyond := t.build(l, 0)
				return path{client: container, server: beyond, dial: netip.AddrPortFrom(outsideAddr, serverPort)}
			},
		})
	}
	return all
}

func toPorts() []topology {
	bare := routed()
	all := []topology{{
		name: port + "-" + bare.kind, about: bare.about, family: port, kind: bare.kind,
		build: func(l *lab) path {
			container, beyond := bare.build(l, 0)
			return path{client: beyond, server: container, dial: netip.AddrPortFrom(containerAddr, serverPort)}
		},
	}}
	for _, n := range portCounts() {
		for _, t := range translators() {
			all = append(all, topology{
				name: fmt.Sprintf("%s-%s-%d", port, t.kind, n), about: t.about, family: port, kind: t.kind, ports: n,
				build: func(l *lab) path {
					container, beyond := t.build(l, n)
					return path{client: beyond, server: container, dial: netip.AddrPortFrom(uplinkAddr, publishedPort)}
				},
			})
		}
	}
	return all
}

// uplink joins a host with the outside and gives the outside's namespace.
func (l *lab) uplink(host string) string {
	beyond := l.netns("outside")
	l.veth(host, "up0", beyond, "eth0")
	l.address(host, "up0", uplinkAddr)
	l.address(beyond, "eth0", outsideAddr)
	return beyond
}

func buildRouted(l *lab, _ int) (string, string) {
	host, container := l.netns("host"), l.netns("container")
	beyond := l.uplink(host)
	l.veth(container, "eth0", host, "veth-container")
	l.address(container, "eth0", containerAddr)
	l.address(host, "veth-container", gatewayAddr)
	l.run("ip", "-n", container, "route", "add", "default", "via", gatewayAddr.String())
	l.run("ip", "-n", beyond, "route", "add", subnet.String(), "via", uplinkAddr.String())
	l.in(host, "sysctl", "-qw", "net.ipv4.ip_forward=1")
	return container, beyond
}

func buildIptables(l *lab, published int) (string, string) {
	host := l.dockerHost()
	l.runWith(dockerRules, inNetns(host, "iptables-restore")...)
	l.runWith(portRules(publications(published)), inNetns(host, "iptables-restore", "--noflush")...)
	return l.plug(host, "container", containerAddr), l.uplink(host)
}

func buildNftables(l *lab, published int) (string, string) {
	host := l.dockerHost()
	l.runWith(nftablesRules(publications(published)), inNetns(host, "nft", "-f", "-")...)
	return l.plug(host, "container", containerAddr), l.uplink(host)
}

func buildTranslating(l *lab, published int) (string, string) { return translating(l, published) }

// translating publishes the measured port last, as the others do, and those
// before it as one range. It passes on more arguments of load.
func translating(l *lab, published int, load ...string) (string, string) {
	host, container := l.netns("host"), l.netns("container")
	beyond := l.uplink(host)
	ebpnet := l.ebpnet(host, append([]string{"--uplink", "up0"}, load...)...)
	ebpnet("network", "create", "bench", "--subnet", subnet.String(), "--gateway", gatewayAddr.String())
	ebpnet("endpoint", "add", "server", "--network", "bench", "--netns", container, "--ip", containerAddr.String())
	if published > 0 {
		fillers := fmt.Sprintf("%d-%d", fillerPort, fillerPort+published-measuredPorts-1)
		ebpnet("port", "add", "server", fillers+":"+fillers+"/tcp")
		for _, proto := range []string{"udp", "tcp"} {
			ebpnet("port", "add", "server", fmt.Sprintf("%d:%d/%s", publishedPort, serverPort, proto))
		}
	}
	return container, beyond
}
