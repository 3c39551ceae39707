package spec

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// mustBeInvalid checks that err is one line, ErrInvalid, and says want.
func mustBeInvalid(t *testing.T, what string, err error, want string) {
	t.Helper()
	if !errors.Is(err, ErrInvalid) || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), want) {
		t.Errorf("%s: got %v, want it to say %q", what, err, want)
	}
}

func TestNewNetwork(t *testing.T) {
	t.Parallel()
	key := uint32(42)
	prefixes := []netip.Prefix{netip.MustParsePrefix("10.88.0.0/16"), netip.MustParsePrefix("fd00:88::/64")}
	for name, test := range map[string]struct {
		gateway, key string
		mtu          int
		want         Network
	}{
		"defaults":     {"", "", 0, Network{Gateways: addresses("10.88.0.1", "fd00:88::1")}},
		"all said":     {"10.88.255.254", "42", 1400, Network{Gateways: addresses("10.88.255.254", "fd00:88::1"), Key: &key, MTU: 1400}},
		"IPv6 gateway": {"fd00:88::ffff", "", MaxMTU, Network{Gateways: addresses("10.88.0.1", "fd00:88::ffff"), MTU: MaxMTU}},
	} {
		test.want.Name, test.want.Subnets = "front", prefixes
		got, err := NewNetwork("front", []string{"10.88.0.0/16", "fd00:88::/64"}, test.gateway, test.key, test.mtu)
		if diff := cmp.Diff(test.want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); err != nil || diff != "" {
			t.Errorf("%s: %v %s", name, err, diff)
		}
	}
}

func TestInvalidNetworks(t *testing.T) {
	t.Parallel()
	four := []string{"10.88.0.0/16"}
	for name, test := range map[string]struct {
		name         string
		subnets      []string
		gateway, key string
		mtu          int
		want         string
	}{
		"name":                 {"a/b", four, "", "", 0, "a letter or digit first"},
		"no subnet":            {"n", nil, "", "", 0, "no subnet"},
		"two of a family":      {"n", []string{"10.0.0.0/24", "10.1.0.0/24"}, "", "", 0, "one a family"},
		"malformed subnet":     {"n", []string{"10.0.0.0"}, "", "", 0, "want ADDRESS/BITS"},
		"IPv4-mapped":          {"n", []string{"::ffff:10.0.0.0/120"}, "", "", 0, "want ADDRESS/BITS"},
		"host bits":            {"n", []string{"10.88.3.4/16"}, "", "", 0, "want 10.88.0.0/16"},
		"IPv4 too long":        {"n", []string{"10.88.0.0/31"}, "", "", 0, "want /8 to /30"},
		"IPv4 too short":       {"n", []string{"10.0.0.0/7"}, "", "", 0, "want /8 to /30"},
		"IPv6 too long":        {"n", []string{"fd00::/127"}, "", "", 0, "want /48 to /126"},
		"IPv6 too short":       {"n", []string{"fd00::/32"}, "", "", 0, "want /48 to /126"},
		"loopback":             {"n", []string{"127.1.0.0/16"}, "", "", 0, "loopback"},
		"multicast":            {"n", []string{"239.1.0.0/16"}, "", "", 0, "multicast"},
		"link-local":           {"n", []string{"169.254.7.0/24"}, "", "", 0, "link-local"},
		"unspecified":          {"n", []string{"0.0.0.0/8"}, "", "", 0, "this network"},
		"limited broadcast":    {"n", []string{"255.255.255.0/24"}, "", "", 0, "broadcast"},
		"IPv6 loopback":        {"n", []string{"::/64"}, "", "", 0, "loopback"},
		"IPv6 multicast":       {"n", []string{"ff02::/64"}, "", "", 0, "multicast"},
		"IPv6 link-local":      {"n", []string{"fe80::/64"}, "", "", 0, "link-local"},
		"malformed gateway":    {"n", four, "10.88", "", 0, "gateway"},
		"gateway outside":      {"n", four, "10.89.0.1", "", 0, "want an address of 10.88.0.0/16"},
		"gateway of network":   {"n", four, "10.88.0.0", "", 0, "network address"},
		"gateway of broadcast": {"n", four, "10.88.255.255", "", 0, "broadcast address"},
		"key":                  {"n", four, "", "4294967296", 0, "0 to 4294967295"},
		"small MTU":            {"n", four, "", "", 1279, "want 1280 to 65535"},
		"large MTU":            {"n", four, "", "", 65536, "want 1280 to 65535"},
	} {
		_, err := NewNetwork(test.name, test.subnets, test.gateway, test.key, test.mtu)
		mustBeInvalid(t, name, err, test.want)
	}
}

