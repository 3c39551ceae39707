package docker

import (
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/ebpnet/ebpnet/internal/spec"
)

const (
	netID    = "1343e69104d5cf61f4d311e4962b56d0eb517c50f4768106bc0159e60ed25026"
	firstID  = "ce596cbb6dd5c94b6f2189adbe0618ca90f5a25007026e86bace5eeea504b900"
	secondID = "58d79a5ea04311f1def94877b9ec6faf9e6869a55f0867734ee9d59f24a95095"
)

// What Docker Engine 20.10 was recorded to call CreateNetwork with.
const (
	bothFamilies = `{"NetworkID":"` + netID + `",` +
		`"Options":{"com.docker.network.enable_ipv6":true,"com.docker.network.generic":{},"com.docker.network.internal":true},` +
		`"IPv4Data":[{"AddressSpace":"LocalDefault","AuxAddresses":{"a":"10.50.7.1/16","b":"10.50.9.9/16","c":"<nil>"},"Gateway":"10.50.0.254/16","Pool":"10.50.0.0/16"}],` +
		`"IPv6Data":[{"AddressSpace":"LocalDefault","Gateway":"fd00:50::1/64","Pool":"fd00:50::/64"}]}`
	withOptions = `{"NetworkID":"` + netID + `",` +
		`"Options":{"com.docker.network.enable_ipv6":false,"com.docker.network.generic":OPTIONS},` +
		`"IPv4Data":[{"AddressSpace":"LocalDefault","Gateway":"172.18.0.1/16","Pool":"172.18.0.0/16"}],"IPv6Data":[]}`
)

func mustParse(t *testing.T, text string) networkCall {
	t.Helper()
	var c networkCall
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		t.Fatal(err)
	}
	return c
}

// plain is the network of withOptions where there are none.
func plain() spec.Network {
	return spec.Network{
		Name:    "1343e69104d5",
		Subnets: []netip.Prefix{netip.MustParsePrefix("172.18.0.0/16")}, Gateways: []netip.Addr{netip.MustParseAddr("172.18.0.1")},
		ICC: true, Masquerade: true, Transient: true,
		Users: []spec.Identity{{Engine: "docker", ID: netID}},
	}
}

func TestNetworkOptions(t *testing.T) {
	t.Parallel()
	for options, change := range map[string]func(*spec.Network){
		`{}`:   func(*spec.Network) {},
		`null`: func(*spec.Network) {},
		`{"com.docker.network.bridge.enable_icc":"false"}`:             func(n *spec.Network) { n.ICC = false },
		`{"ebpnet.icc":"false"}`:                                       func(n *spec.Network) { n.ICC = false },
		`{"com.docker.network.bridge.enable_ip_masquerade":"0"}`:       func(n *spec.Network) { n.Masquerade = false },
		`{"com.docker.network.driver.mtu":"1400"}`:                     func(n *spec.Network) { n.MTU = 1400 },
		`{"com.docker.network.bridge.host_binding_ipv4":"127.0.0.1"}`:  func(n *spec.Network) { n.HostBinding = netip.MustParseAddr("127.0.0.1") },
		`{"com.docker.network.bridge.host_binding_ipv4":"0.0.0.0"}`:    func(*spec.Network) {},
		`{"com.docker.network.bridge.gateway_mode_ipv4":"nat"}`:        func(*spec.Network) {},
		`{"com.docker.network.bridge.gateway_mode_ipv4":"routed"}`:     func(n *spec.Network) { n.Routed, n.Masquerade = true, false },
		`{"com.docker.network.bridge.gateway_mode_ipv6":"routed"}`:     func(*spec.Network) {}, // there is no IPv6
		`{"ebpnet.internal":"true","ebpnet.key":"7"}`:                  func(n *spec.Network) { n.Internal, n.Key = true, new(uint32(7)) },
		`{"ebpnet.routes":"10.99.0.0/16,192.0.2.0/24"}`:                func(n *spec.Network) { n.Routes = prefixes("10.99.0.0/16", "192.0.2.0/24") },
		`{"ebpnet.filtering":"endpoint-independent","ebpnet.mtu":"0"}`: func(n *spec.Network) { n.Filtering = spec.EndpointIndependent },
	} {
		want := plain()
		change(&want)
		got, join, err := mustParse(t, strings.Replace(withOptions, "OPTIONS", options, 1)).network()
		if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); err != nil || join != "" || diff != "" {
			t.Errorf("%s: %v, joins %q: %s", options, err, join, diff)
		}
	}
}

