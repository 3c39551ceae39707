package main

import (
	"testing"
	"time"
)

func TestPercentile(t *testing.T) {
	t.Parallel()
	var hundred []time.Duration
	for i := range 100 {
		hundred = append(hundred, time.Duration(i+1))
	}
	for _, c := range []struct {
		sorted []time.Duration
		of     int
		want   time.Duration
	}{
		{hundred, 50, 50},
		{hundred, 99, 99},
		{hundred, 100, 100},
		{hundred, 0, 1},
		{hundred[:1], 50, 1},
		{hundred[:1], 99, 1},
		{hundred[:2], 50, 1},
		{hundred[:2], 51, 2},
		{hundred[:3], 50, 2},
		{hundred[:99], 99, 99},
	} {
		if got := percentile(c.sorted, c.of); got != c.want {
			t.Errorf("%d of 100 of %d: %d, want %d", c.of, len(c.sorted), got, c.want)
		}
	}
}

// What one stall delays counts from when it was due.
func TestPaceHidesNoStall(t *testing.T) {
	t.Parallel()
	const stalled, total = 10, 20
	calls := 0
	got, err := pace(total*pacedInterval, func() error {
		if calls++; calls == 1 {
			for start := time.Now(); time.Since(start) < stalled*pacedInterval; {
			}
		}
		return nil
	})
	if err != nil || len(got.Latencies) != total || calls != total {
		t.Fatalf("%d latencies of %d calls, want %d (%v)", len(got.Latencies), calls, total, err)
	}
	for i, latency := range got.Latencies[:stalled] {
		if least := time.Duration(stalled-i) * pacedInterval; latency < least {
			t.Errorf("request %d: %s, want at least %s", i, latency, least)
		}
	}
	if got.CPU <= 0 {
		t.Errorf("CPU %s", got.CPU)
	}
}

func TestPaced(t *testing.T) {
	needRoot(t)
	t.Parallel()
	opt := once(named(t, wire), "paced")
	opt.measures = []measure{paced()}
	rep, err := measureAll(t.Context(), opt, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	r := rep.find(pacedTCP, "paced")
	if r == nil || r.CPU == nil || r.P50 == nil || r.P99 == nil {
		t.Fatalf("CPU, p50 or p99 is missing: %+v", r)
	}
	if want := int(short / pacedInterval); len(r.latencies) != want {
		t.Errorf("%d latencies, want %d", len(r.latencies), want)
	}
	if r.Median != r.P50.Median || r.P50.Median <= 0 || r.P99.Median < r.P50.Median || r.CPU.Median <= 0 {
		t.Errorf("median %v, p50 %v, p99 %v, CPU %v", r.Median, *r.P50, *r.P99, *r.CPU)
	}
	nothingLeft(t, "paced")
}
