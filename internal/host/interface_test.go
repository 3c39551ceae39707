package host

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/testutil"
)

func TestLook(t *testing.T) {
	t.Parallel()
	host, container := testutil.NewNetns(t, "host"), testutil.NewNetns(t, "container")
	v := Veth{
		ID: 1, Netns: spec.Netns{Path: container.Path()}, Ifname: "eth0", MAC: [6]byte{2, 0, 0, 0, 0, 2}, MTU: 1400,
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.1.0.2/24"), netip.MustParsePrefix("fd00:1::2/64")},
		Gateways:  []netip.Addr{netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("fd00:1::1")},
		Routes: []spec.Route{
			{Destination: netip.MustParsePrefix("10.2.0.0/16"), Gateway: netip.MustParseAddr("10.1.0.9")},
			{Destination: netip.MustParsePrefix("10.3.0.0/16")},
		},
	}
	expect := func(up bool) {
		t.Helper()
		outside, err := Look("ebp-1")
		if err != nil || outside.Up != up || outside.MTU != hostMTU || len(outside.Addresses)+len(outside.Routes) > 0 {
			t.Errorf("outside: %+v, %v; want up %v", outside, err, up)
		}
	}
	in(t, host, func(h *Host) error {
		ifindex, err := h.CreateVeth(v)
		if err != nil {
			return err
		}
		expect(false)
		if err := h.SetUp(ifindex, v); err != nil {
			return err
		}
		expect(true)
		return nil
	})
	// Neither count: another device's, another table's, one to nowhere.
	container.Run(t, "ip", "route", "add", "10.4.0.0/16", "dev", "lo")
	container.Run(t, "ip", "route", "add", "10.5.0.0/16", "dev", "eth0", "table", "100")
	container.Run(t, "ip", "route", "add", "blackhole", "10.6.0.0/16")

	got, err := LookInside(container.Path(), "eth0")
	if err != nil {
		t.Fatal(err)
	}
	if got.Name != "eth0" || got.MAC.String() != "02:00:00:00:00:02" || got.MTU != 1400 || !got.Up {
		t.Errorf("inside: %+v", got)
	}
	addresses := map[string]bool{}
	for _, p := range got.Addresses {
		addresses[p.String()] = true
	}
	if want := map[string]bool{"10.1.0.2/24": true, "fd00:1::2/64": true, "fe80::ff:fe00:2/64": true}; !cmp.Equal(addresses, want) {
		t.Errorf("addresses are %v, want %v", addresses, want)
	}
	routes := map[string]string{}
	for _, r := range got.Routes {
		routes[r.Destination.String()] = r.Gateway.String()
	}
	want := map[string]string{"0.0.0.0/0": "10.1.0.1", "::/0": "fd00:1::1", "10.2.0.0/16": "10.1.0.9", "10.3.0.0/16": "invalid IP"}
	if diff := cmp.Diff(want, routes); diff != "" {
		t.Error(diff)
	}

	if got, err := LookInside(container.Path(), "eth1"); !errors.Is(err, ErrNoDevice) {
		t.Errorf("no interface: %+v, %v", got, err)
	}
	if got, err := LookInside("/run/netns/gone", "eth0"); !errors.Is(err, ErrNoNamespace) {
		t.Errorf("no namespace: %+v, %v", got, err)
	}
}
