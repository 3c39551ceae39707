package test

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// Containers of hosts that are told of nobody behind their tunnels.

// mesh is three hosts, each with a tunnel to each of the others, and the
// network "net" with a container on every host. A tunnel has the name of the
// host at its other end: "a", "b" or "c".
type mesh struct {
	hosts      []*testutil.Host
	underlay   *testutil.Underlay
	containers []*testutil.Container
	v6, keyed  bool
}

var meshNames = []string{"a", "b", "c"}

// newMesh makes one whose tunnels are over IPv6 if v6 is set, and whose network
// has a key if keyed is.
func newMesh(t *testing.T, v6, keyed bool, network ...string) *mesh {
	t.Helper()
	t.Parallel()
	m := &mesh{v6: v6, keyed: keyed}
	for _, name := range meshNames {
		m.hosts = append(m.hosts, testutil.NewHost(t, name))
	}
	m.underlay = testutil.NewUnderlay(t, m.hosts...)
	for i, h := range m.hosts {
		h.Ebpnet(t, "load", "--uplink", testutil.Uplink)
		if keyed {
			network = append(network, "--key", strconv.Itoa(greKey))
		}
		createNet(t, h, network...)
		for j := range m.hosts {
			if j != i {
				m.addTunnel(t, i, j)
			}
		}
		m.containers = append(m.containers, m.newContainer(t, i, "on-"+meshNames[i], "net", 10*(i+1)))
	}
	return m
}

// addTunnel makes the tunnel from one host to another.
func (m *mesh) addTunnel(t *testing.T, from, to int, args ...string) {
	t.Helper()
	remote := m.hosts[to].IP4
	if m.v6 {
		remote = m.hosts[to].IP6
	}
	if !m.keyed && len(args) == 0 {
		args = []string{"--network", "net"}
	}
	m.hosts[from].Ebpnet(t, append([]string{"tunnel", "add", meshNames[to], "--remote", remote.String()}, args...)...)
}

// newContainer makes a container with the last number id in both of the
// network's subnets.
func (m *mesh) newContainer(t *testing.T, host int, name, network string, id int, args ...string) *testutil.Container {
	t.Helper()
	return m.hosts[host].NewContainer(t, name, network, append(addressArgs(network, id), args...)...)
}

// addressArgs asks for the addresses with the last number id in both of the
// subnets of "net" or "other".
func addressArgs(network string, id int) []string {
	v4, v6 := "172.30.0.%d", "fd00:30::%x"
	if network == "other" {
		v4, v6 = "172.31.0.%d", "fd00:31::%x"
	}
	return []string{"--ip", fmt.Sprintf(v4, id), "--ip", fmt.Sprintf(v6, id)}
}

// dump watches the wires between the hosts with tcpdump, which prints the
// inner packets too.
func (m *mesh) dump(t *testing.T) *testutil.Process {
	t.Helper()
	dump := m.underlay.Outside.Start(t, "tcpdump", "-i", "bridge", "-n", "-l", "--immediate-mode", "proto", "47")
	dump.Await(t, "listening on")
	return dump
}

// meshForms are the ways in which hosts are joined.
var meshForms = []struct {
	name      string
	v6, keyed bool
	headers   int // bytes in front of an inner packet
}{
	{"IPv4 with key", false, true, 42},
	{"IPv4 without key", false, false, 38},
	{"IPv6 with key", true, true, 62},
	{"IPv6 without key", true, false, 58},
}

func TestContainersAreFoundByFlooding(t *testing.T) {
	for _, form := range meshForms {
		t.Run(form.name, func(t *testing.T) {
			m := newMesh(t, form.v6, form.keyed)
			expectNoContainerAddress(t, m.underlay)
			a, c := m.containers[0], m.containers[2]
			for _, from := range m.containers {
				for _, to := range m.containers {
					if from != to {
						pingAll(t, from, to)
					}
				}
			}
			for i := range m.hosts {
				for j, other := range m.containers {
					if j != i {
						expectLearned(t, m.hosts[i], other.MAC, meshNames[j])
					}
				}
			}
			redis(t, c.Netns, 6379)
			for _, address := range c.Addresses() {
				redisPing(t, a.Netns, address, 6379)
				ping(t, a.Netns, address, "-s", "4000") // in IP fragments
				for _, args := range [][]string{
					{"--bytes", "8M"},
					{"--bytes", "8M", "--reverse"},
					{"--bytes", "1M", "--udp", "--bitrate", "50M"},
				} {
					carries(t, a.Netns, c.Netns, address, args...)
				}
			}
		})
	}
}

