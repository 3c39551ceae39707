package test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// settings is what `status -o json` says of what `load` was told.
type settings struct {
	Flows           uint32             `json:"flows"`
	MasqueradePorts string             `json:"masquerade_ports"`
	Timeouts        map[string]float64 `json:"timeout_seconds"`
}

// tables is what it says of the tables.
type tables struct {
	Tables []struct {
		Name     string `json:"name"`
		Entries  int    `json:"entries"`
		Capacity uint32 `json:"capacity"`
		Memory   uint64 `json:"memory_bytes"`
	} `json:"tables"`
	Memory uint64 `json:"memory_bytes"`
}

func readSettings(t *testing.T, h *testutil.Host) settings {
	t.Helper()
	var s settings
	h.EbpnetJSON(t, &s, "status")
	return s
}

// flowRoom gives how many flows there is room for, half-open ones included, and
// the memory of all tables.
func flowRoom(t *testing.T, h *testutil.Host) (capacity uint32, memory uint64) {
	t.Helper()
	var s tables
	h.EbpnetJSON(t, &s, "status")
	var sum uint64
	for _, table := range s.Tables {
		sum += table.Memory
		if table.Name == "flows" {
			capacity = table.Capacity
		}
	}
	if sum != s.Memory || sum == 0 {
		t.Errorf("the tables take %d bytes, and %d altogether", sum, s.Memory)
	}
	return capacity, s.Memory
}

func TestLoadOptionsAreKept(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	a := h.NewContainer(t, "a", "net")
	serve(t, u.Outside, service)
	expect := func(want settings) {
		t.Helper()
		if diff := cmp.Diff(want, readSettings(t, h)); diff != "" {
			t.Errorf("settings (-want +got):\n%s", diff)
		}
	}
	defaults := settings{262144, "1-65535", map[string]float64{
		"tcp-established": 7440, "tcp-transitory": 240, "udp-answered": 300, "udp-unanswered": 120, "icmp": 60, "fdb": 300,
	}}
	expect(defaults)
	big, bigMemory := flowRoom(t, h)

	h.Ebpnet(t, "load", "--flows", "2048", "--masquerade-ports", "30000-30009", "--timeout", "udp-answered=10m", "--timeout", "tcp-established=240h")
	changed := settings{2048, "30000-30009", map[string]float64{
		"tcp-established": 864000, "tcp-transitory": 240, "udp-answered": 600, "udp-unanswered": 120, "icmp": 60, "fdb": 300,
	}}
	expect(changed)
	small, smallMemory := flowRoom(t, h)
	if big-small != 262144-2048 || smallMemory >= bigMemory {
		t.Errorf("room for %d flows in %d bytes, was for %d in %d", small, smallMemory, big, bigMemory)
	}
	for _, path := range paths(h, u) {
		for _, network := range []string{"tcp", "udp"} {
			from := connects(t, a.Netns, network, at(path.outside, service)).MustAsk(t)
			if from.Addr() != path.host || from.Port() < 30000 || from.Port() > 30009 {
				t.Errorf("%s: the outside sees %s, want a port from 30000 to 30009 of %s", network, from, path.host)
			}
		}
	}

	h.Ebpnet(t, "load")
	expect(changed)

	// Shorter than an RFC allows is allowed, and told of.
	_, stderr, code := h.TryEbpnet("load", "--timeout", "tcp-established=1h", "--timeout", "udp-answered=3m")
	if code != 0 || strings.Count(stderr, "\n") != 1 {
		t.Errorf("exit code %d, and one line of warning is wanted: %q", code, stderr)
	}
	for _, word := range []string{"tcp-established", "1h0m0s", "2h4m0s", "RFC 5382"} {
		if !strings.Contains(stderr, word) {
			t.Errorf("%q does not say %s", stderr, word)
		}
	}
	if _, stderr, _ := h.TryEbpnet("load"); stderr != "" {
		t.Errorf("a later load says %q", stderr)
	}
	h.Ebpnet(t, "load", "--flows", "262144", "--masquerade-ports", "1-65535",
		"--timeout", "tcp-established=default", "--timeout", "udp-answered=default")
	expect(defaults)
}

