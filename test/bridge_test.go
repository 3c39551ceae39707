package test

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

func TestContainersOfANetworkReachEachOther(t *testing.T) {
	h := newHost(t)
	createNet(t, h)
	a, b := h.NewContainer(t, "a", "net"), h.NewContainer(t, "b", "net")
	redis(t, b.Netns, 6379)
	for _, address := range b.Addresses() {
		ping(t, a.Netns, address)
		ping(t, a.Netns, address, "-s", "4000") // in IP fragments
		redisPing(t, a.Netns, address, 6379)
		iperf(t, a.Netns, b.Netns, address)
		iperf(t, a.Netns, b.Netns, address, "--reverse")
		iperf(t, a.Netns, b.Netns, address, "--udp", "--bitrate", "50M")
	}
	// A port without a server is refused, at once, by the container itself.
	if _, err := a.Dial(t, "tcp", at(b.IP4, service)); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("a port without a server: %v, want it refused", err)
	}
}

func TestEndpointIsConfigured(t *testing.T) {
	h := newHost(t)
	createNet(t, h)
	asked := h.NewContainer(t, "asked", "net", "--ifname", "net0", "--mac", "02:00:00:00:00:99",
		"--ip", "172.30.0.99", "--ip", "fd00:30::99")
	given := h.NewContainer(t, "given", "net")

	if asked.IP4 != netip.MustParseAddr("172.30.0.99") || asked.IP6 != netip.MustParseAddr("fd00:30::99") ||
		asked.MAC.String() != "02:00:00:00:00:99" {
		t.Errorf("asked for other addresses than %s, %s, %s", asked.IP4, asked.IP6, asked.MAC)
	}
	for _, c := range []struct {
		*testutil.Container
		device string
	}{{asked, "net0"}, {given, testutil.Device}} {
		link := c.Run(t, "ip", "-o", "link", "show", c.device)
		for _, want := range []string{c.MAC.String(), "mtu 1500", ",UP"} {
			if !strings.Contains(link, want) {
				t.Errorf("%s: no %q in %s", c.Endpoint, want, link)
			}
		}
		addresses := c.Run(t, "ip", "-o", "addr", "show", c.device)
		for _, want := range []string{c.IP4.String() + "/24", c.IP6.String() + "/64"} {
			if !strings.Contains(addresses, want) {
				t.Errorf("%s: no %q in %s", c.Endpoint, want, addresses)
			}
		}
		for family, gateway := range map[string]netip.Addr{"-4": gateway4, "-6": gateway6} {
			if route := c.Run(t, "ip", family, "route", "show", "default"); !strings.Contains(route, "via "+gateway.String()) {
				t.Errorf("%s: default route %q", c.Endpoint, route)
			}
		}
		ping(t, c.Netns, netip.MustParseAddr("127.0.0.1"))
	}
	pingAll(t, given, asked)
}

func TestRemovedEndpointIsGone(t *testing.T) {
	h := newHost(t)
	createNet(t, h)
	a, b := h.NewContainer(t, "a", "net"), h.NewContainer(t, "b", "net")
	pingAll(t, a, b)
	h.Ebpnet(t, "endpoint", "rm", "b")
	if out, err := a.Try("ping", "-n", "-c", "1", "-W", "1", b.IP4.String()); err == nil {
		t.Errorf("a removed endpoint answers:\n%s", out)
	}
	if n := veths(t, b.Netns); n != 0 {
		t.Errorf("%d veths are left in the container", n)
	}
	if _, there := endpoints(t, h)["b"]; there {
		t.Error("endpoint ls still lists it")
	}
	// Name, namespace and address are free again.
	h.Ebpnet(t, "endpoint", "add", "b", "--network", "net", "--netns", b.Name, "--ip", b.IP4.String())
	ping(t, a.Netns, b.IP4)
}

func TestNetworksAreIsolated(t *testing.T) {
	h := newHost(t)
	createNet(t, h)
	createOther(t, h)
	a, b := h.NewContainer(t, "a", "net"), h.NewContainer(t, "b", "net")
	stranger := h.NewContainer(t, "stranger", "other")
	serve(t, stranger.Netns, service)
	for _, address := range stranger.Addresses() {
		noPing(t, h, "isolated", a.Netns, address)
		connectsNot(t, h, "isolated", a.Netns, "tcp", at(address, service))
	}
	// Neither does a frame that names its MAC get there, nor a route of one's own.
	strange := stranger.NewTap(t, testutil.Device)
	tap := a.NewTap(t, testutil.Device)
	tap.Send(t, datagram(t, a, stranger.MAC, stranger.IP4, "by MAC"))
	a.Run(t, "ip", "route", "add", stranger.IP4.String(), "dev", testutil.Device)
	if _, err := a.Try("ping", "-n", "-c", "1", "-W", "0.4", stranger.IP4.String()); err == nil {
		t.Error("another network is reached as if on-link")
	}
	if p := strange.Receive(t, aMoment, from(a.MAC)); p != nil {
		t.Errorf("another network receives:\n%s", p)
	}
	pingAll(t, a, b)
}