// carries runs iperf3 for as much as args tell.
func carries(t *testing.T, from, to *testutil.Netns, address netip.Addr, args ...string) {
	t.Helper()
	server := to.Start(t, "iperf3", "--server", "--one-off", "--forceflush")
	server.Await(t, "Server listening")
	from.Run(t, "iperf3", append([]string{"--client", address.String()}, args...)...)
	server.Wait(t)
}

func TestNothingIsFloodedWithoutICC(t *testing.T) {
	m := newMesh(t, false, true, "--icc=false")
	dump := m.dump(t)
	a, b := m.containers[0], m.containers[1]
	tap := b.NewTap(t, testutil.Device)
	noPing(t, m.hosts[0], "policy", a.Netns, b.IP4)
	noPing(t, m.hosts[0], "policy", a.Netns, b.IP6)
	// Nor does the other side take it from one that does.
	m.hosts[0].Ebpnet(t, "network", "set", "net", "--icc=true")
	noPing(t, m.hosts[1], "policy", a.Netns, b.IP4)
	noPing(t, m.hosts[1], "policy", a.Netns, b.IP6)
	dump.Await(t, "who-has "+b.IP4.String())
	if f := tap.Receive(t, 0, from(a.MAC)); f != nil {
		t.Errorf("a container without ICC receives:\n%s", f)
	}
	if list := learnedStations(t, m.hosts[1]); len(list) != 0 {
		t.Errorf("learned without ICC: %+v", list)
	}
	m.hosts[1].Ebpnet(t, "network", "set", "net", "--icc=true")
	a.Run(t, "ip", "neigh", "flush", "dev", testutil.Device)
	pingAll(t, a, b)
}

// Every container receives what is sent to all exactly once: on the sender's
// host, and on each of the others, which pass it on to nobody else.
func TestBroadcastReachesEveryoneOnce(t *testing.T) {
	for _, form := range meshForms {
		t.Run(form.name, func(t *testing.T) {
			m := newMesh(t, form.v6, form.keyed)
			containers := slices.Clone(m.containers)
			for i, h := range m.hosts {
				containers = append(containers, m.newContainer(t, i, "also-on-"+meshNames[i], "net", 10*(i+1)+1))
				createOther(t, h)
			}
			strange := m.newContainer(t, 1, "stranger", "other", 10).NewTap(t, testutil.Device)
			taps := make([]*testutil.Tap, len(containers))
			for i, c := range containers {
				taps[i] = c.NewTap(t, testutil.Device)
			}
			dump := m.dump(t)

			senders, groups := containers[:len(m.hosts)], []netip.Addr{
				netip.MustParseAddr("172.30.0.255"), netip.MustParseAddr("224.0.0.251"), netip.MustParseAddr("ff02::fb"),
			}
			for i, sender := range senders {
				for _, group := range groups {
					taps[i].Send(t, datagram(t, sender, groupMAC(group), group, toAll+sender.Endpoint))
				}
			}
			for i, c := range containers {
				want := map[string]int{}
				for _, sender := range senders {
					if sender != c {
						want[toAll+sender.Endpoint] = len(groups)
					}
				}
				limit := aMoment
				if i > 0 {
					limit = 0 // it has passed already
				}
				if diff := cmp.Diff(want, tally(t, taps[i], (len(senders)-1)*len(groups), limit)); diff != "" {
					t.Errorf("%s receives (-want +got):\n%s", c.Endpoint, diff)
				}
			}
			if f := strange.Receive(t, 0, isToAll); f != nil {
				t.Errorf("another network receives:\n%s", f)
			}
			want := len(senders) * (len(m.hosts) - 1)
			for _, group := range groups {
				text := fmt.Sprintf("> %s.%d:", group, service)
				testutil.Eventually(t, "tcpdump has told all", func() bool { return strings.Count(dump.Output(), text) >= want })
				if got := strings.Count(dump.Output(), text); got != want {
					t.Errorf("%d copies for %s on the wire, want %d", got, group, want)
				}
			}
		})
	}
}

