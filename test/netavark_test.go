package test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// What Podman 5.4 and netavark 1.14 send; netavark_podman_test.go has both for real.
const (
	netavarkCreate = `{"name":"web","id":"87c32bb13654","driver":"ebpnet","created":"0001-01-01T00:00:00Z",` +
		`%s"ipv6_enabled":%v,"internal":%v,"dns_enabled":true,"options":{%s},"labels":{"a":"b"}}`
	netavarkSubnets = `"subnets":[{"subnet":"172.30.0.0/24","lease_range":{"start_ip":"172.30.0.129","end_ip":"172.30.0.255"}},{"subnet":"fd00:30::/64","gateway":"fd00:30::f"}],`
	netavarkNetwork = `{"dns_enabled":false,"driver":"ebpnet","id":"87c32bb13654","internal":false,"ipv6_enabled":true,"name":"web",` +
		`"network_interface":null,"options":null,"ipam_options":{"driver":"host-local"},"subnets":[` +
		`{"gateway":"172.30.0.1","lease_range":{"start_ip":"172.30.0.129","end_ip":"172.30.0.255"},"subnet":"172.30.0.0/24"},` +
		`{"gateway":"fd00:30::f","lease_range":null,"subnet":"fd00:30::/64"}],` +
		`"routes":[{"gateway":"172.30.0.9","destination":"10.98.0.0/16","metric":null}],"network_dns_servers":null}`
	netavarkPort = `{"container_port":%d,"host_ip":"%s","host_port":%d,"protocol":"%s","range":%d}`
)

// container is the input of setup and teardown; options are those of the
// container on the network.
func netavarkContainer(name, options string, ports ...string) string {
	return fmt.Sprintf(`{"container_id":"%s-id","container_name":"%s","port_mappings":[%s],"network":%s,`+
		`"network_options":{"aliases":["x"],"interface_name":"eth0",%s"options":null}}`,
		name, name, strings.Join(ports, ","), netavarkNetwork, options)
}

// answers expects an answer and gives it.
func answers(t *testing.T, h *testutil.Host, input string, args ...string) string {
	t.Helper()
	answer, code := h.TryNetavark(t, input, args...)
	if code != 0 {
		t.Fatalf("%q: exit code %d: %s", args, code, answer)
	}
	return answer
}

// answersNot expects an error that says text.
func answersNot(t *testing.T, h *testutil.Host, text, input string, args ...string) {
	t.Helper()
	answer, code := h.TryNetavark(t, input, args...)
	var told struct{ Error string }
	if err := json.Unmarshal([]byte(answer), &told); err != nil || code != 1 || !strings.Contains(told.Error, text) {
		t.Errorf("%q: exit code %d: %s; want an error that says %q", args, code, answer, text)
	}
}

type netavarkAnswer struct {
	Name    string `json:"name"`
	ID      string `json:"id"`
	Driver  string `json:"driver"`
	Subnets []struct {
		Subnet     netip.Prefix   `json:"subnet"`
		Gateway    netip.Addr     `json:"gateway"`
		LeaseRange map[string]any `json:"lease_range"`
	} `json:"subnets"`
	IPv6        bool              `json:"ipv6_enabled"`
	Internal    bool              `json:"internal"`
	DNS         bool              `json:"dns_enabled"`
	IPAMOptions map[string]string `json:"ipam_options"`
	Options     map[string]string `json:"options"`
	Labels      map[string]string `json:"labels"`
}

func created(t *testing.T, h *testutil.Host, subnets string, ipv6, internal bool, options string) netavarkAnswer {
	t.Helper()
	var n netavarkAnswer
	text := answers(t, h, fmt.Sprintf(netavarkCreate, subnets, ipv6, internal, options), "create")
	if err := json.Unmarshal([]byte(text), &n); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return n
}

