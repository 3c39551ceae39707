package test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

func TestUpgradeLosesNothing(t *testing.T) {
	const iperfPort = 5201
	p := newPair(t, greKey, greKey, "--icc=false")
	p.on(t, "link", "add", "web", "redis1", "--port", strconv.Itoa(service)+"/tcp", "--port", strconv.Itoa(iperfPort)+"/tcp")
	serve(t, p.redis1.Netns, service)
	serve(t, p.underlay.Outside, service)
	established := []*testutil.Conn{
		connects(t, p.web.Netns, "tcp", at(p.redis1.IP4, service)),
		connects(t, p.web.Netns, "tcp", at(p.underlay.IP4, service)),
		connects(t, p.web.Netns, "udp", at(p.underlay.IP6, service)),
	}
	server := p.redis1.Start(t, "iperf3", "--server", "--one-off", "--forceflush")
	server.Await(t, "Server listening")
	stream := p.web.Start(t, "iperf3", "--client", p.redis1.IP4.String(), "--time", "4")
	var pings []*testutil.Process
	for _, ping := range []struct {
		from *testutil.Netns
		to   netip.Addr
	}{{p.web.Netns, p.underlay.IP4}, {p.web.Netns, p.underlay.IP6}, {p.web.Netns, gateway4}, {p.a.Netns, p.other.IP4}} {
		pings = append(pings, ping.from.Start(t, "ping", "-n", "-q", "-i", "0.01", "-c", "400", ping.to.String()))
	}
	flows := p.a.Ebpnet(t, "flow", "ls")

	loads := 0
	for ; stream.Running() || pings[0].Running(); loads++ {
		for _, h := range []*testutil.Host{p.a, p.b} {
			h.Ebpnet(t, "load", "--uplink", testutil.Uplink, "--tunnel-address", h.IP4.String())
		}
	}
	for _, ping := range pings {
		if out := ping.Wait(t); !strings.Contains(out, " 0% packet loss") {
			t.Errorf("packets are lost over %d upgrades:\n%s", loads, out)
		}
	}
	stream.Wait(t)
	takeTurns(t, established...)
	if loads < 2 {
		t.Errorf("only %d upgrades while there was traffic", loads)
	}
	for _, c := range established[1:] { // those with a translation
		if local := c.LocalAddr().String(); !strings.Contains(flows, local) || !strings.Contains(p.a.Ebpnet(t, "flow", "ls"), local) {
			t.Errorf("the flow of %s is not carried over", local)
		}
	}
	connectsNot(t, p.a, "policy", p.other.Netns, "tcp", at(p.redis1.IP4, service))
}

func TestLoadRebuildsEverything(t *testing.T) {
	for _, wipe := range []struct {
		what string
		do   func(*testing.T, *testutil.Host)
	}{
		{"pins gone", func(t *testing.T, h *testutil.Host) {
			if err := os.RemoveAll(h.Pin); err != nil {
				t.Fatal(err)
			}
		}},
		{"unloaded", func(t *testing.T, h *testutil.Host) {
			h.Ebpnet(t, "unload")
			if out := h.Run(t, "ip", "-o", "link"); strings.Contains(out, "ebpnet") {
				t.Errorf("unload leaves devices:\n%s", out)
			}
			if _, err := os.Stat(h.Pin); !os.IsNotExist(err) {
				t.Errorf("unload leaves %s: %v", h.Pin, err)
			}
		}},
	} {
		t.Run(wipe.what, func(t *testing.T) {
			h, u := newOutside(t)
			createNet(t, h, "--icc=false")
			serve(t, u.Outside, service)
			web, server := h.NewContainer(t, "web", "net"), h.NewContainer(t, "server", "net")
			vanishing := h.NewContainer(t, "vanishing", "net")
			serve(t, server.Netns, service)
			h.Ebpnet(t, "link", "add", "web", "server", "--port", strconv.Itoa(service)+"/tcp")
			works := func() {
				t.Helper()
				connects(t, web.Netns, "tcp", at(server.IP4, service))
				connects(t, web.Netns, "tcp", at(server.IP6, service))
				connects(t, web.Netns, "tcp", at(u.IP4, service))
				connects(t, web.Netns, "udp", at(u.IP6, service))
				connectsNot(t, h, "policy", server.Netns, "tcp", at(web.IP4, service))
				ping(t, web.Netns, gateway4)
				ping(t, h.Netns, web.IP6)
			}
			works()
			before := endpoints(t, h)

			wipe.do(t, h)
			testutil.Eventually(t, "nothing passes without ebpnet", func() bool {
				_, err := web.Dial(t, "tcp", at(u.IP4, service))
				return err != nil
			})
			vanishing.Remove(t)
			h.Ebpnet(t, "load") // uplinks and all from the store
			works()
			after := endpoints(t, h)
			for _, name := range []string{"web", "server"} {
				if fmt.Sprint(after[name].Addresses) != fmt.Sprint(before[name].Addresses) || after[name].MAC != before[name].MAC {
					t.Errorf("%s was %v and is %v", name, before[name], after[name])
				}
			}
			if e, there := after["vanishing"]; there {
				t.Errorf("an endpoint whose namespace is gone is there: %v", e)
			}
		})
	}
}

