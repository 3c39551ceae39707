package agent

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ebpnet/ebpnet/datapath"
	"github.com/ebpnet/ebpnet/internal/host"
	"github.com/ebpnet/ebpnet/internal/spec"
)

// zeroKey is a key as good as any.
var zeroKey = new(uint32)

func tunnelTo(remote string, networks ...string) spec.Tunnel {
	return spec.Tunnel{Remote: netip.MustParseAddr(remote), Networks: networks}
}

func TestMTU(t *testing.T) {
	t.Parallel()
	four, six := netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fd00:1::/64")
	keyed := spec.Network{Name: "keyed", Subnets: []netip.Prefix{four, six}, Key: zeroKey}
	plain := spec.Network{Name: "plain", Subnets: []netip.Prefix{four}}
	fixed := keyed
	fixed.MTU = 9000
	full := tunnelTo("2001:db8::2")
	full.Checksums, full.Sequence = true, true
	uplinks := func(sizes ...int) []host.Uplink {
		var list []host.Uplink
		for _, size := range sizes {
			list = append(list, host.Uplink{MTU: size})
		}
		return list
	}
	for name, c := range map[string]struct {
		network spec.Network
		tunnels []spec.Tunnel
		uplinks []host.Uplink
		want    int
	}{
		"nothing":                         {plain, nil, nil, 1500},
		"smallest uplink":                 {plain, nil, uplinks(9000, 1400, 1500), 1400},
		"large uplink":                    {plain, nil, uplinks(9000), 9000},
		"room for a tunnel":               {keyed, nil, uplinks(1500), 1458},
		"IPv4":                            {keyed, []spec.Tunnel{tunnelTo("192.0.2.2")}, uplinks(1500), 1458},
		"IPv6":                            {keyed, []spec.Tunnel{tunnelTo("192.0.2.2"), tunnelTo("2001:db8::2")}, uplinks(1500), 1438},
		"everything":                      {keyed, []spec.Tunnel{full, tunnelTo("192.0.2.2")}, uplinks(1500), 1430},
		"a tunnel of others":              {keyed, []spec.Tunnel{tunnelTo("2001:db8::2", "plain")}, uplinks(1500), 1458},
		"without a key":                   {plain, []spec.Tunnel{tunnelTo("192.0.2.2", "plain")}, uplinks(1500), 1462},
		"without a key, over IPv6":        {plain, []spec.Tunnel{tunnelTo("2001:db8::2", "plain"), tunnelTo("192.0.2.2")}, uplinks(1500), 1442},
		"as was said":                     {fixed, []spec.Tunnel{full}, uplinks(1500), 9000},
		"not less than IPv6 needs":        {keyed, []spec.Tunnel{full}, uplinks(1280), 1280},
		"IPv4 alone goes as low as it is": {plain, []spec.Tunnel{tunnelTo("192.0.2.2", "plain")}, uplinks(1280), 1242},
	} {
		if got := mtu(c.network, c.tunnels, c.uplinks); got != c.want {
			t.Errorf("%s: MTU %d, want %d", name, got, c.want)
		}
	}
}

func TestTunnelNetworksOf(t *testing.T) {
	t.Parallel()
	all, some := tunnelTo("192.0.2.2"), tunnelTo("192.0.2.3", "plain")
	all.ID, some.ID = 1, 2
	tunnels := []spec.Tunnel{all, some}
	for _, c := range []struct {
		network spec.Network
		want    []datapath.TunnelNetwork
	}{
		{spec.Network{Name: "keyed", ID: 5, Key: zeroKey}, []datapath.TunnelNetwork{{Tunnel: 1, Network: 5, Key: zeroKey}}},
		{spec.Network{Name: "plain", ID: 6}, []datapath.TunnelNetwork{{Tunnel: 2, Network: 6}}},
		{spec.Network{Name: "other", ID: 7}, nil},
	} {
		if diff := cmp.Diff(c.want, tunnelNetworksOf(tunnels, c.network)); diff != "" {
			t.Errorf("network %q: %s", c.network.Name, diff)
		}
	}
}