func TestBadLoadOptionsAreRefused(t *testing.T) {
	h := newHost(t)
	h.Ebpnet(t, "load", "--flows", "4096")
	before := h.Ebpnet(t, "-o", "json", "status")
	for _, c := range []struct {
		args  []string
		words []string
	}{
		{[]string{"--flows", "1023"}, []string{"flows", "1023", "1024"}},
		{[]string{"--flows", "4194305"}, []string{"flows", "4194305", "4194304"}},
		{[]string{"--flows", "-1"}, []string{"flows", "-1"}},
		{[]string{"--flows", "many"}, []string{"flows", "many"}},
		{[]string{"--masquerade-ports", "1024"}, []string{"masquerade ports", "1024", "FIRST-LAST"}},
		{[]string{"--masquerade-ports", "0-1024"}, []string{"masquerade ports", "0-1024"}},
		{[]string{"--masquerade-ports", "2000-1000"}, []string{"masquerade ports", "2000-1000"}},
		{[]string{"--masquerade-ports", "1000-65536"}, []string{"masquerade ports", "65536"}},
		{[]string{"--timeout", "udp=5m"}, []string{"timeout", `"udp"`, "udp-answered"}},
		{[]string{"--timeout", "icmp"}, []string{"timeout", "icmp", "NAME=DURATION"}},
		{[]string{"--timeout", "icmp=60"}, []string{"timeout", "icmp=60", "duration"}},
		{[]string{"--timeout", "icmp=500ms"}, []string{"timeout", "icmp=500ms", "1s"}},
		{[]string{"--timeout", "icmp=721h"}, []string{"timeout", "icmp=721h", "720h"}},
		{[]string{"--flows", "2048", "--timeout", "icmp=never"}, []string{"timeout", "never"}},
	} {
		refused(t, h, exitUsage, append([]string{"load"}, c.args...), c.words...)
		if after := h.Ebpnet(t, "-o", "json", "status"); after != before {
			t.Fatalf("load %q was refused, and changed\n%s\nto\n%s", c.args, before, after)
		}
	}
	refused(t, h, exitFailure, []string{"load", "--flows", "2048", "--uplink", "nodev0"}, "nodev0")
	if after := h.Ebpnet(t, "-o", "json", "status"); after != before {
		t.Fatalf("a load that failed changed\n%s\nto\n%s", before, after)
	}
}

// patient is long enough for a few retransmissions.
const patient = 15 * time.Second

// TestFlowsGoOnInTablesOfAnotherSize has clients that share a source port, so
// that one of them has another outside which nobody would give it again.
func TestFlowsGoOnInTablesOfAnotherSize(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	expectNoContainerAddress(t, u)
	a, b := h.NewContainer(t, "a", "net"), h.NewContainer(t, "b", "net")
	serve(t, u.Outside, service)
	type client struct {
		*testutil.Conn
		network string
		seen    netip.AddrPort
	}
	var clients []client
	for _, path := range paths(h, u) {
		for _, network := range []string{"tcp", "udp"} {
			for _, from := range []*testutil.Container{a, b} {
				c := from.MustDialFrom(t, network, ":41000", at(path.outside, service))
				clients = append(clients, client{c, network, c.MustAsk(t)})
			}
		}
	}
	before := flowsOf(t, h)
	for _, flows := range []string{"2048", "262144"} {
		stop := make(chan struct{})
		var talking sync.WaitGroup
		for _, c := range clients {
			talking.Go(func() {
				for {
					from, err := c.Ask(patient)
					if err != nil || from.Port() != c.seen.Port() {
						t.Errorf("%s, seen as %s, is seen as %s: %v", c.network, c.seen, from, err)
						return
					}
					select {
					case <-stop:
						return
					default:
					}
				}
			})
		}
		h.Ebpnet(t, "load", "--flows", flows)
		close(stop)
		talking.Wait()
		for _, c := range clients {
			if from := c.MustAsk(t); from != c.seen {
				t.Errorf("%s with room for %s flows: the outside sees %s, saw %s", c.network, flows, from, c.seen)
			}
		}
		now := flowsOf(t, h)
		if len(now) != len(before) {
			t.Errorf("%d flows, were %d", len(now), len(before))
		}
		for i := range now {
			if now[i].From != before[i].From || now[i].Translated != before[i].Translated ||
				now[i].AgeSeconds < before[i].AgeSeconds || now[i].SentPackets < before[i].SentPackets {
				t.Errorf("flow %+v was %+v", now[i], before[i])
			}
		}
		before = now
	}
	connects(t, a.Netns, "tcp", at(u.IP4, service))
	h.Ebpnet(t, "flow", "flush")
	if left := flowsOf(t, h); len(left) != 0 {
		t.Errorf("flows after a flush: %+v", left)
	}
}

