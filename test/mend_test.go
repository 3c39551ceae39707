package test

import (
	"context"
	"fmt"
	mathrand "math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
	"github.com/ebpnet/ebpnet/internal/testutil"
)

// removePins leaves the host as if everything under its pin directory had
// gone.
func removePins(t *testing.T, h *testutil.Host) {
	t.Helper()
	if err := os.RemoveAll(h.Pin); err != nil {
		t.Fatal(err)
	}
}

// A container whose programs are gone must not find the host's kernel routing
// for it instead.
func TestNothingIsForwardedWithoutPrograms(t *testing.T) {
	h, u := newOutside(t)
	setForwarding(t, h, "1")
	createNet(t, h)
	expectNoContainerAddress(t, u)
	a, b := h.NewContainer(t, "a", "net"), h.NewContainer(t, "b", "net")
	serve(t, u.Outside, service)
	works := func() {
		t.Helper()
		for _, address := range []netip.Addr{u.IP4, u.IP6} {
			connects(t, a.Netns, "tcp", at(address, service))
			connects(t, b.Netns, "udp", at(address, service))
		}
		pingAll(t, a, b)
		ping(t, h.Netns, a.IP4)
		ping(t, h.Netns, a.IP6)
	}
	works()
	removePins(t, h)
	testutil.Eventually(t, "the kernel has let go of the programs", func() bool {
		_, err := a.Try("ping", "-n", "-c", "1", "-W", "0.2", u.IP4.String())
		return err != nil
	})
	for _, c := range []*testutil.Container{a, b} {
		c.Run(t, "ip", "neigh", "flush", "all")
		for _, address := range []netip.Addr{u.IP4, u.IP6, h.IP4} {
			if out, err := c.Try("ping", "-n", "-c", "2", "-i", "0.2", "-W", "0.4", address.String()); err == nil {
				t.Errorf("%s reaches %s without programs:\n%s", c.Endpoint, address, out)
			}
		}
	}
	h.Ebpnet(t, "load")
	for _, c := range []*testutil.Container{a, b} {
		// It may still be giving up on the gateway's MAC.
		for _, address := range []netip.Addr{u.IP4, u.IP6} {
			testutil.Eventually(t, c.Endpoint+" reaches the outside again", func() bool {
				_, err := c.Try("ping", "-n", "-c", "1", "-W", "0.4", address.String())
				return err == nil
			})
		}
	}
	works()
}

func TestOneBrokenEndpointBreaksNoOther(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	a, bad, b := h.NewContainer(t, "a", "net"), h.NewContainer(t, "bad", "net"), h.NewContainer(t, "b", "net")
	serve(t, u.Outside, service)
	bad.Run(t, "ip", "link", "del", testutil.Device)
	bad.Run(t, "ip", "link", "add", testutil.Device, "type", "bridge")
	works := func() {
		t.Helper()
		pingAll(t, a, b)
		connects(t, b.Netns, "tcp", at(u.IP4, service))
		connects(t, a.Netns, "udp", at(u.IP6, service))
	}
	for _, what := range []string{"loaded", "rebuilt"} {
		t.Log(what)
		refused(t, h, exitFailure, []string{"load"}, `"bad"`, testutil.Device)
		works()
		h.Ebpnet(t, "network", "set", "net", "--icc=true")
		later := h.NewContainer(t, "later", "net")
		pingAll(t, later, a)
		h.Ebpnet(t, "endpoint", "rm", "later")
		removePins(t, h)
	}
	refused(t, h, exitFailure, []string{"load"}, `"bad"`, testutil.Device)
	h.Ebpnet(t, "endpoint", "rm", "bad")
	h.Ebpnet(t, "load")
	works()
	bad.Run(t, "ip", "link", "show", testutil.Device, "type", "bridge")
}

