package store

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/ebpnet/ebpnet/internal/spec"
)

// TestIndexesStayTrue puts and deletes at random, and compares what the
// indexes say with what the records say.
func TestIndexesStayTrue(t *testing.T) {
	t.Parallel()
	const steps, names = 3000, 24
	random := rand.New(rand.NewPCG(1, 2))
	s := open(t, t.TempDir())
	pick := func(kind string) string { return fmt.Sprintf("%s%d", kind, random.IntN(names)) }
	step := func(tx *Tx) error {
		switch random.IntN(10) {
		case 0, 1, 2:
			a := netip.AddrFrom4([4]byte{10, 0, 0, byte(random.IntN(2 * names))})
			return tx.PutEndpoint(spec.Endpoint{
				Name: pick("e"), ID: uint32(random.IntN(2 * names)), Network: fmt.Sprintf("n%d", random.IntN(3)),
				MAC: spec.MACFor(a), Addresses: []netip.Addr{a, netip.AddrFrom16([16]byte{0xfd, 15: byte(random.IntN(2 * names))})},
			})
		case 3:
			return tx.DeleteEndpoint(pick("e"))
		case 4:
			return tx.PutLink(spec.Link{Client: pick("e"), Server: pick("s")})
		case 5:
			return tx.DeleteLink(pick("e"), pick("s"))
		case 6:
			return tx.PutPort(randomPort(random, pick("e")))
		case 7:
			return tx.DeletePort(PortKeyOf(randomPort(random, "")))
		case 8:
			return errors.Join(tx.PutNetwork(spec.Network{Name: pick("n"), ID: uint32(random.IntN(2 * names))}),
				tx.PutTunnel(spec.Tunnel{Name: pick("t"), ID: uint32(random.IntN(2 * names))}))
		default:
			return errors.Join(tx.DeleteNetwork(pick("n")), tx.DeleteTunnel(pick("t")))
		}
	}
	update(t, s, func(tx *Tx) error {
		for range steps {
			if err := step(tx); err != nil && !errors.Is(err, ErrTaken) && !errors.Is(err, ErrNotFound) {
				return err
			}
		}
		return nil
	})
	if err := s.View(func(tx *Tx) error { compareIndexes(t, tx); return nil }); err != nil {
		t.Fatal(err)
	}
}

// compareIndexes builds each index anew from the records.
func compareIndexes(t *testing.T, tx *Tx) {
	t.Helper()
	networks, err := tx.Networks()
	endpoints, err2 := tx.Endpoints()
	tunnels, err3 := tx.Tunnels()
	links, err4 := tx.Links()
	ports, err5 := tx.Ports()
	if err := errors.Join(err, err2, err3, err4, err5); err != nil {
		t.Fatal(err)
	}
	want := map[string]map[string]string{}
	add := func(entries []entry) {
		for _, e := range entries {
			if want[e.bucket] == nil {
				want[e.bucket] = map[string]string{}
			}
			if _, twice := want[e.bucket][e.key]; twice {
				t.Errorf("two records have %s", e.what)
			}
			want[e.bucket][e.key] = e.owner
		}
	}
	for _, n := range networks {
		add(networkEntries(n))
	}
	for _, n := range tunnels {
		add(tunnelEntries(n))
	}
	for _, e := range endpoints {
		add(endpointEntries(e))
		for _, a := range e.Addresses {
			if owner, ok := tx.AddressOwner(a); !ok || owner != e.Name {
				t.Errorf("%v is %q's, want %s", a, owner, e.Name)
			}
		}
		if owner, ok := tx.MACOwner(e.Network, e.MAC); !ok || owner != e.Name {
			t.Errorf("%v is %q's, want %s", e.MAC, owner, e.Name)
		}
		on, err := tx.EndpointsOn(e.Network)
		if err != nil || !slices.ContainsFunc(on, func(o spec.Endpoint) bool { return o.Name == e.Name }) {
			t.Errorf("%s is not on %s (%v)", e.Name, e.Network, err)
		}
	}
	for _, l := range links {
		add(linkEntries(l))
		for _, name := range []string{l.Client, l.Server} {
			of, err := tx.LinksOf(name)
			if err != nil || !slices.ContainsFunc(of, func(o spec.Link) bool { return o.Client == l.Client && o.Server == l.Server }) {
				t.Errorf("link %s is not one of %s's (%v)", LinkKey(l.Client, l.Server), name, err)
			}
		}
	}
	for _, p := range ports {
		add(portEntries(p))
		of, err := tx.PortsOf(p.Endpoint)
		if err != nil || !slices.ContainsFunc(of, func(o spec.Port) bool { return PortKeyOf(o) == PortKeyOf(p) }) {
			t.Errorf("port %s is not one of %s's (%v)", p, p.Endpoint, err)
		}
	}
	for _, bucket := range []string{idBucket, addressBucket, macBucket, memberBucket, serverBucket, publisherBucket} {
		got := map[string]string{}
		for key, owner := range tx.each(bucket, "") {
			got[key] = string(owner)
		}
		if diff := cmp.Diff(want[bucket], got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("index %s: %s", bucket, diff)
		}
	}
}

