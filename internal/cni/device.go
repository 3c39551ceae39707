package cni

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"syscall"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/internal/host"
	"github.com/ebpnet/ebpnet/internal/spec"
)

// device is an interface as the kernel has it.
type device struct {
	name      string
	mac       net.HardwareAddr
	mtu       int // in bytes
	up        bool
	addresses []netip.Prefix
	routes    []spec.Route // of the main table, without those that the kernel makes itself
}

// lookInside looks at an interface in the namespace at path, in a thread of its
// own, which ends there.
func lookInside(path, name string) (d device, err error) {
	if _, err := host.Namespace(path); err != nil {
		return d, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		var ns netns.NsHandle
		if ns, err = netns.GetFromPath(path); err != nil {
			return
		}
		defer ns.Close()
		if err = netns.Set(ns); err == nil {
			d, err = look(name)
		}
	}()
	<-done
	if err != nil {
		err = fmt.Errorf("look at interface %s in namespace %s: %w", name, path, err)
	}
	return d, err
}

// look looks at an interface in the calling thread's namespace.
func look(name string) (device, error) {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return device{}, fmt.Errorf("find interface %s: %w", name, err)
	}
	d := device{name: name, mac: i.HardwareAddr, mtu: i.MTU, up: i.Flags&net.FlagUp != 0}
	addresses, err := i.Addrs()
	if err != nil {
		return d, err
	}
	for _, a := range addresses {
		if p, ok := a.(*net.IPNet); ok {
			d.addresses = append(d.addresses, prefixOf(*p))
		}
	}
	d.routes, err = routesBy(i.Index)
	return d, err
}

// routesBy lists the routes by the interface with the index.
func routesBy(ifindex int) ([]spec.Route, error) {
	table, err := syscall.NetlinkRIB(unix.RTM_GETROUTE, unix.AF_UNSPEC)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	messages, err := syscall.ParseNetlinkMessage(table)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	var routes []spec.Route
	for _, m := range messages {
		if m.Header.Type != unix.RTM_NEWROUTE {
			continue
		}
		attributes, err := syscall.ParseNetlinkRouteAttr(&m)
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		if r, by, ok := routeIn(m.Data, attributes); ok && by == ifindex {
			routes = append(routes, r)
		}
	}
	return routes, nil
}

// routeIn reads a route of the main table that somebody has made, and the
// index of the interface that it is by: rtnetlink(7).
func routeIn(message []byte, attributes []syscall.NetlinkRouteAttr) (r spec.Route, by int, ok bool) {
	var header syscall.RtMsg
	if _, err := binary.Decode(message, binary.NativeEndian, &header); err != nil {
		return r, 0, false
	}
	if header.Table != unix.RT_TABLE_MAIN || header.Type != unix.RTN_UNICAST ||
		header.Protocol == unix.RTPROT_KERNEL || header.Protocol == unix.RTPROT_RA {
		return r, 0, false
	}
	destination := netip.IPv6Unspecified()
	if header.Family == unix.AF_INET {
		destination = netip.IPv4Unspecified()
	}
	for _, a := range attributes {
		switch a.Attr.Type {
		case unix.RTA_DST:
			destination = addressOf(a.Value)
		case unix.RTA_GATEWAY:
			r.Gateway = addressOf(a.Value)
		case unix.RTA_OIF:
			by = int(binary.NativeEndian.Uint32(a.Value))
		}
	}
	r.Destination = netip.PrefixFrom(destination, int(header.Dst_len))
	return r, by, true
}

func prefixOf(n net.IPNet) netip.Prefix {
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addressOf(n.IP), bits)
}
