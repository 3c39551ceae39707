package attack

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// The port of every test server, and the host's port that is published for it.
const (
	service   = 7000
	published = 8080
)

// network is one network of both hosts.
type network struct {
	name     string
	id       int // third number of its subnets
	key      int
	icc      bool
	internal bool
}

var (
	sealed = network{name: "sealed", id: 30, key: 40, internal: true}
	open   = network{name: "open", id: 31, key: 41, icc: true}
	closed = network{name: "closed", id: 32, key: 42}
	vault  = network{name: "vault", id: 33, key: 43, icc: true}
)

func (n network) subnet4() netip.Prefix {
	return netip.MustParsePrefix(fmt.Sprintf("10.30.%d.0/24", n.id))
}

func (n network) subnet6() netip.Prefix {
	return netip.MustParsePrefix(fmt.Sprintf("fd00:%d::/64", n.id))
}
func (n network) gateway4() netip.Addr { return n.subnet4().Addr().Next() }
func (n network) gateway6() netip.Addr { return n.subnet6().Addr().Next() }

// member is a container on a network.
type member struct {
	*testutil.Container
	network network
}

// owns tells whether the address is one of the member's own.
func (m *member) owns(a netip.Addr) bool {
	return a == m.IP4 || a == m.IP6 || a == linkLocal(m.MAC)
}

// allowance is a link: what a client may send to a server besides nothing.
type allowance struct{ client, server string }

// world is two hosts with a tunnel between them, and the outside.
type world struct {
	a, b             *testutil.Host
	underlay         *testutil.Underlay
	gateways         map[*testutil.Host]net.HardwareAddr
	gatewayA         net.HardwareAddr
	uplinkA, uplinkB net.HardwareAddr
	members          map[string]*member
	links            []allowance
	victims          []*victim
	attacked         map[*member]bool // that have attacked before
	since            uint32           // number of the present attacker's first frame
}

// victim is a conversation that an attack must not disturb.
type victim struct {
	what     string
	who      *testutil.Netns
	conn     *testutil.Conn
	src, dst netip.AddrPort // as the sender sends it
	outside  netip.AddrPort // its source as the receiver sees it
}

// newWorld makes the world, loaded with these arguments more.
func newWorld(t *testing.T, loadArgs ...string) *world {
	t.Helper()
	w := &world{a: testutil.NewHost(t, "a"), b: testutil.NewHost(t, "b"), members: map[string]*member{}, attacked: map[*member]bool{}}
	w.underlay = testutil.NewUnderlay(t, w.a, w.b)
	for _, end := range [][2]*testutil.Host{{w.a, w.b}, {w.b, w.a}} {
		host, peer := end[0], end[1]
		host.Ebpnet(t, append([]string{"load", "--uplink", testutil.Uplink, "--tunnel-address", host.IP4.String()}, loadArgs...)...)
		for _, n := range []network{sealed, open, closed, vault} {
			host.Ebpnet(t, "network", "create", n.name, "--key", strconv.Itoa(n.key),
				"--subnet", n.subnet4().String(), "--subnet", n.subnet6().String(),
				fmt.Sprintf("--icc=%t", n.icc), fmt.Sprintf("--internal=%t", n.internal))
		}
		host.Ebpnet(t, "tunnel", "add", "peer", "--remote", peer.IP4.String())
	}
	w.gatewayA = deviceMAC(t, w.a.Netns, "ebpnet0")
	w.gateways = map[*testutil.Host]net.HardwareAddr{w.a: w.gatewayA, w.b: deviceMAC(t, w.b.Netns, "ebpnet0")}
	w.uplinkA, w.uplinkB = deviceMAC(t, w.a.Netns, testutil.Uplink), deviceMAC(t, w.b.Netns, testutil.Uplink)
	for id, m := range []struct {
		name    string
		host    *testutil.Host
		network network
	}{
		{"sealed1", w.a, sealed},
		{"sealed2", w.a, sealed},
		{"sealed3", w.b, sealed},
		{"open1", w.a, open},
		{"open2", w.a, open},
		{"open3", w.b, open},
		{"linked1", w.a, closed},
		{"server1", w.a, closed},
		{"bystander1", w.a, closed},
		{"server3", w.b, closed},
		{"vault1", w.a, vault},
		{"vault3", w.b, vault},
	} {
		w.addMember(t, m.name, m.host, m.network, 10+id)
	}
	for _, server := range []string{"server1", "server3"} {
		for _, h := range []*testutil.Host{w.a, w.b} {
			h.Ebpnet(t, "link", "add", "linked1", server, "--port", strconv.Itoa(service)+"/tcp")
		}
		w.members[server].Serve(t, "tcp", fmt.Sprintf(":%d", service))
		w.links = append(w.links, allowance{"linked1", server})
	}
	w.a.Ebpnet(t, "port", "add", "server1", fmt.Sprintf("%d:%d/tcp", published, service))
	w.addVictims(t)
	return w
}

