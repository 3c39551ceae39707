package main

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// cost is a family, and packetCost what is measured of it.
const (
	cost       = "cost"
	packetCost = "packet_cost"
)

// empty is the kind of a program that returns at once.
const empty = "empty"

func costFamily() family {
	return family{cost, "what the program takes for a packet on each path, beyond one that returns at once", []string{empty}, []string{packetCost}}
}

// costPath is one of the paths that BenchmarkPath of package datapath tells the
// cost of.
type costPath struct {
	name, about string
	both        bool // there is one of IPv6 too
}

func costPaths() []costPath {
	return []costPath{
		{"same-host", "between endpoints of a network with ICC", true},
		{"link-out", "to a linked port, ICC off", true},
		{"link-back", "from a linked port, ICC off", true},
		{"link-open", "the first packet to it; single runs", true},
		{"masquerade-out", "to the outside", true},
		{"masquerade-back", "from the outside", true},
		{"masquerade-udp-out", "to the outside, UDP", false},
		{"masquerade-udp-back", "from the outside, UDP", false},
		{"masquerade-open", "the first packet to the outside; single runs", true},
		{"publish-in", "to a published port", true},
		{"publish-back", "from a published port", true},
		{"publish-udp-in", "to a published port, UDP", false},
		{"publish-udp-back", "from a published port, UDP", false},
		{"publish-open", "the first packet to it; single runs", true},
		{"gre-out", "into a tunnel; single runs", true},
		{"gre-back", "out of a tunnel; single runs", true},
		{"gateway-out", "from an endpoint to the host", true},
		{"gateway-back", "from the host to an endpoint", true},
		{"host-out", "the host's own to the outside", true},
		{"host-in", "the host's own from the outside", true},
		{"arp-answer", "a question for a MAC, answered", false},
		{"nd-answer", "the same of IPv6", false},
		{"drop-spoofed-mac", "from an endpoint by another's MAC", false},
		{"drop-spoofed-address", "from an endpoint by another's address", false},
		{"drop-unknown-source", "from a device of no endpoint", false},
		{"drop-unknown-destination", "to nobody", false},
		{"drop-unknown-protocol", "what containers do not speak", false},
		{"drop-malformed", "a broken header", false},
		{"drop-policy", "to a port without a link", false},
		{"drop-isolated", "to another network", false},
		{"drop-internal", "from an internal network to the outside", false},
		{"drop-not-from-host", "what the host would forward in", false},
		{"drop-unknown-tunnel", "GRE of a stranger", false},
		{"drop-unknown-key", "GRE with a key of none", false},
		{"drop-bad-gre", "GRE of another kind", false},
		{"drop-spoofed-overlay", "out of a tunnel by another's address", false},
		{"drop-unsolicited", "from outside to a masqueraded port", false},
		{"drop-spoofed-outside", "from outside by a container's address", false},
		{"drop-source-not-allowed", "to a published port by one who may not", false},
		{"drop-loopback-only", "from outside to a loopback address", false},
		{"drop-unknown-flow", "an answer to nothing, to a published port", false},
		{"drop-fragment", "GRE in fragments", false},
		{"drop-rogue-router", "a container that speaks as a router, IPv6", false},
	}
}

// toCost is a topology for each path, in which nothing is built.
func toCost() []topology {
	one := func(name, about, kind string) topology {
		return topology{
			name: cost + "-" + name, about: about, family: cost, kind: kind,
			build: func(*lab) path { return path{program: name} },
		}
	}
	all := []topology{one(empty, "a program that returns at once: the zero", empty)}
	for _, p := range costPaths() {
		all = append(all, one(p.name, p.about, ebpnet))
		if p.both {
			all = append(all, one(p.name+"-ipv6", p.about+", IPv6", ebpnet))
		}
	}
	return all
}

func costMeasures() []measure {
	told := costs{command: []string{filepath.Join("bin", "datapath.test")}}
	return []measure{{
		name: packetCost, about: "time of the program for a packet, by test runs", unit: "ns", scale: 1, lessIsBetter: true,
		take: func(ctx context.Context, over path, opt options) (sample, error) {
			value, err := told.of(ctx, over.program, opt)
			return sample{value: value}, err
		},
	}}
}

// costs are what a run of the datapath's benchmarks told and nobody has asked
// for yet: one run, which takes seconds to build its world, is for a round.
type costs struct {
	command []string // the compiled tests
	left    map[string]float64
}

func (c *costs) of(ctx context.Context, path string, opt options) (float64, error) {
	value, ok := c.left[path]
	if !ok {
		if err := c.run(ctx, opt); err != nil {
			return 0, err
		}
		if value, ok = c.left[path]; !ok {
			return 0, fmt.Errorf("the tests of package datapath tell no cost of %s", path)
		}
	}
	delete(c.left, path)
	return value, nil
}

const (
	// costShare is the share of a measurement's duration that a path gets: there
	// are many, and a packet takes little.
	costShare = 20
	// costTimeout is far more than a run takes.
	costTimeout = 2 * time.Minute
)

// run has every cost told anew. Once begun it goes on to its end, as only then
// it has removed what it made.
func (c *costs) run(ctx context.Context, opt options) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if _, err := exec.LookPath(c.command[0]); err != nil {
		return fmt.Errorf("no compiled tests of package datapath: %w; run make bench", err)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), costTimeout)
	defer cancel()
	args := append([]string{"--cpu-list", strconv.Itoa(opt.cpu)}, c.command...)
	args = append(args, "-test.run=^$", "-test.bench=^BenchmarkPath$", "-test.cpu=1",
		"-test.benchtime="+(opt.duration/costShare).String())
	cmd := exec.CommandContext(ctx, "taskset", args...)
	cmd.SysProcAttr = apart()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	c.left = parseCosts(string(out))
	known := map[string]bool{}
	for _, t := range toCost() {
		known[strings.TrimPrefix(t.name, cost+"-")] = true
	}
	for name := range c.left {
		if !known[name] {
			return fmt.Errorf("the tests of package datapath tell the cost of %s, which bench does not know", name)
		}
	}
	return nil
}

// parseCosts reads what benchmarks wrote: nanoseconds by path.
func parseCosts(text string) map[string]float64 {
	told := map[string]float64{}
	line := regexp.MustCompile(`(?m)^BenchmarkPath/(\S+)\s+\d+\s+(-?[\d.]+) ns/packet$`)
	for _, found := range line.FindAllStringSubmatch(text, -1) {
		if value, err := strconv.ParseFloat(found[2], 64); err == nil {
			told[found[1]] = value
		}
	}
	return told
}
