package netavark

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ebpnet/ebpnet/internal/agent"
	"github.com/ebpnet/ebpnet/internal/spec"
)

// What netavark sends of a network that `create` has completed.
const webNetwork = `{
	"dns_enabled": false, "driver": "ebpnet", "id": "87c32bb13654", "internal": false, "ipv6_enabled": true,
	"name": "web", "network_interface": null, "options": {"isolate": "strict", "mtu": "1400", "ebpnet.icc": "false"},
	"ipam_options": {"driver": "host-local"},
	"subnets": [
		{"gateway": "10.99.0.1", "lease_range": null, "subnet": "10.99.0.0/24"},
		{"gateway": "fd00:99::f", "lease_range": {"start_ip": "fd00:99::8000", "end_ip": null}, "subnet": "fd00:99::/64"}],
	"routes": [{"gateway": "10.99.0.9", "destination": "10.98.0.0/16", "metric": null}],
	"network_dns_servers": null}`

const webContainer = `{
	"container_id": "ebdf2680ecf8", "container_name": "c1",
	"port_mappings": [
		{"container_port": 80, "host_ip": "", "host_port": 8080, "protocol": "tcp", "range": 3},
		{"container_port": 53, "host_ip": "127.0.0.1", "host_port": 5353, "protocol": "tcp,udp", "range": 1},
		{"container_port": 99, "host_ip": "::1", "host_port": 99, "protocol": "", "range": 0}],
	"network": ` + webNetwork + `,
	"network_options": {"aliases": ["ebdf2680ecf8"], "interface_name": "eth0",
		"static_ips": ["10.99.0.50"], "static_mac": "02:11:22:33:44:55", "options": null}}`

func readWeb(t *testing.T) container {
	t.Helper()
	c, err := readContainer(strings.NewReader(webContainer))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestWanted(t *testing.T) {
	t.Parallel()
	got, err := readWeb(t).Network.wanted()
	if err != nil {
		t.Fatal(err)
	}
	want := spec.Network{
		Name:     "web",
		Subnets:  []netip.Prefix{netip.MustParsePrefix("10.99.0.0/24"), netip.MustParsePrefix("fd00:99::/64")},
		Gateways: []netip.Addr{netip.MustParseAddr("10.99.0.1"), netip.MustParseAddr("fd00:99::f")},
		MTU:      1400, Masquerade: true,
		Users: []spec.Identity{{Engine: "podman", ID: "87c32bb13654", Name: "web"}},
	}
	if diff := cmp.Diff(want, got, compare()); diff != "" {
		t.Error(diff)
	}
}

func compare() cmp.Option {
	return cmp.Options{
		cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	}
}

func TestOptions(t *testing.T) {
	t.Parallel()
	for key, values := range map[string][]string{
		"isolate":                       {"true", "1", "strict"},
		"mtu":                           {"1280", "0", "65535"},
		"com.docker.network.driver.mtu": {"1400"},
		"ebpnet.key":                    {"7"},
		"ebpnet.masquerade":             {"false"},
	} {
		for _, value := range values {
			if err := setOption(&spec.Network{}, key, value); err != nil {
				t.Errorf("%s=%s: %v", key, value, err)
			}
		}
	}
	for key, values := range map[string][]string{
		"isolate":          {"false", "0", "", "maybe"},
		"mtu":              {"", "1279", "65536", "-1", "big"},
		"ebpnet.mtu":       {"1"},
		"ebpnet.sky":       {"blue"},
		"no_default_route": {"true"},
		"metric":           {"100"},
		"vlan":             {"7"},
		"vrf":              {"red"},
		"mode":             {"unmanaged"},
		"bclim":            {"5"},
		"":                 {""},
	} {
		for _, value := range values {
			err := setOption(&spec.Network{}, key, value)
			if !errors.Is(err, spec.ErrInvalid) || !strings.Contains(err.Error(), key) {
				t.Errorf("%s=%s: %v, want ErrInvalid by name", key, value, err)
			}
		}
	}
}

func TestNetworkIsRefused(t *testing.T) {
	t.Parallel()
	for what, change := range map[string]func(*network){
		"two subnets of a family":  func(n *network) { n.Subnets[1].Subnet = "10.97.0.0/24" },
		"host bits":                func(n *network) { n.Subnets[0].Subnet = "10.99.0.7/24" },
		"gateway outside":          func(n *network) { n.Subnets[0].Gateway = "10.97.0.1" },
		"name":                     func(n *network) { n.Name = strings.Repeat("x", 64) },
		"ipam driver":              func(n *network) { n.IPAMOptions["driver"] = "dhcp" },
		"no ipam":                  func(n *network) { n.IPAMOptions["driver"] = "none" },
		"bridge name":              func(n *network) { n.Interface = "br0" },
		"name server":              func(n *network) { n.DNSServers = []string{"192.0.2.53"} },
		"option":                   func(n *network) { n.Options["vlan"] = "7" },
		"route without gateway":    func(n *network) { n.Routes[0].Gateway = "" },
		"route by a stranger":      func(n *network) { n.Routes[0].Gateway = "10.97.0.9" },
		"route by another family":  func(n *network) { n.Routes[0].Gateway = "fd00:99::9" },
		"route with host bits":     func(n *network) { n.Routes[0].Destination = "10.98.0.1/16" },
		"route to nothing":         func(n *network) { n.Routes[0].Destination = "" },
		"route with a metric":      func(n *network) { n.Routes[0].Metric = new(uint32); *n.Routes[0].Metric = 100 },
		"route that leads nowhere": func(n *network) { n.Routes[0].Type = "blackhole" },
	} {
		n := readWeb(t).Network
		change(&n)
		if _, err := n.wanted(); !errors.Is(err, spec.ErrInvalid) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want ErrInvalid in one line", what, err)
		}
	}
}

