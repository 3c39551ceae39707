package test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// The exit codes that scripts rely on.
const (
	exitFailure = 1
	exitUsage   = 2
)

// refused expects exit code and one line on stderr that names every word.
func refused(t *testing.T, h *testutil.Host, code int, args []string, words ...string) {
	t.Helper()
	stdout, stderr, got := h.TryEbpnet(args...)
	if got != code {
		t.Errorf("ebpnet %q: exit code %d, want %d: %s%s", args, got, code, stdout, stderr)
		return
	}
	if strings.Count(stderr, "\n") != 1 || !strings.HasSuffix(stderr, "\n") {
		t.Errorf("ebpnet %q: want one line on stderr, got %q", args, stderr)
	}
	for _, word := range words {
		if !strings.Contains(stderr, word) {
			t.Errorf("ebpnet %q: no %q in %q", args, word, stderr)
		}
	}
}

// everything is all that a command could have changed.
func everything(t *testing.T, h *testutil.Host) string {
	t.Helper()
	var all strings.Builder
	for _, noun := range []string{"network", "endpoint", "port", "link", "tunnel"} {
		all.WriteString(h.Ebpnet(t, "-o", "json", noun, "ls"))
	}
	all.WriteString(h.Run(t, "ip", "-o", "addr"))
	all.WriteString(h.Run(t, "ip", "route"))
	return all.String()
}

