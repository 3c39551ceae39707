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

// BenchmarkPath tells what each path costs: the time that its program takes for
// a packet beyond that of a program that returns at once, run in the same way
// and right after it. `empty` is that one's.
//
// A test run with Repeat gives the program the packet as its last run left it,
// which for most paths is another packet. So a path is run by a replay, that puts
// the packet back first. Where nothing is changed that must give what Repeat
// alone does, and did when both were taken: 47 and 48 ns for the same host, 26 and
// 26 for a spoofed MAC, 63 and 63 for an unknown key.
//
// What changes its packet's length cannot be put back (the kernel would not
// forget that it is a tunnel's), and what opens a flow does so once. Their runs
// are single ones, of which the median is taken: that is sound too, but each of
// them comes out of a system call, and finds caches and predictors cold. It gave
// a quarter to a half more than the replay where both could be taken: 69 for 48
// ns, 298 for 241, 187 for 129.
//
// Floods are left out: their copies are sent for real, and received in the time
// that is measured.
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
				b.Run(r.way.name, func(b *testing.B) { r.benchmark(b, w) })
			}
		}
	}
}

// How often programs run in a round, which is one iteration of a benchmark.
const (
	repeats = 1000 // of a replay
	singles = 256  // fewer than may be half-open at a time
)

// costUnit is that of what a benchmark reports.
const costUnit = "ns/packet"

func report(b *testing.B, costs []float64) {
	slices.Sort(costs)
	b.ReportMetric(costs[len(costs)/2], costUnit)
	b.ReportMetric(0, "ns/op") // a round's: of no use
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

// keepsItsPlace tells whether the row's packet can be put back, and then goes
// the same way again.
func (r row) keepsItsPlace() bool {
	return !r.way.opens && (r.out == nil || len(r.out) == len(r.in))
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
		if r.way.opens {
			r.prepare(b, w)
		}
		for range singles {
			if r.way.opens {
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

// testRun is what BPF_PROG_TEST_RUN takes: union bpf_attr of
// include/uapi/linux/bpf.h.
type testRun struct {
	program, verdict         uint32
	size, sizeOut            uint32
	frame, frameOut          unsafe.Pointer
	repeat, duration         uint32 // duration: the mean of a run, in ns
	contextSize, contextOut  uint32
	context, contextOutAt    unsafe.Pointer
	flags, cpu, batchSize, _ uint32
}

// progTestRun is BPF_PROG_TEST_RUN.
const progTestRun = 10

// timed is the mean time in ns that a program takes for a frame, which it gets
// as often as told. It is for the thread that is in w.ns. (Program.Run does not
// tell the time, and Program.Benchmark takes no device.)
func (w *world) timed(t testing.TB, p *ebpf.Program, device string, frame []byte, c skbContext, times uint32) float64 {
	t.Helper()
	context := w.context(device, c)
	run := testRun{
		program: uint32(p.FD()), size: uint32(len(frame)), frame: unsafe.Pointer(&frame[0]), repeat: times,
		contextSize: uint32(len(context)), context: unsafe.Pointer(&context[0]),
	}
	for {
		_, _, err := unix.Syscall(unix.SYS_BPF, progTestRun, uintptr(unsafe.Pointer(&run)), unsafe.Sizeof(run))
		if errors.Is(err, unix.EINTR) { // Go's own signals
			continue
		}
		if err != 0 {
			t.Fatal(fmt.Errorf("run with %x: %w", frame, err))
		}
		runtime.KeepAlive(p)
		return float64(run.duration)
	}
}