func TestEndpoint(t *testing.T) {
	t.Parallel()
	c := readWeb(t)
	n, err := c.Network.wanted()
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.endpoint("/run/netns/netns-1", n)
	if err != nil {
		t.Fatal(err)
	}
	want := spec.Endpoint{
		Name:      spec.EndpointName("ebdf2680ecf8", "87c32bb13654", "eth0"),
		Network:   "web",
		MAC:       spec.MAC{0x02, 0x11, 0x22, 0x33, 0x44, 0x55},
		Addresses: []netip.Addr{netip.MustParseAddr("10.99.0.50")},
		Netns:     spec.Netns{Path: "/run/netns/netns-1"},
		Ifname:    "eth0",
		Routes:    []spec.Route{{Destination: netip.MustParsePrefix("10.98.0.0/16"), Gateway: netip.MustParseAddr("10.99.0.9")}},
		Container: spec.Identity{Engine: "podman", ID: "ebdf2680ecf8", Name: "c1"},
	}
	if diff := cmp.Diff(want, got, compare()); diff != "" {
		t.Error(diff)
	}
	for what, change := range map[string]func(*container){
		"option":       func(c *container) { c.On.Options = map[string]string{"host_interface_name": "veth7"} },
		"interface":    func(c *container) { c.On.Interface = "a/b" },
		"MAC":          func(c *container) { c.On.MAC = "01:00:00:00:00:01" },
		"two a family": func(c *container) { c.On.Addresses = []string{"10.99.0.50", "10.99.0.51"} },
		"address":      func(c *container) { c.On.Addresses = []string{"everywhere"} },
	} {
		c := readWeb(t)
		change(&c)
		if _, err := c.endpoint("/run/netns/netns-1", n); !errors.Is(err, spec.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", what, err)
		}
	}
}

func texts(ports []spec.Port) []string {
	var all []string
	for _, p := range ports {
		all = append(all, p.String())
	}
	return all
}

func TestPorts(t *testing.T) {
	t.Parallel()
	ports, err := readWeb(t).ports()
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"8080-8082:80-82/tcp", "127.0.0.1:5353:53/tcp", "127.0.0.1:5353:53/udp", "[::1]:99:99/tcp"}
	if diff := cmp.Diff(want, texts(ports)); diff != "" {
		t.Error(diff)
	}
	for _, m := range []portMapping{
		{Container: 0, Host: 80},
		{Container: 65535, Host: 80, Range: 2},
		{Container: 80, Host: 65530, Range: 7},
		{Container: 80, Host: 80, Protocol: "icmp"},
		{Container: 80, Host: 80, Protocol: "tcp,"},
		{Container: 80, Host: 80, HostIP: "everywhere"},
		{Container: 80, Host: 80, HostIP: "::ffff:192.0.2.1"},
		{Container: 80, Host: 80, HostIP: "fe80::1%eth0"},
	} {
		c := container{Ports: []portMapping{m}}
		if ports, err := c.ports(); !errors.Is(err, spec.ErrInvalid) {
			t.Errorf("%+v: %v, %v; want ErrInvalid", m, texts(ports), err)
		}
	}
}

