package test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

func TestPublishedPortsAreReached(t *testing.T) {
	h, u, second := newTwoUplinks(t)
	createNet(t, h)
	createOther(t, h)
	web := h.NewContainer(t, "web", "net", bothPublished()...)
	sibling, guest := h.NewContainer(t, "sibling", "net"), h.NewContainer(t, "guest", "other")
	serve(t, web.Netns, service)
	for _, network := range protocols {
		for _, c := range []struct {
			from *testutil.Netns
			at   netip.Addr
			want netip.Addr // as the server sees it
		}{
			{u.Outside, h.IP4, u.IP4},
			{u.Outside, h.IP6, u.IP6},
			{second, second4, beyond4},
			{second, second6, beyond6},

			{h.Netns, h.IP4, h.IP4},
			{h.Netns, h.IP6, h.IP6},
			{h.Netns, second4, second4},
			{h.Netns, second6, second6},
			{h.Netns, gateway4, gateway4},
			{h.Netns, gateway6, gateway6},
			{h.Netns, netip.MustParseAddr("127.0.0.1"), gateway4},
			{h.Netns, netip.MustParseAddr("127.1.2.3"), gateway4},
			{h.Netns, netip.IPv6Loopback(), gateway6},

			{guest.Netns, h.IP4, guest.IP4},
			{guest.Netns, h.IP6, guest.IP6},
			{guest.Netns, second4, guest.IP4},
			{guest.Netns, second6, guest.IP6},
			{sibling.Netns, h.IP4, gateway4},
			{sibling.Netns, h.IP6, gateway6},
			{sibling.Netns, second4, gateway4},
			{sibling.Netns, second6, gateway6},
			{web.Netns, h.IP4, gateway4},
			{web.Netns, h.IP6, gateway6},
			{web.Netns, second4, gateway4},
			{web.Netns, second6, gateway6},
		} {
			sees(t, c.from, network, at(c.at, published), c.want)
		}

		// What is not published is the host's own, where nobody listens.
		for _, from := range []*testutil.Netns{u.Outside, h.Netns, guest.Netns, sibling.Netns} {
			refusesConnections(t, from, network, at(h.IP4, published+1))
			refusesConnections(t, from, network, at(h.IP6, service))
		}
		connectsNot(t, h, "isolated", guest.Netns, network, at(web.IP4, service))
	}
	// The other protocol of a port is not published with it.
	h.Ebpnet(t, "port", "rm", "web", "8080:7000/udp")
	refusesConnections(t, u.Outside, "udp", at(h.IP4, published))
	sees(t, u.Outside, "tcp", at(h.IP4, published), u.IP4)
}

// Two clients that look the same to the server are still two.
func TestClientsOfAPublishedPortAreToldApart(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	web := h.NewContainer(t, "web", "net", bothPublished()...)
	a, b := h.NewContainer(t, "a", "net"), h.NewContainer(t, "b", "net")
	serve(t, web.Netns, service)
	for _, path := range paths(h, u) {
		loopback := netip.MustParseAddr("127.0.0.1")
		if path.host.Is6() {
			loopback = netip.IPv6Loopback()
		}
		for _, network := range protocols {
			var open []*testutil.Conn
			seen := map[netip.AddrPort]bool{}
			for _, from := range []*testutil.Netns{a.Netns, b.Netns, web.Netns} {
				open = append(open, from.MustDialFrom(t, network, ":41000", at(path.host, published)))
			}
			open = append(open, h.MustDialFrom(t, network, at(loopback, 41000), at(loopback, published)))
			for _, c := range open {
				from := c.MustAsk(t)
				if seen[from] {
					t.Errorf("%s: the server sees two clients as %s", network, from)
				}
				seen[from] = true
			}
			takeTurns(t, open...)
		}
	}
}

func TestPublishedForPrograms(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	web := h.NewContainer(t, "web", "net", "--publish", "8080:80", "--publish", "6379:6379", "--publish", "5201:5201")
	serveHTTP(t, web.Netns)
	redis(t, web.Netns, 6379)
	for _, path := range paths(h, u) {
		page := u.Outside.Run(t, "curl", "--silent", "--show-error", "--max-time", "5", "http://"+at(path.host, published))
		if page != path.outside.String() {
			t.Errorf("the web server sees %q, want %s", page, path.outside)
		}
		redisPing(t, u.Outside, path.host, 6379)
		redisPing(t, h.Netns, path.host, 6379)
		iperf(t, u.Outside, web.Netns, path.host)
		iperf(t, h.Netns, web.Netns, path.host, "--reverse")
	}
	redisPing(t, h.Netns, netip.MustParseAddr("127.0.0.1"), 6379)
	redisPing(t, h.Netns, netip.IPv6Loopback(), 6379)
	iperf(t, h.Netns, web.Netns, netip.MustParseAddr("127.0.0.1"))
}

