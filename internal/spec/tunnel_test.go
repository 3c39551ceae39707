package spec

import (
	"encoding/json"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// toPeer is what is said of a tunnel at least.
func toPeer(remote string) TunnelOptions {
	return TunnelOptions{Name: "peer", Remote: remote, TTL: DefaultTTL}
}

func mustBeTunnel(t *testing.T, o TunnelOptions) Tunnel {
	t.Helper()
	tunnel, err := NewTunnel(o)
	if err != nil {
		t.Fatal(err)
	}
	return tunnel
}

func TestNewTunnel(t *testing.T) {
	t.Parallel()
	all := toPeer("2001:db8::2")
	all.Local, all.Networks, all.TTL = "2001:db8::1", []string{"shop", "back"}, MaxTTL
	all.Checksums, all.Sequence, all.CopyDSCP = true, true, true
	fragmentable := toPeer("::ffff:192.0.2.2")
	fragmentable.Fragmentable, fragmentable.TTL = true, MinTTL
	for name, test := range map[string]struct {
		options TunnelOptions
		want    Tunnel
	}{
		"least": {toPeer("192.0.2.2"), Tunnel{Remote: netip.MustParseAddr("192.0.2.2"), TTL: 64}},
		"all": {all, Tunnel{
			Remote: netip.MustParseAddr("2001:db8::2"), Local: netip.MustParseAddr("2001:db8::1"), Networks: []string{"back", "shop"},
			Checksums: true, Sequence: true, CopyDSCP: true, TTL: 255,
		}},
		"IPv4 in IPv6 form": {fragmentable, Tunnel{Remote: netip.MustParseAddr("192.0.2.2"), Fragmentable: true, TTL: 1}},
	} {
		test.want.Name = "peer"
		got := mustBeTunnel(t, test.options)
		if diff := cmp.Diff(test.want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		text, err := json.Marshal(got)
		var again Tunnel
		if err == nil {
			err = json.Unmarshal(text, &again)
		}
		if diff := cmp.Diff(got, again, cmpopts.EquateComparable(netip.Addr{})); err != nil || diff != "" {
			t.Errorf("%s: %s: %v %s", name, text, err, diff)
		}
	}
	if !slices.Equal(all.Networks, []string{"shop", "back"}) {
		t.Error("what was said has been sorted")
	}
}

func TestInvalidTunnels(t *testing.T) {
	t.Parallel()
	for want, change := range map[string]func(*TunnelOptions){
		"letters":                       func(o *TunnelOptions) { o.Name = "a/b" },
		"want one like":                 func(o *TunnelOptions) { o.Remote = "192.0.2" },
		"remote 224.0.0.1":              func(o *TunnelOptions) { o.Remote = "224.0.0.1" },
		"remote 255.255.255.255":        func(o *TunnelOptions) { o.Remote = "255.255.255.255" },
		"remote 127.0.0.1":              func(o *TunnelOptions) { o.Remote = "127.0.0.1" },
		"remote 0.0.0.0":                func(o *TunnelOptions) { o.Remote = "0.0.0.0" },
		"remote ::":                     func(o *TunnelOptions) { o.Remote = "::" },
		"remote fe80::1":                func(o *TunnelOptions) { o.Remote = "fe80::1" },
		"zone":                          func(o *TunnelOptions) { o.Remote = "fe80::1%lo" },
		`address "x"`:                   func(o *TunnelOptions) { o.Local = "x" },
		"local 2001:db8::1":             func(o *TunnelOptions) { o.Local = "2001:db8::1" },
		"another family":                func(o *TunnelOptions) { o.Remote, o.Local = "2001:db8::2", "192.0.2.1" },
		"TTL 0":                         func(o *TunnelOptions) { o.TTL = 0 },
		"TTL 256: want 1 to 255":        func(o *TunnelOptions) { o.TTL = 256 },
		"TTL -1":                        func(o *TunnelOptions) { o.TTL = -1 },
		`network "shop" is given twice`: func(o *TunnelOptions) { o.Networks = []string{"shop", "back", "shop"} },
		"network name":                  func(o *TunnelOptions) { o.Networks = []string{""} },
		"no DF":                         func(o *TunnelOptions) { o.Remote, o.Fragmentable = "2001:db8::2", true },
	} {
		options := toPeer("192.0.2.2")
		change(&options)
		_, err := NewTunnel(options)
		mustBeInvalid(t, want, err, want)
	}
}

// What an older version has stored means what it meant.
func TestOlderTunnel(t *testing.T) {
	t.Parallel()
	var old Tunnel
	if err := json.Unmarshal([]byte(`{"name":"b","id":1,"remote":"192.0.2.2","local":"192.0.2.1"}`), &old); err != nil {
		t.Fatal(err)
	}
	key := uint32(0)
	if old.HopLimit() != DefaultTTL || !old.Carries(Network{Name: "n", Key: &key}) || old.Carries(Network{Name: "n"}) {
		t.Errorf("%+v", old)
	}
}

func TestCarriesAndOverhead(t *testing.T) {
	t.Parallel()
	zero, key := uint32(0), uint32(7)
	plain, keyed, other := Network{Name: "plain"}, Network{Name: "keyed", Key: &zero}, Network{Name: "other", Key: &key}
	all := mustBeTunnel(t, toPeer("192.0.2.2"))
	some := toPeer("2001:db8::2")
	some.Networks = []string{"plain", "other"}
	restricted := mustBeTunnel(t, some)
	for _, c := range []struct {
		tunnel   Tunnel
		network  Network
		carries  bool
		overhead int
	}{
		{all, plain, false, 38},
		{all, keyed, true, 42},
		{all, other, true, 42},
		{restricted, plain, true, 58},
		{restricted, keyed, false, 62},
		{restricted, other, true, 62},
	} {
		if got := c.tunnel.Carries(c.network); got != c.carries {
			t.Errorf("to %s, network %q: carried is %v", c.tunnel.Remote, c.network.Name, got)
		}
		if got := c.tunnel.Overhead(c.network); got != c.overhead {
			t.Errorf("to %s, network %q: %d bytes, want %d", c.tunnel.Remote, c.network.Name, got, c.overhead)
		}
	}
	all.Checksums = true
	if got := all.Overhead(keyed); got != 46 {
		t.Errorf("with checksums %d bytes", got)
	}
	all.Sequence = true
	if got := all.Overhead(plain); got != 46 {
		t.Errorf("with checksums and sequence numbers, without a key, %d bytes", got)
	}
	if got := all.Overhead(keyed); got != 50 {
		t.Errorf("with everything %d bytes", got)
	}
}
