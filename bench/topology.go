package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// topology is one way from a client to a server. One more is one more row in
// topologies and a function that says what it is made of.
type topology struct {
	name    string
	about   string
	family  string
	kind    string          // of what is between client and server
	ports   int             // how many are published
	tunnels int             // how many are flooded into
	times   int             // as much is offered as a rival delivers
	build   func(*lab) path // failures are in the lab's err
}

// path is where traffic runs: two namespaces, by name, and what the client
// dials to reach the server, which listens on serverPort of every address.
type path struct {
	client, server string
	dial           netip.AddrPort
	copies         int    // of each datagram that are to arrive; 0: one
	daemons        []int  // processes on the way, whose CPU time is the path's
	program        string // the path in the datapath whose cost is told
	aim            *aim   // of the generator's frames
	pressure       *pressure
	grown          *grown        // what is there of which there is ever more
	atMost         time.Duration // of one measurement; 0: as long as asked for
}

// Kinds of topology.
const (
	wire     = "wire"
	bridge   = "bridge"
	iptables = "iptables"
	nftables = "nftables"
	ebpnet   = "ebpnet"
	vxlan    = "vxlan"
	bare     = "vxlan-bare" // without br_netfilter
	ovs      = "ovs"
	few      = "few" // ebpnet with next to nothing in its tables
)

// family is the topologies that answer one question, in one table.
type family struct {
	name, about string
	bases       []string // kinds that the others are compared with
	measures    []string // those that tell something new
}

// Names of the families.
const (
	inside  = "inside"
	outside = "outside"
	port    = "port"
	overlay = "overlay"
	scale   = "scale"
	flood   = "flood"
)

func families() []family {
	return slices.Concat([]family{
		{
			inside, "between two containers of a host",
			[]string{wire, bridge, nftables},
			[]string{requests, connections, datagrams, stream, pacedTCP},
		},
		{
			outside, "from a container to the outside, which sees the host's address",
			[]string{wire, iptables, nftables},
			[]string{requests, connections, datagrams, stream, pacedTCP},
		},
		{
			port, "from outside to a container, through the last of so many published ports",
			[]string{wire, iptables, nftables},
			[]string{requests, connections, datagrams, oneWay, pacedTCP},
		},
		{
			overlay, "between containers of two hosts",
			[]string{wire, vxlan},
			[]string{requests, connections, datagrams, stream, pacedTCP},
		},
		{
			scale, "between containers of two hosts, whose tables hold so much",
			[]string{few},
			[]string{requests, connections, datagrams},
		},
		{
			flood, "broadcasts of a container into so many tunnels, counted on the underlay",
			[]string{vxlan},
			[]string{copies},
		},
		costFamily(),
	}, growthFamilies(), pktgenFamilies(), []family{overloadFamily()})
}

// isBaseOf tells whether t is what another is compared with as that kind: of
// the same family and number of ports and tunnels, but the wire has none.
func (t topology) isBaseOf(other topology, kind string) bool {
	return t.family == other.family && t.kind == kind &&
		(t.ports == other.ports && t.tunnels == other.tunnels && t.times == other.times || kind == wire)
}

// bases are the kinds that the topology's family is compared with.
func (t topology) bases() []string {
	for _, f := range families() {
		if f.name == t.family {
			return f.bases
		}
	}
	return nil
}

// of gives those of the topologies that are the family's.
func (f family) of(all []topology) []topology {
	return slices.DeleteFunc(slices.Clone(all), func(t topology) bool { return t.family != f.name })
}

// serverPort is where servers listen, TCP and UDP.
const serverPort = 7000

// Addresses, the same in every topology; they never leave its namespaces.
// TEST-NET-1, RFC 5737.
var (
	subnet      = netip.MustParsePrefix("192.0.2.0/24")
	gatewayAddr = netip.MustParseAddr("192.0.2.1")
	clientAddr  = netip.MustParseAddr("192.0.2.2")
	serverAddr  = netip.MustParseAddr("192.0.2.3")
)

func topologies() []topology {
	return slices.Concat([]topology{
		{name: wire, about: "two namespaces joined by one veth: the limit", family: inside, kind: wire, build: buildWire},
		{name: ebpnet, about: "two endpoints of one ebpnet network", family: inside, kind: ebpnet, build: buildEbpnet},
		{name: "ebpnet-link", about: "the same with --icc=false, and a link to the server's ports", family: inside, kind: ebpnet, build: buildEbpnetLink},
		{name: bridge, about: "Linux bridge, two veths, Docker's iptables rules", family: inside, kind: bridge, build: buildBridge},
		{name: "bridge-nftables", about: "the same with Docker's nftables rules", family: inside, kind: nftables, build: buildBridgeNftables},
	}, toOutside(), toPorts(), acrossHosts(), toScale(), toFlood(), toGrowth(), toPktgen(), toOverload(), toCost())
}

