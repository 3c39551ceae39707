package docker

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ebpnet/ebpnet/internal/spec"
)

func TestPoolIDs(t *testing.T) {
	t.Parallel()
	for id, want := range map[string]pool{
		"10.88.0.0/16":              {netip.MustParsePrefix("10.88.0.0/16"), netip.MustParsePrefix("10.88.0.0/16")},
		"10.88.0.0/16,10.88.5.0/24": {netip.MustParsePrefix("10.88.0.0/16"), netip.MustParsePrefix("10.88.5.0/24")},
		"10.88.0.0/16,10.88.5.7/32": {netip.MustParsePrefix("10.88.0.0/16"), netip.MustParsePrefix("10.88.5.7/32")},
		"fd00:88::/64":              {netip.MustParsePrefix("fd00:88::/64"), netip.MustParsePrefix("fd00:88::/64")},
		"fd00:88::/64,fd00:88::/80": {netip.MustParsePrefix("fd00:88::/64"), netip.MustParsePrefix("fd00:88::/80")},
	} {
		if got, err := parsePool(id); err != nil || got != want || got.String() != id {
			t.Errorf("%s: %v, %v", id, got, err)
		}
	}
	if p, err := parsePool("10.88.0.0/16,10.88.0.0/16"); err != nil || p.String() != "10.88.0.0/16" {
		t.Errorf("a range that is all of it: %v, %v", p, err)
	}
	for _, id := range []string{
		"", "x", "10.88.0.0", "10.88.0.1/16", "10.88.0.0/16,", "10.88.0.0/16,10.88.5.0", "10.88.0.0/16,10.88.5.1/24",
		"10.88.0.0/16,10.89.5.0/24", "10.88.0.0/16,10.0.0.0/8", "10.88.0.0/16,10.88.0.0/15", "10.88.0.0/16,fd00::/80", "10.88.0.0/16,10.88.5.0/24,",
	} {
		if p, err := parsePool(id); !errors.Is(err, spec.ErrInvalid) {
			t.Errorf("%q: %v, %v, want ErrInvalid", id, p, err)
		}
	}
}

// requestPool asks for a pool, and gives its id.
func (s *served) requestPool(t *testing.T, subnet, within, options string, v6 bool) (id string) {
	t.Helper()
	var answer poolAnswer
	if err := json.Unmarshal([]byte(s.call(t, "IpamDriver.RequestPool", poolBody(subnet, within, options, v6))), &answer); err != nil {
		t.Fatal(err)
	}
	if subnet, _, _ := strings.Cut(answer.PoolID, ","); subnet != answer.Pool {
		t.Errorf("pool %s has the id %s", answer.Pool, answer.PoolID)
	}
	return answer.PoolID
}

// poolBody is as Docker Engine 20.10 calls.
func poolBody(subnet, within, options string, v6 bool) string {
	return fmt.Sprintf(`{"AddressSpace":"ebpnet","Pool":"%s","SubPool":"%s","Options":%s,"V6":%v}`, subnet, within, options, v6)
}

func addressBody(id, address, options string) string {
	return fmt.Sprintf(`{"PoolID":"%s","Address":"%s","Options":%s}`, id, address, options)
}

const (
	asGateway = `{"RequestAddressType":"com.docker.network.gateway"}`
	ofShop    = `{"ebpnet.network":"shop"}`
)

// address asks for an address.
func (s *served) address(t *testing.T, id, address, options string) string {
	t.Helper()
	var answer addressAnswer
	if err := json.Unmarshal([]byte(s.call(t, "IpamDriver.RequestAddress", addressBody(id, address, options))), &answer); err != nil {
		t.Fatal(err)
	}
	return answer.Address
}

func (s *served) expectAddress(t *testing.T, want, id, address, options string) {
	t.Helper()
	if got := s.address(t, id, address, options); got != want {
		t.Errorf("address %q of %s %s: %s, want %s", address, id, options, got, want)
	}
}

