package cni

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"

	"github.com/ebpnet/ebpnet/internal/spec"
)

func TestChosen(t *testing.T) {
	t.Parallel()
	n, err := spec.NewNetwork("web", []string{"10.1.0.0/24", "fd00:1::/64"}, "", "", 0)
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		`{"ips": [{"address": "10.1.0.5/24"}]}`: "10.1.0.5",
		`{"ips": [{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}, {"address": "fd00:1::5/64", "gateway": "fd00:1::1"}]}`:                             "10.1.0.5 fd00:1::5",
		`{"ips": [{"address": "10.1.0.5/24"}], "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0", "gw": "fd00:1::1"}]}`:                                   "10.1.0.5",
		`{"ips": [{"address": "10.1.0.5/24"}], "routes": [{"dst": "10.2.0.0/16"}, {"dst": "10.3.0.9/16", "gw": "10.1.0.7"}, {"dst": "2001:db8::/32"}]}`: "10.1.0.5 10.2.0.0/16>10.1.0.1 10.3.0.0/16>10.1.0.7 2001:db8::/32>fd00:1::1",
	} {
		o, err := choose(t, n, text)
		got := o.Addresses
		for _, r := range o.Routes {
			got = append(got, r.Destination.String()+">"+r.Gateway.String())
		}
		if strings.Join(got, " ") != want || err != nil {
			t.Errorf("%s: %v, %v; want %s", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		`{}`: "there is none",
		`{"ips": [{"address": "10.1.0.5/24", "gateway": "10.1.0.2"}]}`:                                      "gateway 10.1.0.2",
		`{"ips": [{"address": "10.1.0.5/24"}], "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.2"}]}`:         "default route by 10.1.0.2",
		`{"ips": [{"address": "10.1.0.5/24"}], "routes": [{"dst": "10.2.0.0/16", "mtu": 1400}]}`:            "mtu",
		`{"ips": [{"address": "10.1.0.5/24"}], "routes": [{"dst": "10.2.0.0/16", "table": 0}]}`:             "table",
		`{"ips": [{"address": "10.1.0.5/24"}], "routes": [{"dst": "10.2.0.0/16", "priority": 1}]}`:          "priority",
		`{"ips": [{"address": "10.1.0.5/24"}], "routes": [{"dst": "10.2.0.0/16", "scope": 253, "mtu": 1}]}`: "scope",
	} {
		if o, err := choose(t, n, text); !errors.Is(err, spec.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %+v, %v; want %s", text, o, err, want)
		}
	}
	n.Subnets, n.Gateways = n.Subnets[:1], n.Gateways[:1]
	if _, err := choose(t, n, `{"ips": [{"address": "10.1.0.5/24"}], "routes": [{"dst": "::/0"}]}`); !errors.Is(err, spec.ErrInvalid) {
		t.Errorf("a route of a family that the network lacks: %v", err)
	}
}

func choose(t *testing.T, n spec.Network, text string) (spec.EndpointOptions, error) {
	t.Helper()
	var result types100.Result
	if err := json.Unmarshal([]byte(text), &result); err != nil {
		t.Fatal(err)
	}
	o := spec.EndpointOptions{Addresses: []string{"10.1.0.99"}} // what was asked of the other plugin, too
	return o, chosen(&o, n, &result)
}

func TestPrevious(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		`{"cniVersion": "0.4.0", "name": "web", "prevResult": {"cniVersion": "0.4.0", "interfaces": [{"name": "eth1", "sandbox": "/n"}], "ips": [{"version": "4", "address": "10.1.0.5/24", "interface": 0}]}}`,
		`{"cniVersion": "1.0.0", "name": "web", "prevResult": {"interfaces": [{"name": "eth1", "sandbox": "/n"}], "ips": [{"address": "10.1.0.5/24", "interface": 0}]}}`,
	} {
		r, err := newCall(t, text, "").previous()
		if err != nil || len(r.Interfaces) != 1 || r.Interfaces[0].Name != "eth1" || len(r.IPs) != 1 || *r.IPs[0].Interface != 0 {
			t.Errorf("%s: %+v, %v", text, r, err)
		}
	}
	r, err := newCall(t, `{"cniVersion": "1.0.0", "name": "web"}`, "").previous()
	if diff := cmp.Diff(&types100.Result{CNIVersion: "1.1.0"}, r); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
	if r, err := newCall(t, `{"cniVersion": "1.0.0", "name": "web", "prevResult": {"ips": "10.1.0.5"}}`, "").previous(); err == nil {
		t.Errorf("%+v", r)
	}
}
