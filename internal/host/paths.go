package host

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/internal/spec"
)

// maxPaths bounds the routes that are kept of a namespace, in which others may
// add as many as they like.
const maxPaths = 64

// Paths gives the routes of an endpoint's namespace, one a prefix: those of the
// main table. It gives none if all of them lead by the endpoint's interface. A
// namespace without a default route, and one with more than maxPaths prefixes or
// maxRoutesRead routes, is taken to have one by another interface. The error is ErrStrangeInterface if the
// endpoint's interface is not there.
func (h *Host) Paths(v Veth) (paths []spec.Path, err error) {
	device, err := h.find(VethName(v.ID))
	if err != nil {
		return nil, err
	}
	err = inside(device, v, func(inner netlink.Link) error {
		routes, err := readRoutes(unix.RT_TABLE_MAIN, maxRoutesRead, routesTimeout, unix.RTN_UNICAST)
		if errors.Is(err, errTooManyRoutes) {
			routes, err = nil, nil // as without a default route
		}
		paths = pathsOf(routes, inner.Attrs().Index, v.Addresses)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the routes of %s in namespace %s: %w", v.Alias, v.Netns.Path, err)
	}
	return paths, nil
}

// pathsOf puts the routes of a namespace into the terms of the endpoint with
// the addresses and the interface.
func pathsOf(routes []netlink.Route, ifindex int, addresses []netip.Prefix) []spec.Path {
	slices.SortStableFunc(routes, func(a, b netlink.Route) int { return cmp.Compare(a.Priority, b.Priority) })
	elsewhere := map[netip.Prefix]bool{}
	for _, r := range routes {
		to := destinationOf(r)
		if _, known := elsewhere[to]; known || to.Addr().IsLinkLocalUnicast() || to.Addr().IsMulticast() {
			continue
		}
		elsewhere[to] = len(r.MultiPath) == 0 && r.LinkIndex != ifindex ||
			slices.ContainsFunc(r.MultiPath, func(hop *netlink.NexthopInfo) bool { return hop.LinkIndex != ifindex })
	}
	if len(elsewhere) > maxPaths {
		clear(elsewhere)
	}
	for _, address := range addresses {
		all := netip.PrefixFrom(unspecified(address.Addr()), 0)
		if _, known := elsewhere[all]; !known {
			elsewhere[all] = true
		}
	}
	if !slices.Contains(slices.Collect(maps.Values(elsewhere)), true) {
		return nil
	}
	paths := make([]spec.Path, 0, len(elsewhere))
	for to, away := range elsewhere {
		paths = append(paths, spec.Path{Destination: to, Elsewhere: away})
	}
	slices.SortFunc(paths, func(a, b spec.Path) int {
		return cmp.Or(a.Destination.Addr().Compare(b.Destination.Addr()), cmp.Compare(a.Destination.Bits(), b.Destination.Bits()))
	})
	return paths
}

func destinationOf(r netlink.Route) netip.Prefix {
	if r.Dst == nil {
		if r.Family == unix.AF_INET {
			return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		}
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	address, _ := netip.AddrFromSlice(r.Dst.IP)
	if r.Family == unix.AF_INET {
		address = address.Unmap()
	}
	bits, _ := r.Dst.Mask.Size()
	return netip.PrefixFrom(address, bits)
}

func unspecified(family netip.Addr) netip.Addr {
	if family.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}