func TestBadInputIsRefused(t *testing.T) {
	h, _ := newOutside(t)
	createNet(t, h, "--key", "42")
	createOther(t, h)
	h.NewContainer(t, "a", "net", "--ip", "172.30.0.10", "--mac", "02:00:00:00:00:10")
	h.NewContainer(t, "b", "net")
	h.NewContainer(t, "stranger", "other")
	h.Ebpnet(t, "tunnel", "add", "peer", "--remote", "192.0.2.2")
	h.Ebpnet(t, "link", "add", "a", "b", "--port", "80/tcp")
	free := testutil.NewNetns(t, "free")

	add := func(args ...string) []string {
		return append([]string{"endpoint", "add", "new", "--network", "net", "--netns", free.Name}, args...)
	}
	create := func(name string, args ...string) []string {
		return append([]string{"network", "create", name, "--subnet", "10.0.0.0/24"}, args...)
	}
	long := strings.Repeat("n", 64)
	before := everything(t, h)
	for _, c := range []struct {
		code  int
		args  []string
		words []string
	}{
		// A value that was forgotten is not taken from elsewhere.
		{exitUsage, add("--ifname"), []string{"--ifname needs a value"}},
		{exitUsage, []string{"network", "ls", "--state"}, []string{"--state needs a value"}},
		{exitUsage, add("--ifname", "-x"), []string{"interface name", "-x"}},
		// Things that do not exist.
		{exitFailure, []string{"endpoint", "add", "new", "--network", "nowhere", "--netns", free.Name}, []string{"network", "nowhere"}},
		{exitFailure, []string{"endpoint", "add", "new", "--network", "net", "--netns", "nowhere"}, []string{"namespace", "nowhere"}},
		{exitFailure, []string{"endpoint", "add", "new", "--network", "net", "--netns", "/nowhere/at/all"}, []string{"namespace", "/nowhere/at/all"}},
		{exitFailure, []string{"endpoint", "add", "new", "--network", "net", "--tunnel", "nowhere", "--ip", "172.30.0.20", "--mac", "02:00:00:00:00:20"}, []string{"tunnel", "nowhere"}},
		{exitFailure, []string{"endpoint", "rm", "nobody"}, []string{"endpoint", "nobody"}},
		{exitFailure, []string{"endpoint", "inspect", "nobody"}, []string{"endpoint", "nobody"}},
		{exitFailure, []string{"network", "rm", "nowhere"}, []string{"network", "nowhere"}},
		{exitFailure, []string{"network", "set", "nowhere", "--icc=false"}, []string{"network", "nowhere"}},
		{exitFailure, []string{"link", "add", "a", "nobody", "--port", "80"}, []string{"endpoint", "nobody"}},
		{exitFailure, []string{"link", "rm", "b", "a"}, []string{"link", "b", "a"}},
		{exitFailure, []string{"link", "env", "nobody"}, []string{"endpoint", "nobody"}},
		{exitFailure, []string{"tunnel", "rm", "nowhere"}, []string{"tunnel", "nowhere"}},
		{exitFailure, []string{"load", "--uplink", "nodev0"}, []string{"uplink", "nodev0"}},

		// Addresses.
		{exitUsage, add("--ip", "10.9.9.9"), []string{"10.9.9.9", "172.30.0.0/24"}},
		{exitFailure, add("--ip", "172.30.0.10"), []string{"172.30.0.10", "a"}},
		{exitUsage, add("--ip", "172.30.0.1"), []string{"172.30.0.1", "gateway"}},
		{exitUsage, add("--ip", "172.30.0.0"), []string{"172.30.0.0", "network address"}},
		{exitUsage, add("--ip", "172.30.0.255"), []string{"172.30.0.255", "broadcast address"}},
		{exitUsage, add("--ip", "172.30.0"), []string{"172.30.0"}},
		{exitUsage, add("--ip", "172.30.0.20/24"), []string{"172.30.0.20/24"}},
		{exitUsage, add("--ip", "172.30.0.20", "--ip", "172.30.0.21"), []string{"172.30.0.21"}},
		{exitFailure, add("--mac", "02:00:00:00:00:10"), []string{"02:00:00:00:00:10", "a"}},
		{exitUsage, add("--mac", "02:00:00:00:00"), []string{"MAC", "02:00:00:00:00"}},
		{exitUsage, add("--mac", "01:00:5e:00:00:01"), []string{"MAC", "01:00:5e:00:00:01"}},

		// Subnets.
		{exitFailure, []string{"network", "create", "new", "--subnet", "172.30.0.128/25"}, []string{"172.30.0.128/25", "172.30.0.0/24", "net"}},
		{exitFailure, []string{"network", "create", "new", "--subnet", "172.0.0.0/8"}, []string{"172.0.0.0/8", "172.3"}},
		{exitFailure, []string{"network", "create", "new", "--subnet", "fd00:30::/48"}, []string{"fd00:30::/48", subnet6}},
		{exitUsage, []string{"network", "create", "new", "--subnet", "10.0.0.0/33"}, []string{"subnet", "10.0.0.0/33"}},
		{exitUsage, []string{"network", "create", "new", "--subnet", "10.0.0.0"}, []string{"subnet", "10.0.0.0"}},
		{exitUsage, []string{"network", "create", "new"}, []string{"subnet"}},
		{exitUsage, create("new", "--gateway", "10.1.0.1"), []string{"gateway", "10.1.0.1"}},

		// Ports, keys, MTUs.
		{exitUsage, []string{"link", "add", "b", "a", "--port", "0/tcp"}, []string{"port", "0/tcp"}},
		{exitUsage, []string{"link", "add", "b", "a", "--port", "65536"}, []string{"port", "65536"}},
		{exitUsage, []string{"link", "add", "b", "a", "--port", "http"}, []string{"port", "http"}},
		{exitUsage, []string{"link", "add", "b", "a", "--port", "80/icmp"}, []string{"port", "80/icmp"}},
		{exitUsage, []string{"link", "add", "b", "a", "--port", "90-80"}, []string{"port", "90-80"}},
		{exitUsage, add("--expose", "80-"), []string{"port", "80-"}},
		{exitFailure, []string{"link", "add", "b", "a"}, []string{"a", "--port"}}, // which exposes none
		{exitUsage, create("new", "--key", "4294967296"), []string{"key", "4294967296"}},
		{exitUsage, create("new", "--key", "-1"), []string{"key", "-1"}},
		{exitUsage, create("new", "--key", "secret"), []string{"key", "secret"}},
		{exitFailure, create("new", "--key", "42"), []string{"key 42", "net"}},
		{exitUsage, create("new", "--mtu", "1279"), []string{"MTU", "1279"}},
		{exitUsage, create("new", "--mtu", "65536"), []string{"MTU", "65536"}},
		{exitUsage, create("new", "--mtu", "large"), []string{"mtu", "large"}},

		// Names.
		{exitFailure, create("net"), []string{"network", "net"}},
		{exitFailure, []string{"endpoint", "add", "a", "--network", "net", "--netns", free.Name}, []string{"endpoint", "a"}},
		{exitFailure, []string{"tunnel", "add", "peer", "--remote", "192.0.2.3"}, []string{"tunnel", "peer"}},
		{exitFailure, []string{"tunnel", "add", "peer", "--remote", "192.0.2.3", "--max-flood", "9"}, []string{`tunnel "peer"`, "'ebpnet tunnel set'"}},
		{exitFailure, []string{"link", "add", "a", "b", "--port", "81"}, []string{"a", "b"}},
		{exitUsage, create("a/b"), []string{"network", "a/b"}},
		{exitUsage, create("a\nb"), []string{"network", `a\nb`}},
		{exitUsage, create(""), []string{"network", "name"}},
		{exitUsage, create(long), []string{"network", "64", "63"}},
		{exitUsage, []string{"endpoint", "add", "../x", "--network", "net", "--netns", free.Name}, []string{"endpoint", "../x"}},
		{exitUsage, []string{"tunnel", "add", "x\x1b[2J", "--remote", "192.0.2.3"}, []string{"tunnel", `\x1b`}},
		{exitUsage, []string{"link", "add", "b", "a:al/ias", "--port", "80"}, []string{"alias", "al/ias"}},

		// Things that do not fit together.
		{exitUsage, []string{"link", "add", "a", "a", "--port", "80"}, []string{"a", "itself"}},
		{exitFailure, []string{"link", "add", "a", "stranger", "--port", "80"}, []string{"net", "other"}},
		{exitUsage, []string{"tunnel", "add", "self", "--remote", "192.0.2.1"}, []string{"192.0.2.1"}},
		{exitUsage, []string{"tunnel", "add", "new", "--remote", "192.0.2"}, []string{"192.0.2"}},
		{exitFailure, []string{"endpoint", "add", "new", "--network", "other", "--tunnel", "peer", "--ip", "172.31.0.20", "--mac", "02:00:00:00:00:20"}, []string{"other", "key"}},
		{exitFailure, []string{"network", "rm", "net"}, []string{"net", "a"}},
		{exitUsage, []string{"endpoint", "add", "new", "--network", "net"}, []string{"netns", "tunnel"}},

		// Usage.
		{exitUsage, []string{"frobnicate"}, []string{"frobnicate"}},
		{exitUsage, []string{"network", "frobnicate"}, []string{"frobnicate"}},
		{exitUsage, []string{"network", "ls", "--frobnicate"}, []string{"unknown option --frobnicate"}},
		{exitUsage, []string{"network", "frobnicate", "--help"}, []string{"unknown command", "frobnicate", "want one of create"}},
		{exitUsage, []string{"help", "frobnicate"}, []string{"unknown command", "frobnicate", "want one of check"}},
		{exitUsage, []string{"endpoint", "set", "a", "--max-flows", "--max-ports", "4"}, []string{"--max-flows needs a value"}},
		{exitUsage, []string{"network", "rm"}, []string{"NAME"}},
		{exitUsage, []string{"network", "ls", "surplus"}, []string{"surplus"}},
		{exitUsage, []string{"-o", "xml", "network", "ls"}, []string{"xml", "json"}},
	} {
		refused(t, h, c.code, c.args, c.words...)
		if after := everything(t, h); after != before {
			t.Fatalf("ebpnet %q was refused, and changed\n%s\nto\n%s", c.args, before, after)
		}
		if n := veths(t, free); n != 0 {
			t.Fatalf("ebpnet %q was refused, and left a device in the namespace", c.args)
		}
	}
}