func TestKilledLoadIsMended(t *testing.T) {
	const rounds = 15
	h, u := newOutside(t)
	createNet(t, h)
	a, b := h.NewContainer(t, "a", "net"), h.NewContainer(t, "b", "net")
	serve(t, u.Outside, service)
	works := func(when string) {
		t.Helper()
		pingAll(t, a, b)
		for _, address := range a.Addresses() {
			ping(t, h.Netns, address)
		}
		connects(t, a.Netns, "udp", at(u.IP4, service))
		connects(t, b.Netns, "udp", at(u.IP6, service))
		if t.Failed() {
			t.Fatal(when)
		}
	}
	removePins(t, h)
	start := time.Now()
	h.Ebpnet(t, "load")
	longest := time.Since(start)
	load := h.Command("load")
	mended := 0
	for range rounds {
		removePins(t, h)
		process := h.Start(t, load[0], load[1:]...)
		after := mathrand.N(longest)
		time.Sleep(after)
		process.Kill()
		_, stderr, code := h.TryEbpnet("network", "set", "net", "--icc=true")
		switch {
		case code == 0:
			mended++
			works(fmt.Sprintf("mended by the next command, %v into load", after))
		case code != exitFailure || !strings.Contains(stderr, "ebpnet load"):
			t.Fatalf("killed %v into load, the next command: exit code %d: %s", after, code, stderr)
		}
		h.Ebpnet(t, "load")
		works(fmt.Sprintf("loaded again, %v into load", after))
	}
	t.Logf("%d of %d killed loads are mended by the next command", mended, rounds)
}

// TestWithoutLinksNothingIsLoaded removes the directory of links, as an
// unload that is killed may leave it.
func TestWithoutLinksNothingIsLoaded(t *testing.T) {
	h := newHost(t)
	createNet(t, h)
	a, b := h.NewContainer(t, "a", "net"), h.NewContainer(t, "b", "net")
	for _, next := range []string{"load", "unload"} {
		if err := os.RemoveAll(filepath.Join(h.Pin, "links")); err != nil {
			t.Fatal(err)
		}
		refused(t, h, exitFailure, []string{"network", "set", "net", "--icc=true"}, "not loaded", "ebpnet load")
		refused(t, h, exitFailure, []string{"endpoint", "rm", "a"}, "not loaded", "ebpnet load")
		var status struct{ Loaded bool }
		if h.EbpnetJSON(t, &status, "status"); status.Loaded {
			t.Error("status says that the datapath is loaded")
		}
		h.Ebpnet(t, next)
		h.Ebpnet(t, "load")
		pingAll(t, a, b)
	}
}

func TestUnfitSettingsAreRefused(t *testing.T) {
	h, _ := newOutside(t)
	createNet(t, h)
	a := h.NewContainer(t, "a", "net")
	h.Run(t, "ip", "tuntap", "add", "tun0", "mode", "tun")
	veth := "ebp-1"
	h.Run(t, "ip", "link", "show", veth)
	look := func() string { return everything(t, h) + h.Ebpnet(t, "-o", "json", "status") }
	before := look()
	for _, c := range []struct {
		code  int
		args  []string
		words []string
	}{
		{exitFailure, []string{"network", "create", "new", "--subnet", "192.0.2.0/24"}, []string{"192.0.2.0/24", "192.0.2.1"}},
		{exitFailure, []string{"network", "create", "new", "--subnet", "192.0.0.0/16"}, []string{"192.0.0.0/16", "192.0.2.1"}},
		{exitFailure, []string{"network", "create", "new", "--subnet", "10.0.0.0/24", "--subnet", "2001:db8::/64"}, []string{"2001:db8::/64"}},
		{exitUsage, []string{"network", "create", "new", "--subnet", "127.0.0.0/24"}, []string{"127.0.0.0/24"}},
		{exitFailure, []string{"load", "--uplink", "lo"}, []string{"uplink", "lo"}},
		{exitFailure, []string{"load", "--uplink", "tun0"}, []string{"uplink", "tun0"}},
		{exitFailure, []string{"load", "--uplink", veth}, []string{"uplink", veth}},
		{exitFailure, []string{"load", "--uplink", "ebpnet0"}, []string{"uplink", "ebpnet0"}},
		{exitUsage, []string{"load", "--tunnel-address", "2001:db8::99"}, []string{"tunnel address", "2001:db8::99"}},
		{exitUsage, []string{"load", "--tunnel-address", "192.0.2.99"}, []string{"tunnel address", "192.0.2.99"}},
		{exitUsage, []string{"tunnel", "add", "new", "--remote", "172.30.0.9"}, []string{"172.30.0.9", `"net"`}},
		{exitUsage, []string{"tunnel", "add", "new", "--remote", "255.255.255.255"}, []string{"255.255.255.255"}},
		{exitUsage, []string{"tunnel", "add", "new", "--remote", "224.0.0.1"}, []string{"224.0.0.1"}},
		{exitUsage, []string{"tunnel", "add", "new", "--remote", "fe80::2"}, []string{"fe80::2"}},
	} {
		refused(t, h, c.code, c.args, c.words...)
		if after := look(); after != before {
			t.Fatalf("ebpnet %q was refused, and changed\n%s\nto\n%s", c.args, before, after)
		}
	}
	ping(t, a.Netns, gateway4)
}

