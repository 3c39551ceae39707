package test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

func oneNetwork(t *testing.T, s *site) {
	s.createNet(t, "net", bothFamilies()...)
	one, two := s.run(t, "one", "net"), s.run(t, "two", "net", "--network-alias", "second")
	serve(t, s.underlay.Outside, service)
	expectNoContainerAddress(t, s.underlay)
	pingAll(t, one.Container, two.Container)
	pingAll(t, two.Container, one.Container)
	for _, network := range protocols {
		for i, address := range two.Addresses() {
			sees(t, one.Netns, network, at(address, service), one.Addresses()[i])
			connects(t, s.Netns, network, at(address, service)) // from the host itself
		}
		sees(t, one.Netns, network, at(s.underlay.IP4, service), s.IP4)
		if s.ebpnet() { // Docker's bridge masquerades IPv4 only
			sees(t, one.Netns, network, at(s.underlay.IP6, service), s.IP6)
		}
	}
	// The engine's name server knows them.
	for _, name := range []string{"two", "second"} {
		found := one.Exec(t, "nslookup", name)
		for _, address := range two.Addresses() {
			if !strings.Contains(found, address.String()) {
				t.Errorf("name %s is not that of %s:\n%s", name, address, found)
			}
		}
	}
	expectRoutes(t, one, gateway4, gateway6)
	// The engine would give containers another interface, on a bridge of its own,
	// if their driver had no gateway for them.
	if devices := lines(one.Run(t, "ip", "-brief", "link", "show", "type", "veth")); len(devices) != 1 {
		t.Errorf("the container has more than one interface: %q", devices)
	}
	if out, err := s.docker.Try("network", "inspect", "docker_gwbridge"); err == nil {
		t.Errorf("there is a docker_gwbridge:\n%s", out)
	}
}

// expectRoutes expects default routes by gateways of both families.
func expectRoutes(t *testing.T, c *testutil.DockerContainer, by4, by6 netip.Addr) {
	t.Helper()
	for family, gateway := range map[string]netip.Addr{"-4": by4, "-6": by6} {
		want := "default via " + gateway.String() + " dev " + testutil.Device
		if routes := c.Run(t, "ip", family, "route", "show", "default"); !strings.HasPrefix(routes, want) {
			t.Errorf("want %s: %q", want, routes)
		}
	}
}

const withoutICCOption = "com.docker.network.bridge.enable_icc=false"

func withoutICC(t *testing.T, s *site) {
	s.createNet(t, "net", "--opt", withoutICCOption)
	one, two := s.run(t, "one", "net"), s.run(t, "two", "net", "--publish", "8080:7000")
	serve(t, s.underlay.Outside, service)
	noneIsAnswered(t,
		attempt{one.Netns, "tcp", "", at(two.IP4, service)}, attempt{one.Netns, "udp", "", at(two.IP4, service)},
		attempt{two.Netns, "tcp", "", at(one.IP4, service)}, attempt{two.Netns, "udp", "", at(one.IP4, service)})
	if out, err := one.Try("ping", "-n", "-c", "1", "-W", "0.4", two.IP4.String()); err == nil {
		t.Errorf("one reaches two:\n%s", out)
	}
	for _, c := range []*testutil.DockerContainer{one, two} {
		connects(t, c.Netns, "tcp", at(s.underlay.IP4, service))
	}
	connects(t, s.underlay.Outside, "tcp", at(s.IP4, published))
}

func internalNetwork(t *testing.T, s *site) {
	s.createNet(t, "net", "--internal")
	one, two := s.run(t, "one", "net"), s.run(t, "two", "net", "--publish", "8080:7000")
	serve(t, s.underlay.Outside, service)
	connects(t, one.Netns, "tcp", at(two.IP4, service))
	noneIsAnswered(t,
		attempt{one.Netns, "tcp", "", at(s.underlay.IP4, service)}, attempt{one.Netns, "udp", "", at(s.underlay.IP4, service)},
		attempt{s.underlay.Outside, "tcp", "", at(s.IP4, published)})
	// Docker's bridge of this version leads to nowhere by a default route.
	if routes := one.Run(t, "ip", "route", "show", "default"); s.ebpnet() && routes != "" {
		t.Errorf("a container of an internal network has a default route: %s", routes)
	}
}
