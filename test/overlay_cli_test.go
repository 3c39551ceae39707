package test

import (
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// listedTunnel is what `tunnel ls -o json` says of one.
type listedTunnel struct {
	Name         string   `json:"name"`
	Local        string   `json:"local"`
	Remote       string   `json:"remote"`
	Networks     []string `json:"networks"`
	Checksums    bool     `json:"checksums"`
	Sequence     bool     `json:"sequence"`
	Fragmentable bool     `json:"fragmentable"`
	CopyDSCP     bool     `json:"copy_dscp"`
	TTL          int      `json:"ttl"`
}

func listedTunnels(t *testing.T, h *testutil.Host) (list []listedTunnel) {
	t.Helper()
	h.EbpnetJSON(t, &list, "tunnel", "ls")
	return list
}

// hasLine tells whether a table has a line of those words.
func hasLine(table string, words ...string) bool {
	return slices.ContainsFunc(strings.Split(table, "\n"), func(line string) bool {
		return slices.Equal(strings.Fields(line), words)
	})
}

// detours counts the devices that have the program to_tunnel.
func detours(t *testing.T, h *testutil.Host) int {
	t.Helper()
	pins, err := filepath.Glob(filepath.Join(h.Pin, "links", "to_tunnel-*"))
	if err != nil {
		t.Fatal(err)
	}
	return len(pins)
}

func TestBadOverlayOptionsAreRefused(t *testing.T) {
	h, _ := newOutside(t)
	createNet(t, h, "--key", "42")
	createOther(t, h)
	h.Ebpnet(t, "network", "create", "third", "--subnet", "172.32.0.0/24")
	h.Ebpnet(t, "network", "create", "named", "--subnet", "172.33.0.0/24", "--key", "0")
	a := h.NewContainer(t, "a", "net")
	h.Ebpnet(t, "tunnel", "add", "peer", "--remote", "192.0.2.2")
	h.Ebpnet(t, "tunnel", "add", "some", "--remote", "192.0.2.3", "--network", "other", "--network", "named")
	free := testutil.NewNetns(t, "free")

	add := func(args ...string) []string {
		return append([]string{"tunnel", "add", "new", "--remote", "192.0.2.9"}, args...)
	}
	behind := func(tunnel, network, ip string) []string {
		return []string{"endpoint", "add", "new", "--network", network, "--tunnel", tunnel, "--ip", ip, "--mac", "02:00:00:00:00:20"}
	}
	all := func() string {
		return everything(t, h) + h.Ebpnet(t, "fdb", "ls") + h.Ebpnet(t, "-o", "json", "status") +
			a.Run(t, "ip", "-o", "link") + fmt.Sprint(detours(t, h))
	}
	before := all()
	for _, c := range []struct {
		code  int
		args  []string
		words []string
	}{
		// Ends.
		{exitUsage, []string{"tunnel", "add", "new"}, []string{"--remote"}},
		{exitUsage, []string{"tunnel", "add", "new", "--remote", "2001:db8::2", "--local", "192.0.2.1"}, []string{"192.0.2.1", "2001:db8::2", "family"}},
		{exitUsage, add("--local", "2001:db8::1"), []string{"2001:db8::1", "family"}},
		{exitUsage, add("--local", "192.0.2.77"), []string{"192.0.2.77", "this host"}},
		{exitUsage, add("--local", "127.0.0.1"), []string{"127.0.0.1"}},
		{exitUsage, add("--local", ""), []string{"--local"}},
		{exitUsage, add("--local", "here"), []string{"local", "here"}},
		{exitUsage, []string{"tunnel", "add", "new", "--remote", "fe80::2"}, []string{"remote fe80::2"}},
		{exitUsage, []string{"tunnel", "add", "new", "--remote", "fe80::2%up0"}, []string{"zone"}},
		{exitUsage, []string{"tunnel", "add", "new", "--remote", "ff02::1"}, []string{"remote ff02::1"}},
		{exitUsage, []string{"tunnel", "add", "new", "--remote", "::1"}, []string{"remote ::1"}},
		{exitUsage, []string{"tunnel", "add", "new", "--remote", "2001:db8::1"}, []string{"2001:db8::1", "own"}},
		{exitUsage, []string{"tunnel", "add", "new", "--remote", "fd00:30::9"}, []string{"fd00:30::9", `"net"`}},
		{exitFailure, []string{"tunnel", "add", "new", "--remote", "192.0.2.2"}, []string{`"peer"`, "192.0.2.2"}},

		// Options.
		{exitUsage, add("--ttl", "0"), []string{"TTL 0", "1 to 255"}},
		{exitUsage, add("--ttl", "256"), []string{"TTL 256", "1 to 255"}},
		{exitUsage, add("--ttl", "-1"), []string{"TTL -1"}},
		{exitUsage, add("--ttl", "long"), []string{"ttl", "long"}},
		{exitUsage, add("--df=perhaps"), []string{"df", "perhaps"}},
		{exitUsage, []string{"tunnel", "add", "new", "--remote", "2001:db8::2", "--df=false"}, []string{"DF", "IPv6"}},
		{exitUsage, add("--csum=some"), []string{"csum", "some"}},
		{exitUsage, add("--key", "42"), []string{"key"}},

		// Networks.
		{exitFailure, add("--network", "nowhere"), []string{"network", "nowhere"}},
		{exitUsage, add("--network", "net", "--network", "net"), []string{`"net"`, "twice"}},
		{exitUsage, add("--network", "../net"), []string{"../net"}},
		{exitUsage, add("--network", ""), []string{"network name"}},
		{exitFailure, add("--network", "third", "--network", "net", "--network", "other"), []string{`"other"`, `"third"`, "no key"}},
		{exitFailure, []string{"network", "rm", "other"}, []string{`"other"`, `tunnel "some"`}},
		{exitFailure, []string{"network", "rm", "named"}, []string{`"named"`, `tunnel "some"`}},
		{exitFailure, behind("peer", "other", "172.31.0.20"), []string{`"peer"`, `"other"`, "key", "--network other"}},
		{exitFailure, behind("some", "net", "172.30.0.20"), []string{`"some"`, `"net"`, "--network net"}},
		{exitFailure, behind("some", "third", "172.32.0.20"), []string{`"some"`, `"third"`, "--network third"}},

		// Trunks.
		{exitUsage, append(behind("peer", "net", "172.30.0.20"), "--trunk"), []string{"trunk", "its own host"}},

		// MTUs.
		{exitUsage, []string{"network", "set", "net", "--mtu", "1279"}, []string{"MTU 1279", "1280"}},
		{exitUsage, []string{"network", "set", "net", "--mtu", "65536"}, []string{"MTU 65536"}},
		{exitUsage, []string{"network", "set", "net", "--mtu", "-1"}, []string{"MTU -1"}},
		{exitUsage, []string{"network", "set", "net", "--mtu", "large"}, []string{"mtu", "large"}},
		{exitUsage, []string{"network", "set", "net"}, []string{"--mtu"}},
		{exitFailure, []string{"network", "set", "nowhere", "--mtu", "1400"}, []string{"nowhere"}},

		// Learned stations.
		{exitFailure, []string{"fdb", "ls", "--network", "nowhere"}, []string{"network", "nowhere"}},
		{exitUsage, []string{"fdb", "ls", "--network", ""}, []string{"--network"}},
		{exitUsage, []string{"fdb", "ls", "net"}, []string{`"net"`}},
		{exitUsage, []string{"fdb", "ls", "--tunnel", "peer"}, []string{"tunnel"}},
		{exitFailure, []string{"fdb", "flush", "--network", "nowhere"}, []string{"network", "nowhere"}},
		{exitFailure, []string{"fdb", "flush", "--tunnel", "nowhere"}, []string{"tunnel", "nowhere"}},
		{exitFailure, []string{"fdb", "flush", "--endpoint", "nobody"}, []string{"endpoint", "nobody"}},
		{exitUsage, []string{"fdb", "flush", "--tunnel", ""}, []string{"--tunnel"}},
		{exitUsage, []string{"fdb", "flush", "all"}, []string{`"all"`}},
		{exitUsage, []string{"fdb", "add"}, []string{"add", "flush"}},
		{exitUsage, []string{"load", "--timeout", "fdb=1000001s"}, []string{"fdb", "277h46m40s"}},
		{exitUsage, []string{"load", "--timeout", "fdb=999ms"}, []string{"fdb", "1s"}},
		{exitUsage, []string{"load", "--timeout", "learned=300s"}, []string{"learned", "fdb"}},
		{exitUsage, []string{"load", "--tunnel-address", "2001:db8::99"}, []string{"tunnel address", "2001:db8::99"}},
		{exitUsage, []string{"load", "--tunnel-address", "fe80::1"}, []string{"tunnel address", "fe80::1"}},
	} {
		refused(t, h, c.code, c.args, c.words...)
		if after := all(); after != before {
			t.Fatalf("ebpnet %q was refused, and changed\n%s\nto\n%s", c.args, before, after)
		}
		if n := veths(t, free); n != 0 {
			t.Fatalf("ebpnet %q was refused, and left a device in the namespace", c.args)
		}
	}

	// What is like it, and fits.
	h.Ebpnet(t, add("--network", "third", "--network", "net", "--ttl", "255", "--df=false")...)
	h.Ebpnet(t, "tunnel", "add", "new6", "--remote", "2001:db8::9", "--ttl", "1", "--df=true")
	h.Ebpnet(t, behind("some", "other", "172.31.0.20")...)
	refused(t, h, exitFailure, []string{"tunnel", "rm", "some"}, `"some"`, `endpoint "new"`)
	h.Ebpnet(t, "endpoint", "rm", "new")
	h.Ebpnet(t, "tunnel", "rm", "some")
	h.Ebpnet(t, "network", "rm", "other")
	h.Ebpnet(t, "network", "rm", "named") // carried without being named
}

// A network must not take away the way to a tunnel's other end.
func TestNetworkOverARemoteIsRefused(t *testing.T) {
	h, _ := newOutside(t)
	h.Ebpnet(t, "tunnel", "add", "far", "--remote", "198.51.100.2")
	refused(t, h, exitFailure, []string{"network", "create", "new", "--subnet", "198.51.100.0/24"}, "198.51.100.0/24", "198.51.100.2", `"far"`)
	h.Ebpnet(t, "network", "create", "new", "--subnet", "198.51.101.0/24")
}

func TestTunnelsAreShownAndKept(t *testing.T) {
	t.Parallel()
	h := testutil.NewHost(t, "host")
	testutil.NewUnderlay(t, h)
	h.Run(t, "ip", "addr", "add", "192.0.2.101/24", "dev", testutil.Uplink)
	h.Run(t, "ip", "addr", "add", "2001:db8::101/128", "dev", "lo")
	h.Ebpnet(t, "load", "--uplink", testutil.Uplink, "--tunnel-address", "192.0.2.101")
	createNet(t, h, "--key", "42")
	createOther(t, h)
	if n := detours(t, h); n != 0 {
		t.Errorf("to_tunnel is attached %d times while there is no tunnel", n)
	}
	h.Ebpnet(t, "tunnel", "add", "four", "--remote", "192.0.2.2")
	h.Ebpnet(t, "tunnel", "add", "six", "--remote", "2001:db8::2", "--csum", "--seq", "--copy-dscp", "--ttl", "7")
	h.Ebpnet(t, "tunnel", "add", "some", "--remote", "192.0.2.3", "--local", h.IP4.String(), "--network", "other", "--network", "net", "--df=false")
	h.Ebpnet(t, "load", "--tunnel-address", "2001:db8::101")
	h.Ebpnet(t, "tunnel", "add", "six2", "--remote", "2001:db8::3")
	h.Ebpnet(t, "tunnel", "add", "four2", "--remote", "192.0.2.4")
	want := []listedTunnel{
		{Name: "four", Local: "192.0.2.101", Remote: "192.0.2.2", TTL: 64},
		{Name: "four2", Local: h.IP4.String(), Remote: "192.0.2.4", TTL: 64},
		{Name: "six", Local: h.IP6.String(), Remote: "2001:db8::2", Checksums: true, Sequence: true, CopyDSCP: true, TTL: 7},
		{Name: "six2", Local: "2001:db8::101", Remote: "2001:db8::3", TTL: 64},
		{Name: "some", Local: h.IP4.String(), Remote: "192.0.2.3", Networks: []string{"net", "other"}, Fragmentable: true, TTL: 64},
	}
	expect := func(when string) {
		t.Helper()
		if diff := cmp.Diff(want, listedTunnels(t, h)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", when, diff)
		}
		if n := detours(t, h); n != 1 {
			t.Errorf("%s: to_tunnel is attached %d times", when, n)
		}
	}
	expect("added")
	table := h.Ebpnet(t, "tunnel", "ls")
	for _, words := range [][]string{
		{"NAME", "LOCAL", "REMOTE", "NETWORKS", "OPTIONS"},
		{"four", "192.0.2.101", "192.0.2.2", "all", "with", "a", "key", "-"},
		{"six", h.IP6.String(), "2001:db8::2", "all", "with", "a", "key", "--csum", "--seq", "--ttl=7", "--copy-dscp"},
		{"some", h.IP4.String(), "192.0.2.3", "net,other", "--df=false"},
	} {
		if !hasLine(table, words...) {
			t.Errorf("no line %q in\n%s", words, table)
		}
	}
	h.Ebpnet(t, "load")
	expect("loaded again")
	removePins(t, h)
	h.Ebpnet(t, "load")
	expect("rebuilt")
	h.Ebpnet(t, "unload")
	if _, err := os.Stat(h.Pin); !os.IsNotExist(err) {
		t.Errorf("unload leaves %s: %v", h.Pin, err)
	}
	h.Ebpnet(t, "load")
	expect("unloaded and loaded")
	for _, tunnel := range want {
		if n := detours(t, h); n != 1 {
			t.Errorf("before %s goes, to_tunnel is attached %d times", tunnel.Name, n)
		}
		h.Ebpnet(t, "tunnel", "rm", tunnel.Name)
	}
	if n := detours(t, h); n != 0 {
		t.Errorf("to_tunnel is attached %d times after the last tunnel has gone", n)
	}
	if n := len(listedTunnels(t, h)); n != 0 {
		t.Errorf("%d tunnels are left", n)
	}
	for command, words := range map[string][]string{
		"tunnel add --": {"--network", "--csum", "--seq", "--df", "--ttl", "--copy-dscp"},
		"fdb":           {"ls", "flush"},
		"fdb flush --":  {"--network", "--tunnel", "--endpoint"},
		"network set -": {"--mtu"},
	} {
		completion, _ := h.Try(h.Command()[0], append(strings.Fields(command), "--generate-bash-completion")...)
		for _, word := range words {
			if !strings.Contains(completion, word) {
				t.Errorf("completion of %s has no %s: %q", command, word, completion)
			}
		}
	}
}

func TestTunnelNeedsAnAddressOfItsFamily(t *testing.T) {
	t.Parallel()
	h := testutil.NewHost(t, "host")
	testutil.NewUnderlay(t, h)
	h.Ebpnet(t, "load", "--uplink", testutil.Uplink)
	h.Run(t, "ip", "-6", "addr", "flush", "dev", testutil.Uplink, "scope", "global")
	refused(t, h, exitFailure, []string{"tunnel", "add", "six", "--remote", "2001:db8::2"}, "IPv6", "2001:db8::2", "--local")
	h.Ebpnet(t, "tunnel", "add", "four", "--remote", "192.0.2.2")
	h.Run(t, "ip", "addr", "add", "2001:db8::1/64", "dev", "lo")
	h.Ebpnet(t, "tunnel", "add", "six", "--remote", "2001:db8::2", "--local", "2001:db8::1")
	h.Run(t, "ip", "-4", "addr", "flush", "dev", testutil.Uplink)
	refused(t, h, exitFailure, []string{"tunnel", "add", "other", "--remote", "192.0.2.3"}, "IPv4", "192.0.2.3", "--local")
}

// TestKilledOverlayCommandsAreMended kills commands at random; the next one
// brings the host to what the store says, whichever that is.
func TestKilledOverlayCommandsAreMended(t *testing.T) {
	const rounds = 20
	h, _ := newOutside(t)
	createNet(t, h, "--key", "42")
	createOther(t, h)
	a, b := h.NewContainer(t, "a", "net"), h.NewContainer(t, "b", "net", "--trunk")
	start := time.Now()
	h.Ebpnet(t, "tunnel", "add", "six", "--remote", "2001:db8::2")
	longest := 2 * time.Since(start)
	commands := [][]string{
		{"tunnel", "rm", "six"},
		{"tunnel", "add", "six", "--remote", "2001:db8::2", "--csum"},
		{"network", "set", "net", "--mtu", "1300"},
		{"network", "set", "net", "--mtu", "0"},
	}
	for round := range rounds {
		command := h.Command(commands[round%len(commands)]...)
		process := h.Start(t, command[0], command[1:]...)
		time.Sleep(mathrand.N(longest))
		process.Kill()
		h.Ebpnet(t, "network", "set", "other", "--icc=true")

		want, tunnels := 1458, listedTunnels(t, h)
		for _, tunnel := range tunnels {
			want = 1438
			if tunnel.Checksums {
				want = 1434
			}
		}
		var network struct{ MTU int }
		h.EbpnetJSON(t, &network, "network", "inspect", "net")
		if network.MTU != 0 {
			want = network.MTU
		}
		expectMTU(t, a, want)
		expectMTU(t, b, want)
		if n := detours(t, h); n != len(tunnels) {
			t.Errorf("to_tunnel is attached %d times with %d tunnels", n, len(tunnels))
		}
		pingAll(t, a, b)
		var status struct{ Pending int }
		h.EbpnetJSON(t, &status, "status")
		if status.Pending != 0 {
			t.Errorf("%d changes are left unfinished", status.Pending)
		}
		if t.Failed() {
			t.Fatalf("round %d, %q killed", round, commands[round%len(commands)])
		}
	}
}
