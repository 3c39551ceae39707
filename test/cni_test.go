package test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// cniResult is what a plugin answers an ADD with.
type cniResult struct {
	CNIVersion string
	Interfaces []struct {
		Name, Mac, Sandbox string
		Mtu                int
	}
	IPs []struct {
		Address, Gateway string
		Interface        *int
	}
	Routes []struct{ Dst, Gw string }
	DNS    struct{ Nameservers []string }
}

func decodeCNI(t *testing.T, text string) (r cniResult) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return r
}

// cniNetwork is the configuration that a runtime gives ebpnet's plugin.
func cniNetwork(h *testutil.Host, name, version string, more map[string]any) map[string]any {
	conf := ebpnetPlugin(h, more)
	conf["name"], conf["cniVersion"] = name, version
	delete(conf, "capabilities")
	return conf
}

// TestCNITool has cnitool call the plugin as runtimes do, in each version of
// the spec.
func TestCNITool(t *testing.T) {
	h, u := newOutside(t)
	c := testutil.NewCNI(t, h)
	serve(t, u.Outside, service)
	for _, version := range []string{"0.4.0", "1.0.0", "1.1.0"} {
		t.Run(version, func(t *testing.T) {
			// cnitool keeps what it added by the network's name, for all users of the machine.
			name := h.Name + "-" + version
			testutil.WriteCNINetwork(t, c.Networks, name, version, ebpnetPlugin(h, map[string]any{
				"network": "net", "subnets": []string{subnet4, subnet6}, "options": map[string]any{"ebpnet.mtu": 1400},
				"dns": map[string]any{"nameservers": []string{"192.0.2.53"}},
			}))
			a, b := testutil.NewNetns(t, "a"), testutil.NewNetns(t, "b")
			c.Tool(t, "status", name, a)
			r := decodeCNI(t, c.Tool(t, "add", name, a))
			other := decodeCNI(t, c.Tool(t, "add", name, b))
			expectResult(t, r, version, a)
			for _, ip := range other.IPs {
				ping(t, a, netip.MustParsePrefix(ip.Address).Addr())
			}
			sees(t, a, "tcp", at(u.IP4, service), h.IP4)
			c.Tool(t, "check", name, a)
			c.Tool(t, "check", name, b)

			if _, stderr, err := c.TryTool("add", name, a); err == nil || !strings.Contains(stderr, "exists already") {
				t.Errorf("added twice: %v, %s", err, stderr)
			}
			c.Tool(t, "check", name, a)

			a.Run(t, "ip", "addr", "del", r.IPs[0].Address, "dev", "eth0")
			if _, stderr, err := c.TryTool("check", name, a); err == nil || !strings.Contains(stderr, r.IPs[0].Address) {
				t.Errorf("checked without its address: %v, %s", err, stderr)
			}
			c.Tool(t, "del", name, a)
			if n := veths(t, a); n != 0 {
				t.Errorf("%d devices are left in the namespace", n)
			}
			c.Tool(t, "del", name, a)
			b.Remove(t)
			c.Tool(t, "del", name, b)
			c.Tool(t, "del", name, b)
			expectNoEndpoints(t, h)
			c.Tool(t, "gc", name, a)
		})
	}
}

// expectResult expects the result of the first ADD of a namespace to the
// network "net".
func expectResult(t *testing.T, r cniResult, version string, n *testutil.Netns) {
	t.Helper()
	if r.CNIVersion != version || len(r.Interfaces) != 2 || len(r.IPs) != 2 {
		t.Fatalf("the result is %+v", r)
	}
	inside := r.Interfaces[1]
	mtu := 0
	if version == "1.1.0" {
		mtu = 1400
	}
	if !strings.HasPrefix(r.Interfaces[0].Name, "ebp-") || r.Interfaces[0].Sandbox != "" ||
		inside.Name != "eth0" || inside.Sandbox != n.Path() || inside.Mtu != mtu {
		t.Errorf("interfaces are %+v", r.Interfaces)
	}
	link := n.Run(t, "ip", "link", "show", "eth0")
	if !strings.Contains(link, inside.Mac) || !strings.Contains(link, "mtu 1400") {
		t.Errorf("the result has %+v, the namespace %s", inside, link)
	}
	var routes []string
	for _, route := range r.Routes {
		routes = append(routes, route.Dst+" "+route.Gw)
	}
	slices.Sort(routes)
	if diff := cmp.Diff([]string{"0.0.0.0/0 " + gateway4.String(), "::/0 " + gateway6.String()}, routes); diff != "" {
		t.Errorf("routes: %s", diff)
	}
	for i, gateway := range []netip.Addr{gateway4, gateway6} {
		ip := r.IPs[i]
		if ip.Gateway != gateway.String() || ip.Interface == nil || *ip.Interface != 1 || !strings.Contains(n.Run(t, "ip", "-o", "addr"), " "+ip.Address+" ") {
			t.Errorf("address %+v, want one that the namespace has:\n%s", ip, n.Run(t, "ip", "-o", "addr"))
		}
	}
	if !slices.Equal(r.DNS.Nameservers, []string{"192.0.2.53"}) {
		t.Errorf("DNS is %+v", r.DNS)
	}
}

