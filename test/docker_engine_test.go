package test

import (
	"errors"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// busy is a site with traffic of every kind through its containers: web, which
// is published and linked to redis1, on a network without ICC.
type busy struct {
	*site
	web, redis1 *testutil.DockerContainer
	running     []*testutil.Conn
}

// newBusySite keeps containers running when its engine ends.
func newBusySite(t *testing.T) *busy {
	t.Helper()
	b := &busy{site: newSite(t, append(withoutRules(), "--live-restore")...)}
	b.createNet(t, "net", bothFamilies("--opt", withoutICCOption, "--ipam-driver", "ebpnet")...)
	b.redis1 = b.run(t, "redis1", "net", "--expose", strconv.Itoa(service))
	b.web = b.run(t, "web", "net", "--link", "redis1", "--publish", "8080:7000", "--publish", "8080:7000/udp")
	serve(t, b.underlay.Outside, service)
	for _, address := range b.redis1.Addresses() {
		awaitConnection(t, b.web.Netns, at(address, service))
		b.running = append(b.running, connects(t, b.web.Netns, "tcp", at(address, service)))
	}
	b.running = append(b.running,
		connects(t, b.underlay.Outside, "tcp", at(b.IP4, published)),
		connects(t, b.underlay.Outside, "udp", at(b.IP6, published)),
		connects(t, b.Netns, "tcp", "127.0.0.1:8080"),
		connects(t, b.web.Netns, "udp", at(b.underlay.IP4, service)))
	return b
}

// throughout expects all traffic to go on while f happens, and after it: no
// packet of a steady ping is lost.
func (b *busy) throughout(t *testing.T, f func()) {
	t.Helper()
	const interval = "0.02" // seconds
	steady := b.web.Start(t, "ping", "-n", "-i", interval, b.underlay.IP4.String())
	steady.Await(t, "bytes from")
	f()
	takeTurns(t, b.running...)
	b.goesOn(t)
	out := steady.Interrupt()
	if !strings.Contains(out, " 0% packet loss") {
		t.Errorf("packets are lost meanwhile:\n%s", lines(out)[len(lines(out))-3:])
	}
}

// goesOn expects what is allowed to be so for new connections, and nothing else.
func (b *busy) goesOn(t *testing.T) {
	t.Helper()
	for _, network := range protocols {
		sees(t, b.underlay.Outside, network, at(b.IP4, published), b.underlay.IP4)
		sees(t, b.web.Netns, network, at(b.underlay.IP6, service), b.IP6)
		connects(t, b.Netns, network, "127.0.0.1:8080")
	}
	for i, address := range b.redis1.Addresses() {
		connects(t, b.web.Netns, "tcp", at(address, service))
		noneIsAnswered(t, attempt{b.redis1.Netns, "tcp", "", at(b.web.Addresses()[i], service)})
	}
}

// works expects the engine to make and remove containers as ever.
func (b *busy) works(t *testing.T) {
	t.Helper()
	before := b.traces(t)
	b.createNet(t, "later", "--ipam-driver", "ebpnet")
	one, two := b.run(t, "one", "later", "--publish", "8090:7000"), b.run(t, "two", "net", "--link", "redis1")
	ping(t, b.Netns, one.IP4)
	connects(t, b.underlay.Outside, "tcp", at(b.IP4, 8090))
	awaitConnection(t, two.Netns, at(b.redis1.IP4, service))
	b.docker.Run(t, "rm", "--force", "one", "two")
	b.docker.Run(t, "network", "rm", "later")
	b.await(t, "nothing is left of what was made", before)
}

// Whatever restarts, containers keep their traffic, and what has ended meanwhile
// is cleared away.
func TestDockerRestarts(t *testing.T) {
	t.Parallel()
	b := newBusySite(t)
	d := b.docker
	for _, restart := range []struct {
		what       string
		end, start func()
	}{
		{"the engine, ended", func() { d.Stop(t) }, func() { d.Start(t) }},
		{"the engine, killed", func() { d.Kill(t) }, func() { d.Start(t) }},
		{"ebpnet, killed", func() { d.Plugin.Kill() }, func() { d.ServePlugin(t) }},
		{"both, killed", func() { d.Kill(t); d.Plugin.Kill() }, func() { d.ServePlugin(t); d.Start(t) }},
	} {
		t.Log(restart.what)
		doomed := d.NewContainer(t, "doomed", "net", "--publish", "8090:7000")
		b.throughout(t, func() {
			restart.end()
			kill(t, doomed)
			takeTurns(t, b.running...)
			restart.start()
		})
		b.awaitGone(t, doomed)
		b.revives(t, doomed)
		b.works(t)
	}

	// The engine goes through with what it began as soon as ebpnet is back.
	doomed := d.NewContainer(t, "doomed", "net", "--publish", "8090:7000")
	d.Plugin.Kill()
	removal := d.Begin(t, "rm", "--force", doomed.Name)
	testutil.Eventually(t, "the container's program has ended", func() bool {
		return errors.Is(syscall.Kill(doomed.PID, 0), syscall.ESRCH)
	})
	b.goesOn(t)
	d.ServePlugin(t)
	removal.Wait(t)
	b.awaitGone(t, doomed)
	b.goesOn(t)
	b.web.Restart(t)
	b.clear(t)
}

// revives starts a container again that has ended and is published at 8090, and
// removes it.
func (b *busy) revives(t *testing.T, c *testutil.DockerContainer) {
	t.Helper()
	b.docker.Run(t, "start", c.Name)
	c.Look(t)
	serve(t, c.Netns, service)
	connects(t, b.underlay.Outside, "tcp", at(b.IP4, 8090))
	b.docker.Run(t, "rm", "--force", c.Name)
}

// An engine without --live-restore ends its containers, or finds them ended.
func TestDockerEngineEndsItsContainers(t *testing.T) {
	t.Parallel()
	s := newSite(t, withoutRules()...)
	s.createNet(t, "net")
	web := s.docker.NewContainer(t, "web", "net", "--publish", "8080:7000")
	for what, end := range map[string]func(testing.TB){"ended": s.docker.Stop, "killed": s.docker.Kill} {
		t.Log(what)
		end(t)
		s.docker.Start(t)
		s.awaitGone(t, web)
		refusesConnections(t, s.underlay.Outside, "tcp", at(s.IP4, published))
		s.docker.Run(t, "start", "web")
		web.Look(t)
		serve(t, web.Netns, service)
		connects(t, s.underlay.Outside, "tcp", at(s.IP4, published))
	}
	s.clear(t)
}

// kill ends the container's program behind the engine's back.
func kill(t *testing.T, c *testutil.DockerContainer) {
	t.Helper()
	if err := syscall.Kill(c.PID, syscall.SIGKILL); err != nil {
		t.Fatalf("kill the program of %s: %v", c.Name, err)
	}
}

// awaitGone waits until ebpnet has none of the containers' endpoints any more.
func (s *site) awaitGone(t *testing.T, containers ...*testutil.DockerContainer) {
	t.Helper()
	for _, c := range containers {
		testutil.Eventually(t, "the endpoint of "+c.Name+" is gone", func() bool {
			_, there := endpoints(t, s.Host)[c.Endpoint]
			return !there
		})
	}
}

// Without ebpnet nothing is made, and the engine says why. What it removes it
// forgets in the end, and ebpnet finds out when it is back.
func TestDockerWithoutThePlugin(t *testing.T) {
	const words = "ebpnet.sock: connect: connection refused"
	t.Parallel()
	s := newSite(t, withoutRules()...)
	s.createNet(t, "net")
	s.createNet(t, "idle")
	stays, goes := s.run(t, "stays", "net"), s.docker.NewContainer(t, "goes", "net")
	s.docker.Plugin.Kill()
	var trying sync.WaitGroup // for half a minute
	for _, args := range [][]string{
		{"network", "create", "--driver", "ebpnet", "other"},
		{"run", "--detach", "--name", "web", "--network", "net", testutil.Image},
	} {
		trying.Go(func() {
			if out, err := s.docker.Try(args...); err == nil || !strings.Contains(out, words) {
				t.Errorf("docker %s: %v, %s; want %q", args[0], err, out, words)
			}
		})
	}
	for _, args := range [][]string{{"rm", "--force", "goes"}, {"network", "rm", "idle"}} {
		trying.Go(func() {
			if out, err := s.docker.Try(args...); err != nil {
				t.Errorf("docker %s: %v, %s", args[0], err, out)
			}
		})
	}
	trying.Wait()
	ping(t, s.Netns, stays.IP4)
	s.docker.ServePlugin(t)
	s.awaitGone(t, goes)
	ping(t, s.Netns, stays.IP4)
	s.docker.Run(t, "rm", "--force", "web")
	web := s.run(t, "web", "net")
	pingAll(t, stays.Container, web.Container)
	s.clear(t)
}
