package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// loopback is what ebpnet does to lo: its settings and its program.
func loopback(t *testing.T, h *testutil.Host) (state string) {
	t.Helper()
	h.Do(func() {
		for _, name := range []string{"accept_local", "route_localnet"} {
			value, err := os.ReadFile(filepath.Join("/proc/sys/net/ipv4/conf/lo", name))
			if err != nil {
				t.Error(err)
			}
			state += name + "=" + strings.TrimSpace(string(value)) + " "
		}
	})
	links, err := filepath.Glob(filepath.Join(h.Pin, "links", "from_loopback-*"))
	if err != nil {
		t.Error(err)
	}
	filters := h.Run(t, "tc", "filter", "show", "dev", "lo", "ingress")
	return fmt.Sprintf("%sprograms=%d", state, len(links)+strings.Count(filters, "ebpnet"))
}

const (
	loopbackShut = "accept_local=0 route_localnet=0 programs=0"
	loopbackOpen = "accept_local=1 route_localnet=1 programs=1"
)

// inTables counts the entries of a table.
func inTables(t *testing.T, h *testutil.Host, table string) int {
	t.Helper()
	var status struct {
		Tables []struct {
			Name    string
			Entries int
		}
	}
	h.EbpnetJSON(t, &status, "status")
	for _, entry := range status.Tables {
		if entry.Name == table {
			return entry.Entries
		}
	}
	t.Fatalf("status has no table %s", table)
	return 0
}

// TestThousandPorts publishes many ports as one, which takes neither a process
// nor a second, and as many.
func TestThousandPorts(t *testing.T) {
	const count, limit = 1000, time.Second
	h, _ := newOutside(t)
	createNet(t, h)
	h.NewContainer(t, "web", "net")
	processes := func() int {
		found, err := filepath.Glob("/proc/[0-9]*/ns/net")
		if err != nil {
			t.Fatal(err)
		}
		own, n := netnsOf(t, h.Netns), 0
		for _, path := range found {
			if link, err := os.Readlink(path); err == nil && link == own {
				n++
			}
		}
		return n
	}
	running := processes()
	within := func(what string, args ...string) {
		t.Helper()
		start := time.Now()
		h.Ebpnet(t, args...)
		if took := time.Since(start); took > limit {
			t.Errorf("%s took %v, want at most %v", what, took, limit)
		} else {
			t.Logf("%s: %v", what, took)
		}
	}
	within("port add", "port", "add", "web", "20000-20999:20000-20999")
	if n := inTables(t, h, "ports"); n != 2*count {
		t.Errorf("%d ports are in the tables, want %d of each family", n, count)
	}
	within("port rm", "port", "rm", "web", "20000-20999:20000-20999")

	var ports []string
	for i := range count {
		ports = append(ports, "--publish", fmt.Sprintf("%d:%d", 20000+2*i, 1+i))
	}
	n := testutil.NewNetns(t, "c")
	timed(t, "endpoint add", func() string {
		return h.Ebpnet(t, append([]string{"endpoint", "add", "many", "--network", "net", "--netns", n.Name}, ports...)...)
	})
	if listed := publications(t, h, "many"); len(listed) != count {
		t.Errorf("%d ports are listed, want %d", len(listed), count)
	}
	within("port add beside them", "port", "add", "web", "8080:80")
	timed(t, "load", func() string { return h.Ebpnet(t, "load") })
	timed(t, "endpoint rm", func() string { return h.Ebpnet(t, "endpoint", "rm", "many") })
	if n := inTables(t, h, "ports"); n != 2 {
		t.Errorf("%d ports are left in the tables, want 1 of each family", n)
	}
	if now := processes(); now != running {
		t.Errorf("%d processes on the host, %d before", now, running)
	}
}