// TestCNIWishes passes what a runtime asks for, by each way that there is.
func TestCNIWishes(t *testing.T) {
	h, u := newOutside(t)
	c := testutil.NewCNI(t, h)
	conf := func(more map[string]any) map[string]any {
		return cniNetwork(h, "net", "1.1.0", map[string]any{"subnets": []string{subnet4, subnet6}, "runtimeConfig": more, "args": map[string]any{
			"cni": map[string]any{"ips": []string{"172.30.0.9"}},
		}})
	}
	n := testutil.NewNetns(t, "web")
	at := testutil.Attachment{ContainerID: "web", Netns: n.Path(), Ifname: "ab0", Args: "K8S_POD_NAME=web-0;IP=172.30.0.8;MAC=02:00:00:00:00:08;OTHER=1;IgnoreUnknown=true"}
	wishes := conf(map[string]any{
		"ips": []string{"172.30.0.7/24", "fd00:30::7"}, "mac": "02:00:00:00:00:07",
		"portMappings": []map[string]any{
			{"hostPort": 8080, "containerPort": 7000},
			{"hostPort": 8081, "containerPort": 7001, "protocol": "TCP"},
			{"hostPort": 8081, "containerPort": 7001, "protocol": "udp", "hostIP": h.IP4.String()},
			{"hostPort": 0, "containerPort": 7002, "protocol": "tcp"},
		},
	})
	stdout, stderr, failed := c.Call(t, "ADD", at, wishes)
	if failed != nil || stderr != "" {
		t.Fatalf("%+v %s", failed, stderr)
	}
	r := decodeCNI(t, stdout)
	if r.Interfaces[1].Mac != "02:00:00:00:00:07" || r.IPs[0].Address != "172.30.0.7/24" || r.IPs[1].Address != "fd00:30::7/64" {
		t.Errorf("the result is %+v", r)
	}
	serve(t, n, service)
	serve(t, n, service+1)
	connects(t, u.Outside, "tcp", fmt.Sprintf("%s:8080", h.IP4))
	connects(t, u.Outside, "tcp", fmt.Sprintf("[%s]:8081", h.IP6))
	connects(t, u.Outside, "udp", fmt.Sprintf("%s:8081", h.IP4))
	e, there := endpointsFor(t, h, "web-0")["net"]
	if !there || e.Container.ID != "web" || e.Ifname != "ab0" || e.Netns.Path != n.Path() {
		t.Errorf("the endpoint is %+v", e)
	}
	if list := publications(t, h, e.Name); len(list) != 2 {
		t.Errorf("published are %+v, want a range of TCP and a port of UDP", list)
	}
	wishes["prevResult"] = json.RawMessage(stdout)
	expectCall(t, c, "CHECK", at, wishes)
	h.Ebpnet(t, "port", "rm", e.Name, h.IP4.String()+":8081:7001/udp")
	expectFailure(t, c, 999, "CHECK", at, wishes, "8081:7001/udp is not published")
	expectCall(t, c, "DEL", at, wishes)

	// Without such a wish of a capability: args, then CNI_ARGS.
	for _, want := range []string{"172.30.0.9/24", "172.30.0.8/24"} {
		wishes := conf(nil)
		if want == "172.30.0.8/24" {
			delete(wishes, "args")
		}
		r := decodeCNI(t, expectCall(t, c, "ADD", at, wishes))
		if r.IPs[0].Address != want || r.Interfaces[1].Mac != "02:00:00:00:00:08" {
			t.Errorf("the result is %+v, want %s", r, want)
		}
		expectCall(t, c, "DEL", at, wishes)
	}
	expectNoEndpoints(t, h)
}

func expectCall(t *testing.T, c *testutil.CNI, verb string, at testutil.Attachment, conf any) string {
	t.Helper()
	stdout, stderr, failed := c.Call(t, verb, at, conf)
	if failed != nil {
		t.Fatalf("%s: %+v %s", verb, failed, stderr)
	}
	return stdout
}

// expectFailure expects a call to fail with the code and one line that has the
// words.
func expectFailure(t *testing.T, c *testutil.CNI, code uint, verb string, at testutil.Attachment, conf any, words ...string) {
	t.Helper()
	stdout, _, failed := c.Call(t, verb, at, conf)
	if failed == nil {
		t.Errorf("%s succeeds, want %q: %s", verb, words, stdout)
		return
	}
	if failed.Code != code || strings.Contains(failed.Msg, "\n") {
		t.Errorf("%s: %+v, want code %d and one line", verb, failed, code)
	}
	for _, word := range words {
		if !strings.Contains(failed.Msg, word) {
			t.Errorf("%s: no %q in %q", verb, word, failed.Msg)
		}
	}
}

