package test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

func unknownOptions(t *testing.T, s *site) {
	for _, c := range []struct{ option, name string }{
		{"com.docker.network.bridge.name=br0", "com.docker.network.bridge.name"},
		{"ebpnet.keys=42", "ebpnet.keys"},
		{"parent=eth0", "parent"},
		{"ebpnet.key=a", "ebpnet.key"},
		{"com.docker.network.bridge.enable_icc=maybe", "com.docker.network.bridge.enable_icc"},
		{"com.docker.network.driver.mtu=1", "com.docker.network.driver.mtu"},
		{"ebpnet.network=nowhere", "nowhere"},
	} {
		out, err := s.docker.Try("network", "create", "--driver", s.driver, "--opt", c.option, "net")
		if err == nil || !strings.Contains(out, c.name) {
			t.Errorf("option %s: %v, %s; want it refused by name", c.option, err, out)
		}
		if err == nil {
			s.docker.Run(t, "network", "rm", "net")
		}
	}
}

func networkOptions(t *testing.T, s *site) {
	s.createNet(t, "net", bothFamilies(
		"--opt", "com.docker.network.bridge.enable_ip_masquerade=false",
		"--opt", "com.docker.network.bridge.host_binding_ipv4=127.0.0.1",
		"--opt", "ebpnet.routes=198.51.100.0/24,2001:db8:1::/64",
		"--aux-address", "printer=172.30.0.2")...)
	web := s.run(t, "web", "net", "--publish", "8080:7000")
	connects(t, s.Netns, "tcp", "127.0.0.1:8080")
	noneIsAnswered(t, attempt{s.underlay.Outside, "tcp", "", at(s.IP4, published)})
	if web.IP4 == netip.MustParseAddr("172.30.0.2") {
		t.Errorf("%s is an auxiliary address", web.IP4)
	}
	for destination, gateway := range map[string]netip.Addr{"198.51.100.0/24": gateway4, "2001:db8:1::/64": gateway6} {
		if route := web.Run(t, "ip", "route", "show", destination); !strings.Contains(route, "via "+gateway.String()) {
			if route = web.Run(t, "ip", "-6", "route", "show", destination); !strings.Contains(route, "via "+gateway.String()) {
				t.Errorf("want a route to %s via %s: %q", destination, gateway, route)
			}
		}
	}
	// Without masquerade the outside sees the container's own address.
	serve(t, s.underlay.Outside, service)
	s.underlay.Outside.Run(t, "ip", "route", "add", subnet4, "via", s.IP4.String())
	t.Cleanup(func() { s.underlay.Outside.Run(t, "ip", "route", "del", subnet4) })
	sees(t, web.Netns, "udp", at(s.underlay.IP4, service), web.IP4)
}

// Where the containers' addresses are known outside, ports are published there.
func routedNetwork(t *testing.T, s *site) {
	s.createNet(t, "net", "--subnet", subnet4, "--opt", "com.docker.network.bridge.gateway_mode_ipv4=routed")
	s.createNet(t, "other", "--subnet", other4)
	web, guest := s.run(t, "web", "net", "--publish", "7000"), s.run(t, "guest", "other")
	serve(t, web.Netns, service+1)
	s.underlay.Outside.Run(t, "ip", "route", "add", subnet4, "via", s.IP4.String())
	t.Cleanup(func() { s.underlay.Outside.Run(t, "ip", "route", "del", subnet4) })
	sees(t, s.underlay.Outside, "tcp", at(web.IP4, service), s.underlay.IP4)
	sees(t, guest.Netns, "tcp", at(web.IP4, service), guest.IP4)
	ping(t, s.underlay.Outside, web.IP4)
	ping(t, guest.Netns, web.IP4)
	noneIsAnswered(t,
		attempt{s.underlay.Outside, "tcp", "", at(web.IP4, service+1)},
		attempt{guest.Netns, "tcp", "", at(web.IP4, service+1)},
		attempt{web.Netns, "tcp", "", at(guest.IP4, service)},
		attempt{s.underlay.Outside, "tcp", "", at(s.IP4, service)})
}

func addressesByEbpnet(t *testing.T, s *site) {
	s.createNet(t, "net", "--ipam-driver", "ebpnet", "--subnet", subnet4, "--ip-range", "172.30.0.128/30", "--gateway", "172.30.0.9")
	s.createNet(t, "some", "--ipam-driver", "ebpnet") // of a subnet that nobody has
	one, two := s.run(t, "one", "net"), s.run(t, "two", "net", "--ip", "172.30.0.77")
	three := s.run(t, "three", "some")
	if !netip.MustParsePrefix("172.30.0.128/30").Contains(one.IP4) || two.IP4.String() != "172.30.0.77" {
		t.Errorf("addresses %s and %s", one.IP4, two.IP4)
	}
	pingAll(t, one.Container, two.Container)
	ping(t, s.Netns, three.IP4)
	ping(t, one.Netns, netip.MustParseAddr("172.30.0.9"))
	if out, err := s.docker.Try("run", "--detach", "--network", "net", "--ip", "172.30.0.77", testutil.Image); err == nil {
		t.Errorf("an address that is taken is given again: %s", out)
	}
	s.docker.Run(t, "rm", "--force", "two")
	again := s.run(t, "again", "net", "--ip", "172.30.0.77")
	pingAll(t, one.Container, again.Container)
}

