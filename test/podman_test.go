package test

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// engineEndpoint is what `ebpnet -o json endpoint ls` says of an endpoint that
// an engine made.
type engineEndpoint struct {
	testutil.Endpoint
	Ifname    string
	Container struct{ Engine, ID, Name string }
	Netns     struct{ Path string }
}

// endpointsFor lists a container's endpoints by network.
func endpointsFor(t *testing.T, h *testutil.Host, container string) map[string]engineEndpoint {
	t.Helper()
	var list []engineEndpoint
	h.EbpnetJSON(t, &list, "endpoint", "ls")
	found := map[string]engineEndpoint{}
	for _, e := range list {
		if e.Container.Name == container {
			found[e.Network] = e
		}
	}
	return found
}

// ebpnetPlugin is ebpnet's part of a conflist for a host, with further fields.
func ebpnetPlugin(h *testutil.Host, more map[string]any) map[string]any {
	conf := map[string]any{
		"type": testutil.CNIPlugin, "state": h.State, "pin": h.Pin,
		"capabilities": map[string]bool{"portMappings": true, "ips": true, "mac": true},
	}
	for key, value := range more {
		conf[key] = value
	}
	return conf
}

// podmanSite is a host on which Podman's containers are on networks of ebpnet,
// and the world outside.
type podmanSite struct {
	*testutil.Host
	podman   *testutil.Podman4
	underlay *testutil.Underlay
}

// TestPodman4 shows containers of Podman on networks of ebpnet: "net", "other",
// "apart" without ICC, and "delegated", whose addresses host-local chooses.
func TestPodman4(t *testing.T) {
	h, u := newOutside(t)
	s := podmanSite{h, testutil.NewPodman4(t, h), u}
	reserved := t.TempDir()
	for name, conf := range map[string]map[string]any{
		"net":    {"subnets": []string{subnet4, subnet6}},
		"other":  {"subnets": []string{other4, other6}},
		"apart":  {"subnets": []string{"172.29.0.0/24"}, "options": map[string]any{"ebpnet.icc": "false"}},
		"inside": {"subnets": []string{"172.28.0.0/24"}, "options": map[string]any{"ebpnet.internal": true}},
		"delegated": {"subnets": []string{"172.27.0.0/24"}, "ipam": map[string]any{
			"type": "host-local", "dataDir": reserved, "ranges": [][]any{{map[string]string{"subnet": "172.27.0.0/24", "rangeStart": "172.27.0.100"}}},
		}},
	} {
		testutil.WriteCNINetwork(t, s.podman.Networks, name, "0.4.0", ebpnetPlugin(h, conf))
	}
	for _, c := range []struct {
		name string
		run  func(*testing.T, podmanSite)
	}{
		{"one network", podmanOneNetwork},
		{"ICC off", podmanApart},
		{"published", podmanPublished},
		{"addresses", podmanAddresses},
		{"several networks", podmanSeveralNetworks},
		{"restart", podmanRestart},
		{"crash", podmanCrash},
		{"many at once", podmanMany},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Cleanup(func() { s.clear(t) })
			c.run(t, s)
		})
	}
	t.Run("host-local", func(t *testing.T) { podmanDelegated(t, s, filepath.Join(reserved, "delegated")) })
}

// start runs a container and gives it as what it is on one of its networks.
func (s podmanSite) start(t *testing.T, name, network string, args ...string) *testutil.Container {
	t.Helper()
	s.podman.Start(t, name, append([]string{"--network", network}, args...)...)
	return s.container(t, name, network)
}

func (s podmanSite) container(t *testing.T, name, network string) *testutil.Container {
	t.Helper()
	e, there := endpointsFor(t, s.Host, name)[network]
	if !there {
		t.Fatalf("container %s is not on network %s:\n%s", name, network, s.Ebpnet(t, "endpoint", "ls"))
	}
	c := &testutil.Container{Netns: s.podman.Namespace(t, name), Host: s.Host, Endpoint: e.Name}
	for _, a := range e.Addresses {
		if a.Is4() {
			c.IP4 = a
		} else {
			c.IP6 = a
		}
	}
	return c
}

// clear removes all containers, with which all goes that ebpnet made for them.
func (s podmanSite) clear(t *testing.T) {
	t.Helper()
	s.podman.Clear(t)
	expectNoEndpoints(t, s.Host)
}

