package testutil

import (
	"cmp"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const bpffsDirectory = "/sys/fs/bpf"

// binaryVariable names the environment variable with the path of the ebpnet
// under test. Main sets it if nobody did.
const binaryVariable = "EBPNET"

// Host is a network namespace with ebpnet: its own state and pins, lo up, and
// forwarding off as on a host that never routed.
type Host struct {
	*Netns
	State string // directory of the store
	Pin   string // directory of the pins

	Program string // another ebpnet than the one under test, or ""

	IP4, IP6 netip.Addr // on up0; set by NewUnderlay
}

// NewHost makes a host on which ebpnet is not loaded yet.
func NewHost(t testing.TB, name string) *Host {
	t.Helper()
	RequireRoot(t)
	if err := mountBPFFS(); err != nil {
		t.Fatalf("mount %s: %v", bpffsDirectory, err)
	}
	h := &Host{State: filepath.Join(t.TempDir(), "state")}
	h.Pin = filepath.Join(bpffsDirectory, uniqueName(name))
	t.Cleanup(func() {
		if err := os.RemoveAll(h.Pin); err != nil {
			t.Errorf("remove pins: %v", err)
		}
	})
	h.Netns = NewNetns(t, name)
	h.SetSysctl(t, "ipv4/ip_forward", "0")
	h.prepare(t)
	return h
}

// prepare brings lo up and makes IPv6 addresses usable at once.
func (n *Netns) prepare(t testing.TB) {
	t.Helper()
	for _, conf := range []string{"all", "default"} {
		n.SetSysctl(t, "ipv6/conf/"+conf+"/accept_dad", "0")
	}
	n.Run(t, "ip", "link", "set", "lo", "up")
}

// mountBPFFS mounts a bpffs where there is none. Other test processes may be
// about to do the same, or ebpnet itself: whoever has the lock does it.
func mountBPFFS() error {
	directory, err := os.Open(bpffsDirectory)
	if err != nil {
		return err
	}
	defer directory.Close()
	if err := unix.Flock(int(directory.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(bpffsDirectory, &fs); err != nil {
		return err
	}
	if fs.Type == unix.BPF_FS_MAGIC {
		return nil
	}
	return unix.Mount("bpf", bpffsDirectory, "bpf", 0, "")
}

// Command is the command line that runs ebpnet for this host.
func (h *Host) Command(args ...string) []string {
	return append([]string{cmp.Or(h.Program, os.Getenv(binaryVariable)), "--state", h.State, "--pin", h.Pin}, args...)
}

// Ebpnet runs ebpnet on the host, gives its standard output, and fails the test
// if it fails.
func (h *Host) Ebpnet(t testing.TB, args ...string) string {
	t.Helper()
	stdout, stderr, code := h.TryEbpnet(args...)
	if code != 0 {
		t.Fatalf("on %s: ebpnet %s: exit code %d\n%s%s", h.Name, strings.Join(args, " "), code, stdout, stderr)
	}
	return stdout
}

// Run is Run of its namespace. When it returns, the datapath has forgotten the
// ways that it found before, which it keeps for a tick of the clock: it goes by
// the routes and addresses that the program left.
func (h *Host) Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out := h.Netns.Run(t, name, args...)
	for tick := coarseTime(t); coarseTime(t) == tick; {
		time.Sleep(time.Millisecond)
	}
	return out
}

// coarseTime is the time of the last tick of the clock, as
// bpf_ktime_get_coarse_ns() gives it.
func coarseTime(t testing.TB) unix.Timespec {
	t.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &now); err != nil {
		t.Fatal(err)
	}
	return now
}

// TryEbpnet runs ebpnet on the host. The code is -1 if it did not run to its
// end, and stderr tells why.
func (h *Host) TryEbpnet(args ...string) (stdout, stderr string, code int) {
	command := h.Command(args...)
	stdout, stderr, err := h.output(command[0], command[1:]...)
	if code = exitCode(err); code < 0 {
		stderr = errors.Join(errors.New(stderr), err).Error()
	}
	return stdout, stderr, code
}

// EbpnetJSON runs ebpnet -o json on the host and decodes its output into v.
func (h *Host) EbpnetJSON(t testing.TB, v any, args ...string) {
	t.Helper()
	out := h.Ebpnet(t, append([]string{"-o", "json"}, args...)...)
	if err := json.Unmarshal([]byte(out), v); err != nil {
		t.Fatalf("ebpnet -o json %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}