// toAll begins what is sent to a group.
const toAll = "to all from "

func isToAll(p gopacket.Packet) bool { return strings.Contains(string(p.Data()), toAll) }

// tally counts what a tap receives of what is sent to a group, by sender. It
// awaits so many frames, and more for as long as limit.
func tally(t *testing.T, tap *testutil.Tap, want int, limit time.Duration) map[string]int {
	t.Helper()
	counts := map[string]int{}
	count := func(p gopacket.Packet) {
		_, sender, _ := strings.Cut(string(p.Data()), toAll)
		counts[toAll+strings.TrimRight(sender, "\x00")]++ // a short frame is padded
	}
	for range want {
		count(tap.Await(t, "what is sent to all", isToAll))
	}
	for p := tap.Receive(t, limit, isToAll); p != nil; p = tap.Receive(t, 0, isToAll) {
		count(p)
	}
	return counts
}

// groupMAC is the MAC of a group or of a subnet's broadcast address: RFC 1112,
// 6.4; RFC 2464, 7.
func groupMAC(group netip.Addr) net.HardwareAddr {
	switch low := group.AsSlice(); {
	case group.Is6():
		return multicastMAC(group)
	case group.IsMulticast():
		return net.HardwareAddr{0x01, 0x00, 0x5e, low[1] & 0x7f, low[2], low[3]}
	default:
		return layers.EthernetBroadcast
	}
}

// Questions for the addresses of known containers do not get to the underlay,
// nor to others than the one that is asked for.
func TestKnownAddressesAreNotAskedForByFlooding(t *testing.T) {
	p := newPair(t, greKey, greKey)
	bystander := newSpanning(t, p.b, p.a, "bystander", "net", 21)
	dump := p.underlay.Outside.Start(t, "tcpdump", "-i", "bridge", "-n", "-l", "--immediate-mode", "proto", "47")
	dump.Await(t, "listening on")
	tap := bystander.NewTap(t, testutil.Device)
	for _, to := range []*testutil.Container{p.redis1, p.other} {
		p.web.Run(t, "ip", "neigh", "flush", "dev", testutil.Device)
		pingAll(t, p.web, to)
	}
	web := p.web.NewTap(t, testutil.Device)
	web.Send(t, arpRequest(t, p.web.MAC, p.web.IP4, nobody4))
	web.Send(t, solicitation(t, p.web.MAC, p.web.IP6, nobody6))
	tap.Await(t, "the question for an unknown address", asksFor(nobody6))
	dump.Await(t, "who has "+nobody6.String())
	out := dump.Interrupt()
	for _, address := range []netip.Addr{p.redis1.IP4, p.redis1.IP6, p.other.IP4, p.other.IP6, gateway4, gateway6} {
		for _, question := range []string{"who-has " + address.String(), "who has " + address.String()} {
			if strings.Contains(out, question) {
				t.Errorf("the underlay sees the question for %s:\n%s", address, out)
			}
		}
	}
	for _, question := range []string{"who-has " + nobody4.String(), "who has " + nobody6.String()} {
		if strings.Count(out, question) != 1 {
			t.Errorf("want %q once on the underlay:\n%s", question, out)
		}
	}

	// One host knows it, the other does not: only who is asked for sees it.
	p.a.Ebpnet(t, "endpoint", "rm", "redis1")
	p.web.Run(t, "ip", "neigh", "flush", "dev", testutil.Device)
	redis1 := p.redis1.NewTap(t, testutil.Device)
	for _, address := range p.redis1.Addresses() {
		ping(t, p.web.Netns, address)
		redis1.Await(t, "the question", asksFor(address))
		if f := tap.Receive(t, 0, asksFor(address)); f != nil {
			t.Errorf("a bystander is asked for %s:\n%s", address, f)
		}
	}
}