// expectNoEndpoints expects that nothing of an endpoint is left on a host with an
// uplink.
func expectNoEndpoints(t *testing.T, h *testutil.Host) {
	t.Helper()
	for _, noun := range []string{"endpoint", "port", "link"} {
		if left := h.Ebpnet(t, "-o", "json", noun, "ls"); strings.TrimSpace(left) != "[]" {
			t.Errorf("left of %ss: %s", noun, left)
		}
	}
	if left := h.Run(t, "ip", "-o", "link"); strings.Contains(left, "ebp-") {
		t.Errorf("left of devices:\n%s", left)
	}
}

func podmanOneNetwork(t *testing.T, s podmanSite) {
	a, b := s.start(t, "a", "net"), s.start(t, "b", "net")
	pingAll(t, a, b)
	pingAll(t, b, a)
	s.podman.Run(t, "exec", "a", "ping", "-c", "1", "-W", "2", b.IP4.String())
	serve(t, s.underlay.Outside, service)
	for _, network := range protocols {
		sees(t, a.Netns, network, at(s.underlay.IP4, service), s.IP4)
		sees(t, b.Netns, network, at(s.underlay.IP6, service), s.IP6)
	}
	e := endpointsFor(t, s.Host, "a")["net"]
	id := strings.TrimSpace(s.podman.Run(t, "inspect", "--format", "{{.Id}}", "a"))
	if e.Container.Engine != "cni" || e.Container.ID != id || e.Ifname != "eth0" {
		t.Errorf("the endpoint is %+v, want it of container %s", e, id)
	}
	told := strings.Fields(s.podman.Run(t, "inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{.GlobalIPv6Address}} {{.MacAddress}} {{.Gateway}}{{end}}", "a"))
	if diff := cmp.Diff([]string{a.IP4.String(), a.IP6.String(), e.MAC, gateway4.String()}, told); diff != "" {
		t.Errorf("podman inspect: %s", diff)
	}
}

func podmanApart(t *testing.T, s podmanSite) {
	a, b, c := s.start(t, "a", "apart"), s.start(t, "b", "apart"), s.start(t, "c", "net")
	serve(t, b.Netns, service)
	noPing(t, s.Host, "policy", a.Netns, b.IP4)
	connectsNot(t, s.Host, "policy", a.Netns, "tcp", at(b.IP4, service))
	noPing(t, s.Host, "isolated", c.Netns, b.IP4)
	s.Ebpnet(t, "link", "add", a.Endpoint, b.Endpoint+":server", "--port", strconv.Itoa(service))
	connects(t, a.Netns, "tcp", at(b.IP4, service))
	connectsNot(t, s.Host, "policy", a.Netns, "udp", at(b.IP4, service))
}

func podmanPublished(t *testing.T, s podmanSite) {
	web := s.start(t, "web", "net", "-p", "8080:7000", "-p", "8080:7000/udp", "-p", "9000-9002:7000-7002", "-p", "127.0.0.1:8081:7000", "-p", s.IP4.String()+":8082:7000/udp")
	client := s.start(t, "client", "net")
	for i := range 3 {
		serve(t, web.Netns, service+i)
		connects(t, s.underlay.Outside, "tcp", at(s.IP4, 9000+i))
	}
	for _, network := range protocols {
		sees(t, s.underlay.Outside, network, at(s.IP4, published), s.underlay.IP4)
		connects(t, s.underlay.Outside, network, at(s.IP6, published))
		connects(t, s.Netns, network, at(netip.MustParseAddr("127.0.0.1"), published))
		connects(t, client.Netns, network, at(s.IP4, published))
		connects(t, web.Netns, network, at(s.IP4, published))
	}
	connects(t, s.Netns, "tcp", "127.0.0.1:8081")
	connects(t, s.underlay.Outside, "udp", at(s.IP4, 8082))
	noneIsAnswered(t,
		attempt{s.underlay.Outside, "tcp", "", at(s.IP4, 8081)},
		attempt{s.underlay.Outside, "tcp", "", at(s.IP4, 8082)},
		attempt{s.Netns, "udp", "", "127.0.0.1:8082"},
		attempt{s.underlay.Outside, "udp", "", at(s.IP4, 9000)})
	var told []string
	for _, p := range publications(t, s.Host, web.Endpoint) {
		told = append(told, fmt.Sprintf("%s:%d-%d:%d-%d/%s", p.HostAddress, p.HostPort, p.HostPortEnd, p.Port, p.PortEnd, p.Protocol))
	}
	slices.Sort(told)
	want := []string{
		"127.0.0.1:8081-8081:7000-7000/tcp", s.IP4.String() + ":8082-8082:7000-7000/udp",
		":8080-8080:7000-7000/tcp", ":8080-8080:7000-7000/udp", ":9000-9002:7000-7002/tcp",
	}
	slices.Sort(want)
	if diff := cmp.Diff(want, told); diff != "" {
		t.Errorf("published: %s", diff)
	}

	out, err := s.podman.Try(s.podman.RunArgs("late", "--network", "net", "-p", "9001:7000")...)
	if err == nil || !strings.Contains(out, "9001") {
		t.Errorf("a port that is published already: %v, %s; want it refused", err, out)
	}
	if left := endpointsFor(t, s.Host, "late"); len(left) != 0 {
		t.Errorf("a container whose port was refused has left %+v", left)
	}
	s.podman.Run(t, "rm", "--force", "--time", "0", "web")
	for _, network := range protocols {
		refusesConnections(t, s.underlay.Outside, network, at(s.IP4, published))
		refusesConnections(t, s.Netns, network, "127.0.0.1:8080")
	}
}