func TestVanishedNamespaceIsCleanedUp(t *testing.T) {
	h := newHost(t)
	createNet(t, h)
	a := h.NewContainer(t, "a", "net")
	devices := veths(t, h.Netns)
	for what, command := range map[string][]string{
		"load":               {"load"},
		"a changing command": {"network", "set", "net", "--icc=true"},
	} {
		gone := h.NewContainer(t, "gone", "net")
		process := h.Start(t, "unshare", "--net", "sleep", "1000")
		// Until unshare has done its work, the namespace is still the host's.
		testutil.Eventually(t, "a namespace of its own", func() bool {
			own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", process.PID()))
			return err == nil && own != netnsOf(t, h.Netns)
		})
		h.Ebpnet(t, "endpoint", "add", "process", "--network", "net", "--netns", fmt.Sprintf("pid:%d", process.PID()))
		pingAll(t, a, gone)
		process.Kill()
		gone.Remove(t)
		// A namespace lasts as long as the kernel takes to end it.
		testutil.Eventually(t, what+" removes endpoints whose namespaces are gone", func() bool {
			h.Ebpnet(t, command...)
			return len(endpoints(t, h)) == 1 && veths(t, h.Netns) == devices
		})
	}
	pingAll(t, h.NewContainer(t, "gone", "net"), a)
}

// TestVanishedEndpointIsToldInOneLine gives a command the name of an endpoint
// whose namespace has gone, and another command that finds it gone.
func TestVanishedEndpointIsToldInOneLine(t *testing.T) {
	h := newHost(t)
	createNet(t, h)
	vanish := func(name string) {
		t.Helper()
		gone := h.NewContainer(t, name, "net")
		devices := veths(t, h.Netns)
		gone.Remove(t)
		// A namespace lasts as long as the kernel takes to end it.
		testutil.Eventually(t, "the namespace of "+name+" has gone", func() bool { return veths(t, h.Netns) < devices })
	}
	for _, command := range [][]string{
		{"endpoint", "set", "gone", "--max-flows", "5"},
		{"endpoint", "rm", "gone"},
		{"port", "add", "gone", "8080:80"},
	} {
		vanish("gone")
		refused(t, h, exitFailure, command, `ebpnet: no endpoint "gone"`, "its namespace", "has gone")
		refused(t, h, exitFailure, command, `ebpnet: no endpoint "gone"`)
	}
	vanish("gone")
	warns(t, h, []string{"network", "set", "net", "--icc=true"}, "ebpnet: warning: endpoint removed: its namespace has gone endpoint=gone")
	vanish("gone")
	_, stderr, code := h.TryEbpnet("endpoint", "set", "nobody", "--max-flows", "5")
	if code != exitFailure || strings.Count(stderr, "\n") != 2 || !strings.Contains(stderr, "endpoint=gone") || !strings.Contains(stderr, `no endpoint "nobody"`) {
		t.Errorf("a command about another endpoint: exit code %d, %q", code, stderr)
	}
}

func netnsOf(t *testing.T, n *testutil.Netns) (link string) {
	t.Helper()
	var err error
	n.Do(func() { link, err = os.Readlink("/proc/thread-self/ns/net") })
	if err != nil {
		t.Fatal(err)
	}
	return link
}

