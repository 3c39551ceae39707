package spec

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// sameAddresses compares what netip keeps to itself.
var sameAddresses = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

func TestParsePort(t *testing.T) {
	t.Parallel()
	four, loopback := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("::1")
	for s, want := range map[string]struct {
		port Port
		text string
	}{
		"80":                            {Port{TargetFirst: 80, TargetLast: 80, Protocol: TCP}, "80/tcp"},
		":80":                           {Port{TargetFirst: 80, TargetLast: 80, Protocol: TCP}, "80/tcp"},
		"80-82/udp":                     {Port{TargetFirst: 80, TargetLast: 82, Protocol: UDP}, "80-82/udp"},
		"8080:80":                       {Port{First: 8080, Last: 8080, TargetFirst: 80, TargetLast: 80, Protocol: TCP}, "8080:80/tcp"},
		"1-65535:1-65535/sctp":          {Port{First: 1, Last: 65535, TargetFirst: 1, TargetLast: 65535, Protocol: SCTP}, "1-65535:1-65535/sctp"},
		"8000-8001:80-81/tcp":           {Port{First: 8000, Last: 8001, TargetFirst: 80, TargetLast: 81, Protocol: TCP}, "8000-8001:80-81/tcp"},
		"8080-8080:80":                  {Port{First: 8080, Last: 8080, TargetFirst: 80, TargetLast: 80, Protocol: TCP}, "8080:80/tcp"},
		"192.0.2.1:8080:80":             {Port{Address: four, First: 8080, Last: 8080, TargetFirst: 80, TargetLast: 80, Protocol: TCP}, "192.0.2.1:8080:80/tcp"},
		"192.0.2.1::80/udp":             {Port{Address: four, TargetFirst: 80, TargetLast: 80, Protocol: UDP}, "192.0.2.1::80/udp"},
		"[::1]:8080:80":                 {Port{Address: loopback, First: 8080, Last: 8080, TargetFirst: 80, TargetLast: 80, Protocol: TCP}, "[::1]:8080:80/tcp"},
		"[0:0::1]::80":                  {Port{Address: loopback, TargetFirst: 80, TargetLast: 80, Protocol: TCP}, "[::1]::80/tcp"},
		"0.0.0.0:8080:80":               {Port{Address: netip.IPv4Unspecified(), First: 8080, Last: 8080, TargetFirst: 80, TargetLast: 80, Protocol: TCP}, "0.0.0.0:8080:80/tcp"},
		"[::]:8080:80":                  {Port{Address: netip.IPv6Unspecified(), First: 8080, Last: 8080, TargetFirst: 80, TargetLast: 80, Protocol: TCP}, "[::]:8080:80/tcp"},
		"127.0.0.1:8000-8001:80-81/udp": {Port{Address: netip.MustParseAddr("127.0.0.1"), First: 8000, Last: 8001, TargetFirst: 80, TargetLast: 81, Protocol: UDP}, "127.0.0.1:8000-8001:80-81/udp"},
	} {
		got, err := ParsePort(s)
		if diff := cmp.Diff(want.port, got, sameAddresses); err != nil || diff != "" {
			t.Errorf("%q: %v %s", s, err, diff)
		}
		if got.String() != want.text || got.Count() != int(want.port.TargetLast-want.port.TargetFirst)+1 {
			t.Errorf("%q: %s of %d ports, want %s", s, got, got.Count(), want.text)
		}
	}
	for s, want := range map[string]string{
		"": "1 to 65535", ":": "1 to 65535", "0": "1 to 65535", "0:80": "1 to 65535", "65536:80": "1 to 65535", "80:": "1 to 65535",
		"80:0": "1 to 65535", "+1:80": "1 to 65535", "http:80": "1 to 65535", "81-80:1-2": "ends before", "1-2:81-80": "ends before",
		"8000-8002:80": "not as many ports", "8000:80-81": "not as many ports", "8000-8001:80-82": "not as many ports",
		"80/icmp": "none of tcp, udp and sctp", "80/": "none of tcp, udp and sctp", "80/TCP": "none of tcp, udp and sctp", "80/tcp/udp": "none of",
		"::80": "HOSTIP is empty", ":8080:80": "HOSTIP is empty", "::1:8080:80": "in brackets", "fd00::1:8080:80": "in brackets",
		"192.0.2.1:80": ":PORT to have one chosen", "localhost:8080:80": "no IP address", "192.0.2:1:80": "no IP address", "192.0.2.256:1:80": "no IP address",
		"[::1]": "not followed", "[::1]80": "not followed", "[::1]:80": "not followed", "[::1]:1:80:2": "not followed", "[::1:80": "not closed",
		"[192.0.2.1]:1:80": "no IPv6 address", "[]:1:80": "no IPv6 address", "[::g]:1:80": "no IP address", "[::ffff:192.0.2.1]:1:80": "to be written 192.0.2.1",
		"[fe80::1%lo]:1:80": "zone", "[::%lo]:1:80": "zone", "[fe80::1]:1:80": "link-local", "224.0.0.1:1:80": "multicast", "[ff02::1]:1:80": "multicast",
		"255.255.255.255:1:80": "broadcast", "a\n:80": `a\n`, "[::1%\n]:1:80": "zone",
	} {
		_, err := ParsePort(s)
		mustBeInvalid(t, s, err, want)
	}
}

