package host

import (
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/internal/spec"
)

func TestPathsOfRoutes(t *testing.T) {
	const own, other = 7, 8
	by := func(ifindex int, to string) netlink.Route {
		r := netlink.Route{LinkIndex: ifindex, Family: unix.AF_INET6}
		_, r.Dst, _ = net.ParseCIDR(to)
		if r.Dst.IP.To4() != nil {
			r.Family = unix.AF_INET
		}
		return r
	}
	path := func(to string, elsewhere bool) spec.Path {
		return spec.Path{Destination: netip.MustParsePrefix(to), Elsewhere: elsewhere}
	}
	four := []netip.Prefix{netip.MustParsePrefix("10.1.0.2/24")}
	both := append(four, netip.MustParsePrefix("fd00:1::2/64"))
	later := by(other, "0.0.0.0/0")
	later.Priority = 100
	balanced := netlink.Route{Family: unix.AF_INET, MultiPath: []*netlink.NexthopInfo{{LinkIndex: own}, {LinkIndex: other}}}
	many := []netlink.Route{by(own, "0.0.0.0/0")}
	for i := range maxPaths {
		r := by(other, "10.2.0.0/32")
		r.Dst.IP[3] = byte(i)
		many = append(many, r)
	}
	for _, c := range []struct {
		name      string
		routes    []netlink.Route
		addresses []netip.Prefix
		want      []spec.Path
	}{
		{"one interface", []netlink.Route{by(own, "0.0.0.0/0"), by(own, "10.1.0.0/24"), by(own, "::/0"), by(own, "fd00:1::/64")}, both, nil},
		{"another one's link-local route", []netlink.Route{by(own, "::/0"), by(other, "fe80::/64"), by(own, "0.0.0.0/0")}, both, nil},
		{
			"the default route is here",
			[]netlink.Route{by(own, "0.0.0.0/0"), by(other, "10.2.0.0/24")},
			four,
			[]spec.Path{path("0.0.0.0/0", false), path("10.2.0.0/24", true)},
		},
		{
			"the default route is elsewhere",
			[]netlink.Route{{LinkIndex: other, Family: unix.AF_INET}, by(own, "10.1.0.0/24")},
			four,
			[]spec.Path{path("0.0.0.0/0", true), path("10.1.0.0/24", false)},
		},
		{
			"there is none",
			[]netlink.Route{by(own, "0.0.0.0/0"), by(own, "fd00:1::/64")},
			both,
			[]spec.Path{path("0.0.0.0/0", false), path("::/0", true), path("fd00:1::/64", false)},
		},
		{"the other default route comes later", []netlink.Route{later, by(own, "0.0.0.0/0")}, four, nil},
		{"over both", []netlink.Route{balanced}, four, []spec.Path{path("0.0.0.0/0", true)}},
		{"more than are kept", many, four, []spec.Path{path("0.0.0.0/0", true)}},
	} {
		if got := pathsOf(c.routes, own, c.addresses); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