func TestCommandsAtOnce(t *testing.T) {
	const rounds, atOnce = 10, 2
	h := newHost(t)
	createNet(t, h)
	first := h.NewContainer(t, "first", "net")
	for round := range rounds {
		var wg sync.WaitGroup
		for i := range atOnce {
			n := testutil.NewNetns(t, "c")
			wg.Go(func() {
				_, stderr, code := h.TryEbpnet("endpoint", "add", fmt.Sprintf("c%d-%d", round, i), "--network", "net", "--netns", n.Name)
				if code != 0 {
					t.Errorf("round %d: exit code %d: %s", round, code, stderr)
				}
			})
		}
		wg.Wait()
	}
	all := endpoints(t, h)
	if len(all) != 1+rounds*atOnce {
		t.Errorf("%d endpoints, want %d", len(all), 1+rounds*atOnce)
	}
	owner := make(map[netip.Addr]string)
	for name, e := range all {
		for _, address := range e.Addresses {
			if other, taken := owner[address]; taken {
				t.Errorf("%s and %s both have %s", name, other, address)
			}
			owner[address] = name
			ping(t, first.Netns, address)
		}
	}
}

func TestKilledCommandsAreMended(t *testing.T) {
	const rounds = 24
	h, _ := newOutside(t)
	createNet(t, h)
	first := h.NewContainer(t, "first", "net")
	namespaces := map[string]*testutil.Netns{"first": first.Netns}
	hostDevices := veths(t, h.Netns) - 1

	start := time.Now()
	h.Ebpnet(t, "load", "--uplink", testutil.Uplink)
	longest := time.Since(start)

	for round := range rounds {
		name := fmt.Sprintf("c%d", round)
		n := testutil.NewNetns(t, name)
		namespaces[name] = n
		add := []string{"endpoint", "add", name, "--network", "net", "--netns", n.Name}
		command := add
		switch round % 4 {
		case 1:
			command = []string{"network", "create", name, "--subnet", fmt.Sprintf("10.0.%d.0/24", round)}
		case 2:
			command = []string{"load", "--uplink", testutil.Uplink}
		case 3:
			h.Ebpnet(t, add...)
			command = []string{"endpoint", "rm", name}
		}
		argv := h.Command(command...)
		process := h.Start(t, argv[0], argv[1:]...)
		time.Sleep(rand.N(longest))
		process.Kill()

		h.Ebpnet(t, "network", "set", "net", "--icc=true")
		all := endpoints(t, h)
		for name, n := range namespaces {
			e, wanted := all[name]
			if !wanted {
				if veths(t, n) != 0 {
					t.Fatalf("after kill -9 of %q: %s is no endpoint and has a device", command, name)
				}
				continue
			}
			for _, address := range e.Addresses {
				ping(t, h.Netns, address)
				if name != "first" {
					ping(t, first.Netns, address)
				}
			}
		}
		if devices := veths(t, h.Netns) - hostDevices; devices != len(all) {
			t.Fatalf("after kill -9 of %q: %d devices for %d endpoints", command, devices, len(all))
		}
	}
}

// TestOwnVethComesBack removes the host's own veth: the next load makes it
// again, and so does serve.
func TestOwnVethComesBack(t *testing.T) {
	h := newHost(t)
	createNet(t, h)
	a := h.NewContainer(t, "a", "net")
	h.Run(t, "ip", "link", "del", "ebpnet0")
	h.Ebpnet(t, "load")
	for _, address := range a.Addresses() {
		ping(t, h.Netns, address)
	}
	command := h.Command("serve", "--listen", "127.0.0.1:9469")
	h.Start(t, command[0], command[1:]...)
	testutil.Eventually(t, "serve answers", func() bool {
		_, err := h.Try("curl", "-sf", "http://127.0.0.1:9469/metrics")
		return err == nil
	})
	h.Run(t, "ip", "link", "del", "ebpnet0")
	testutil.Eventually(t, "the gateway answers", func() bool {
		_, err := a.Try("ping", "-n", "-c", "1", "-W", "1", gateway4.String())
		return err == nil
	})
}
