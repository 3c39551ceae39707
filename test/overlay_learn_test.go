package test

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// learnedLimit is how many MACs are learned behind one trunk or tunnel.
const learnedLimit = 1024

// A container that comes to another host is reached there with the first
// packet, as it has announced itself.
func TestMovedContainerIsFollowed(t *testing.T) {
	m := newMesh(t, false, true)
	a, b, c := m.hosts[0], m.hosts[1], m.hosts[2]
	mac := []string{"--mac", "02:00:00:00:00:40"}
	moving := m.newContainer(t, 1, "moving", "net", 40, mac...)
	watchers := []*testutil.Container{m.containers[0], m.containers[1], m.containers[2]}
	for _, watcher := range watchers {
		pingAll(t, watcher, moving)
	}
	expectLearned(t, a, moving.MAC, "b")
	expectLearned(t, c, moving.MAC, "b")

	for range 2 { // there and back
		b.Ebpnet(t, "endpoint", "rm", "moving")
		for _, address := range moving.Addresses() {
			if out, err := watchers[0].Try("ping", "-n", "-c", "1", "-W", "0.4", address.String()); err == nil {
				t.Errorf("who is nowhere answers:\n%s", out)
			}
		}
		for _, watcher := range watchers {
			// Who has given up on it asks anew; the others do not.
			watcher.Run(t, "ip", "neigh", "flush", "nud", "failed", "dev", testutil.Device)
		}
		moving = c.NewContainer(t, "moving", "net", append(addressArgs("net", 40), mac...)...)
		for _, h := range []*testutil.Host{a, b} {
			testutil.Eventually(t, h.Name+" knows where it is now", func() bool {
				return isBehind(t, h, moving.MAC, tunnelTo(m, c))
			})
		}
		for _, watcher := range watchers {
			for _, address := range moving.Addresses() {
				ping(t, watcher.Netns, address)
			}
		}
		b, c = c, b
	}
}

// tunnelTo is the name of the tunnels that lead to a host.
func tunnelTo(m *mesh, h *testutil.Host) string {
	for i := range m.hosts {
		if m.hosts[i] == h {
			return meshNames[i]
		}
	}
	return ""
}

// isBehind tells whether the host has learned the MAC behind the tunnel.
func isBehind(t *testing.T, h *testutil.Host, mac net.HardwareAddr, tunnel string) bool {
	t.Helper()
	for _, s := range learnedStations(t, h) {
		if s.MAC == mac.String() {
			return s.Tunnel == tunnel
		}
	}
	return false
}

// What has been forgotten is looked for behind every tunnel, and found again.
func TestForgottenStationsAreFoundAgain(t *testing.T) {
	m := newMesh(t, false, true)
	a, c := m.hosts[0], m.hosts[2]
	here := m.containers[0]
	// It says nothing but what it is told to.
	trunk := m.newContainer(t, 1, "trunk", "net", 21, "--trunk")
	guest, tap := trunk.NewTap(t, testutil.Device), here.NewTap(t, testutil.Device)
	speak := func() {
		t.Helper()
		const mark = "here I am"
		guest.Send(t, udpFrame(t, nobodysMAC, here.MAC, netip.AddrPortFrom(nobody4, service), netip.AddrPortFrom(here.IP4, service), mark))
		tap.Await(t, mark, isDatagram(mark))
		expectLearned(t, a, nobodysMAC, "b")
	}
	const mark = "where are you"
	ask := func() {
		t.Helper()
		tap.Send(t, datagram(t, here, nobodysMAC, nobody4, mark))
		guest.Await(t, mark, isDatagram(mark))
	}
	watch := c.NewTap(t, testutil.Uplink)
	goesElsewhere := func() (seen bool) {
		t.Helper()
		ask()
		const after = "and after that"
		tap.Send(t, datagram(t, here, layers.EthernetBroadcast, nobody4, after))
		watch.Await(t, after, func(p gopacket.Packet) bool {
			seen = seen || strings.Contains(string(p.Data()), mark)
			return strings.Contains(string(p.Data()), after)
		})
		return seen
	}

	speak()
	for _, forget := range [][]string{
		{"fdb", "flush"},
		{"fdb", "flush", "--network", "net"},
		{"fdb", "flush", "--tunnel", "b"},
	} {
		a.Ebpnet(t, forget...)
		if isBehind(t, a, nobodysMAC, "b") {
			t.Errorf("after %q it is still learned", forget)
		}
		c.ExpectDrops(t, "unknown_destination", ask)
		watch.Await(t, "what is flooded", func(p gopacket.Packet) bool { return strings.Contains(string(p.Data()), mark) })
		speak()
		if goesElsewhere() {
			t.Error("what is for a learned station goes elsewhere too")
		}
	}
	for _, forget := range [][]string{{"fdb", "flush", "--tunnel", "c"}, {"fdb", "flush", "--endpoint", here.Endpoint}} {
		a.Ebpnet(t, forget...)
		expectLearned(t, a, nobodysMAC, "b")
	}

	pingAll(t, here, trunk)
	for _, h := range m.hosts {
		h.Ebpnet(t, "fdb", "flush")
	}
	pingAll(t, here, trunk) // its neighbors still know its MAC
	a.Ebpnet(t, "tunnel", "rm", "b")
	for _, s := range learnedStations(t, a) {
		if s.Tunnel != "c" {
			t.Errorf("its tunnel has gone, and it is still learned: %+v", s)
		}
	}
}

