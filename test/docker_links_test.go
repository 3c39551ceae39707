package test

import (
	"strconv"
	"strings"
	"testing"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// awaitConnection waits until a container gets through to an echo server: a
// link is there a moment after the engine has told that its client runs.
func awaitConnection(t *testing.T, from *testutil.Netns, address string) {
	t.Helper()
	testutil.Eventually(t, from.Name+" connects to "+address, func() bool {
		c, err := from.Dial(t, "tcp", address)
		if err != nil {
			return false
		}
		defer c.Close()
		_, err = c.Ask(aMoment)
		return err == nil
	})
}

func linkedContainers(t *testing.T, s *site) {
	s.createNet(t, "net", "--opt", withoutICCOption)
	redis1 := s.run(t, "redis1", "net", "--expose", strconv.Itoa(service))
	serve(t, redis1.Netns, service+1)
	web, other := s.run(t, "web", "net", "--link", "redis1:redis"), s.run(t, "other", "net")
	awaitConnection(t, web.Netns, at(redis1.IP4, service))
	noneIsAnswered(t,
		attempt{web.Netns, "tcp", "", at(redis1.IP4, service+1)}, // not exposed
		attempt{web.Netns, "udp", "", at(redis1.IP4, service)},
		attempt{redis1.Netns, "tcp", "", at(web.IP4, service)}, // the other way
		attempt{other.Netns, "tcp", "", at(redis1.IP4, service)})
	if found := web.Exec(t, "nslookup", "redis"); !strings.Contains(found, redis1.IP4.String()) {
		t.Errorf("the alias is not that of the server:\n%s", found)
	}
	want := "REDIS_PORT_7000_TCP=tcp://" + at(redis1.IP4, service)
	if env := s.Ebpnet(t, "link", "env", "web"); !strings.Contains(env, want+"\n") {
		t.Errorf("want %s in\n%s", want, env)
	}
	running := connects(t, web.Netns, "tcp", at(redis1.IP4, service))
	s.docker.Run(t, "rm", "--force", "other")
	running.MustAsk(t)

	// A container that comes to the network later asks for links then.
	s.createNet(t, "elsewhere")
	s.run(t, "late", "elsewhere")
	s.docker.Run(t, "network", "connect", "--link", "redis1:redis", "net", "late")
	late := s.docker.Container(t, "late", "net")
	awaitConnection(t, late.Netns, at(redis1.IP4, service))
	noneIsAnswered(t, attempt{late.Netns, "tcp", "", at(redis1.IP4, service+1)})

	// A program may connect first thing: what is lost of it is sent again.
	program := "echo hello | nc -w 5 " + redis1.IP4.String() + " " + strconv.Itoa(service)
	out := s.docker.Run(t, "run", "--rm", "--network", "net", "--link", "redis1", testutil.Image, "sh", "-c", program)
	if !strings.Contains(out, "hello") {
		t.Errorf("a linked program hears %q", out)
	}
}

func labelledLinks(t *testing.T, s *site) {
	s.createNet(t, "net", "--opt", withoutICCOption)
	// A server may come after its client.
	web := s.run(t, "web", "net", "--label", "ebpnet.link=redis1:7000/tcp,redis1:7002/tcp,db")
	redis1, db := s.run(t, "redis1", "net", "--expose", "7001"), s.run(t, "db", "net", "--expose", "7000")
	serve(t, redis1.Netns, service+1)
	serve(t, redis1.Netns, service+2)
	for _, address := range []string{at(redis1.IP4, service), at(redis1.IP4, service+2), at(db.IP4, service)} {
		awaitConnection(t, web.Netns, address)
	}
	noneIsAnswered(t,
		attempt{web.Netns, "tcp", "", at(redis1.IP4, service+1)}, // exposed, but not asked for
		attempt{db.Netns, "tcp", "", at(redis1.IP4, service)})

	// A link of the user's own is not the engine's to take away.
	s.Ebpnet(t, "link", "add", "db", "redis1", "--port", "7000/tcp")
	connects(t, db.Netns, "tcp", at(redis1.IP4, service))
	s.docker.Run(t, "rm", "--force", "web")
	connects(t, db.Netns, "tcp", at(redis1.IP4, service))
}

func linksOfRestarted(t *testing.T, s *site) {
	s.createNet(t, "net", "--opt", withoutICCOption)
	redis1 := s.run(t, "redis1", "net", "--expose", strconv.Itoa(service))
	web := s.run(t, "web", "net", "--link", "redis1")
	awaitConnection(t, web.Netns, at(redis1.IP4, service))
	s.docker.Run(t, "stop", "redis1")
	s.run(t, "first", "net") // which takes the first free address
	redis1.Restart(t)
	serve(t, redis1.Netns, service)
	awaitConnection(t, web.Netns, at(redis1.IP4, service))

	web.Restart(t)
	serve(t, web.Netns, service)
	awaitConnection(t, web.Netns, at(redis1.IP4, service))
	noneIsAnswered(t, attempt{redis1.Netns, "tcp", "", at(web.IP4, service)})
}