func buildWire(l *lab) path {
	client, server := l.netns("client"), l.netns("server")
	l.veth(client, "eth0", server, "eth0")
	l.address(client, "eth0", clientAddr)
	l.address(server, "eth0", serverAddr)
	return path{client: client, server: server, dial: netip.AddrPortFrom(serverAddr, serverPort)}
}

func buildEbpnet(l *lab) path {
	p, _ := endpoints(l, "--icc=true")
	return p
}

func buildEbpnetLink(l *lab) path {
	p, ebpnet := endpoints(l, "--icc=false")
	ebpnet("link", "add", "client", "server",
		"--port", fmt.Sprintf("%d/tcp", serverPort), "--port", fmt.Sprintf("%d/udp", serverPort))
	return p
}

// endpoints makes a host with ebpnet loaded and two endpoints on one network,
// and gives what runs ebpnet there.
func endpoints(l *lab, icc string) (path, func(args ...string) bool) {
	host, client, server := l.netns("host"), l.netns("client"), l.netns("server")
	ebpnet := l.ebpnet(host)
	ebpnet("network", "create", "bench", "--subnet", subnet.String(), "--gateway", gatewayAddr.String(), icc)
	ebpnet("endpoint", "add", "client", "--network", "bench", "--netns", client, "--ip", clientAddr.String())
	ebpnet("endpoint", "add", "server", "--network", "bench", "--netns", server, "--ip", serverAddr.String())
	return path{client: client, server: server, dial: netip.AddrPortFrom(serverAddr, serverPort)}, ebpnet
}

// ebpnet loads ebpnet in a host, with more arguments of load, and gives what
// runs it there.
func (l *lab) ebpnet(host string, load ...string) func(args ...string) bool {
	binary, err := ebpnetBinary()
	if err != nil && l.err == nil {
		l.err = err
	}
	state := stateDirectory(host)
	l.directory(state)
	// The pins are ebpnet's to make (it mounts bpffs where missing) and
	// to remove, by unload.
	global := []string{binary, "--state", state, "--pin", pinDirectory(host)}
	ebpnet := func(args ...string) bool { return l.in(host, slices.Concat(global, args)...) }
	if ebpnet(slices.Concat([]string{"load"}, load)...) {
		l.undo = append(l.undo, func() error {
			return command("", inNetns(host, slices.Concat(global, []string{"unload"})...)...)
		})
	}
	return ebpnet
}

func stateDirectory(host string) string { return filepath.Join(os.TempDir(), host) }

func pinDirectory(host string) string { return filepath.Join("/sys/fs/bpf", host) }

// ebpnetBinary finds the binary to measure: $EBPNET, or what make build made.
func ebpnetBinary() (string, error) {
	binary := os.Getenv("EBPNET")
	if binary == "" {
		binary = filepath.Join("bin", "ebpnet")
	}
	binary, err := filepath.Abs(binary)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(binary); err != nil {
		return "", fmt.Errorf("no ebpnet to measure: %w; run make build, or set EBPNET, or give --only %s,%s",
			err, wire, bridge)
	}
	return binary, nil
}

// bridgeNetfilter tells whether the kernel can show bridged packets to
// iptables. Docker loads br_netfilter for that; bench leaves the machine as it
// is, and the report says which it was.
func bridgeNetfilter() bool {
	_, err := os.Stat("/proc/sys/net/bridge/bridge-nf-call-iptables")
	return err == nil
}

// buildBridge makes a host as Docker sets it up.
func buildBridge(l *lab) path {
	host := l.dockerHost()
	l.runWith(dockerRules, inNetns(host, "iptables-restore")...)
	return l.bridged(host)
}

// buildBridgeNftables makes a host as Docker's nftables backend does.
func buildBridgeNftables(l *lab) path {
	host := l.dockerHost()
	l.runWith(nftablesRules(nil), inNetns(host, "nft", "-f", "-")...)
	return l.bridged(host)
}

// bridged puts client and server on Docker's bridge.
func (l *lab) bridged(host string) path {
	client, server := l.plug(host, "client", clientAddr), l.plug(host, "server", serverAddr)
	return path{client: client, server: server, dial: netip.AddrPortFrom(serverAddr, serverPort)}
}

// dockerHost makes a host with Docker's bridge, no rules yet.
func (l *lab) dockerHost() string {
	host := l.netns("host")
	l.run("ip", "-n", host, "link", "add", "docker0", "type", "bridge")
	l.address(host, "docker0", gatewayAddr)
	l.run("ip", "-n", host, "link", "set", "docker0", "up")
	l.in(host, "sysctl", "-qw", "net.ipv4.ip_forward=1")
	if bridgeNetfilter() {
		l.in(host, "sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1")
	}
	return host
}

// plug makes a container on Docker's bridge and gives its namespace.
func (l *lab) plug(host, role string, addr netip.Addr) string {
	ns, device := l.netns(role), "veth-"+role
	l.veth(ns, "eth0", host, device)
	l.address(ns, "eth0", addr)
	l.run("ip", "-n", host, "link", "set", device, "master", "docker0")
	l.run("ip", "-n", ns, "route", "add", "default", "via", gatewayAddr.String())
	return ns
}
