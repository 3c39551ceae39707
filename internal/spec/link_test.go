package spec

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func addresses(list ...string) []netip.Addr {
	var as []netip.Addr
	for _, s := range list {
		as = append(as, netip.MustParseAddr(s))
	}
	return as
}

func ports(t *testing.T, list ...string) []Ports {
	t.Helper()
	var ps []Ports
	for _, s := range list {
		p, err := ParsePorts(s)
		if err != nil {
			t.Fatal(err)
		}
		ps = append(ps, p)
	}
	return ps
}

func TestParseLink(t *testing.T) {
	t.Parallel()
	for s, want := range map[string][2]string{
		"redis1":       {"redis1", "redis1"},
		"redis1:redis": {"redis1", "redis"},
		"r.1:my-redis": {"r.1", "my-redis"},
	} {
		server, alias, err := ParseLink(s)
		if err != nil || server != want[0] || alias != want[1] {
			t.Errorf("%q: %q, %q, %v; want %q", s, server, alias, err, want)
		}
	}
	for _, s := range []string{"", ":", "redis1:", ":redis", "a:b:c", "a/b", "a:b/c", "a b", "a:\n", strings.Repeat("x", 64)} {
		if _, _, err := ParseLink(s); !errors.Is(err, ErrInvalid) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v", s, err)
		}
	}
}

