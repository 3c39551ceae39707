package loader

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/ebpnet/ebpnet/bpf"
	"github.com/ebpnet/ebpnet/internal/testutil"
)

// TestMain fails the run if a test leaves a descriptor of a map, a program or
// a link open.
func TestMain(m *testing.M) {
	code := m.Run()
	open, err := openBPF()
	if err == nil && len(open) > 0 {
		err = fmt.Errorf("descriptors left open: %s", strings.Join(open, ", "))
	}
	if err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func openBPF() ([]string, error) {
	const directory = "/proc/self/fd"
	entries, err := os.ReadDir(directory)
	if err != nil {
		return nil, err
	}
	var open []string
	for _, e := range entries {
		// One is that of ReadDir, and closed by now.
		target, err := os.Readlink(filepath.Join(directory, e.Name()))
		if err == nil && strings.Contains(target, "bpf") {
			open = append(open, target)
		}
	}
	return open, nil
}

// pinDirectory names a directory on bpffs that does not exist yet.
func pinDirectory(t testing.TB) string {
	t.Helper()
	testutil.RequireRoot(t)
	if err := MountBPFFS(bpffsRoot); err != nil {
		t.Fatal(err)
	}
	parent, err := os.MkdirTemp(bpffsRoot, testutil.Prefix()+"loader-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(parent); err != nil {
			t.Error(err)
		}
	})
	return filepath.Join(parent, "pins")
}

func mustLoad(t testing.TB, dir string) *Objects {
	t.Helper()
	o, err := Load(dir, Config{GatewayIfindex: 1})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() { must(t, o.Close()) })
	return o
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// listPins names everything under dir.
func listPins(t testing.TB, dir string) []string {
	t.Helper()
	var pins []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			pins = append(pins, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	})
	must(t, err)
	return pins
}

func programID(t testing.TB, p *ebpf.Program) ebpf.ProgramID {
	t.Helper()
	info, err := p.Info()
	must(t, err)
	id, _ := info.ID()
	return id
}

// wire is a namespace with a veth pair: "near" is where programs are attached,
// "far" where frames come from.
type wire struct {
	*testutil.Netns
	ifindex int
}

func newWire(t testing.TB) *wire {
	t.Helper()
	w := &wire{Netns: testutil.NewNetns(t, "loader")}
	w.SetSysctl(t, "ipv6/conf/default/disable_ipv6", "1")
	w.plug(t)
	return w
}

// plug makes the pair, with a new number.
func (w *wire) plug(t testing.TB) {
	t.Helper()
	w.Run(t, "ip", "link", "add", "near", "up", "type", "veth", "peer", "name", "far")
	w.Run(t, "ip", "link", "set", "far", "up")
	w.Do(func() {
		device, err := net.InterfaceByName("near")
		must(t, err)
		w.ifindex = device.Index
	})
}

func (w *wire) unplug(t testing.TB) {
	t.Helper()
	w.Run(t, "ip", "link", "del", "near")
}

// attached lists the ids of the programs on near's TCX hooks.
func (w *wire) attached(t testing.TB) (ids []ebpf.ProgramID) {
	t.Helper()
	w.Do(func() {
		for _, hook := range []ebpf.AttachType{ebpf.AttachTCXIngress, ebpf.AttachTCXEgress} {
			found, err := link.QueryPrograms(link.QueryOptions{Target: w.ifindex, Attach: hook})
			must(t, err)
			for _, p := range found.Programs {
				ids = append(ids, p.ID)
			}
		}
	})
	return ids
}

// awaitAttached waits until so many programs are attached: the kernel lets go
// of a link some time after its pin is removed.
func (w *wire) awaitAttached(t testing.TB, want int) {
	t.Helper()
	testutil.Eventually(t, fmt.Sprintf("%d programs attached", want), func() bool { return len(w.attached(t)) == want })
}

// filters lists our filters on near's clsact hooks.
func (w *wire) filters(t testing.TB) (names []string) {
	t.Helper()
	w.Do(func() {
		device, err := netlink.LinkByIndex(w.ifindex)
		must(t, err)
		for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
			found, err := netlink.FilterList(device, parent)
			must(t, err)
			for _, f := range found {
				names = append(names, f.(*netlink.BpfFilter).Name)
			}
		}
	})
	return names
}

// send puts a frame on the far end.
func (w *wire) send(t testing.TB) {
	t.Helper()
	frame := make([]byte, 60)
	copy(frame, "\xff\xff\xff\xff\xff\xff\x02\x00\x00\x00\x00\x01\x08\x06")
	w.NewTap(t, "far").Send(t, frame)
}

// dropped counts what from_endpoint dropped for coming from no endpoint.
func dropped(t testing.TB, o *Objects) (packets uint64) {
	t.Helper()
	var perCPU []bpf.EbpnetCounter
	must(t, o.Maps.Drops.Lookup(bpf.EbpnetReasonREASON_UNKNOWN_SOURCE, &perCPU))
	for _, c := range perCPU {
		packets += c.Packets
	}
	return packets
}