// Codes of CNI's errors.
const (
	cniBadEnvironment = 4
	cniNoJSON         = 6
	cniBadConf        = 7
	cniBadNetns       = 8
	cniTryAgain       = 11
	cniNotAvailable   = 50
	cniTaken          = 100 // ebpnet's own
	cniInternal       = 999
)

func TestCNIRefuses(t *testing.T) {
	h := newHost(t)
	c := testutil.NewCNI(t, h)
	h.Ebpnet(t, "network", "create", "taken", "--subnet", "172.29.0.0/24")
	a, b := testutil.NewNetns(t, "a"), testutil.NewNetns(t, "b")
	good := func() map[string]any {
		return cniNetwork(h, "net", "1.1.0", map[string]any{"subnets": []string{subnet4}})
	}
	expectCall(t, c, "ADD", testutil.Attachment{ContainerID: "a", Netns: a.Path(), Ifname: "eth0"}, func() any {
		conf := good()
		conf["runtimeConfig"] = map[string]any{"portMappings": []map[string]any{{"hostPort": 8080, "containerPort": 80}}}
		return conf
	}())
	before := everything(t, h)
	for words, test := range map[string]struct {
		code   uint
		change func(conf map[string]any, at *testutil.Attachment)
	}{
		`"ebpnet.iccc"`: {cniBadConf, func(conf map[string]any, _ *testutil.Attachment) {
			conf["network"], conf["options"] = "new", map[string]any{"ebpnet.iccc": true}
		}},
		`value "perhaps"`: {cniBadConf, func(conf map[string]any, _ *testutil.Attachment) {
			conf["options"] = map[string]any{"ebpnet.icc": "perhaps"}
		}},
		`no network "new"`: {cniBadConf, func(conf map[string]any, _ *testutil.Attachment) {
			conf["network"] = "new"
			delete(conf, "subnets")
		}},
		"leave out gateway and options": {cniBadConf, func(conf map[string]any, _ *testutil.Attachment) {
			conf["options"] = map[string]any{"ebpnet.icc": true}
			delete(conf, "subnets")
		}},
		"172.30.0.0/25":           {cniBadConf, func(conf map[string]any, _ *testutil.Attachment) { conf["subnets"] = []string{"172.30.0.0/25"} }},
		`"172.30.0.1/24"`:         {cniBadConf, func(conf map[string]any, _ *testutil.Attachment) { conf["subnets"] = []string{"172.30.0.1/24"} }},
		"network name":            {cniBadConf, func(conf map[string]any, _ *testutil.Attachment) { conf["network"] = "a/b" }},
		`state "state"`:           {cniBadConf, func(conf map[string]any, _ *testutil.Attachment) { conf["state"] = "state" }},
		"network configuration":   {cniNoJSON, func(conf map[string]any, _ *testutil.Attachment) { conf["subnets"] = "172.30.0.0/24" }},
		"want a string, a number": {cniNoJSON, func(conf map[string]any, _ *testutil.Attachment) { conf["options"] = map[string]any{"ebpnet.icc": nil} }},
		"no network namespace":    {cniBadNetns, func(_ map[string]any, at *testutil.Attachment) { at.Netns = "/run/netns/gone" }},
		"host's own":              {cniBadNetns, func(_ map[string]any, at *testutil.Attachment) { at.Netns = h.Path() }},
		"an interface of that name": {cniTaken, func(_ map[string]any, at *testutil.Attachment) {
			at.Netns, at.ContainerID = a.Path(), "other"
		}},
		"exists already": {cniTaken, func(_ map[string]any, at *testutil.Attachment) {
			at.Netns, at.ContainerID = a.Path(), "a"
		}},
		"8080": {cniTaken, func(conf map[string]any, _ *testutil.Attachment) {
			conf["runtimeConfig"] = map[string]any{"portMappings": []map[string]any{{"hostPort": 8080, "containerPort": 80}}}
		}},
		`protocol "icmp"`: {cniBadConf, func(conf map[string]any, _ *testutil.Attachment) {
			conf["runtimeConfig"] = map[string]any{"portMappings": []map[string]any{{"hostPort": 8081, "containerPort": 80, "protocol": "icmp"}}}
		}},
		`host IP "here"`: {cniBadConf, func(conf map[string]any, _ *testutil.Attachment) {
			conf["runtimeConfig"] = map[string]any{"portMappings": []map[string]any{{"hostPort": 8081, "containerPort": 80, "hostIP": "here"}}}
		}},
		`address "here"`:          {cniBadConf, func(_ map[string]any, at *testutil.Attachment) { at.Args = "IP=here" }},
		`MAC "ff:ff:ff:ff:ff:ff"`: {cniBadConf, func(_ map[string]any, at *testutil.Attachment) { at.Args = "MAC=ff:ff:ff:ff:ff:ff" }},
		"UNKNOWN=1":               {cniBadEnvironment, func(_ map[string]any, at *testutil.Attachment) { at.Args = "UNKNOWN=1" }},
		"K8S_POD_NAME":            {cniBadEnvironment, func(_ map[string]any, at *testutil.Attachment) { at.Args = "K8S_POD_NAME=a\x1bb" }},
		"ipam plugin nosuch":      {cniInternal, func(conf map[string]any, _ *testutil.Attachment) { conf["ipam"] = map[string]string{"type": "nosuch"} }},
	} {
		conf, at := good(), testutil.Attachment{ContainerID: "b", Netns: b.Path(), Ifname: "eth0"}
		test.change(conf, &at)
		expectFailure(t, c, test.code, "ADD", at, conf, words)
		if n := veths(t, b); n != 0 {
			t.Errorf("%s: %d devices are left", words, n)
		}
	}
	if diff := cmp.Diff(before, everything(t, h)); diff != "" {
		t.Errorf("something is left of what was refused: %s", diff)
	}
	_, stderr, failed := c.Call(t, "STATUS", testutil.Attachment{}, cniNetwork(h, "net", "1.1.0", map[string]any{"subnets": []string{subnet4}, "optoins": 1, "ipMasq": true}))
	if failed != nil || !strings.Contains(stderr, "field=optoins") || strings.Contains(stderr, "ipMasq") {
		t.Errorf("a field that nobody knows: %+v %s", failed, stderr)
	}
}

