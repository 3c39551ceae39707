package test

import (
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

// greKey is that of the network "net" where it spans hosts.
const greKey = 42

// mtuInGRE is what 42 bytes of headers leave of an Ethernet underlay's 1500.
const mtuInGRE = 1458

// pair is two hosts with a tunnel between them and the network "net" on both:
// containers web and other on a, redis1 on b, each known to the other host.
type pair struct {
	a, b               *testutil.Host
	underlay           *testutil.Underlay
	web, other, redis1 *testutil.Container
}

func newPair(t *testing.T, keyA, keyB int, args ...string) *pair {
	t.Helper()
	t.Parallel()
	return newPairOf(t, "", keyA, keyB, args...)
}

// newPairOf makes a pair by the given program, or by the one under test.
func newPairOf(t *testing.T, program string, keyA, keyB int, args ...string) *pair {
	t.Helper()
	p := &pair{a: testutil.NewHost(t, "a"), b: testutil.NewHost(t, "b")}
	p.a.Program, p.b.Program = program, program
	p.underlay = testutil.NewUnderlay(t, p.a, p.b)
	for _, end := range []struct {
		host, peer *testutil.Host
		key        int
	}{{p.a, p.b, keyA}, {p.b, p.a, keyB}} {
		end.host.Ebpnet(t, "load", "--uplink", testutil.Uplink, "--tunnel-address", end.host.IP4.String())
		createNet(t, end.host, append([]string{"--key", strconv.Itoa(end.key)}, args...)...)
		end.host.Ebpnet(t, "tunnel", "add", "peer", "--remote", end.peer.IP4.String())
	}
	p.web = newSpanning(t, p.a, p.b, "web", "net", 10)
	p.other = newSpanning(t, p.a, p.b, "other", "net", 11)
	p.redis1 = newSpanning(t, p.b, p.a, "redis1", "net", 20)
	return p
}

// newSpanning makes a container on host, with the last number id in both of
// the network's subnets, and tells peer of it.
func newSpanning(t *testing.T, host, peer *testutil.Host, name, network string, id int) *testutil.Container {
	t.Helper()
	v4, v6 := "172.30.0.%d", "fd00:30::%x"
	if network == "other" {
		v4, v6 = "172.31.0.%d", "fd00:31::%x"
	}
	c := host.NewContainer(t, name, network, "--ip", fmt.Sprintf(v4, id), "--ip", fmt.Sprintf(v6, id))
	peer.Ebpnet(t, "endpoint", "add", name, "--network", network, "--tunnel", "peer",
		"--ip", c.IP4.String(), "--ip", c.IP6.String(), "--mac", c.MAC.String())
	return c
}

// on runs the same command on both hosts.
func (p *pair) on(t *testing.T, args ...string) {
	t.Helper()
	for _, h := range []*testutil.Host{p.a, p.b} {
		h.Ebpnet(t, args...)
	}
}

func TestContainersReachEachOtherAcrossHosts(t *testing.T) {
	p := newPair(t, greKey, greKey)
	expectNoContainerAddress(t, p.underlay)
	dump := p.underlay.Outside.Start(t, "tcpdump", "-i", "bridge", "-n", "-l", "--immediate-mode", "ip proto 47")
	dump.Await(t, "listening on")
	redis(t, p.redis1.Netns, 6379)

	pingAll(t, p.web, p.redis1)
	pingAll(t, p.redis1, p.web)
	for _, address := range p.redis1.Addresses() {
		redisPing(t, p.web.Netns, address, 6379)
		iperf(t, p.web.Netns, p.redis1.Netns, address)
		iperf(t, p.web.Netns, p.redis1.Netns, address, "--reverse")
		iperf(t, p.web.Netns, p.redis1.Netns, address, "--udp", "--bitrate", "50M")
	}
	key := fmt.Sprintf("GREv0, key=0x%x", greKey)
	dump.Await(t, p.a.IP4.String()+" > "+p.b.IP4.String()+": "+key)
	dump.Await(t, p.b.IP4.String()+" > "+p.a.IP4.String()+": "+key)
}

func TestEndpointMTUFitsTheTunnel(t *testing.T) {
	p := newPair(t, greKey, greKey)
	if link := p.web.Run(t, "ip", "-o", "link", "show", testutil.Device); !strings.Contains(link, fmt.Sprintf("mtu %d ", mtuInGRE)) {
		t.Errorf("want MTU %d: %s", mtuInGRE, link)
	}
	const header4, header6 = 20 + 8, 40 + 8 // IP and ICMP echo
	for address, header := range map[netip.Addr]int{p.redis1.IP4: header4, p.redis1.IP6: header6} {
		ping(t, p.web.Netns, address, "-M", "do", "-s", strconv.Itoa(mtuInGRE-header))
		if out, err := p.web.Try("ping", "-n", "-c", "1", "-W", "1", "-M", "do", "-s", strconv.Itoa(mtuInGRE-header+1), address.String()); err == nil {
			t.Errorf("a packet larger than the MTU gets through:\n%s", out)
		}
		ping(t, p.web.Netns, address, "-s", "4000") // in IP fragments
	}
}

func TestLinkAcrossHosts(t *testing.T) {
	p := newPair(t, greKey, greKey, "--icc=false")
	redis(t, p.redis1.Netns, 6379)
	serve(t, p.redis1.Netns, service)
	serve(t, p.web.Netns, service)
	serve(t, p.other.Netns, service)
	for _, address := range p.redis1.Addresses() {
		connectsNot(t, p.a, "policy", p.web.Netns, "tcp", at(address, 6379))
	}
	p.on(t, "link", "add", "web", "redis1:redis", "--port", "6379/tcp")
	for i, address := range p.redis1.Addresses() {
		redisPing(t, p.web.Netns, address, 6379)
		connectsNot(t, p.a, "policy", p.other.Netns, "tcp", at(address, 6379))
		connectsNot(t, p.a, "policy", p.web.Netns, "tcp", at(address, service))
		connectsNot(t, p.a, "policy", p.web.Netns, "udp", at(address, 6379))
		noPing(t, p.a, "policy", p.web.Netns, address)
		connectsNot(t, p.b, "policy", p.redis1.Netns, "tcp", at(p.web.Addresses()[i], service))
	}
}

func TestLinkIsEnforcedOnBothHosts(t *testing.T) {
	p := newPair(t, greKey, greKey, "--icc=false")
	serve(t, p.redis1.Netns, service)
	link := []string{"link", "add", "web", "redis1", "--port", strconv.Itoa(service) + "/tcp"}
	address := at(p.redis1.IP4, service)

	p.a.Ebpnet(t, link...)
	connectsNot(t, p.b, "policy", p.web.Netns, "tcp", address)
	p.a.Ebpnet(t, "link", "rm", "web", "redis1")
	p.b.Ebpnet(t, link...)
	connectsNot(t, p.a, "policy", p.web.Netns, "tcp", address)
	p.a.Ebpnet(t, link...)
	established := connects(t, p.web.Netns, "tcp", address)

	for _, h := range []*testutil.Host{p.a, p.b} {
		h.Ebpnet(t, "link", "rm", "web", "redis1")
		h.ExpectDrops(t, "policy", func() { stalls(t, established) })
		h.Ebpnet(t, link...)
		goesOn(t, established)
	}
}

func TestWrongKey(t *testing.T) {
	p := newPair(t, greKey, greKey+1)
	noPing(t, p.b, "unknown_key", p.web.Netns, p.redis1.IP4)
	noPing(t, p.a, "unknown_key", p.redis1.Netns, p.web.IP6)
}

func TestNetworksAreIsolatedAcrossHosts(t *testing.T) {
	p := newPair(t, greKey, greKey)
	for _, h := range []*testutil.Host{p.a, p.b} {
		createOther(t, h, "--key", strconv.Itoa(greKey+1))
	}
	near := newSpanning(t, p.a, p.b, "near", "other", 10)
	far := newSpanning(t, p.b, p.a, "far", "other", 20)
	pingAll(t, near, far)
	for _, address := range far.Addresses() {
		noPing(t, p.a, "isolated", p.web.Netns, address)
	}
	pingAll(t, p.web, p.redis1)
}

// inGRE is a frame in GRE, as sent from one underlay address to another.
func inGRE(t *testing.T, dstMAC net.HardwareAddr, src, dst netip.Addr, gre *layers.GRE, inner []byte) []byte {
	t.Helper()
	gre.Protocol = layers.EthernetTypeTransparentEthernetBridging
	header, next := ip(src, dst, layers.IPProtocolGRE)
	return testutil.Frame(t, ethernet(nobodysMAC, dstMAC, next), header, gre, gopacket.Payload(inner))
}

func withKey(key uint32) *layers.GRE { return &layers.GRE{KeyPresent: true, Key: key} }

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

func TestTunnelTakesOnlyWhatItsPeerMaySend(t *testing.T) {
	p := newPair(t, greKey, greKey)
	web := p.web.NewTap(t, testutil.Device)
	uplink := deviceMAC(t, p.a.Netns, testutil.Uplink)
	peer, stranger := p.b.NewTap(t, testutil.Uplink), p.underlay.Outside.NewTap(t, "bridge")
	const mark = "through the tunnel"
	inner := func(mac net.HardwareAddr, src, dst netip.Addr) []byte {
		return udpFrame(t, mac, p.web.MAC, netip.AddrPortFrom(src, service), netip.AddrPortFrom(dst, service), mark)
	}
	arrived := func(p gopacket.Packet) bool { return strings.HasSuffix(string(p.Data()), mark) }
	honest, honest6 := inner(p.redis1.MAC, p.redis1.IP4, p.web.IP4), inner(p.redis1.MAC, p.redis1.IP6, p.web.IP6)

	for _, frame := range [][]byte{honest, honest6} {
		peer.Send(t, inGRE(t, uplink, p.b.IP4, p.a.IP4, withKey(greKey), frame))
		web.Await(t, "an honest frame", arrived)
	}
	for _, c := range []struct {
		what, reason string
		from         *testutil.Tap
		src          netip.Addr
		gre          *layers.GRE
		inner        []byte
	}{
		{"an unknown peer", "unknown_tunnel", stranger, p.underlay.IP4, withKey(greKey), honest},
		{"an unknown key", "unknown_key", peer, p.b.IP4, withKey(greKey + 1), honest},
		{"no key", "unknown_key", peer, p.b.IP4, &layers.GRE{}, honest},
		{"a routing field", "bad_gre", peer, p.b.IP4, &layers.GRE{KeyPresent: true, Key: greKey, RoutingPresent: true}, honest},
		{"another version", "bad_gre", peer, p.b.IP4, &layers.GRE{KeyPresent: true, Key: greKey, Version: 1}, honest},
		{"nobody's MAC", "spoofed_overlay", peer, p.b.IP4, withKey(greKey), inner(nobodysMAC, p.redis1.IP4, p.web.IP4)},
		{"the MAC of a local endpoint", "spoofed_overlay", peer, p.b.IP4, withKey(greKey), inner(p.other.MAC, p.other.IP4, p.web.IP4)},
		{"the address of a local endpoint", "spoofed_overlay", peer, p.b.IP4, withKey(greKey), inner(p.redis1.MAC, p.other.IP4, p.web.IP4)},
		{"nobody's address", "spoofed_overlay", peer, p.b.IP4, withKey(greKey), inner(p.redis1.MAC, nobody4, p.web.IP4)},
		{"the gateway's address", "spoofed_overlay", peer, p.b.IP4, withKey(greKey), inner(p.redis1.MAC, gateway4, p.web.IP4)},
		{"nobody's IPv6 address", "spoofed_overlay", peer, p.b.IP4, withKey(greKey), inner(p.redis1.MAC, nobody6, p.web.IP6)},
	} {
		p.a.ExpectDrops(t, c.reason, func() { c.from.Send(t, inGRE(t, uplink, c.src, p.a.IP4, c.gre, c.inner)) })
		if f := web.Receive(t, 0, arrived); f != nil {
			t.Errorf("%s gets through:\n%s", c.what, f)
		}
	}
	pingAll(t, p.web, p.redis1)
}

func TestRemovedTunnelIsShut(t *testing.T) {
	p := newPair(t, greKey, greKey)
	serve(t, p.redis1.Netns, service)
	established := connects(t, p.web.Netns, "tcp", at(p.redis1.IP4, service))
	for _, name := range []string{"web", "other"} {
		p.b.Ebpnet(t, "endpoint", "rm", name)
	}
	p.b.Ebpnet(t, "tunnel", "rm", "peer")
	stalls(t, established)
	if _, err := p.web.Try("ping", "-n", "-c", "1", "-W", "0.4", p.redis1.IP4.String()); err == nil {
		t.Error("a host reaches another that has removed the tunnel")
	}
}
