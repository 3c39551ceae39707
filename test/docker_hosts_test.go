package test

import (
	"strconv"
	"testing"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// newEngines makes two hosts joined by a tunnel, each with an engine.
func newEngines(t *testing.T) (a, b *site) {
	t.Helper()
	t.Parallel()
	a, b = &site{Host: testutil.NewHost(t, "a"), driver: "ebpnet"}, &site{Host: testutil.NewHost(t, "b"), driver: "ebpnet"}
	u := testutil.NewUnderlay(t, a.Host, b.Host)
	for _, end := range []struct{ site, peer *site }{{a, b}, {b, a}} {
		end.site.underlay = u
		end.site.Ebpnet(t, "load", "--uplink", testutil.Uplink, "--tunnel-address", end.site.IP4.String())
		end.site.Ebpnet(t, "tunnel", "add", "peer", "--remote", end.peer.IP4.String())
		end.site.docker = testutil.NewDocker(t, end.site.Host, withoutRules()...)
		end.site.docker.ServePlugin(t)
		end.site.empty = end.site.traces(t)
	}
	return a, b
}

// Each engine gives out its own part of the subnet.
func rangeOf(part int) []string {
	return []string{"--ip-range", []string{"172.30.0.64/26", "172.30.0.128/26"}[part]}
}

func TestTwoEnginesShareNetworks(t *testing.T) {
	a, b := newEngines(t)
	expectNoContainerAddress(t, a.underlay)
	for i, s := range []*site{a, b} {
		s.createNet(t, "net", append(rangeOf(i), "--subnet", subnet4, "--opt", "ebpnet.key="+strconv.Itoa(greKey))...)
	}
	web, redis1 := a.run(t, "web", "net"), b.run(t, "redis1", "net", "--publish", "6379:7000")
	spans(t, web, redis1)
	for _, c := range []*testutil.DockerContainer{web, redis1} {
		connects(t, c.Netns, "tcp", at(b.IP4, 6379))
	}
	// An address is found where it has gone to.
	address := redis1.IP4
	b.docker.Run(t, "rm", "--force", "redis1")
	again := a.run(t, "again", "net", "--ip", address.String())
	pingAll(t, web.Container, again.Container)
	a.clear(t)
	b.clear(t)

	// A network that ebpnet has on both hosts is each engine's by its name.
	for _, s := range []*site{a, b} {
		s.Ebpnet(t, "network", "create", "shop", "--subnet", subnet4, "--key", strconv.Itoa(greKey+1))
	}
	for i, s := range []*site{a, b} {
		s.createNet(t, "shop", append(rangeOf(i), "--subnet", subnet4, "--opt", "ebpnet.network=shop",
			"--ipam-driver", "ebpnet", "--ipam-opt", "ebpnet.network=shop")...)
	}
	spans(t, a.run(t, "web", "shop"), b.run(t, "redis1", "shop"))
}

// spans expects two containers of two hosts to reach each other in both
// directions, and with packets of every size.
func spans(t *testing.T, web, redis1 *testutil.DockerContainer) {
	t.Helper()
	for _, end := range []struct{ from, to *testutil.DockerContainer }{{web, redis1}, {redis1, web}} {
		pingAll(t, end.from.Container, end.to.Container)
		ping(t, end.from.Netns, end.to.IP4, "-M", "do", "-s", strconv.Itoa(mtuInGRE-20-8)) // IP and ICMP echo
		for _, network := range protocols {
			sees(t, end.from.Netns, network, at(end.to.IP4, service), end.from.IP4)
		}
	}
	iperf(t, web.Netns, redis1.Netns, redis1.IP4)
}
