// Package test shows ebpnet end to end: hosts as network namespaces, real
// programs in them, and only the command line in between. Each test shows
// what works and what must not, and runs on hosts of its own beside the others.
package test

import (
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

func TestMain(m *testing.M) { os.Exit(testutil.Main(m)) }

// The subnets of the network "net" of every test, and of another beside it.
const (
	subnet4, subnet6 = "172.30.0.0/24", "fd00:30::/64"
	other4, other6   = "172.31.0.0/24", "fd00:31::/64"
)

// The first address of each subnet is its gateway.
var (
	gateway4 = netip.MustParseAddr("172.30.0.1")
	gateway6 = netip.MustParseAddr("fd00:30::1")
)

const (
	// aMoment is long for a packet and short for a test: what has not come by
	// then does not come.
	aMoment = 400 * time.Millisecond
	// service is a port on which a test's server listens.
	service = 7000
)

// newHost makes a loaded host without uplinks.
func newHost(t *testing.T) *testutil.Host {
	t.Helper()
	t.Parallel()
	h := testutil.NewHost(t, "host")
	h.Ebpnet(t, "load")
	return h
}

// newOutside makes a loaded host with an uplink to the outside.
func newOutside(t *testing.T) (*testutil.Host, *testutil.Underlay) {
	t.Helper()
	t.Parallel()
	h := testutil.NewHost(t, "host")
	u := testutil.NewUnderlay(t, h)
	h.Ebpnet(t, "load", "--uplink", testutil.Uplink)
	return h, u
}

// createNet makes the network "net" of both families.
func createNet(t *testing.T, h *testutil.Host, args ...string) {
	t.Helper()
	h.Ebpnet(t, append([]string{"network", "create", "net", "--subnet", subnet4, "--subnet", subnet6}, args...)...)
}

// createOther makes the network "other" of both families.
func createOther(t *testing.T, h *testutil.Host, args ...string) {
	t.Helper()
	h.Ebpnet(t, append([]string{"network", "create", "other", "--subnet", other4, "--subnet", other6}, args...)...)
}

// ping expects an answer to the first packet.
func ping(t *testing.T, from *testutil.Netns, to netip.Addr, args ...string) {
	t.Helper()
	from.Run(t, "ping", append([]string{"-n", "-c", "1", "-W", "2", to.String()}, args...)...)
}

// pingAll expects the first container to reach the second at every address.
func pingAll(t *testing.T, from, to *testutil.Container) {
	t.Helper()
	for _, address := range to.Addresses() {
		ping(t, from.Netns, address)
	}
}

// noPing expects no answer, and that the host dropped the question as reason.
func noPing(t *testing.T, h *testutil.Host, reason string, from *testutil.Netns, to netip.Addr) {
	t.Helper()
	h.ExpectDrops(t, reason, func() {
		t.Helper()
		if out, err := from.Try("ping", "-n", "-c", "1", "-W", "0.4", to.String()); err == nil {
			t.Errorf("%s reaches %s:\n%s", from.Name, to, out)
		}
	})
}

// serve starts echo servers on the given port, for TCP and UDP, IPv4 and IPv6.
func serve(t *testing.T, n *testutil.Netns, port int) {
	t.Helper()
	n.Serve(t, "tcp", ":"+strconv.Itoa(port))
	// A UDP socket of each family: one for both would tell IPv4 addresses in
	// IPv6 form.
	n.Serve(t, "udp4", ":"+strconv.Itoa(port))
	n.Serve(t, "udp6", ":"+strconv.Itoa(port))
}

func at(a netip.Addr, port int) string { return netip.AddrPortFrom(a, uint16(port)).String() }

// connects expects a server of Serve to answer.
func connects(t *testing.T, from *testutil.Netns, network, address string) *testutil.Conn {
	t.Helper()
	c := from.MustDial(t, network, address)
	c.MustAsk(t)
	return c
}

// connectsNot expects no answer, and that the host dropped the question as
// reason.
func connectsNot(t *testing.T, h *testutil.Host, reason string, from *testutil.Netns, network, address string) {
	t.Helper()
	h.ExpectDrops(t, reason, func() {
		t.Helper()
		c, err := from.Dial(t, network, address)
		if err != nil {
			return
		}
		if _, err := c.Ask(aMoment); err == nil {
			t.Errorf("%s connects to %s %s", from.Name, network, address)
		}
	})
}

// stalls expects no answer on an established connection, without losing it.
func stalls(t *testing.T, c *testutil.Conn) {
	t.Helper()
	if _, err := c.Ask(aMoment); err == nil {
		t.Errorf("the connection to %s goes on", c.RemoteAddr())
	}
}

// iperf runs iperf3 for a second from one namespace to the other.
func iperf(t *testing.T, from, to *testutil.Netns, address netip.Addr, args ...string) {
	t.Helper()
	server := to.Start(t, "iperf3", "--server", "--one-off", "--forceflush")
	server.Await(t, "Server listening")
	from.Run(t, "iperf3", append([]string{"--client", address.String(), "--time", "1"}, args...)...)
	server.Wait(t)
}

// redis starts a redis-server that listens on all addresses.
func redis(t *testing.T, n *testutil.Netns, port int) {
	t.Helper()
	n.Start(t, "redis-server", "--port", strconv.Itoa(port), "--bind", "0.0.0.0", "::",
		"--protected-mode", "no", "--save", "", "--appendonly", "no", "--dir", t.TempDir()).
		Await(t, "Ready to accept connections")
}

// redisPing expects redis-cli to get through to a redis-server.
func redisPing(t *testing.T, from *testutil.Netns, address netip.Addr, port int) {
	t.Helper()
	out := from.Run(t, "redis-cli", "-h", address.String(), "-p", strconv.Itoa(port), "ping")
	if strings.TrimSpace(out) != "PONG" {
		t.Errorf("redis-cli in %s: %q, want PONG", from.Name, out)
	}
}

// endpoints lists the host's endpoints by name.
func endpoints(t *testing.T, h *testutil.Host) map[string]testutil.Endpoint {
	t.Helper()
	var list []testutil.Endpoint
	h.EbpnetJSON(t, &list, "endpoint", "ls")
	byName := make(map[string]testutil.Endpoint)
	for _, e := range list {
		byName[e.Name] = e
	}
	return byName
}

// veths counts the veth devices of a namespace.
func veths(t *testing.T, n *testutil.Netns) int {
	t.Helper()
	return strings.Count(n.Run(t, "ip", "-o", "link", "show", "type", "veth"), "\n")
}
