package test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// Networks are isolated from each other, but for what is published.
func twoNetworks(t *testing.T, s *site) {
	s.createNet(t, "net", bothFamilies()...)
	s.createNet(t, "other", "--subnet", other4)
	web := s.run(t, "web", "net", "--publish", "8080:7000", "--publish", "8080:7000/udp")
	sibling, guest := s.run(t, "sibling", "net"), s.run(t, "guest", "other")
	for _, network := range protocols {
		connects(t, sibling.Netns, network, at(web.IP4, service))
		sees(t, s.underlay.Outside, network, at(s.IP4, published), s.underlay.IP4)
		connects(t, s.underlay.Outside, network, at(s.IP6, published))
		for _, address := range []netip.Addr{s.IP4, s.IP6, netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()} {
			connects(t, s.Netns, network, at(address, published))
		}
		for _, c := range []*testutil.DockerContainer{sibling, guest, web} {
			// Datagrams from the network itself are answered by Docker's bridge, but
			// not from where they were sent to.
			if s.ebpnet() || network == "tcp" {
				connects(t, c.Netns, network, at(s.IP4, published))
			}
		}
		refusesConnections(t, s.underlay.Outside, network, at(s.IP4, published+1))
	}
	noneIsAnswered(t,
		attempt{guest.Netns, "tcp", "", at(web.IP4, service)}, attempt{guest.Netns, "udp", "", at(web.IP4, service)},
		attempt{web.Netns, "tcp", "", at(guest.IP4, service)}, attempt{web.Netns, "udp", "", at(guest.IP4, service)})
	s.docker.Run(t, "rm", "--force", "web")
	for _, network := range protocols {
		refusesConnections(t, s.underlay.Outside, network, at(s.IP4, published))
		refusesConnections(t, s.Netns, network, "127.0.0.1:8080")
	}
}

func publishedInEveryWay(t *testing.T, s *site) {
	s.createNet(t, "net")
	web := s.run(t, "web", "net", "--publish", "8080:7000/udp",
		"--publish", "9000-9002:7000-7002", "--publish", "9000-9002:7000-7002/udp",
		"--publish", "127.0.0.1:8081:7000", "--publish", s.IP4.String()+":8082:7000/udp",
		"--publish-all", "--expose", "7003", "--expose", "7003/udp")
	for i := 1; i <= 3; i++ {
		serve(t, web.Netns, service+i)
	}
	for _, network := range protocols {
		for i := range 3 {
			connects(t, s.underlay.Outside, network, at(s.IP4, 9000+i))
			connects(t, s.Netns, network, fmt.Sprintf("127.0.0.1:%d", 9000+i))
		}
		connects(t, s.underlay.Outside, network, at(s.IP4, s.hostPort(t, web, service+3, network)))
	}
	// At one address.
	connects(t, s.Netns, "tcp", "127.0.0.1:8081")
	connects(t, s.underlay.Outside, "udp", at(s.IP4, 8082))
	connects(t, s.Netns, "udp", at(s.IP4, 8082))
	noneIsAnswered(t,
		attempt{s.underlay.Outside, "tcp", "", at(s.IP4, 8081)},
		attempt{s.Netns, "tcp", "", at(s.IP4, 8081)},
		attempt{s.Netns, "udp", "", "127.0.0.1:8082"})
	// One that is taken is said to be.
	out, err := s.docker.Try("run", "--detach", "--network", "net", "--publish", "127.0.0.1:8081:7000", testutil.Image)
	if err == nil || !strings.Contains(out, "8081") {
		t.Errorf("a port that is published already: %v, %s; want it refused", err, out)
	}
	keepsClients(t, s, web)
}

// keepsClients restarts a container: what a client sends by UDP must not stay
// with what the container was.
func keepsClients(t *testing.T, s *site, web *testutil.DockerContainer) {
	t.Helper()
	outside := s.underlay.Outside.MustDialFrom(t, "udp", ":41000", at(s.IP4, published))
	host := s.MustDialFrom(t, "udp", ":41000", "127.0.0.1:8080")
	takeTurns(t, outside, host)
	web.Restart(t)
	serve(t, web.Netns, service)
	for _, c := range []*testutil.Conn{outside, host} {
		testutil.Eventually(t, "the restarted container answers "+c.LocalAddr().String(), func() bool {
			_, err := c.Ask(aMoment)
			return err == nil
		})
	}
}

// hostPort finds out at which port of the host a port of a container is.
// Docker can tell it of its own drivers only.
func (s *site) hostPort(t *testing.T, c *testutil.DockerContainer, port int, protocol string) int {
	t.Helper()
	if !s.ebpnet() {
		out := s.docker.Run(t, "port", c.Name, fmt.Sprintf("%d/%s", port, protocol))
		return int(netip.MustParseAddrPort(lines(out)[0]).Port())
	}
	for _, p := range publications(t, s.Host) {
		if p.Endpoint == c.Endpoint && p.Port == port && p.Protocol == protocol {
			return p.HostPort
		}
	}
	t.Fatalf("port %d of %s is not published", port, c.Name)
	return 0
}
