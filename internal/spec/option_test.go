package spec

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSetOption(t *testing.T) {
	key := uint32(7)
	for option, want := range map[string]Network{
		"ebpnet.icc=true":                             {ICC: true},
		"ebpnet.masquerade=1":                         {Masquerade: true},
		"ebpnet.internal=true":                        {Internal: true},
		"ebpnet.key=7":                                {Key: &key},
		"ebpnet.mtu=1400":                             {MTU: 1400},
		"ebpnet.filtering=endpoint-independent":       {Filtering: EndpointIndependent},
		"ebpnet.filtering=address-and-port-dependent": {},
	} {
		var n Network
		name, value, _ := strings.Cut(option, "=")
		if err := n.SetOption(name, value); err != nil {
			t.Errorf("%s: %v", option, err)
		}
		if diff := cmp.Diff(want, n, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Errorf("%s:\n%s", option, diff)
		}
	}
}

func TestSetOptionRefuses(t *testing.T) {
	for _, option := range []string{
		"ebpnet.icc=maybe", "ebpnet.masquerade=", "ebpnet.key=-1", "ebpnet.key=x", "ebpnet.mtu=1500b", "ebpnet.mtu=100",
		"ebpnet.filtering=none", "ebpnet.colour=red", "ebpnet.=1", "icc=true", "com.docker.network.icc=true", "=",
	} {
		name, value, _ := strings.Cut(option, "=")
		err := new(Network).SetOption(name, value)
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v, want ErrInvalid that names the option", option, err)
		}
	}
}

func TestEndpointName(t *testing.T) {
	name := EndpointName("container", "network", "eth0")
	if err := Name("endpoint", name); err != nil {
		t.Error(err)
	}
	if name != EndpointName("container", "network", "eth0") {
		t.Error("the same endpoint has two names")
	}
	for _, other := range [][]string{{"container", "network", "eth1"}, {"container", "networketh0"}, {"containernetwork", "eth0"}} {
		if EndpointName(other...) == name {
			t.Errorf("%q has the name of another endpoint", other)
		}
	}
}

func TestHandedEndpoint(t *testing.T) {
	docker := Identity{Engine: "docker"}
	e, err := NewEndpoint(EndpointOptions{Name: "a", Network: "n", Handed: true, Container: docker})
	if err != nil || !e.Handed() || e.Remote() || e.Container != docker {
		t.Errorf("%+v (%v), want one that is handed to Docker", e, err)
	}
	if e, err = NewEndpoint(EndpointOptions{Name: "a", Network: "n", Netns: "ns", Ifname: "eth0"}); err != nil || e.Handed() {
		t.Errorf("%+v (%v), want one that is not handed", e, err)
	}
	if e, err = NewEndpoint(EndpointOptions{Name: "a", Network: "n"}); err == nil {
		t.Errorf("%+v without a namespace is taken", e)
	}
}

func TestReservedAddressIsNoEndpoints(t *testing.T) {
	n, err := NewNetwork("n", []string{"10.1.0.0/24"}, "", "", 0)
	if err != nil {
		t.Fatal(err)
	}
	router, other := n.Gateways[0].Next(), n.Gateways[0].Next().Next()
	n.Reserved = append(n.Reserved, router)
	if err := n.CheckAddress(router); !errors.Is(err, ErrInvalid) {
		t.Errorf("%s is reserved: %v, want ErrInvalid", router, err)
	}
	if err := n.CheckAddress(other); err != nil {
		t.Error(err)
	}
}