func TestPublishedAtOneAddress(t *testing.T) {
	h, u, second := newTwoUplinks(t)
	createNet(t, h)
	createOther(t, h)
	web, guest := h.NewContainer(t, "web", "net"), h.NewContainer(t, "guest", "other")
	serve(t, web.Netns, service)
	for _, protocol := range protocols {
		for _, address := range []netip.Addr{h.IP4, h.IP6} {
			publish(t, h, "web", fmt.Sprintf("%s:%d/%s", at(address, published), service, protocol))
		}
	}
	loopbacks := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}
	for _, network := range protocols {
		for i, path := range paths(h, u) {
			sees(t, u.Outside, network, at(path.host, published), path.outside)
			sees(t, h.Netns, network, at(path.host, published), path.host)
			sees(t, guest.Netns, network, at(path.host, published), guest.Addresses()[i])
			refusesConnections(t, h.Netns, network, at(loopbacks[i], published))
		}
		for _, other := range []netip.Addr{second4, second6} {
			refusesConnections(t, second, network, at(other, published))
			refusesConnections(t, h.Netns, network, at(other, published))
			refusesConnections(t, guest.Netns, network, at(other, published))
		}
	}
	// All of one family.
	publish(t, h, "web", "0.0.0.0:8081:7000")
	sees(t, second, "tcp", at(second4, 8081), beyond4)
	refusesConnections(t, second, "tcp", at(second6, 8081))
}

// A port of the loopback address stays on the host, whatever the wire says.
func TestPublishedOnTheHostOnly(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	web := h.NewContainer(t, "web", "net")
	serve(t, web.Netns, service)
	publish(t, h, "web", "127.0.0.1:8080:7000")
	publish(t, h, "web", "127.0.0.1:8080:7000/udp")
	publish(t, h, "web", "[::1]:8080:7000/udp")
	publish(t, h, "web", "8081:7000/udp") // at all addresses
	ip4, ip6 := netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()
	sees(t, h.Netns, "tcp", at(ip4, published), gateway4)
	sees(t, h.Netns, "udp", at(ip4, published), gateway4)
	sees(t, h.Netns, "udp", at(ip6, published), gateway6)
	for _, from := range []*testutil.Netns{u.Outside, h.Netns, web.Netns} {
		refusesConnections(t, from, "tcp", at(h.IP4, published))
		refusesConnections(t, from, "udp", at(h.IP4, published))
		refusesConnections(t, from, "udp", at(h.IP6, published))
	}

	container, wire := web.NewTap(t, testutil.Device), u.Outside.NewTap(t, "bridge")
	const mark = "from the wire"
	marked := func(p gopacket.Packet) bool { return strings.Contains(string(p.Data()), mark) }
	uplink := deviceMAC(t, h.Netns, testutil.Uplink)
	for _, c := range []struct {
		reason   string
		src, dst netip.Addr
		port     uint16
	}{
		{"loopback_only", u.IP4, ip4, published},
		{"loopback_only", u.IP4, ip4, published + 1},
		{"loopback_only", u.IP4, netip.MustParseAddr("127.0.0.2"), published + 1},
		{"loopback_only", u.IP6, ip6, published},
		{"loopback_only", ip4, ip4, published},
		{"spoofed_address", ip4, h.IP4, published + 1}, // as if the host asked
		{"spoofed_address", ip6, h.IP6, published + 1},
	} {
		frame := udpFrame(t, nobodysMAC, uplink, netip.AddrPortFrom(c.src, service), netip.AddrPortFrom(c.dst, c.port), mark)
		h.ExpectDrops(t, c.reason, func() { wire.Send(t, frame) })
	}
	// Nor can a container ask for the host's own port.
	for dst, gateway := range map[netip.Addr]netip.Addr{ip4: gateway4, ip6: gateway6} {
		mac := gatewayMAC(t, h)
		src := web.IP4
		if gateway.Is6() {
			src = web.IP6
		}
		h.ExpectDrops(t, "no_route", func() {
			container.Send(t, udpFrame(t, web.MAC, mac, netip.AddrPortFrom(src, 40000), netip.AddrPortFrom(dst, published), mark))
		})
	}
	if p := container.Receive(t, 0, marked); p != nil {
		t.Errorf("the endpoint is reached from the wire by the host's own port:\n%s", p)
	}
	// The frames are good but for their addresses.
	wire.Send(t, udpFrame(t, nobodysMAC, uplink, netip.AddrPortFrom(u.IP4, service), netip.AddrPortFrom(h.IP4, published+1), mark))
	container.Await(t, "the same to the uplink's address", marked)
}