func TestNetavarkCreate(t *testing.T) {
	h := newHost(t)
	h.Ebpnet(t, "network", "create", "other", "--subnet", "10.64.0.0/23")
	n := created(t, h, netavarkSubnets, false, false, `"mtu":"1400","isolate":"strict","ebpnet.icc":"false"`)
	if n.Name != "web" || n.ID != "87c32bb13654" || n.Driver != "ebpnet" || !n.IPv6 || n.Internal || n.DNS ||
		n.IPAMOptions["driver"] != "host-local" || n.Options["mtu"] != "1400" || n.Labels["a"] != "b" || len(n.Subnets) != 2 ||
		n.Subnets[0].Gateway.String() != "172.30.0.1" || n.Subnets[0].LeaseRange["start_ip"] != "172.30.0.129" ||
		n.Subnets[1].Gateway.String() != "fd00:30::f" {
		t.Errorf("the answer is %+v", n)
	}
	var made struct {
		Subnets  []netip.Prefix `json:"subnets"`
		Gateways []netip.Addr   `json:"gateways"`
		ICC      bool           `json:"icc"`
		MTU      int            `json:"mtu"`
	}
	h.EbpnetJSON(t, &made, "network", "inspect", "web")
	if len(made.Subnets) != 2 || made.Gateways[1].String() != "fd00:30::f" || made.ICC || made.MTU != 1400 {
		t.Errorf("the network is %+v", made)
	}

	// Podman tells nobody that it removed the network: it is made anew.
	n = created(t, h, "", true, true, "")
	if len(n.Subnets) != 2 || !n.IPv6 || !n.Internal || n.Subnets[0].Subnet.String() != "10.64.2.0/24" || !n.Subnets[1].Subnet.Addr().Is6() {
		t.Errorf("where nothing is asked for, the answer is %+v", n)
	}
	// Where somebody is on it, or if it is the user's, it is not.
	h.NewContainer(t, "c", "web")
	answersNot(t, h, `"web" exists already`, fmt.Sprintf(netavarkCreate, "", false, false, ""), "create")
	h.Ebpnet(t, "endpoint", "rm", "c")
	h.Ebpnet(t, "network", "rm", "web")
	createNet(t, h)
	answersNot(t, h, `"net" exists already`, strings.Replace(fmt.Sprintf(netavarkCreate, "", false, false, ""), "web", "net", 1), "create")

	h.Run(t, "ip", "route", "add", "unreachable", "10.64.2.0/24")
	if n = created(t, h, "", false, false, ""); len(n.Subnets) != 1 || n.Subnets[0].Subnet.String() != "10.64.3.0/24" {
		t.Errorf("beside a route of the host the answer is %+v", n)
	}
}

func TestNetavarkRefuses(t *testing.T) {
	h := newHost(t)
	for option, text := range map[string]string{
		`"vlan":"7"`:         "option vlan=7: ebpnet has no such option",
		`"isolate":"false"`:  "always apart",
		`"mtu":"big"`:        "want a number of bytes",
		`"ebpnet.sky":"red"`: `"ebpnet.sky"`,
	} {
		answersNot(t, h, text, fmt.Sprintf(netavarkCreate, netavarkSubnets, false, false, option), "create")
	}
	answersNot(t, h, "host bits", fmt.Sprintf(netavarkCreate, `"subnets":[{"subnet":"10.9.9.9/24"}],`, false, false, ""), "create")
	answersNot(t, h, "want the JSON", "", "create")
	if left := h.Ebpnet(t, "network", "ls", "-o", "json"); strings.TrimSpace(left) != "[]" {
		t.Errorf("refused networks are there: %s", left)
	}
	bare := testutil.NewHost(t, "bare")
	answersNot(t, bare, "ebpnet load", fmt.Sprintf(netavarkCreate, netavarkSubnets, false, false, ""), "create")
	answersNot(t, bare, "ebpnet load", netavarkContainer("a", ""), "setup", bare.Path())
	answers(t, bare, netavarkContainer("a", ""), "teardown", bare.Path())
}

