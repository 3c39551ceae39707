package test

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// TestKilledUpgradeFromRelease kills an upgrade from the first release at a
// random moment. No packet, flow or count is lost, and the next load completes.
func TestKilledUpgradeFromRelease(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	program := testutil.BuildFromHistory(t, release)
	for round := range upgrades(t, 2) {
		t.Run(strconv.Itoa(round+1), func(t *testing.T) { killUpgradeFromRelease(t, program) })
	}
}

func killUpgradeFromRelease(t *testing.T, program string) {
	p := newPairOf(t, program, greKey, greKey)
	outside := p.underlay.Outside
	for _, n := range []*testutil.Netns{p.redis1.Netns, p.other.Netns, outside} {
		serve(t, n, service)
	}
	established := []*testutil.Conn{
		connects(t, p.web.Netns, "tcp", at(p.other.IP4, service)),
		connects(t, p.web.Netns, "tcp", at(p.redis1.IP4, service)),
		connects(t, p.web.Netns, "tcp", at(p.underlay.IP4, service)),
		connects(t, p.web.Netns, "udp", at(p.underlay.IP6, service)),
	}
	// Load b takes as long as load a will take.
	p.b.Program = ""
	start := time.Now()
	p.b.Ebpnet(t, "load")
	longest := time.Since(start)
	before := p.a.Stats(t)
	flows := flowsOf(t, p.a)

	var pings []*testutil.Process
	for _, to := range []string{p.underlay.IP4.String(), p.other.IP4.String(), p.redis1.IP6.String()} {
		pings = append(pings, p.web.Start(t, "ping", "-n", "-i", "0.005", to))
	}
	p.a.Program = ""
	load := p.a.Command("load")
	process := p.a.Start(t, load[0], load[1:]...)
	after := rand.N(longest)
	time.Sleep(after)
	process.Kill()
	takeTurns(t, established...)
	p.a.Ebpnet(t, "load")
	for _, ping := range pings {
		checkPings(t, ping.Interrupt())
	}
	takeTurns(t, established...)
	checkFlows(t, p.a, flows)
	checkCounts(t, before, p.a.Stats(t))
	if left, err := filepath.Glob(filepath.Join(p.a.Pin, "old_tables")); err != nil || left != nil {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if entries, err := os.ReadDir(p.a.Pin); err != nil || len(entries) != 4 {
		t.Errorf("the pin directory has %v, %v; want maps, programs, links and format", entries, err)
	}
	if t.Failed() {
		t.Logf("killed %v into the load, which takes %v", after, longest)
	}
}
