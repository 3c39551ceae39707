package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/go-cmp/cmp"

	"github.com/ebpnet/ebpnet/internal/agent"
	"github.com/ebpnet/ebpnet/internal/host"
	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
	"github.com/ebpnet/ebpnet/loader"
)

// newCall is a call with the configuration and CNI_ARGS.
func newCall(t *testing.T, conf, args string) *call {
	t.Helper()
	c := &call{
		args: &skel.CmdArgs{ContainerID: "c1", Netns: "/run/netns/c1", IfName: "eth0", Args: args, StdinData: []byte(conf)},
		log:  slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	if err := c.readConf(); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestNetworkOfConf(t *testing.T) {
	t.Parallel()
	c := newCall(t, `{"name": "web", "subnets": ["10.1.0.0/24", "fd00:1::/64"], "gateway": "10.1.0.9", "state": "/s", "pin": "/p",
		"options": {"ebpnet.icc": false, "ebpnet.mtu": 1400, "ebpnet.key": "7", "ebpnet.internal": "true"}}`, "")
	n, err := c.conf.network()
	if err != nil {
		t.Fatal(err)
	}
	if n.Name != "web" || n.ICC || !n.Masquerade || !n.Internal || n.MTU != 1400 || n.Key == nil || *n.Key != 7 || n.Gateways[0].String() != "10.1.0.9" {
		t.Errorf("%+v", n)
	}
	if want := (agent.Place{State: "/s", Pins: "/p"}); c.place != want {
		t.Errorf("place is %+v, want %+v", c.place, want)
	}
	for text, masquerade := range map[string]bool{
		`{"name": "a", "network": "b", "subnets": ["10.1.0.0/24"]}`:                                                            true,
		`{"name": "a", "network": "b", "subnets": ["10.1.0.0/24"], "ipMasq": false}`:                                           false,
		`{"name": "a", "network": "b", "subnets": ["10.1.0.0/24"], "ipMasq": false, "options": {"ebpnet.masquerade": "true"}}`: true,
	} {
		n, err := newCall(t, text, "").conf.network()
		if err != nil || n.Name != "b" || !n.ICC || n.Masquerade != masquerade {
			t.Errorf("%s: %+v, %v", text, n, err)
		}
	}
}

func TestStrangeFields(t *testing.T) {
	t.Parallel()
	_, strange, err := parseConf([]byte(`{"name": "a", "cniVersion": "1.1.0", "type": "ebpnet-cni", "capabilities": {}, "runtimeConfig": {}, "args": {"podman_labels": {}},
		"prevResult": {}, "dns": {}, "ipam": {}, "cni.dev/valid-attachments": [], "cni.dev/new": 1, "subnet": "10.1.0.0/24", "bridge": "cni0"}`))
	if diff := cmp.Diff([]string{"bridge", "subnet"}, strange); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
	for _, bad := range []string{`[]`, `{"options": {"ebpnet.icc": []}}`, `{"options": {"ebpnet.icc": {}}}`, `{"options": {"ebpnet.icc": null}}`, `{"ipMasq": "yes"}`} {
		var coded *types.Error
		if _, _, err := parseConf([]byte(bad)); !errors.As(err, &coded) || coded.Code != types.ErrDecodingFailure {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestWishes(t *testing.T) {
	t.Parallel()
	const (
		runtime = `"runtimeConfig": {"ips": ["10.1.0.7/24"], "mac": "02:00:00:00:00:07"}`
		args    = `"args": {"cni": {"ips": ["10.1.0.8"], "mac": "02:00:00:00:00:08"}}`
		env     = "IP=10.1.0.9/24,fd00:1::9;MAC=02:00:00:00:00:09"
	)
	for conf, want := range map[string]spec.EndpointOptions{
		`{"name": "web", ` + runtime + `, ` + args + `}`: {Addresses: []string{"10.1.0.7"}, MAC: "02:00:00:00:00:07"},
		`{"name": "web", ` + args + `}`:                  {Addresses: []string{"10.1.0.8"}, MAC: "02:00:00:00:00:08"},
		`{"name": "web"}`:                                {Addresses: []string{"10.1.0.9", "fd00:1::9"}, MAC: "02:00:00:00:00:09"},
	} {
		got, err := newCall(t, conf, env+";K8S_POD_NAME=p;K8S_POD_NAMESPACE=n").options()
		want.Name, want.Network, want.Netns, want.Ifname = spec.EndpointName("c1", "web", "eth0"), "web", "/run/netns/c1", "eth0"
		want.Container = spec.Identity{Engine: "cni", ID: "c1", Name: "p"}
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%s: %v %s", conf, err, diff)
		}
	}
}

func TestPublished(t *testing.T) {
	t.Parallel()
	for mappings, want := range map[string]string{
		``: "",
		`{"hostPort": 80, "containerPort": 8080}`:                                                                                                   "80:8080/tcp",
		`{"hostPort": 0, "containerPort": 8080}`:                                                                                                    "",
		`{"hostPort": 80, "containerPort": 8080, "protocol": "UDP", "hostIP": "::1"}`:                                                               "[::1]:80:8080/udp",
		`{"hostPort": 80, "containerPort": 8080}, {"hostPort": 81, "containerPort": 8081}, {"hostPort": 82, "containerPort": 8082}`:                 "80-82:8080-8082/tcp",
		`{"hostPort": 80, "containerPort": 8080}, {"hostPort": 81, "containerPort": 8082}`:                                                          "80:8080/tcp 81:8082/tcp",
		`{"hostPort": 80, "containerPort": 8080}, {"hostPort": 82, "containerPort": 8081}`:                                                          "80:8080/tcp 82:8081/tcp",
		`{"hostPort": 80, "containerPort": 8080}, {"hostPort": 81, "containerPort": 8081, "protocol": "udp"}`:                                       "80:8080/tcp 81:8081/udp",
		`{"hostPort": 80, "containerPort": 8080, "hostIP": "127.0.0.1"}, {"hostPort": 81, "containerPort": 8081}`:                                   "127.0.0.1:80:8080/tcp 81:8081/tcp",
		`{"hostPort": 65535, "containerPort": 65535}, {"hostPort": 1, "containerPort": 1}`:                                                          "65535:65535/tcp 1:1/tcp",
		`{"hostPort": 80, "containerPort": 80, "hostIP": "0.0.0.0"}, {"hostPort": 81, "containerPort": 81, "hostIP": "0.0.0.0", "protocol": "tcp"}`: "0.0.0.0:80-81:80-81/tcp",
	} {
		var list []portMapping
		if err := json.Unmarshal([]byte("["+mappings+"]"), &list); err != nil {
			t.Fatal(err)
		}
		ports, err := published(list)
		var got []string
		for _, p := range ports {
			got = append(got, p.String())
		}
		if strings.Join(got, " ") != want || err != nil {
			t.Errorf("%s: %v, %v; want %s", mappings, got, err, want)
		}
	}
	for _, bad := range []portMapping{
		{HostPort: 80},
		{HostPort: -1, ContainerPort: 1},
		{HostPort: 65536, ContainerPort: 1},
		{HostPort: 1, ContainerPort: 65536},
		{HostPort: 1, ContainerPort: 1, Protocol: "icmp"},
		{HostPort: 1, ContainerPort: 1, HostIP: "a\nb"},
		{HostPort: 1, ContainerPort: 1, HostIP: "224.0.0.1"},
	} {
		if ports, err := published([]portMapping{bad}); !errors.Is(err, spec.ErrInvalid) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%+v: %v, %v", bad, ports, err)
		}
	}
}

func TestExplained(t *testing.T) {
	t.Parallel()
	if err := explained(nil); err != nil {
		t.Error(err)
	}
	for _, test := range []struct {
		err  error
		want uint
	}{
		{errors.New("x"), types.ErrInternal},
		{spec.ErrInvalid, types.ErrInvalidNetworkConfig},
		{agent.ErrUnfit, types.ErrInvalidNetworkConfig},
		{store.ErrNotFound, types.ErrInvalidNetworkConfig},
		{agent.ErrExists, errTaken},
		{agent.ErrInUse, errTaken},
		{host.ErrNameInUse, errTaken},
		{host.ErrNoNamespace, types.ErrInvalidNetNS},
		{host.ErrOwnNamespace, types.ErrInvalidNetNS},
		{loader.ErrNotLoaded, types.ErrTryAgainLater},
		{store.ErrBusy, types.ErrTryAgainLater},
		{types.NewError(123, "x", ""), 123},
	} {
		wrapped := errors.Join(fmt.Errorf("around: %w", test.err), errors.New("and more"))
		var got *types.Error
		if !errors.As(explained(wrapped), &got) || got.Code != test.want || got.Msg != "around: "+test.err.Error()+"; and more" {
			t.Errorf("%v: %+v, want code %d", test.err, got, test.want)
		}
	}
}