func TestNetavarkSetup(t *testing.T) {
	h := newHost(t)
	a, b := testutil.NewNetns(t, "a"), testutil.NewNetns(t, "b")
	got := answers(t, h, netavarkContainer("a", `"static_ips":["172.30.0.50","fd00:30::50"],"static_mac":"02:11:22:33:44:55",`,
		fmt.Sprintf(netavarkPort, service, "", 8080, "tcp,udp", 2), fmt.Sprintf(netavarkPort, service, "127.0.0.2", 99, "tcp", 1)), "setup", a.Path())
	want := `{"dns_search_domains":[],"dns_server_ips":[],"interfaces":{"eth0":{"mac_address":"02:11:22:33:44:55","subnets":[` +
		`{"gateway":"172.30.0.1","ipnet":"172.30.0.50/24"},{"gateway":"fd00:30::f","ipnet":"fd00:30::50/64"}]}}}` + "\n"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	// Nobody has chosen b's addresses yet.
	var status struct {
		Interfaces map[string]struct {
			Subnets []struct{ IPNet netip.Prefix }
		}
	}
	if err := json.Unmarshal([]byte(answers(t, h, netavarkContainer("b", ""), "setup", b.Path())), &status); err != nil {
		t.Fatal(err)
	}
	subnets := status.Interfaces["eth0"].Subnets
	if len(subnets) != 2 || subnets[0].IPNet.String() != "172.30.0.129/24" {
		t.Errorf("b has %+v, want the first of its lease range, and IPv6", subnets)
	}
	ping(t, b, netip.MustParseAddr("172.30.0.50"))
	ping(t, a, subnets[1].IPNet.Addr())
	if routes := b.Run(t, "ip", "route"); !strings.Contains(routes, "default via 172.30.0.1") || !strings.Contains(routes, "10.98.0.0/16 via 172.30.0.9") {
		t.Errorf("b has routes\n%s", routes)
	}
	serve(t, a, service)
	for _, address := range []string{"127.0.0.1:8080", "[::1]:8080", "127.0.0.2:99"} {
		connects(t, h.Netns, "tcp", address)
	}
	connects(t, h.Netns, "udp", "127.0.0.1:8080")
	if _, err := h.Dial(t, "tcp", "127.0.0.1:99"); err == nil {
		t.Error("a port is published at an address that was not asked for")
	}

	// One that was started again elsewhere is there now, once.
	again := testutil.NewNetns(t, "again")
	answers(t, h, netavarkContainer("b", ""), "setup", again.Path())
	ping(t, again, netip.MustParseAddr("172.30.0.50"))
	if strings.Contains(b.Run(t, "ip", "-o", "link"), "eth0") {
		t.Error("what b had before is still there")
	}

	for range 2 {
		answers(t, h, netavarkContainer("a", ""), "teardown", a.Path())
		answers(t, h, netavarkContainer("b", ""), "teardown", "/run/netns/gone")
	}
	expectNoEndpoints(t, h)
}

func TestNetavarkSetupFails(t *testing.T) {
	h := newHost(t)
	answers(t, h, fmt.Sprintf(netavarkCreate, netavarkSubnets, true, false, ""), "create")
	a, b := testutil.NewNetns(t, "a"), testutil.NewNetns(t, "b")
	port := fmt.Sprintf(netavarkPort, service, "", 8080, "tcp", 1)
	answers(t, h, netavarkContainer("a", `"static_ips":["172.30.0.50"],`, port), "setup", a.Path())
	answersNot(t, h, "8080", netavarkContainer("b", "", port), "setup", b.Path())
	answersNot(t, h, "172.30.0.50", netavarkContainer("b", `"static_ips":["172.30.0.50"],`), "setup", b.Path())
	answersNot(t, h, "172.30.0.1", netavarkContainer("b", `"static_ips":["172.30.0.1"],`), "setup", b.Path())
	answersNot(t, h, "/run/netns/gone", netavarkContainer("b", ""), "setup", "/run/netns/gone")
	answersNot(t, h, "host's own", netavarkContainer("b", ""), "setup", h.Path())
	answersNot(t, h, "subnets", strings.ReplaceAll(netavarkContainer("b", ""), "172.30.0", "172.29.0"), "setup", b.Path())
	if strings.Contains(b.Run(t, "ip", "-o", "link"), "eth0") || len(endpoints(t, h)) != 1 {
		t.Error("something is left of what failed")
	}

	// The namespace goes without a word, as with a container that is killed.
	a.Remove(t)
	testutil.Eventually(t, "the namespace's veth goes", func() bool { return veths(t, h.Netns) == 2 })
	answers(t, h, netavarkContainer("a", "", port), "teardown", a.Path())
	expectNoEndpoints(t, h)
	answers(t, h, netavarkContainer("b", `"static_ips":["172.30.0.50"],`, port), "setup", b.Path())
	answers(t, h, netavarkContainer("b", ""), "teardown", b.Path())
	expectNoEndpoints(t, h)
}
