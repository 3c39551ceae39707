package test

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// Against Open vSwitch, whose GRE is not ours: two hosts of ebpnet could agree
// on what is wrong.

// underlayMTU is that of the wires between hosts.
const underlayMTU = 1500

// form is one of the ways in which GRE is spoken.
type form struct {
	name    string
	v6      bool     // the underlay's family
	key     string   // "": none
	tunnel  []string // what `tunnel add` is told
	options []string // of Open vSwitch's port, beside the key
	sent    string   // how tcpdump tells the header that ebpnet sends
	headers int      // bytes in front of an inner packet, from ebpnet
}

func keyOption(key string) string { return "key=" + key }

var keyed = form{name: "key", key: strconv.Itoa(greKey), sent: "Flags [key present], key=0x2a,", headers: 42}

// ovsPair is two hosts with a tunnel between them: host with ebpnet and the
// container web on the network "net", ovs with Open vSwitch and the container
// far on a bridge. Neither host is told of the other's container.
type ovsPair struct {
	host     *testutil.Host
	ovs      *testutil.OVS
	bridge   *testutil.OVSBridge
	underlay *testutil.Underlay
	web, far *testutil.Container
}

func newOVSPair(t *testing.T, f form) *ovsPair {
	t.Helper()
	t.Parallel()
	return joinOVS(t, f, testutil.NewOVS)
}

// joinOVS makes the pair with the Open vSwitch that start starts.
func joinOVS(t *testing.T, f form, start func(testing.TB, *testutil.Host, *testutil.Underlay) *testutil.OVS) *ovsPair {
	t.Helper()
	p := &ovsPair{host: testutil.NewHost(t, "a")}
	peer := testutil.NewHost(t, "ovs")
	p.underlay = testutil.NewUnderlay(t, p.host, peer)
	p.ovs = start(t, peer, p.underlay)
	local, remote := p.host.IP4, p.ovs.IP4
	if f.v6 {
		local, remote = p.host.IP6, p.ovs.IP6
	}

	p.host.Ebpnet(t, "load", "--uplink", testutil.Uplink)
	tunnel := append([]string{"tunnel", "add", "ovs", "--local", local.String(), "--remote", remote.String()}, f.tunnel...)
	options := f.options
	if f.key == "" {
		createNet(t, p.host)
		tunnel = append(tunnel, "--network", "net")
	} else {
		createNet(t, p.host, "--key", f.key)
		options = append([]string{keyOption(f.key)}, options...)
	}
	p.host.Ebpnet(t, tunnel...)
	p.web = p.host.NewContainer(t, "web", "net", "--ip", "172.30.0.10", "--ip", "fd00:30::10")

	p.bridge = p.ovs.NewBridge(t, "br-int")
	p.bridge.AddGRE(t, "gre", local, options...)
	p.far = p.bridge.NewContainer(t, "far", underlayMTU-f.headers,
		netip.MustParsePrefix("172.30.0.20/24"), netip.MustParsePrefix("fd00:30::20/64"))
	return p
}

func TestOVS(t *testing.T) {
	t.Parallel()
	for _, f := range []form{
		keyed,
		{name: "key of zero", key: "0", sent: "Flags [key present], key=0x0,", headers: 42},
		{name: "no key", sent: "Flags [none],", headers: 38},
		{
			name: "checksums", key: keyed.key, tunnel: []string{"--csum"}, options: []string{"csum=true"},
			sent: "Flags [checksum present, key present], sum 0x", headers: 46,
		},
		{
			name: "sequence numbers", key: keyed.key, tunnel: []string{"--seq"}, options: []string{"seq=true"},
			sent: "Flags [key present, sequence# present], key=0x2a, seq ", headers: 46,
		},
		{
			name: "each side its own", key: keyed.key, tunnel: []string{"--seq"}, options: []string{"csum=true"},
			sent: "Flags [key present, sequence# present], key=0x2a, seq ", headers: 46,
		},
		{
			// Only from ebpnet: Open vSwitch 3.1 puts the number in after it has
			// summed up, which is right for number 0 alone.
			name: "checksums and sequence numbers", tunnel: []string{"--csum", "--seq"},
			sent: "Flags [checksum present, sequence# present], sum 0x", headers: 46,
		},
		{name: "IPv6", v6: true, key: keyed.key, sent: keyed.sent, headers: 62},
		{
			name: "all over IPv6", v6: true, key: keyed.key, tunnel: []string{"--csum", "--seq"}, options: []string{"csum=true"},
			sent: "Flags [checksum present, key present, sequence# present], sum 0x", headers: 70,
		},
	} {
		t.Run(f.name, func(t *testing.T) {
			p := newOVSPair(t, f)
			local, remote := p.host.IP4, p.ovs.IP4
			if f.v6 {
				local, remote = p.host.IP6, p.ovs.IP6
			}
			dump := p.underlay.Outside.Start(t, "tcpdump", "-i", "bridge", "-n", "-v", "--immediate-mode", "-c", "1",
				"src", local.String(), "and", "dst", remote.String(), "and", "proto", "47")
			dump.Await(t, "listening on")
			p.resolve(t)
			p.broadcast(t)
			p.fit(t, underlayMTU-f.headers)
			p.carry(t)
			if out, want := dump.Wait(t), fmt.Sprintf("%s > %s: GREv0, %s", local, remote, f.sent); !strings.Contains(out, want) {
				t.Errorf("want %q on the wire: %s", want, out)
			}
		})
	}
}

