package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	bolt "go.etcd.io/bbolt"

	"github.com/ebpnet/ebpnet/internal/spec"
)

func open(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(context.Background(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func update(t testing.TB, s *Store, fn func(*Tx) error) {
	t.Helper()
	if err := s.Update(fn); err != nil {
		t.Fatal(err)
	}
}

// endpoint gives the nth of many endpoints of one network.
func endpoint(n int) spec.Endpoint {
	a := netip.AddrFrom4([4]byte{10, 88, byte(n >> 8), byte(n)})
	return spec.Endpoint{
		Name: fmt.Sprintf("e%05d", n), ID: uint32(n), Network: "front", MAC: spec.MACFor(a),
		Addresses: []netip.Addr{a}, Netns: spec.Netns{Path: "/run/netns/x", Inode: 1}, Ifname: "eth0",
	}
}

func fill(t testing.TB, s *Store, from, to int) {
	t.Helper()
	update(t, s, func(tx *Tx) error {
		for n := from; n < to; n++ {
			if err := tx.PutEndpoint(endpoint(n)); err != nil {
				return err
			}
		}
		return nil
	})
}

func TestRecordsOutliveTheStore(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state", "deep")
	key := uint32(7)
	host := spec.Host{Uplinks: []string{"up0"}, TunnelAddress: netip.MustParseAddr("192.0.2.1"), GatewayMAC: spec.MAC{2, 1}}
	network := spec.Network{
		Name: "front", ID: 3, Subnets: []netip.Prefix{netip.MustParsePrefix("10.88.0.0/16")},
		Gateways: []netip.Addr{netip.MustParseAddr("10.88.0.1")}, ICC: true, Key: &key, MTU: 1400,
	}
	tunnel := spec.Tunnel{
		Name: "b", ID: 1, Remote: netip.MustParseAddr("2001:db8::2"), Local: netip.MustParseAddr("2001:db8::1"),
		Networks: []string{"front"}, Checksums: true, Sequence: true, CopyDSCP: true, TTL: 9,
	}
	trunk := endpoint(3)
	trunk.Trunk = true
	link := spec.Link{Client: "web", Server: "redis1", Alias: "redis", Ports: []spec.Ports{{Protocol: spec.TCP, First: 6379, Last: 6379}}}

	s := open(t, dir)
	update(t, s, func(tx *Tx) error {
		return errors.Join(tx.PutHost(host), tx.PutNetwork(network), tx.PutTunnel(tunnel), tx.PutLink(link),
			tx.PutEndpoint(endpoint(2)), tx.PutEndpoint(trunk), tx.SetLastAddress("front", network.Subnets[0], endpoint(2).Addresses[0]))
	})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for path, mode := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, File): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, mode %v, want %v", path, err, info.Mode(), mode)
		}
	}

	s, err := OpenReadOnly(context.Background(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	err = s.View(func(tx *Tx) error {
		gotHost, found, err := tx.Host()
		gotNetwork, err2 := tx.Network("front")
		gotTunnel, err3 := tx.Tunnel("b")
		gotLink, err4 := tx.Link("web", "redis1")
		gotEndpoint, err5 := tx.Endpoint(endpoint(2).Name)
		gotTrunk, err6 := tx.Endpoint(trunk.Name)
		if !found {
			t.Error("the host is gone")
		}
		if got, want := tx.LastAddress("front", network.Subnets[0]), endpoint(2).Addresses[0]; got != want {
			t.Errorf("LastAddress %v, want %v", got, want)
		}
		got := []any{gotHost, gotNetwork, gotTunnel, gotLink, gotEndpoint, gotTrunk}
		want := []any{host, network, tunnel, link, endpoint(2), trunk}
		if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
			t.Error(diff)
		}
		return errors.Join(err, err2, err3, err4, err5, err6)
	})
	if err != nil {
		t.Error(err)
	}
	if err := s.Update(func(*Tx) error { return nil }); err == nil {
		t.Error("a store opened to be read took a change")
	}
}

func TestNotFound(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	update(t, s, func(tx *Tx) error {
		_, network := tx.Network("x")
		_, endpoint := tx.Endpoint("x")
		_, tunnel := tx.Tunnel("x")
		_, link := tx.Link("x", "y")
		for want, errs := range map[string][]error{
			`no network "x": see 'ebpnet network ls'`:   {network, tx.DeleteNetwork("x")},
			`no endpoint "x": see 'ebpnet endpoint ls'`: {endpoint, tx.DeleteEndpoint("x")},
			`no tunnel "x": see 'ebpnet tunnel ls'`:     {tunnel, tx.DeleteTunnel("x")},
			`no link from "x" to "y"`:                   {link, tx.DeleteLink("x", "y")},
		} {
			for _, err := range errs {
				if !errors.Is(err, ErrNotFound) || err.Error() != want {
					t.Errorf("got %v, want %s", err, want)
				}
			}
		}
		if _, found, err := tx.Host(); found || err != nil {
			t.Errorf("host: %v, %v", found, err)
		}
		return nil
	})
}

func TestReadOnlyMakesNothing(t *testing.T) {
	t.Parallel()
	missing := filepath.Join(t.TempDir(), "none")
	empty := t.TempDir()
	if err := os.WriteFile(filepath.Join(empty, File), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{missing, empty} {
		s, err := OpenReadOnly(context.Background(), dir)
		if err != nil {
			t.Fatal(err)
		}
		err = s.View(func(tx *Tx) error {
			networks, err := tx.Networks()
			links, err2 := tx.LinksOf("x")
			on, err3 := tx.EndpointsOn("x")
			pending, err4 := tx.Pending()
			if len(networks)+len(links)+len(on)+len(pending) > 0 {
				t.Error("it is not empty")
			}
			if _, ok := tx.AddressOwner(netip.MustParseAddr("10.0.0.2")); ok {
				t.Error("an address has an owner")
			}
			if tx.PutHost(spec.Host{}) == nil {
				t.Error("it took a record")
			}
			return errors.Join(err, err2, err3, err4)
		})
		if err := errors.Join(err, s.Close()); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(missing); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory was made: %v", err)
	}
	if info, err := os.Stat(filepath.Join(empty, File)); err != nil || info.Size() != 0 {
		t.Errorf("the file was written: %v, %v", info, err)
	}
}

func TestUpdateFailsAsAWhole(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	wrong := errors.New("wrong")
	err := s.Update(func(tx *Tx) error { return errors.Join(tx.PutEndpoint(endpoint(2)), wrong) })
	if !errors.Is(err, wrong) {
		t.Errorf("got %v", err)
	}
	update(t, s, func(tx *Tx) error {
		if _, err := tx.Endpoint(endpoint(2).Name); !errors.Is(err, ErrNotFound) {
			t.Errorf("a failed update was kept: %v", err)
		}
		if owner, ok := tx.AddressOwner(endpoint(2).Addresses[0]); ok {
			t.Errorf("its address is %s's", owner)
		}
		return nil
	})
}

func TestTaken(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	fill(t, s, 2, 3)
	for want, change := range map[string]func(*spec.Endpoint){
		"id 2":              func(e *spec.Endpoint) { e.ID = 2 },
		"address 10.88.0.2": func(e *spec.Endpoint) { e.Addresses = endpoint(2).Addresses },
		"MAC 02:eb":         func(e *spec.Endpoint) { e.MAC = endpoint(2).MAC },
	} {
		e := endpoint(3)
		change(&e)
		err := s.Update(func(tx *Tx) error { return tx.PutEndpoint(e) })
		if !errors.Is(err, ErrTaken) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), `"e00002"`) {
			t.Errorf("%s: %v", want, err)
		}
	}
	elsewhere := endpoint(3)
	elsewhere.MAC, elsewhere.Network = endpoint(2).MAC, "back" // a MAC is a network's own
	update(t, s, func(tx *Tx) error { return tx.PutEndpoint(elsewhere) })
}

func TestTwoAtOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := open(t, dir)
	if _, err := openBriefly(dir); !errors.Is(err, ErrBusy) || strings.Contains(err.Error(), "\n") {
		t.Fatalf("beside a writer: %v", err)
	}
	// Each waits for those before it, and none loses another's change.
	const writers = 8
	done := make(chan error)
	for n := range writers {
		go func() {
			s, err := Open(context.Background(), dir)
			if err == nil {
				err = errors.Join(s.Update(func(tx *Tx) error { return tx.PutEndpoint(endpoint(n + 2)) }), s.Close())
			}
			done <- err
		}()
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	for range writers {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	readers := make([]*Store, 2)
	for i := range readers {
		var err error
		if readers[i], err = OpenReadOnly(context.Background(), dir); err != nil {
			t.Fatal(err)
		}
		defer readers[i].Close()
	}
	err := readers[1].View(func(tx *Tx) error {
		all, err := tx.Endpoints()
		if len(all) != writers {
			t.Errorf("%d endpoints, want %d", len(all), writers)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestOtherVersionIsKept(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir)
	update(t, s, func(tx *Tx) error { return tx.put(metaBucket, schemaKey, []byte("99")) })
	s.Close()
	mustRefuse(t, dir, ErrVersion)
}

func TestForeignDatabaseIsKept(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	db, err := bolt.Open(filepath.Join(dir, File), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error { _, err := tx.CreateBucket([]byte("theirs")); return err })
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	mustRefuse(t, dir, ErrDamaged)
}

// mustRefuse opens the store both ways, which must fail and change nothing.
func mustRefuse(t *testing.T, dir string, want error) {
	t.Helper()
	path := filepath.Join(dir, File)
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, open := range []func(context.Context, string) (*Store, error){Open, OpenReadOnly} {
		_, err := open(context.Background(), dir)
		if !errors.Is(err, want) || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "\n") {
			t.Errorf("got %v, want one line that %v", err, want)
		}
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the file was changed (%v)", err)
	}
}

// openBriefly waits for the lock for hardly any time.
func openBriefly(dir string) (*Store, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	return Open(ctx, dir)
}