func podmanAddresses(t *testing.T, s podmanSite) {
	const mac = "02:00:00:00:00:50"
	a := s.start(t, "a", "net", "--ip", "172.30.0.50", "--ip6", "fd00:30::50", "--mac-address", mac)
	b := s.start(t, "b", "net", "--ip", "172.30.0.51")
	if a.IP4 != netip.MustParseAddr("172.30.0.50") || a.IP6 != netip.MustParseAddr("fd00:30::50") || b.IP4 != netip.MustParseAddr("172.30.0.51") || !b.IP6.IsValid() {
		t.Errorf("addresses are %v and %v", a.Addresses(), b.Addresses())
	}
	if link := a.Run(t, "ip", "link", "show", testutil.Device); !strings.Contains(link, mac) {
		t.Errorf("the MAC is not %s: %s", mac, link)
	}
	pingAll(t, a, b)
	for address, why := range map[string]string{"172.30.0.50": "in use", "172.30.0.1": "gateway", "10.1.1.1": "outside network"} {
		out, err := s.podman.Try(s.podman.RunArgs("refused", "--replace", "--network", "net", "--ip", address)...)
		if err == nil || !strings.Contains(out, address) || !strings.Contains(out, why) {
			t.Errorf("--ip %s: %v, %s; want it refused, as it is %s", address, err, out, why)
		}
	}
	if left := endpointsFor(t, s.Host, "refused"); len(left) != 0 {
		t.Errorf("a container that was refused has left %+v", left)
	}
}

// podmanSeveralNetworks puts a container on networks in whatever order Podman
// chooses: its ports are reached all the same.
func podmanSeveralNetworks(t *testing.T, s podmanSite) {
	s.podman.Start(t, "both", "--network", "net", "--network", "other", "--network", "inside", "-p", "8080:7000")
	on := func(networks ...string) {
		t.Helper()
		found := endpointsFor(t, s.Host, "both")
		for _, network := range networks {
			if _, there := found[network]; !there {
				t.Fatalf("the container is on %+v, want %v", found, networks)
			}
		}
		if len(found) != len(networks) {
			t.Errorf("the container is on %+v, want %v", found, networks)
		}
	}
	on("net", "other", "inside")
	a, b, c := s.start(t, "a", "net"), s.start(t, "b", "other"), s.start(t, "c", "inside")
	inNet, inOther, inside := s.container(t, "both", "net"), s.container(t, "both", "other"), s.container(t, "both", "inside")
	pingAll(t, inNet, a)
	pingAll(t, inOther, b)
	pingAll(t, inside, c)
	noPing(t, s.Host, "isolated", a.Netns, b.IP4)
	serve(t, inNet.Netns, service)
	connects(t, s.underlay.Outside, "tcp", at(s.IP4, published))
	serve(t, s.underlay.Outside, service)
	connects(t, inNet.Netns, "tcp", at(s.underlay.IP4, service))
	if out, err := c.Try("ping", "-n", "-c", "1", "-W", "0.4", s.underlay.IP4.String()); err == nil {
		t.Errorf("a container of an internal network gets out:\n%s", out)
	}

	s.podman.Run(t, "network", "disconnect", "other", "both")
	on("net", "inside")
	s.podman.Run(t, "network", "connect", "--ip", "172.31.0.77", "other", "both")
	on("net", "inside", "other")
	if again := s.container(t, "both", "other"); again.IP4 != netip.MustParseAddr("172.31.0.77") {
		t.Errorf("connected again it has %v", again.Addresses())
	} else {
		pingAll(t, b, again)
	}
}

