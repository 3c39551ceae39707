package test

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// What the engine has made ebpnet keeps as it is, beside what the user made.
func TestDockerMade(t *testing.T) {
	t.Parallel()
	newSite(t, withoutRules()...).play(t, []scenario{
		{"interfaces made anew", interfacesMadeAnew},
		{"links that an image asks for", linksOfImages},
		{"removed behind the engine's back", removedBehindItsBack},
		{"one address for two", oneAddressForTwo},
		{"names in links", namesInLinks},
		{"ports of the user's own", portsOfTheUser},
	})
}

// A container gets what it had, and no network more than the engine chose for
// its default route.
func interfacesMadeAnew(t *testing.T, s *site) {
	// The engine has the default route by the network whose name comes first.
	s.createNet(t, "back", bothFamilies("--opt", "ebpnet.routes=10.99.0.0/16,fd00:99::/64")...)
	s.createNet(t, "front", "--ipv6", "--subnet", other4, "--subnet", other6, "--opt", "ebpnet.routes=10.98.0.0/16")
	var all []*testutil.DockerContainer
	for i, first := range []string{"back", "front", "back", "front"} {
		second := map[string]string{"back": "front", "front": "back"}[first]
		web := s.run(t, fmt.Sprintf("web%d", i), first, "--publish", fmt.Sprintf("%d:%d", published+i, service))
		s.docker.Run(t, "network", "connect", second, web.Name)
		all = append(all, web)
	}
	before := make([]string, len(all))
	for i, web := range all {
		before[i] = inside(t, web)
		for _, want := range []string{
			"10.98.0.0/16 via", "10.99.0.0/16 via", "fd00:99::/64 via",
			"default via " + gateway4.String(), "default via " + gateway6.String(),
		} {
			if !strings.Contains(before[i], want) {
				t.Fatalf("%s has no %q:\n%s", web.Name, want, before[i])
			}
		}
	}
	restored := func(after string) {
		t.Helper()
		for i, web := range all {
			awaitInside(t, web, after, before[i])
			for _, address := range []netip.Addr{s.IP4, s.IP6} {
				connects(t, s.underlay.Outside, "tcp", at(address, published+i))
			}
		}
	}
	for range 2 {
		s.Ebpnet(t, "unload")
		s.Ebpnet(t, "load")
		restored("unload and load")
	}
	for _, line := range lines(s.Run(t, "ip", "-brief", "link", "show", "type", "veth")) {
		if device, _, _ := strings.Cut(line, "@"); strings.HasPrefix(device, "ebp-") {
			s.Run(t, "ip", "link", "del", device)
		}
	}
	restored("deleting the devices")
}

// awaitInside waits until a container has what it had. The kernel takes a while
// to call an interface up.
func awaitInside(t *testing.T, c *testutil.DockerContainer, after, before string) {
	t.Helper()
	var now string
	defer func() {
		if now != before {
			t.Logf("there was:\n%s\nthere is:\n%s", before, now)
		}
	}()
	testutil.Eventually(t, c.Name+" has what it had, after "+after, func() bool {
		now = inside(t, c)
		return now == before
	})
}

// inside is what a container has been given: interfaces and routes.
func inside(t *testing.T, c *testutil.DockerContainer) string {
	t.Helper()
	var text strings.Builder
	for _, kind := range []string{"link", "addr"} {
		for _, line := range lines(c.Run(t, "ip", "-brief", kind, "show", "type", "veth")) {
			name, rest, _ := strings.Cut(line, "@") // the number of the other end is another
			fmt.Fprintln(&text, name, strings.Fields(rest)[1:])
		}
	}
	for _, family := range []string{"-4", "-6"} {
		text.WriteString(c.Run(t, "ip", family, "route", "show"))
	}
	return text.String()
}

