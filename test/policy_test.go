package test

import (
	"net/netip"
	"strconv"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// aFewResends is how long an established connection may take to go on after
// it was cut for a moment: TCP asks again at growing intervals.
const aFewResends = 10 * time.Second

func TestWithoutICCContainersAreAlone(t *testing.T) {
	h := newHost(t)
	createNet(t, h, "--icc=false")
	a, b := h.NewContainer(t, "a", "net"), h.NewContainer(t, "b", "net")
	serve(t, b.Netns, service)
	for i, address := range b.Addresses() {
		noPing(t, h, "policy", a.Netns, address)
		connectsNot(t, h, "policy", a.Netns, "tcp", at(address, service))
		connectsNot(t, h, "policy", a.Netns, "udp", at(address, service))
		// Nor by way of the gateway.
		a.Run(t, "ip", "route", "add", address.String(), "via", []netip.Addr{gateway4, gateway6}[i].String())
		noPing(t, h, "policy", a.Netns, address)
		connectsNot(t, h, "policy", a.Netns, "tcp", at(address, service))
	}
	tap, peer := a.NewTap(t, testutil.Device), b.NewTap(t, testutil.Device)
	h.ExpectDrops(t, "policy", func() {
		tap.Send(t, datagram(t, a, layers.EthernetBroadcast, netip.MustParseAddr("255.255.255.255"), "to all"))
	})
	if p := peer.Receive(t, aMoment, from(a.MAC)); p != nil {
		t.Errorf("a broadcast arrives:\n%s", p)
	}
	// The gateway and the host are no other container.
	for _, gateway := range []netip.Addr{gateway4, gateway6} {
		ping(t, a.Netns, gateway)
	}
	for _, address := range b.Addresses() {
		ping(t, h.Netns, address)
		connects(t, h.Netns, "tcp", at(address, service))
	}
}

func TestICCIsSwitchedUnderAConnection(t *testing.T) {
	h := newHost(t)
	createNet(t, h)
	a, b := h.NewContainer(t, "a", "net"), h.NewContainer(t, "b", "net")
	serve(t, b.Netns, service)
	for _, address := range b.Addresses() {
		established := connects(t, a.Netns, "tcp", at(address, service))
		h.Ebpnet(t, "network", "set", "net", "--icc=false")
		h.ExpectDrops(t, "policy", func() { stalls(t, established) })
		noPing(t, h, "policy", a.Netns, address)
		h.Ebpnet(t, "network", "set", "net", "--icc=true")
		goesOn(t, established)
		ping(t, a.Netns, address)
	}
}

func TestLinkOpensOnlyItsPorts(t *testing.T) {
	h := newHost(t)
	createNet(t, h, "--icc=false")
	web, other := h.NewContainer(t, "web", "net"), h.NewContainer(t, "other", "net")
	server := h.NewContainer(t, "redis1", "net")
	redis(t, server.Netns, 6379)
	serve(t, server.Netns, service)
	serve(t, web.Netns, service)
	serve(t, other.Netns, service)
	h.Ebpnet(t, "link", "add", "web", "redis1:redis", "--port", "6379/tcp")
	h.Ebpnet(t, "link", "add", "other", "redis1", "--port", strconv.Itoa(service)+"/udp")

	for i, address := range server.Addresses() {
		redisPing(t, web.Netns, address, 6379)
		// UDP is as well linked, and as narrowly.
		connects(t, other.Netns, "udp", at(address, service))
		// Another container, another port, another protocol, no port at all.
		connectsNot(t, h, "policy", other.Netns, "tcp", at(address, 6379))
		connectsNot(t, h, "policy", other.Netns, "tcp", at(address, service))
		connectsNot(t, h, "policy", web.Netns, "tcp", at(address, service))
		connectsNot(t, h, "policy", web.Netns, "udp", at(address, 6379))
		connectsNot(t, h, "policy", web.Netns, "udp", at(address, service))
		noPing(t, h, "policy", web.Netns, address)
		// The server opens nothing back, from its linked port neither.
		client := web.Addresses()[i]
		connectsNot(t, h, "policy", server.Netns, "tcp", at(client, service))
		connectsNot(t, h, "policy", server.Netns, "udp", at(client, service))
		noPing(t, h, "policy", server.Netns, client)
		// Nor are two clients linked to each other.
		connectsNot(t, h, "policy", web.Netns, "tcp", at(other.Addresses()[i], service))
	}
}

func TestServerOpensNothingFromALinkedPort(t *testing.T) {
	h := newHost(t)
	createNet(t, h, "--icc=false")
	client, server := h.NewContainer(t, "client", "net"), h.NewContainer(t, "server", "net")
	serve(t, client.Netns, service)
	h.Ebpnet(t, "link", "add", "client", "server", "--port", "6379/tcp", "--port", "53/udp")
	for _, address := range client.Addresses() {
		for network, port := range map[string]string{"tcp": ":6379", "udp": ":53"} {
			h.ExpectDrops(t, "policy", func() {
				c, err := server.DialFrom(t, network, port, at(address, service))
				if err != nil {
					return
				}
				if _, err := c.Ask(aMoment); err == nil {
					t.Errorf("the server opens a %s connection to %s", network, address)
				}
			})
		}
	}
	// An answer that nobody asked for is none.
	tap, peer := server.NewTap(t, testutil.Device), client.NewTap(t, testutil.Device)
	h.ExpectDrops(t, "policy", func() {
		tap.Send(t, udpFrame(t, server.MAC, client.MAC, netip.AddrPortFrom(server.IP4, 53), netip.AddrPortFrom(client.IP4, 40000), "answer"))
	})
	if p := peer.Receive(t, aMoment, func(p gopacket.Packet) bool { return p.NetworkLayer() != nil && from(server.MAC)(p) }); p != nil {
		t.Errorf("the client receives:\n%s", p)
	}
}

func TestRemovedLinkCutsItsConnections(t *testing.T) {
	h := newHost(t)
	createNet(t, h, "--icc=false")
	client, server := h.NewContainer(t, "client", "net"), h.NewContainer(t, "server", "net")
	serve(t, server.Netns, service)
	add := []string{"link", "add", "client", "server", "--port", strconv.Itoa(service) + "/tcp"}
	for _, address := range server.Addresses() {
		h.Ebpnet(t, add...)
		established := connects(t, client.Netns, "tcp", at(address, service))
		h.Ebpnet(t, "link", "rm", "client", "server")
		h.ExpectDrops(t, "policy", func() { stalls(t, established) })
		connectsNot(t, h, "policy", client.Netns, "tcp", at(address, service))
		h.Ebpnet(t, add...)
		goesOn(t, established)
		h.Ebpnet(t, "link", "rm", "client", "server")
	}
}

func TestLinkedConnectionOutlivesICC(t *testing.T) {
	h := newHost(t)
	createNet(t, h, "--icc=false")
	client, server := h.NewContainer(t, "client", "net"), h.NewContainer(t, "server", "net")
	serve(t, server.Netns, service)
	h.Ebpnet(t, "link", "add", "client", "server", "--port", strconv.Itoa(service)+"/tcp")
	established := connects(t, client.Netns, "tcp", at(server.IP4, service))
	for _, icc := range []string{"true", "false", "true", "false"} {
		h.Ebpnet(t, "network", "set", "net", "--icc="+icc)
		established.MustAsk(t)
	}
}

func TestLinkWithoutPortsOpensWhatIsExposed(t *testing.T) {
	h := newHost(t)
	createNet(t, h, "--icc=false")
	client := h.NewContainer(t, "client", "net")
	server := h.NewContainer(t, "server", "net", "--expose", "6379/tcp", "--expose", "7000-7001/tcp")
	for _, port := range []int{6379, 7000, 7001, 7002} {
		serve(t, server.Netns, port)
	}
	connectsNot(t, h, "policy", client.Netns, "tcp", at(server.IP4, 6379))
	h.Ebpnet(t, "link", "add", "client", "server")
	for _, port := range []int{6379, 7000, 7001} {
		connects(t, client.Netns, "tcp", at(server.IP4, port))
	}
	connectsNot(t, h, "policy", client.Netns, "tcp", at(server.IP4, 7002))
}

func TestInternalNetworkHasNoWayOut(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h, "--internal")
	a, b := h.NewContainer(t, "a", "net"), h.NewContainer(t, "b", "net")
	serve(t, u.Outside, service)
	pingAll(t, a, b)
	for family, gateway := range map[string]netip.Addr{"-4": gateway4, "-6": gateway6} {
		a.Run(t, "ip", family, "route", "replace", "default", "via", gateway.String())
	}
	for _, address := range []netip.Addr{u.IP4, u.IP6} {
		noPing(t, h, "internal", a.Netns, address)
		connectsNot(t, h, "internal", a.Netns, "tcp", at(address, service))
		connectsNot(t, h, "internal", a.Netns, "udp", at(address, service))
	}
	// The way out is the network's and not the host's to lack.
	createOther(t, h)
	connects(t, h.NewContainer(t, "c", "other").Netns, "tcp", at(u.IP4, service))
}

// goesOn expects an answer on a connection that was cut for a moment.
func goesOn(t *testing.T, c *testutil.Conn) {
	t.Helper()
	if _, err := c.Ask(aFewResends); err != nil {
		t.Errorf("the connection to %s does not go on: %v", c.RemoteAddr(), err)
	}
}
