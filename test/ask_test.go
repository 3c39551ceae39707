package test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// published is the port of the host by which tests publish service.
const published = 8080

// The second uplink of a host: the host's addresses there, and those of who is
// at its other end.
var (
	second4, second6 = netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8:1::1")
	beyond4, beyond6 = netip.MustParseAddr("198.51.100.254"), netip.MustParseAddr("2001:db8:1::fe")
)

// newTwoUplinks makes a loaded host with an uplink to the outside, and a
// second one, up1, to the namespace that it gives.
func newTwoUplinks(t *testing.T) (*testutil.Host, *testutil.Underlay, *testutil.Netns) {
	t.Helper()
	t.Parallel()
	h := testutil.NewHost(t, "host")
	u := testutil.NewUnderlay(t, h)
	second := testutil.NewNetns(t, "second")
	testutil.Wire(t, h.Netns, "up1", []string{second4.String() + "/24", second6.String() + "/64"},
		second, "wire", []string{beyond4.String() + "/24", beyond6.String() + "/64"})
	h.Ebpnet(t, "load", "--uplink", testutil.Uplink, "--uplink", "up1")
	return h, u, second
}

// protocols in which test servers speak.
var protocols = []string{"tcp", "udp"}

// bothPublished publishes service as published, by TCP and by UDP.
func bothPublished() []string {
	return []string{"--publish", fmt.Sprintf("%d:%d", published, service), "--publish", fmt.Sprintf("%d:%d/udp", published, service)}
}

// sees expects a server at the address to answer, and to see who asks as want.
func sees(t *testing.T, from *testutil.Netns, network, address string, want netip.Addr) {
	t.Helper()
	c, err := from.Dial(t, network, address)
	if err != nil {
		t.Errorf("from %s: %v", from.Name, err)
		return
	}
	defer c.Close()
	local := netip.MustParseAddrPort(c.LocalAddr().String()).Port()
	switch got, err := c.Ask(2 * time.Second); {
	case err != nil:
		t.Errorf("from %s: %v", from.Name, err)
	case got.Addr().Unmap() != want:
		t.Errorf("from %s to %s %s: the server sees %s, want %s", from.Name, network, address, got, want)
	case got.Port() != local:
		t.Errorf("from %s to %s %s: the server sees port %d, the client's is %d", from.Name, network, address, got.Port(), local)
	}
}

// refusesConnections expects to be told that nobody listens there.
func refusesConnections(t *testing.T, from *testutil.Netns, network, address string) {
	t.Helper()
	c, err := from.Dial(t, network, address)
	if err == nil {
		defer c.Close()
		_, err = c.Ask(2 * time.Second)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("from %s to %s %s: %v, want it refused", from.Name, network, address, err)
	}
}

// attempt is a question to a server of Serve that is not to be answered.
type attempt struct {
	from           *testutil.Netns
	network, local string // local as for DialFrom
	address        string
}

// noneConnects makes all attempts at once, expects silence for each, and that
// the host dropped it as reason.
func noneConnects(t *testing.T, h *testutil.Host, reason string, attempts []attempt) {
	t.Helper()
	before := h.Drops(t, reason)
	var all sync.WaitGroup
	for _, a := range attempts {
		all.Go(func() {
			c, err := a.from.DialFrom(t, a.network, a.local, a.address)
			if err == nil {
				defer c.Close()
				_, err = c.Ask(aMoment)
			}
			if timeout := net.Error(nil); !errors.As(err, &timeout) || !timeout.Timeout() {
				t.Errorf("%s, %s from %s to %s: %v, want silence", a.from.Name, a.network, a.local, a.address, err)
			}
		})
	}
	all.Wait()
	testutil.Eventually(t, fmt.Sprintf("%d packets dropped as %s", len(attempts), reason), func() bool {
		return h.Drops(t, reason) >= before+uint64(len(attempts))
	})
}

// gatewayMAC is the MAC that all of the host's gateways have.
func gatewayMAC(t *testing.T, h *testutil.Host) net.HardwareAddr {
	t.Helper()
	return deviceMAC(t, h.Netns, "ebpnet0")
}
