package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// BenchmarkPath measures the cost of each path: the run time of its program per
// packet, minus that of a program that returns at once. Both are measured in
// the same way, one after the other. `empty` is the cost of the second program.
//
// A test run with Repeat gives the program the packet as the run before has
// left it. For most paths, that is another packet. So BenchmarkPath uses a
// replay that restores the packet before each run. A replay measures the same
// as Repeat where the program does not change the packet: 47 and 48 ns for the
// same host, 26 and 26 for a spoofed MAC, 63 and 63 for an unknown key.
//
// A replay cannot restore a packet whose length has changed, because the kernel
// still treats it as a tunnel's packet. And a packet opens a flow only once.
// Such paths run once per system call, and the result is the median. That is
// valid, but each run starts with cold caches and predictors. Where both
// methods work, single runs measure a quarter to a half more: 69 for 48 ns, 298
// for 241, 187 for 129.
//
// Floods are not measured: the kernel sends and receives their copies within
// the measured time.
func BenchmarkPath(b *testing.B) {
	testutil.RequireRoot(b)
	for _, g := range pathGroups(b) {
		w := newWorld(b, loadPinned)
		if g.change != nil {
			g.change(&w.wanted)
			remember(b, w)
		} else {
			b.Run("empty", func(b *testing.B) { w.benchmarkEmpty(b) })
		}
		for _, r := range g.rows(b) {
			if !r.flooded {
				b.Run(r.example.name, func(b *testing.B) { r.benchmark(b, w) })
			}
		}
	}
}

// Runs per round. A round is one iteration of a benchmark.
const (
	repeats = 1000 // with a replay
	singles = 256  // fewer than the most half-open flows
)

// costUnit is the unit of the reported cost.
const costUnit = "ns/packet"

func report(b *testing.B, costs []float64) {
	slices.Sort(costs)
	b.ReportMetric(costs[len(costs)/2], costUnit)
	b.ReportMetric(0, "ns/op") // the time of a round says nothing
}

func (w *world) benchmarkEmpty(b *testing.B) {
	empty := returning(b, verdictShot)
	packet := between(alice, bob, false, udp(1000, 2000)).frame(b)
	var costs []float64
	w.ns.Do(func() {
		for b.Loop() {
			costs = append(costs, w.timed(b, empty, alice.device, packet, skbContext{}, repeats))
		}
	})
	report(b, costs)
}

func (r row) benchmark(b *testing.B, w *world) {
	r.prepare(b, w)
	var costs []float64
	w.ns.Do(func() {
		if r.keepsItsPlace() {
			costs = r.replayed(b, w)
		} else {
			costs = r.single(b, w)
		}
	})
	report(b, costs)
}

// keepsItsPlace reports whether a replay can restore the row's packet, and the
// packet takes the same path again.
func (r row) keepsItsPlace() bool {
	return !r.example.opens && (r.out == nil || len(r.out) == len(r.in))
}

func (r row) replayed(b *testing.B, w *world) (costs []float64) {
	path, zero := r.newReplay(b, w, w.program(r.hook)), r.newReplay(b, w, returning(b, verdictShot))
	r.checkReplay(b, w, path)
	for b.Loop() {
		cost := w.timed(b, path, r.device, r.in, r.skb, repeats)
		costs = append(costs, cost-w.timed(b, zero, r.device, r.in, r.skb, repeats))
	}
	return costs
}

func (r row) single(b *testing.B, w *world) (costs []float64) {
	path, zero := w.program(r.hook), returning(b, verdictShot)
	frame, at, port := slices.Clone(r.in), atL4, uint16(0)
	if frame[atEthertype] == 0x86 {
		at = atL4v6
	}
	for b.Loop() {
		if r.example.opens {
			r.prepare(b, w)
		}
		for range singles {
			if r.example.opens {
				const first = 32768
				port = first + (port+1)%first
				binary.BigEndian.PutUint16(frame[at:], port)
			}
			cost := w.timed(b, path, r.device, frame, r.skb, 1)
			costs = append(costs, cost-w.timed(b, zero, r.device, frame, r.skb, 1))
		}
	}
	return costs
}

// testRun is the argument of BPF_PROG_TEST_RUN: union bpf_attr of
// include/uapi/linux/bpf.h.
type testRun struct {
	program, verdict         uint32
	size, sizeOut            uint32
	frame, frameOut          unsafe.Pointer
	repeat, duration         uint32 // duration: mean of a run, in ns
	contextSize, contextOut  uint32
	context, contextOutAt    unsafe.Pointer
	flags, cpu, batchSize, _ uint32
}

// progTestRun is BPF_PROG_TEST_RUN.
const progTestRun = 10

// timed returns the mean run time of a program in ns, for a frame that it gets
// the given number of times. The calling thread must be in w.ns. Program.Run
// does not return the time, and Program.Benchmark accepts no device.
func (w *world) timed(t testing.TB, p *ebpf.Program, device string, frame []byte, c skbContext, times uint32) float64 {
	t.Helper()
	context := w.context(device, c)
	run := testRun{
		program: uint32(p.FD()), size: uint32(len(frame)), frame: unsafe.Pointer(&frame[0]), repeat: times,
		contextSize: uint32(len(context)), context: unsafe.Pointer(&context[0]),
	}
	for {
		_, _, err := unix.Syscall(unix.SYS_BPF, progTestRun, uintptr(unsafe.Pointer(&run)), unsafe.Sizeof(run))
		if errors.Is(err, unix.EINTR) { // a signal of the Go runtime
			continue
		}
		if err != 0 {
			t.Fatal(fmt.Errorf("test run with frame %x: %w", frame, err))
		}
		runtime.KeepAlive(p)
		return float64(run.duration)
	}
}