// forget empties the neighbor tables of both containers, and what ebpnet has
// learned: the next question goes through the tunnel.
func (p *ovsPair) forget(t *testing.T) {
	t.Helper()
	for _, c := range []*testutil.Container{p.web, p.far} {
		c.Run(t, "ip", "neigh", "flush", "dev", testutil.Device)
	}
	p.host.Ebpnet(t, "fdb", "flush")
}

// resolve expects each container to find the other by ARP and ND.
func (p *ovsPair) resolve(t *testing.T) {
	t.Helper()
	for _, ends := range [][2]*testutil.Container{{p.web, p.far}, {p.far, p.web}} {
		from, to := ends[0], ends[1]
		for _, address := range to.Addresses() {
			p.forget(t)
			ping(t, from.Netns, address)
			neighbor := from.Run(t, "ip", "neigh", "show", address.String(), "dev", testutil.Device)
			if !strings.Contains(neighbor, to.MAC.String()) {
				t.Errorf("%s has %q for %s, want %s", from.Name, neighbor, address, to.MAC)
			}
		}
	}
	expectLearned(t, p.host, p.far.MAC, "ovs")
}

// expectLearned expects the station in the network "net" behind a tunnel.
func expectLearned(t *testing.T, h *testutil.Host, mac net.HardwareAddr, tunnel string) {
	t.Helper()
	var stations []struct {
		MAC     string
		Tunnel  string
		Learned bool
	}
	h.EbpnetJSON(t, &stations, "fdb", "ls", "--network", "net")
	for _, s := range stations {
		if s.MAC == mac.String() && s.Learned && s.Tunnel == tunnel {
			return
		}
	}
	t.Errorf("%s is not learned behind tunnel %s: %v", mac, tunnel, stations)
}

// broadcast expects what a container sends to all to reach the other.
func (p *ovsPair) broadcast(t *testing.T) {
	t.Helper()
	all4, all6 := netip.MustParseAddr("172.30.0.255"), netip.IPv6LinkLocalAllNodes()
	for _, ends := range [][2]*testutil.Container{{p.web, p.far}, {p.far, p.web}} {
		from, to := ends[0].NewTap(t, testutil.Device), ends[1].NewTap(t, testutil.Device)
		for _, frame := range [][]byte{
			datagram(t, ends[0], layers.EthernetBroadcast, all4, "to all from "+ends[0].Name),
			datagram(t, ends[0], multicastMAC(all6), all6, "to all from "+ends[0].Name),
		} {
			from.Send(t, frame)
			to.Await(t, "a broadcast", func(p gopacket.Packet) bool { return string(p.Data()) == string(frame) })
		}
	}
}

// fit expects packets of the MTU to get through whole both ways, and larger
// ones in fragments.
func (p *ovsPair) fit(t *testing.T, mtu int) {
	t.Helper()
	if link := p.web.Run(t, "ip", "-o", "link", "show", testutil.Device); !strings.Contains(link, fmt.Sprintf("mtu %d ", mtu)) {
		t.Errorf("want MTU %d: %s", mtu, link)
	}
	const header4, header6 = 20 + 8, 40 + 8 // IP and ICMP echo
	for _, ends := range [][2]*testutil.Container{{p.web, p.far}, {p.far, p.web}} {
		ping(t, ends[0].Netns, ends[1].IP4, "-M", "do", "-s", strconv.Itoa(mtu-header4))
		ping(t, ends[0].Netns, ends[1].IP6, "-M", "do", "-s", strconv.Itoa(mtu-header6))
		for _, address := range ends[1].Addresses() {
			ping(t, ends[0].Netns, address, "-s", "4000")
		}
	}
}

