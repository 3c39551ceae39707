package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ebpnet/ebpnet/datapath"
	"github.com/ebpnet/ebpnet/internal/testutil"
)

// A measurement starts this program again, which in a test is the test.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == peerCommand {
		exit(runPeer(os.Args[2], os.Stdout))
	}
	os.Exit(testutil.Main(m)) // which sees to it that EBPNET names a binary
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("not root: needs network namespaces")
	}
}

// short is long enough for a rate, and too short for a true one.
const short = 50 * time.Millisecond

// once measures everything once over t under another name, which keeps
// parallel tests apart.
func once(t topology, name string) options {
	t.name = name
	return options{rounds: 1, duration: short, topologies: []topology{t}, measures: measures()}
}

func named(t *testing.T, name string) topology {
	t.Helper()
	for _, topology := range topologies() {
		if topology.name == name {
			return topology
		}
	}
	t.Fatalf("no topology %s", name)
	return topology{}
}

func familyOf(t topology) family {
	all := families()
	return all[slices.IndexFunc(all, func(f family) bool { return f.name == t.family })]
}

// nothingLeft checks that a topology's namespaces, pins, directories and
// processes are gone.
func nothingLeft(t *testing.T, topology string) {
	t.Helper()
	prefix := fmt.Sprintf("%s-%d-%s-", namesake, os.Getpid(), topology)
	for _, place := range []string{netnsPath(prefix), pinDirectory(prefix), filepath.Join(os.TempDir(), prefix)} {
		if left, err := filepath.Glob(place + "*"); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v (%v)", left, err)
		}
	}
	processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, process := range processes {
		line, err := os.ReadFile(process)
		if err == nil && strings.Contains(string(line), prefix) {
			t.Errorf("left behind: %s: %q", process, line)
		}
	}
}

func TestEveryMeasurePasses(t *testing.T) {
	needRoot(t)
	t.Parallel()
	for _, name := range []string{
		wire, bridge, "bridge-nftables", "outside-wire", "outside-iptables", "outside-nftables",
		"port-wire", "port-iptables-10", "port-nftables-10",
		"overlay-wire", "overlay-ebpnet", "overlay-ebpnet-learned", "overlay-vxlan", "overlay-vxlan-bare", "overlay-ovs",
		"scale-2", "flood-vxlan-1", "flood-ebpnet-1",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			opt := once(named(t, name), name+"-all")
			rep, err := measureAll(t.Context(), opt, func(string) {})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, r := range rep.Results {
				got = append(got, r.Measure)
			}
			if diff := cmp.Diff(familyOf(opt.topologies[0]).measures, got); diff != "" {
				t.Errorf("measures:\n%s", diff)
			}
			for _, r := range rep.Results {
				if r.Median <= 0 || r.Lost < 0 || r.Lost > 1 {
					t.Errorf("%s: median %v %s, lost %v", r.Measure, r.Median, r.Unit, r.Lost)
				}
			}
			nothingLeft(t, name+"-all")
		})
	}
}