// addMember makes a container on host and tells the other host of it.
func (w *world) addMember(t *testing.T, name string, host *testutil.Host, n network, id int) {
	t.Helper()
	ip4 := netip.MustParsePrefix(fmt.Sprintf("10.30.%d.%d/24", n.id, id)).Addr()
	ip6 := netip.MustParseAddr(fmt.Sprintf("fd00:%d::%x", n.id, id))
	c := &testutil.Container{Netns: testutil.NewNetns(t, name), Host: host, Endpoint: name, IP4: ip4, IP6: ip6}
	// Its kernel multicasts nothing of its own accord, and answers no ping
	// and no query that it would not answer an honest sender.
	c.SetSysctl(t, "ipv6/conf/default/router_solicitations", "0")
	c.SetSysctl(t, "ipv6/conf/default/accept_dad", "0")
	var e testutil.Endpoint
	host.Ebpnet(t, "endpoint", "add", name, "--network", n.name, "--netns", c.Name, "--ip", ip4.String(), "--ip", ip6.String())
	host.EbpnetJSON(t, &e, "endpoint", "inspect", name)
	mac, err := net.ParseMAC(e.MAC)
	if err != nil {
		t.Fatal(err)
	}
	c.MAC = mac
	w.members[name] = &member{c, n}
	w.other(host).Ebpnet(t, "endpoint", "add", name, "--network", n.name, "--tunnel", "peer",
		"--ip", ip4.String(), "--ip", ip6.String(), "--mac", e.MAC)
}

func (w *world) other(h *testutil.Host) *testutil.Host {
	if h == w.a {
		return w.b
	}
	return w.a
}

// addVictims opens conversations by UDP, which sends nothing by itself.
func (w *world) addVictims(t *testing.T) {
	t.Helper()
	for _, n := range []*testutil.Netns{w.underlay.Outside, w.a.Netns, w.b.Netns, w.members["open3"].Netns, w.members["vault3"].Netns} {
		n.Serve(t, "udp4", fmt.Sprintf(":%d", service))
		n.Serve(t, "udp6", fmt.Sprintf(":%d", service))
	}
	for _, v := range []struct {
		from   *testutil.Netns
		v4, v6 netip.Addr
	}{
		{w.members["open2"].Netns, w.underlay.IP4, w.underlay.IP6},
		{w.members["bystander1"].Netns, w.underlay.IP4, w.underlay.IP6},
		{w.members["open2"].Netns, w.members["open3"].IP4, w.members["open3"].IP6},
		{w.members["open2"].Netns, open.gateway4(), open.gateway6()},
		{w.members["vault1"].Netns, w.members["vault3"].IP4, w.members["vault3"].IP6},
		{w.a.Netns, w.underlay.IP4, w.underlay.IP6},
		{w.a.Netns, w.b.IP4, w.b.IP6},
	} {
		for _, to := range []netip.Addr{v.v4, v.v6} {
			conn := v.from.MustDial(t, "udp", netip.AddrPortFrom(to, service).String())
			seen := conn.MustAsk(t)
			local := conn.LocalAddr().(*net.UDPAddr).AddrPort()
			w.victims = append(w.victims, &victim{
				what: fmt.Sprintf("%s to %s", v.from.Name, to), who: v.from, conn: conn,
				src: netip.AddrPortFrom(local.Addr().Unmap(), local.Port()), dst: netip.AddrPortFrom(to, service), outside: seen,
			})
		}
	}
}

