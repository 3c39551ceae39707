package main

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
)

// broadcastAddr is the subnet's.
var broadcastAddr = netip.MustParseAddr("192.0.2.255")

// floodSizes are the numbers of tunnels to flood into.
func floodSizes() []int { return []int{1, 16, 64, 256} }

func toFlood() []topology {
	var all []topology
	for _, n := range floodSizes() {
		for _, t := range []struct {
			kind, about string
			build       func(l *lab, tunnels int) path
		}{
			{vxlan, "the kernel's VXLAN with as many remotes", buildFloodVXLAN},
			{ebpnet, "ebpnet with as many tunnels", buildFloodEbpnet},
		} {
			all = append(all, topology{
				name: fmt.Sprintf("%s-%s-%d", flood, t.kind, n), about: t.about, family: flood, kind: t.kind, tunnels: n,
				build: func(l *lab) path { return t.build(l, n) },
			})
		}
	}
	return all
}

func buildFloodEbpnet(l *lab, tunnels int) path {
	s := l.quietSides()
	l.tunnelled(s[0], s[1], subnet, gatewayAddr)
	l.fill(s[0], size{tunnels: tunnels})
	return l.floodPath(s, tunnels)
}

func buildFloodVXLAN(l *lab, tunnels int) path {
	s := l.quietSides()
	l.vxlan(s[0])
	var remotes strings.Builder
	for i := range tunnels {
		// All zeros: where everything goes whose place is not known.
		fmt.Fprintf(&remotes, "fdb append 00:00:00:00:00:00 dev vxlan dst %s\n", after(fillerHosts.Addr(), i))
	}
	l.runWith(remotes.String(), "bridge", "-n", s[0].host, "-batch", "-")
	return l.floodPath(s, tunnels)
}

// quietSides are without IPv6, which would multicast of itself.
func (l *lab) quietSides() sides {
	s := l.sides()
	s.each(func(here, _ side) {
		for _, ns := range []string{here.host, here.container} {
			l.in(ns, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
		}
	})
	return s
}

// floodPath leads from a container to the underlay beyond its host, where
// copies are counted and end.
func (l *lab) floodPath(s sides, tunnels int) path {
	near, far := s[0], s[1]
	l.address(far.host, underlayDevice, far.underlay)
	l.run("ip", "-n", near.host, "route", "add", fillerHosts.String(), "via", far.underlay.String())
	// Nothing but the datagrams is to be counted, and they are not to wait for
	// the way to be found: from here on there is no ARP.
	l.in(near.host, "ping", "-q", "-c", "1", "-w", "10", far.underlay.String())
	s.each(func(here, there side) {
		l.run("ip", "-n", here.host, "neighbor", "change", there.underlay.String(), "dev", underlayDevice, "nud", "permanent")
	})
	l.dropIngress(far.host, underlayDevice)
	return path{
		client: near.container, server: far.host, copies: tunnels,
		dial: netip.AddrPortFrom(broadcastAddr, serverPort),
	}
}

// countEvery is how often copies on the underlay are counted: often enough to
// tell when the first came, seldom enough not to be noticed.
const countEvery = 5 * time.Millisecond

// serveCopies counts what arrives at the underlay device, whoever it is for,
// until nothing more does. Nobody sends to its socket.
func serveCopies(int) (t tally, err error) {
	none, err := received(underlayDevice)
	var last time.Time
	for err == nil && (t.Total == 0 || time.Since(last) < idle) {
		time.Sleep(countEvery)
		var all uint64
		all, err = received(underlayDevice)
		now, count := time.Now(), all-none
		switch {
		case t.Total == 0 && count > 0:
			t.start, t.first, last = now, count, now
		case count > t.Total:
			t.Units, t.Elapsed, last = count-t.first, now.Sub(t.start), now
		}
		t.Total = count
	}
	return t, err
}

// received is how many packets a device of the calling thread's namespace has
// ever received.
func received(device string) (uint64, error) {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return 0, fmt.Errorf("count at %s: %w", device, err)
	}
	return link.Attrs().Statistics.RxPackets, nil
}

func driveBroadcasts(p peer) (tally, error) {
	socket, err := dialBroadcast(p.Dial)
	if err != nil {
		return tally{}, err
	}
	return sendDatagrams(socket, p.Duration)
}
