package test

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// allowed reads which roles an endpoint has.
func allowed(t *testing.T, h *testutil.Host, endpoint string) []string {
	t.Helper()
	var e struct {
		Allow []string `json:"allow"`
	}
	h.EbpnetJSON(t, &e, "endpoint", "inspect", endpoint)
	return e.Allow
}

func TestBadEndpointSettingsAreRefused(t *testing.T) {
	h, _ := newOutside(t)
	createNet(t, h, "--key", "42")
	h.NewContainer(t, "a", "net")
	h.Ebpnet(t, "tunnel", "add", "peer", "--remote", "192.0.2.2")
	h.Ebpnet(t, "endpoint", "add", "far", "--network", "net", "--tunnel", "peer", "--ip", "172.30.0.20", "--mac", "02:00:00:00:00:20")
	before := everything(t, h)
	for _, c := range []struct {
		code  int
		args  []string
		words []string
	}{
		{exitUsage, []string{"a"}, []string{"nothing to set", "--allow"}},
		{exitUsage, []string{"--allow", "router"}, []string{"NAME"}},
		{exitUsage, []string{"a", "b", "--allow", "router"}, []string{"b"}},
		{exitUsage, []string{"a", "--allow"}, []string{"--allow needs a value"}},
		{exitUsage, []string{"a", "--allow", ""}, []string{`""`, "dhcp-server", "router", "none"}},
		{exitUsage, []string{"a", "--allow", "king"}, []string{"king", "dhcp-server", "router", "none"}},
		{exitUsage, []string{"a", "--allow", "router,"}, []string{`""`, "router"}},
		{exitUsage, []string{"a", "--allow", "router, dhcp-server"}, []string{`" dhcp-server"`}},
		{exitUsage, []string{"a", "--allow", "none,router"}, []string{"none"}},
		{exitUsage, []string{"a", "--allow", "x\x1b[2J\n"}, []string{`\x1b`}},
		{exitUsage, []string{"nobody", "--allow", "king"}, []string{"king"}},
		{exitFailure, []string{"nobody", "--allow", "router"}, []string{"endpoint", "nobody"}},
		{exitFailure, []string{"far", "--allow", "router"}, []string{"far", "another host", "peer"}},
	} {
		refused(t, h, c.code, append([]string{"endpoint", "set"}, c.args...), c.words...)
		if after := everything(t, h); after != before {
			t.Fatalf("endpoint set %q was refused, and changed\n%s\nto\n%s", c.args, before, after)
		}
	}
	completion, _ := h.Try(h.Command()[0], "endpoint", "--generate-bash-completion")
	if !slices.Contains(strings.Fields(completion), "set") {
		t.Errorf("completion of endpoint has no set: %q", completion)
	}
	if completion, _ = h.Try(h.Command()[0], "endpoint", "set", "--", "--generate-bash-completion"); !strings.Contains(completion, "--allow") {
		t.Errorf("completion of endpoint set has no --allow: %q", completion)
	}
}

func TestAllowedRouterMayAdvertise(t *testing.T) {
	h := newHost(t)
	createNet(t, h)
	a, b := h.NewContainer(t, "a", "net"), h.NewContainer(t, "b", "net")
	tap, peer := a.NewTap(t, testutil.Device), b.NewTap(t, testutil.Device)
	advert := nd(t, a.MAC, multicastMAC(netip.IPv6LinkLocalAllNodes()), linkLocal(a.MAC),
		netip.IPv6LinkLocalAllNodes(), layers.ICMPv6TypeRouterAdvertisement, &layers.ICMPv6RouterAdvertisement{HopLimit: 64, RouterLifetime: 1800})
	isAdvert := func(p gopacket.Packet) bool { return string(p.Data()) == string(advert) }
	hasRoute := func() bool {
		return strings.Contains(b.Run(t, "ip", "-6", "route", "show", "default"), linkLocal(a.MAC).String())
	}
	refuses := func(when string) {
		t.Helper()
		h.ExpectDrops(t, "rogue_router", func() { tap.Send(t, advert) })
		if p := peer.Receive(t, 0, isAdvert); p != nil {
			t.Errorf("%s: the advertisement arrives:\n%s", when, p)
		}
		if hasRoute() {
			t.Errorf("%s: the peer routes by it", when)
		}
	}
	b.SetSysctl(t, "ipv6/conf/"+testutil.Device+"/accept_ra", "2")
	refuses("at first")
	h.Ebpnet(t, "endpoint", "set", "a", "--allow", "dhcp-server")
	refuses("with another role")
	h.Ebpnet(t, "endpoint", "set", "b", "--allow", "router")
	refuses("with a peer that is a router")
	h.Ebpnet(t, "endpoint", "set", "a", "--allow", "router,dhcp-server")
	if got := allowed(t, h, "a"); !slices.Equal(got, []string{"dhcp-server", "router"}) {
		t.Errorf("inspect: allowed %v", got)
	}
	for _, when := range []string{"allowed", "loaded again", "loaded after all was gone"} {
		t.Log(when)
		tap.Send(t, advert)
		peer.Await(t, when, isAdvert)
		testutil.Eventually(t, "the peer routes by it", hasRoute)
		if when == "loaded again" {
			removePins(t, h)
		}
		h.Ebpnet(t, "load")
	}
	h.Ebpnet(t, "endpoint", "set", "a", "--allow", "none")
	b.Run(t, "ip", "-6", "route", "flush", "default")
	refuses("taken back")
	if got := allowed(t, h, "a"); len(got) != 0 {
		t.Errorf("inspect: still allowed %v", got)
	}
}

