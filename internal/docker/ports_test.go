package docker

import (
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/ebpnet/ebpnet/internal/spec"
)

func texts(ports []spec.Port) (list []string) {
	for _, p := range ports {
		list = append(list, p.String())
	}
	return list
}

func TestMerged(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		bindings, unnamed string
		ports             string // text forms
		choices           int
	}{
		"none":    {bindings: `[]`},
		"missing": {bindings: `null`},
		"ranges and single ports, as Docker Engine 20.10 was recorded to put them": {
			bindings: `[{"Proto":6,"IP":"","Port":9003,"HostIP":"","HostPort":9003,"HostPortEnd":9003},` +
				`{"Proto":6,"IP":"","Port":9002,"HostIP":"","HostPort":9002,"HostPortEnd":9002},` +
				`{"Proto":6,"IP":"","Port":9001,"HostIP":"","HostPort":9001,"HostPortEnd":9001},` +
				`{"Proto":6,"IP":"","Port":80,"HostIP":"","HostPort":8080,"HostPortEnd":8080},` +
				`{"Proto":17,"IP":"","Port":53,"HostIP":"127.0.0.1","HostPort":53,"HostPortEnd":53},` +
				`{"Proto":6,"IP":"","Port":81,"HostIP":"","HostPort":0,"HostPortEnd":0},` +
				`{"Proto":6,"IP":"","Port":7,"HostIP":"","HostPort":7000,"HostPortEnd":7005}]`,
			ports: "81/tcp 8080:80/tcp 9001-9003:9001-9003/tcp 127.0.0.1:53:53/udp", choices: 1,
		},
		"protocols and addresses are kept apart": {
			bindings: `[{"Proto":6,"Port":80,"HostPort":80},{"Proto":17,"Port":81,"HostPort":81},` +
				`{"Proto":132,"Port":82,"HostPort":82},{"Proto":6,"Port":81,"HostIP":"0.0.0.0","HostPort":81},` +
				`{"Proto":6,"Port":82,"HostIP":"::","HostPort":82}]`,
			ports: "80:80/tcp 0.0.0.0:81:81/tcp [::]:82:82/tcp 81:81/udp 82:82/sctp",
		},
		"what is next on one side only is no range": {
			bindings: `[{"Proto":6,"Port":80,"HostPort":8080},{"Proto":6,"Port":82,"HostPort":8081},{"Proto":6,"Port":83,"HostPort":8083}]`,
			ports:    "8080:80/tcp 8081:82/tcp 8083:83/tcp",
		},
		"ports to be chosen are chosen each": {
			bindings: `[{"Proto":6,"Port":80},{"Proto":6,"Port":81},{"Proto":6,"Port":82,"HostIP":"::1"}]`,
			ports:    "80/tcp 81/tcp [::1]::82/tcp",
		},
		"the network says where": {
			bindings: `[{"Proto":6,"Port":80,"HostPort":80},{"Proto":6,"Port":81},{"Proto":6,"Port":81,"HostIP":"0.0.0.0","HostPort":81}]`,
			unnamed:  "127.0.0.1", ports: "127.0.0.1::81/tcp 127.0.0.1:80:80/tcp 0.0.0.0:81:81/tcp",
		},
		"up to the last port": {
			bindings: `[{"Proto":6,"Port":65534,"HostPort":65534},{"Proto":6,"Port":65535,"HostPort":65535},{"Proto":6,"Port":1,"HostPort":1}]`,
			ports:    "1:1/tcp 65534-65535:65534-65535/tcp",
		},
	} {
		all, err := parseBindings(json.RawMessage(c.bindings))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var unnamed netip.Addr
		if c.unnamed != "" {
			unnamed = netip.MustParseAddr(c.unnamed)
		}
		ports, choices, err := merged(all, unnamed)
		if got := strings.Join(texts(ports), " "); err != nil || got != c.ports || len(choices) != c.choices {
			t.Errorf("%s: %s and choices %v, %v; want %s", name, got, choices, err, c.ports)
		}
	}
}

func TestEveryPortIsOneRange(t *testing.T) {
	t.Parallel()
	var all []binding
	for port := uint16(65535); port > 0; port-- {
		all = append(all, binding{Proto: spec.TCP, Port: port, HostPort: port, HostPortEnd: port})
	}
	ports, _, err := merged(all, netip.Addr{})
	if got := texts(ports); err != nil || !slices.Equal(got, []string{"1-65535:1-65535/tcp"}) {
		t.Errorf("%v, %v", got, err)
	}
}

func TestBadBindings(t *testing.T) {
	t.Parallel()
	for bindings, want := range map[string]string{
		`{}`:                                   "ports",
		`[{"Proto":6,"Port":70000}]`:           "70000",
		`[{"Proto":6}]`:                        "0",
		`[{"Proto":1,"Port":80}]`:              "protocol",
		`[{"Proto":6,"Port":80,"HostIP":"x"}]`: `"x"`,
		`[{"Proto":6,"Port":80,"HostIP":"224.0.0.1"}]`:  "multicast",
		`[{"Proto":6,"Port":80,"HostIP":"fe80::1%lo"}]`: "zone",
	} {
		all, err := parseBindings(json.RawMessage(bindings))
		if err == nil {
			_, _, err = merged(all, netip.Addr{})
		}
		if !errors.Is(err, spec.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", bindings, err, want)
		}
	}
}

func TestRouted(t *testing.T) {
	t.Parallel()
	all, err := parseBindings(json.RawMessage(`[{"Proto":6,"Port":80,"HostPort":8080},{"Proto":6,"Port":80,"HostIP":"127.0.0.1","HostPort":81},` +
		`{"Proto":6,"Port":81,"HostPort":7000,"HostPortEnd":7009},{"Proto":17,"Port":53}]`))
	if err != nil {
		t.Fatal(err)
	}
	ports, err := routed(all, spec.Endpoint{Addresses: addresses("10.50.0.2", "fd00:50::2")})
	want := "10.50.0.2:80-81:80-81/tcp 10.50.0.2:53:53/udp [fd00:50::2]:80-81:80-81/tcp [fd00:50::2]:53:53/udp"
	if got := strings.Join(texts(ports), " "); err != nil || got != want {
		t.Errorf("%s, %v; want %s", got, err, want)
	}
}

func TestExposed(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`[]`: "",
		`[{"Proto":6,"Port":6379},{"Proto":17,"Port":102},{"Proto":17,"Port":101},{"Proto":17,"Port":100},` +
			`{"Proto":6,"Port":81},{"Proto":6,"Port":80},{"Proto":132,"Port":82}]`: "80-81/tcp 6379/tcp 100-102/udp",
		`[{"Proto":132,"Port":5}]`: "",
	} {
		exposed, err := parseExposed(json.RawMessage(text))
		var got []string
		for _, p := range exposed {
			got = append(got, p.String())
		}
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("%s: %v, %v; want %v", text, got, err, want)
		}
	}
	if got, err := parseExposed(nil); err != nil || got != nil {
		t.Errorf("not said: %v, %v", got, err)
	}
	for _, text := range []string{`7`, `[{"Proto":6}]`, `[{"Proto":1,"Port":80}]`} {
		if _, err := parseExposed(json.RawMessage(text)); !errors.Is(err, spec.ErrInvalid) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
