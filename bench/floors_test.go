package main

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"
)

// Floors name what there is; else they would hold nothing.
func TestFloorsAreOfWhatThereIs(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, f := range floors() {
		what := strings.Join([]string{f.family, f.measure, f.topology, f.to}, " ")
		if seen[what] {
			t.Errorf("%s: twice", what)
		}
		seen[what] = true
		if f.least <= 0 || f.reason == "" {
			t.Errorf("%s: least %v, reason %q", what, f.least, f.reason)
		}
		own := named(t, f.topology)
		family := familyOf(own)
		if own.family != f.family || !slices.Contains(family.measures, f.measure) {
			t.Errorf("%s: the topology is of %s, which takes %v", what, own.family, family.measures)
		}
		if !slices.ContainsFunc(measures(), func(m measure) bool { return m.name == f.measure }) {
			t.Errorf("%s: no such measure", what)
		}
		if !slices.ContainsFunc(topologies(), func(b topology) bool { return b.isBaseOf(own, f.to) }) {
			t.Errorf("%s: nothing of that kind to compare with", what)
		}
	}
}

func TestFloor(t *testing.T) {
	t.Parallel()
	held := floor{inside, requests, ebpnet, wire, 0.8, "because"}
	higher, unmeasured, baseless := held, held, held
	higher.least = 0.9
	unmeasured.topology = "ebpnet-link"
	baseless.to = bridge
	rep := filled(t, map[string][]float64{wire: {10, 10, 10}, ebpnet: {8.5, 2, 8.5}}) // one round was disturbed
	for _, c := range []struct {
		floor floor
		want  string // of the error; empty: none
		below bool
	}{
		{held, "", false},
		{higher, "inside tcp_rr of ebpnet: 0.850 times as good as wire is below its floor of 0.90: because", true},
		{unmeasured, "inside tcp_rr of ebpnet-link was not measured, but has a floor", false},
		{baseless, "inside tcp_rr of ebpnet has a floor beside bridge, which was not measured", false},
	} {
		err := c.floor.check(&rep)
		if got := errorText(err); got != c.want || errors.Is(err, errBelow) != c.below {
			t.Errorf("error %q (below: %v), want %q", got, errors.Is(err, errBelow), c.want)
		}
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// Half the latency is twice as good.
func TestFloorWhereLessIsBetter(t *testing.T) {
	t.Parallel()
	opt := options{rounds: 1, duration: time.Second, measures: []measure{paced()}, topologies: []topology{named(t, wire), named(t, ebpnet)}}
	rep := newReport(opt)
	rep.add(paced(), opt.topologies[0], sample{value: 10})
	rep.add(paced(), opt.topologies[1], sample{value: 5})
	rep.finish()
	for least, below := range map[float64]bool{1.9: false, 2.1: true} {
		err := floor{inside, pacedTCP, ebpnet, wire, least, "because"}.check(&rep)
		if errors.Is(err, errBelow) != below {
			t.Errorf("floor of %v: %v", least, err)
		}
	}
}

// A ratio below its floor fails only when it is so a second time; what was not
// measured fails at once.
func TestJudge(t *testing.T) {
	t.Parallel()
	low := func(t *testing.T) report {
		return filled(t, map[string][]float64{wire: {10, 10, 10}, ebpnet: {5, 5, 5}, "port-wire": {10, 10, 10}, "port-ebpnet-10": {10, 10, 10}})
	}
	high := func(t *testing.T) report {
		return filled(t, map[string][]float64{wire: {10, 10, 10}, ebpnet: {9, 9, 9}})
	}
	both := []floor{
		{inside, requests, ebpnet, wire, 0.8, "because"},
		{port, requests, "port-ebpnet-10", wire, 0.8, "because"},
	}
	missing := append([]floor{{overlay, requests, "overlay-ebpnet", wire, 0.8, "because"}}, both...)
	for name, c := range map[string]struct {
		floors      []floor
		first, then func(*testing.T) report
		lines       int // of the error
		times       int // measured again
	}{
		"held":         {both[1:], low, nil, 0, 0},
		"low once":     {both, low, high, 0, 1},
		"low twice":    {both, low, low, 1, 1},
		"not measured": {missing, low, nil, 2, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			opt := options{ci: true, json: "dir/ci.json", svg: "plots"}
			opt.hold(c.floors)
			times := 0
			err := judge(c.first(t), opt, io.Discard, func(second options) (report, error) {
				times++
				if second.json != "dir/ci-again.json" || second.svg != "plots-again" {
					t.Errorf("the second time is written to %s and %s", second.json, second.svg)
				}
				for _, top := range second.topologies {
					if top.family != inside {
						t.Errorf("%s is measured again, whose floors held", top.name)
					}
				}
				return c.then(t), nil
			})
			lines := 0
			if err != nil {
				lines = 1 + strings.Count(err.Error(), "\n")
			}
			if lines != c.lines || times != c.times {
				t.Errorf("measured %d times more, want %d; %d lines, want %d: %v", times, c.times, lines, c.lines, err)
			}
		})
	}
}

// --ci measures what floors need, all of it and no more.
func TestCIMeasuresWhatFloorsNeed(t *testing.T) {
	t.Parallel()
	opt, err := parse([]string{"--ci", "--duration", "70ms"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if opt.rounds != ciRounds || opt.duration != 70*time.Millisecond {
		t.Errorf("%d rounds of %s", opt.rounds, opt.duration)
	}
	rep := newReport(opt)
	for _, f := range floors() {
		if r := rep.find(f.measure, f.topology); r == nil || rep.base(r, f.to) == nil {
			t.Errorf("%s %s beside %s would not be measured", f.measure, f.topology, f.to)
		}
	}
	opt.hold([]floor{{outside, stream, "outside-ebpnet", iptables, 1, "because"}})
	var got []string
	for _, now := range opt.turns(0) {
		got = append(got, now.measure.name+" "+now.topology.name)
	}
	if strings.Join(got, ", ") != "tcp_stream outside-iptables, tcp_stream outside-ebpnet" || len(opt.topologies) != 2 {
		t.Errorf("for one floor it measures %v", got)
	}
	if _, err := parse([]string{"--ci", "--only", "wire"}, io.Discard); !errors.Is(err, errUsage) {
		t.Errorf("--ci with --only: %v", err)
	}
}