// rulesAfter takes one measure over a topology and gives what a command then
// says in its host.
func rulesAfter(t *testing.T, m measure, topology, as string, args ...string) string {
	t.Helper()
	l := newLab(t.Context(), as, 0)
	t.Cleanup(func() {
		if err := l.close(); err != nil {
			t.Error(err)
		}
	})
	p := named(t, topology).build(l)
	if l.err != nil {
		t.Fatal(l.err)
	}
	if _, err := m.run(t.Context(), p, options{duration: short}); err != nil {
		t.Fatal(err)
	}
	args = inNetns(l.prefix+"-host", args...)
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

// A rival whose rules see no packet would be no rival.
func TestBridgePassesDockersRules(t *testing.T) {
	needRoot(t)
	t.Parallel()
	for _, c := range []struct {
		topology string
		show     []string
		hit      string
	}{
		{bridge, []string{"iptables-save", "-c", "-t", "filter"}, `\[[1-9]\d*:\d+\] -A FORWARD -o docker0 -m conntrack`},
		{"bridge-nftables", []string{"nft", "list", "ruleset"}, `ct state established,related counter packets [1-9]\d* `},
	} {
		t.Run(c.topology, func(t *testing.T) {
			t.Parallel()
			rules := rulesAfter(t, measures()[0], c.topology, "rules-"+c.topology, c.show...)
			if seen := regexp.MustCompile(c.hit).MatchString(rules); seen != bridgeNetfilter() {
				t.Errorf("the rules saw packets: %v, br_netfilter: %v\n%s", seen, bridgeNetfilter(), rules)
			}
		})
	}
}

// The rules that translate are those of the rival, and only the last of the
// published ports is met, once a connection, in each of the two chains.
func TestRivalsTranslate(t *testing.T) {
	needRoot(t)
	t.Parallel()
	iptablesSave, nftList := []string{"iptables-save", "-c"}, []string{"nft", "list", "ruleset"}
	for _, c := range []struct {
		topology string
		show     []string
		hit      []string // each once
		missed   string   // by all others
		count    int
	}{
		{"outside-iptables", iptablesSave, []string{`\[1:\d+\] .* -j MASQUERADE`}, `-j DNAT`, 0},
		{"outside-nftables", nftList, []string{`counter packets 1 bytes \d+ masquerade`}, `dnat to`, 0},
		{
			"port-iptables-10", iptablesSave,
			[]string{`\[1:\d+\] .* -p tcp .* --dport 7000 -j ACCEPT`, `\[1:\d+\] .* -p tcp .* --dport 30000 -j DNAT`},
			`\[0:0\] -A DOCKER .* --dport \d+ -j (ACCEPT|DNAT)`, 18,
		},
		{
			"port-nftables-10", nftList,
			[]string{`tcp dport 7000 counter packets 1 bytes \d+ accept`, `tcp dport 30000 counter packets 1 bytes \d+ dnat to`},
			`dport \d+ counter packets 0 bytes 0 (accept|dnat to)`, 18,
		},
	} {
		t.Run(c.topology, func(t *testing.T) {
			t.Parallel()
			rules := rulesAfter(t, measures()[0], c.topology, "hit-"+c.topology, c.show...)
			for _, hit := range c.hit {
				if n := len(regexp.MustCompile(hit).FindAllString(rules, -1)); n != 1 {
					t.Errorf("%d rules like %s, want 1", n, hit)
				}
			}
			if n := len(regexp.MustCompile(c.missed).FindAllString(rules, -1)); n != c.count {
				t.Errorf("%d rules like %s, want %d", n, c.missed, c.count)
			}
			if t.Failed() {
				t.Log(rules)
			}
		})
	}
}

// What is measured as large is large, and as small small.
func TestTablesAreFilled(t *testing.T) {
	needRoot(t)
	t.Parallel()
	for _, n := range []size{{2, 2}, {3, 1000}} {
		t.Run(fmt.Sprint(n.endpoints), func(t *testing.T) {
			t.Parallel()
			l := newLab(t.Context(), fmt.Sprintf("filled-%d", n.endpoints), 0)
			t.Cleanup(func() {
				if err := l.close(); err != nil {
					t.Error(err)
				}
			})
			buildScale(l, n)
			if l.err != nil {
				t.Fatal(l.err)
			}
			for _, host := range []string{"near", "far"} {
				tables, err := datapath.Open(pinDirectory(l.prefix + "-" + host))
				if err != nil {
					t.Fatal(err)
				}
				stations, err := tables.Stations()
				if err := errors.Join(err, tables.Close()); err != nil {
					t.Fatal(err)
				}
				behind := map[uint32]int{}
				for _, s := range stations {
					if s.Tunnel != 0 && !s.Learned {
						behind[s.Tunnel]++
					}
				}
				all := 0
				for _, count := range behind {
					all += count
				}
				if all != n.endpoints || len(behind) != n.tunnels {
					t.Errorf("%s: %d endpoints behind %d tunnels, want %d behind %d", host, all, len(behind), n.endpoints, n.tunnels)
				}
			}
		})
	}
}

// A broadcast goes into each tunnel, not into one.
func TestFloodReachesAllTunnels(t *testing.T) {
	needRoot(t)
	t.Parallel()
	for _, name := range []string{"flood-vxlan-64", "flood-ebpnet-64"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rep, err := measureAll(t.Context(), once(named(t, name), name+"-all"), func(string) {})
			if err != nil {
				t.Fatal(err)
			}
			// A busy machine may lose some.
			if lost := rep.find(copies, name+"-all").Lost; lost > 0.5 {
				t.Errorf("lost %v of the copies", lost)
			}
		})
	}
}

func TestRefusedConnectionIsAnError(t *testing.T) {
	needRoot(t)
	t.Parallel()
	deaf := topology{family: inside, build: func(l *lab) path {
		p := buildWire(l)
		p.dial = netip.AddrPortFrom(p.dial.Addr(), serverPort+1)
		return p
	}}
	_, err := measureAll(t.Context(), once(deaf, "deaf"), func(string) {})
	if err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("error %v, want connection refused", err)
	}
	nothingLeft(t, "deaf")
}

