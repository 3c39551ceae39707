package test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// interruption is a command of docker's that is cut off, a few times.
type interruption struct {
	command, prepare func(round string) []string // prepare: what it needs, if anything
}

// interruptions give all that they make a name of its own for each round.
func (s *site) interruptions() map[string]interruption {
	run := func(round string) []string {
		return []string{"run", "--detach", "--name", "web" + round, "--network", "net", "--publish", "7000", testutil.Image}
	}
	create := func(round string) []string {
		return []string{"network", "create", "--driver", s.driver, "--ipam-driver", "ebpnet", "net" + round}
	}
	return map[string]interruption{
		"run":                {command: run},
		"network create":     {command: create},
		"network connect":    {func(round string) []string { return []string{"network", "connect", "more", "web" + round} }, run},
		"network disconnect": {func(round string) []string { return []string{"network", "disconnect", "net", "web" + round} }, run},
		"network rm":         {func(round string) []string { return []string{"network", "rm", "net" + round} }, create},
		"rm":                 {func(round string) []string { return []string{"rm", "--force", "web" + round} }, run},
	}
}

// Whatever the engine is about to do when it or ebpnet is killed, running
// containers keep their traffic, new ones work, and docker's commands remove
// all that there is.
func TestDockerKilledAtAnyMoment(t *testing.T) {
	t.Parallel()
	const (
		times      = 2 // that each command is cut off
		engineEach = 3 // once in so many times the engine is killed, else ebpnet
	)
	s := newSite(t, append(withoutRules(), "--live-restore")...)
	entries := s.entries(t)
	s.createNet(t, "net")
	s.createNet(t, "more")
	one, two := s.run(t, "one", "net"), s.run(t, "two", "net")
	running := connects(t, one.Netns, "tcp", at(two.IP4, service))
	all := s.interruptions()
	s.prepare(t, all, times)
	number := 0
	for what, i := range all {
		began := time.Now()
		s.docker.Run(t, i.command(roundOf(what, 0))...)
		takes := time.Since(began)
		for n := range times {
			// At moments all over that time, which differ between commands too.
			part := float64(n*len(all)+number) / float64(times*len(all))
			s.cutOff(t, what, i.command(roundOf(what, n+1)), time.Duration(part*float64(takes)), (n+number)%engineEach == 0)
			running.MustAsk(t)
		}
		number++
	}
	s.awaitAgreement(t)
	s.useEach(t)
	s.docker.Clear(t)
	s.await(t, "nothing is left behind", s.empty)
	if left := s.entries(t); left != entries {
		t.Errorf("the maps have entries\n%swhere they had\n%s", left, entries)
	}
}

// roundOf names a round of a command; that of number 0 is not cut off.
func roundOf(what string, number int) string {
	return fmt.Sprintf("-%s-%d", strings.ReplaceAll(what, " ", "-"), number)
}

// prepare does, at once, what the rounds of all commands need.
func (s *site) prepare(t *testing.T, all map[string]interruption, times int) {
	t.Helper()
	var preparing []*testutil.Process
	for what, i := range all {
		for n := range times + 1 {
			if i.prepare != nil {
				preparing = append(preparing, s.docker.Begin(t, i.prepare(roundOf(what, n))...))
			}
		}
	}
	for _, p := range preparing {
		p.Wait(t)
	}
}

// cutOff begins a command of docker's, kills the engine or ebpnet after a while,
// and starts it again. The command may end as it likes.
func (s *site) cutOff(t *testing.T, what string, command []string, after time.Duration, engine bool) {
	t.Helper()
	ended := make(chan string, 1)
	go func() {
		out, err := s.docker.Try(command...)
		ended <- fmt.Sprintf("%v: %s", err, out)
	}()
	time.Sleep(after) // the moment is what is tested
	victim := "ebpnet"
	if engine {
		victim = "the engine"
		s.docker.Kill(t)
		s.docker.Start(t)
	} else {
		s.docker.Plugin.Kill()
		s.docker.ServePlugin(t)
	}
	t.Logf("%s is killed %v into docker %s: %s", victim, after.Round(time.Millisecond), what, <-ended)
}

// useEach expects new containers to work on each network that the engine has.
func (s *site) useEach(t *testing.T) {
	t.Helper()
	starting := make(map[string]*testutil.Process) // by network
	for _, network := range strings.Fields(s.docker.Run(t, "network", "ls", "--filter", "type=custom", "--format", "{{.Name}}")) {
		starting[network] = s.docker.Begin(t, "run", "--detach", "--name", "on-"+network, "--network", network, testutil.Image)
	}
	for network, start := range starting {
		start.Wait(t)
		fresh := s.docker.Container(t, "on-"+network, network)
		ping(t, s.Netns, fresh.IP4)
		ping(t, fresh.Netns, s.underlay.IP4)
	}
	on := s.docker.Container(t, "on-net", "net")
	pingAll(t, on.Container, s.docker.Container(t, "one", "net").Container)
}

// entries tells how many entries the maps have that nouns are in. What is in the
// others is of traffic, and ends some time after it.
func (s *site) entries(t *testing.T) string {
	t.Helper()
	nouns := []string{
		"carried", "devices", "endpoint_stats", "fdb", "links", "members", "neighbors",
		"networks", "port_sources", "ports", "published_ports",
	}
	var status struct {
		Tables []struct {
			Name    string
			Entries int
		}
	}
	s.EbpnetJSON(t, &status, "status")
	var text strings.Builder
	for _, table := range status.Tables {
		if slices.Contains(nouns, table.Name) {
			fmt.Fprintf(&text, "%s %d\n", table.Name, table.Entries)
		}
	}
	return text.String()
}

// awaitAgreement waits until ebpnet has the networks and endpoints that the
// engine has, and no others, for as long as it takes to be certain of what the
// engine has never confirmed or may still use.
func (s *site) awaitAgreement(t *testing.T) {
	t.Helper()
	const certainty = time.Minute // twice what ebpnet waits for
	for began := time.Now(); ; {
		ours, engines := s.named(t), s.namedByEngine(t)
		if slices.Equal(ours, engines) {
			t.Logf("ebpnet and the engine agree after %v", time.Since(began).Round(time.Millisecond))
			return
		}
		if time.Since(began) > certainty {
			t.Fatalf("ebpnet has\n%q\nwhere the engine has\n%q\n%s", ours, engines, s.traces(t))
		}
		time.Sleep(time.Second / 10)
	}
}

// named gives the names of all networks and endpoints of ebpnet's.
func (s *site) named(t *testing.T) (names []string) {
	t.Helper()
	for _, noun := range []string{"network", "endpoint"} {
		var all []struct{ Name string }
		s.EbpnetJSON(t, &all, noun, "ls")
		for _, one := range all {
			names = append(names, one.Name)
		}
	}
	slices.Sort(names)
	return names
}

// namedByEngine gives what they should be called: the first twelve digits of
// what the engine has. A network knows better than a container what is on it.
func (s *site) namedByEngine(t *testing.T) []string {
	t.Helper()
	networks := strings.Fields(s.docker.Run(t, "network", "ls", "--filter", "type=custom", "--quiet"))
	inspect := []string{"network", "inspect", "--format", `{{range .Containers}}{{printf "%.12s " .EndpointID}}{{end}}`}
	names := append(strings.Fields(s.docker.Run(t, append(inspect, networks...)...)), networks...)
	slices.Sort(names)
	return names
}
