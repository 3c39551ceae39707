package store

import (
	"errors"
	"testing"

	"github.com/ebpnet/ebpnet/internal/spec"
)

func TestEnginesNamesAreUnderstood(t *testing.T) {
	s := open(t, t.TempDir())
	const id = "4f1c2a9b8d7e6655443322110099"
	update(t, s, func(tx *Tx) error {
		on := func(name, network string, container spec.Identity) spec.Endpoint {
			return spec.Endpoint{Name: name, Network: network, Container: container}
		}
		return errors.Join(
			tx.PutNetwork(spec.Network{Name: "n1", Users: []spec.Identity{{Engine: "docker", ID: "0123456789abcdef", Name: "web"}}}),
			tx.PutNetwork(spec.Network{Name: "n2"}),
			tx.PutEndpoint(on("e1", "n1", spec.Identity{Engine: "docker", ID: id, Name: "redis1"})),
			tx.PutEndpoint(on("e2", "n1", spec.Identity{Engine: "docker", ID: "77", Name: "both"})),
			tx.PutEndpoint(on("e3", "n2", spec.Identity{Engine: "docker", ID: "77", Name: "both"})),
			tx.PutEndpoint(on("plain", "n2", spec.Identity{})),
		)
	})
	err := s.View(func(tx *Tx) error {
		for called, want := range map[string]string{
			"e1": "e1", "redis1": "e1", id: "e1", id[:12]: "e1", // by name and id
			id[:11]: id[:11], "nobody": "nobody", "": "", // nothing is called so
			"e2": "e2", "plain": "plain",
		} {
			if got, err := tx.EndpointCalled(called); err != nil || got != want {
				t.Errorf("endpoint called %q is %q (%v), want %q", called, got, err, want)
			}
		}
		if _, err := tx.EndpointCalled("both"); !errors.Is(err, ErrAmbiguous) {
			t.Errorf("the container with two endpoints: %v, want ErrAmbiguous", err)
		}
		for called, want := range map[string]string{"n1": "n1", "web": "n1", "0123456789ab": "n1", "x": "x"} {
			if got, err := tx.NetworkCalled(called); err != nil || got != want {
				t.Errorf("network called %q is %q (%v), want %q", called, got, err, want)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