func TestNamesThatBeginAlike(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	update(t, s, func(tx *Tx) error {
		for _, l := range []spec.Link{
			{Client: "web", Server: "db"}, {Client: "web-2", Server: "db"}, {Client: "web", Server: "db.a"}, {Client: "db", Server: "web"},
		} {
			if err := tx.PutLink(l); err != nil {
				return err
			}
		}
		links, err := tx.LinksOf("web")
		var got []string
		for _, l := range links {
			got = append(got, LinkKey(l.Client, l.Server))
		}
		if diff := cmp.Diff([]string{"web/db", "web/db.a", "db/web"}, got); diff != "" {
			t.Error(diff)
		}
		return err
	})
}

func TestNextID(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	next := func(tx *Tx) uint32 {
		id, err := tx.NextID(KindTunnel, 1, 4)
		if err != nil {
			t.Fatal(err)
		}
		if err := tx.PutTunnel(spec.Tunnel{Name: fmt.Sprint(id), ID: id}); err != nil {
			t.Fatal(err)
		}
		return id
	}
	update(t, s, func(tx *Tx) error {
		got := []uint32{next(tx), next(tx), next(tx)}
		if err := tx.DeleteTunnel("1"); err != nil {
			return err
		}
		got = append(got, next(tx), next(tx)) // not 1 at once
		if want := []uint32{1, 2, 3, 4, 1}; !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
		if _, err := tx.NextID(KindTunnel, 1, 4); !errors.Is(err, ErrExhausted) {
			t.Errorf("with all in use: %v", err)
		}
		if id, err := tx.NextID(KindNetwork, 1, 4); id != 1 || err != nil {
			t.Errorf("the kinds share ids: %d, %v", id, err)
		}
		if err := tx.DeleteTunnel("3"); err != nil {
			return err
		}
		if id := next(tx); id != 3 {
			t.Errorf("got %d, want the one freed", id)
		}
		return nil
	})
}

func TestDeletedNetworkForgetsItsLastAddress(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	subnet, a := netip.MustParsePrefix("10.0.0.0/24"), netip.MustParseAddr("10.0.0.9")
	update(t, s, func(tx *Tx) error {
		err := errors.Join(tx.PutNetwork(spec.Network{Name: "a"}), tx.PutNetwork(spec.Network{Name: "b"}),
			tx.SetLastAddress("a", subnet, a), tx.SetLastAddress("b", subnet, a), tx.DeleteNetwork("a"))
		if got := tx.LastAddress("a", subnet); got.IsValid() {
			t.Errorf("got %v", got)
		}
		if got := tx.LastAddress("b", subnet); got != a {
			t.Errorf("the other network's: got %v, want %v", got, a)
		}
		return err
	})
}

func TestPending(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	link := Change{KindLink, LinkKey("web", "redis1")}
	update(t, s, func(tx *Tx) error {
		return errors.Join(tx.MarkPending(link.Kind, link.Key), tx.MarkPending(KindEndpoint, "web"),
			tx.MarkPending(KindEndpoint, "web"), tx.MarkPending(KindHost, ""))
	})
	update(t, s, func(tx *Tx) error {
		got, err := tx.Pending()
		if diff := cmp.Diff([]Change{{KindEndpoint, "web"}, {KindHost, ""}, link}, got); diff != "" {
			t.Error(diff)
		}
		return errors.Join(err, tx.ClearPending(link), tx.ClearPending(link))
	})
	update(t, s, func(tx *Tx) error {
		got, err := tx.Pending()
		if diff := cmp.Diff([]Change{{KindEndpoint, "web"}, {KindHost, ""}}, got); diff != "" {
			t.Error(diff)
		}
		return err
	})
}

// addOne is what the store does for one `endpoint add` and its undoing.
func addOne(tx *Tx, n int) error {
	if _, err := tx.NextID(KindEndpoint, 1, 1<<16); err != nil {
		return err
	}
	e := endpoint(n)
	tx.AddressOwner(e.Addresses[0])
	tx.MACOwner(e.Network, e.MAC)
	_, err := tx.LinksOf(e.Name)
	return errors.Join(err, tx.PutEndpoint(e), tx.DeleteEndpoint(e.Name))
}

// TestAddingStaysFlat counts allocations, which going through the endpoints
// would multiply, rather than time. It runs alone, as counting needs.
func TestAddingStaysFlat(t *testing.T) {
	const few, many, next = 100, 10_000, 20_000
	s := open(t, t.TempDir())
	count := func() float64 {
		return testing.AllocsPerRun(20, func() {
			update(t, s, func(tx *Tx) error { return addOne(tx, next) })
		})
	}
	fill(t, s, 1, few)
	before := count()
	fill(t, s, few, many)
	if after := count(); after > 4*before {
		t.Errorf("%v allocations with %d endpoints, %v with %d", before, few, after, many)
	}
}

func BenchmarkAdd(b *testing.B) {
	for _, n := range []int{1, 1000, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := open(b, b.TempDir())
			fill(b, s, 1, n)
			for b.Loop() {
				update(b, s, func(tx *Tx) error { return addOne(tx, 20_000) })
			}
		})
	}
}

func BenchmarkOpen(b *testing.B) {
	for _, n := range []int{1, 1000, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			dir := b.TempDir()
			s := open(b, dir)
			fill(b, s, 1, n)
			s.Close()
			for b.Loop() {
				open(b, dir).Close()
			}
		})
	}
}
