// Package ipam chooses addresses for endpoints. It keeps nothing: who has
// which address, and which was given out last, its caller knows.
package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/ebpnet/ebpnet/internal/spec"
)

// ErrExhausted says that a subnet has no free address.
var ErrExhausted = errors.New("no free address")

// maxTries bounds the search where a subnet is too large to be searched. It
// is more than a host has endpoints, so that as many distinct addresses
// cannot all be taken.
const maxTries = 1 << 17

// Next gives the first free address of subnet, which is one of n's, after the
// address last given out (the zero Addr: none was), and goes on from the
// subnet's start at its end: an address that was freed is so not used again
// at once. taken tells whether an endpoint has the address. The error is
// ErrExhausted if all are taken.
func Next(n spec.Network, subnet netip.Prefix, after netip.Addr, taken func(netip.Addr) bool) (netip.Addr, error) {
	if !slices.Contains(n.Subnets, subnet) {
		return netip.Addr{}, fmt.Errorf("network %q has no subnet %s", n.Name, subnet)
	}
	last := spec.LastAddress(subnet)
	a := after
	for range min(size(subnet), maxTries) {
		if !subnet.Contains(a) || a == last {
			a = subnet.Addr()
		} else {
			a = a.Next()
		}
		if n.CheckAddress(a) == nil && !taken(a) {
			return a, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("%w in subnet %s of network %q: remove an endpoint or use a larger subnet",
		ErrExhausted, subnet, n.Name)
}

// size counts p's addresses, up to maxTries.
func size(p netip.Prefix) int {
	n := 1
	for bits := p.Addr().BitLen() - p.Bits(); bits > 0 && n < maxTries; bits-- {
		n *= 2
	}
	return n
}
