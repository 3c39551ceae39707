package host

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// narrowest is the length of the shortest prefix that is taken for a network's;
// a route to more is a default route, or a part of one, as VPNs make them.
const narrowest = 5

// Subnets lists the subnets that the host's addresses lie in and its routes
// lead to, but for the default routes: where a new network must not be.
func (h *Host) Subnets() ([]netip.Prefix, error) {
	addresses, err := h.addresses(nil)
	if err != nil {
		return nil, err
	}
	var found []netip.Prefix
	for _, a := range addresses {
		if p, ok := prefixOf(a.IPNet); ok {
			found = append(found, p.Masked())
		}
	}
	routes, err := whole(func() ([]netlink.Route, error) { return h.handle.RouteList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		if p, ok := prefixOf(r.Dst); ok && p.Bits() >= narrowest {
			found = append(found, p.Masked())
		}
	}
	return found, nil
}