func TestChosenPools(t *testing.T) {
	t.Parallel()
	p, _ := loaded(t)
	s := serve(t, p)
	first, second := s.requestPool(t, "", "", "{}", false), s.requestPool(t, "", "", "null", false)
	a, b := netip.MustParsePrefix(first), netip.MustParsePrefix(second)
	if a.Overlaps(b) || a.Bits() != 24 || !a.Addr().IsPrivate() {
		t.Errorf("%s and %s", a, b)
	}
	if six := netip.MustParsePrefix(s.requestPool(t, "", "", "{}", true)); six.Bits() != 64 || !six.Addr().IsPrivate() || !six.Addr().Is6() {
		t.Errorf("IPv6: %s", six)
	}
	s.call(t, "IpamDriver.ReleasePool", `{"PoolID":"`+first+`"}`)
	if again := s.requestPool(t, "", "", "{}", false); again != first {
		t.Errorf("after %s was given back: %s", first, again)
	}
	s.refused(t, "IpamDriver.RequestPool", poolBody("", "10.0.0.0/24", "{}", false), "--subnet")
	s.refused(t, "IpamDriver.RequestPool", poolBody("10.50.0.1/16", "", "{}", false), "10.50.0.0/16")
	s.refused(t, "IpamDriver.RequestPool", poolBody("10.50.0.0/16", "10.51.0.0/24", "{}", false), "10.51.0.0/24")
	s.refused(t, "IpamDriver.RequestPool", poolBody("", "", `{"other":"1"}`, false), `"other"`)
	s.refused(t, "IpamDriver.ReleasePool", `{"PoolID":"x"}`, `"x"`)
	s.requestPool(t, "10.50.0.0/16", "", `{"com.docker.network.ipam.serial":"true"}`, false)
}

// What is held for nobody is free again after a while.
func TestHolds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHolds()
		a := netip.MustParseAddr("10.50.0.2")
		h.hold(hostPrefix(a))
		if !h.held(a) || h.held(a.Next()) {
			t.Error("another one is held")
		}
		time.Sleep(holdTime)
		if !h.held(a) {
			t.Error("it is not held for long enough")
		}
		time.Sleep(time.Nanosecond)
		if h.held(a) || len(h.all()) != 0 {
			t.Error("it is held for too long")
		}
	})
}

func TestAddresses(t *testing.T) {
	t.Parallel()
	p, _ := loaded(t)
	s := serve(t, p)
	// As the engine does when it makes a network, before that is there.
	id := s.requestPool(t, "172.18.0.0/16", "172.18.7.0/29", "{}", false)
	s.expectAddress(t, "172.18.0.1/16", id, "", asGateway)
	s.expectAddress(t, "172.18.0.9/16", id, "172.18.0.9", asGateway)
	s.expectAddress(t, "172.18.7.1/16", id, "172.18.7.1", "null") // an auxiliary one
	s.expectAddress(t, "172.18.0.1/16", id, "172.18.0.1", "null")
	for address, words := range map[string]string{"172.18.0.0": "network", "172.18.255.255": "broadcast", "10.0.0.1": "outside", "x": `"x"`} {
		s.refused(t, "IpamDriver.RequestAddress", addressBody(id, address, "{}"), words)
		s.refused(t, "IpamDriver.RequestAddress", addressBody(id, address, asGateway), words)
	}
	s.refused(t, "IpamDriver.RequestAddress", addressBody(id, "", "{}"), "-d ebpnet")
	s.refused(t, "IpamDriver.RequestAddress", addressBody("x", "", "{}"), `"x"`)

	create := strings.Replace(createNetwork(`{}`), `"Pool"`, `"AuxAddresses":{"a":"172.18.7.1/16"},"Pool"`, 1)
	s.call(t, "NetworkDriver.CreateNetwork", create)
	s.expectAddress(t, "172.18.0.1/16", id, "", asGateway)
	s.expectAddress(t, "172.18.0.1/16", id, "172.18.0.1", asGateway)
	s.refused(t, "IpamDriver.RequestAddress", addressBody(id, "172.18.0.2", asGateway), "172.18.0.1")
	s.refused(t, "IpamDriver.RequestAddress", addressBody(id, "172.18.7.1", "{}"), "reserved")
	s.refused(t, "IpamDriver.RequestAddress", addressBody(id, "172.18.0.1", "{}"), "gateway")

	s.expectAddress(t, "172.18.7.0/16", id, "", "{}")
	s.expectAddress(t, "172.18.7.2/16", id, "", "{}") // what was given out is held
	s.call(t, "NetworkDriver.CreateEndpoint", createEndpoint(firstID, "172.18.7.2/16", ""))
	s.refused(t, "IpamDriver.RequestAddress", addressBody(id, "172.18.7.2", "{}"), `"ce596cbb6dd5"`)
	s.expectAddress(t, "172.18.7.3/16", id, "", "{}")
	s.expectAddress(t, "172.18.0.77/16", id, "172.18.0.77", "{}") // also outside of the range
	s.call(t, "IpamDriver.ReleaseAddress", `{"PoolID":"`+id+`","Address":"172.18.7.0"}`)
	s.expectAddress(t, "172.18.7.0/16", id, "", "{}")
	s.call(t, "NetworkDriver.DeleteEndpoint", about(firstID))
	s.call(t, "IpamDriver.ReleaseAddress", `{"PoolID":"`+id+`","Address":"172.18.7.2"}`)
	s.expectAddress(t, "172.18.7.2/16", id, "", "{}")
	s.refused(t, "IpamDriver.ReleaseAddress", `{"PoolID":"`+id+`","Address":"x"}`, `"x"`)
}

