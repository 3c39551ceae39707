package test

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// publication is what `port ls -o json` says of one.
type publication struct {
	Endpoint    string   `json:"endpoint"`
	HostAddress string   `json:"host_address"`
	HostPort    int      `json:"host_port"`
	HostPortEnd int      `json:"host_port_end"`
	Port        int      `json:"port"`
	PortEnd     int      `json:"port_end"`
	Protocol    string   `json:"protocol"`
	AllowFrom   []string `json:"allow_from"`
}

// firstChosen is the first port that is given to who asks for none.
const firstChosen = 61000

func publications(t *testing.T, h *testutil.Host, args ...string) []publication {
	t.Helper()
	var list []publication
	h.EbpnetJSON(t, &list, append([]string{"port", "ls"}, args...)...)
	return list
}

// publish adds a port that is free, and gives what came of it.
func publish(t *testing.T, h *testutil.Host, args ...string) publication {
	t.Helper()
	var p publication
	h.EbpnetJSON(t, &p, append([]string{"port", "add"}, args...)...)
	return p
}

func TestBadPortsAreRefused(t *testing.T) {
	h, _ := newOutside(t)
	createNet(t, h, "--key", "42")
	h.Ebpnet(t, "network", "create", "four", "--subnet", "172.31.0.0/24")
	h.Ebpnet(t, "network", "create", "inside", "--subnet", "172.32.0.0/24", "--internal")
	h.NewContainer(t, "a", "net", "--publish", "8080:80")
	h.NewContainer(t, "b", "four", "--publish", "9000-9001:80-81/udp")
	h.NewContainer(t, "shut", "inside")
	h.Ebpnet(t, "tunnel", "add", "peer", "--remote", "192.0.2.2")
	h.Ebpnet(t, "endpoint", "add", "away", "--network", "net", "--tunnel", "peer", "--ip", "172.30.0.20", "--mac", "02:00:00:00:00:20")
	h.Ebpnet(t, "port", "add", "b", "127.0.0.1:81:80")
	h.Ebpnet(t, "port", "add", "b", "80")
	h.Ebpnet(t, "port", "add", "b", "80")
	free := testutil.NewNetns(t, "free")

	port := func(args ...string) []string { return append([]string{"port"}, args...) }
	many := port("add", "a", "1234:80")
	for i := range 257 {
		many = append(many, "--allow-from", fmt.Sprintf("10.0.%d.%d", i/256, i%256))
	}
	all := func() string { return everything(t, h) + h.Ebpnet(t, "-o", "json", "port", "ls") + loopback(t, h) }
	before := all()
	for _, c := range []struct {
		code  int
		args  []string
		words []string
	}{
		// The forms.
		{exitUsage, port("add", "a", "http:80"), []string{"http:80", "1 to 65535", "HOSTPORT"}},
		{exitUsage, port("add", "a", "0:80"), []string{"0:80", "1 to 65535"}},
		{exitUsage, port("add", "a", "65536:80"), []string{"65536"}},
		{exitUsage, port("add", "a", "8000-8010:80"), []string{"8000-8010", "80"}},
		{exitUsage, port("add", "a", "8000:80/icmp"), []string{"icmp", "sctp"}},
		{exitUsage, port("add", "a", "::1:8000:80"), []string{"::1:8000:80", "brackets"}},
		{exitUsage, port("add", "a", "192.0.2.1:80"), []string{"192.0.2.1", ":PORT"}},
		{exitUsage, port("add", "a", "224.0.0.1:8000:80"), []string{"224.0.0.1", "multicast"}},
		{exitUsage, port("add", "a", "[fe80::1%lo]:8000:80"), []string{"zone"}},
		{exitUsage, port("add", "a", "1234:80", "--allow-from", "10.0.0.1/8"), []string{"10.0.0.1/8", "10.0.0.0/8"}},
		{exitUsage, port("add", "a", "1234:80", "--allow-from", "anywhere"), []string{"anywhere"}},
		{exitUsage, port("add", "a", "127.0.0.1:1234:80", "--allow-from", "fd00::/8"), []string{"fd00::/8", "127.0.0.1"}},
		{exitUsage, many, []string{"257", "256"}},
		{exitUsage, port("rm", "a", "x"), []string{`"x"`}},
		{exitUsage, port("add", "a"), []string{"HOSTPORT"}},
		{exitUsage, port("ls", "a", "b"), []string{`"b"`}},
		{exitUsage, []string{"endpoint", "add", "new", "--network", "net", "--netns", free.Name, "--publish", "80:"}, []string{"80:"}},
		{exitUsage, []string{
			"endpoint", "add", "new", "--network", "net", "--tunnel", "peer", "--ip", "172.30.0.21", "--mac", "02:00:00:00:00:21", "--publish", "80:80",
		}, []string{"--publish", "its own host"}},
		{exitUsage, []string{"network", "set", "net", "--filtering", "none"}, []string{"none", "endpoint-independent"}},
		{exitUsage, []string{"network", "create", "new", "--subnet", "10.0.0.0/24", "--filtering", ""}, []string{"endpoint-independent"}},

		// What is not there, or does not fit.
		{exitFailure, port("add", "nobody", "1234:80"), []string{"endpoint", "nobody"}},
		{exitFailure, port("ls", "nobody"), []string{"endpoint", "nobody"}},
		{exitFailure, port("rm", "nobody", "80"), []string{"endpoint", "nobody"}},
		{exitFailure, port("rm", "a", "8081:80"), []string{`endpoint "a" publishes no 8081:80/tcp`, "ebpnet port ls a"}},
		{exitFailure, port("rm", "a", "8080:80/udp"), []string{"8080:80/udp"}},
		{exitFailure, port("rm", "b", "8080:80"), []string{"8080:80/tcp", `"b"`}},
		{exitFailure, port("rm", "b", "80"), []string{"127.0.0.1:81:80/tcp", "61000:80/tcp", "61001:80/tcp", "name one of them"}}, // which of the three?
		{exitFailure, port("rm", "b", ":80"), []string{"127.0.0.1:81:80/tcp", "61000:80/tcp", "61001:80/tcp", "name one of them"}},
		{exitFailure, port("set", "b", "80", "--max-flows", "1"), []string{"127.0.0.1:81:80/tcp", "name one of them"}},
		{exitFailure, port("inspect", "b", "80"), []string{"127.0.0.1:81:80/tcp", "name one of them"}},
		{exitFailure, port("inspect", "a", "8081:80"), []string{"8081:80/tcp"}},
		{exitFailure, port("add", "away", "1234:80"), []string{"tunnel", "peer", "its own host"}},
		{exitFailure, port("add", "shut", "1234:80"), []string{"inside", "internal"}},
		{exitFailure, port("add", "b", "[::]:1234:80"), []string{`"b"`, "::"}},
		{exitFailure, port("add", "a", "172.30.0.9:1234:80"), []string{"172.30.0.9", `"net"`}},

		// What others publish.
		{exitFailure, port("add", "b", "8080:80"), []string{"8080/tcp", `endpoint "a"`, "8080:80/tcp"}},
		{exitFailure, port("add", "a", "8080:80", "--max-flows", "9"), []string{"8080/tcp", `endpoint "a"`, "'ebpnet port set'"}},
		{exitFailure, port("add", "a", "8080:81"), []string{"8080/tcp", `endpoint "a"`}},
		{exitFailure, port("add", "b", "192.0.2.1:8080:80"), []string{"8080/tcp", `endpoint "a"`}},
		{exitFailure, port("add", "b", "127.0.0.1:8080:80"), []string{"8080/tcp", `endpoint "a"`}},
		{exitFailure, port("add", "a", "[::1]:8079-8081:79-81"), []string{"8080/tcp", `endpoint "a"`}},
		{exitFailure, port("add", "a", "9001-9002:1-2/udp"), []string{"9001/udp", `endpoint "b"`, "9000-9001:80-81/udp"}},
		{exitFailure, port("add", "a", "81:80"), []string{"81/tcp", "127.0.0.1", `endpoint "b"`}},
		{exitFailure, []string{
			"endpoint", "add", "new", "--network", "net", "--netns", free.Name, "--publish", "1234:80", "--publish", "8080:80",
		}, []string{"8080/tcp", `endpoint "a"`}},
		{exitFailure, []string{
			"endpoint", "add", "new", "--network", "net", "--netns", free.Name, "--publish", "1234:80", "--publish", "1234:81",
		}, []string{"1234/tcp", `endpoint "new"`}},
	} {
		refused(t, h, c.code, c.args, c.words...)
		if after := all(); after != before {
			t.Fatalf("ebpnet %q was refused, and changed\n%s\nto\n%s", c.args, before, after)
		}
		if n := veths(t, free); n != 0 {
			t.Fatalf("ebpnet %q was refused, and left a device in the namespace", c.args)
		}
	}

	// What does not overlap stands beside it.
	for _, args := range [][]string{
		{"a", "[::1]:81:80"}, {"a", "192.0.2.1:81:80"}, {"a", "8080:80/udp"}, {"b", "8080:80/sctp"}, {"b", "8081:80"}, {"a", "9002:80/udp"},
	} {
		publish(t, h, args...)
	}
	h.Ebpnet(t, "port", "rm", "a", "8080:80")
	publish(t, h, "b", "8080:80")
	h.Ebpnet(t, "port", "rm", "b", "61000:80")
	h.Ebpnet(t, "port", "rm", "b", "80/sctp") // the only one of its kind
	h.Ebpnet(t, "port", "rm", "b", "81:80")   // at 127.0.0.1
	h.Ebpnet(t, "port", "rm", "b", "8081:80")
}

