package store

import (
	"errors"
	"fmt"
	"strings"

	"github.com/ebpnet/ebpnet/internal/spec"
)

// ErrAmbiguous says that a name fits several nouns.
var ErrAmbiguous = errors.New("names several")

// EndpointCalled gives the name of the endpoint that people call s: its own, or
// the name or id of the container that an engine made it for. What nothing is
// called is given as it is.
func (tx *Tx) EndpointCalled(s string) (string, error) {
	if tx.get(endpointBucket, s) != nil {
		return s, nil
	}
	endpoints, err := tx.Endpoints()
	if err != nil {
		return s, err
	}
	var fit []string
	for _, e := range endpoints {
		if calls(e.Container, s) {
			fit = append(fit, e.Name)
		}
	}
	return only("endpoint", s, fit)
}

// NetworkCalled gives the name of the network that people call s: its own, or
// what an engine calls it.
func (tx *Tx) NetworkCalled(s string) (string, error) {
	if tx.get(networkBucket, s) != nil {
		return s, nil
	}
	networks, err := tx.Networks()
	if err != nil {
		return s, err
	}
	var fit []string
	for _, n := range networks {
		for _, user := range n.Users {
			if calls(user, s) {
				fit = append(fit, n.Name)
			}
		}
	}
	return only("network", s, fit)
}

// calls tells whether people call a noun s: by its name, or by how its id
// begins, if that is as much as engines show.
func calls(i spec.Identity, s string) bool {
	return s != "" && (i.Name == s || len(s) >= spec.ShortID && strings.HasPrefix(i.ID, s))
}

func only(noun, s string, fit []string) (string, error) {
	switch len(fit) {
	case 0:
		return s, nil
	case 1:
		return fit[0], nil
	}
	return s, fmt.Errorf("%s %q %w: say which one, %s", noun, s, ErrAmbiguous, strings.Join(fit, " or "))
}
