package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/bpf"
)

// sweepCommand is the first argument of this program to measure the sweep alone.
const sweepCommand = "sweep"

// What the tables hold while the sweep is measured: as many flows as there can
// be, and as many learned stations and addresses.
const (
	sweptFlows   = 4194304
	sweptTicks   = 5000 // more than a round
	sweptBacklog = 800  // ticks that have something to end: fewer than learned/64
	endsATick    = 32   // bpf/sweep.h
	sweptFrame   = 64   // bytes of a frame that is not looked at
)

// sweepTables are tables of the datapath that nothing is attached to.
type sweepTables struct {
	maps bpf.EbpnetMaps
	tick *ebpf.Program
}

// measureSweep measures how long a tick of the sweep takes with full tables,
// and prints it. Nothing is attached, and no timer runs: it disturbs nobody.
func measureSweep(args []string, w io.Writer) error {
	if len(args) > 0 {
		return fmt.Errorf("%w: unexpected argument %q: sweep takes none", errUsage, args[0])
	}
	t, err := loadSweep()
	if err != nil {
		return err
	}
	defer t.maps.Close()
	defer t.tick.Close()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &now); err != nil {
		return err
	}
	learned := t.maps.LearnedFdb.MaxEntries() + t.maps.LearnedNeigh.MaxEntries()
	fmt.Fprintf(w, "sweep: %d slots of flows in use, %d learned stations and addresses\n", t.maps.Flows.MaxEntries(), learned)
	if err := errors.Join(t.fillFlows(0, t.maps.Flows.MaxEntries(), uint64(now.Nano())), t.fillLearned(uint64(now.Nano()))); err != nil {
		return fmt.Errorf("fill the tables: %w", err)
	}
	if err := t.report(w, "nothing is idle", sweptTicks); err != nil {
		return err
	}
	if err := errors.Join(t.indexIdle(sweptBacklog*endsATick), t.fillLearned(1)); err != nil {
		return fmt.Errorf("fill the tables: %w", err)
	}
	return t.report(w, "everything is idle", sweptBacklog)
}

func loadSweep() (_ *sweepTables, err error) {
	spec, err := bpf.LoadEbpnet()
	if err != nil {
		return nil, err
	}
	slots := sweptFlows + spec.Maps[bpf.EbpnetMapHalfOpen].MaxEntries
	spec.Maps[bpf.EbpnetMapFlows].MaxEntries = slots
	spec.Maps[bpf.EbpnetMapFlowIndex].MaxEntries = 4 * slots
	if err := spec.Variables[bpf.EbpnetVarFlowSlots].Set(slots); err != nil {
		return nil, err
	}
	for name := range spec.Programs {
		if name != bpf.EbpnetProgSweepOnce {
			delete(spec.Programs, name)
		}
	}
	collection, err := ebpf.NewCollection(spec)
	if err != nil {
		return nil, fmt.Errorf("load the sweep: %w", err)
	}
	defer collection.Close()
	t := &sweepTables{tick: collection.DetachProgram(bpf.EbpnetProgSweepOnce)}
	return t, collection.Assign(&t.maps)
}

// flowAt is the established flow of a slot.
func flowAt(slot uint32, seen uint64) (f bpf.EbpnetFlow) {
	f.State, f.Seen, f.Mapping = bpf.EbpnetFlowStateFLOW_ESTABLISHED, seen, math.MaxUint32
	f.Original.Protocol, f.Original.Network, f.Original.Src.Word[3] = unix.IPPROTO_UDP, 1, slot
	f.Reply.Protocol, f.Reply.Dst.Word[3] = unix.IPPROTO_UDP, slot
	return f
}

// putBatches writes n entries, the nth as made, many at a time.
func putBatches[K, V any](m *ebpf.Map, first, n uint32, entry func(uint32) (K, V)) error {
	const most = 4096
	for n > 0 {
		size := min(n, most)
		keys, values := make([]K, size), make([]V, size)
		for i := range size {
			keys[i], values[i] = entry(first + i)
		}
		if _, err := m.BatchUpdate(keys, values, nil); err != nil {
			return fmt.Errorf("%v: %w", m, err)
		}
		first, n = first+size, n-size
	}
	return nil
}

func (t *sweepTables) fillFlows(first, n uint32, seen uint64) error {
	return putBatches(t.maps.Flows, first, n, func(slot uint32) (uint32, bpf.EbpnetFlow) { return slot, flowAt(slot, seen) })
}