// TestListeningProcessesKeepTheirPorts sees to it that nobody takes a port
// away from a process of the host, whatever address that listens on.
func TestListeningProcessesKeepTheirPorts(t *testing.T) {
	h, _ := newOutside(t)
	createNet(t, h)
	h.NewContainer(t, "web", "net")
	redis(t, h.Netns, 6379)
	for network, address := range map[string]string{
		"tcp4": "127.0.0.1:7001", "tcp": ":7002", "tcp6": "[::1]:7003", "udp4": "127.0.0.1:7004", "udp6": "[::]:7005",
	} {
		h.Serve(t, network, address)
	}
	h.Serve(t, "tcp4", fmt.Sprintf("127.0.0.1:%d", firstChosen+1))
	self := fmt.Sprintf("(pid %d)", os.Getpid())
	for _, c := range []struct {
		text string
		want []string // none: it is free
	}{
		{"6379:80", []string{"port 6379/tcp of 0.0.0.0 is in use by redis-server (pid "}},
		{"6300-6400:300-400", []string{"port 6379/tcp"}},
		{"192.0.2.1:6379:80", []string{"redis-server"}},
		{"[::1]:6379:80", []string{"port 6379/tcp of :: is in use by redis-server"}},
		{"6379:80/udp", nil},
		{"7001:80", []string{"port 7001/tcp of 127.0.0.1", self}},
		{"0.0.0.0:7001:80", []string{"127.0.0.1", self}},
		{"127.0.0.1:7001:80", []string{"127.0.0.1", self}},
		{"192.0.2.1:7001:80", nil},
		{"[::]:7001:80", nil},
		{"127.0.0.1:7002:80", []string{"port 7002/tcp of ::", self}},
		{"7003:80", []string{"port 7003/tcp of ::1", self}},
		{"0.0.0.0:7003:80", nil},
		{"7004:80/udp", []string{"port 7004/udp of 127.0.0.1", self}},
		{"7004:80/tcp", nil},
		{"[::1]:7005:80/udp", []string{"port 7005/udp of ::", self}},
		{"0.0.0.0:7005:80/udp", nil},
	} {
		if c.want == nil {
			publish(t, h, "web", c.text)
			continue
		}
		refused(t, h, exitFailure, []string{"port", "add", "web", c.text}, c.want...)
	}
	// Nor is one chosen that a process listens on.
	for _, want := range []int{firstChosen, firstChosen + 2} {
		if p := publish(t, h, "web", "80"); p.HostPort != want {
			t.Errorf("port %d was chosen, want %d", p.HostPort, want)
		}
	}
	if p := publish(t, h, "web", "192.0.2.2::80"); p.HostPort != firstChosen+1 {
		t.Errorf("port %d was chosen at an address on which nobody listens, want %d", p.HostPort, firstChosen+1)
	}
}

