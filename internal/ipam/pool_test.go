package ipam

import (
	"errors"
	"net/netip"
	"testing"
)

func TestFreeSubnet(t *testing.T) {
	t.Parallel()
	pools := []Pool{
		{netip.MustParsePrefix("10.64.0.0/22"), 24},
		{netip.MustParsePrefix("172.30.0.0/16"), 16},
	}
	for name, test := range map[string]struct {
		used []string
		want string
	}{
		"nothing is used":               {nil, "10.64.0.0/24"},
		"others are used":               {[]string{"10.63.255.0/24", "10.65.0.0/16", "fd00::/8"}, "10.64.0.0/24"},
		"the first is used":             {[]string{"10.64.0.0/24"}, "10.64.1.0/24"},
		"a part of the first":           {[]string{"10.64.0.128/30"}, "10.64.1.0/24"},
		"more than the first":           {[]string{"10.64.0.0/23"}, "10.64.2.0/24"},
		"a hole":                        {[]string{"10.64.2.0/24", "10.64.0.0/24", "10.64.3.0/24"}, "10.64.1.0/24"},
		"the last is left":              {[]string{"10.64.0.0/23", "10.64.2.7/32"}, "10.64.3.0/24"},
		"the first pool is used up":     {[]string{"10.64.0.0/16"}, "172.30.0.0/16"},
		"the first pool is inside":      {[]string{"10.0.0.0/8"}, "172.30.0.0/16"},
		"everything is used":            {[]string{"10.0.0.0/8", "172.30.1.0/24"}, ""},
		"the end of the address family": {[]string{"10.0.0.0/8", "128.0.0.0/1", "0.0.0.0/1"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var used []netip.Prefix
			for _, s := range test.used {
				used = append(used, netip.MustParsePrefix(s))
			}
			got, err := FreeSubnet(pools, used)
			if test.want == "" {
				if !errors.Is(err, ErrExhausted) {
					t.Errorf("%s, %v; want ErrExhausted", got, err)
				}
				return
			}
			if err != nil || got.String() != test.want {
				t.Errorf("%s, %v; want %s", got, err, test.want)
			}
		})
	}
	last := []Pool{{netip.MustParsePrefix("255.255.255.0/24"), 24}}
	if got, err := FreeSubnet(last, []netip.Prefix{last[0].Prefix}); !errors.Is(err, ErrExhausted) {
		t.Errorf("behind the last address: %s, %v; want ErrExhausted", got, err)
	}
}

// A subnet that is chosen is one that a network may have.
func TestPools(t *testing.T) {
	t.Parallel()
	for name, pools := range map[string][]Pool{"4": Pools4(), "6": Pools6()} {
		p, err := FreeSubnet(pools, nil)
		if err != nil || p.Masked() != p || !p.Addr().IsPrivate() || p.Addr().Is4() != (name == "4") {
			t.Errorf("%s, %v", p, err)
		}
	}
	one, _ := FreeSubnet(Pools6(), nil)
	other, _ := FreeSubnet(Pools6(), nil)
	if one == other {
		t.Errorf("%s is chosen twice, want another at random", one)
	}
}