// isDatagram matches the frames of udpFrame with the payload.
func isDatagram(payload string) func(gopacket.Packet) bool {
	return func(p gopacket.Packet) bool {
		udp, ok := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
		return ok && string(udp.Payload) == payload
	}
}

func TestSilentStationsAreForgotten(t *testing.T) {
	m := newMesh(t, false, true)
	a, c := m.hosts[0], m.hosts[2]
	here, there := m.containers[0], m.containers[1]
	a.Ebpnet(t, "load", "--timeout", "fdb=2s")
	pingAll(t, here, there)
	pingAll(t, m.containers[2], there)
	expectLearned(t, a, there.MAC, "b")
	expectLearned(t, c, there.MAC, "b")
	there.Run(t, "ip", "link", "set", testutil.Device, "down")
	testutil.Eventually(t, "it is forgotten", func() bool { return !isBehind(t, a, there.MAC, "b") })
	c.ExpectDrops(t, "unknown_destination", func() {
		here.NewTap(t, testutil.Device).Send(t, datagram(t, here, there.MAC, there.IP4, "where are you"))
	})
	there.Run(t, "ip", "link", "set", testutil.Device, "up")

	// Not so who is known, nor on hosts that are more patient.
	var known listedStation
	for _, s := range listedStations(t, a) {
		if s.MAC == here.MAC.String() {
			known = s
		}
	}
	if known.Endpoint != here.Endpoint || known.Learned {
		t.Errorf("who is known: %+v", known)
	}
	expectLearned(t, c, there.MAC, "b")
	pingAll(t, here, m.containers[2])
}

// One that sends from thousands of MACs fills no more than its share, on its host
// and behind its tunnel; the others go on, and are learned elsewhere.
func TestLearningIsLimited(t *testing.T) {
	m := newMesh(t, false, true)
	a, b := m.hosts[0], m.hosts[1]
	var others []*testutil.Container
	for i, h := range m.hosts {
		createOther(t, h, "--key", fmt.Sprint(greKey+1))
		others = append(others, m.newContainer(t, i, "other-on-"+meshNames[i], "other", 10*(i+1)))
	}
	beside := m.newContainer(t, 0, "beside", "net", 11)
	guest := m.newContainer(t, 1, "guest", "net", 21, "--trunk")
	here := m.containers[0]
	pingAll(t, here, guest)

	const guests = 5000
	tap := guest.NewTap(t, testutil.Device)
	frame := udpFrame(t, nobodysMAC, here.MAC, netip.AddrPortFrom(nobody4, service), netip.AddrPortFrom(here.IP4, discard), "")
	for i := range guests {
		binary.BigEndian.PutUint16(frame[10:], uint16(i)+0x100) // of the source MAC
		tap.Send(t, frame)
	}
	behind := map[*testutil.Host]func(listedStation) bool{
		a: func(s listedStation) bool { return s.Tunnel == "b" },
		b: func(s listedStation) bool { return s.Endpoint == guest.Endpoint },
	}
	learned := func(h *testutil.Host) (n int) {
		t.Helper()
		for _, s := range learnedStations(t, h, "--network", "net") {
			if behind[h](s) {
				n++
			}
		}
		return n
	}
	for h := range behind {
		testutil.Eventually(t, h.Name+" has learned what it may", func() bool { return learned(h) == learnedLimit })
	}

	pingAll(t, here, beside)
	pingAll(t, here, guest)
	pingAll(t, here, m.containers[1])
	pingAll(t, m.containers[2], here)
	for _, other := range others[1:] {
		pingAll(t, others[0], other)
	}
	expectLearnedOn(t, a, "other", others[1].MAC, true)
	expectLearned(t, a, m.containers[2].MAC, "c")
	for h := range behind {
		if n := learned(h); n > learnedLimit {
			t.Errorf("%s has learned %d stations there, want no more than %d", h.Name, n, learnedLimit)
		}
	}

	// There is room again once they are forgotten.
	a.Ebpnet(t, "fdb", "flush", "--tunnel", "b")
	pingAll(t, here, m.containers[1])
	expectLearned(t, a, m.containers[1].MAC, "b")
}

// learnedStations lists the stations that the host has learned.
func learnedStations(t *testing.T, h *testutil.Host, args ...string) []listedStation {
	t.Helper()
	return slices.DeleteFunc(listedStations(t, h, args...), func(s listedStation) bool { return !s.Learned })
}

func expectLearnedOn(t *testing.T, h *testutil.Host, network string, mac net.HardwareAddr, want bool) {
	t.Helper()
	list := learnedStations(t, h, "--network", network)
	if got := slices.ContainsFunc(list, func(s listedStation) bool { return s.MAC == mac.String() }); got != want {
		t.Errorf("%s on network %s: learned %v, want %v: %+v", mac, network, got, want, list)
	}
}
