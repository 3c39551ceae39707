package test

import (
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// newPodman5 makes a loaded host with Podman 5 and an uplink to the outside.
func newPodman5(t *testing.T) (*testutil.Podman5, *testutil.Underlay) {
	t.Helper()
	h, u := newOutside(t)
	return testutil.NewPodman5(t, h), u
}

// podmanNetwork makes the network of that name, of both families if no subnets
// are given.
func podmanNetwork(t *testing.T, p *testutil.Podman5, name string, args ...string) {
	t.Helper()
	p.Run(t, append([]string{"network", "create", "-d", "ebpnet", name}, args...)...)
}

// podmanAddress gives the IPv4 address that Podman shows of a container.
func podmanAddress(t *testing.T, p *testutil.Podman5, name, network string) netip.Addr {
	t.Helper()
	text := p.Run(t, "inspect", "--format", `{{(index .NetworkSettings.Networks "`+network+`").IPAddress}}`, name)
	a, err := netip.ParseAddr(strings.TrimSpace(text))
	if err != nil {
		t.Fatalf("address of %s on %s: %v", name, network, err)
	}
	return a
}

// podmanFails expects podman to fail and to say text.
func podmanFails(t *testing.T, p *testutil.Podman5, text string, args ...string) {
	t.Helper()
	if out, err := p.Try(args...); err == nil || !strings.Contains(out, text) {
		t.Errorf("podman %q: %v\n%s\nwant it to fail and say %q", args, err, out, text)
	}
}

func TestPodmanContainersMeet(t *testing.T) {
	p, u := newPodman5(t)
	h := p.Host
	podmanNetwork(t, p, "web", "--ipv6")
	podmanNetwork(t, p, "quiet", "-o", "ebpnet.icc=false")
	a, b := p.Start(t, "a", "--network", "web"), p.Start(t, "b", "--network", "web")
	ping(t, a, podmanAddress(t, p, "b", "web"))
	ping(t, b, podmanAddress(t, p, "a", "web"))
	ping(t, a, u.IP4)
	ping(t, a, u.IP6)

	c, d := p.Start(t, "c", "--network", "quiet"), p.Start(t, "d", "--network", "quiet")
	serve(t, d, service)
	to := at(podmanAddress(t, p, "d", "quiet"), service)
	connectsNot(t, h, "policy", c, "tcp", to)
	connectsNot(t, h, "policy", a, "tcp", to)
	h.Ebpnet(t, "link", "add", "c", "d:server", "--port", strconv.Itoa(service)+"/tcp")
	connects(t, c, "tcp", to)
	h.Run(t, "nft", "flush", "ruleset")
	connects(t, c, "tcp", to)
}

func TestPodmanPublishes(t *testing.T) {
	p, u := newPodman5(t)
	h := p.Host
	podmanNetwork(t, p, "web", "--subnet", subnet4, "--subnet", subnet6)
	podmanNetwork(t, p, "other")
	a := p.Start(t, "a", "--network", "web", "--network", "other",
		"-p", "8080-8082:7000-7002", "-p", "8080:7000/udp", "-p", "127.0.0.2:99:7000", "-p", "[::1]:99:7000", "-p", "192.0.2.1:53:7001/udp")
	for port := service; port <= service+2; port++ {
		serve(t, a, port)
	}
	for _, address := range []string{at(h.IP4, 8080), at(h.IP6, 8082)} {
		connects(t, u.Outside, "tcp", address)
		connects(t, h.Netns, "tcp", address)
		connects(t, a, "tcp", address)
	}
	udp := connects(t, u.Outside, "udp", at(h.IP4, 8080))
	connects(t, u.Outside, "udp", at(h.IP4, 53))
	for _, address := range []string{"127.0.0.1:8081", "127.0.0.2:99", "[::1]:99"} {
		connects(t, h.Netns, "tcp", address)
	}
	for _, address := range []string{at(h.IP4, 8083), at(h.IP4, 99)} {
		if _, err := u.Outside.Dial(t, "tcp", address); err == nil {
			t.Errorf("%s is published, which nobody asked for", address)
		}
	}

	// Another container cannot have the port, and leaves nothing.
	podmanFails(t, p, "8081", p.RunArgs("b", "--network", "web", "-p", "8081:80")...)
	if len(endpoints(t, h)) != 2 {
		t.Error("the container that did not start has an endpoint")
	}

	// A container that starts again is reached by those who reached it before.
	a.Remove(t)
	p.Run(t, "restart", "--time", "0", "a")
	again := p.Namespace(t, "a")
	serve(t, again, service)
	udp.MustAsk(t)
	connects(t, u.Outside, "tcp", at(h.IP4, 8080))

	again.Remove(t)
	p.Run(t, "stop", "--time", "0", "a")
	expectNoEndpoints(t, h)
}

func TestPodmanOptions(t *testing.T) {
	p, u := newPodman5(t)
	h := p.Host
	podmanNetwork(t, p, "web", "--subnet", subnet4, "--gateway", "172.30.0.9", "--ip-range", "172.30.0.128/25",
		"--subnet", subnet6, "--route", "10.98.0.0/16,172.30.0.77", "-o", "mtu=1400", "-o", "isolate=true", "--disable-dns")
	a := p.Start(t, "a", "--network", "web:ip=172.30.0.50,ip=fd00:30::50,mac=02:11:22:33:44:55,interface_name=net7")
	e := endpointsFor(t, h, "a")["web"]
	if e.MAC != "02:11:22:33:44:55" || len(e.Addresses) != 2 || e.Addresses[0].String() != "172.30.0.50" || e.Addresses[1].String() != "fd00:30::50" {
		t.Errorf("a is %+v", e)
	}
	if link := a.Run(t, "ip", "-o", "link", "show", "net7"); !strings.Contains(link, "mtu 1400") {
		t.Errorf("its interface is %s", link)
	}
	routes := a.Run(t, "ip", "route")
	for _, route := range []string{"default via 172.30.0.9 dev net7", "10.98.0.0/16 via 172.30.0.77 dev net7"} {
		if !strings.Contains(routes, route) {
			t.Errorf("there is no route %q:\n%s", route, routes)
		}
	}
	p.Start(t, "b", "--network", "web")
	if address := podmanAddress(t, p, "b", "web"); !netip.MustParsePrefix("172.30.0.128/25").Contains(address) {
		t.Errorf("b has %s, want one of --ip-range", address)
	}
	ping(t, a, u.IP4)

	podmanNetwork(t, p, "inside", "--internal", "--subnet", other4)
	c, d := p.Start(t, "c", "--network", "inside", "-p", "8080:80"), p.Start(t, "d", "--network", "inside")
	ping(t, c, podmanAddress(t, p, "d", "inside"))
	if routes := d.Run(t, "ip", "route"); strings.Contains(routes, "default") {
		t.Errorf("a container on an internal network has routes\n%s", routes)
	}

	for option, text := range map[string]string{
		"vlan=7":        "option vlan=7: ebpnet has no such option",
		"isolate=false": "always apart",
		"ebpnet.icc=2":  `"ebpnet.icc"`,
	} {
		podmanFails(t, p, text, "network", "create", "-d", "ebpnet", "-o", option, "bad")
	}
	podmanFails(t, p, "overlaps", "network", "create", "-d", "ebpnet", "--subnet", subnet4, "bad")
	podmanFails(t, p, "overlaps", "network", "create", "-d", "ebpnet", "--subnet", "192.0.2.0/25", "bad")
	podmanFails(t, p, "host_interface_name", p.RunArgs("bad", "--network", "web:host_interface_name=veth7")...)
}

func TestPodmanManyNetworks(t *testing.T) {
	p, u := newPodman5(t)
	h := p.Host
	for _, network := range []string{"red", "blue", "green"} {
		podmanNetwork(t, p, network)
	}
	podmanNetwork(t, p, "inside", "--internal")
	a := p.Start(t, "a", "--network", "red", "--network", "blue", "--network", "inside", "-p", "8080:7000")
	peers := make(map[string]netip.Addr)
	for _, network := range []string{"red", "blue", "green", "inside"} {
		p.Start(t, network, "--network", network)
		peers[network] = podmanAddress(t, p, network, network)
	}
	for _, network := range []string{"red", "blue", "inside"} {
		ping(t, a, peers[network])
	}
	noPing(t, h, "isolated", a, peers["green"])
	serve(t, a, service)
	connects(t, u.Outside, "tcp", at(h.IP4, 8080))

	p.Run(t, "network", "connect", "green", "a")
	ping(t, a, peers["green"])
	p.Run(t, "network", "disconnect", "blue", "a")
	if _, err := a.Try("ping", "-n", "-c", "1", "-W", "0.4", peers["blue"].String()); err == nil {
		t.Error("a network is reached after the container was disconnected from it")
	}
	if n := len(endpoints(t, h)); n != 7 {
		t.Errorf("there are %d endpoints, want 3 of a and 4 others", n)
	}
	// Whichever network published the port, it is published again.
	for _, network := range []string{"red", "green"} {
		p.Run(t, "network", "disconnect", network, "a")
	}
	p.Run(t, "network", "connect", "red", "a")
	connects(t, u.Outside, "tcp", at(h.IP4, 8080))
	p.Run(t, "network", "reload", "a")
	connects(t, u.Outside, "tcp", at(h.IP4, 8080))
	p.Run(t, "rm", "--all", "--force", "--time", "0")
	expectNoEndpoints(t, h)
}

// A network that Podman removed stays until ebpnet is told, or until Podman
// makes one of its name.
func TestPodmanNetworkGoes(t *testing.T) {
	p, _ := newPodman5(t)
	h := p.Host
	podmanNetwork(t, p, "web", "--subnet", subnet4)
	p.Start(t, "a", "--network", "web")
	podmanFails(t, p, "being used", "network", "rm", "web")
	p.Run(t, "network", "rm", "--force", "--time", "0", "web")
	expectNoEndpoints(t, h)
	podmanFails(t, p, `network "web"`, "network", "create", "-d", "ebpnet", "--subnet", subnet4, "other")
	podmanNetwork(t, p, "web", "--subnet", other4)
	podmanNetwork(t, p, "other", "--subnet", subnet4)
	p.Start(t, "a", "--network", "web")

	// The user removes it under Podman's feet: the next container brings it back.
	p.Run(t, "rm", "--force", "--time", "0", "a")
	h.Ebpnet(t, "network", "rm", "web")
	p.Start(t, "a", "--network", "web")
	p.Run(t, "network", "rm", "--force", "--time", "0", "web", "other")
	h.Ebpnet(t, "network", "rm", "web")
	h.Ebpnet(t, "network", "rm", "other")
}

// Podman dies with the containers, and ebpnet with its datapath: what is left
// of them is forgotten when ebpnet is loaded again.
func TestPodmanIsKilled(t *testing.T) {
	p, _ := newPodman5(t)
	h := p.Host
	podmanNetwork(t, p, "web")
	a := p.Start(t, "a", "--network", "web", "-p", "8080:7000")
	b := p.Start(t, "b", "--network", "web")
	a.Remove(t)
	b.Remove(t)
	p.Run(t, "kill", "a")
	testutil.Eventually(t, "the endpoint of a container that was killed goes", func() bool { return len(endpoints(t, h)) == 1 })
	h.Ebpnet(t, "unload")
	podmanFails(t, p, "ebpnet load", "start", "a")
	p.Run(t, "rm", "--force", "--time", "0", "b")
	h.Ebpnet(t, "load")
	expectNoEndpoints(t, h)
	p.Run(t, "start", "a")
	if len(endpointsFor(t, h, "a")) != 1 {
		t.Error("the container has started without its endpoint")
	}
}