// The wanted lists were worked out from Docker Engine 20.10's
// daemon/links.ToEnv, each variable once.
func TestEnv(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		alias     string
		addresses []netip.Addr
		ports     []Ports
		want      []string
	}{
		"one port": {"redis", addresses("172.17.0.2"), ports(t, "6379"), []string{
			"REDIS_PORT=tcp://172.17.0.2:6379",
			"REDIS_PORT_6379_TCP=tcp://172.17.0.2:6379",
			"REDIS_PORT_6379_TCP_ADDR=172.17.0.2",
			"REDIS_PORT_6379_TCP_PORT=6379",
			"REDIS_PORT_6379_TCP_PROTO=tcp",
			"REDIS_NAME=/web/redis",
		}},
		"a dashed alias, IPv4 before IPv6": {"my-redis.a", addresses("fd00::2", "172.17.0.2"), ports(t, "53/udp"), []string{
			"MY_REDIS.A_PORT=udp://172.17.0.2:53",
			"MY_REDIS.A_PORT_53_UDP=udp://172.17.0.2:53",
			"MY_REDIS.A_PORT_53_UDP_ADDR=172.17.0.2",
			"MY_REDIS.A_PORT_53_UDP_PORT=53",
			"MY_REDIS.A_PORT_53_UDP_PROTO=udp",
			"MY_REDIS.A_NAME=/web/my-redis.a",
		}},
		"IPv6 only": {"r", addresses("fd00::2"), ports(t, "80"), []string{
			"R_PORT=tcp://[fd00::2]:80",
			"R_PORT_80_TCP=tcp://[fd00::2]:80",
			"R_PORT_80_TCP_ADDR=fd00::2",
			"R_PORT_80_TCP_PORT=80",
			"R_PORT_80_TCP_PROTO=tcp",
			"R_NAME=/web/r",
		}},
		"no ports": {"r", addresses("172.17.0.2"), nil, []string{"R_NAME=/web/r"}},
		"two in a row are no range; by number, TCP first, each once": {
			"r", addresses("10.0.0.2"), ports(t, "443/tcp", "81", "80-81", "80/udp"), []string{
				"R_PORT=tcp://10.0.0.2:80",
				// 80/tcp, 80/udp and 81/tcp count as three in a row
				"R_PORT_80_TCP_START=tcp://10.0.0.2:80",
				"R_PORT_80_TCP_ADDR=10.0.0.2",
				"R_PORT_80_TCP_PROTO=tcp",
				"R_PORT_80_TCP_PORT_START=80",
				"R_PORT_80_TCP_END=tcp://10.0.0.2:81",
				"R_PORT_80_TCP_PORT_END=81",
				"R_PORT_80_TCP=tcp://10.0.0.2:80",
				"R_PORT_80_TCP_PORT=80",
				"R_PORT_80_UDP=udp://10.0.0.2:80",
				"R_PORT_80_UDP_ADDR=10.0.0.2",
				"R_PORT_80_UDP_PORT=80",
				"R_PORT_80_UDP_PROTO=udp",
				"R_PORT_81_TCP=tcp://10.0.0.2:81",
				"R_PORT_81_TCP_ADDR=10.0.0.2",
				"R_PORT_81_TCP_PORT=81",
				"R_PORT_81_TCP_PROTO=tcp",
				"R_PORT_443_TCP=tcp://10.0.0.2:443",
				"R_PORT_443_TCP_ADDR=10.0.0.2",
				"R_PORT_443_TCP_PORT=443",
				"R_PORT_443_TCP_PROTO=tcp",
				"R_NAME=/web/r",
			},
		},
		"a range": {"r", addresses("10.0.0.2"), ports(t, "6379-6381"), []string{
			"R_PORT=tcp://10.0.0.2:6379",
			"R_PORT_6379_TCP_START=tcp://10.0.0.2:6379",
			"R_PORT_6379_TCP_ADDR=10.0.0.2",
			"R_PORT_6379_TCP_PROTO=tcp",
			"R_PORT_6379_TCP_PORT_START=6379",
			"R_PORT_6379_TCP_END=tcp://10.0.0.2:6381",
			"R_PORT_6379_TCP_PORT_END=6381",
			"R_PORT_6379_TCP=tcp://10.0.0.2:6379",
			"R_PORT_6379_TCP_PORT=6379",
			"R_PORT_6380_TCP=tcp://10.0.0.2:6380",
			"R_PORT_6380_TCP_ADDR=10.0.0.2",
			"R_PORT_6380_TCP_PORT=6380",
			"R_PORT_6380_TCP_PROTO=tcp",
			"R_PORT_6381_TCP=tcp://10.0.0.2:6381",
			"R_PORT_6381_TCP_ADDR=10.0.0.2",
			"R_PORT_6381_TCP_PORT=6381",
			"R_PORT_6381_TCP_PROTO=tcp",
			"R_NAME=/web/r",
		}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := Link{Client: "web", Server: "redis1", Alias: test.alias, Ports: test.ports}
			if diff := cmp.Diff(test.want, l.Env(Endpoint{Addresses: test.addresses})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestTwoPortsAreNoRange(t *testing.T) {
	t.Parallel()
	l := Link{Client: "web", Alias: "r", Ports: ports(t, "80-81", "443-444")}
	for _, v := range l.Env(Endpoint{Addresses: addresses("10.0.0.2")}) {
		if strings.Contains(v, "_START") || strings.Contains(v, "_END") {
			t.Errorf("got %s", v)
		}
	}
	// The last port there is ends a range as any other.
	l.Ports = ports(t, "65533-65535")
	if env := l.Env(Endpoint{Addresses: addresses("10.0.0.2")}); !strings.Contains(strings.Join(env, " "), "_PORT_END=65535") {
		t.Errorf("got %v", env)
	}
}

func TestHosts(t *testing.T) {
	t.Parallel()
	l := Link{Client: "web", Server: "redis1", Alias: "redis"}
	server := Endpoint{Addresses: addresses("fd00::2", "172.17.0.2")}
	if diff := cmp.Diff([]string{"172.17.0.2 redis redis1", "fd00::2 redis redis1"}, l.Hosts(server)); diff != "" {
		t.Error(diff)
	}
	l.Alias = l.Server
	if diff := cmp.Diff([]string{"172.17.0.2 redis1", "fd00::2 redis1"}, l.Hosts(server)); diff != "" {
		t.Error(diff)
	}
}
