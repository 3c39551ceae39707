package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
)

// topology is one way from a client to a server. One more is one more row in
// topologies and a function that says what it is made of.
type topology struct {
	name  string
	about string
	build func(*lab) path // failures are in the lab's err
}

// path is where traffic runs: two namespaces, by name, and what the client
// dials to reach the server, which listens on serverPort of every address.
type path struct {
	client, server string
	dial           netip.AddrPort
}

// The topologies that the others are compared with.
const (
	wire   = "wire"
	bridge = "bridge"
)

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
	return []topology{
		{wire, "two namespaces joined by one veth: the limit", buildWire},
		{"ebpnet", "two endpoints of one ebpnet network", buildEbpnet},
		{"ebpnet-link", "the same with --icc=false, and a link to the server's ports", buildEbpnetLink},
		{bridge, "Linux bridge, two veths, Docker's iptables rules", buildBridge},
	}
}

func buildWire(l *lab) path {
	client, server := l.netns("client"), l.netns("server")
	l.veth(client, "eth0", server, "eth0")
	l.address(client, "eth0", clientAddr)
	l.address(server, "eth0", serverAddr)
	return path{client, server, netip.AddrPortFrom(serverAddr, serverPort)}
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
	binary, err := ebpnetBinary()
	if err != nil && l.err == nil {
		l.err = err
	}
	host, client, server := l.netns("host"), l.netns("client"), l.netns("server")
	state := filepath.Join(os.TempDir(), l.prefix)
	l.directory(state)
	// The pins are ebpnet's to make (it mounts bpffs where missing) and
	// to remove, by unload.
	global := []string{binary, "--state", state, "--pin", filepath.Join("/sys/fs/bpf", l.prefix)}
	ebpnet := func(args ...string) bool { return l.in(host, append(global[:len(global):len(global)], args...)...) }
	if ebpnet("load") {
		l.undo = append(l.undo, func() error {
			return command("", inside(host, append(global[:len(global):len(global)], "unload")...)...)
		})
	}
	ebpnet("network", "create", "bench", "--subnet", subnet.String(), "--gateway", gatewayAddr.String(), icc)
	ebpnet("endpoint", "add", "client", "--network", "bench", "--netns", client, "--ip", clientAddr.String())
	ebpnet("endpoint", "add", "server", "--network", "bench", "--netns", server, "--ip", serverAddr.String())
	return path{client, server, netip.AddrPortFrom(serverAddr, serverPort)}, ebpnet
}

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

// dockerRules is what Docker Engine 20.10 installs for its default bridge,
// nothing published.
const dockerRules = `*filter
:INPUT ACCEPT
:FORWARD DROP
:OUTPUT ACCEPT
:DOCKER -
:DOCKER-ISOLATION-STAGE-1 -
:DOCKER-ISOLATION-STAGE-2 -
:DOCKER-USER -
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
*nat
:PREROUTING ACCEPT
:INPUT ACCEPT
:OUTPUT ACCEPT
:POSTROUTING ACCEPT
:DOCKER -
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 192.0.2.0/24 ! -o docker0 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
COMMIT
`

// bridgeNetfilter tells whether the kernel can show bridged packets to
// iptables. Docker loads br_netfilter for that; bench leaves the machine as it
// is, and the report says which it was.
func bridgeNetfilter() bool {
	_, err := os.Stat("/proc/sys/net/bridge/bridge-nf-call-iptables")
	return err == nil
}

// buildBridge makes a host as Docker sets it up.
func buildBridge(l *lab) path {
	host, client, server := l.netns("host"), l.netns("client"), l.netns("server")
	l.run("ip", "-n", host, "link", "add", "docker0", "type", "bridge")
	l.address(host, "docker0", gatewayAddr)
	l.run("ip", "-n", host, "link", "set", "docker0", "up")
	l.in(host, "sysctl", "-qw", "net.ipv4.ip_forward=1")
	if bridgeNetfilter() {
		l.in(host, "sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1")
	}
	l.runWith(dockerRules, inside(host, "iptables-restore")...)
	for _, c := range []struct {
		ns, port string
		addr     netip.Addr
	}{{client, "veth-client", clientAddr}, {server, "veth-server", serverAddr}} {
		l.veth(c.ns, "eth0", host, c.port)
		l.address(c.ns, "eth0", c.addr)
		l.run("ip", "-n", host, "link", "set", c.port, "master", "docker0")
		l.run("ip", "-n", c.ns, "route", "add", "default", "via", gatewayAddr.String())
	}
	return path{client, server, netip.AddrPortFrom(serverAddr, serverPort)}
}
