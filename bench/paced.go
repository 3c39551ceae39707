package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// pacedRate is how many requests a second are due, and pacedInterval the time
// from one to the next: half of what the slowest topology can answer.
const (
	pacedRate     = 5000
	pacedInterval = time.Second / pacedRate
)

func paced() measure {
	return measure{
		name: pacedTCP, about: fmt.Sprintf("median latency of 1 byte and its answer, %d a second due", pacedRate),
		unit: "µs", lessIsBetter: true,
		socket: unix.SOCK_STREAM, counts: server, serve: servePaced, drive: drivePaced, take: takePaced,
	}
}

// takePaced gives the median latency, percentiles and CPU time of a request.
func takePaced(ctx context.Context, over path, opt options) (sample, error) {
	before, err := timeOf(over.daemons)
	if err != nil {
		return sample{}, err
	}
	asked, answered, err := paced().traffic(ctx, over, opt)
	if err != nil {
		return sample{}, err
	}
	after, err := timeOf(over.daemons)
	if err != nil {
		return sample{}, err
	}
	sorted := slices.Sorted(slices.Values(asked.Latencies))
	if len(sorted) == 0 {
		return sample{}, fmt.Errorf("no request was due within %s: measure longer", opt.duration)
	}
	spent := asked.CPU + answered.CPU + after - before
	s := sample{
		p50: percentile(sorted, 50), p99: percentile(sorted, 99), latencies: sorted,
		cpu: spent.Seconds() / float64(len(sorted)),
	}
	s.value = microseconds(s.p50)
	return s, nil
}

// percentile gives the least of at least one ascending latency that so many of
// a hundred do not exceed.
func percentile(sorted []time.Duration, of int) time.Duration {
	const hundred = 100
	rank := (len(sorted)*of + hundred - 1) / hundred
	return sorted[max(rank, 1)-1]
}

// servePaced answers, and tells the CPU time that all but the first, which is
// not measured, took.
func servePaced(listener int) (t tally, err error) {
	conn, err := accept(listener)
	if err == nil {
		_, err = answer(conn)
	}
	if err != nil {
		return t, err
	}
	start, err := threadTime()
	for more := true; more && err == nil; {
		more, err = answer(conn)
	}
	if err != nil {
		return t, err
	}
	end, err := threadTime()
	t.CPU = end - start
	return t, err
}

// drivePaced asks at a fixed rate, once it was answered.
func drivePaced(p peer) (t tally, err error) {
	conn, err := dial(unix.SOCK_STREAM, p.Dial)
	if err == nil {
		err = ask(conn)
	}
	if err != nil {
		return t, err
	}
	return pace(p.Duration, func() error { return ask(conn) })
}

// pace does something at a fixed rate, and times each from when it was due: a
// stall is felt by all that it delayed, not only by the one that met it. What
// is overdue is done at once.
//
// It spins until one is due. A CPU that halts meanwhile, above all a virtual
// one, takes longer to wake than the way there and back, and less if others
// keep it awake. The spinning is not in the CPU time, which is taken around
// each that is done.
func pace(duration time.Duration, do func() error) (t tally, err error) {
	t.Latencies = make([]time.Duration, 0, duration/pacedInterval)
	start := time.Now()
	for due := pacedInterval; len(t.Latencies) < cap(t.Latencies); due += pacedInterval {
		for time.Since(start) < due {
		}
		before, err := threadTime()
		if err == nil {
			err = do()
		}
		if err != nil {
			return t, err
		}
		t.Latencies = append(t.Latencies, time.Since(start)-due)
		after, err := threadTime()
		if err != nil {
			return t, err
		}
		t.CPU += after - before
	}
	t.Total = uint64(len(t.Latencies))
	return t, nil
}

// threadTime is the CPU time of the calling thread, by the scheduler's clock,
// not by samples at its ticks.
func threadTime() (time.Duration, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		return 0, os.NewSyscallError("clock_gettime", err)
	}
	return time.Duration(t.Nano()), nil
}

// timeOf is the CPU time of all threads of the processes, by the same clock.
func timeOf(processes []int) (time.Duration, error) {
	var all time.Duration
	for _, id := range processes {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", id))
		if err != nil {
			return 0, err
		}
		for _, thread := range threads {
			text, err := os.ReadFile(thread)
			if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
				continue // it has ended
			}
			if err != nil {
				return 0, err
			}
			spent, _, _ := strings.Cut(string(text), " ")
			ns, err := strconv.ParseInt(spent, 10, 64)
			if err != nil {
				return 0, fmt.Errorf("%s: %w", thread, err)
			}
			all += time.Duration(ns)
		}
	}
	return all, nil
}