// A network that is there already can be the engine's, too, and stays when the
// engine's goes.
func joinedNetwork(t *testing.T, s *site) {
	s.Ebpnet(t, "network", "create", "shop", "--subnet", subnet4, "--icc=false")
	t.Cleanup(func() {
		s.docker.Clear(t)
		s.Ebpnet(t, "network", "rm", "shop")
	})
	outsider := s.NewContainer(t, "outsider", "shop")
	t.Cleanup(func() {
		s.docker.Clear(t)
		s.Ebpnet(t, "endpoint", "rm", "outsider")
	})
	serve(t, outsider.Netns, service)
	s.createNet(t, "shop1", "--subnet", subnet4, "--opt", "ebpnet.network=shop", "--ipam-driver", "ebpnet", "--ipam-opt", "ebpnet.network=shop")
	web := s.run(t, "web", "shop1")
	noneIsAnswered(t, attempt{web.Netns, "tcp", "", at(outsider.IP4, service)})
	s.Ebpnet(t, "network", "set", "shop", "--icc=true")
	connects(t, web.Netns, "tcp", at(outsider.IP4, service))
	connects(t, outsider.Netns, "tcp", at(web.IP4, service))

	s.docker.Clear(t)
	ping(t, s.Netns, outsider.IP4)
	if networks := s.Ebpnet(t, "network", "ls"); !strings.Contains(networks, "shop") || strings.Contains(networks, "shop1") {
		t.Errorf("want shop, which nobody uses:\n%s", networks)
	}
}

// What the engine calls its nouns is shown, and taken by commands.
func namesAreShown(t *testing.T, s *site) {
	s.createNet(t, "front")
	web := s.run(t, "web", "front")
	ping(t, s.Netns, web.IP4)
	short := web.ID[:12]
	for _, command := range [][]string{{"endpoint", "ls"}, {"stats"}} {
		testutil.Eventually(t, "the container's name in ebpnet "+strings.Join(command, " "), func() bool {
			return strings.Contains(s.Ebpnet(t, command...), "web ("+short+")")
		})
	}
	testutil.Eventually(t, "the network's name in ebpnet network ls", func() bool {
		return strings.Contains(s.Ebpnet(t, "network", "ls"), "docker front (")
	})
	for _, called := range []string{"web", short, web.ID, web.Endpoint} {
		if out := s.Ebpnet(t, "endpoint", "inspect", called); !strings.Contains(out, web.IP4.String()) {
			t.Errorf("%q is not understood:\n%s", called, out)
		}
	}
	text, _ := scrape(t, s.Host)
	for _, label := range []string{`container="web"`, `container_id="` + web.ID + `"`, `engine="docker"`} {
		if !strings.Contains(text, label) {
			t.Errorf("no metric has %s", label)
		}
	}

	s.docker.Run(t, "rename", "web", "shop")
	testutil.Eventually(t, "the container's new name in ebpnet endpoint ls", func() bool {
		return strings.Contains(s.Ebpnet(t, "endpoint", "ls"), "shop ("+short+")")
	})
}

func flushedFirewalls(t *testing.T, s *site) {
	s.createNet(t, "net", bothFamilies("--opt", withoutICCOption)...)
	web := s.run(t, "web", "net", "--publish", "8080:7000", "--publish", "8080:7000/udp")
	other := s.run(t, "other", "net", "--label", "ebpnet.link=web:7000/tcp")
	serve(t, s.underlay.Outside, service)
	awaitConnection(t, other.Netns, at(web.IP4, service))
	running := []*testutil.Conn{
		connects(t, s.underlay.Outside, "tcp", at(s.IP4, published)),
		connects(t, s.underlay.Outside, "udp", at(s.IP6, published)),
		connects(t, s.Netns, "tcp", "127.0.0.1:8080"),
		connects(t, web.Netns, "tcp", at(s.underlay.IP4, service)),
		connects(t, web.Netns, "udp", at(s.underlay.IP6, service)),
		connects(t, other.Netns, "tcp", at(web.IP4, service)),
	}
	for _, flush := range [][]string{
		{"iptables", "-F"}, {"iptables", "-t", "nat", "-F"}, {"ip6tables", "-F"}, {"nft", "flush", "ruleset"},
	} {
		s.Run(t, flush[0], flush[1:]...)
		takeTurns(t, running...)
	}
	for _, network := range protocols {
		sees(t, s.underlay.Outside, network, at(s.IP4, published), s.underlay.IP4)
		sees(t, web.Netns, network, at(s.underlay.IP6, service), s.IP6)
		connects(t, s.Netns, network, "127.0.0.1:8080")
	}
	noneIsAnswered(t, attempt{web.Netns, "tcp", "", at(other.IP4, service)})
}
