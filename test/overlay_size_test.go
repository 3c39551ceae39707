package test

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// What a packet may be long, and how its sender gets to know.

// Bytes of headers in front of what an echo carries: IP's and ICMP's.
const (
	echoHeaders4 = 20 + 8
	echoHeaders6 = 40 + 8
)

func echoHeaders(a netip.Addr) int {
	if a.Is4() {
		return echoHeaders4
	}
	return echoHeaders6
}

// wrongMTU gives the container's interface an MTU that its network does not
// carry.
func wrongMTU(t *testing.T, c *testutil.Container) {
	t.Helper()
	c.Run(t, "ip", "link", "set", testutil.Device, "mtu", strconv.Itoa(underlayMTU))
}

// sendFile sends a file by socat, and expects it to arrive as it is.
func sendFile(t *testing.T, from, to *testutil.Netns, address netip.Addr) {
	t.Helper()
	const size = 1 << 20
	directory := t.TempDir()
	sent, received := filepath.Join(directory, "sent"), filepath.Join(directory, "received")
	contents := make([]byte, size)
	rand.Read(contents) // never fails, see crypto/rand
	if err := os.WriteFile(sent, contents, 0o600); err != nil {
		t.Fatal(err)
	}
	family := "4"
	if address.Is6() {
		family = "6"
	}
	server := to.Start(t, "socat", "-d", "-d", "-u", fmt.Sprintf("TCP%s-LISTEN:%d,reuseaddr", family, service), "CREATE:"+received)
	server.Await(t, "listening on")
	target := address.String()
	if address.Is6() {
		target = "[" + target + "]"
	}
	from.Run(t, "socat", "-u", "OPEN:"+sent, fmt.Sprintf("TCP%s:%s:%d", family, target, service))
	server.Wait(t)
	got, err := os.ReadFile(received)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != size || sha256.Sum256(got) != sha256.Sum256(contents) {
		t.Errorf("%s receives %d bytes that are not the %d sent by %s", to.Name, len(got), size, from.Name)
	}
}

// expectPathMTU expects the kernel of a namespace to have been told of an MTU
// on the way to the address.
func expectPathMTU(t *testing.T, n *testutil.Netns, to netip.Addr, want int) {
	t.Helper()
	if route := n.Run(t, "ip", "route", "get", to.String()); !strings.Contains(route+" ", fmt.Sprintf(" mtu %d ", want)) {
		t.Errorf("%s has %q, want mtu %d", n.Name, route, want)
	}
}

// forgetPathMTU has the kernel of a namespace forget the MTUs that it was told.
func forgetPathMTU(t *testing.T, n *testutil.Netns) {
	t.Helper()
	n.Run(t, "ip", "route", "flush", "cache")
	n.Run(t, "ip", "-6", "route", "flush", "cache")
}

// expectFits expects an echo of so many bytes, IP header and all, to get
// through whole, and one that is a byte longer not to.
func expectFits(t *testing.T, from *testutil.Netns, to netip.Addr, mtu int) {
	t.Helper()
	ping(t, from, to, "-M", "do", "-s", strconv.Itoa(mtu-echoHeaders(to)))
	if out, err := from.Try("ping", "-n", "-c", "1", "-W", "1", "-M", "do", "-s", strconv.Itoa(mtu-echoHeaders(to)+1), to.String()); err == nil {
		t.Errorf("%d bytes get through:\n%s", mtu+1, out)
	}
}

// Containers with an interface that promises too much are told by their
// gateway, and go on with what fits: superframes, which are cut later, and
// packets that are too big by themselves.
func TestWrongMTUOfAContainerIsMended(t *testing.T) {
	for _, form := range meshForms {
		t.Run(form.name, func(t *testing.T) {
			m := newMesh(t, form.v6, form.keyed)
			a, b := m.containers[0], m.containers[1]
			mtu := underlayMTU - form.headers
			for i, to := range b.Addresses() {
				expectFits(t, a.Netns, to, mtu)
				expectFits(t, b.Netns, a.Addresses()[i], mtu)
			}
			both := []*testutil.Container{a, b}
			for _, c := range both {
				wrongMTU(t, c)
			}
			for _, offload := range []string{"on", "off"} {
				for _, c := range both {
					c.Run(t, "ethtool", "-K", testutil.Device, "tso", offload, "gso", offload)
				}
				for i, to := range b.Addresses() {
					back := a.Addresses()[i]
					told := []string{fmt.Sprintf("need to frag (mtu %d)", mtu), fmt.Sprintf("packet too big, mtu %d", mtu)}[i]
					gateway := []netip.Addr{gateway4, gateway6}[i]
					dump := a.Start(t, "tcpdump", "-i", testutil.Device, "-n", "-l", "--immediate-mode", "src", gateway.String(), "and", "dst", back.String())
					dump.Await(t, "listening on")
					m.hosts[0].ExpectDrops(t, "too_big", func() { sendFile(t, a.Netns, b.Netns, to) })
					expectPathMTU(t, a.Netns, to, mtu)
					dump.Await(t, told)
					forgetPathMTU(t, a.Netns) // it tells the other side of it
					m.hosts[1].ExpectDrops(t, "too_big", func() { sendFile(t, b.Netns, a.Netns, back) })
					expectPathMTU(t, b.Netns, back, mtu)
					forgetPathMTU(t, b.Netns)
				}
			}
			for _, to := range b.Addresses() { // to the byte
				expectFits(t, a.Netns, to, mtu)
				expectPathMTU(t, a.Netns, to, mtu)
			}
		})
	}
}