func TestCommandsBeforeLoad(t *testing.T) {
	t.Parallel()
	h := testutil.NewHost(t, "host")
	n := testutil.NewNetns(t, "n")
	for _, args := range [][]string{
		{"network", "create", "net", "--subnet", subnet4},
		{"endpoint", "add", "a", "--network", "net", "--netns", n.Name},
		{"tunnel", "add", "peer", "--remote", "192.0.2.2"},
		{"stats"},
		{"flow", "ls"},
	} {
		refused(t, h, exitFailure, args, "ebpnet load")
	}
	h.Ebpnet(t, "load")
	createNet(t, h) // the one before has left nothing
}

func TestOrdinaryUserIsRefused(t *testing.T) {
	t.Parallel()
	h := testutil.NewHost(t, "host")
	// Where anybody may execute it.
	directory, err := os.MkdirTemp("", "ebpnet-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(directory) })
	command := h.Command("load")
	binary := filepath.Join(directory, "ebpnet")
	h.Run(t, "chmod", "755", directory)
	h.Run(t, "install", "-m", "755", command[0], binary)
	out, err := h.Try("setpriv", append([]string{"--reuid=65534", "--regid=65534", "--clear-groups", binary}, command[1:]...)...)
	if err == nil || !strings.Contains(out, "root") || strings.Count(out, "\n") != 1 {
		t.Errorf("without root: %v, %q", err, out)
	}
}

func TestBPFFilesystemIsMounted(t *testing.T) {
	t.Parallel()
	h := testutil.NewHost(t, "host")
	// In a mount namespace of its own, so that no other test misses it.
	script := `umount /sys/fs/bpf && "$@" load && "$@" status && grep -q " /sys/fs/bpf bpf " /proc/mounts`
	h.Run(t, "unshare", append([]string{"--mount", "sh", "-ec", script, "sh"}, h.Command()...)...)
}

func TestDamagedStoreIsKept(t *testing.T) {
	h := newHost(t)
	createNet(t, h)
	a, b := h.NewContainer(t, "a", "net"), h.NewContainer(t, "b", "net")
	files, err := filepath.Glob(filepath.Join(h.State, "*.db"))
	if err != nil || len(files) != 1 {
		t.Fatalf("store files %v: %v", files, err)
	}
	whole, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	middle := append([]byte(nil), whole...)
	for i := len(middle) / 4; i < len(middle); i++ {
		middle[i] ^= 0xff
	}
	for what, damaged := range map[string][]byte{
		"overwritten": []byte(strings.Repeat("this is no store\n", 4096)),
		"cut short":   whole[:len(whole)/3],
		"bits turned": middle,
	} {
		if err := os.WriteFile(files[0], damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{{"load"}, {"network", "ls"}, {"network", "create", "new", "--subnet", "10.0.0.0/24"}} {
			refused(t, h, exitFailure, args, files[0], "damaged")
		}
		if now, err := os.ReadFile(files[0]); err != nil || string(now) != string(damaged) {
			t.Errorf("%s: the damaged store is not as it was (%v)", what, err)
		}
		pingAll(t, a, b) // traffic is not the store's business
	}
	if err := os.WriteFile(files[0], whole, 0o600); err != nil {
		t.Fatal(err)
	}
	h.Ebpnet(t, "load")
	pingAll(t, a, b)
}
