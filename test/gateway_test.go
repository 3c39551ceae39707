package test

import (
	"net/netip"
	"strings"
	"testing"
)

func TestContainersAndTheirHostReachEachOther(t *testing.T) {
	h, _ := newOutside(t)
	createNet(t, h)
	a := h.NewContainer(t, "a", "net")
	serve(t, h.Netns, service)
	serve(t, a.Netns, service)
	redis(t, a.Netns, 6379)

	for _, gateway := range []netip.Addr{gateway4, gateway6} {
		ping(t, a.Netns, gateway)
		connects(t, a.Netns, "tcp", at(gateway, service))
		connects(t, a.Netns, "udp", at(gateway, service))
		if _, err := a.Dial(t, "tcp", at(gateway, service+1)); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Errorf("a port of the host without a server: %v, want it refused", err)
		}
	}
	// The host's services listen on its other addresses as well.
	for _, address := range []netip.Addr{h.IP4, h.IP6} {
		connects(t, a.Netns, "tcp", at(address, service))
	}
	for _, address := range a.Addresses() {
		ping(t, h.Netns, address)
		connects(t, h.Netns, "tcp", at(address, service))
		connects(t, h.Netns, "udp", at(address, service))
		redisPing(t, h.Netns, address, 6379)
		iperf(t, h.Netns, a.Netns, address)
		iperf(t, h.Netns, a.Netns, address, "--reverse")
	}
}

func TestHostProcessesAreSimplyTheHost(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	serve(t, u.Outside, service)
	serve(t, h.Netns, service)
	for _, pair := range []struct{ host, outside netip.Addr }{{h.IP4, u.IP4}, {h.IP6, u.IP6}} {
		ping(t, h.Netns, pair.outside)
		ping(t, u.Outside, pair.host)
		for _, network := range []string{"tcp", "udp"} {
			c := h.MustDialFrom(t, network, ":40000", at(pair.outside, service))
			if got, want := c.MustAsk(t), netip.AddrPortFrom(pair.host, 40000); got != want {
				t.Errorf("%s: the outside sees %s, want %s", network, got, want)
			}
			connects(t, u.Outside, network, at(pair.host, service))
		}
	}
}

func TestOutsideReachesNoContainer(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	a := h.NewContainer(t, "a", "net")
	serve(t, a.Netns, service)
	u.Outside.Run(t, "ip", "route", "add", subnet4, "via", h.IP4.String())
	u.Outside.Run(t, "ip", "route", "add", subnet6, "via", h.IP6.String())

	tryIn := func() {
		t.Helper()
		for _, address := range a.Addresses() {
			if _, err := u.Outside.Try("ping", "-n", "-c", "1", "-W", "0.4", address.String()); err == nil {
				t.Errorf("the outside reaches %s", address)
			}
			if _, err := u.Outside.Dial(t, "tcp", at(address, service)); err == nil {
				t.Errorf("the outside connects to %s", address)
			}
		}
	}
	tryIn()
	// A host that forwards for other reasons opens no way in either.
	h.SetSysctl(t, "ipv4/ip_forward", "1")
	h.SetSysctl(t, "ipv6/conf/all/forwarding", "1")
	h.ExpectDrops(t, "not_from_host", tryIn)
	for _, address := range a.Addresses() {
		ping(t, h.Netns, address)
	}
}
