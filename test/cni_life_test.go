package test

import (
	"encoding/json"
	"fmt"
	mathrand "math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// TestCNIGC removes what the runtime does not know any more, of one of two
// networks of CNI that are the same network of ebpnet.
func TestCNIGC(t *testing.T) {
	h := newHost(t)
	c := testutil.NewCNI(t, h)
	h.Ebpnet(t, "network", "create", "shared", "--subnet", subnet4)
	conf := func(name string) map[string]any {
		return cniNetwork(h, name, "1.1.0", map[string]any{"network": "shared"})
	}
	kept := h.NewContainer(t, "kept", "shared")
	for i, network := range []string{"one", "one", "one", "two"} {
		id := fmt.Sprintf("c%d", i)
		expectCall(t, c, "ADD", testutil.Attachment{ContainerID: id, Netns: testutil.NewNetns(t, id).Path(), Ifname: "eth0", Args: "K8S_POD_NAME=" + id}, conf(network))
	}
	left := func(want ...string) {
		t.Helper()
		var got []string
		for i := range 4 {
			if name := fmt.Sprintf("c%d", i); len(endpointsFor(t, h, name)) == 1 {
				got = append(got, name)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("left are: %s", diff)
		}
	}
	collect := func(key string, ids ...string) {
		t.Helper()
		var valid []map[string]string
		for _, id := range ids {
			valid = append(valid, map[string]string{"containerID": id, "ifname": "eth0"})
		}
		one := conf("one")
		one[key] = valid
		expectCall(t, c, "GC", testutil.Attachment{}, one)
	}
	collect("cni.dev/valid-attachments", "c0", "c1", "c2")
	left("c0", "c1", "c2", "c3")
	collect("cni.dev/valid-attachments", "c0", "c1", "c3")
	left("c0", "c1", "c3")
	collect("cni.dev/attachments", "c1") // as libcni 1.2.0 says it
	left("c1", "c3")
	collect("cni.dev/valid-attachments")
	left("c3")
	ping(t, h.Netns, kept.IP4)
}

// TestCNIPublishesByFamily puts a container on networks of which no one has both
// families: each publishes what those before it could not.
func TestCNIPublishesByFamily(t *testing.T) {
	h, u := newOutside(t)
	c := testutil.NewCNI(t, h)
	n := testutil.NewNetns(t, "web")
	serve(t, n, service)
	conf := func(name, subnet string) map[string]any {
		return cniNetwork(h, name, "1.1.0", map[string]any{"subnets": []string{subnet}, "runtimeConfig": map[string]any{
			"portMappings": []map[string]any{{"hostPort": 8080, "containerPort": service}},
		}})
	}
	for i, on := range []struct {
		conf map[string]any
		want []string // host addresses of what its endpoint publishes
	}{
		{conf("four", "172.30.0.0/24"), []string{"0.0.0.0"}},
		{conf("six", "fd00:30::/64"), []string{"::"}},
		{conf("more", "172.31.0.0/24"), nil},
	} {
		at := testutil.Attachment{ContainerID: "web", Netns: n.Path(), Ifname: fmt.Sprintf("eth%d", i), Args: "K8S_POD_NAME=web"}
		on.conf["prevResult"] = json.RawMessage(expectCall(t, c, "ADD", at, on.conf))
		expectCall(t, c, "CHECK", at, on.conf)
		network := on.conf["name"].(string)
		var got []string
		for _, p := range publications(t, h, endpointsFor(t, h, "web")[network].Name) {
			got = append(got, p.HostAddress)
		}
		if diff := cmp.Diff(on.want, got); diff != "" {
			t.Errorf("network %s: %s", network, diff)
		}
	}
	connects(t, u.Outside, "tcp", fmt.Sprintf("%s:8080", h.IP4))
	connects(t, u.Outside, "tcp", fmt.Sprintf("[%s]:8080", h.IP6))
}

// TestCNIChain has other plugins before and after ebpnet.
func TestCNIChain(t *testing.T) {
	h := newHost(t)
	c := testutil.NewCNI(t, h)
	n := testutil.NewNetns(t, "a")
	name := h.Name + "-chain"
	testutil.WriteCNINetwork(t, c.Networks, name, "1.0.0",
		map[string]any{"type": "loopback"},
		ebpnetPlugin(h, map[string]any{"subnets": []string{subnet4}, "network": "net"}),
		map[string]any{"type": "tuning", "sysctl": map[string]string{"net.ipv4.conf.all.log_martians": "1"}})
	r := decodeCNI(t, c.Tool(t, "add", name, n))
	if len(r.Interfaces) != 3 || r.Interfaces[0].Name != "lo" || r.Interfaces[2].Name != "eth0" {
		t.Errorf("interfaces are %+v, want the loopback's, too", r.Interfaces)
	}
	last := r.IPs[len(r.IPs)-1]
	if !strings.HasPrefix(last.Address, "172.30.0.") || last.Interface == nil || *last.Interface != 2 {
		t.Errorf("the address is %+v, want it of the third interface", last)
	}
	c.Tool(t, "check", name, n)
	c.Tool(t, "del", name, n)
	expectNoEndpoints(t, h)
}

// TestCNIKilled kills the plugin at any moment of an ADD: DEL tidies, and the
// next ADD works.
func TestCNIKilled(t *testing.T) {
	const rounds = 15
	h := newHost(t)
	c := testutil.NewCNI(t, h)
	conf := cniNetwork(h, "net", "1.1.0", map[string]any{
		"subnets": []string{subnet4}, "runtimeConfig": map[string]any{"portMappings": []map[string]any{{"hostPort": 8080, "containerPort": 80}}},
	})
	n := testutil.NewNetns(t, "a")
	at := testutil.Attachment{ContainerID: "a", Netns: n.Path(), Ifname: "eth0"}
	start := time.Now()
	expectCall(t, c, "ADD", at, conf)
	longest := time.Since(start)
	for range rounds {
		expectCall(t, c, "DEL", at, conf)
		p := c.BeginCall(t, "ADD", at, conf)
		after := mathrand.N(longest)
		time.Sleep(after)
		p.Kill()
		expectCall(t, c, "DEL", at, conf)
		if left := veths(t, n); left != 0 {
			t.Errorf("killed after %v: %d devices are left in the namespace", after, left)
		}
		expectNoEndpoints(t, h)
		expectCall(t, c, "ADD", at, conf)
		ping(t, n, gateway4)
		if t.Failed() {
			t.Fatalf("killed after %v", after)
		}
	}
	expectCall(t, c, "DEL", at, conf)
	expectNoEndpoints(t, h)
}
