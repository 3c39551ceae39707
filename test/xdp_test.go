package test

import (
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// xdpState is what `status -o json` says of an uplink.
type xdpState struct {
	Uplink string `json:"uplink"`
	Wanted string `json:"wanted"`
	Mode   string `json:"mode"`
	Why    string `json:"why"`
}

// xdpOf gives what status says of the one uplink.
func xdpOf(t *testing.T, h *testutil.Host) xdpState {
	t.Helper()
	var s struct {
		XDP []xdpState `json:"xdp"`
	}
	h.EbpnetJSON(t, &s, "status")
	if len(s.XDP) != 1 {
		t.Fatalf("status tells of XDP on %d uplinks, want 1: %+v", len(s.XDP), s.XDP)
	}
	return s.XDP[0]
}

// expectXDP expects an uplink to have the mode, in the kernel and by status,
// which says why with these words.
func expectXDP(t *testing.T, h *testutil.Host, uplink, wanted, mode string, why ...string) {
	t.Helper()
	got := xdpOf(t, h)
	if diff := cmp.Diff(xdpState{uplink, wanted, mode, got.Why}, got); diff != "" {
		t.Errorf("XDP (-want +got):\n%s", diff)
	}
	for _, word := range append(why, " ") {
		if !strings.Contains(got.Why, word) {
			t.Errorf("status says %q, without %q", got.Why, word)
		}
	}
	if table := h.Ebpnet(t, "status"); !strings.Contains(table, got.Why) {
		t.Errorf("the table does not say %q:\n%s", got.Why, table)
	}
	if real, _ := xdpOn(t, h.Netns, uplink); real != mode {
		t.Errorf("the kernel has %s XDP on %s, want %s", real, uplink, mode)
	}
}

// xdpOn tells which XDP a device has by the kernel, and its program.
func xdpOn(t *testing.T, n *testutil.Netns, device string) (mode string, program uint32) {
	t.Helper()
	mode = "off"
	n.Do(func() {
		d, err := netlink.LinkByName(device)
		if err != nil {
			t.Fatal(err)
		}
		const native, generic = 1, 2 // XDP_ATTACHED_DRV, XDP_ATTACHED_SKB
		if x := d.Attrs().Xdp; x != nil {
			program = x.ProgId
			switch x.AttachMode {
			case native:
				mode = "native"
			case generic:
				mode = "generic"
			}
		}
	})
	return mode, program
}

// says runs a command that succeeds, and has the words on its only line of
// stderr, or no line for none.
func says(t *testing.T, h *testutil.Host, args []string, words ...string) {
	t.Helper()
	_, stderr, code := h.TryEbpnet(args...)
	if want := min(len(words), 1); code != 0 || strings.Count(stderr, "\n") != want {
		t.Errorf("ebpnet %q: exit code %d, and %d lines are wanted: %q", args, code, want, stderr)
	}
	for _, word := range words {
		if !strings.Contains(stderr, word) {
			t.Errorf("ebpnet %q: no %q in %q", args, word, stderr)
		}
	}
}

const costly = "segmentation offload"

func TestXDPModesAreKeptAndChanged(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	a := h.NewContainer(t, "a", "net", bothPublished()...)
	serve(t, a.Netns, service)
	serve(t, u.Outside, service)
	expectXDP(t, h, testutil.Uplink, "off", "off", "not asked for")
	var open []*testutil.Conn
	for _, path := range paths(h, u) {
		for _, network := range protocols {
			open = append(open, connects(t, u.Outside, network, at(path.host, published)), connects(t, a.Netns, network, at(path.outside, service)))
		}
	}
	for _, mode := range []string{"generic", "native", "off", "native", "generic"} {
		says(t, h, []string{"load", "--xdp", mode})
		expectXDP(t, h, testutil.Uplink, mode, mode, "asked for")
		_, before := xdpOn(t, h.Netns, testutil.Uplink)
		takeTurns(t, open...)
		says(t, h, []string{"load"})
		expectXDP(t, h, testutil.Uplink, mode, mode, "asked for")
		if _, now := xdpOn(t, h.Netns, testutil.Uplink); mode != "off" && now == before {
			t.Errorf("%s: the program was not replaced", mode)
		}
		takeTurns(t, open...)
	}

	// A veth is no device for auto, which says so at each load and not else.
	says(t, h, []string{"load", "--xdp", "auto"}, testutil.Uplink, costly)
	expectXDP(t, h, testutil.Uplink, "auto", "off", costly)
	says(t, h, []string{"load"}, testutil.Uplink, costly)
	says(t, h, []string{"network", "create", "third", "--subnet", "10.7.0.0/24"})
	expectXDP(t, h, testutil.Uplink, "auto", "off", costly)
	takeTurns(t, open...)
}

// Of a load that was killed, status does not say what kept another mode away.
func TestStatusAfterAKilledLoad(t *testing.T) {
	const rounds = 6
	h, _ := newOutside(t)
	start := time.Now()
	h.Ebpnet(t, "load", "--xdp", "auto")
	longest := time.Since(start)
	load := h.Command("load", "--xdp", "native")
	for range rounds {
		h.Ebpnet(t, "load", "--xdp", "auto")
		process := h.Start(t, load[0], load[1:]...)
		after := rand.N(longest)
		time.Sleep(after)
		process.Kill()
		if s := xdpOf(t, h); s.Wanted == "native" && strings.Contains(s.Why, costly) {
			t.Fatalf("killed %v into load, status says %+v", after, s)
		}
		h.Ebpnet(t, "load", "--xdp", "generic")
		process = h.Start(t, load[0], load[1:]...)
		time.Sleep(after)
		process.Kill()
		if s := xdpOf(t, h); s.Mode != s.Wanted && s.Why == "asked for" {
			t.Fatalf("killed %v into load, status says %+v", after, s)
		}
	}
}

func TestCheckTellsOfXDP(t *testing.T) {
	h, _ := newOutside(t)
	h.Run(t, "ip", "link", "add", "wide", "up", "type", "bridge")
	h.Ebpnet(t, "load", "--uplink", testutil.Uplink, "--uplink", "wide")
	type device struct {
		Device  string `json:"device"`
		Native  bool   `json:"native"`
		Generic bool   `json:"generic"`
		Auto    string `json:"auto"`
		Why     string `json:"why"`
	}
	var found struct {
		Features []struct {
			Name string `json:"name"`
		} `json:"features"`
		XDP []device `json:"xdp"`
	}
	h.EbpnetJSON(t, &found, "check")
	if len(found.Features) == 0 || found.Features[0].Name == "" {
		t.Errorf("check tells of no feature: %+v", found.Features)
	}
	want := []device{
		{testutil.Uplink, true, true, "off", "native XDP on a veth takes its peer's " + costly},
		{"wide", false, true, "off", "its driver has no native XDP"},
	}
	if diff := cmp.Diff(want, found.XDP); diff != "" {
		t.Errorf("check (-want +got):\n%s", diff)
	}
	if table := h.Ebpnet(t, "check"); !strings.Contains(table, want[0].Why) {
		t.Errorf("the table does not say why:\n%s", table)
	}
}

func TestUnfitXDPIsRefused(t *testing.T) {
	h, _ := newOutside(t)
	h.Run(t, "ip", "link", "add", "wide", "up", "type", "bridge")
	h.Ebpnet(t, "load", "--xdp", "generic")
	before := h.Ebpnet(t, "-o", "json", "status")
	unchanged := func() {
		t.Helper()
		if after := h.Ebpnet(t, "-o", "json", "status"); after != before {
			t.Fatalf("a load was refused, and changed\n%s\nto\n%s", before, after)
		}
		if mode, _ := xdpOn(t, h.Netns, testutil.Uplink); mode != "generic" {
			t.Errorf("%s has %s XDP, want generic", testutil.Uplink, mode)
		}
		if mode, _ := xdpOn(t, h.Netns, "wide"); mode != "off" {
			t.Errorf("wide has %s XDP, want none", mode)
		}
	}
	for _, bad := range []string{"fast", "", "NATIVE"} {
		refused(t, h, exitUsage, []string{"load", "--xdp", bad}, "XDP mode", strconv.Quote(bad), "auto, native, generic, off")
		unchanged()
	}
	refused(t, h, exitFailure, []string{"load", "--uplink", testutil.Uplink, "--uplink", "wide", "--xdp", "native"}, "wide", "native")
	unchanged()
	h.Ebpnet(t, "load", "--uplink", "wide", "--xdp", "generic")
	expectXDP(t, h, "wide", "generic", "generic", "asked for")
	if mode, _ := xdpOn(t, h.Netns, testutil.Uplink); mode != "off" {
		t.Errorf("%s is no uplink, and has %s XDP", testutil.Uplink, mode)
	}
}

// foreignXDP puts a program that passes everything on a device, until it is
// taken off.
func foreignXDP(t *testing.T, n *testutil.Netns, device string) (id ebpf.ProgramID, takeOff func()) {
	t.Helper()
	const pass = 2
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, License: "GPL", Name: "foreign",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, pass), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	info, err := program.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, _ = info.ID()
	var l link.Link
	n.Do(func() {
		var d netlink.Link
		if d, err = netlink.LinkByName(device); err == nil {
			l, err = link.AttachXDP(link.XDPOptions{Program: program, Interface: d.Attrs().Index, Flags: link.XDPGenericMode})
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	takeOff = func() { _, _ = l.Detach(), l.Close() } // it may have gone with its device
	t.Cleanup(takeOff)
	return id, takeOff
}

func TestForeignXDPIsLeftAlone(t *testing.T) {
	const foreign = "another XDP program"
	h, u := newOutside(t)
	createNet(t, h)
	a := h.NewContainer(t, "a", "net")
	id, takeOff := foreignXDP(t, h.Netns, testutil.Uplink)
	stays := func() {
		t.Helper()
		if _, now := xdpOn(t, h.Netns, testutil.Uplink); now != uint32(id) {
			t.Errorf("program %d is on the uplink, want the foreign one, %d", now, id)
		}
		ping(t, a.Netns, u.IP4)
	}
	for _, mode := range []string{"generic", "native"} {
		refused(t, h, exitFailure, []string{"load", "--xdp", mode}, testutil.Uplink, foreign, mode)
		stays()
	}
	says(t, h, []string{"load", "--xdp", "off"})
	stays()

	// One that comes first after a reboot, say.
	takeOff()
	says(t, h, []string{"load", "--xdp", "native"})
	h.Ebpnet(t, "unload")
	if mode, _ := xdpOn(t, h.Netns, testutil.Uplink); mode != "off" {
		t.Errorf("unload leaves %s XDP", mode)
	}
	id, takeOff = foreignXDP(t, h.Netns, testutil.Uplink)
	says(t, h, []string{"load"}, testutil.Uplink, foreign)
	stays()
	var s struct {
		XDP []xdpState `json:"xdp"`
	}
	if h.EbpnetJSON(t, &s, "status"); s.XDP[0].Mode != "off" || !strings.Contains(s.XDP[0].Why, foreign) {
		t.Errorf("status says %+v", s.XDP)
	}
	h.Ebpnet(t, "unload")
	if _, now := xdpOn(t, h.Netns, testutil.Uplink); now != uint32(id) {
		t.Errorf("unload took the foreign program: %d is there, was %d", now, id)
	}
	takeOff()
	says(t, h, []string{"load"})
	expectXDP(t, h, testutil.Uplink, "native", "native", "asked for")
	if _, err := os.Stat(h.Pin); err != nil {
		t.Error(err)
	}
}

// An uplink that comes and goes, and has XDP only at times, stops nothing.
func TestXDPFollowsTheUplink(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	h.NewContainer(t, "before", "net")
	h.Ebpnet(t, "load", "--xdp", "native")
	server := h.Start(t, h.Command("serve", "--listen", "127.0.0.1:0")[0], h.Command("serve", "--listen", "127.0.0.1:0")[1:]...)
	h.Run(t, "ip", "link", "del", testutil.Uplink)
	h.Run(t, "ip", "link", "add", testutil.Uplink, "up", "type", "bridge")
	server.Await(t, "no native XDP")
	expectXDP(t, h, testutil.Uplink, "native", "off", "no native XDP")
	says(t, h, []string{"load"}, testutil.Uplink, "no native XDP")
	expectXDP(t, h, testutil.Uplink, "native", "off", "no native XDP")

	h.Run(t, "ip", "link", "del", testutil.Uplink)
	a := h.NewContainer(t, "a", "net")
	expectGRO(t, a.Netns, false)
	testutil.Wire(t, u.Outside, "port1", nil, h.Netns, testutil.Uplink, []string{h.IP4.String() + "/24", h.IP6.String() + "/64"})
	u.Outside.Run(t, "ip", "link", "set", "port1", "master", "bridge")
	h.Run(t, "ip", "route", "add", "default", "via", u.IP4.String())
	testutil.Eventually(t, "native XDP on the uplink that came back", func() bool {
		mode, _ := xdpOn(t, h.Netns, testutil.Uplink)
		return mode == "native"
	})
	testutil.Eventually(t, "an endpoint ready for XDP", func() bool { return hasGRO(t, a.Netns) })
	testutil.Eventually(t, "a way out", func() bool {
		_, err := a.Try("ping", "-n", "-c", "1", "-W", "1", u.IP4.String())
		return err == nil
	})
	expectXDP(t, h, testutil.Uplink, "native", "native", "asked for")
	if got := strings.Count(server.Output(), "no native XDP"); got != 1 {
		t.Errorf("serve told %d times of the uplink without XDP, want once", got)
	}
}

func hasGRO(t *testing.T, n *testutil.Netns) bool {
	t.Helper()
	return strings.Contains(n.Run(t, "ethtool", "-k", testutil.Device), "generic-receive-offload: on")
}

func expectGRO(t *testing.T, n *testutil.Netns, want bool) {
	t.Helper()
	if got := hasGRO(t, n); got != want {
		t.Errorf("%s has GRO: %t, want %t", n.Name, got, want)
	}
}

func TestEndpointsAreMadeReadyForXDP(t *testing.T) {
	h, _ := newOutside(t)
	createNet(t, h)
	before, vanishing := h.NewContainer(t, "before", "net"), h.NewContainer(t, "vanishing", "net")
	expectGRO(t, vanishing.Netns, false)
	expectGRO(t, before.Netns, false)
	says(t, h, []string{"load", "--xdp", "auto"}, costly)
	expectGRO(t, before.Netns, false)
	vanishing.Remove(t)
	says(t, h, []string{"load", "--xdp", "native"}, "endpoint removed", "vanishing")
	expectGRO(t, before.Netns, true)
	expectGRO(t, h.NewContainer(t, "after", "net").Netns, true)
	h.Ebpnet(t, "load", "--xdp", "off")
	expectGRO(t, h.NewContainer(t, "without", "net").Netns, false)
}

// TestKilledXDPIsMended kills loads that change the mode, at any moment.
func TestKilledXDPIsMended(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	a := h.NewContainer(t, "a", "net", bothPublished()...)
	serve(t, a.Netns, service)
	started := time.Now()
	h.Ebpnet(t, "load", "--xdp", "native")
	whole := time.Since(started)
	modes := []string{"native", "generic", "off"}
	for i := range 12 {
		command := h.Command("load", "--xdp", modes[i%len(modes)])
		process := h.Start(t, command[0], command[1:]...)
		time.Sleep(rand.N(whole)) // the moment is what is tested
		process.Kill()
		for _, network := range protocols {
			connects(t, u.Outside, network, at(h.IP4, published))
		}
	}
	for _, mode := range modes {
		says(t, h, []string{"load", "--xdp", mode})
		expectXDP(t, h, testutil.Uplink, mode, mode, "asked for")
		sees(t, u.Outside, "udp", at(h.IP6, published), u.IP6)
	}
	entries, err := os.ReadDir(h.Pin)
	if err != nil || len(entries) != 4 {
		t.Errorf("%v, %v; want format, maps, programs and links", entries, err)
	}
	h.Ebpnet(t, "load", "--xdp", "native")
	h.Ebpnet(t, "unload")
	if mode, _ := xdpOn(t, h.Netns, testutil.Uplink); mode != "off" {
		t.Errorf("unload leaves %s XDP", mode)
	}
	if _, err := os.Stat(h.Pin); !os.IsNotExist(err) {
		t.Errorf("unload leaves %s: %v", h.Pin, err)
	}
}
