package generator

import (
	"errors"
	"math"
	"os"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// testRun is what BPF_PROG_TEST_RUN takes, of union bpf_attr in linux/bpf.h.
type testRun struct {
	program, _          uint32 // and the verdict
	sizeIn, _           uint32 // and the size out
	dataIn, _           uint64 // and the data out
	repeat, _           uint32 // and how long it took
	_, _                uint32 // sizes of contexts
	_, _                uint64 // contexts
	flags, _, batchSize uint32 // and the CPU
	_                   uint32
}

// nudgeEvery is how often a run is told that it is over: a signal that comes
// just before the system call does not end it.
const nudgeEvery = time.Millisecond

// runLive runs a program over live frames until wait returns, which is told
// when the runs have ended by themselves, and gives when that was, in ns of
// CLOCK_MONOTONIC. It is one system call, ended by a signal: to set up each
// costs the kernel some 20 ms, in which nothing is sent. Program.Run would
// begin anew when interrupted.
func runLive(program *ebpf.Program, frame []byte, wait func(ended <-chan struct{})) (uint64, error) {
	var pinned runtime.Pinner
	defer pinned.Unpin()
	pinned.Pin(&frame[0])
	attr := testRun{
		program: uint32(program.FD()), sizeIn: uint32(len(frame)), dataIn: uint64(uintptr(unsafe.Pointer(&frame[0]))),
		repeat: math.MaxUint32, flags: unix.BPF_F_TEST_XDP_LIVE_FRAMES,
	}
	var end atomic.Uint64
	ended, done := make(chan struct{}), make(chan struct{})
	thread := unix.Gettid()
	go func() {
		defer close(done)
		wait(ended)
		var now unix.Timespec
		_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) // which cannot fail
		end.Store(uint64(now.Nano()))
		for {
			// The Go runtime has a handler for this signal, which does no harm.
			_ = unix.Tgkill(os.Getpid(), thread, unix.SIGURG)
			select {
			case <-ended:
				return
			case <-time.After(nudgeEvery):
			}
		}
	}()
	var err error
	for err == nil && end.Load() == 0 {
		_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_TEST_RUN, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
		// The runtime's own signals interrupt, too.
		if errno != 0 && !errors.Is(errno, unix.EINTR) {
			err = os.NewSyscallError("run program over live frames", errno)
		}
	}
	close(ended)
	<-done
	return end.Load(), err
}