// carry runs iperf3 both ways.
func (p *ovsPair) carry(t *testing.T) {
	t.Helper()
	for _, address := range p.far.Addresses() {
		for _, args := range [][]string{
			{"--bytes", "8M"},
			{"--bytes", "8M", "--reverse"},
			{"--bytes", "250K", "--udp", "--bitrate", "10M"},
			{"--bytes", "250K", "--udp", "--bitrate", "10M", "--reverse"},
		} {
			server := p.far.Start(t, "iperf3", "--server", "--one-off", "--forceflush")
			server.Await(t, "Server listening")
			var report struct {
				End struct {
					SumReceived struct{ Bytes float64 } `json:"sum_received"`
					Sum         struct {
						LostPercent *float64 `json:"lost_percent"` // UDP alone
					}
				}
			}
			out := p.web.Run(t, "iperf3", append([]string{"--client", address.String(), "--json"}, args...)...)
			server.Wait(t)
			if err := json.Unmarshal([]byte(out), &report); err != nil {
				t.Fatal(err)
			}
			const tolerable = 50 // percent; a busy machine has too small buffers
			if lost := report.End.Sum.LostPercent; lost != nil && *lost > tolerable {
				t.Errorf("iperf3 %v to %s: %.0f%% lost", args, address, *lost)
			}
			if lost := report.End.Sum.LostPercent; lost == nil && report.End.SumReceived.Bytes == 0 {
				t.Errorf("iperf3 %v to %s: nothing received", args, address)
			}
		}
	}
}

// A station that neither side knows, while its neighbors do.
func TestOVSUnknownStation(t *testing.T) {
	p := newOVSPair(t, keyed)
	pingAll(t, p.web, p.far)
	p.host.Ebpnet(t, "fdb", "flush")
	p.ovs.Appctl(t, "fdb/flush", p.bridge.Name)
	ping(t, p.web.Netns, p.far.IP4)
	p.host.Ebpnet(t, "fdb", "flush")
	p.ovs.Appctl(t, "fdb/flush", p.bridge.Name)
	ping(t, p.far.Netns, p.web.IP6)
}

// One tunnel carries two networks, each to its own bridge.
func TestOVSTwoNetworks(t *testing.T) {
	p := newOVSPair(t, keyed)
	const otherKey = "16777216" // more than 24 bits hold
	createOther(t, p.host, "--key", otherKey)
	near := p.host.NewContainer(t, "near", "other", "--ip", "172.31.0.10", "--ip", "fd00:31::10")
	bridge := p.ovs.NewBridge(t, "br-other")
	bridge.AddGRE(t, "gre-other", p.host.IP4, keyOption(otherKey))
	other := bridge.NewContainer(t, "other", underlayMTU-keyed.headers,
		netip.MustParsePrefix("172.31.0.20/24"), netip.MustParsePrefix("fd00:31::20/64"))

	pingAll(t, p.web, p.far)
	pingAll(t, near, other)
	pingAll(t, other, near)
	far, nearby := p.far.NewTap(t, testutil.Device), other.NewTap(t, testutil.Device)
	frame := datagram(t, near, layers.EthernetBroadcast, netip.MustParseAddr("172.31.0.255"), "to all of other")
	same := func(p gopacket.Packet) bool { return string(p.Data()) == string(frame) }
	near.NewTap(t, testutil.Device).Send(t, frame)
	nearby.Await(t, "a broadcast", same)
	if f := far.Receive(t, aMoment, same); f != nil {
		t.Errorf("a broadcast reaches another network:\n%s", f)
	}
}

// What Open vSwitch sends that ebpnet has no reason to take.
func TestOVSRefused(t *testing.T) {
	p := newOVSPair(t, keyed)
	set := func(options ...string) {
		t.Helper()
		args := []string{"clear", "interface", "gre", "options", "--", "set", "interface", "gre", "options:remote_ip=" + p.host.IP4.String()}
		for _, option := range options {
			args = append(args, "options:"+option)
		}
		p.ovs.Vsctl(t, args...)
		p.ovs.Settle(t)
	}
	right := keyOption(keyed.key)
	pingAll(t, p.web, p.far)

	for _, options := range [][]string{{keyOption("43")}, {keyOption("0")}, {}} {
		set(options...)
		noPing(t, p.host, "unknown_key", p.far.Netns, p.web.IP4)
		noPing(t, p.host, "unknown_key", p.far.Netns, p.web.IP6)
		if out, err := p.web.Try("ping", "-n", "-c", "1", "-W", "0.4", p.far.IP4.String()); err == nil {
			t.Errorf("ebpnet is answered over %q:\n%s", options, out)
		}
	}
	set(right)
	pingAll(t, p.far, p.web)

	// All of these but number 0 have a wrong checksum: see TestOVS.
	set(right, "csum=true", "seq=true")
	testutil.Eventually(t, "number 0 is sent", func() bool {
		_, err := p.far.Try("ping", "-n", "-c", "1", "-W", "0.4", p.web.IP4.String())
		return err != nil
	})
	noPing(t, p.host, "bad_gre_checksum", p.far.Netns, p.web.IP4)
	set(right)
	pingAll(t, p.far, p.web)

	p.host.Ebpnet(t, "tunnel", "rm", "ovs")
	p.host.Ebpnet(t, "tunnel", "add", "elsewhere", "--remote", p.underlay.IP4.String())
	noPing(t, p.host, "unknown_tunnel", p.far.Netns, p.web.IP4)
	p.host.Ebpnet(t, "tunnel", "add", "ovs", "--remote", p.ovs.IP4.String())
	pingAll(t, p.far, p.web)
}

