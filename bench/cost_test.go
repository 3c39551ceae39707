package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// tests stands for the compiled tests of the datapath: a program that writes
// lines, with the number of its run in place of @.
func tests(t *testing.T, lines string) *costs {
	t.Helper()
	runs := filepath.Join(t.TempDir(), "runs")
	script := fmt.Sprintf("echo >>%s; n=$(wc -l <%s); echo '%s' | sed s/@/$n/", runs, runs, lines)
	return &costs{command: []string{"sh", "-c", script}}
}

// brief is what the command line asks for, as far as costs matter.
func brief() options { return options{duration: time.Second} }

func TestCostsAreToldOnceARound(t *testing.T) {
	t.Parallel()
	c := tests(t, `goos: linux
BenchmarkPath/same-host   	     100	        @.5 ns/packet
BenchmarkPath/empty 	 100	 @ ns/packet
PASS`)
	for round, want := range []string{"1.5 1", "2.5 2"} {
		var got []string
		for _, path := range []string{"same-host", empty} {
			value, err := c.of(t.Context(), path, brief())
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, fmt.Sprint(value))
		}
		if strings.Join(got, " ") != want {
			t.Errorf("round %d: %s, want %s", round, got, want)
		}
	}
}

func TestCostsThatDoNotFit(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		costs *costs
		want  string
	}{
		{"a path that is not told", tests(t, "BenchmarkPath/empty 	1	1 ns/packet"), "no cost of same-host"},
		{"a path that bench has not", tests(t, "BenchmarkPath/new-way 	1	1 ns/packet"), "cost of new-way"},
		{"tests that fail", &costs{command: []string{"sh", "-c", "echo broken; exit 1"}}, "broken"},
		{"no tests", &costs{command: []string{filepath.Join(t.TempDir(), "none")}}, "run make bench"},
	} {
		_, err := c.costs.of(t.Context(), "same-host", brief())
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: error %v, want one line with %q", c.name, err, c.want)
		}
	}
}

func TestCostsAreNotBegunAfterAnInterrupt(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c := tests(t, "BenchmarkPath/empty 	1	1 ns/packet")
	if _, err := c.of(ctx, empty, brief()); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want %v", err, context.Canceled)
	}
}

func TestEveryPathIsATopology(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	for _, topology := range toCost() {
		over := topology.build(nil)
		if over.program == "" || seen[over.program] || topology.name != cost+"-"+over.program {
			t.Errorf("topology %s is of path %q", topology.name, over.program)
		}
		seen[over.program] = true
	}
}