func TestPublishedForSomeSources(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	createOther(t, h)
	web := h.NewContainer(t, "web", "net")
	sibling, guest := h.NewContainer(t, "sibling", "net"), h.NewContainer(t, "guest", "other")
	serve(t, web.Netns, service)
	for _, address := range []string{"192.0.2.200/24", "2001:db8::200/64"} {
		// Never chosen as a source by itself.
		u.Outside.Run(t, "ip", "addr", "add", address, "dev", "bridge", "preferred_lft", "0")
	}
	other := []netip.Addr{netip.MustParseAddr("192.0.2.200"), netip.MustParseAddr("2001:db8::200")}
	var shut []attempt
	for _, network := range protocols {
		// Two small ones of the outside, and the guest's of the containers.
		publish(t, h, "web", fmt.Sprintf("%d:%d/%s", published, service, network),
			"--allow-from", "192.0.2.254/31", "--allow-from", "2001:db8::f0/124", "--allow-from", other4, "--allow-from", other6,
			"--allow-from", "10.0.0.0/8")
		publish(t, h, "web", fmt.Sprintf("%d:%d/%s", published+1, service, network))
		for i, path := range paths(h, u) {
			address := at(path.host, published)
			sees(t, u.Outside, network, address, path.outside)
			sees(t, guest.Netns, network, address, guest.Addresses()[i])
			sees(t, h.Netns, network, address, path.host)
			stranger := at(other[i], 0)
			u.Outside.MustDialFrom(t, network, stranger, at(path.host, published+1)).MustAsk(t)
			shut = append(shut, attempt{u.Outside, network, stranger, address}, attempt{sibling.Netns, network, "", address},
				attempt{web.Netns, network, "", address})
		}
	}
	noneConnects(t, h, "source_not_allowed", shut)
	sees(t, h.Netns, "tcp", "127.0.0.1:8080", gateway4)
}

// What is taken back ends what it had let in.
func TestAllowedSourcesAreTakenBack(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	web := h.NewContainer(t, "web", "net")
	serve(t, web.Netns, service)
	port := []string{"web", "8080:7000/udp"}
	publish(t, h, append(port, "--allow-from", "192.0.2.0/24")...)
	c := connects(t, u.Outside, "udp", at(h.IP4, published))
	h.Ebpnet(t, append([]string{"port", "rm"}, port...)...)
	publish(t, h, append(port, "--allow-from", "198.51.100.0/24")...)
	h.ExpectDrops(t, "source_not_allowed", func() { stalls(t, c) })
	h.Ebpnet(t, append([]string{"port", "rm"}, port...)...)
	publish(t, h, port...)
	c.MustAsk(t)
}

func TestPublishedRangesMapOneToOne(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	web := h.NewContainer(t, "web", "net", "--publish", "9000-9003:7000-7003", "--publish", "9000-9003:7000-7003/udp")
	for i := range 4 {
		serve(t, web.Netns, service+i)
		for _, network := range protocols {
			for _, path := range paths(h, u) {
				sees(t, u.Outside, network, at(path.host, 9000+i), path.outside)
				if i < 3 { // nobody listens there yet
					refusesConnections(t, u.Outside, network, at(path.host, 9001+i))
				}
			}
		}
	}
	refusesConnections(t, u.Outside, "tcp", at(h.IP4, 8999))
	refusesConnections(t, u.Outside, "tcp", at(h.IP4, 9004))
}

