package host

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/internal/spec"
)

// Interface is an interface as the kernel has it.
type Interface struct {
	Name      string
	MAC       net.HardwareAddr
	MTU       int // in bytes
	Up        bool
	Addresses []netip.Prefix // with their subnets' lengths
	Routes    []spec.Route   // of the main table, without those that the kernel makes itself
}

// Look looks at an interface in the calling thread's namespace: ErrNoDevice if
// it is not there.
func Look(name string) (i Interface, err error) {
	h, err := Open()
	if err != nil {
		return i, err
	}
	defer h.Close()
	device, err := h.find(name)
	if err != nil {
		return i, err
	}
	attrs := device.Attrs()
	i = Interface{Name: name, MAC: attrs.HardwareAddr, MTU: attrs.MTU, Up: attrs.Flags&net.FlagUp != 0}
	addresses, err := h.addresses(device)
	if err != nil {
		return i, err
	}
	for _, a := range addresses {
		if p, ok := prefixOf(a.IPNet); ok {
			i.Addresses = append(i.Addresses, p)
		}
	}
	routes, err := whole(func() ([]netlink.Route, error) { return h.handle.RouteList(device, netlink.FAMILY_ALL) })
	if err != nil {
		return i, fmt.Errorf("list routes by %s: %w", name, err)
	}
	for _, r := range routes {
		if r.Type != unix.RTN_UNICAST || r.Protocol == unix.RTPROT_KERNEL || r.Protocol == unix.RTPROT_RA {
			continue
		}
		if p, ok := prefixOf(r.Dst); ok {
			gateway, _ := netip.AddrFromSlice(r.Gw) // none: on the network itself
			i.Routes = append(i.Routes, spec.Route{Destination: p, Gateway: gateway.Unmap()})
		}
	}
	return i, nil
}

// LookInside is Look in the namespace at path: ErrNoNamespace if there is none.
func LookInside(path, name string) (i Interface, err error) {
	ns, err := openNamespace(path)
	if err != nil {
		return i, err
	}
	defer ns.Close()
	err = inNamespace(ns, func() (err error) {
		i, err = Look(name)
		return err
	})
	if err != nil {
		err = fmt.Errorf("look at interface %s in namespace %s: %w", name, path, err)
	}
	return i, err
}
