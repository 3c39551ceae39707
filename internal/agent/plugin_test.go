package agent

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ebpnet/ebpnet/internal/spec"
)

// Each port is published once a family, by the network that comes first.
func TestLacking(t *testing.T) {
	t.Parallel()
	ip4, ip6 := netip.MustParseAddr("10.97.0.2"), netip.MustParseAddr("fd00:97::2")
	only4, only6, both := []netip.Addr{ip4}, []netip.Addr{ip6}, []netip.Addr{ip4, ip6}
	type publication struct {
		port string
		to   []netip.Addr
	}
	for name, test := range map[string]struct {
		wanted    string
		addresses []netip.Addr
		there     []publication
		want      []string
	}{
		"the first network":     {"80:80/tcp", both, nil, []string{"80:80/tcp"}},
		"the first, of IPv4":    {"80:80/tcp", only4, nil, []string{"0.0.0.0:80:80/tcp"}},
		"the first, of IPv6":    {"80:80/tcp", only6, nil, []string{"[::]:80:80/tcp"}},
		"an internal one":       {"80:80/tcp", nil, nil, nil},
		"the second":            {"80:80/tcp", both, []publication{{"80:80/tcp", both}}, nil},
		"the first has no IPv6": {"80:80/tcp", both, []publication{{"80:80/tcp", only4}}, []string{"[::]:80:80/tcp"}},
		"the first has no IPv4": {"80:80/tcp", both, []publication{{"80:80/tcp", only6}}, []string{"0.0.0.0:80:80/tcp"}},
		"one family each":       {"80:80/tcp", only6, []publication{{"0.0.0.0:80:80/tcp", only4}}, []string{"[::]:80:80/tcp"}},
		"both already":          {"80:80/tcp", both, []publication{{"80:80/tcp", only4}, {"[::]:80:80/tcp", both}}, nil},
		"a range":               {"80-82:80-82/tcp", both, []publication{{"80-82:80-82/tcp", only4}}, []string{"[::]:80-82:80-82/tcp"}},
		"another protocol":      {"80:80/udp", both, []publication{{"80:80/tcp", both}}, []string{"80:80/udp"}},
		"another port":          {"81:80/tcp", both, []publication{{"80:80/tcp", both}}, []string{"81:80/tcp"}},
		"another target":        {"80:81/tcp", both, []publication{{"80:80/tcp", both}}, []string{"80:81/tcp"}},
		"a host address":        {"127.0.0.1:80:80/tcp", both, []publication{{"127.0.0.1:80:80/tcp", only4}}, nil},
		"another host address":  {"127.0.0.1:80:80/tcp", both, []publication{{"192.0.2.1:80:80/tcp", only4}}, []string{"127.0.0.1:80:80/tcp"}},
		"of the other family":   {"[::1]:80:80/tcp", only4, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var there []spec.Port
			for _, p := range test.there {
				there = append(there, byFamily(parsePort(t, p.port), p.to)...)
			}
			wanted := parsePort(t, test.wanted)
			var got []string
			for _, p := range lacking(wanted, byFamily(wanted, test.addresses), there) {
				got = append(got, p.String())
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func parsePort(t *testing.T, s string) spec.Port {
	t.Helper()
	p, err := spec.ParsePort(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestOneLine(t *testing.T) {
	t.Parallel()
	if got := OneLine(errors.Join(errors.New("this"), errors.New("that"))); got != "this; that" {
		t.Errorf("%q", got)
	}
}
