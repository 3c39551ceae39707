package ipam

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/ebpnet/ebpnet/internal/spec"
)

func network(t *testing.T, subnet, gateway string) (spec.Network, netip.Prefix) {
	t.Helper()
	n, err := spec.NewNetwork("front", []string{subnet}, gateway, "", 0)
	if err != nil {
		t.Fatal(err)
	}
	return n, n.Subnets[0]
}

func TestNext(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		subnet, gateway, after string
		taken                  string
		want                   string // empty: exhausted
	}{
		"from the start":            {"10.0.0.0/24", "", "", "", "10.0.0.2"},
		"after the last":            {"10.0.0.0/24", "", "10.0.0.7", "", "10.0.0.8"},
		"a freed one is not next":   {"10.0.0.0/24", "", "10.0.0.3", "10.0.0.3", "10.0.0.4"},
		"over taken ones":           {"10.0.0.0/24", "", "10.0.0.2", "10.0.0.3 10.0.0.4", "10.0.0.5"},
		"over the gateway":          {"10.0.0.0/24", "10.0.0.3", "10.0.0.2", "", "10.0.0.4"},
		"round at the broadcast":    {"10.0.0.0/24", "", "10.0.0.254", "10.0.0.2", "10.0.0.3"},
		"after one from elsewhere":  {"10.0.0.0/24", "", "10.0.1.7", "", "10.0.0.2"},
		"the last given is free":    {"10.0.0.0/30", "", "10.0.0.2", "", "10.0.0.2"},
		"all taken":                 {"10.0.0.0/30", "", "", "10.0.0.2", ""},
		"IPv6":                      {"fd00::/64", "", "", "fd00::2", "fd00::3"},
		"IPv6 round":                {"fd00::/64", "", "fd00::ffff:ffff:ffff:fffe", "fd00::ffff:ffff:ffff:ffff", "fd00::2"},
		"IPv6 has no broadcast":     {"fd00::/126", "", "fd00::2", "", "fd00::3"},
		"IPv6 all taken":            {"fd00::/126", "", "fd00::3", "fd00::2 fd00::3", ""},
		"the end of all addresses":  {"fdff:ffff:ffff:ffff:ffff:ffff:ffff:fffc/126", "", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:fffe"},
		"the gateway is the last":   {"10.0.0.0/29", "10.0.0.6", "10.0.0.5", "", "10.0.0.1"},
		"a full subnet but the end": {"10.0.0.0/29", "", "10.0.0.2", "10.0.0.2 10.0.0.3 10.0.0.4 10.0.0.5", "10.0.0.6"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n, subnet := network(t, test.subnet, test.gateway)
			var after netip.Addr
			if test.after != "" {
				after = netip.MustParseAddr(test.after)
			}
			taken := map[string]bool{}
			for _, s := range strings.Fields(test.taken) {
				taken[s] = true
			}
			got, err := Next(n, subnet, after, func(a netip.Addr) bool { return taken[a.String()] })
			if test.want == "" {
				if !errors.Is(err, ErrExhausted) || !strings.Contains(err.Error(), test.subnet) || !strings.Contains(err.Error(), `"front"`) {
					t.Errorf("got %v, %v", got, err)
				}
				return
			}
			if err != nil || got.String() != test.want {
				t.Errorf("got %v, %v; want %s", got, err, test.want)
			}
		})
	}
}

func TestEachAddressOnce(t *testing.T) {
	t.Parallel()
	n, subnet := network(t, "10.0.0.0/22", "10.0.1.0")
	const hosts = 1<<10 - 3 // without network, broadcast and gateway
	taken := map[netip.Addr]bool{}
	tries := 0
	var after netip.Addr
	for range hosts {
		a, err := Next(n, subnet, after, func(a netip.Addr) bool { tries++; return taken[a] })
		if err != nil || n.CheckAddress(a) != nil {
			t.Fatalf("%v, %v", a, err)
		}
		taken[a], after = true, a
	}
	if len(taken) != hosts || tries != hosts {
		t.Errorf("%d addresses in %d tries, want %d", len(taken), tries, hosts)
	}
	if a, err := Next(n, subnet, after, func(a netip.Addr) bool { return taken[a] }); !errors.Is(err, ErrExhausted) {
		t.Errorf("one more: %v, %v", a, err)
	}
}

func TestHugeSubnetEnds(t *testing.T) {
	t.Parallel()
	n, subnet := network(t, "fd00::/64", "")
	tries := 0
	_, err := Next(n, subnet, netip.Addr{}, func(netip.Addr) bool { tries++; return true })
	if !errors.Is(err, ErrExhausted) || tries > maxTries {
		t.Errorf("after %d tries: %v", tries, err)
	}
}

func TestForeignSubnet(t *testing.T) {
	t.Parallel()
	n, _ := network(t, "10.0.0.0/24", "")
	_, err := Next(n, netip.MustParsePrefix("10.1.0.0/24"), netip.Addr{}, func(netip.Addr) bool { return false })
	if err == nil || errors.Is(err, ErrExhausted) {
		t.Errorf("got %v", err)
	}
}