func TestPortsGoWithTheirEndpoints(t *testing.T) {
	h, _ := newOutside(t)
	createNet(t, h)
	if got := loopback(t, h); got != loopbackShut {
		t.Errorf("nothing is published, and lo is %s", got)
	}
	gone := func(how string) {
		t.Helper()
		if list := publications(t, h); len(list) != 0 {
			t.Errorf("%s: listed are %+v", how, list)
		}
		for _, table := range []string{"ports", "port_sources", "published_ports"} {
			if n := inTables(t, h, table); n != 0 {
				t.Errorf("%s: %d entries of %s are left", how, n, table)
			}
		}
		if got := loopback(t, h); got != loopbackShut {
			t.Errorf("%s: lo is %s, want %s", how, got, loopbackShut)
		}
	}
	open := func() {
		t.Helper()
		if got := loopback(t, h); got != loopbackOpen {
			t.Errorf("lo is %s, want %s", got, loopbackOpen)
		}
	}

	h.NewContainer(t, "web", "net", "--publish", "8080-8089:80-89", "--publish", "127.0.0.1:53:53/udp")
	open()
	publish(t, h, "web", "443:443", "--allow-from", "10.0.0.0/8", "--allow-from", "::/0")
	h.Ebpnet(t, "port", "rm", "web", "443:443")
	open()
	h.Ebpnet(t, "port", "rm", "web", "127.0.0.1:53:53/udp")
	open()
	h.Ebpnet(t, "port", "rm", "web", "8080-8089:80-89")
	gone("port rm")

	publish(t, h, "web", "8080:80", "--allow-from", "10.0.0.0/8")
	open()
	h.Ebpnet(t, "endpoint", "rm", "web")
	gone("endpoint rm")

	vanishing := h.NewContainer(t, "vanishing", "net", "--publish", "8080:80", "--publish", "80")
	publish(t, h, "vanishing", "53:53/udp", "--allow-from", "10.0.0.0/8")
	open()
	vanishing.Remove(t)
	testutil.Eventually(t, "the endpoint goes with its namespace", func() bool {
		h.Ebpnet(t, "load")
		return len(endpoints(t, h)) == 0
	})
	gone("the namespace went")

	// One that is refused leaves nothing: its second port is taken, in the
	// store or by a process.
	h.Serve(t, "tcp4", "127.0.0.1:7001")
	n := testutil.NewNetns(t, "c")
	add := []string{"endpoint", "add", "new", "--network", "net", "--netns", n.Name, "--publish", "8080:80", "--publish"}
	refused(t, h, exitFailure, append(add, "8080:81"), "8080/tcp")
	refused(t, h, exitFailure, append(add, "7001:81"), "7001/tcp")
	if len(endpoints(t, h)) != 0 || veths(t, n) != 0 {
		t.Error("an endpoint is there whose port was refused")
	}
	gone("refused")
}

// TestPortsOutliveTheLoad unloads and loads again.
func TestPortsOutliveTheLoad(t *testing.T) {
	h, _ := newOutside(t)
	createNet(t, h)
	h.SetSysctl(t, "ipv4/conf/lo/accept_local", "1") // the host's own choice
	const before = "accept_local=1 route_localnet=0 programs=0"
	h.NewContainer(t, "web", "net", "--publish", "8080:80")
	publish(t, h, "web", "[::1]:443:443", "--allow-from", "::1")
	listed := publications(t, h)
	entries := inTables(t, h, "ports")
	for _, again := range [][]string{{"load"}, {"unload"}, {"load"}} {
		h.Ebpnet(t, again...)
		want := loopbackOpen
		if again[0] == "unload" {
			want = before
		}
		if got := loopback(t, h); got != want {
			t.Errorf("after %s lo is %s, want %s", again[0], got, want)
		}
		if diff := cmp.Diff(listed, publications(t, h)); diff != "" {
			t.Errorf("after %s: %s", again[0], diff)
		}
	}
	if n := inTables(t, h, "ports"); n != entries {
		t.Errorf("%d entries are in the table, %d before", n, entries)
	}
	h.Ebpnet(t, "endpoint", "rm", "web")
	if got := loopback(t, h); got != before {
		t.Errorf("lo is %s, want %s as before", got, before)
	}
}