func prefixes(texts ...string) (list []netip.Prefix) {
	for _, text := range texts {
		list = append(list, netip.MustParsePrefix(text))
	}
	return list
}

func addresses(texts ...string) (list []netip.Addr) {
	for _, text := range texts {
		list = append(list, netip.MustParseAddr(text))
	}
	return list
}

func TestNetworkOfBothFamilies(t *testing.T) {
	t.Parallel()
	want := plain()
	want.Subnets = prefixes("10.50.0.0/16", "fd00:50::/64")
	want.Gateways = addresses("10.50.0.254", "fd00:50::1")
	want.Reserved = addresses("10.50.7.1", "10.50.9.9")
	want.Internal = true
	got, _, err := mustParse(t, bothFamilies).network()
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); err != nil || diff != "" {
		t.Errorf("%v: %s", err, diff)
	}
	for mode, works := range map[string]bool{
		`"com.docker.network.bridge.gateway_mode_ipv4":"isolated","com.docker.network.bridge.gateway_mode_ipv6":"isolated"`: true,
		`"com.docker.network.bridge.gateway_mode_ipv4":"routed","com.docker.network.bridge.gateway_mode_ipv6":"routed"`:     true,
		`"com.docker.network.bridge.gateway_mode_ipv4":"nat","com.docker.network.bridge.gateway_mode_ipv6":"routed"`:        false,
		`"com.docker.network.bridge.gateway_mode_ipv6":"routed"`:                                                            false,
	} {
		text := strings.Replace(bothFamilies, `generic":{}`, `generic":{`+mode+`}`, 1)
		if n, _, err := mustParse(t, text).network(); works != (err == nil) || !works && !errors.Is(err, spec.ErrInvalid) {
			t.Errorf("%s: %+v, %v", mode, n, err)
		}
	}
}

func TestJoinOption(t *testing.T) {
	t.Parallel()
	_, join, err := mustParse(t, strings.Replace(withOptions, "OPTIONS", `{"ebpnet.network":"shop"}`, 1)).network()
	if err != nil || join != "shop" {
		t.Errorf("%q, %v", join, err)
	}
	with := mustParse(t, strings.Replace(bothFamilies, `generic":{}`, `generic":{"ebpnet.network":"shop"}`, 1))
	if _, _, err := with.network(); !errors.Is(err, spec.ErrInvalid) || !strings.Contains(err.Error(), "10.50.7.1") {
		t.Errorf("with auxiliary addresses: %v", err)
	}
}