// A container behind Open vSwitch is not believed to be one of ebpnet's.
func TestOVSCannotImpersonate(t *testing.T) {
	p := newOVSPair(t, keyed)
	other := p.host.NewContainer(t, "other", "net", "--ip", "172.30.0.11", "--ip", "fd00:30::11")
	web, far := p.web.NewTap(t, testutil.Device), p.far.NewTap(t, testutil.Device)
	const mark = "from behind the tunnel"
	marked := func(p gopacket.Packet) bool { return strings.HasSuffix(string(p.Data()), mark) }
	frame := func(mac net.HardwareAddr, src netip.Addr) []byte {
		return udpFrame(t, mac, p.web.MAC, netip.AddrPortFrom(src, service), netip.AddrPortFrom(p.web.IP4, service), mark)
	}
	far.Send(t, frame(p.far.MAC, p.far.IP4))
	web.Await(t, "an honest frame", marked)
	for _, f := range [][]byte{
		frame(other.MAC, other.IP4),
		frame(p.far.MAC, other.IP4),
		frame(p.far.MAC, gateway4),
		frame(gatewayMAC(t, p.host), p.far.IP4),
		arp(t, layers.ARPReply, p.far.MAC, p.far.MAC, other.IP4, p.web.IP4),
		arp(t, layers.ARPReply, p.far.MAC, p.far.MAC, gateway4, p.web.IP4),
	} {
		p.host.ExpectDrops(t, "spoofed_overlay", func() { far.Send(t, f) })
		if f := web.Receive(t, 0, func(p gopacket.Packet) bool {
			return marked(p) || isARPReply(other.IP4)(p) || isARPReply(gateway4)(p)
		}); f != nil {
			t.Errorf("it gets through:\n%s", f)
		}
	}
	pingAll(t, p.far, other)
}

// A container that moves from Open vSwitch's host to ebpnet's, and back.
func TestOVSMove(t *testing.T) {
	p := newOVSPair(t, keyed)
	third := p.bridge.NewContainer(t, "third", underlayMTU-keyed.headers,
		netip.MustParsePrefix("172.30.0.30/24"), netip.MustParsePrefix("fd00:30::30/64"))
	pingAll(t, p.web, p.far)
	pingAll(t, third, p.far)

	tap := third.NewTap(t, testutil.Device)
	p.bridge.Mute(t, p.far)
	moved := p.host.NewContainer(t, "moved", "net",
		"--ip", p.far.IP4.String(), "--ip", p.far.IP6.String(), "--mac", p.far.MAC.String())
	tap.Await(t, "a gratuitous ARP request", func(frame gopacket.Packet) bool {
		arp, ok := frame.Layer(layers.LayerTypeARP).(*layers.ARP)
		return ok && arp.Operation == layers.ARPRequest && from(moved.MAC)(frame) &&
			string(arp.SourceProtAddress) == string(moved.IP4.AsSlice()) &&
			string(arp.DstProtAddress) == string(moved.IP4.AsSlice())
	})
	tap.Await(t, "an unsolicited neighbor advertisement", func(frame gopacket.Packet) bool {
		nd, ok := frame.Layer(layers.LayerTypeICMPv6NeighborAdvertisement).(*layers.ICMPv6NeighborAdvertisement)
		return ok && from(moved.MAC)(frame) && string(nd.TargetAddress) == string(moved.IP6.AsSlice())
	})
	pingAll(t, third, moved)
	pingAll(t, p.web, moved)

	p.host.Ebpnet(t, "endpoint", "rm", "moved")
	p.bridge.Unmute(t, p.far)
	// Open vSwitch goes on by its old flows for a moment.
	testutil.Eventually(t, "Open vSwitch follows the move back", func() bool {
		_, err := p.far.Try("ping", "-n", "-c", "1", "-W", "0.4", p.web.IP4.String())
		return err == nil
	})
	pingAll(t, p.far, p.web)
	pingAll(t, p.web, p.far)
}
