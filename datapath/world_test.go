package datapath

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/ebpnet/ebpnet/bpf"
	"github.com/ebpnet/ebpnet/internal/testutil"
	"github.com/ebpnet/ebpnet/loader"
)

// host is one end of a connection.
type host struct {
	id       uint32 // of the endpoint
	network  uint32
	device   string // host-side veth of a local endpoint
	mac      mac
	ip4, ip6 netip.Addr
}

func (h host) ip(v6 bool) netip.Addr {
	if v6 {
		return h.ip6
	}
	return h.ip4
}

// Ids of the networks.
const (
	openNet     = 1 // with ICC and a tunnel
	closedNet   = 2 // without ICC, with a tunnel
	internalNet = 3
	plainNet    = 4 // not masqueraded
)

// Constants of the world: see newWorld.
const (
	openKey     = 0x01020304
	closedKey   = 0x05060708
	strangeKey  = 0x0a0b0c0d
	theTunnel   = 1
	firstRemote = 16384 // ids of remote endpoints
	tunnelTTL   = 64
	uplinkMTU   = 1500
	prefix4     = 24 // of the subnets
	prefix6     = 64
)

var (
	gatewayMAC = mac{0x02, 0xeb, 0, 0, 0, 1}
	uplinkMAC  = mac{0x02, 0xeb, 0, 0, 0, 2}
	routerMAC  = mac{0x02, 0xeb, 0, 0, 0, 3}

	// Endpoints: on a network with ICC, one without ICC, an internal one, and
	// one without masquerade.
	alice   = local(openNet, 1, "alice")
	bob     = local(openNet, 2, "bob")
	client  = local(closedNet, 3, "client")
	server  = local(closedNet, 4, "server")
	insider = local(internalNet, 5, "insider")
	plain   = local(plainNet, 6, "plain")
	nobody  = local(openNet, 99, "") // in the subnet, but not in the tables

	remote       = remoteEndpoint(openNet, 50)
	remoteClient = remoteEndpoint(closedNet, 51)

	website = host{mac: routerMAC, ip4: netip.MustParseAddr("198.18.0.9"), ip6: netip.MustParseAddr("2001:db8:9::9")}
	uplink  = host{mac: uplinkMAC, ip4: netip.MustParseAddr("192.0.2.1"), ip6: netip.MustParseAddr("2001:db8:1::1")}
	peer    = host{mac: routerMAC, ip4: netip.MustParseAddr("192.0.2.2"), ip6: netip.MustParseAddr("2001:db8:1::2")}
	// Without a route, and with a route through a device that is no uplink.
	refused  = host{ip4: netip.MustParseAddr("203.0.113.9"), ip6: netip.MustParseAddr("2001:db8:dead::9")}
	sideways = host{ip4: netip.MustParseAddr("198.51.100.9"), ip6: netip.MustParseAddr("2001:db8:51::9")}
)

func address4(network, n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte{172, 30, byte(network), byte(n)})
}

func address6(network, n uint32) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("fd00:30:%d::%x", network, n))
}

func local(network, id uint32, device string) host {
	n := 10 + id
	return host{
		id: id, network: network, device: device, mac: mac{0x02, 0xeb, 172, 30, byte(network), byte(n)},
		ip4: address4(network, n), ip6: address6(network, n),
	}
}

func remoteEndpoint(network, n uint32) host {
	h := local(network, n, "")
	h.id = firstRemote + n
	return h
}

func gatewayOf(network uint32) host {
	return host{network: network, mac: gatewayMAC, ip4: address4(network, 1), ip6: address6(network, 1)}
}

func locals() []host { return []host{alice, bob, client, server, insider, plain} }

// world is a host with the programs loaded, a device to each endpoint, and
// routes through two devices. No program is attached: tests run them with
// Program.Run.
type world struct {
	*Tables
	ns         *testutil.Netns
	containers *testutil.Netns
	ifindex    map[string]uint32
	wanted     Wanted
}