func TestFlooding(t *testing.T) {
	h := newHost(t)
	createNet(t, h)
	createOther(t, h)
	a, b, c := h.NewContainer(t, "a", "net"), h.NewContainer(t, "b", "net"), h.NewContainer(t, "c", "net")
	stranger := h.NewContainer(t, "stranger", "other")
	sender := a.NewTap(t, testutil.Device)
	members := []*testutil.Tap{b.NewTap(t, testutil.Device), c.NewTap(t, testutil.Device)}
	strange := stranger.NewTap(t, testutil.Device)

	for to, destination := range map[string]string{
		"255.255.255.255": "UDP4-DATAGRAM:255.255.255.255:9999,broadcast",
		"172.30.0.255":    "UDP4-DATAGRAM:172.30.0.255:9999,broadcast",
		"224.0.0.251":     "UDP4-DATAGRAM:224.0.0.251:5353",
		"ff02::fb":        "UDP6-DATAGRAM:[ff02::fb%" + testutil.Device + "]:5353",
	} {
		message := filepath.Join(t.TempDir(), "message")
		if err := os.WriteFile(message, []byte("to "+to+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		a.Run(t, "socat", "-u", "OPEN:"+message, destination)
		received := func(p gopacket.Packet) bool {
			return strings.Contains(string(p.Data()), "to "+to+"\n")
		}
		for _, tap := range members {
			tap.Await(t, "the packet to "+to, received)
		}
		if p := strange.Receive(t, aMoment, from(a.MAC)); p != nil {
			t.Errorf("another network receives what is sent to %s:\n%s", to, p)
		}
		if p := sender.Receive(t, 0, received); p != nil {
			t.Errorf("the sender receives what it sends to %s:\n%s", to, p)
		}
	}
}

func TestNeighborsAreAnsweredFromTheTables(t *testing.T) {
	h := newHost(t)
	createNet(t, h)
	createOther(t, h)
	a, b := h.NewContainer(t, "a", "net"), h.NewContainer(t, "b", "net")
	stranger := h.NewContainer(t, "stranger", "other")
	tap, peer := a.NewTap(t, testutil.Device), b.NewTap(t, testutil.Device)
	strange := stranger.NewTap(t, testutil.Device)

	tap.Send(t, arpRequest(t, a.MAC, a.IP4, b.IP4))
	tap.Await(t, "b's MAC", func(p gopacket.Packet) bool {
		arp, ok := p.Layer(layers.LayerTypeARP).(*layers.ARP)
		return ok && arp.Operation == layers.ARPReply && net.HardwareAddr(arp.SourceHwAddress).String() == b.MAC.String() &&
			netip.AddrFrom4([4]byte(arp.SourceProtAddress)) == b.IP4
	})
	tap.Send(t, solicitation(t, a.MAC, a.IP6, b.IP6))
	tap.Await(t, "b's MAC", func(p gopacket.Packet) bool {
		na, ok := p.Layer(layers.LayerTypeICMPv6NeighborAdvertisement).(*layers.ICMPv6NeighborAdvertisement)
		return ok && na.TargetAddress.Equal(b.IP6.AsSlice()) && p.LinkLayer().LinkFlow().Src().String() == b.MAC.String()
	})
	// A container also asks about its own addresses, in search of duplicates.
	askedFor := func(target netip.Addr) func(gopacket.Packet) bool {
		return func(p gopacket.Packet) bool {
			if arp, ok := p.Layer(layers.LayerTypeARP).(*layers.ARP); ok {
				return netip.AddrFrom4([4]byte(arp.DstProtAddress)) == target
			}
			ns, ok := p.Layer(layers.LayerTypeICMPv6NeighborSolicitation).(*layers.ICMPv6NeighborSolicitation)
			return ok && ns.TargetAddress.Equal(target.AsSlice())
		}
	}
	asked := func(p gopacket.Packet) bool {
		return from(a.MAC)(p) && (askedFor(b.IP4)(p) || askedFor(b.IP6)(p))
	}
	if p := peer.Receive(t, aMoment, asked); p != nil {
		t.Errorf("a question that the tables answer is flooded:\n%s", p)
	}

	// Nobody has .77: the question goes to all, as it would on a wire, yet not
	// to another network, nor does that network's address get an answer.
	unknown := netip.MustParseAddr("172.30.0.77")
	tap.Send(t, arpRequest(t, a.MAC, a.IP4, unknown))
	peer.Await(t, "the question for an unknown address", askedFor(unknown))
	tap.Send(t, arpRequest(t, a.MAC, a.IP4, stranger.IP4))
	if p := tap.Receive(t, aMoment, isARPReply(stranger.IP4)); p != nil {
		t.Errorf("an address of another network is answered:\n%s", p)
	}
	if p := strange.Receive(t, 0, from(a.MAC)); p != nil {
		t.Errorf("another network receives a question:\n%s", p)
	}
}
