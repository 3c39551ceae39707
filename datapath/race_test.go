package datapath

import (
	"encoding/binary"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// race runs f on two CPUs, this many rounds. Both CPUs start each round
// together.
func (w *world) race(t *testing.T, rounds int, f func(cpu, round int) error) {
	t.Helper()
	var before unix.CPUSet
	must(t, unix.SchedGetaffinity(0, &before))
	var cpus []int
	for cpu := range runtime.NumCPU() * 64 {
		if before.IsSet(cpu) && len(cpus) < 2 {
			cpus = append(cpus, cpu)
		}
	}
	if len(cpus) < 2 {
		t.Fatal("1 CPU, but this test needs 2")
	}
	var (
		group sync.WaitGroup
		ready [2]atomic.Int64
		errs  [2]error
	)
	for i, cpu := range cpus {
		group.Go(func() {
			// The thread ends with its goroutine, so its CPU affinity does not
			// stay.
			runtime.LockOSThread()
			var set unix.CPUSet
			set.Set(cpu)
			if errs[i] = unix.SchedSetaffinity(0, &set); errs[i] != nil {
				ready[i].Store(int64(rounds))
				return
			}
			w.ns.Do(func() {
				for round := range rounds {
					ready[i].Store(int64(round + 1))
					for ready[1-i].Load() <= int64(round) {
						runtime.Gosched()
					}
					if err := f(i, round); err != nil && errs[i] == nil {
						errs[i] = err
					}
				}
			})
		})
	}
	group.Wait()
	for _, err := range errs {
		must(t, err)
	}
}

// TestOnePortHasOneMapping has two CPUs open one flow each from the same port
// of alice to two hosts, at the same time. Both flows must get the same port
// outside.
func TestOnePortHasOneMapping(t *testing.T) {
	testutil.RequireRoot(t)
	w := newWorld(t, loadShares(16384, 65536))
	const first, rounds = 2000, 3000
	to := [2]host{website, peer}
	var ports [2][rounds]uint16
	w.race(t, rounds, func(cpu, round int) error {
		p := outgoing(alice, false, udp(uint16(first+round), 53))
		p.dst = to[cpu].ip4
		r := fromEndpoint("", alice, p.frame(t))
		options := w.options(r.device, r.in, r.skb)
		_, err := w.program(r.hook).Run(options)
		ports[cpu][round] = binary.BigEndian.Uint16(options.DataOut[identifierAt(p):])
		return err
	})
	two := 0
	for round := range rounds {
		if ports[0][round] != ports[1][round] {
			two++
		}
	}
	if two > 0 {
		t.Errorf("%d of %d ports have two mappings", two, rounds)
	}
	w.checkShares(t)
	flows := w.flows(t)
	if want := 2*len(flows) + 2*rounds; w.indexed(t) != want || len(flows) != 2*rounds {
		t.Errorf("%d flows with %d entries in the index, want %d with %d", len(flows), w.indexed(t), 2*rounds, want)
	}
	must(t, w.FlushFlows(FlowFilter{}))
	if n := w.indexed(t); n != 0 {
		t.Errorf("%d entries in the index after all flows ended", n)
	}
	w.checkShares(t)
}

// TestListsOfFlowsUnderRaces has two CPUs open flows of one endpoint at the
// same time, so many that they displace each other's half-open flows. In the
// end, the list is complete.
func TestListsOfFlowsUnderRaces(t *testing.T) {
	testutil.RequireRoot(t)
	const rounds = 20000
	w := newWorld(t, loadShares(4096, 64))
	w.race(t, rounds, func(cpu, round int) error {
		r := fromEndpoint("", alice, outgoing(alice, false, udp(uint16(1024+round), uint16(53+cpu))).frame(t))
		_, err := w.program(r.hook).Run(w.options(r.device, r.in, r.skb))
		return err
	})
	w.checkShares(t)
	must(t, w.DeleteEndpoint(w.endpoint(t, alice)))
	w.checkShares(t)
	if flows := w.listed(t, FlowFilter{}); len(flows) != 0 {
		t.Errorf("%d flows after alice was deleted, want 0", len(flows))
	}
}