// Whoever makes an image has no say in what its containers reach.
func linksOfImages(t *testing.T, s *site) {
	s.createNet(t, "net", "--opt", withoutICCOption)
	server := s.run(t, "server", "net")
	serve(t, server.Netns, service+1)
	s.docker.Run(t, "commit", "--pause=false", "--change", "LABEL ebpnet.link=server:7000/tcp", "server", "sly")
	run := func(name, image string, label ...string) *testutil.DockerContainer {
		s.docker.Run(t, append(append([]string{"run", "--detach", "--name", name, "--network", "net"}, label...), image)...)
		return s.docker.Container(t, name, "net")
	}
	sly := run("unasked", "sly")
	other := run("asked", "sly", "--label", "ebpnet.link=server:7001/tcp")
	plain := run("plain", testutil.Image, "--label", "ebpnet.link=server:7000/tcp")
	awaitConnection(t, plain.Netns, at(server.IP4, service))
	awaitConnection(t, other.Netns, at(server.IP4, service+1))
	s.docker.Plugin.Await(t, "the label is the image's")
	noneIsAnswered(t,
		attempt{sly.Netns, "tcp", "", at(server.IP4, service)},
		attempt{sly.Netns, "tcp", "", at(server.IP4, service+1)},
		attempt{other.Netns, "tcp", "", at(server.IP4, service)})
	if links := s.Ebpnet(t, "link", "ls"); strings.Contains(links, sly.Endpoint) {
		t.Errorf("the image's label has made a link:\n%s", links)
	}
}

// What the engine counts on is taken away only by force, and it copes with that.
func removedBehindItsBack(t *testing.T, s *site) {
	s.createNet(t, "net")
	web, sibling := s.run(t, "web", "net", "--publish", "8080:7000"), s.run(t, "sibling", "net")
	named := func(command ...string) {
		t.Helper()
		testutil.Eventually(t, "ebpnet understands "+command[2], func() bool {
			_, stderr, code := s.TryEbpnet(command...)
			return code == exitFailure && strings.Contains(stderr, "docker")
		})
		refused(t, s.Host, exitFailure, command, "docker", "--force")
	}
	named("endpoint", "rm", "web")
	named("network", "rm", "net")
	refused(t, s.Host, exitFailure, []string{"endpoint", "rm", web.Endpoint}, "docker", "--force")
	pingAll(t, sibling.Container, web.Container)
	connects(t, s.underlay.Outside, "tcp", at(s.IP4, published))

	s.Ebpnet(t, "endpoint", "rm", "web", "--force")
	noneIsAnswered(t,
		attempt{sibling.Netns, "tcp", "", at(web.IP4, service)},
		attempt{s.underlay.Outside, "tcp", "", at(s.IP4, published)})
	web.Restart(t)
	serve(t, web.Netns, service)
	pingAll(t, sibling.Container, web.Container)
	connects(t, s.underlay.Outside, "tcp", at(s.IP4, published))
	for _, c := range []*testutil.DockerContainer{web, sibling} {
		s.Ebpnet(t, "endpoint", "rm", c.Endpoint, "--force")
	}
	s.docker.Run(t, "network", "disconnect", "net", "sibling")
	s.docker.Run(t, "network", "connect", "net", "sibling")
	ping(t, s.Netns, s.docker.Container(t, "sibling", "net").IP4)
	s.docker.Run(t, "rm", "--force", "web", "sibling")

	s.Ebpnet(t, "network", "rm", "net", "--force")
	if out, err := s.docker.Try("run", "--detach", "--name", "web", "--network", "net", testutil.Image); err == nil || !strings.Contains(out, "docker network rm") {
		t.Errorf("docker run on a network that is gone: %v, %s; want advice", err, out)
	}
	s.docker.Run(t, "rm", "--force", "web")
	s.docker.Run(t, "network", "rm", "net")
	s.createNet(t, "net")
	ping(t, s.Netns, s.run(t, "web", "net").IP4)
}

func oneAddressForTwo(t *testing.T, s *site) {
	s.createNet(t, "net", "--ipam-driver", "ebpnet", "--subnet", subnet4)
	const address, attempts = "172.30.0.77", 3
	for range attempts {
		names := []string{"one", "two"}
		var started [2]bool
		var both sync.WaitGroup
		for i, name := range names {
			both.Go(func() {
				out, err := s.docker.Try("run", "--detach", "--name", name, "--network", "net", "--ip", address, testutil.Image)
				if started[i] = err == nil; err != nil && !strings.Contains(out, address) {
					t.Errorf("docker run %s: %s; want it to speak of %s", name, out, address)
				}
			})
		}
		both.Wait()
		if started[0] == started[1] {
			t.Fatalf("containers %q with one address have started: %t", names, started)
		}
		if started[1] {
			names[0], names[1] = names[1], names[0]
		}
		winner, loser := s.docker.Container(t, names[0], "net"), names[1]
		ping(t, s.Netns, winner.IP4)
		s.docker.Run(t, "rm", "--force", loser)
		ping(t, s.Netns, winner.IP4)
		if out := winner.Run(t, "ip", "-brief", "addr", "show", "dev", testutil.Device); !strings.Contains(out, " "+address+"/24") {
			t.Errorf("the interface is %q, want address %s", out, address)
		}
		s.docker.Run(t, "rm", "--force", winner.Name)
	}
}

