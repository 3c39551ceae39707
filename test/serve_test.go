package test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ebpnet/ebpnet/internal/store"
	"github.com/ebpnet/ebpnet/internal/testutil"
)

func TestServeFollowsTheUplinksAddress(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	a := h.NewContainer(t, "a", "net")
	serve(t, u.Outside, service)
	expectNoContainerAddress(t, u)
	startServe(t, h)
	running := []*testutil.Conn{
		connects(t, a.Netns, "udp", at(u.IP4, service)),
		connects(t, a.Netns, "udp", at(u.IP6, service)),
	}
	ip4, ip6 := renumber(t, h, u)
	for i, want := range []netip.Addr{ip4, ip6} {
		awaitSource(t, running[i], want)
	}
}

// awaitSource waits until the outside sees a connection come from want.
func awaitSource(t *testing.T, c *testutil.Conn, want netip.Addr) {
	t.Helper()
	var last string
	testutil.Eventually(t, "a running flow leaves from "+want.String(), func() bool {
		got, err := c.Ask(aMoment)
		if now := fmt.Sprint(got, err); now != last {
			last = now
			t.Log(now)
		}
		return err == nil && got.Addr().Unmap() == want
	})
}

func TestServeSurvivesABurstOfChanges(t *testing.T) {
	const routes = 5000
	h, u := newOutside(t)
	createNet(t, h)
	a := h.NewContainer(t, "a", "net")
	serve(t, u.Outside, service)
	process := startServe(t, h)
	c := connects(t, a.Netns, "udp", at(u.IP4, service))
	for _, verb := range []string{"add", "del"} {
		var batch strings.Builder
		for i := range routes / 2 {
			fmt.Fprintf(&batch, "route %s 10.%d.%d.0/24 via %s\n", verb, i>>8, i&0xff, u.IP4)
		}
		file := filepath.Join(t.TempDir(), verb)
		if err := os.WriteFile(file, []byte(batch.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		h.Run(t, "ip", "-batch", file)
	}
	ip4, ip6 := renumber(t, h, u)
	awaitSource(t, c, ip4)
	awaitSource(t, a.MustDial(t, "udp", at(u.IP6, service)), ip6)

	// An uplink that is made anew needs its programs attached.
	h.Run(t, "ip", "link", "del", testutil.Uplink)
	testutil.Wire(t, u.Outside, "again", nil, h.Netns, testutil.Uplink, []string{"192.0.2.1/24", "2001:db8::1/64"})
	u.Outside.Run(t, "ip", "link", "set", "again", "master", "bridge")
	h.Run(t, "ip", "route", "add", "default", "via", u.IP4.String())
	h.Run(t, "ip", "route", "add", "default", "via", u.IP6.String())
	awaitSource(t, c, h.IP4)
	if !process.Running() {
		t.Error("serve has ended")
	}
}

// A change of ip_forward sweeps over ebpnet's own device too, without which
// only the default route's uplink works.
func TestServeMendsForwarding(t *testing.T) {
	t.Parallel()
	h := testutil.NewHost(t, "host")
	u := testutil.NewUnderlay(t, h)
	second := testutil.NewNetns(t, "second")
	second.Run(t, "ip", "link", "set", "lo", "up")
	testutil.Wire(t, h.Netns, "up1", []string{"198.51.100.1/24", "2001:db8:1::1/64"},
		second, "wire", []string{"198.51.100.254/24", "2001:db8:1::fe/64"})
	h.Ebpnet(t, "load", "--uplink", testutil.Uplink, "--uplink", "up1")
	createNet(t, h)
	a := h.NewContainer(t, "a", "net")
	serve(t, second, service)
	startServe(t, h)
	ways := map[string]string{"198.51.100.254": "198.51.100.1", "2001:db8:1::fe": "2001:db8:1::1"}
	for to := range ways {
		connects(t, a.Netns, "udp", at(netip.MustParseAddr(to), service))
	}
	setForwarding(t, h, "1")
	setForwarding(t, h, "0")
	for to, want := range ways {
		c := a.MustDial(t, "udp", at(netip.MustParseAddr(to), service))
		awaitSource(t, c, netip.MustParseAddr(want))
	}
	ping(t, a.Netns, u.IP4)
}

func TestServeEnds(t *testing.T) {
	const soon = 5 * time.Second
	end := func(t *testing.T, process *testutil.Process) {
		t.Helper()
		began := time.Now()
		if err := syscall.Kill(process.PID(), syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		process.Wait(t)
		if took := time.Since(began); took > soon {
			t.Errorf("serve took %v to end", took)
		}
	}
	t.Run("idle", func(t *testing.T) {
		h := newHost(t)
		end(t, startServe(t, h))
	})
	t.Run("while another holds the store", func(t *testing.T) {
		h := newHost(t)
		process := startServe(t, h)
		holdStore(t, h)
		// So that serve wants the store.
		h.Run(t, "ip", "link", "add", "new0", "type", "veth", "peer", "name", "new1")
		testutil.Eventually(t, "serve has opened the store", func() bool { return opens(t, process, h) })
		end(t, process)
	})
	t.Run("while it waits for the store from the beginning", func(t *testing.T) {
		h := newHost(t)
		holdStore(t, h)
		argv := h.Command("serve", "--listen", metricsAddress)
		process := h.Start(t, argv[0], argv[1:]...)
		testutil.Eventually(t, "serve has opened the store", func() bool { return opens(t, process, h) })
		end(t, process)
	})
}

// holdStore locks the host's store until the test ends.
func holdStore(t *testing.T, h *testutil.Host) {
	t.Helper()
	h.Start(t, "flock", "--no-fork", filepath.Join(h.State, store.File), "sh", "-c", "echo held; exec sleep 1000").
		Await(t, "held")
}

// opens tells whether the process has the host's store open.
func opens(t *testing.T, p *testutil.Process, h *testutil.Host) bool {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", p.PID()))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		// One that cannot be read has been closed since.
		if path, err := os.Readlink(file); err == nil && path == filepath.Join(h.State, store.File) {
			return true
		}
	}
	return false
}