func TestCNIStatus(t *testing.T) {
	t.Parallel()
	h := testutil.NewHost(t, "host")
	c := testutil.NewCNI(t, h)
	conf := cniNetwork(h, "net", "1.1.0", map[string]any{"subnets": []string{"172.30.0.0/30"}})
	n := testutil.NewNetns(t, "a")
	at := testutil.Attachment{ContainerID: "a", Netns: n.Path(), Ifname: "eth0"}
	status := testutil.Attachment{}
	expectFailure(t, c, cniNotAvailable, "STATUS", status, conf, "ebpnet load")
	expectFailure(t, c, cniTryAgain, "ADD", at, conf, "ebpnet load")
	expectCall(t, c, "DEL", at, conf)
	h.Ebpnet(t, "load")
	expectCall(t, c, "STATUS", status, conf)
	expectCall(t, c, "ADD", at, conf)
	expectFailure(t, c, cniNotAvailable, "STATUS", status, conf, "no free address")
	h.Ebpnet(t, "unload")
	expectFailure(t, c, cniTryAgain, "DEL", at, conf, "ebpnet load")
	n.Remove(t)
	expectCall(t, c, "DEL", at, conf)
	h.Ebpnet(t, "load")
	expectCall(t, c, "STATUS", status, conf)
	expectNoEndpoints(t, h)
	expectFailure(t, c, cniNotAvailable, "STATUS", status, cniNetwork(h, "new", "1.1.0", nil), `no network "new"`)
	// What ADD would refuse of the network that is there.
	for words, other := range map[string]map[string]any{
		"wanted are 172.31.0.0/30":      {"subnets": []string{"172.31.0.0/30"}},
		"wanted are 172.30.0.0/30":      {"subnets": []string{"172.30.0.0/30"}, "gateway": "172.30.0.2"},
		"leave out gateway and options": {"gateway": "172.30.0.2"},
	} {
		other := cniNetwork(h, "net", "1.1.0", other)
		expectFailure(t, c, cniBadConf, "STATUS", status, other, words)
		expectFailure(t, c, cniBadConf, "ADD", at, other, words)
	}
	expectCall(t, c, "STATUS", status, cniNetwork(h, "new", "1.1.0", map[string]any{"subnets": []string{"172.31.0.0/30"}}))
	if list := h.Ebpnet(t, "network", "ls"); strings.Contains(list, "new") {
		t.Errorf("STATUS made a network:\n%s", list)
	}
	for verb, version := range map[string]string{"STATUS": "1.0.0", "GC": "0.4.0"} {
		expectFailure(t, c, 1, verb, status, cniNetwork(h, "net", version, nil), verb)
	}
	expectFailure(t, c, 1, "ADD", at, cniNetwork(h, "net", "0.3.1", nil), "incompatible")
	if out := expectCall(t, c, "VERSION", status, nil); !strings.Contains(out, `["0.4.0","1.0.0","1.1.0"]`) {
		t.Errorf("versions: %s", out)
	}
}
