package host

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Uplink is a device of the host that leads outside.
type Uplink struct {
	Name       string
	Ifindex    int
	MTU        int
	MAC        [6]byte
	IPv4, IPv6 netip.Addr // the first global one of each family, if any
	Default    bool       // a default route leads there
}

// ErrUnfitUplink says that a device cannot be an uplink.
var ErrUnfitUplink = errors.New("cannot be an uplink")

// Uplink looks at a device: ErrNoDevice if there is none of the name,
// ErrUnfitUplink if it is ebpnet's own or carries no Ethernet.
func (h *Host) Uplink(name string) (Uplink, error) {
	if name == GatewayDevice || name == DatapathDevice || strings.HasPrefix(name, vethPrefix) {
		return Uplink{}, fmt.Errorf("%s %w: it is ebpnet's own", name, ErrUnfitUplink)
	}
	device, err := h.find(name)
	if err != nil {
		return Uplink{}, err
	}
	attrs := device.Attrs()
	if attrs.EncapType != "ether" {
		return Uplink{}, fmt.Errorf("%s %w: it is no Ethernet device but %s", name, ErrUnfitUplink, attrs.EncapType)
	}
	u := Uplink{Name: name, Ifindex: attrs.Index, MTU: attrs.MTU}
	copy(u.MAC[:], attrs.HardwareAddr)
	addresses, err := h.addresses(device)
	if err != nil {
		return Uplink{}, err
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
	defaults, err := h.defaultDevices()
	if err != nil {
		return Uplink{}, err
	}
	u.Default = len(defaults) > 0 && defaults[0] == u.Ifindex
	return u, nil
}

// DefaultUplinks names the Ethernet devices that default routes lead to.
func (h *Host) DefaultUplinks() ([]string, error) {
	defaults, err := h.defaultDevices()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, ifindex := range defaults {
		device, err := h.handle.LinkByIndex(ifindex)
		if err != nil {
			return nil, fmt.Errorf("find device %d: %w", ifindex, err)
		}
		if device.Attrs().EncapType == "ether" {
			names = append(names, device.Attrs().Name)
		}
	}
	return names, nil
}

// defaultDevices lists the devices that default routes lead to: IPv4 before
// IPv6, and the lower metric first.
func (h *Host) defaultDevices() ([]int, error) {
	routes, err := whole(func() ([]netlink.Route, error) { return h.handle.RouteList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	routes = slices.DeleteFunc(routes, func(r netlink.Route) bool {
		ones := 0
		if r.Dst != nil {
			ones, _ = r.Dst.Mask.Size()
		}
		return ones != 0 || r.Type != unix.RTN_UNICAST
	})
	slices.SortStableFunc(routes, func(a, b netlink.Route) int {
		return cmp.Or(cmp.Compare(a.Family, b.Family), cmp.Compare(a.Priority, b.Priority))
	})
	var found []int
	for _, r := range routes {
		hops := []int{r.LinkIndex}
		for _, hop := range r.MultiPath {
			hops = append(hops, hop.LinkIndex)
		}
		for _, ifindex := range hops {
			if ifindex != 0 && !slices.Contains(found, ifindex) {
				found = append(found, ifindex)
			}
		}
	}
	return found, nil
}

// Watch sends whenever a device, an address or a route of this namespace has
// changed, until ctx ends, or the kernel could not keep up with telling: then
// the channel is closed. Changes in quick succession may be told as one.
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
