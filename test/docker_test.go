package test

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// site is a host with a Docker Engine, the world outside, and the driver that
// the engine's networks are made with.
type site struct {
	*testutil.Host
	docker   *testutil.Docker
	underlay *testutil.Underlay
	driver   string
	empty    string // its traces without containers and networks
}

// ebpnet tells whether the networks are ebpnet's. Otherwise they are those of
// Docker's own bridge driver, which tells what is right.
func (s *site) ebpnet() bool { return s.driver == "ebpnet" }

// newSite makes a host whose engine, run with options of dockerd, makes
// networks with ebpnet.
func newSite(t *testing.T, options ...string) *site {
	t.Helper()
	h := testutil.NewHost(t, "host")
	s := &site{Host: h, underlay: testutil.NewUnderlay(t, h), driver: "ebpnet"}
	h.Ebpnet(t, "load", "--uplink", testutil.Uplink)
	s.docker = testutil.NewDocker(t, h, options...)
	s.docker.ServePlugin(t)
	s.empty = s.traces(t)
	return s
}

// newBridgeSite makes a host on which there is no ebpnet.
func newBridgeSite(t *testing.T) *site {
	t.Helper()
	h := testutil.NewHost(t, "host")
	s := &site{Host: h, underlay: testutil.NewUnderlay(t, h), driver: "bridge", docker: testutil.NewDocker(t, h)}
	s.empty = s.traces(t)
	return s
}

// withoutRules are options of an engine that leaves the host alone.
func withoutRules() []string {
	return []string{"--iptables=false", "--ip-forward=false", "--bridge=none"}
}

// A scenario shows what containers of an engine can do and what they cannot. It
// leaves nothing to tidy: the site is cleared after it.
type scenario struct {
	name string
	run  func(*testing.T, *site)
}

// TestDocker runs each scenario on Docker's own bridge driver and on ebpnet,
// with the same checks.
func TestDocker(t *testing.T) {
	t.Parallel()
	t.Run("bridge", func(t *testing.T) {
		t.Parallel()
		newBridgeSite(t).play(t, commonScenarios())
	})
	t.Run("ebpnet", func(t *testing.T) {
		t.Parallel()
		s := newSite(t, withoutRules()...)
		s.play(t, commonScenarios())
		s.play(t, ebpnetScenarios())
	})
}

// The rules and the bridge that Docker puts on a host stand in nobody's way.
func TestDockerBesideItsOwnBridge(t *testing.T) {
	t.Parallel()
	newSite(t).play(t, []scenario{
		{"one network", oneNetwork},
		{"without ICC", withoutICC},
		{"two networks", twoNetworks},
		{"flushed firewalls", flushedFirewalls},
	})
}

// commonScenarios are what Docker's bridge does, too.
func commonScenarios() []scenario {
	return []scenario{
		{"one network", oneNetwork},
		{"two networks", twoNetworks},
		{"without ICC", withoutICC},
		{"internal networks", internalNetwork},
		{"published in every way", publishedInEveryWay},
		{"addresses and MTU that are asked for", askedAddresses},
		{"several networks for a container", severalNetworks},
		{"connected and disconnected while it runs", connectedWhileRunning},
		{"a project of Compose", composed},
	}
}

// ebpnetScenarios are of what ebpnet alone has.
func ebpnetScenarios() []scenario {
	return []scenario{
		{"links", linkedContainers},
		{"links by labels", labelledLinks},
		{"links of restarted containers", linksOfRestarted},
		{"unknown options are refused", unknownOptions},
		{"options of networks", networkOptions},
		{"routed networks", routedNetwork},
		{"addresses chosen by ebpnet", addressesByEbpnet},
		{"a network of ebpnet's own", joinedNetwork},
		{"names and ids are shown", namesAreShown},
		{"flushed firewalls", flushedFirewalls},
	}
}

// play runs scenarios, and expects nothing to be left of any when its containers
// and networks are gone.
func (s *site) play(t *testing.T, scenarios []scenario) {
	t.Helper()
	for _, one := range scenarios {
		t.Run(one.name, func(t *testing.T) {
			t.Cleanup(func() { s.clear(t) })
			one.run(t, s)
		})
	}
}

// clear removes everything, and waits until nothing is left of it.
func (s *site) clear(t *testing.T) {
	t.Helper()
	s.docker.Clear(t)
	s.await(t, "nothing is left behind", s.empty)
}

// await waits until the site's traces are as they were.
func (s *site) await(t *testing.T, what, before string) {
	t.Helper()
	var now string
	defer func() {
		if now != before {
			t.Logf("there was:\n%s\nthere is:\n%s", before, now)
		}
	}()
	testutil.Eventually(t, what, func() bool {
		now = s.traces(t)
		return now == before
	})
}

// traces tells what containers and networks are made of: devices, and what
// ebpnet has stored.
func (s *site) traces(t *testing.T) string {
	t.Helper()
	var text strings.Builder
	for _, kind := range []string{"veth", "bridge"} {
		for _, line := range lines(s.Run(t, "ip", "-brief", "link", "show", "type", kind)) {
			name, _, _ := strings.Cut(line, " ")
			fmt.Fprintf(&text, "%s %s\n", kind, name)
		}
	}
	if s.ebpnet() {
		for _, noun := range []string{"network", "endpoint", "port", "link"} {
			text.WriteString(s.Ebpnet(t, noun, "ls"))
		}
	}
	return text.String()
}

// createNet makes a network with the site's driver.
func (s *site) createNet(t *testing.T, name string, options ...string) {
	t.Helper()
	create := []string{"network", "create", "--driver", s.driver}
	s.docker.Run(t, append(append(create, options...), name)...)
}

// bothFamilies are options of a network with IPv6, too.
func bothFamilies(options ...string) []string {
	return append([]string{"--subnet", subnet4, "--ipv6", "--subnet", subnet6}, options...)
}

// run starts a container with an echo server.
func (s *site) run(t *testing.T, name, network string, args ...string) *testutil.DockerContainer {
	t.Helper()
	c := s.docker.NewContainer(t, name, network, args...)
	serve(t, c.Netns, service)
	return c
}

// noneIsAnswered expects no server to answer any of the attempts, however they
// are turned down.
func noneIsAnswered(t *testing.T, attempts ...attempt) {
	t.Helper()
	var all sync.WaitGroup
	for _, a := range attempts {
		all.Go(func() {
			c, err := a.from.DialFrom(t, a.network, a.local, a.address)
			if err == nil {
				defer c.Close()
				_, err = c.Ask(aMoment)
			}
			if err == nil {
				t.Errorf("from %s: %s %s answers", a.from.Name, a.network, a.address)
			}
		})
	}
	all.Wait()
}
