package datapath

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/ebpnet/ebpnet/bpf"
	"github.com/ebpnet/ebpnet/internal/testutil"
	"github.com/ebpnet/ebpnet/loader"
)

const (
	raceSlots    = 2048
	raceHalfOpen = 256
	raceTalks    = 64 // of each kind
	// Flows become idle after a few ticks of the clock.
	raceTimeout = 20 * time.Millisecond
)

// newRaceWorld makes a world with few slots, in which flows become idle soon.
// The sweep runs only if a test runs it.
func newRaceWorld(t *testing.T) *world {
	t.Helper()
	return newWorld(t, func(tb testing.TB, c loader.Config) *Tables {
		return loadStill(func(spec *ebpf.CollectionSpec) error {
			spec.Maps[bpf.EbpnetMapFlows].MaxEntries = raceSlots
			for name, value := range map[string]any{
				bpf.EbpnetVarFlowSlots:             uint32(raceSlots),
				bpf.EbpnetVarHalfOpenSlots:         uint32(raceHalfOpen),
				bpf.EbpnetVarUdpNewTimeout:         uint64(raceTimeout),
				bpf.EbpnetVarUdpEstablishedTimeout: uint64(2 * raceTimeout),
			} {
				if err := setConstant(spec, name, value); err != nil {
					return err
				}
			}
			return nil
		})(tb, c)
	})
}

// allTalks returns talks of each kind, with ports from first on.
func (w *world) allTalks(t *testing.T, first uint16) (talks []*talk) {
	t.Helper()
	for i := range uint16(raceTalks) {
		v6, port := i%2 == 1, first+i
		talks = append(talks,
			w.talkOutside(t, alice, v6, port, 1), w.talkOutside(t, bob, v6, port+raceTalks, 1),
			w.talkPublished(t, v6, port+2*raceTalks), w.talkLinked(t, v6, port))
	}
	return talks
}

// endSome returns a function that ends some flows at some of its calls, as the
// agent and the sweep do. One of the CPUs also deletes a port and publishes it
// again.
func (w *world) endSome(t *testing.T) func(cpu, n int) error {
	t.Helper()
	port := portsOf(w.wanted.Ports, dnsPort)
	return func(cpu, n int) error {
		switch {
		case n%64 == 0 && cpu == 0:
			if err := w.DeletePorts(port); err != nil {
				return err
			}
			return w.PutPorts(port)
		case n%32 == 1:
			return w.FlushFlows(FlowFilter{Network: alice.network, Addresses: []netip.Addr{alice.ip4, alice.ip6}})
		case n%64 == 2:
			return w.endUnbackedFlows()
		case n%16 == 3:
			_, _, err := w.Programs.SweepOnce.Test(make([]byte, skbSize))
			return err
		}
		return nil
	}
}

// TestCommandsRacePackets has two CPUs exchange packets while they also end
// flows and restore flows of another table.
func TestCommandsRacePackets(t *testing.T) {
	testutil.RequireRoot(t)
	old, w := newRaceWorld(t), newRaceWorld(t)
	both := [2][]*talk{w.allTalks(t, 2000), w.allTalks(t, 3000)}
	for first := range uint16(2) {
		for _, k := range old.allTalks(t, 2000+1000*first) {
			var err error
			old.ns.Do(func() { err = k.exchange() })
			must(t, err)
		}
	}
	var restored [][]byte
	for _, f := range old.raw(t) {
		frame, err := binary.Append(make([]byte, headerSize), binary.NativeEndian, f)
		must(t, err)
		restored = append(restored, frame)
	}
	endSome, full, taken := w.endSome(t), reasonNumber(t, "flow_table_full"), reasonNumber(t, "ports_exhausted")
	w.raceTalks(t, both, func(cpu, n int) error {
		status, _, err := w.Programs.RestoreFlow.Test(restored[(7*n+cpu)%len(restored)])
		if err == nil && status != 0 && status != full && status != taken {
			err = fmt.Errorf("restore_flow returned %d", status)
		}
		if err != nil {
			return err
		}
		return endSome(cpu, n)
	})
	w.checkCounts(t)
}

// TestTwoCPUsCountFlows has two CPUs open, answer, revoke and end the same
// flows at the same time.
func TestTwoCPUsCountFlows(t *testing.T) {
	testutil.RequireRoot(t)
	w := newRaceWorld(t)
	w.raceTalks(t, [2][]*talk{w.allTalks(t, 2000), w.allTalks(t, 2000)}, w.endSome(t))
	w.checkCounts(t)
}

// TestFlowsEndWhileTheyOpen has one CPU open flows while the other CPU ends all
// flows. The index keeps no key of a flow that ended before the key was
// written.
func TestFlowsEndWhileTheyOpen(t *testing.T) {
	testutil.RequireRoot(t)
	w := newRaceWorld(t)
	both := [2][]*talk{w.allTalks(t, 2000), w.allTalks(t, 3000)}
	w.raceTalks(t, both, func(cpu, _ int) error {
		if cpu == 0 {
			return nil
		}
		return w.FlushFlows(FlowFilter{})
	})
	w.checkCounts(t)
}