func TestRefusedOptions(t *testing.T) {
	t.Parallel()
	for options, want := range map[string]string{
		`{"nonsense":"1"}`:                                                    `"nonsense"`,
		`{"ebpnet.nonsense":"1"}`:                                             `"ebpnet.nonsense"`,
		`{"com.docker.network.bridge.name":"br0"}`:                            `"com.docker.network.bridge.name"`,
		`{"com.docker.network.container_iface_prefix":"x"}`:                   `"com.docker.network.container_iface_prefix"`,
		`{"com.docker.network.bridge.enable_icc":""}`:                         `"com.docker.network.bridge.enable_icc"`,
		`{"com.docker.network.bridge.enable_ip_masquerade":"x"}`:              `"com.docker.network.bridge.enable_ip_masquerade"`,
		`{"com.docker.network.driver.mtu":"100"}`:                             `"com.docker.network.driver.mtu"`,
		`{"com.docker.network.bridge.host_binding_ipv4":"x"}`:                 `"com.docker.network.bridge.host_binding_ipv4"`,
		`{"com.docker.network.bridge.host_binding_ipv4":"224.0.0.1"}`:         "multicast",
		`{"com.docker.network.bridge.gateway_mode_ipv4":"nat-unprotected"}`:   "nat, routed or isolated",
		`{"com.docker.network.bridge.gateway_mode_ipv6":"x"}`:                 `"com.docker.network.bridge.gateway_mode_ipv6"`,
		`{"com.docker.network.bridge.gateway_mode_ipv4":"isolated"}`:          "--internal",
		`{"ebpnet.key":"x"}`:                                                  `"ebpnet.key"`,
		`{"ebpnet.routes":"10.99.0.0"}`:                                       `"10.99.0.0"`,
		`{"ebpnet.routes":"10.99.0.1/16"}`:                                    "10.99.0.0/16",
		`{"ebpnet.routes":"10.99.0.0/16,"}`:                                   `""`,
		`{"ebpnet.routes":"fd00:99::/64"}`:                                    "no gateway of its family",
		`{"ebpnet.network":"shop","ebpnet.icc":"false"}`:                      `"ebpnet.icc"`,
		`{"ebpnet.network":"shop","com.docker.network.driver.mtu":"1400"}`:    `"com.docker.network.driver.mtu"`,
		`{"ebpnet.network":"shop","ebpnet.routes":"10.99.0.0/16"}`:            `"ebpnet.routes"`,
		`{"ebpnet.network":""}`:                                               `"ebpnet.network"`,
		`{"ebpnet.network":"../shop"}`:                                        `"../shop"`,
		`{"ebpnet.icc":false}`:                                                "com.docker.network.generic",
		`[]`:                                                                  "com.docker.network.generic",
		`{"ebpnet.routes":"::ffff:10.99.0.0/112","com.docker.unknown":"yes"}`: "com.docker.unknown",
	} {
		_, _, err := mustParse(t, strings.Replace(withOptions, "OPTIONS", options, 1)).network()
		if !errors.Is(err, spec.ErrInvalid) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %s", options, err, want)
		}
	}
}

func TestRefusedPools(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`{"NetworkID":"` + netID + `"}`:                                                                                             "no subnet",
		`{"NetworkID":"","IPv4Data":[{"Pool":"10.50.0.0/16"}]}`:                                                                     "name",
		`{"NetworkID":"` + netID + `","IPv4Data":[{"Pool":"0.0.0.0/0"}]}`:                                                           "0.0.0.0/0",
		`{"NetworkID":"` + netID + `","IPv4Data":[{"Pool":"10.50.0.0/16"},{"Pool":"10.51.0.0/16"}]}`:                                "at most one a family",
		`{"NetworkID":"` + netID + `","IPv4Data":[{"Pool":"10.50.0.0/16","Gateway":"10.51.0.1/16"}]}`:                               "10.51.0.1",
		`{"NetworkID":"` + netID + `","IPv4Data":[{"Pool":"10.50.0.0/16","Gateway":"10.50.0.1"}]}`:                                  "ADDRESS/BITS",
		`{"NetworkID":"` + netID + `","IPv4Data":[{"Pool":"10.50.0.0/16","AuxAddresses":{"a":"x"}}]}`:                               "a=",
		`{"NetworkID":"` + netID + `","IPv4Data":[{"Pool":"10.50.0.0/16"}],"Options":{"com.docker.network.internal":"perhaps"}}`:    "com.docker.network.internal",
		`{"NetworkID":"` + netID + `","IPv4Data":[{"Pool":"10.50.0.0/16"}],"Options":{"com.docker.network.generic":{"a":{"b":1}}}}`: "com.docker.network.generic",
	} {
		_, _, err := mustParse(t, text).network()
		if !errors.Is(err, spec.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}