// TestKilledLoadOfAnotherSize shows that running connections outlive it, and
// that the next command and the next load bring everything right.
func TestKilledLoadOfAnotherSize(t *testing.T) {
	const rounds = 8
	h, u := newOutside(t)
	createNet(t, h)
	expectNoContainerAddress(t, u)
	a, b := h.NewContainer(t, "a", "net"), h.NewContainer(t, "b", "net")
	serve(t, u.Outside, service)
	type client struct {
		*testutil.Conn
		seen netip.AddrPort
	}
	var clients []client
	open := func(port int) {
		for _, network := range []string{"tcp", "udp"} {
			for _, from := range []*testutil.Container{a, b} {
				c := from.MustDialFrom(t, network, fmt.Sprintf(":%d", port), at(u.IP4, service))
				clients = append(clients, client{c, c.MustAsk(t)})
			}
		}
	}
	ask := func(when, round int, what string) {
		t.Helper()
		for _, c := range clients {
			if from := c.MustAsk(t); from != c.seen {
				t.Fatalf("round %d, killed after %d ms, %s: the outside sees %s, saw %s", round, when, what, from, c.seen)
			}
		}
	}
	open(41000)
	sizes := []string{"2048", "4096", "8192"}
	start := time.Now()
	h.Ebpnet(t, "load", "--flows", sizes[0])
	longest := time.Since(start)
	for round := range rounds {
		argv := h.Command("load", "--flows", sizes[(round+1)%len(sizes)])
		process := h.Start(t, argv[0], argv[1:]...)
		delay := rand.N(longest)
		time.Sleep(delay)
		process.Kill()
		when := int(delay.Milliseconds())
		ask(when, round, "at once")
		if round%2 == 0 {
			h.Ebpnet(t, "network", "set", "net", "--icc=true")
			ask(when, round, "after another command")
			open(42000 + round) // whichever tables it comes into
		}
		h.Ebpnet(t, "load", "--flows", sizes[round%len(sizes)])
		ask(when, round, "after another load")
		if now := flowsOf(t, h); len(now) != len(clients) {
			t.Fatalf("round %d, killed after %d ms: %d flows, want %d", round, when, len(now), len(clients))
		}
	}
}

// listedFlow is what `flow ls -o json` says of one.
type listedFlow struct {
	Protocol        string         `json:"protocol"`
	Network         string         `json:"network"`
	ToNetwork       string         `json:"to_network"`
	From            netip.AddrPort `json:"from"`
	To              netip.AddrPort `json:"to"`
	Translated      netip.AddrPort `json:"translated"`
	TranslatedTo    netip.AddrPort `json:"translated_to"`
	State           string         `json:"state"`
	AgeSeconds      float64        `json:"age_seconds"`
	SentPackets     uint64         `json:"sent_packets"`
	SentBytes       uint64         `json:"sent_bytes"`
	ReceivedPackets uint64         `json:"received_packets"`
	ReceivedBytes   uint64         `json:"received_bytes"`
}

