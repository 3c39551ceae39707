package main

import (
	"fmt"
	"io"
	"math"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// job is what is run on a kernel: tests of one package, or ebpnet.
type job struct {
	name  string
	pkg   string   // as go test takes it
	run   string   // as go test -run takes it
	args  []string // of ebpnet, if there is no pkg
	since version  // the oldest kernel that runs it
	short version  // the oldest kernel that runs it without -all
}

// leastTests is how many tests and parts of tests pass if the names in run are
// right: one for each part of a name.
func (j job) leastTests() int {
	if j.pkg == "" {
		return 0
	}
	return strings.Count(j.run, "/") + 1
}

// version is the first two numbers of a kernel's release.
type version struct{ major, minor int }

func (v version) before(o version) bool {
	return v.major < o.major || v.major == o.major && v.minor < o.minor
}

// jobs lists all jobs in their order. Without -all they have to end within six
// minutes on two CPUs.
func jobs() []job {
	linux612, linux72, never := version{6, 12}, version{7, 2}, version{math.MaxInt, 0}
	return []job{
		{name: "check", args: []string{"check"}},
		{name: "load, budgets", pkg: "./loader", run: "^TestBudgets$"},
		{name: "topology", pkg: "./test", run: "^TestTopology$"},
		{name: "golden packets", pkg: "./datapath", run: "^TestGolden$/^unchanged$/^(bridge|established)"},
		{name: "SCTP", pkg: "./test", run: "^TestSCTP$", since: linux612, short: linux72},
		{name: "VLAN as uplink", pkg: "./test", run: "^TestVLANOfAnUplink$", since: linux612, short: linux72},
		{name: "bond as uplink", pkg: "./test", run: "^TestBondAsUplink$", since: linux612, short: never},
		{name: "GRE device", pkg: "./test", run: "^TestGREDeviceOfTheKernel$", since: linux612, short: never},
		{name: "Open vSwitch", pkg: "./test", run: "^TestOVSKernelDatapath$", since: linux612, short: never},
		{name: "XDP on virtio", pkg: "./test", run: "^TestXDPOnVirtio$", since: linux612, short: never},
		{name: "MTU of a tunnel", pkg: "./test", run: "^TestEndpointMTUFitsTheTunnel$", short: never},
		{name: "priority tags", pkg: "./test", run: "^TestPriorityTags$", short: never},
		{name: "lookups", pkg: "./datapath", run: "^TestLookups$", short: never},
		{name: "all golden packets", pkg: "./datapath", run: "^(TestGolden|TestXDPGolden|TestXDPAgreesWithTC)$", short: never},
	}
}

// programs lists the programs that the jobs run.
func programs() []string {
	return []string{
		"env", "ethtool", "ip", "ping", "redis-cli", "redis-server",
		"ovs-appctl", "ovs-vsctl", "ovs-vswitchd", "ovsdb-server", "ovsdb-tool",
	}
}

// files lists what the programs read.
func files() []string { return []string{"/usr/share/openvswitch/vswitch.ovsschema"} }

// modules lists the parts of the kernel that the jobs need and that may be
// modules.
func modules() []string {
	return []string{
		"8021q", "bonding", "bridge", "cls_bpf", "ip6_gre", "ip_gre", "openvswitch", "sch_ingress",
		"sctp", "veth", "virtio_net", "vport_gre",
	}
}

// choice says which jobs are wanted.
type choice struct {
	all   bool
	names *regexp.Regexp
}

// jobs gives the jobs of a kernel.
func (c choice) jobs(v version) []job {
	return slices.DeleteFunc(jobs(), func(j job) bool {
		return v.before(j.since) || !c.all && v.before(j.short) || !c.names.MatchString(j.name)
	})
}

// result is how a job ended. The guest prints it as JSON.
type result struct {
	Job    string
	Took   time.Duration
	Failed bool
}

func (r result) String() string {
	took := fmt.Sprintf("%d s", int(r.Took.Round(time.Second).Seconds()))
	if r.Failed {
		return "FAILED in " + took
	}
	return took
}

// printResults prints which job ran on which kernel, and how long it took.
func printResults(out io.Writer, kernels []*kernel) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(first string, cell func(*kernel) string) {
		cells := []string{first}
		for _, k := range kernels {
			cells = append(cells, cell(k))
		}
		fmt.Fprintln(w, strings.Join(cells, "\t"))
	}
	line("ran on Linux", func(k *kernel) string { return k.release })
	for _, j := range jobs() {
		line(j.name, func(k *kernel) string {
			if i := slices.IndexFunc(k.results, func(r result) bool { return r.Job == j.name }); i >= 0 {
				return k.results[i].String()
			}
			if slices.ContainsFunc(k.jobs, func(wanted job) bool { return wanted.name == j.name }) {
				return "NOT RUN"
			}
			return "-"
		})
	}
	line("all, with the boot", func(k *kernel) string { return result{Took: k.took}.String() })
	line("processor time", func(k *kernel) string { return result{Took: k.processor}.String() })
	w.Flush()
}