func podmanRestart(t *testing.T, s podmanSite) {
	web := s.start(t, "web", "net", "-p", "8080:7000/udp")
	serve(t, web.Netns, service)
	client := connects(t, s.underlay.Outside, "udp", at(s.IP4, published))
	s.podman.Run(t, "restart", "--time", "0", "web")
	again := s.container(t, "web", "net")
	if again.Name == web.Name {
		t.Errorf("the container is in namespace %s as before", web.Name)
	}
	serve(t, again.Netns, service)
	client.MustAsk(t)
	s.podman.Run(t, "stop", "--time", "0", "web")
	if left := endpointsFor(t, s.Host, "web"); len(left) != 0 {
		t.Errorf("the container has stopped and has left %+v", left)
	}
	s.podman.Run(t, "start", "web")
	web = s.container(t, "web", "net")
	ping(t, web.Netns, gateway4)
}

// podmanCrash takes all containers away without telling ebpnet.
func podmanCrash(t *testing.T, s podmanSite) {
	web := s.start(t, "web", "net", "--ip", "172.30.0.60", "-p", "8080:7000")
	s.start(t, "back", "net")
	s.podman.Crash(t)
	testutil.Eventually(t, "the endpoints are forgotten", func() bool {
		s.Ebpnet(t, "network", "set", "net", "--icc=true")
		return len(endpointsFor(t, s.Host, "web")) == 0 && len(endpointsFor(t, s.Host, "back")) == 0
	})
	expectNoEndpoints(t, s.Host)
	works := func() {
		t.Helper()
		s.podman.Run(t, "start", "web", "back")
		again := s.container(t, "web", "net")
		if again.IP4 != web.IP4 {
			t.Errorf("it has %v, want %s again", again.Addresses(), web.IP4)
		}
		pingAll(t, again, s.container(t, "back", "net"))
	}
	works()
	s.podman.Crash(t)
	works() // nobody had forgotten them yet
}

func podmanMany(t *testing.T, s podmanSite) {
	const count = 20
	var starting []*testutil.Process
	for i := range count {
		name := fmt.Sprintf("c%d", i)
		starting = append(starting, s.podman.Begin(t, s.podman.RunArgs(name, "--network", "net", "-p", fmt.Sprintf("%d:7000", 9000+i))...))
	}
	for _, p := range starting {
		p.Wait(t)
	}
	seen := map[netip.Addr]bool{}
	first := s.container(t, "c0", "net")
	for i := range count {
		c := s.container(t, fmt.Sprintf("c%d", i), "net")
		for _, a := range c.Addresses() {
			if seen[a] {
				t.Errorf("%s is given out twice", a)
			}
			seen[a] = true
		}
		pingAll(t, first, c)
	}
	var ending []*testutil.Process
	for i := range count {
		ending = append(ending, s.podman.Begin(t, "rm", "--force", "--time", "0", fmt.Sprintf("c%d", i)))
	}
	for _, p := range ending {
		p.Wait(t)
	}
}

// podmanDelegated has host-local choose addresses, which keeps each as a file in
// a directory.
func podmanDelegated(t *testing.T, s podmanSite, reserved string) {
	a, b := s.start(t, "a", "delegated"), s.start(t, "b", "delegated", "--ip", "172.27.0.200")
	if a.IP4 != netip.MustParseAddr("172.27.0.100") || b.IP4 != netip.MustParseAddr("172.27.0.200") {
		t.Errorf("addresses are %v and %v", a.Addresses(), b.Addresses())
	}
	pingAll(t, a, b)
	s.clear(t)
	if left, err := filepath.Glob(filepath.Join(reserved, "172.*")); err != nil || len(left) > 0 {
		t.Errorf("host-local still holds %v, %v", left, err)
	}
}
