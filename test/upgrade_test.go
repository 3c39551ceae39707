package test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// release is the first version that was released.
const release = "e41502a"

// TestUpgradeFromRelease upgrades two hosts from the first release while there
// is traffic of every kind. Nothing is lost, and counts continue.
// EBPNET_UPGRADES says how often.
func TestUpgradeFromRelease(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	program := testutil.BuildFromHistory(t, release)
	for round := range upgrades(t, 1) {
		t.Run(strconv.Itoa(round+1), func(t *testing.T) { upgradeFromRelease(t, program) })
	}
}

// upgrades returns the number of upgrades: EBPNET_UPGRADES, or otherwise if it is
// not set.
func upgrades(t *testing.T, otherwise int) int {
	t.Helper()
	s := os.Getenv("EBPNET_UPGRADES")
	if s == "" {
		return otherwise
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatalf("EBPNET_UPGRADES=%s: %v", s, err)
	}
	return n
}

func upgradeFromRelease(t *testing.T, program string) {
	const published = 8080
	p := newPairOf(t, program, greKey, greKey)
	p.a.Ebpnet(t, "network", "create", "closed", "--subnet", other4, "--icc=false")
	client, server := p.a.NewContainer(t, "client", "closed"), p.a.NewContainer(t, "server", "closed")
	p.a.Ebpnet(t, "link", "add", "client", "server", "--port", strconv.Itoa(service)+"/tcp")
	p.a.Ebpnet(t, "port", "add", "web", fmt.Sprintf("%d:%d/tcp", published, service))
	for _, n := range []*testutil.Netns{p.redis1.Netns, p.other.Netns, p.web.Netns, server.Netns, p.underlay.Outside} {
		serve(t, n, service)
	}
	outside := p.underlay.Outside
	type talk struct {
		from    *testutil.Netns
		network string
		to      string
	}
	talks := []talk{
		{p.web.Netns, "tcp", at(p.other.IP4, service)},  // a neighbour
		{p.web.Netns, "tcp", at(p.redis1.IP4, service)}, // through the tunnel
		{p.web.Netns, "tcp", at(p.underlay.IP4, service)},
		{p.web.Netns, "udp", at(p.underlay.IP6, service)},
		{client.Netns, "tcp", at(server.IP4, service)}, // by a link
		{outside, "tcp", at(p.a.IP4, published)},
	}
	var established []*testutil.Conn
	for _, c := range talks {
		established = append(established, connects(t, c.from, c.network, c.to))
	}
	before := p.a.Stats(t)
	flows := flowsOf(t, p.a)

	var pings []*testutil.Process
	for _, ping := range []struct {
		from *testutil.Netns
		to   netip.Addr
	}{
		{p.web.Netns, p.underlay.IP4},
		{p.web.Netns, p.underlay.IP6},
		{p.web.Netns, gateway4},
		{p.a.Netns, p.other.IP4},
		{p.web.Netns, p.other.IP4},
		{p.web.Netns, p.redis1.IP4},
		{p.redis1.Netns, p.other.IP6},
	} {
		pings = append(pings, ping.from.Start(t, "ping", "-n", "-i", "0.005", ping.to.String()))
	}
	done := make(chan struct{})
	var flood sync.WaitGroup
	opened := make([]int, len(talks))
	for i, c := range talks {
		flood.Go(func() { opened[i] = openUntil(t, done, c.from, c.network, c.to) })
	}

	for _, h := range []*testutil.Host{p.a, p.b} {
		h.Program = ""
		h.Ebpnet(t, "load")
	}
	after := p.a.Stats(t)
	p.a.Ebpnet(t, "load") // and once more, of the same version
	close(done)
	flood.Wait()
	for _, ping := range pings {
		checkPings(t, ping.Interrupt())
	}
	for i, n := range opened {
		if n < 10 {
			t.Errorf("only %d connections of %s to %s", n, talks[i].from.Name, talks[i].to)
		}
	}
	takeTurns(t, established...)
	checkFlows(t, p.a, flows)
	checkCounts(t, before, after)
	checkCounts(t, after, p.a.Stats(t))
	connectsNot(t, p.a, "policy", server.Netns, "tcp", at(client.IP4, service))
}

// openUntil opens one connection after the other until done is closed. Each has
// to be answered. It tells how many there were.
func openUntil(t *testing.T, done <-chan struct{}, from *testutil.Netns, network, to string) (n int) {
	const pause, limit = 2 * time.Millisecond, 3 * time.Second
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return n
		case <-tick.C:
		}
		if err := openOne(from, network, to, limit); err != nil {
			t.Errorf("connection %d of %s to %s: %v", n, from.Name, to, err)
			return n
		}
		n++
	}
}

func openOne(from *testutil.Netns, network, to string, limit time.Duration) error {
	var c net.Conn
	var err error
	from.Do(func() { c, err = net.DialTimeout(network, to, limit) })
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("hello\n")); err != nil {
		return err
	}
	_, err = c.Read(make([]byte, 64))
	return err
}

// checkFlows expects that the host still has these flows.
func checkFlows(t *testing.T, h *testutil.Host, flows []listedFlow) {
	t.Helper()
	now := map[string]listedFlow{}
	for _, f := range flowsOf(t, h) {
		now[f.Protocol+f.From.String()+f.To.String()] = f
	}
	for _, f := range flows {
		got, ok := now[f.Protocol+f.From.String()+f.To.String()]
		if !ok || got.SentPackets < f.SentPackets || got.AgeSeconds < f.AgeSeconds || got.Translated != f.Translated {
			t.Errorf("the flow is %+v, was %+v", got, f)
		}
	}
}

var (
	pingAnswer = regexp.MustCompile(`icmp_seq=(\d+)`)
	pingsSent  = regexp.MustCompile(`(\d+) packets transmitted`)
)

// checkPings expects an answer to every ping in the output of an interrupted
// ping. The last one may have no answer: ping sends it, sees the interrupt, and
// does not read the answer.
func checkPings(t *testing.T, out string) {
	t.Helper()
	answered := map[string]bool{}
	for _, m := range pingAnswer.FindAllStringSubmatch(out, -1) {
		answered[m[1]] = true
	}
	total := pingsSent.FindStringSubmatch(out)
	if total == nil {
		t.Errorf("ping has no summary:\n%s", out)
		return
	}
	sent, err := strconv.Atoi(total[1])
	if err != nil {
		t.Errorf("ping's summary: %v", err)
	}
	for seq := 1; seq < sent; seq++ {
		if !answered[strconv.Itoa(seq)] {
			t.Errorf("ping %d of %d has no answer: %s", seq, sent, out[:strings.IndexByte(out, '\n')])
		}
	}
}

// checkCounts expects no count to be lower than before.
func checkCounts(t *testing.T, before, after testutil.Stats) {
	t.Helper()
	counts := func(s testutil.Stats) map[string]uint64 {
		all := map[string]uint64{}
		for _, d := range s.Drops {
			all["drops "+d.Reason] = d.Packets
		}
		for kind, nouns := range map[string][]testutil.Traffic{"endpoint ": s.Endpoints, "network ": s.Networks, "tunnel ": s.Tunnels} {
			for _, n := range nouns {
				all[kind+n.Name+" tx"], all[kind+n.Name+" rx"] = n.TxPackets, n.RxPackets
			}
		}
		return all
	}
	now := counts(after)
	for what, n := range counts(before) {
		if now[what] < n {
			t.Errorf("%s: %d, were %d", what, now[what], n)
		}
	}
}