// flowsOf lists flows other than of ICMP, by which hosts look for each other.
func flowsOf(t *testing.T, h *testutil.Host, args ...string) []listedFlow {
	t.Helper()
	var all, found []listedFlow
	h.EbpnetJSON(t, &all, append([]string{"flow", "ls"}, args...)...)
	for _, f := range all {
		if !strings.HasPrefix(f.Protocol, "icmp") {
			found = append(found, f)
		}
	}
	return found
}

func TestFlowsOfAnEndpoint(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h, "--icc=false")
	a, b := h.NewContainer(t, "a", "net"), h.NewContainer(t, "b", "net")
	h.Ebpnet(t, "link", "add", "a", "b", "--port", "7000/tcp")
	serve(t, u.Outside, service)
	serve(t, b.Netns, service)
	fromA := a.MustDialFrom(t, "udp", ":40000", at(u.IP4, service))
	fromB := b.MustDialFrom(t, "udp", ":40000", at(u.IP4, service))
	outside := map[string]netip.AddrPort{"a": fromA.MustAsk(t), "b": fromB.MustAsk(t)}

	for endpoint, c := range map[string]*testutil.Container{"a": a, "b": b} {
		flows := flowsOf(t, h, "--endpoint", endpoint)
		if len(flows) != 1 {
			t.Fatalf("flows of %s: %+v, want the one", endpoint, flows)
		}
		f := flows[0]
		if f.From != netip.AddrPortFrom(c.IP4, 40000) || f.To != netip.AddrPortFrom(u.IP4, service) ||
			f.Translated != outside[endpoint] || f.TranslatedTo.IsValid() || f.State != "established" ||
			f.Network != "net" || f.ToNetwork != "" || f.Protocol != "udp" ||
			f.SentPackets != 1 || f.ReceivedPackets != 1 || f.SentBytes == 0 || f.ReceivedBytes <= f.SentBytes {
			t.Errorf("%s, seen as %s: %+v", endpoint, outside[endpoint], f)
		}
		table := h.Ebpnet(t, "flow", "ls", "--endpoint", endpoint)
		for _, word := range []string{"net→outside", f.From.String(), outside[endpoint].String() + "→" + f.To.String(), "established"} {
			if !strings.Contains(table, word) {
				t.Errorf("the table does not say %s:\n%s", word, table)
			}
		}
	}
	linked := connects(t, a.Netns, "tcp", at(b.IP4, service))
	for _, endpoint := range []string{"a", "b"} {
		if flows := flowsOf(t, h, "--endpoint", endpoint); len(flows) != 2 {
			t.Errorf("a link is not among the flows of %s: %+v", endpoint, flows)
		}
	}

	h.Ebpnet(t, "flow", "flush", "--endpoint", "a")
	if left := flowsOf(t, h, "--endpoint", "a"); len(left) != 0 {
		t.Errorf("flows of a after its flush: %+v", left)
	}
	if left := flowsOf(t, h); len(left) != 1 || left[0].From.Addr() != b.IP4 {
		t.Errorf("flows after the flush of a's: %+v, want b's", left)
	}
	linked.MustAsk(t) // it opens another
	if got := fromB.MustAsk(t); got != outside["b"] {
		t.Errorf("b is seen as %s, was %s", got, outside["b"])
	}

	for _, verb := range []string{"ls", "flush"} {
		refused(t, h, exitFailure, []string{"flow", verb, "--endpoint", "nobody"}, "endpoint", "nobody")
		refused(t, h, exitUsage, []string{"flow", verb, "--endpoint", ""}, "endpoint", "empty")
	}
	var list []json.RawMessage
	h.EbpnetJSON(t, &list, "flow", "ls", "--endpoint", "b")
	if len(list) == 0 {
		t.Error("what was refused ended flows")
	}
}
