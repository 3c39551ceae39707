package test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// upper is what the tests call a device on top of the uplink up0.
const upper = "upper"

// An uplink stands on another one: what leaves by both is looked at once.
func TestUplinkOnAnUplink(t *testing.T) {
	t.Parallel()
	h := testutil.NewHost(t, "host")
	u := testutil.NewUnderlay(t, h)
	h.Run(t, "ip", "link", "add", upper, "link", testutil.Uplink, "up", "type", "macvlan", "mode", "bridge")
	worksByBoth(t, h, u)
}

// move gives an address of a device to another one.
func move(t *testing.T, n *testutil.Netns, address netip.Addr, from, to string) {
	t.Helper()
	text, last := address.String()+"/24", []string{}
	if address.Is6() {
		text, last = address.String()+"/64", []string{"nodad"}
	}
	n.Run(t, "ip", "addr", "del", text, "dev", from)
	n.Run(t, "ip", append([]string{"addr", "add", text, "dev", to}, last...)...)
}

// worksByBoth expects everything to work by the device upper, with both as
// uplinks.
func worksByBoth(t *testing.T, h *testutil.Host, u *testutil.Underlay) {
	t.Helper()
	for _, path := range paths(h, u) {
		move(t, h.Netns, path.host, testutil.Uplink, upper)
		h.Run(t, "ip", "route", "replace", "default", "via", path.outside.String(), "dev", upper)
	}
	h.Ebpnet(t, "load", "--uplink", testutil.Uplink, "--uplink", upper)
	createNet(t, h)
	a := h.NewContainer(t, "a", "net", bothPublished()...)
	serve(t, u.Outside, service)
	serve(t, a.Netns, service)
	for _, path := range paths(h, u) {
		ping(t, a.Netns, path.outside)
		var all []*testutil.Conn
		for _, network := range protocols {
			sees(t, u.Outside, network, at(path.host, published), path.outside)
			sees(t, a.Netns, network, at(path.outside, service), path.host)
			// The host's packets are given another port once, and its flow stays.
			for _, from := range []*testutil.Netns{a.Netns, h.Netns} {
				all = append(all, from.MustDialFrom(t, network, ":40000", at(path.outside, service)))
			}
		}
		takeTurns(t, all...)
		takeTurns(t, all...)
	}
}

// A tag of VLAN 0 tells a priority; the frame is of the device that carries it.
func TestPriorityTags(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	a := h.NewContainer(t, "a", "net", bothPublished()...)
	serve(t, u.Outside, service)
	const port, mark = 45000, "from outside"
	a.MustDialFrom(t, "udp", fmt.Sprintf(":%d", port), at(u.IP4, service)).MustAsk(t)
	container, outside := a.NewTap(t, testutil.Device), u.Outside.NewTap(t, "bridge")
	tagged := func(frame []byte, tag string) []byte { return []byte(string(frame[:12]) + tag + string(frame[12:])) }
	call := func(to uint16) []byte {
		return udpFrame(t, nobodysMAC, deviceMAC(t, h.Netns, testutil.Uplink), netip.AddrPortFrom(u.IP4, service), netip.AddrPortFrom(h.IP4, to), mark)
	}
	arrived := func(p gopacket.Packet) bool {
		return strings.Contains(string(p.Data()), mark) && p.Layer(layers.LayerTypeUDP) != nil
	}
	for _, c := range []struct {
		what string
		to   uint16
	}{{"an answer", port}, {"a packet to a published port", published}} {
		outside.Send(t, tagged(call(c.to), "\x81\x00\x00\x07")) // of VLAN 7
		outside.Send(t, tagged(call(c.to), "\x81\x00\x60\x00")) // of priority 3
		got := container.Await(t, c.what+" with a priority", arrived)
		if got.Layer(layers.LayerTypeDot1Q) != nil {
			t.Errorf("%s has its tag still:\n%s", c.what, got)
		}
		if p := container.Receive(t, aMoment, arrived); p != nil {
			t.Errorf("%s of a VLAN arrives:\n%s", c.what, p)
		}
	}
	// A container's is not let out.
	h.ExpectDrops(t, "unknown_protocol", func() {
		container.Send(t, tagged(udpFrame(t, a.MAC, gatewayMAC(t, h), netip.AddrPortFrom(a.IP4, port), netip.AddrPortFrom(u.IP4, service), mark), "\x81\x00\x60\x00"))
	})
}

// big lets devices have superframes of more than 64 KB.
func big(t *testing.T, n *testutil.Netns, devices ...string) {
	t.Helper()
	const size = 200000
	var err error
	n.Do(func() {
		for _, name := range devices {
			var device netlink.Link
			if device, err = netlink.LinkByName(name); err != nil {
				return
			}
			for _, set := range []func(netlink.Link, int) error{
				netlink.LinkSetGSOMaxSize, netlink.LinkSetGROMaxSize, netlink.LinkSetGSOIPv4MaxSize, netlink.LinkSetGROIPv4MaxSize,
			} {
				if err = set(device, size); err != nil {
					return
				}
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

// bigger is tcpdump's filter for superframes of more than 64 KB.
const bigger = "greater 66000"

// isBig runs iperf3 and expects superframes of more than 64 KB on the device by
// which from sends, and nothing of the host's to be malformed.
func isBig(t *testing.T, h *testutil.Host, from *testutil.Netns, device string, to *testutil.Netns, address netip.Addr) {
	t.Helper()
	before := h.Drops(t, "malformed")
	seen := from.Capture(t, device, bigger)
	iperf(t, from, to, address)
	seen.Packets(t)
	if dropped := h.Drops(t, "malformed") - before; dropped > 0 {
		t.Errorf("from %s to %s: %d packets are malformed", from.Name, address, dropped)
	}
}

// BIG TCP: superframes whose length no IP header can say.
func TestBigSuperframes(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	a, b := h.NewContainer(t, "a", "net", "--publish", "5201:5201"), h.NewContainer(t, "b", "net")
	big(t, h.Netns, testutil.Uplink)
	big(t, u.Outside, "port1", "bridge")
	big(t, a.Netns, testutil.Device)
	big(t, b.Netns, testutil.Device)
	for i, path := range paths(h, u) {
		isBig(t, h, a.Netns, testutil.Device, b.Netns, b.Addresses()[i])
		isBig(t, h, a.Netns, testutil.Device, u.Outside, path.outside)
		isBig(t, h, u.Outside, "bridge", a.Netns, path.host)
	}
	if dropped := h.Drops(t, "too_big"); dropped > 0 {
		t.Errorf("%d are too big", dropped)
	}
}

func TestBigSuperframesInATunnel(t *testing.T) {
	m := newMesh(t, false, true)
	a, b := m.containers[0], m.containers[1]
	big(t, a.Netns, testutil.Device)
	for _, address := range b.Addresses() {
		isBig(t, m.hosts[0], a.Netns, testutil.Device, b.Netns, address)
		if dropped := m.hosts[1].Drops(t, "malformed"); dropped > 0 {
			t.Errorf("%d packets out of the tunnel are malformed", dropped)
		}
	}
}