// Clients keep their source ports, and are with the port's next owner by their
// next packet.
func TestClientsFollowAPublishedPort(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	first := h.NewContainer(t, "first", "net", bothPublished()...)
	next := h.NewContainer(t, "next", "net")
	serve(t, first.Netns, service)
	serve(t, next.Netns, service)
	old, now := first.NewTap(t, testutil.Device), next.NewTap(t, testutil.Device)
	// A reset answers what the old owner itself still sends, to ask for an
	// acknowledgement.
	ofService := func(p gopacket.Packet) bool {
		if tcp, ok := p.TransportLayer().(*layers.TCP); ok && tcp.RST {
			return false
		}
		return p.TransportLayer() != nil && p.TransportLayer().TransportFlow().Dst().String() == fmt.Sprint(service)
	}
	var datagrams, streams []*testutil.Conn
	for _, path := range paths(h, u) {
		datagrams = append(datagrams, u.Outside.MustDialFrom(t, "udp", ":41000", at(path.host, published)))
		streams = append(streams, u.Outside.MustDialFrom(t, "tcp", ":41000", at(path.host, published)))
	}
	loopback := h.MustDialFrom(t, "udp", ":41000", "127.0.0.1:8080")
	takeTurns(t, append(append(datagrams, streams...), loopback)...)
	old.Await(t, "what the first serves", ofService)

	move := func(how string, by func()) {
		t.Helper()
		by()
		for old.Receive(t, 0, ofService) != nil {
			continue // it came before
		}
		for _, c := range append(datagrams, loopback) {
			c.MustAsk(t)
		}
		for i, c := range streams {
			if _, err := c.Ask(2 * time.Second); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
				t.Errorf("%s: a connection to the old owner: %v, want it reset by the new one", how, err)
			}
			c.Close()
			streams[i] = u.Outside.MustDialFrom(t, "tcp", ":41000", c.RemoteAddr().String())
			streams[i].MustAsk(t)
		}
	}
	move("port rm and add", func() {
		for _, protocol := range protocols {
			h.Ebpnet(t, "port", "rm", "first", "8080:7000/"+protocol)
			publish(t, h, "next", "8080:7000/"+protocol)
		}
	})
	now.Await(t, "what the next one serves", ofService)
	if p := old.Receive(t, aMoment, ofService); p != nil {
		t.Errorf("the old owner of the port still gets\n%s", p)
	}
	for _, f := range flowsOf(t, h) {
		if f.TranslatedTo.Addr() == first.IP4 || f.TranslatedTo.Addr() == first.IP6 {
			t.Errorf("a flow to the old owner is left: %+v", f)
		}
	}

	// The endpoint itself goes, and another one with its address comes.
	var again *testutil.Container
	move("endpoint rm and add", func() {
		h.Ebpnet(t, "endpoint", "rm", "next")
		again = h.NewContainer(t, "again", "net", append(bothPublished(), "--ip", next.IP4.String(), "--ip", next.IP6.String())...)
		serve(t, again.Netns, service)
	})
	// And nobody comes.
	h.Ebpnet(t, "endpoint", "rm", "again")
	for _, c := range datagrams {
		if _, err := c.Ask(2 * time.Second); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("a port that nobody publishes any more: %v, want it refused", err)
		}
	}
}

// Publishing does not depend on what the network may do otherwise.
func TestPublishedOnNetworksOfEveryKind(t *testing.T) {
	h, u := newOutside(t)
	h.Ebpnet(t, "network", "create", "net", "--subnet", subnet4, "--subnet", subnet6, "--icc=false", "--masquerade=false")
	createOther(t, h, "--icc=false", "--internal")
	web, sibling := h.NewContainer(t, "web", "net", bothPublished()...), h.NewContainer(t, "sibling", "net")
	guest := h.NewContainer(t, "guest", "other")
	serve(t, web.Netns, service)
	var direct, fromInternal, toInternal []attempt
	for i, path := range paths(h, u) {
		for _, network := range protocols {
			address := at(path.host, published)
			sees(t, u.Outside, network, address, path.outside)
			sees(t, h.Netns, network, address, path.host)
			sees(t, sibling.Netns, network, address, []netip.Addr{gateway4, gateway6}[i])
			direct = append(direct, attempt{sibling.Netns, network, "", at(web.Addresses()[i], service)})
			fromInternal = append(fromInternal, attempt{guest.Netns, network, "", address})
			toInternal = append(toInternal, attempt{u.Outside, network, "", address},
				attempt{sibling.Netns, network, "", address}, attempt{h.Netns, network, "", address})
		}
	}
	noneConnects(t, h, "policy", direct)
	noneConnects(t, h, "internal", fromInternal)
	outside := connects(t, u.Outside, "udp", at(h.IP4, published))
	h.Ebpnet(t, "network", "set", "net", "--internal=true")
	noneConnects(t, h, "internal", toInternal)
	stalls(t, outside)
	h.Ebpnet(t, "network", "set", "net", "--internal=false")
	outside.MustAsk(t)
}