func TestCheckAddress(t *testing.T) {
	t.Parallel()
	n, err := NewNetwork("front", []string{"10.88.0.0/30", "fd00:88::/126"}, "", "", 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses("10.88.0.2", "fd00:88::2", "fd00:88::3") { // IPv6 has no broadcast
		if err := n.CheckAddress(a); err != nil {
			t.Error(err)
		}
	}
	for s, want := range map[string]string{
		"10.88.0.0":        "network address",
		"10.88.0.1":        "gateway address",
		"10.88.0.3":        "broadcast address",
		"10.88.0.4":        "want one in 10.88.0.0/30 or fd00:88::/126",
		"fd00:88::":        "network address",
		"fd00:88::1":       "gateway address",
		"fd00:88::4":       "outside",
		"::ffff:10.88.0.2": "outside",
	} {
		mustBeInvalid(t, s, n.CheckAddress(netip.MustParseAddr(s)), want)
	}
	mustBeInvalid(t, "no address", n.CheckAddress(netip.Addr{}), "outside")
}

func TestGatewayAndPrefix(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ subnets, gateway, address, wantGateway, wantPrefix string }{
		{"10.1.0.0/24 fd00:1::/64", "", "10.1.0.7", "10.1.0.1", "10.1.0.7/24"},
		{"10.1.0.0/24 fd00:1::/64", "fd00:1::f", "fd00:1::7", "fd00:1::f", "fd00:1::7/64"},
		{"fd00:1::/64 10.1.0.0/24", "", "10.1.0.7", "10.1.0.1", "10.1.0.7/24"},
		{"10.1.0.0/24", "10.1.0.9", "10.2.0.7", "10.1.0.9", "invalid Prefix"},
		{"10.1.0.0/24", "", "fd00:1::7", "invalid IP", "invalid Prefix"},
	} {
		n, err := NewNetwork("web", strings.Fields(test.subnets), test.gateway, "", 0)
		if err != nil {
			t.Fatal(err)
		}
		address := netip.MustParseAddr(test.address)
		if got := n.Gateway(address).String(); got != test.wantGateway {
			t.Errorf("%s on %s: gateway %s, want %s", address, test.subnets, got, test.wantGateway)
		}
		if got := n.Prefix(address).String(); got != test.wantPrefix {
			t.Errorf("%s on %s: prefix %s, want %s", address, test.subnets, got, test.wantPrefix)
		}
	}
}

func TestOverlaps(t *testing.T) {
	t.Parallel()
	network := func(subnets ...string) Network {
		n, err := NewNetwork("n", subnets, "", "", 0)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	a := network("10.88.0.0/16", "fd00:88::/64")
	for subnet, want := range map[string]bool{
		"10.88.4.0/24": true, "10.0.0.0/8": true, "fd00:88::/80": true, "fd00:88::/48": true,
		"10.89.0.0/16": false, "fd00:89::/64": false,
	} {
		got, overlaps := a.Overlaps(network(subnet))
		if overlaps != want || overlaps && got != netip.MustParsePrefix(subnet) {
			t.Errorf("%s: %v, %v; want %v", subnet, got, overlaps, want)
		}
	}
}

func TestParseAddress(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]string{"10.0.0.2": "10.0.0.2", "::ffff:10.0.0.2": "10.0.0.2", "FD00::0:2": "fd00::2"} {
		if got, err := ParseAddress(s); err != nil || got.String() != want {
			t.Errorf("%q: %v, %v; want %s", s, got, err, want)
		}
	}
	for s, want := range map[string]string{
		"": "want one like", "10.0.0": "want one like", "10.0.0.256": "want one like", "10.0.0.2/24": "want one like",
		"example": "want one like", "fe80::1%eth0": "want fe80::1",
	} {
		_, err := ParseAddress(s)
		mustBeInvalid(t, s, err, want)
	}
}

func TestParseKey(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]uint32{"0": 0, "7": 7, "4294967295": 4294967295} {
		if got, err := ParseKey(s); err != nil || got != want {
			t.Errorf("%q: %d, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "-1", "+1", "0x7", "4294967296", "seven", "1 "} {
		_, err := ParseKey(s)
		mustBeInvalid(t, s, err, "0 to 4294967295")
	}
}

func TestLastAddress(t *testing.T) {
	t.Parallel()
	for p, want := range map[string]string{
		"10.88.0.0/16": "10.88.255.255", "10.0.0.4/30": "10.0.0.7", "fd00::/125": "fd00::7", "fd00::/64": "fd00::ffff:ffff:ffff:ffff",
	} {
		if got := LastAddress(netip.MustParsePrefix(p)); got.String() != want {
			t.Errorf("%s: %v, want %s", p, got, want)
		}
	}
}

func TestCheckMTU(t *testing.T) {
	t.Parallel()
	for _, mtu := range []int{-1, 1, MinMTU - 1, MaxMTU + 1} {
		mustBeInvalid(t, "MTU", CheckMTU(mtu), "want 1280 to 65535")
	}
	for _, mtu := range []int{MinMTU, MaxMTU, 0} {
		if err := CheckMTU(mtu); err != nil {
			t.Errorf("MTU %d: %v", mtu, err)
		}
	}
}