// indexIdle makes the next flows idle ones that their packets find.
func (t *sweepTables) indexIdle(n uint32) error {
	var sweeper bpf.EbpnetSweeper
	if err := t.maps.Sweepers.Lookup(uint32(0), &sweeper); err != nil {
		return err
	}
	first := sweeper.Cursor
	if first+n > t.maps.Flows.MaxEntries() {
		first = 0
		if err := t.maps.Sweepers.Put(uint32(0), bpf.EbpnetSweeper{}); err != nil {
			return err
		}
	}
	return errors.Join(t.fillFlows(first, n, 1),
		putBatches(t.maps.FlowIndex, first, n, func(slot uint32) (bpf.EbpnetFlowKey, bpf.EbpnetFlowRef) {
			return flowAt(slot, 0).Original, bpf.EbpnetFlowRef{Slot: slot, Side: bpf.EbpnetFlowSideFLOW_ORIGINAL}
		}),
		putBatches(t.maps.FlowIndex, first, n, func(slot uint32) (bpf.EbpnetFlowKey, bpf.EbpnetFlowRef) {
			return flowAt(slot, 0).Reply, bpf.EbpnetFlowRef{Slot: slot, Side: bpf.EbpnetFlowSideFLOW_REPLY}
		}))
}

// fillLearned has as many stations and addresses known as there can be, seen at
// that time, each with its record in the queue.
func (t *sweepTables) fillLearned(seen uint64) error {
	station := func(n uint32) bpf.EbpnetLearned {
		l := bpf.EbpnetLearned{Number: n + 1, Seen: seen}
		l.Station.Network, l.Station.Endpoint = 1+n/4096, 1+n/1024
		return l
	}
	address := func(n uint32) (a bpf.EbpnetAddress) { a.Word[0], a.Word[3] = 1, n; return a }
	mac := func(n uint32) bpf.EbpnetFdbKey {
		return bpf.EbpnetFdbKey{Network: 1 + n/4096, Mac: bpf.EbpnetMac{Byte: [6]uint8{2, 0, 0, byte(n >> 16), byte(n >> 8), byte(n)}}}
	}
	stations, neighbors := t.maps.LearnedFdb.MaxEntries(), t.maps.LearnedNeigh.MaxEntries()
	err := errors.Join(
		putBatches(t.maps.LearnedFdb, 0, stations, func(n uint32) (bpf.EbpnetFdbKey, bpf.EbpnetLearned) { return mac(n), station(n) }),
		putBatches(t.maps.LearnedNeigh, 0, neighbors, func(n uint32) (bpf.EbpnetAddress, bpf.EbpnetLearned) { return address(n), station(n) }),
	)
	if err != nil || seen == 1 {
		return err // the records are there
	}
	for n := range stations {
		k := mac(n)
		record := bpf.EbpnetLearnedRecord{Number: n + 1}
		record.Key[0] = k.Network
		record.Key[1] = uint32(k.Mac.Byte[0]) | uint32(k.Mac.Byte[3])<<24
		record.Key[2] = uint32(k.Mac.Byte[4]) | uint32(k.Mac.Byte[5])<<8
		if err := t.maps.LearnedQueue.Put(nil, record); err != nil {
			return err
		}
	}
	for n := range neighbors {
		record := bpf.EbpnetLearnedRecord{Key: address(n).Word, Number: n + 1, What: bpf.EbpnetLearnWhatLEARN_NEIGHBORS}
		if err := t.maps.LearnedQueue.Put(nil, record); err != nil {
			return err
		}
	}
	return nil
}

// report measures ticks one by one.
func (t *sweepTables) report(w io.Writer, what string, ticks int) error {
	times := make([]time.Duration, ticks)
	for i := range times {
		status, took, err := t.tick.Benchmark(make([]byte, sweptFrame), 1, nil)
		if err != nil || status != 0 {
			return fmt.Errorf("run a tick: status %d: %w", status, err)
		}
		times[i] = took
	}
	slices.Sort(times)
	_, err := fmt.Fprintf(w, "sweep: %s: a tick takes %s in the median, %s at the 99th percentile, %s at most (%d ticks)\n",
		what, times[ticks/2], times[ticks*99/100], times[ticks-1], ticks)
	return err
}