func TestFailedTopologyIsRemoved(t *testing.T) {
	needRoot(t)
	t.Parallel()
	broken := topology{family: inside, build: func(l *lab) path {
		p := buildWire(l)
		l.veth(p.client, "eth0", p.server, "eth0") // exists already
		l.netns("never")
		return p
	}}
	_, err := measureAll(t.Context(), once(broken, "broken"), func(string) {})
	if err == nil || !strings.Contains(err.Error(), "topology broken: ip -n") {
		t.Errorf("error %v, want the command that failed", err)
	}
	nothingLeft(t, "broken")
}

func TestInterruptRemovesEverything(t *testing.T) {
	needRoot(t)
	t.Parallel()
	for _, c := range []struct{ during, topology string }{
		{"building", wire}, {"round", wire}, {"round", "overlay-ebpnet"}, {"round", "overlay-ovs"}, {"round", "pktgen-drop-xdp"},
	} {
		name := c.topology + "-interrupt-" + c.during
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithCancel(t.Context())
			_, err := measureAll(ctx, once(named(t, c.topology), name), func(text string) {
				if strings.HasPrefix(text, c.during) {
					cancel()
				}
			})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("error %v, want %v", err, context.Canceled)
			}
			nothingLeft(t, name)
		})
	}
}

func TestOnlyChooses(t *testing.T) {
	t.Parallel()
	opt, err := parse([]string{"--only", "wire,bridge,tcp_rr"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if len(opt.topologies) != 2 || len(opt.measures) != 1 || opt.measures[0].name != "tcp_rr" {
		t.Errorf("chose %d topologies and %d measures, want 2 and 1", len(opt.topologies), len(opt.measures))
	}
	opt, err = parse([]string{"--only", "outside,bridge"}, io.Discard)
	if err != nil || len(opt.topologies) != 5 {
		t.Errorf("a family and one of another: %d topologies, want 5 (%v)", len(opt.topologies), err)
	}
	opt, err = parse([]string{"--only", "flood,scale"}, io.Discard)
	if err != nil || len(opt.topologies) != 11 {
		t.Errorf("two families: %d topologies, want 11 (%v)", len(opt.topologies), err)
	}
	opt, err = parse([]string{"--only", "wire"}, io.Discard)
	if err != nil || len(opt.measures) != len(measures()) {
		t.Errorf("without a measure named: %d of %d (%v)", len(opt.measures), len(measures()), err)
	}
}

// A round takes each topology once a measure, another one first.
func TestTurns(t *testing.T) {
	t.Parallel()
	opt, err := parse([]string{"--only", "wire,bridge,port-wire,tcp_rr,tcp_stream"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	for round, want := range []string{
		"tcp_rr wire, tcp_rr bridge, tcp_stream wire, tcp_stream bridge, tcp_rr port-wire",
		"tcp_rr bridge, tcp_rr wire, tcp_stream bridge, tcp_stream wire, tcp_rr port-wire",
	} {
		var got []string
		for _, now := range opt.turns(round) {
			got = append(got, now.measure.name+" "+now.topology.name)
		}
		if diff := cmp.Diff(want, strings.Join(got, ", ")); diff != "" {
			t.Errorf("round %d:\n%s", round, diff)
		}
	}
}

// What cannot be written is said before anything is measured.
func TestFilesAreTriedFirst(t *testing.T) {
	t.Parallel()
	directory := t.TempDir()
	kept := filepath.Join(directory, "kept.json")
	if err := os.WriteFile(kept, []byte("as it was"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		opt  options
		want string // in the error; empty: none
	}{
		{options{}, ""},
		{options{json: kept, svg: filepath.Join(directory, "plots")}, ""},
		{options{json: filepath.Join(directory, "new.json")}, ""},
		{options{json: filepath.Join(directory, "none", "new.json")}, "--json: "},
		{options{json: directory}, "--json: "},
		{options{svg: kept}, "--svg: "},
	} {
		err := c.opt.tryFiles()
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("--json %s --svg %s: error %v, want %q", c.opt.json, c.opt.svg, err, c.want)
		}
	}
	if text, err := os.ReadFile(kept); err != nil || string(text) != "as it was" {
		t.Errorf("what was there is now %q (%v)", text, err)
	}
	if _, err := os.Stat(filepath.Join(directory, "new.json")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left behind: new.json (%v)", err)
	}
}

func TestBadUsage(t *testing.T) {
	t.Parallel()
	for _, args := range []string{"--rounds 0", "--duration 0s", "--cpu -1", "--only wrie", "--only wire,", "--only=", "--ci --only=", "--only port,tcp_stream", "--only flood,tcp_rr", "more", "--no"} {
		_, err := parse(strings.Fields(args), io.Discard)
		if !errors.Is(err, errUsage) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: error %v, want one line of usage", args, err)
		}
	}
	if _, err := parse([]string{"--help"}, io.Discard); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("--help: %v", err)
	}
}
