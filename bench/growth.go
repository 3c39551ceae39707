package main

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/ebpnet/ebpnet/internal/spec"
)

// Names of the families: what there is ever more of.
const (
	moreEndpoints = "growth-endpoints"
	moreLinks     = "growth-links"
	morePorts     = "growth-ports"
	moreFlows     = "growth-flows"
)

// Names of the measures.
const (
	loading      = "load_again"
	reconciling  = "reconcile"
	adding       = "add_one"
	tableMemory  = "tables"
	serverMemory = "serve_peak"
)

// growthFamilies have a table each, as each has a smallest population that the
// others are compared with.
func growthFamilies() []family {
	var all []family
	for _, f := range []struct{ name, about string }{
		{moreEndpoints, "between two containers of a host with so many endpoints"},
		{moreLinks, "between two containers of a host with ICC off and so many links"},
		{morePorts, "from outside to a container of a host with so many published ports"},
		{moreFlows, "from a container to the outside, masqueraded, beside so many live flows"},
	} {
		measures := append([]string{requests, connections, datagrams}, growthNames()...)
		all = append(all, family{f.name, f.about, []string{few}, measures})
	}
	return all
}

func growthNames() []string {
	var names []string
	for _, m := range growthMeasures() {
		names = append(names, m.name)
	}
	return names
}

// growthMeasures are what a population costs besides the packets'.
func growthMeasures() []measure {
	all := []measure{
		{name: loading, unit: "ms", about: "of 'ebpnet load' where all is loaded", take: takeLoad},
		{name: reconciling, unit: "ms", about: "of a command that looks through everything, and finds nothing to do", take: takeReconcile},
		{name: adding, unit: "ms", about: "of the command that adds one more", take: takeAdding},
		{name: tableMemory, unit: "MiB", about: "memory of all tables", take: takeTables},
		{name: serverMemory, unit: "MiB", about: "most memory of 'ebpnet serve' until it has looked through everything", take: takePeak},
	}
	for i := range all {
		all[i].lessIsBetter = true
	}
	return all
}

// toGrowth is every population, in a host that is the same in all else.
func toGrowth() []topology {
	var all []topology
	for _, c := range []struct {
		family, name, about, kind string
		crowd                     crowd
	}{
		{moreEndpoints, "growth-endpoints-10", "10 endpoints: the two, the others remote", few, crowd{remote: 8}},
		{moreEndpoints, "growth-local-1000", "1,000 endpoints, all with interfaces on the host", ebpnet, crowd{local: 998}},
		{moreEndpoints, "growth-endpoints-10000", "10,000 endpoints: the two, the others remote", ebpnet, crowd{remote: 9_998}},
		{moreLinks, "growth-links-10", "10 links, 448 remote endpoints for their ends", few, crowd{remote: linkEnds, links: 9}},
		{moreLinks, "growth-links-50000", "50,000 links between as many endpoints", ebpnet, crowd{remote: linkEnds, links: 49_999}},
		{morePorts, "growth-ports-10", "10 published ports", few, crowd{ports: 8}},
		{morePorts, "growth-ports-10000", "10,000 published ports, each by itself", ebpnet, crowd{ports: 9_998}},
		{moreFlows, "growth-flows-1000", "1,000 flows", few, crowd{flows: 1_000}},
		{moreFlows, "growth-flows-16000", "16,000 flows", ebpnet, crowd{flows: 16_000}},
		{moreFlows, "growth-flows-256000", "256,000 flows, where there is room for 262,144", ebpnet, crowd{flows: 256_000}},
	} {
		all = append(all, topology{
			name: c.name, about: c.about, family: c.family, kind: c.kind,
			build: func(l *lab) path { return buildGrown(l, c.family, c.crowd) },
		})
	}
	return all
}

// growthDuration keeps it short, of so many topologies.
const growthDuration = 250 * time.Millisecond

// grown is a host with a crowd, and how it gets one more of its kind.
type grown struct {
	host        string // namespace
	add, remove []string
}

// buildGrown makes a host with a crowd, two endpoints beside it and an outside,
// and gives the way that the family is about.
func buildGrown(l *lab, family string, c crowd) path {
	host, client, server := l.netns("host"), l.netns("client"), l.netns("server")
	beyond := l.uplink(host)
	// Flows are there for as long as rounds go on.
	ebpnet := l.ebpnet(host, "--uplink", "up0", "--timeout", "udp-answered=24h")
	icc := fmt.Sprintf("--icc=%t", family != moreLinks)
	ebpnet("network", "create", crowdNetwork, "--subnet", scaleSubnet.String(), "--gateway", scaleGateway.String(),
		"--key", fmt.Sprint(overlayKey), icc)
	ebpnet("tunnel", "add", crowdTunnel, "--remote", outsideAddr.String())
	ebpnet("endpoint", "add", "client", "--network", crowdNetwork, "--netns", client, "--ip", scaleClient.String())
	ebpnet("endpoint", "add", "server", "--network", crowdNetwork, "--netns", server, "--ip", scaleServer.String())

	g := &grown{host: host}
	p := path{client: client, server: server, dial: netip.AddrPortFrom(scaleServer, serverPort), grown: g, atMost: growthDuration}
	more := crowdAddress(c.remote + c.local)
	g.add = []string{
		"endpoint", "add", "more", "--network", crowdNetwork, "--tunnel", crowdTunnel,
		"--ip", more.String(), "--mac", "02:00:5e:00:00:04",
	}
	g.remove = []string{"endpoint", "rm", "more"}
	var crowdNetns []string
	switch family {
	case moreEndpoints:
		if c.local > 0 {
			for i := range crowdNamespaces {
				crowdNetns = append(crowdNetns, l.netns(fmt.Sprintf("crowd-%d", i)))
			}
			g.add = []string{
				"endpoint", "add", "more", "--network", crowdNetwork, "--netns", crowdNetns[0],
				"--ifname", "more", "--ip", more.String(),
			}
		}
	case moreLinks:
		ebpnet("link", "add", "client", "server",
			"--port", fmt.Sprintf("%d/tcp", serverPort), "--port", fmt.Sprintf("%d/udp", serverPort))
		from, to := linkBetween(c.links)
		g.add = []string{"link", "add", from, to, "--port", fmt.Sprint(serverPort)}
		g.remove = []string{"link", "rm", from, to}
	case morePorts:
		for _, proto := range []string{"udp", "tcp"} {
			ebpnet("port", "add", "server", fmt.Sprintf("%d:%d/%s", publishedPort, serverPort, proto))
		}
		more := fmt.Sprintf("%d:%d", publishedPort+1, serverPort)
		g.add, g.remove = []string{"port", "add", "server", more}, []string{"port", "rm", "server", more}
		p.client, p.dial = beyond, netip.AddrPortFrom(uplinkAddr, publishedPort)
	case moreFlows:
		p.server, p.dial = beyond, netip.AddrPortFrom(outsideAddr, serverPort)
		// The connections measured are flows too: few, again and again.
		ebpnet("endpoint", "set", "client", "--max-flows", fmt.Sprint(spec.DefaultFlows))
		l.in(client, "sysctl", "-qw", fmt.Sprintf("net.ipv4.ip_local_port_range=%d %d", measuredFirstPort, measuredLastPort))
	}
	l.settle(host, crowdNetns, c)
	ebpnet("load")
	l.converse(client, beyond, c.flows)
	return p
}

// Local ports of the client beside many flows.
const (
	measuredFirstPort = 32768
	measuredLastPort  = 33791
)