// A program is told of its links by the names that containers have.
func namesInLinks(t *testing.T, s *site) {
	s.createNet(t, "net", bothFamilies("--opt", withoutICCOption)...)
	redis1 := s.run(t, "redis1", "net", "--expose", strconv.Itoa(service))
	web := s.run(t, "web", "net", "--link", "redis1:cache")
	awaitConnection(t, web.Netns, at(redis1.IP4, service))
	expectEnv(t, s.Host, "web", []string{
		"CACHE_PORT=tcp://" + at(redis1.IP4, service),
		"CACHE_PORT_7000_TCP=tcp://" + at(redis1.IP4, service),
		"CACHE_PORT_7000_TCP_ADDR=" + redis1.IP4.String(),
		"CACHE_PORT_7000_TCP_PORT=7000",
		"CACHE_PORT_7000_TCP_PROTO=tcp",
		"CACHE_NAME=/web/cache",
	})
	want := redis1.IP4.String() + " cache redis1\n" + redis1.IP6.String() + " cache redis1\n"
	for _, called := range []string{"web", web.ID[:12]} {
		if hosts := s.Ebpnet(t, "link", "hosts", called); hosts != want {
			t.Errorf("the hosts of %s are\n%swant\n%s", called, hosts, want)
		}
	}
}

// The engine publishes by the network of the default route, and takes away what
// it has published there, not what the user has.
func portsOfTheUser(t *testing.T, s *site) {
	s.createNet(t, "front")
	s.createNet(t, "back")
	web := s.run(t, "web", "front", "--publish", "8080:7000")
	testutil.Eventually(t, "ebpnet knows the container by name", func() bool {
		_, _, code := s.TryEbpnet("port", "add", "web", "8081:7000")
		return code == 0
	})
	at8080 := func() (endpoint string) {
		t.Helper()
		users := 0
		for _, p := range publications(t, s.Host) {
			switch {
			case p.HostPort == published:
				endpoint = p.Endpoint
			case p.HostPort == published+1 && p.Endpoint == web.Endpoint:
				users++
			}
		}
		if users != 1 {
			t.Errorf("port 8081 is published %d times by %s, want once:\n%s", users, web.Endpoint, s.Ebpnet(t, "port", "ls"))
		}
		return endpoint
	}
	answer := func() {
		t.Helper()
		connects(t, s.underlay.Outside, "tcp", at(s.IP4, published))
		connects(t, s.underlay.Outside, "tcp", at(s.IP4, published+1))
	}
	answer()
	s.docker.Run(t, "network", "connect", "back", "web")
	if inside := web.On(t, "back"); at8080() != inside.Endpoint {
		t.Errorf("port 8080 is at %s, want %s:\n%s", at8080(), inside.Endpoint, s.Ebpnet(t, "port", "ls"))
	}
	connects(t, s.underlay.Outside, "tcp", at(s.IP4, published))
	s.docker.Run(t, "network", "disconnect", "back", "web")
	if at8080() != web.Endpoint {
		t.Errorf("port 8080 is at %s, want %s:\n%s", at8080(), web.Endpoint, s.Ebpnet(t, "port", "ls"))
	}
	answer()
}

// A network that the engine forgets while ebpnet is away is gone when that is
// back, also if the engine has no other.
func TestDockerForgetsItsOnlyNetwork(t *testing.T) {
	t.Parallel()
	s := newSite(t, withoutRules()...)
	s.createNet(t, "net", "--subnet", subnet4)
	testutil.Eventually(t, "ebpnet knows the network's name", func() bool {
		return strings.Contains(s.Ebpnet(t, "network", "ls"), "docker net (")
	})
	s.docker.Plugin.Kill()
	s.docker.Run(t, "network", "rm", "net") // which takes a while to give up
	if networks := s.Ebpnet(t, "network", "ls"); !strings.Contains(networks, subnet4) {
		t.Errorf("the network is gone already:\n%s", networks)
	}
	s.docker.ServePlugin(t)
	s.await(t, "the network is gone", s.empty)
	s.createNet(t, "net", "--subnet", subnet4)
	ping(t, s.Netns, s.run(t, "web", "net").IP4)
	s.clear(t)
}