func TestLeaseRange(t *testing.T) {
	t.Parallel()
	subnet := netip.MustParsePrefix("10.99.0.0/24")
	for _, test := range []struct{ start, end, covering string }{
		{"10.99.0.129", "10.99.0.254", "10.99.0.128/25"},
		{"", "", "10.99.0.0/24"},
		{"10.99.0.64", "", "10.99.0.0/24"},
		{"10.99.0.7", "10.99.0.7", "10.99.0.7/32"},
	} {
		start, end, err := leaseRange{test.start, test.end}.within(subnet)
		if err != nil || covering(start, end).String() != test.covering {
			t.Errorf("%q to %q: %s, %v; want %s", test.start, test.end, covering(start, end), err, test.covering)
		}
	}
	for _, test := range []leaseRange{{"10.98.0.1", ""}, {"", "10.99.1.0"}, {"10.99.0.9", "10.99.0.8"}, {"fd00::1", ""}, {"here", ""}, {"", "there"}} {
		if start, end, err := test.within(subnet); !errors.Is(err, spec.ErrInvalid) {
			t.Errorf("%+v: %s to %s, %v; want ErrInvalid", test, start, end, err)
		}
	}
}

func TestStatus(t *testing.T) {
	t.Parallel()
	n, err := readWeb(t).Network.wanted()
	if err != nil {
		t.Fatal(err)
	}
	e := spec.Endpoint{
		MAC: spec.MAC{0x02, 0x11, 0x22, 0x33, 0x44, 0x55}, Ifname: "eth0",
		Addresses: []netip.Addr{netip.MustParseAddr("fd00:99::2"), netip.MustParseAddr("10.99.0.50")},
	}
	for _, test := range []struct {
		internal bool
		want     string
	}{
		{false, `{"dns_search_domains":[],"dns_server_ips":[],"interfaces":{"eth0":{"mac_address":"02:11:22:33:44:55","subnets":[` +
			`{"gateway":"fd00:99::f","ipnet":"fd00:99::2/64"},{"gateway":"10.99.0.1","ipnet":"10.99.0.50/24"}]}}}`},
		{true, `{"dns_search_domains":[],"dns_server_ips":[],"interfaces":{"eth0":{"mac_address":"02:11:22:33:44:55","subnets":[` +
			`{"ipnet":"fd00:99::2/64"},{"ipnet":"10.99.0.50/24"}]}}}`},
	} {
		n.Internal = test.internal
		got, err := json.Marshal(statusOf(e, n))
		if err != nil || string(got) != test.want {
			t.Errorf("internal %v: %s, %v; want %s", test.internal, got, err, test.want)
		}
	}
}

// run gives what the plugin prints, and its error.
func run(t *testing.T, stdin io.Reader, verb string, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	p := Plugin{
		Place:   agent.Place{State: t.TempDir(), Pins: t.TempDir()},
		Version: "1.2.3",
		Log:     slog.New(slog.DiscardHandler),
	}
	err := p.Run(t.Context(), verb, args, stdin, &out)
	return out.String(), err
}

func TestInfo(t *testing.T) {
	t.Parallel()
	got, err := run(t, strings.NewReader(""), "info")
	if want := `{"api_version":"1.0.0","version":"1.2.3"}` + "\n"; err != nil || got != want {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
}

// What is wrong in itself is refused, in the form that netavark reads.
func TestRefused(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		input string
		call  []string
		want  string
	}{
		"unknown verb":        {"", []string{"update"}, "want create, setup NETNS"},
		"no verb":             {"", []string{""}, "want create, setup NETNS"},
		"no namespace":        {webContainer, []string{"setup"}, "want create, setup NETNS"},
		"too many":            {webNetwork, []string{"create", "more"}, "want create, setup NETNS"},
		"no input":            {"", []string{"create"}, "want the JSON"},
		"no JSON":             {"hello", []string{"setup", "/run/netns/x"}, "want the JSON"},
		"other JSON":          {`{"container_id": 7}`, []string{"teardown", "/run/netns/x"}, "want the JSON"},
		"no container":        {`{}`, []string{"teardown", "/run/netns/x"}, "is missing"},
		"too long":            {strings.Repeat(" ", maxInput+1), []string{"create"}, "longer than"},
		"bad option":          {strings.Replace(webContainer, "strict", "false", 1), []string{"setup", "/run/netns/x"}, "always apart"},
		"no namespace's path": {webContainer, []string{"setup", "a b"}, "namespace"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := run(t, strings.NewReader(test.input), test.call[0], test.call[1:]...)
			var told struct{ Error string }
			if jsonErr := json.Unmarshal([]byte(got), &told); jsonErr != nil || strings.Count(got, "\n") != 1 {
				t.Errorf("%q: %v", got, jsonErr)
			}
			if !errors.Is(err, spec.ErrInvalid) || told.Error != err.Error() || !strings.Contains(told.Error, test.want) {
				t.Errorf("%q, %v; want %q", got, err, test.want)
			}
		})
	}
	_, err := run(t, io.MultiReader(strings.NewReader("{"), failing{}), "create")
	if !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("input that breaks off: %v", err)
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, io.ErrClosedPipe }
