package host

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Bounds of what is read of a namespace's routes. Root in a container may add
// millions.
const (
	maxRoutesRead = 4096
	routesTimeout = 2 * time.Second
)

// errTooManyRoutes says that a table has more routes than are read, or
// that the kernel did not give them in time.
var errTooManyRoutes = errors.New("more routes than are read")

// readRoutes reads the routes of these types (RTN_UNICAST and the like) and of
// both families in a table of the thread's namespace, but no more than the
// limit. The kernel sends no other table: NETLINK_GET_STRICT_CHK, Linux 4.20.
// If there are more, the error is errTooManyRoutes and the first ones are given.
func readRoutes(table uint8, limit int, timeout time.Duration, types ...int) (routes []netlink.Route, err error) {
	deadline := time.Now().Add(timeout)
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		err := dumpRoutes(family, table, deadline, func(message []byte) error {
			if limit--; limit < 0 {
				return errTooManyRoutes
			}
			route, err := parseRoute(message)
			if err == nil && slices.Contains(types, route.Type) && route.Family == int(family) {
				routes = append(routes, route)
			}
			return err
		})
		if err != nil {
			return routes, err
		}
	}
	return routes, nil
}

// dumpRoutes calls f for each route of a family in a table, and ends with the
// first error. Routes that change meanwhile may be missing.
func dumpRoutes(family, table uint8, deadline time.Time, f func(message []byte) error) error {
	s, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer s.Close() // the kernel then ends the dump
	if err := unix.SetsockoptInt(s.GetFd(), unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1); err != nil {
		return fmt.Errorf("ask for routes of one table: %w", err)
	}
	request := nl.NewNetlinkRequest(unix.RTM_GETROUTE, unix.NLM_F_DUMP)
	request.AddData(&nl.RtMsg{RtMsg: unix.RtMsg{Family: family, Table: table}})
	if err := s.Send(request); err != nil {
		return err
	}
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return errTooManyRoutes
		}
		timeout := unix.NsecToTimeval(left.Nanoseconds())
		if err := s.SetReceiveTimeout(&timeout); err != nil {
			return err
		}
		messages, _, err := s.Receive()
		if errors.Is(err, unix.EAGAIN) {
			return errTooManyRoutes
		}
		if err != nil {
			return err
		}
		for _, m := range messages {
			switch m.Header.Type {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				return dumpError(m)
			case unix.RTM_NEWROUTE:
				if err := f(m.Data); err != nil {
					return err
				}
			}
		}
	}
}

// dumpError is the error that the last message of a dump tells. A family without
// the table has no routes.
func dumpError(m syscall.NetlinkMessage) error {
	const size = 4
	if len(m.Data) < size {
		return nil
	}
	errno := syscall.Errno(-int32(binary.NativeEndian.Uint32(m.Data)))
	if errno == 0 || errno == unix.ENOENT {
		return nil
	}
	return errno
}

// parseRoute reads what pathsOf needs of a message.
func parseRoute(message []byte) (netlink.Route, error) {
	if len(message) < unix.SizeofRtMsg {
		return netlink.Route{}, errShortRoute
	}
	header := nl.DeserializeRtMsg(message)
	route := netlink.Route{Family: int(header.Family), Type: int(header.Type)}
	attrs, err := nl.ParseRouteAttr(message[unix.SizeofRtMsg:])
	if err != nil {
		return route, err
	}
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.RTA_DST:
			route.Dst = &net.IPNet{IP: a.Value, Mask: net.CIDRMask(int(header.Dst_len), 8*len(a.Value))}
		case unix.RTA_OIF, unix.RTA_PRIORITY:
			if len(a.Value) < 4 {
				return route, errShortRoute
			}
			if value := int(binary.NativeEndian.Uint32(a.Value)); a.Attr.Type == unix.RTA_OIF {
				route.LinkIndex = value
			} else {
				route.Priority = value
			}
		case unix.RTA_MULTIPATH:
			if route.MultiPath, err = parseHops(a.Value); err != nil {
				return route, err
			}
		}
	}
	return route, nil
}

var errShortRoute = errors.New("the kernel's message about a route is cut short")

// parseHops reads the devices of a route with several next hops.
func parseHops(hops []byte) (all []*netlink.NexthopInfo, err error) {
	for len(hops) >= unix.SizeofRtNexthop {
		hop := nl.DeserializeRtNexthop(hops)
		length := (int(hop.RtNexthop.Len) + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1)
		if length < unix.SizeofRtNexthop {
			return nil, errShortRoute
		}
		all = append(all, &netlink.NexthopInfo{LinkIndex: int(hop.Ifindex)})
		hops = hops[min(length, len(hops)):]
	}
	return all, nil
}