// newWorld makes a world. The function load loads its tables.
func newWorld(t testing.TB, load func(testing.TB, loader.Config) *Tables) *world {
	t.Helper()
	w := &world{ns: testutil.NewNetns(t, "host"), containers: testutil.NewNetns(t, "containers"), ifindex: map[string]uint32{}}
	for _, n := range []*testutil.Netns{w.ns, w.containers} {
		n.SetSysctl(t, "ipv6/conf/all/accept_dad", "0")
		n.SetSysctl(t, "ipv6/conf/default/accept_dad", "0")
	}
	w.containers.SetSysctl(t, "ipv6/conf/default/disable_ipv6", "1")
	batch := "link set lo up\n" +
		"link add ebpnet0 address " + hardware(gatewayMAC).String() + " type veth peer name ebpnet1\n" +
		"link add up0 address " + hardware(uplinkMAC).String() + " type veth peer name up0peer\n" +
		"link add side0 type veth peer name side0peer\n"
	for _, e := range locals() {
		batch += fmt.Sprintf("link add %s type veth peer name c-%s netns %s\n", e.device, e.device, w.containers.Name)
		batch += fmt.Sprintf("link set %s up addrgenmode none\n", e.device)
	}
	for _, device := range []string{"ebpnet0", "ebpnet1", "up0", "up0peer", "side0", "side0peer"} {
		batch += "link set " + device + " up addrgenmode none\n"
	}
	for network := range uint32(plainNet) {
		g := gatewayOf(network + 1)
		batch += fmt.Sprintf("addr add %s/%d dev ebpnet0\naddr add %s/%d dev ebpnet0 nodad\n", g.ip4, prefix4, g.ip6, prefix6)
	}
	batch += "addr add 192.0.2.1/24 dev up0\naddr add 2001:db8:1::1/64 dev up0 nodad\n" +
		"route add default via 192.0.2.254\nroute add default via 2001:db8:1::fe\n" +
		"route add unreachable 203.0.113.0/24\nroute add unreachable 2001:db8:dead::/48\n" +
		"route add 198.51.100.0/24 dev side0\nroute add 2001:db8:51::/64 dev side0\n"
	w.ip(t, w.ns, batch)
	batch = "link set lo up\n"
	for _, e := range locals() {
		batch += "link set c-" + e.device + " up\n"
	}
	w.ip(t, w.containers, batch)
	setForwarding("1")(t, w)

	var devices []net.Interface
	var err error
	w.ns.Do(func() { devices, err = net.Interfaces() })
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range devices {
		w.ifindex[d.Name] = uint32(d.Index)
	}
	w.Tables = load(t, loader.Config{
		GatewayIfindex: w.ifindex["ebpnet0"], DatapathIfindex: w.ifindex["ebpnet1"], GatewayMAC: gatewayMAC,
	})
	w.wanted = w.population()
	if err := w.Replace(w.wanted); err != nil {
		t.Fatal(err)
	}
	return w
}

// setForwarding switches the host's forwarding of container packets. With "0",
// route lookups fail.
func setForwarding(value string) func(testing.TB, *world) {
	return func(t testing.TB, w *world) {
		t.Helper()
		w.ns.SetSysctl(t, "ipv4/conf/ebpnet0/forwarding", value)
		w.ns.SetSysctl(t, "ipv6/conf/ebpnet0/forwarding", value)
	}
}

// ip runs `ip -batch`: one process for all commands.
func (w *world) ip(t testing.TB, n *testutil.Netns, batch string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "batch")
	if err := os.WriteFile(file, []byte(batch), 0o600); err != nil {
		t.Fatal(err)
	}
	n.Run(t, "ip", "-batch", file)
}

func key(k uint32) *uint32 { return &k }

func (w *world) population() Wanted {
	gateways := func(network uint32) []netip.Prefix {
		g := gatewayOf(network)
		return []netip.Prefix{netip.PrefixFrom(g.ip4, prefix4), netip.PrefixFrom(g.ip6, prefix6)}
	}
	wanted := Wanted{
		Networks: []Network{
			{ID: openNet, ICC: true, Masquerade: true, Key: key(openKey)},
			{ID: closedNet, Masquerade: true, Key: key(closedKey)},
			{ID: internalNet, ICC: true, Masquerade: true, Internal: true},
			{ID: plainNet, ICC: true},
		},
		Links: []Link{
			{Client: client.id, Server: server.id, Protocol: protocolTCP, First: 6379, Last: 6380},
			{Client: client.id, Server: server.id, Protocol: protocolUDP, First: 53, Last: 53},
			{Client: remoteClient.id, Server: server.id, Protocol: protocolTCP, First: 6379, Last: 6379},
		},
		Tunnels: []Tunnel{{ID: theTunnel, Local: uplink.ip4, Remote: peer.ip4, TTL: tunnelTTL}},
		TunnelNetworks: []TunnelNetwork{
			{Tunnel: theTunnel, Network: openNet, Key: key(openKey)},
			{Tunnel: theTunnel, Network: closedNet, Key: key(closedKey)},
		},
		Uplinks:    []Uplink{{Ifindex: int(w.ifindex["up0"]), MTU: uplinkMTU, IPv4: uplink.ip4, IPv6: uplink.ip6, Default: true}},
		Ports:      publishedPorts(),
		Broadcasts: []netip.Addr{broadcastOf(uplink.ip4)},
	}
	for i := range wanted.Networks {
		n := &wanted.Networks[i]
		n.Gateways, n.GatewayMAC = gateways(n.ID), gatewayMAC
		wanted.Broadcasts = append(wanted.Broadcasts, broadcastOf(gatewayOf(n.ID).ip4), broadcastOf(gatewayOf(n.ID).ip6))
	}
	for _, e := range locals() {
		wanted.Endpoints = append(wanted.Endpoints, Endpoint{
			ID: e.id, Network: e.network, MAC: e.mac,
			Addresses: []netip.Addr{e.ip4, e.ip6}, Ifindex: int(w.ifindex[e.device]),
		})
	}
	for _, e := range []host{remote, remoteClient} {
		wanted.Endpoints = append(wanted.Endpoints, Endpoint{
			ID: e.id, Network: e.network, MAC: e.mac,
			Addresses: []netip.Addr{e.ip4, e.ip6}, Tunnel: theTunnel,
		})
	}
	return wanted
}