func TestPortsAreShown(t *testing.T) {
	h, _ := newOutside(t)
	createNet(t, h)
	h.NewContainer(t, "web", "net", "--publish", "8080:80", "--publish", "53:53/udp")
	h.NewContainer(t, "other", "net")
	restricted := publish(t, h, "other", "127.0.0.1:9000-9002:90-92/sctp", "--allow-from", "127.0.0.0/8", "--allow-from", "10.0.0.1")
	chosen := publish(t, h, "other", "100-101")
	want := []publication{
		{"other", "127.0.0.1", 9000, 9002, 90, 92, "sctp", []string{"127.0.0.0/8", "10.0.0.1/32"}},
		{"web", "", 8080, 8080, 80, 80, "tcp", nil},
		{"other", "", firstChosen, firstChosen + 1, 100, 101, "tcp", nil},
		{"web", "", 53, 53, 53, 53, "udp", nil},
	}
	if diff := cmp.Diff(want, publications(t, h)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]publication{want[0], want[2]}, []publication{restricted, chosen}); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]publication{want[1], want[3]}, publications(t, h, "web")); diff != "" {
		t.Error(diff)
	}
	var inspected publication
	if err := json.Unmarshal([]byte(h.Ebpnet(t, "port", "inspect", "other", "100-101")), &inspected); err != nil || inspected.HostPort != firstChosen {
		t.Errorf("port inspect: %+v (%v)", inspected, err)
	}
	var status struct{ Ports int }
	h.EbpnetJSON(t, &status, "status")
	if status.Ports != len(want) {
		t.Errorf("status counts %d ports, want %d", status.Ports, len(want))
	}
	var whole struct {
		Name  string
		Ports []publication
	}
	if err := json.Unmarshal([]byte(h.Ebpnet(t, "endpoint", "inspect", "web")), &whole); err != nil || whole.Name != "web" || len(whole.Ports) != 2 {
		t.Errorf("endpoint inspect: %+v (%v)", whole, err)
	}
	for _, words := range [][]string{
		{"other", "127.0.0.1:9000-9002", "90-92", "sctp", "127.0.0.0/8,10.0.0.1/32"},
		{"web", "8080", "80", "tcp", "everywhere"},
	} {
		listed := func(line string) bool { return slices.Equal(strings.Fields(line), words) }
		if out := h.Ebpnet(t, "port", "ls"); !slices.ContainsFunc(strings.Split(out, "\n"), listed) {
			t.Errorf("no line %q in\n%s", words, out)
		}
	}
	if out := h.Ebpnet(t, "endpoint", "ls"); !strings.Contains(out, "8080:80/tcp,53:53/udp") {
		t.Errorf("endpoint ls does not tell what web publishes:\n%s", out)
	}
	// A bare "--" is the beginning of an option.
	if options, _ := h.Try(h.Command()[0], "port", "add", "--", "--generate-bash-completion"); !strings.Contains(options, "--allow-from") {
		t.Errorf("port add -- is completed to %q", options)
	}
	completion, _ := h.Try(h.Command()[0], "port", "--generate-bash-completion")
	for _, word := range []string{"add", "rm", "ls", "inspect"} {
		if !strings.Contains(completion, word) {
			t.Errorf("completion of port has no %s: %q", word, completion)
		}
	}
}

func TestFilteringIsSet(t *testing.T) {
	h := newHost(t)
	createNet(t, h)
	createOther(t, h, "--filtering", "endpoint-independent")
	filtering := func(name string) string {
		t.Helper()
		var n struct{ Filtering string }
		if err := json.Unmarshal([]byte(h.Ebpnet(t, "network", "inspect", name)), &n); err != nil {
			t.Fatal(err)
		}
		return n.Filtering
	}
	if got := filtering("net") + " " + filtering("other"); got != "address-and-port-dependent endpoint-independent" {
		t.Errorf("got %s", got)
	}
	h.Ebpnet(t, "network", "set", "net", "--filtering", "endpoint-independent")
	h.Ebpnet(t, "network", "set", "other", "--icc=false") // which leaves the rest
	if got := filtering("net") + " " + filtering("other"); got != "endpoint-independent endpoint-independent" {
		t.Errorf("got %s", got)
	}
	h.Ebpnet(t, "network", "set", "net", "--filtering=address-and-port-dependent")
	if got := filtering("net"); got != "address-and-port-dependent" {
		t.Errorf("got %s", got)
	}
}