// mayReach tells whether from may send to to, and whether only by its link.
func (w *world) mayReach(from, to *member) (may, byLink bool) {
	if from.network != to.network {
		return false, false
	}
	if from.network.icc {
		return true, false
	}
	for _, l := range w.links {
		if l.client == from.Endpoint && l.server == to.Endpoint {
			return true, true
		}
	}
	return false, false
}

// byMAC gives the member with this MAC, or nil.
func (w *world) byMAC(mac net.HardwareAddr) *member {
	for _, m := range w.members {
		if m.MAC.String() == mac.String() {
			return m
		}
	}
	return nil
}

// hostAddresses are those by which a container of the network may speak to
// host a.
func (w *world) hostAddresses(n network) []netip.Addr {
	own := []netip.Addr{n.gateway4(), n.gateway6(), linkLocal(w.gatewayA)}
	if n.internal {
		return own
	}
	for _, other := range []network{sealed, open, closed, vault} {
		own = append(own, other.gateway4(), other.gateway6())
	}
	return append(own, w.a.IP4, w.a.IP6, linkLocal(w.uplinkA))
}

// linkLocal is the address made from a MAC: RFC 4291, appendix A.
func linkLocal(mac net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{
		0: 0xfe, 1: 0x80,
		8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5],
	})
}

func deviceMAC(t *testing.T, n *testutil.Netns, device string) (mac net.HardwareAddr) {
	t.Helper()
	n.Do(func() {
		dev, err := net.InterfaceByName(device)
		if err != nil {
			t.Fatal(err)
		}
		mac = dev.HardwareAddr
	})
	return mac
}

// kernel is what an attack may change in a kernel without sending a packet on.
type kernel struct {
	settings  string // addresses, routes, and what it learned of paths
	neighbors map[netip.Addr]string
}

// stateCommands have ip say all of it of a family in one process.
const stateCommands = "addr show\nroute show table all\nroute show cache\nneigh show\n"

// state asks a namespace's kernel by a file with stateCommands.
func state(t *testing.T, n *testutil.Netns, batch string) kernel {
	t.Helper()
	k := kernel{neighbors: map[netip.Addr]string{}}
	var lines []string
	out := n.Run(t, "ip", "-o", "-4", "-batch", batch) + n.Run(t, "ip", "-o", "-6", "-batch", batch)
	for line := range strings.Lines(out) {
		fields := strings.Fields(line)
		if len(fields) > 1 && fields[1] == "dev" && slices.Contains(fields, "lladdr") {
			k.neighbors[netip.MustParseAddr(fields[0])] = fields[slices.Index(fields, "lladdr")+1]
			continue
		}
		// A cached route by itself does no harm; its MTU and its gateway do.
		if strings.Contains(line, "cache") && !strings.Contains(line, "mtu") && !strings.Contains(line, "redirected") {
			continue
		}
		if i := slices.Index(fields, "expires"); i >= 0 {
			fields = slices.Delete(fields, i, i+2)
		}
		if len(fields) > 0 && !slices.Contains(fields, "FAILED") && !slices.Contains(fields, "INCOMPLETE") {
			lines = append(lines, strings.Join(fields, " "))
		}
	}
	k.settings = strings.Join(lines, "\n")
	return k
}

// checkNeighbors fails if a kernel knows a member by a MAC that is not its own,
// and did not before.
func (w *world) checkNeighbors(t *testing.T, name string, before, now kernel) {
	t.Helper()
	for address, mac := range now.neighbors {
		if before.neighbors[address] == mac {
			continue
		}
		for _, m := range w.members {
			if m.owns(address) && m.MAC.String() != mac {
				t.Errorf("%s takes %s for %s, which has %s", name, mac, m.Endpoint, m.MAC)
			}
		}
	}
}