func TestPoolsOfANetworkToJoin(t *testing.T) {
	t.Parallel()
	p, f := loaded(t)
	s := serve(t, p)
	s.refused(t, "IpamDriver.RequestPool", poolBody("", "", ofShop, false), `"shop"`)
	f.shop(t)
	s.refused(t, "IpamDriver.RequestPool", poolBody("10.89.0.0/16", "", ofShop, false), "10.88.0.0/16")

	// An engine that takes it.
	if id := s.requestPool(t, "", "", ofShop, false); id != "10.88.0.0/16" {
		t.Errorf("IPv4: %s", id)
	}
	s.expectAddress(t, "10.88.0.9/16", "10.88.0.0/16", "", asGateway)
	if id := s.requestPool(t, "", "", ofShop, true); id != "fd00:88::/64" {
		t.Errorf("IPv6: %s", id)
	}
	s.expectAddress(t, "fd00:88::1/64", "fd00:88::/64", "fd00:88::1", asGateway)

	// One that asks for another, as the host has a route to it, and would ask on.
	s.requestPool(t, "", "", ofShop, false)
	s.refused(t, "IpamDriver.RequestPool", poolBody("", "", ofShop, false), "--subnet 10.88.0.0/16")
	s.call(t, "IpamDriver.ReleasePool", `{"PoolID":"10.88.0.0/16"}`)
	s.requestPool(t, "", "", ofShop, false) // of the next network that is tried
	s.call(t, "IpamDriver.ReleasePool", `{"PoolID":"10.88.0.0/16"}`)

	// The same subnet that is named is taken at any time.
	for range 2 {
		if id := s.requestPool(t, "10.88.0.0/16", "10.88.7.0/24", ofShop, false); id != "10.88.0.0/16,10.88.7.0/24" {
			t.Errorf("named: %s", id)
		}
	}
	s.expectAddress(t, "10.88.7.0/16", "10.88.0.0/16,10.88.7.0/24", "", "{}")

	four, err := spec.NewNetwork("four", []string{"10.90.0.0/16"}, "", "", 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.CreateNetwork(four); err != nil {
		t.Fatal(err)
	}
	s.refused(t, "IpamDriver.RequestPool", poolBody("", "", `{"ebpnet.network":"four"}`, true), "none of the other family")
}
