package host

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/testutil"
)

// addRoutes adds so many routes to a namespace, each with the same words behind
// its destination.
func addRoutes(t *testing.T, n *testutil.Netns, count int, words string) {
	t.Helper()
	var b strings.Builder
	for i := range count {
		fmt.Fprintf(&b, "route add 20.%d.%d.%d/32 %s\n", i>>16, i>>8&0xff, i&0xff, words)
	}
	file := filepath.Join(t.TempDir(), "routes")
	if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	n.Run(t, "ip", "-batch", file)
}

// addPair adds two devices to a namespace, which lead to each other.
func addPair(t *testing.T, n *testutil.Netns, a, b string) {
	t.Helper()
	n.Run(t, "ip", "link", "add", a, "type", "veth", "peer", "name", b)
	for _, device := range []string{a, b} {
		n.Run(t, "ip", "link", "set", device, "addrgenmode", "none", "up")
	}
}

// TestManyRoutesAreNotRead: root in a container cannot make the agent read, and
// hold, as many routes as the container adds. Not parallel: it counts what the
// process allocates.
func TestManyRoutesAreNotRead(t *testing.T) {
	testutil.RequireRoot(t)
	const many, most = 100_000, 16 << 20
	host, container := testutil.NewNetns(t, "host"), testutil.NewNetns(t, "container")
	v := Veth{
		ID: 1, Netns: spec.Netns{Path: container.Path()}, Ifname: "eth0", MAC: [6]byte{2, 0, 0, 0, 0, 2}, MTU: 1500,
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.1.0.2/24")},
		Gateways:  []netip.Addr{netip.MustParseAddr("10.1.0.1")},
	}
	addPair(t, container, "other0", "other1")
	in(t, host, func(h *Host) error {
		ifindex, err := h.CreateVeth(v)
		if err != nil {
			return err
		}
		return h.SetUp(ifindex, v)
	})
	expect := func(what string, want ...spec.Path) {
		t.Helper()
		var got []spec.Path
		in(t, host, func(h *Host) (err error) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			got, err = h.Paths(v)
			runtime.ReadMemStats(&after)
			if allocated := after.TotalAlloc - before.TotalAlloc; allocated > most {
				t.Errorf("%s: %d bytes are allocated, want at most %d", what, allocated, most)
			}
			return err
		})
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	path := func(to string, elsewhere bool) spec.Path {
		return spec.Path{Destination: netip.MustParsePrefix(to), Elsewhere: elsewhere}
	}
	expect("no other route")

	addRoutes(t, container, many, "dev other0 table 77")
	container.Run(t, "ip", "route", "add", "172.20.0.0/16", "dev", "other0")
	expect("many routes in another table", path("0.0.0.0/0", false), path("10.1.0.0/24", false), path("172.20.0.0/16", true))

	addRoutes(t, container, many, "dev eth0")
	expect("many routes by the endpoint's interface", path("0.0.0.0/0", true))
	container.Do(func() {
		for _, c := range []struct {
			limit   int
			timeout time.Duration
		}{{maxRoutesRead, time.Minute}, {2 * many, 0}} {
			if routes, err := readRoutes(unix.RT_TABLE_MAIN, c.limit, c.timeout, unix.RTN_UNICAST); !errors.Is(err, errTooManyRoutes) {
				t.Errorf("%+v: %d routes, %v, want %v", c, len(routes), err, errTooManyRoutes)
			}
		}
	})
}

// TestBroadcasts: the addresses are those that lead to the host and are not its
// own.
func TestBroadcasts(t *testing.T) {
	t.Parallel()
	n := testutil.NewNetns(t, "host")
	addPair(t, n, "a0", "b0")
	n.Run(t, "ip", "addr", "add", "10.0.0.1/24", "brd", "10.0.0.255", "dev", "a0")
	n.Run(t, "ip", "addr", "add", "10.0.1.1/24", "brd", "10.0.1.77", "dev", "a0")
	n.Run(t, "ip", "addr", "add", "10.0.2.1/32", "dev", "b0")
	n.Run(t, "sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
	n.Run(t, "ip", "addr", "add", "fd00::1/64", "dev", "b0", "nodad")
	in(t, n, func(h *Host) error {
		addresses, whole, err := h.Broadcasts(16)
		if want := "[10.0.0.255 10.0.1.77 10.0.1.255 fd00::]"; fmt.Sprint(addresses) != want || !whole {
			t.Errorf("%v, whole %t; want %s, whole", addresses, whole, want)
		}
		if addresses, whole, _ := h.Broadcasts(2); len(addresses) != 2 || whole {
			t.Errorf("at most 2: %v, whole %t", addresses, whole)
		}
		return err
	})
}

// TestRoutesAreReadWhole: what readRoutes finds is what the namespace has.
func TestRoutesAreReadWhole(t *testing.T) {
	t.Parallel()
	n := testutil.NewNetns(t, "container")
	read := func(limit int) (routes []netlink.Route, err error) {
		n.Do(func() { routes, err = readRoutes(unix.RT_TABLE_MAIN, limit, routesTimeout, unix.RTN_UNICAST) })
		return routes, err
	}
	if routes, err := read(maxRoutesRead); err != nil || len(routes) > 0 {
		t.Errorf("an empty namespace: %v, %v", routes, err)
	}
	addPair(t, n, "a0", "b0")
	for i, device := range []string{"a0", "b0"} {
		n.Run(t, "ip", "addr", "add", fmt.Sprintf("10.%d.0.1/24", i), "dev", device)
	}
	n.Run(t, "ip", "route", "add", "default", "via", "10.0.0.2", "metric", "7")
	n.Run(t, "ip", "route", "add", "blackhole", "10.9.0.0/16")
	n.Run(t, "ip", "route", "add", "10.8.0.0/16", "nexthop", "via", "10.0.0.2", "nexthop", "via", "10.1.0.2")
	n.Run(t, "ip", "route", "add", "fd00:9::/64", "dev", "b0", "metric", "9")
	var want []netlink.Route
	n.Do(func() {
		all, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
		if err != nil {
			t.Error(err)
		}
		want = all
	})
	want = slices.DeleteFunc(want, func(r netlink.Route) bool { return r.Dst != nil && r.Dst.String() == "10.9.0.0/16" })
	tell := func(routes []netlink.Route) (all []string) {
		for _, r := range routes {
			s := fmt.Sprint(destinationOf(r), " dev ", r.LinkIndex, " metric ", r.Priority)
			for _, hop := range r.MultiPath {
				s += fmt.Sprint(" hop ", hop.LinkIndex)
			}
			all = append(all, s)
		}
		slices.Sort(all)
		return all
	}
	routes, err := read(maxRoutesRead)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := tell(routes), tell(want); !slices.Equal(got, want) || len(want) < 5 {
		t.Errorf("%v, want %v", got, want)
	}
	// The limit counts each route that is read, the blackhole too.
	if routes, err := read(len(want) + 1); err != nil {
		t.Errorf("up to the limit: %v, %v", routes, err)
	}
	if routes, err := read(len(want)); !errors.Is(err, errTooManyRoutes) {
		t.Errorf("one more than the limit: %v, %v", routes, err)
	}
}