func FuzzParsePort(f *testing.F) {
	for _, s := range []string{"80", "8080:80/udp", "1-2:3-4/sctp", "127.0.0.1:8080:80", "[::1]::80", "::1:80:80", "[::", "0.0.0.0:1:1/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePort(s)
		if err != nil {
			if !errors.Is(err, ErrInvalid) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%q: %v", s, err)
			}
			return
		}
		again, err := ParsePort(p.String())
		if diff := cmp.Diff(p, again, sameAddresses); err != nil || diff != "" {
			t.Errorf("%q is %s, which is %v %s", s, p, err, diff)
		}
		if p.First != 0 && int(p.Last)-int(p.First)+1 != p.Count() || p.TargetFirst == 0 || p.TargetFirst > p.TargetLast {
			t.Errorf("%q: %+v", s, p)
		}
	})
}

func TestMatches(t *testing.T) {
	t.Parallel()
	p, err := ParsePort("127.0.0.1:8080:80")
	if err != nil {
		t.Fatal(err)
	}
	type answers struct{ matches, fulfills bool }
	for s, want := range map[string]answers{
		"127.0.0.1:8080:80/tcp": {true, true}, "127.0.0.1::80": {true, true},
		"8080:80": {true, false}, "80": {true, false}, ":80": {true, false},
		"127.0.0.1:8081:80": {}, "127.0.0.1:8080:81": {}, "127.0.0.1:8080:80/udp": {}, "8081:80": {}, "80/udp": {},
		"0.0.0.0:8080:80": {}, "[::1]:8080:80": {}, "127.0.0.1:8080-8081:80-81": {},
	} {
		o, err := ParsePort(s)
		if got := (answers{p.Matches(o), p.Fulfills(o)}); err != nil || got != want {
			t.Errorf("%s: %+v, want %+v (%v)", s, got, want, err)
		}
	}
}

func TestAddressesOverlap(t *testing.T) {
	t.Parallel()
	none, any4, any6 := netip.Addr{}, netip.IPv4Unspecified(), netip.IPv6Unspecified()
	four, other4, six := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")
	for _, test := range []struct {
		a, b netip.Addr
		want bool
	}{
		{none, none, true},
		{none, any4, true},
		{none, six, true},
		{any4, any4, true},
		{any4, four, true},
		{any6, six, true},
		{four, four, true},
		{any4, any6, false},
		{any4, six, false},
		{any6, four, false},
		{four, other4, false},
		{four, six, false},
	} {
		if AddressesOverlap(test.a, test.b) != test.want || AddressesOverlap(test.b, test.a) != test.want {
			t.Errorf("%v and %v: want %v", test.a, test.b, test.want)
		}
	}
}

func TestRestrict(t *testing.T) {
	t.Parallel()
	var p Port
	if err := p.Restrict([]string{"192.0.2.0/24", "198.51.100.7", "2001:db8::/32", "::1", "0.0.0.0/0", "192.0.2.0/24"}); err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(p.AllowFrom), "[192.0.2.0/24 198.51.100.7/32 2001:db8::/32 ::1/128 0.0.0.0/0]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	for s, want := range map[string]string{
		"": "want ADDRESS", "example": "want ADDRESS", "192.0.2.0/33": "want ADDRESS", "192.0.2/24": "want ADDRESS",
		"fe80::1%eth0": "want ADDRESS", "fe80::%eth0/64": "want ADDRESS", "::ffff:192.0.2.1": "want ADDRESS", "::ffff:192.0.2.0/120": "want ADDRESS",
		"192.0.2.1/24": "want 192.0.2.0/24", "2001:db8::1/32": "want 2001:db8::/32",
	} {
		mustBeInvalid(t, s, p.Restrict([]string{s}), want)
	}
	if len(p.AllowFrom) != 5 {
		t.Errorf("a refused source changes %v", p.AllowFrom)
	}
	p.Address = netip.MustParseAddr("127.0.0.1")
	mustBeInvalid(t, "the other family", p.Restrict([]string{"::/0"}), "other family")

	p = Port{}
	var many []string
	for i := range MaxSources + 1 {
		many = append(many, netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}).String())
	}
	if err := p.Restrict(many[:MaxSources]); err != nil {
		t.Error(err)
	}
	mustBeInvalid(t, "many", p.Restrict(many), "at most 256")
}

func TestPortJSONAndBack(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"80", "[::1]:8080-8081:80-81/sctp", "0.0.0.0:53:53/udp"} {
		want, err := ParsePort(s)
		if err != nil {
			t.Fatal(err)
		}
		want.ID, want.Endpoint = 7, "web"
		text, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		var got Port
		if err := json.Unmarshal(text, &got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, sameAddresses); diff != "" {
			t.Error(diff)
		}
		if !strings.Contains(string(text), fmt.Sprintf(`"protocol":%q`, want.Protocol)) {
			t.Errorf("%s", text)
		}
	}
	if err := json.Unmarshal([]byte(`{"protocol":"icmp"}`), new(Port)); err == nil {
		t.Error("another protocol was read")
	}
}

func TestFiltering(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]Filtering{"address-and-port-dependent": AddressAndPortDependent, "endpoint-independent": EndpointIndependent} {
		if got, err := ParseFiltering(s); err != nil || got != want || got.String() != s {
			t.Errorf("%q: %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "address-dependent", "Endpoint-Independent"} {
		_, err := ParseFiltering(s)
		mustBeInvalid(t, s, err, "want endpoint-independent or address-and-port-dependent")
	}
	var old Network // as kept before there was a choice
	if err := json.Unmarshal([]byte(`{"name":"front"}`), &old); err != nil || old.Filtering != AddressAndPortDependent {
		t.Errorf("%v, %v", old.Filtering, err)
	}
	text, err := json.Marshal(Network{Filtering: EndpointIndependent})
	if err != nil || !strings.Contains(string(text), `"filtering":"endpoint-independent"`) {
		t.Errorf("%s, %v", text, err)
	}
}