// asksFor matches the questions for an address in ARP and ND.
func asksFor(target netip.Addr) func(gopacket.Packet) bool {
	return func(p gopacket.Packet) bool {
		if arp, ok := p.Layer(layers.LayerTypeARP).(*layers.ARP); ok {
			return arp.Operation == layers.ARPRequest && target.Is4() && netip.AddrFrom4([4]byte(arp.DstProtAddress)) == target
		}
		ns, ok := p.Layer(layers.LayerTypeICMPv6NeighborSolicitation).(*layers.ICMPv6NeighborSolicitation)
		return ok && ns.TargetAddress.Equal(target.AsSlice())
	}
}

func TestTunnelCarriesTwoNetworksApart(t *testing.T) {
	for _, c := range []struct {
		name string
		key  []string // of the second network; none: it has none
	}{{"two keys", []string{"--key", "0"}}, {"a key and none", nil}} {
		t.Run(c.name, func(t *testing.T) {
			m := newMesh(t, false, true)
			var others []*testutil.Container
			for i, h := range m.hosts {
				createOther(t, h, c.key...)
				if c.key == nil {
					for j, name := range meshNames {
						if j != i {
							h.Ebpnet(t, "tunnel", "rm", name)
							m.addTunnel(t, i, j, "--network", "net", "--network", "other")
						}
					}
				}
				others = append(others, m.newContainer(t, i, "other-on-"+meshNames[i], "other", 10*(i+1)))
			}
			for i := range m.hosts {
				next := (i + 1) % len(m.hosts)
				pingAll(t, m.containers[i], m.containers[next])
				pingAll(t, others[i], others[next])
				noPing(t, m.hosts[i], "isolated", m.containers[i].Netns, others[next].IP4)
				noPing(t, m.hosts[i], "isolated", others[i].Netns, m.containers[next].IP6)
			}
			taps := []*testutil.Tap{m.containers[1].NewTap(t, testutil.Device), others[1].NewTap(t, testutil.Device)}
			for i, sender := range []*testutil.Container{m.containers[0], others[0]} {
				sender.NewTap(t, testutil.Device).Send(t,
					datagram(t, sender, layers.EthernetBroadcast, netip.MustParseAddr("255.255.255.255"), toAll+sender.Endpoint))
				taps[i].Await(t, "what is sent to all", isToAll)
				if f := taps[1-i].Receive(t, aMoment, isToAll); f != nil {
					t.Errorf("it reaches another network:\n%s", f)
				}
			}
			// As on a wire of one's own: the same MAC may be on both.
			expectLearnedOn(t, m.hosts[1], "net", m.containers[0].MAC, true)
			expectLearnedOn(t, m.hosts[1], "other", m.containers[0].MAC, false)
			expectLearnedOn(t, m.hosts[1], "other", others[0].MAC, true)
		})
	}
}

func TestTunnelIsRestrictedToItsNetworks(t *testing.T) {
	m := newMesh(t, false, true)
	a, b := m.hosts[0], m.hosts[1]
	var others []*testutil.Container
	for i, h := range m.hosts[:2] {
		createOther(t, h, "--key", strconv.Itoa(greKey+1))
		others = append(others, m.newContainer(t, i, "other-on-"+meshNames[i], "other", 10*(i+1)))
	}
	pingAll(t, others[0], others[1])
	b.Ebpnet(t, "tunnel", "rm", "a")
	m.addTunnel(t, 1, 0, "--network", "net")

	pingAll(t, m.containers[0], m.containers[1])
	for _, address := range others[1].Addresses() {
		noPing(t, b, "unknown_key", others[0].Netns, address)
	}
	// What b no longer carries does not leave it either.
	dump := m.dump(t)
	for _, address := range others[0].Addresses() {
		if out, err := others[1].Try("ping", "-n", "-c", "1", "-W", "0.4", address.String()); err == nil {
			t.Errorf("a network gets out of a tunnel that is not for it:\n%s", out)
		}
	}
	pingAll(t, m.containers[1], m.containers[0])
	dump.Await(t, fmt.Sprintf("%s > %s: GREv0, key=0x%x", b.IP4, a.IP4, greKey))
	if out, key := dump.Interrupt(), fmt.Sprintf("%s > %s: GREv0, key=0x%x", b.IP4, a.IP4, greKey+1); strings.Contains(out, key) {
		t.Errorf("%q on the wire:\n%s", key, out)
	}
}