// narrow is two hosts with wide wires to a router each, and between these a
// wire that carries less. Each has a tunnel to the other and a container on
// "net", of which the other is not told.
type narrow struct {
	hosts      [2]*testutil.Host
	containers [2]*testutil.Container
	routers    [2]*testutil.Netns
}

func newNarrow(t *testing.T, mtu int, v6 bool, tunnel ...string) *narrow {
	t.Helper()
	t.Parallel()
	n := &narrow{}
	near := [2][2]string{{"192.0.2.1/24", "2001:db8::1/64"}, {"203.0.113.1/24", "2001:db8:2::1/64"}}
	far := [2][2]string{{"192.0.2.254/24", "2001:db8::fe/64"}, {"203.0.113.254/24", "2001:db8:2::fe/64"}}
	middle := [2][2]string{{"198.51.100.1/24", "2001:db8:1::1/64"}, {"198.51.100.2/24", "2001:db8:1::2/64"}}
	bare := func(prefix string) string { return netip.MustParsePrefix(prefix).Addr().String() }
	for i := range n.hosts {
		n.hosts[i] = testutil.NewHost(t, meshNames[i])
		n.hosts[i].IP4, n.hosts[i].IP6 = netip.MustParsePrefix(near[i][0]).Addr(), netip.MustParsePrefix(near[i][1]).Addr()
		n.routers[i] = testutil.NewNetns(t, "router-"+meshNames[i])
		n.routers[i].SetSysctl(t, "ipv4/ip_forward", "1")
		n.routers[i].SetSysctl(t, "ipv6/conf/all/forwarding", "1")
		testutil.Wire(t, n.hosts[i].Netns, testutil.Uplink, near[i][:], n.routers[i], "host", far[i][:])
		n.hosts[i].Run(t, "ip", "route", "add", "default", "via", bare(far[i][0]))
		n.hosts[i].Run(t, "ip", "route", "add", "default", "via", bare(far[i][1]))
	}
	testutil.Wire(t, n.routers[0], "middle", middle[0][:], n.routers[1], "middle", middle[1][:])
	for i, router := range n.routers {
		router.Run(t, "ip", "link", "set", "middle", "mtu", strconv.Itoa(mtu))
		router.Run(t, "ip", "route", "add", "default", "via", bare(middle[1-i][0]))
		router.Run(t, "ip", "route", "add", "default", "via", bare(middle[1-i][1]))
	}
	for i, h := range n.hosts {
		remote := n.hosts[1-i].IP4
		if v6 {
			remote = n.hosts[1-i].IP6
		}
		h.Ebpnet(t, "load", "--uplink", testutil.Uplink)
		createNet(t, h, "--key", strconv.Itoa(greKey))
		h.Ebpnet(t, append([]string{"tunnel", "add", "peer", "--remote", remote.String()}, tunnel...)...)
		n.containers[i] = h.NewContainer(t, "on-"+meshNames[i], "net", addressArgs("net", 10*(i+1))...)
	}
	return n
}

// A router of the underlay tells the host that its packets are too big: the
// tunnel then carries less, and the containers are told in turn.
func TestNarrowUnderlayLowersTheTunnelsMTU(t *testing.T) {
	const middle = 1400
	for _, form := range []struct {
		name    string
		v6      bool
		headers int
		tunnel  []string
	}{
		{"IPv4", false, 42, nil},
		{"IPv6", true, 62, nil},
		{"IPv4 with all options", false, 50, []string{"--csum", "--seq"}},
		{"IPv6 with all options", true, 70, []string{"--csum", "--seq"}},
	} {
		t.Run(form.name, func(t *testing.T) {
			n := newNarrow(t, middle, form.v6, form.tunnel...)
			a, b := n.containers[0], n.containers[1]
			if got, want := linkMTU(t, a.Netns, testutil.Device), underlayMTU-form.headers; got != want {
				t.Errorf("an MTU of %d, want %d", got, want)
			}
			mtu := middle - form.headers
			for i, to := range b.Addresses() {
				back := a.Addresses()[i]
				sendFile(t, a.Netns, b.Netns, to)
				expectPathMTU(t, a.Netns, to, mtu)
				forgetPathMTU(t, a.Netns) // it tells the other side of it
				sendFile(t, b.Netns, a.Netns, back)
				expectPathMTU(t, b.Netns, back, mtu)
				forgetPathMTU(t, b.Netns)
			}
			for _, to := range b.Addresses() {
				expectFits(t, a.Netns, to, mtu)
				testutil.Eventually(t, "both kernels cut fragments that fit", func() bool {
					_, err := a.Try("ping", "-n", "-c", "1", "-W", "0.4", "-s", "4000", to.String())
					return err == nil
				})
			}
			// Made anew it knows nothing of that.
			n.hosts[0].Ebpnet(t, "tunnel", "rm", "peer")
			remote := n.hosts[1].IP4
			if form.v6 {
				remote = n.hosts[1].IP6
			}
			n.hosts[0].Ebpnet(t, append([]string{"tunnel", "add", "peer", "--remote", remote.String()}, form.tunnel...)...)
			forgetPathMTU(t, a.Netns)
			dump := n.routers[0].Start(t, "tcpdump", "-i", "host", "-n", "-l", "--immediate-mode", "greater", strconv.Itoa(middle+1))
			dump.Await(t, "listening on")
			if out, err := a.Try("ping", "-n", "-c", "1", "-W", "0.4", "-M", "do", "-s", strconv.Itoa(mtu-echoHeaders4+1), b.IP4.String()); err == nil {
				t.Errorf("more gets through than there is room for:\n%s", out)
			}
			dump.Await(t, "GREv0")
			expectFits(t, a.Netns, b.IP4, mtu)
		})
	}
}