// redirect is an ICMP redirect of a container to who has the MAC and address: to
// send to nobody by way of the container.
func redirect(t *testing.T, c *testutil.Container, mac net.HardwareAddr, to netip.Addr) []byte {
	t.Helper()
	const icmpRedirect, forHost = 5, 1
	about, next := ip(to, nobody4, layers.IPProtocolUDP)
	quoted := testutil.Frame(t, about, &layers.UDP{SrcPort: service, DstPort: service})
	header, _ := ip(c.IP4, to, layers.IPProtocolICMPv4)
	gateway := binary.BigEndian.Uint32(c.IP4.AsSlice())
	return testutil.Frame(t, ethernet(c.MAC, mac, next), header,
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(icmpRedirect, forHost), Id: uint16(gateway >> 16), Seq: uint16(gateway)},
		gopacket.Payload(quoted))
}

func TestRedirectsReachNeitherPeerNorHost(t *testing.T) {
	h := newHost(t)
	createNet(t, h)
	a, b := h.NewContainer(t, "a", "net"), h.NewContainer(t, "b", "net")
	attacker := a.NewTap(t, testutil.Device)
	gatewayMAC := learnGateway(t, a)
	for _, c := range []struct {
		who   string
		tap   *testutil.Tap
		frame []byte
	}{
		{"the peer", b.NewTap(t, testutil.Device), redirect(t, a, b.MAC, b.IP4)},
		{"the host", h.NewTap(t, "ebpnet0"), redirect(t, a, gatewayMAC, gateway4)},
	} {
		arrives := func(p gopacket.Packet) bool { return string(p.Data()) == string(c.frame) }
		h.ExpectDrops(t, "rogue_router", func() { attacker.Send(t, c.frame) })
		if p := c.tap.Receive(t, 0, arrives); p != nil {
			t.Errorf("%s gets the redirect:\n%s", c.who, p)
		}
		h.Ebpnet(t, "endpoint", "set", "a", "--allow", "router")
		attacker.Send(t, c.frame)
		c.tap.Await(t, "the redirect of a router to "+c.who, arrives)
		h.Ebpnet(t, "endpoint", "set", "a", "--allow", "none")
	}
}

func TestRogueDHCPServerGivesNoLease(t *testing.T) {
	h := newHost(t)
	createNet(t, h)
	a, b := h.NewContainer(t, "a", "net"), h.NewContainer(t, "b", "net")
	directory := t.TempDir()
	configuration, leases := filepath.Join(directory, "udhcpd.conf"), filepath.Join(directory, "leases")
	text := fmt.Sprintf("interface %s\nstart 172.30.0.100\nend 172.30.0.110\nlease_file %s\npidfile %s\noption subnet 255.255.255.0\n",
		testutil.Device, leases, filepath.Join(directory, "pid"))
	for file, text := range map[string]string{configuration: text, leases: ""} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const arpPing = "1" // ms to look for who has an address already
	server := a.Start(t, "busybox", "udhcpd", "-f", "-a", arpPing, configuration)
	server.Await(t, "started")
	asks := func() (string, error) {
		return b.Try("busybox", "udhcpc", "-f", "-n", "-q", "-t", "3", "-T", "1", "-i", testutil.Device, "-s", "/bin/true")
	}
	refuses := func(when string) {
		t.Helper()
		h.ExpectDrops(t, "rogue_server", func() {
			if out, err := asks(); err == nil || strings.Contains(out, "obtained") {
				t.Errorf("%s: the client has a lease (%v):\n%s", when, err, out)
			}
		})
	}
	refuses("at first")
	h.Ebpnet(t, "endpoint", "set", "a", "--allow", "router")
	refuses("as a router")
	h.Ebpnet(t, "endpoint", "set", "a", "--allow", "dhcp-server")
	if out, err := asks(); err != nil || !strings.Contains(out, "lease of 172.30.0.1") {
		t.Errorf("the client has no lease of a server that is allowed: %v\n%s", err, out)
	}
}
