package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/ebpnet/ebpnet/internal/spec"
)

// randomPort gives one of a few publications.
func randomPort(random *rand.Rand, endpoint string) spec.Port {
	const few = 6
	first := uint16(1 + random.IntN(few))
	addresses := []netip.Addr{{}, netip.IPv4Unspecified(), netip.MustParseAddr("::1")}
	return spec.Port{
		ID: uint32(random.IntN(8 * few)), Endpoint: endpoint, Protocol: []spec.Protocol{spec.TCP, spec.SCTP}[random.IntN(2)],
		First: first, Last: first + uint16(random.IntN(2)), TargetFirst: 80, TargetLast: 80, Address: addresses[random.IntN(len(addresses))],
	}
}

func port(t testing.TB, endpoint, text string, id uint32) spec.Port {
	t.Helper()
	p, err := spec.ParsePort(text)
	if err != nil {
		t.Fatal(err)
	}
	p.ID, p.Endpoint = id, endpoint
	return p
}

func keysOf(t testing.TB, tx *Tx, protocol spec.Protocol) []string {
	t.Helper()
	var keys []string
	for key, err := range tx.PortKeys(protocol) {
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, key.String())
	}
	return keys
}

func TestPorts(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir())
	high, low := port(t, "web", "10000-10009:80-89", 1), port(t, "web", "127.0.0.1:80:80", 2)
	udp, other := port(t, "web", "[::1]:53:53/udp", 3), port(t, "web-2", "[::]:80:80", 4)
	update(t, s, func(tx *Tx) error {
		return errors.Join(tx.PutPort(high), tx.PutPort(low), tx.PutPort(udp), tx.PutPort(other))
	})
	update(t, s, func(tx *Tx) error {
		all, err := tx.Ports()
		of, err2 := tx.PortsOf("web")
		one, err3 := tx.Port(PortKeyOf(high))
		same := cmpopts.EquateComparable(netip.Addr{})
		got := [][]spec.Port{all, of, {one}}
		want := [][]spec.Port{{low, other, high, udp}, {low, high, udp}, {high}}
		if diff := cmp.Diff(want, got, same); diff != "" {
			t.Error(diff)
		}
		wantKeys := []string{"tcp/00080-00080/127.0.0.1", "tcp/00080-00080/::", "tcp/10000-10009/*"}
		if got := keysOf(t, tx, spec.TCP); !slices.Equal(got, wantKeys) {
			t.Errorf("keys %q, want %q", got, wantKeys)
		}
		if got := keysOf(t, tx, spec.SCTP); got != nil {
			t.Errorf("keys %q of what nobody publishes", got)
		}
		return errors.Join(err, err2, err3, tx.DeletePort(PortKeyOf(low)))
	})
	update(t, s, func(tx *Tx) error {
		of, err := tx.PortsOf("web")
		if len(of) != 2 {
			t.Errorf("after deletion: %v", of)
		}
		for _, err := range []error{tx.DeletePort(PortKeyOf(low)), func() error { _, err := tx.Port(PortKeyOf(low)); return err }()} {
			if !errors.Is(err, ErrNotFound) || err.Error() != "no published port tcp/00080-00080/127.0.0.1: see 'ebpnet port ls'" {
				t.Errorf("got %v", err)
			}
		}
		id, err2 := tx.NextID(KindPort, 1, 9)
		if id != 2 { // the lowest that is free: none was given out yet
			t.Errorf("next id %d", id)
		}
		taken := tx.PutPort(port(t, "b", "443:443", 1))
		if !errors.Is(taken, ErrTaken) || !strings.Contains(taken.Error(), "port id 1") {
			t.Errorf("an id twice: %v", taken)
		}
		return errors.Join(err, err2)
	})
}

// TestOlderStoreIsMadeCurrent opens a store from before there were ports.
func TestOlderStoreIsMadeCurrent(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := open(t, dir)
	tunnel := []byte(`{"name":"b","id":1,"remote":"192.0.2.2","local":"192.0.2.1"}`)
	update(t, s, func(tx *Tx) error {
		return errors.Join(tx.PutEndpoint(endpoint(2)), tx.put(metaBucket, schemaKey, []byte("1")), tx.put(tunnelBucket, "b", tunnel),
			tx.tx.DeleteBucket([]byte(portBucket)), tx.tx.DeleteBucket([]byte(publisherBucket)))
	})
	s.Close()
	for _, open := range []func(context.Context, string) (*Store, error){OpenReadOnly, Open, OpenReadOnly} {
		s, err := open(context.Background(), dir)
		if err != nil {
			t.Fatal(err)
		}
		err = s.View(func(tx *Tx) error {
			ports, err := tx.Ports()
			of, err2 := tx.PortsOf("x")
			e, err3 := tx.Endpoint(endpoint(2).Name)
			b, err4 := tx.Tunnel("b")
			if e.Trunk || len(b.Networks) > 0 || b.Checksums || b.Sequence || b.Fragmentable || b.CopyDSCP || b.HopLimit() != spec.DefaultTTL {
				t.Errorf("%+v, %+v", e, b)
			}
			if len(ports)+len(of)+len(keysOf(t, tx, spec.TCP)) > 0 {
				t.Errorf("ports %v, %v", ports, of)
			}
			return errors.Join(err, err2, err3, err4)
		})
		if err := errors.Join(err, s.Close()); err != nil {
			t.Fatal(err)
		}
	}
	s = open(t, dir)
	update(t, s, func(tx *Tx) error { return tx.PutPort(port(t, "web", "80:80", 1)) })
	update(t, s, func(tx *Tx) error { return tx.tx.DeleteBucket([]byte(publisherBucket)) })
	s.Close()
	mustRefuse(t, dir, ErrDamaged)
}

// BenchmarkPortKeys is what looking for a conflict costs.
func BenchmarkPortKeys(b *testing.B) {
	for _, n := range []int{1000, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := open(b, b.TempDir())
			update(b, s, func(tx *Tx) error {
				for i := range n {
					if err := tx.PutPort(port(b, "web", fmt.Sprintf("%d:80", i+1), uint32(i+1))); err != nil {
						return err
					}
				}
				return nil
			})
			for b.Loop() {
				if err := s.View(func(tx *Tx) error { keysOf(b, tx, spec.TCP); return nil }); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
