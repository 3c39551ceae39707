package host

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// Uplink is a device of the host that leads outside.
type Uplink struct {
	Name       string
	Ifindex    int
	MTU        int
	IPv4, IPv6 netip.Addr // the first global one of each family, if any
	Default    bool       // a default route leads there
}

// Uplink looks at a device; ErrNoDevice if there is none of the name.
func (h *Host) Uplink(name string) (Uplink, error) {
	device, err := h.find(name)
	if err != nil {
		return Uplink{}, err
	}
	u := Uplink{Name: name, Ifindex: device.Attrs().Index, MTU: device.Attrs().MTU}
	addresses, err := h.handle.AddrList(device, netlink.FAMILY_ALL)
	if err != nil {
		return Uplink{}, fmt.Errorf("list the addresses of %s: %w", name, err)
	}
	for _, a := range addresses {
		p, ok := prefixOf(a.IPNet)
		switch {
		case !ok || a.Scope != int(netlink.SCOPE_UNIVERSE):
		case p.Addr().Is4() && !u.IPv4.IsValid():
			u.IPv4 = p.Addr()
		case p.Addr().Is6() && !u.IPv6.IsValid():
			u.IPv6 = p.Addr()
		}
	}
	defaults, err := h.defaultRoutes()
	if err != nil {
		return Uplink{}, err
	}
	u.Default = defaults[u.Ifindex]
	return u, nil
}

// DefaultUplinks names the devices that a default route leads to.
func (h *Host) DefaultUplinks() ([]string, error) {
	defaults, err := h.defaultRoutes()
	if err != nil {
		return nil, err
	}
	var names []string
	for ifindex := range defaults {
		device, err := h.handle.LinkByIndex(ifindex)
		if err != nil {
			return nil, fmt.Errorf("find device %d: %w", ifindex, err)
		}
		names = append(names, device.Attrs().Name)
	}
	return names, nil
}

func (h *Host) defaultRoutes() (map[int]bool, error) {
	routes, err := h.handle.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	found := map[int]bool{}
	for _, r := range routes {
		if r.Dst != nil {
			if ones, _ := r.Dst.Mask.Size(); ones != 0 {
				continue
			}
		}
		if r.LinkIndex != 0 {
			found[r.LinkIndex] = true
		}
	}
	return found, nil
}

// Watch sends whenever a device, an address or a route of this namespace has
// changed, until ctx ends. Changes in quick succession may be told as one.
func Watch(ctx context.Context) (<-chan struct{}, error) {
	var (
		changed   = make(chan struct{}, 1)
		links     = make(chan netlink.LinkUpdate)
		addresses = make(chan netlink.AddrUpdate)
		routes    = make(chan netlink.RouteUpdate)
	)
	if err := netlink.LinkSubscribe(links, ctx.Done()); err != nil {
		return nil, fmt.Errorf("watch devices: %w", err)
	}
	if err := netlink.AddrSubscribe(addresses, ctx.Done()); err != nil {
		return nil, fmt.Errorf("watch addresses: %w", err)
	}
	if err := netlink.RouteSubscribe(routes, ctx.Done()); err != nil {
		return nil, fmt.Errorf("watch routes: %w", err)
	}
	go func() {
		defer close(changed)
		for {
			var open bool
			select {
			case _, open = <-links:
			case _, open = <-addresses:
			case _, open = <-routes:
			}
			if !open || ctx.Err() != nil {
				return
			}
			select {
			case changed <- struct{}{}:
			default: // one is waiting to be seen already
			}
		}
	}()
	return changed, nil
}