func TestAnotherStoreIsRefused(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	a, b := h.NewContainer(t, "a", "net"), h.NewContainer(t, "b", "net")
	serve(t, u.Outside, service)
	before := everything(t, h)
	other := *h
	other.State = filepath.Join(t.TempDir(), "other")
	for _, args := range [][]string{
		{"load"},
		{"load", "--uplink", testutil.Uplink},
		{"network", "create", "new", "--subnet", "10.0.0.0/24"},
	} {
		refused(t, &other, exitFailure, args, "store", "--state")
		if after := everything(t, h); after != before {
			t.Fatalf("ebpnet %q with another store changed\n%s\nto\n%s", args, before, after)
		}
		pingAll(t, a, b)
		connects(t, a.Netns, "tcp", at(u.IP4, service))
	}
	h.Ebpnet(t, "load")
	pingAll(t, b, a)
}

// TestReboot has the store say that everything was made by another run of the
// kernel, of which nothing is left. An endpoint waits for its namespace.
func TestReboot(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	late, early := h.NewContainer(t, "late", "net"), h.NewContainer(t, "early", "net")
	h.Ebpnet(t, "link", "add", "late", "early", "--port", "80/tcp")
	h.Ebpnet(t, "unload")
	s, err := store.Open(context.Background(), h.State)
	if err != nil {
		t.Fatal(err)
	}
	err = s.Update(func(tx *store.Tx) error {
		var all []spec.Endpoint
		all, err := tx.Endpoints()
		for _, e := range all {
			e.Netns.Boot = "another"
			if err == nil {
				err = tx.PutEndpoint(e)
			}
		}
		return err
	})
	if err == nil {
		err = s.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	late.Remove(t)

	for range 2 {
		h.Ebpnet(t, "load")
		ping(t, early.Netns, u.IP4)
		if n := len(endpoints(t, h)); n != 2 {
			t.Fatalf("%d endpoints, want 2: one waits for its namespace", n)
		}
		h.Ebpnet(t, "network", "set", "net", "--icc=true")
	}
	again := testutil.NewNetns(t, "again")
	if err := os.WriteFile(late.Path(), nil, 0o444); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(again.Path(), late.Path(), "none", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	h.Ebpnet(t, "load")
	pingAll(t, late, early)
	ping(t, late.Netns, u.IP6)
	if hosts := h.Ebpnet(t, "link", "hosts", "late"); !strings.Contains(hosts, "early") {
		t.Errorf("the link of the one that waited is gone: %q", hosts)
	}
	// Of this run of the kernel it has now gone for good.
	late.Remove(t)
	again.Remove(t)
	testutil.Eventually(t, "the endpoint is removed", func() bool {
		h.Ebpnet(t, "load")
		return len(endpoints(t, h)) == 1
	})
}