const (
	protocolTCP  = 6
	protocolUDP  = 17
	protocolESP  = 50
	protocolSCTP = 132
)

// pinDirectory makes a directory on bpffs for the duration of the test.
func pinDirectory(t testing.TB) string {
	t.Helper()
	if err := loader.MountBPFFS("/sys/fs/bpf"); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/sys/fs/bpf", testutil.Prefix()+"datapath-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// loadPinned loads the datapath as `ebpnet load` does.
func loadPinned(t testing.TB, c loader.Config) *Tables {
	t.Helper()
	return loadAt(pinDirectory(t))(t, c)
}

func loadAt(dir string) func(testing.TB, loader.Config) *Tables {
	return func(t testing.TB, c loader.Config) *Tables {
		t.Helper()
		tables, err := Load(dir, c)
		if err != nil {
			t.Fatalf("%+v", err)
		}
		t.Cleanup(func() {
			if err := tables.Close(); err != nil {
				t.Error(err)
			}
		})
		return tables
	}
}

// loadChanged returns a function that loads the programs without pins, after
// change has changed their maps and constants.
func loadChanged(change func(*ebpf.CollectionSpec) error) func(testing.TB, loader.Config) *Tables {
	return func(t testing.TB, c loader.Config) *Tables {
		t.Helper()
		tables := loadStill(change)(t, c)
		startSweep(t, tables.Programs.SweepFlows)
		return tables
	}
}

// loadStill is loadChanged without the start of the sweep.
func loadStill(change func(*ebpf.CollectionSpec) error) func(testing.TB, loader.Config) *Tables {
	return func(t testing.TB, c loader.Config) *Tables {
		t.Helper()
		spec, err := bpf.LoadEbpnet()
		if err != nil {
			t.Fatal(err)
		}
		// The flags of a kernel that supports all of them: see loader.Probe.
		for name, value := range map[string]any{
			bpf.EbpnetVarGatewayIfindex:  c.GatewayIfindex,
			bpf.EbpnetVarDatapathIfindex: c.DatapathIfindex,
			bpf.EbpnetVarGatewayMac:      c.GatewayMAC,
			bpf.EbpnetVarFibFlags:        uint32(1<<2 | 1<<4),
			bpf.EbpnetVarDecapIpv4Flags:  uint32(decapIPv4),
			bpf.EbpnetVarDecapIpv6Flags:  uint32(decapIPv6),
		} {
			if err := setConstant(spec, name, value); err != nil {
				t.Fatal(err)
			}
		}
		if err := change(spec); err != nil {
			t.Fatal(err)
		}
		var objects loader.Objects
		collection, err := ebpf.NewCollection(spec)
		if err != nil {
			t.Fatalf("%+v", err)
		}
		defer collection.Close()
		for _, into := range []any{&objects.Maps, &objects.Programs} {
			if err := collection.Assign(into); err != nil {
				t.Fatal(err)
			}
		}
		t.Cleanup(func() {
			if err := objects.Close(); err != nil {
				t.Error(err)
			}
		})
		return &Tables{&objects, t.TempDir()}
	}
}

// Flags of bpf_skb_adjust_room() since Linux 6.3: BPF_F_ADJ_ROOM_DECAP_L3_IPV4
// and BPF_F_ADJ_ROOM_DECAP_L3_IPV6.
const (
	decapIPv4 = 1 << 7
	decapIPv6 = 1 << 8
)

// loadDecap returns a function that loads the programs for kernels that have
// exactly these flags for removing outer headers.
func loadDecap(ipv4, ipv6 uint32) func(testing.TB, loader.Config) *Tables {
	return loadChanged(func(spec *ebpf.CollectionSpec) error {
		return errors.Join(
			setConstant(spec, bpf.EbpnetVarDecapIpv4Flags, ipv4),
			setConstant(spec, bpf.EbpnetVarDecapIpv6Flags, ipv6),
		)
	})
}

// startSweep starts the sweep, as loader.Load does.
func startSweep(t testing.TB, p *ebpf.Program) {
	t.Helper()
	testutil.Eventually(t, "the start of the sweep", func() bool {
		status, _, err := p.Test(make([]byte, skbSize))
		if err != nil {
			t.Fatal(err)
		}
		return status == 0
	})
}

func setConstant(spec *ebpf.CollectionSpec, name string, value any) error {
	v, ok := spec.Variables[name]
	if !ok {
		return fmt.Errorf("no constant %s", name)
	}
	return v.Set(value)
}

// broadcastOf is the broadcast address of a's subnet. For IPv6, it is the
// subnet's anycast address.
func broadcastOf(a netip.Addr) netip.Addr {
	if a.Is6() {
		return netip.PrefixFrom(a, prefix6).Masked().Addr()
	}
	last := netip.PrefixFrom(a, prefix4).Masked().Addr().As4()
	last[3] = 255
	return netip.AddrFrom4(last)
}
