package test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

func lines(s string) []string { return strings.Split(strings.TrimSpace(s), "\n") }

func TestLinkEnvIsThatOfDocker(t *testing.T) {
	h := newHost(t)
	h.Ebpnet(t, "network", "create", "net", "--subnet", "172.17.0.0/16")
	h.NewContainer(t, "redis1", "net", "--ip", "172.17.0.2", "--expose", "6379/tcp")
	h.NewContainer(t, "web", "net")
	h.NewContainer(t, "dashes", "net")
	h.NewContainer(t, "range", "net")

	h.Ebpnet(t, "link", "add", "web", "redis1:redis", "--port", "6379/tcp")
	expectEnv(t, h, "web", []string{
		"REDIS_PORT=tcp://172.17.0.2:6379",
		"REDIS_PORT_6379_TCP=tcp://172.17.0.2:6379",
		"REDIS_PORT_6379_TCP_ADDR=172.17.0.2",
		"REDIS_PORT_6379_TCP_PORT=6379",
		"REDIS_PORT_6379_TCP_PROTO=tcp",
		"REDIS_NAME=/web/redis",
	})

	h.Ebpnet(t, "link", "add", "dashes", "redis1:my-redis", "--port", "53/udp", "--port", "53/tcp")
	expectEnv(t, h, "dashes", []string{
		"MY_REDIS_PORT=tcp://172.17.0.2:53",
		"MY_REDIS_PORT_53_TCP=tcp://172.17.0.2:53",
		"MY_REDIS_PORT_53_TCP_ADDR=172.17.0.2",
		"MY_REDIS_PORT_53_TCP_PORT=53",
		"MY_REDIS_PORT_53_TCP_PROTO=tcp",
		"MY_REDIS_PORT_53_UDP=udp://172.17.0.2:53",
		"MY_REDIS_PORT_53_UDP_ADDR=172.17.0.2",
		"MY_REDIS_PORT_53_UDP_PORT=53",
		"MY_REDIS_PORT_53_UDP_PROTO=udp",
		"MY_REDIS_NAME=/dashes/my-redis",
	})

	h.Ebpnet(t, "link", "add", "range", "redis1:r", "--port", "7000-7002/tcp")
	want := []string{
		"R_PORT=tcp://172.17.0.2:7000",
		"R_PORT_7000_TCP_START=tcp://172.17.0.2:7000",
		"R_PORT_7000_TCP_PORT_START=7000",
		"R_PORT_7000_TCP_END=tcp://172.17.0.2:7002",
		"R_PORT_7000_TCP_PORT_END=7002",
		"R_NAME=/range/r",
	}
	for _, port := range []string{"7000", "7001", "7002"} {
		want = append(want, "R_PORT_"+port+"_TCP=tcp://172.17.0.2:"+port, "R_PORT_"+port+"_TCP_ADDR=172.17.0.2",
			"R_PORT_"+port+"_TCP_PORT="+port, "R_PORT_"+port+"_TCP_PROTO=tcp")
	}
	expectEnv(t, h, "range", want)

	if env := h.Ebpnet(t, "link", "env", "redis1"); strings.TrimSpace(env) != "" {
		t.Errorf("the server of a link has variables:\n%s", env)
	}
}

// expectEnv compares variables in any order, and each once: Docker itself
// prints some twice, and an environment cannot tell.
func expectEnv(t *testing.T, h *testutil.Host, client string, want []string) {
	t.Helper()
	got := lines(h.Ebpnet(t, "link", "env", client))
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, slices.Compact(got)); diff != "" {
		t.Errorf("link env %s (-want +got):\n%s", client, diff)
	}
}

func TestLinkHosts(t *testing.T) {
	h := newHost(t)
	h.Ebpnet(t, "network", "create", "net", "--subnet", "172.17.0.0/16", "--subnet", subnet6)
	server := h.NewContainer(t, "redis1", "net", "--ip", "172.17.0.2")
	h.NewContainer(t, "web", "net")
	h.NewContainer(t, "unlinked", "net")
	h.Ebpnet(t, "link", "add", "web", "redis1:redis", "--port", "6379/tcp")
	want := []string{"172.17.0.2 redis redis1", server.IP6.String() + " redis redis1"}
	if diff := cmp.Diff(want, lines(h.Ebpnet(t, "link", "hosts", "web"))); diff != "" {
		t.Errorf("link hosts (-want +got):\n%s", diff)
	}
	if out := h.Ebpnet(t, "link", "hosts", "unlinked"); strings.TrimSpace(out) != "" {
		t.Errorf("an unlinked endpoint has hosts:\n%s", out)
	}
	h.Ebpnet(t, "link", "rm", "web", "redis1")
	if out := h.Ebpnet(t, "link", "hosts", "web"); strings.TrimSpace(out) != "" {
		t.Errorf("a removed link has hosts:\n%s", out)
	}
}
