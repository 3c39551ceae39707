package test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// Superframes: packets that the kernel hands on in one piece and cuts as late
// as it can. A container forwards what it got out of a tunnel, so that it is
// cut behind it, or goes into a tunnel again.

// The subnets of a wire behind the container that forwards.
const (
	routed4, routed6 = "198.18.0.%d", "2001:db8:5::%x" // RFC 2544, RFC 3849
)

// forwarding is a mesh in which the container router on host b forwards: from
// "net" to the namespace nested, at the other end of a wire, and to "other",
// on which the container beyond is, on host c.
type forwarding struct {
	*mesh
	sender, router, beyond *testutil.Container
	nested                 *testutil.Container
}

func newForwarding(t *testing.T, v6 bool, tunnel ...string) *forwarding {
	t.Helper()
	f := &forwarding{mesh: newMesh(t, v6, true)}
	for i, h := range f.hosts {
		createOther(t, h, "--key", fmt.Sprint(greKey+1))
		for j, name := range meshNames {
			if len(tunnel) > 0 && j != i {
				h.Ebpnet(t, "tunnel", "rm", name)
				f.addTunnel(t, i, j, tunnel...)
			}
		}
	}
	f.sender = f.containers[0]
	f.router = f.newContainer(t, 1, "router", "net", 50, "--trunk")
	f.hosts[1].Ebpnet(t, append([]string{
		"endpoint", "add", "router-on-other", "--network", "other",
		"--netns", f.router.Name, "--ifname", "eth1", "--trunk",
	}, addressArgs("other", 50)...)...)
	f.beyond = f.newContainer(t, 2, "beyond", "other", 60)

	address := func(id int) (string, string) {
		return fmt.Sprintf(routed4, id) + "/24", fmt.Sprintf(routed6, id) + "/64"
	}
	near4, near6 := address(1)
	far4, far6 := address(2)
	f.nested = &testutil.Container{
		Netns: testutil.NewNetns(t, "nested"),
		IP4:   netip.MustParsePrefix(far4).Addr(), IP6: netip.MustParsePrefix(far6).Addr(),
	}
	testutil.Wire(t, f.router.Netns, "wire", []string{near4, near6}, f.nested.Netns, testutil.Device, []string{far4, far6})
	f.router.SetSysctl(t, "ipv4/ip_forward", "1")
	f.router.SetSysctl(t, "ipv6/conf/all/forwarding", "1")
	for _, via := range []struct {
		from     *testutil.Container
		v4, v6   string
		networks []string
	}{
		{f.sender, f.router.IP4.String(), f.router.IP6.String(), []string{near4, near6, other4, other6}},
		{f.nested, fmt.Sprintf(routed4, 1), fmt.Sprintf(routed6, 1), []string{subnet4, subnet6}},
		{f.beyond, "172.31.0.50", "fd00:31::32", []string{subnet4, subnet6}},
	} {
		for _, network := range via.networks {
			prefix, gateway := netip.MustParsePrefix(network).Masked(), via.v4
			if prefix.Addr().Is6() {
				gateway = via.v6
			}
			via.from.Run(t, "ip", "route", "add", prefix.String(), "via", gateway)
		}
	}
	for _, to := range []*testutil.Container{f.router, f.nested, f.beyond} {
		for _, address := range to.Addresses() {
			// The router asks for others from link-local addresses, which it
			// looks for duplicates of first.
			testutil.Eventually(t, "the sender reaches "+address.String(), func() bool {
				_, err := f.sender.Try("ping", "-n", "-c", "1", "-W", "0.2", address.String())
				return err == nil
			})
		}
	}
	return f
}

// place is a device at which superframes may be cut, on the way to a container.
type place struct {
	what   string
	in     *testutil.Netns
	device string
	to     *testutil.Container
}

// places are all on the way from the sender to where its packets go.
func (f *forwarding) places(t *testing.T) []place {
	t.Helper()
	a, b, c := f.hosts[0], f.hosts[1], f.hosts[2]
	return []place{
		{"the sender", f.sender.Netns, testutil.Device, f.nested},
		{"the sender's veth", a.Netns, hostEnd(t, a, f.sender.Endpoint), f.nested},
		{"the sender's uplink", a.Netns, testutil.Uplink, f.nested},
		{"a port of the underlay", f.underlay.Outside, "port2", f.nested},
		{"the receiver's uplink", b.Netns, testutil.Uplink, f.nested},
		{"the receiver's veth", b.Netns, hostEnd(t, b, f.router.Endpoint), f.nested},
		{"the receiver", f.router.Netns, testutil.Device, f.nested},
		{"the wire behind it", f.router.Netns, "wire", f.nested},
		{"the end of that wire", f.nested.Netns, testutil.Device, f.nested},
		{"the way into the next tunnel", f.router.Netns, "eth1", f.beyond},
		{"the uplink of that", b.Netns, testutil.Uplink, f.beyond},
		{"the last veth", c.Netns, hostEnd(t, c, f.beyond.Endpoint), f.beyond},
	}
}

// hostEnd is the name of the host's end of an endpoint's veth.
func hostEnd(t *testing.T, h *testutil.Host, endpoint string) string {
	t.Helper()
	var e struct{ ID int }
	h.EbpnetJSON(t, &e, "endpoint", "inspect", endpoint)
	return fmt.Sprintf("ebp-%d", e.ID)
}

// offload switches what a device does for superframes, but for joining them.
func (p place) offload(t *testing.T, state string) {
	t.Helper()
	p.in.Run(t, "ethtool", "-K", p.device, "tx", state, "tso", state, "gso", state)
}

// join has a device join packets that come in to superframes.
func (p place) join(t *testing.T, state string) {
	t.Helper()
	p.in.Run(t, "ethtool", "-K", p.device, "gro", state)
}

// carryAll sends files and datagrams both ways, in packets of both families.
func (f *forwarding) carryAll(t *testing.T, what string, to *testutil.Container) {
	t.Helper()
	t.Log(what)
	for i, address := range to.Addresses() {
		back := f.sender.Addresses()[i]
		sendFile(t, f.sender.Netns, to.Netns, address)
		sendFile(t, to.Netns, f.sender.Netns, back)
		sendSegments(t, f.sender.Netns, to.Netns, address)
		sendSegments(t, to.Netns, f.sender.Netns, back)
	}
}

const (
	segmentSize = 1300
	segments    = 40 // of one superframe
)

// sendSegments has the kernel cut a buffer into datagrams, UDP's superframe,
// and expects all of them to arrive.
func sendSegments(t *testing.T, from, to *testutil.Netns, address netip.Addr) {
	t.Helper()
	var server *net.UDPConn
	var err error
	to.Do(func() { server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(address, 0))) })
	if err != nil {
		t.Fatalf("in %s: %v", to.Name, err)
	}
	defer server.Close()
	client := from.MustDial(t, "udp", server.LocalAddr().String()).Conn.(*net.UDPConn)
	defer client.Close()
	raw, err := client.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var set error
	err = raw.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, segmentSize) })
	if err = errors.Join(err, set); err != nil {
		t.Fatal(err)
	}

	buf, got := make([]byte, segments*segmentSize), make([]byte, maxRead)
	for i := range segments {
		segment := buf[i*segmentSize:][:segmentSize]
		for j := range segment {
			segment[j] = byte(i + j)
		}
		binary.BigEndian.PutUint32(segment, uint32(i))
	}
	if _, err := client.Write(buf); err != nil {
		t.Fatalf("from %s to %s: %v", from.Name, address, err)
	}
	if err := server.SetReadDeadline(time.Now().Add(patient)); err != nil {
		t.Fatal(err)
	}
	missing := map[uint32]bool{}
	for i := range segments {
		missing[uint32(i)] = true
	}
	for len(missing) > 0 {
		n, err := server.Read(got)
		if err != nil {
			t.Fatalf("from %s to %s: %d of %d datagrams are missing: %v", from.Name, address, len(missing), segments, err)
		}
		i := binary.BigEndian.Uint32(got)
		if n != segmentSize || i >= segments || !bytes.Equal(got[:n], buf[i*segmentSize:][:segmentSize]) {
			t.Fatalf("from %s to %s: a datagram of %d bytes that was not sent, number %d", from.Name, address, n, i)
		}
		if !missing[i] {
			t.Errorf("from %s to %s: datagram %d arrives twice", from.Name, address, i)
		}
		delete(missing, i)
	}
}

// maxRead holds any datagram.
const maxRead = 1 << 16

// ipLength is how long the outermost IP packet says it is.
func ipLength(p gopacket.Packet) int {
	switch header := p.NetworkLayer().(type) {
	case *layers.IPv4:
		return int(header.Length)
	case *layers.IPv6:
		return len(header.Contents) + int(header.Length)
	}
	return 0
}

// expectWhole expects every packet to be complete, with right lengths and
// checksums in all its headers, none to be longer than mtu, and some to be as
// long as that.
func expectWhole(t *testing.T, what string, all []gopacket.Packet, mtu int) {
	t.Helper()
	longest := 0
	for _, p := range all {
		if err := p.ErrorLayer(); err != nil {
			t.Fatalf("%s: %v\n%s", what, err.Error(), p)
		}
		const ethernetHeader = 14
		length := ipLength(p)
		longest = max(longest, length)
		if length > mtu || len(p.Data()) != length+ethernetHeader {
			t.Fatalf("%s: %d bytes with an IP packet of %d, of which %d would fit\n%s", what, len(p.Data()), length, mtu, p)
		}
		var network gopacket.NetworkLayer
		for _, l := range p.Layers() {
			if header, ok := l.(gopacket.NetworkLayer); ok {
				network = header
			}
			if summed, ok := l.(interface {
				SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
			}); ok {
				if err := summed.SetNetworkLayerForChecksum(network); err != nil {
					t.Fatal(err)
				}
			}
		}
		switch err, wrong := p.VerifyChecksums(); {
		case err != nil:
			t.Fatalf("%s: %v", what, err)
		case len(wrong) > 0:
			t.Fatalf("%s: wrong checksum of %s: %#x, want %#x\n%s", what, wrong[0].Layer.LayerType(), wrong[0].Actual, wrong[0].Correct, p)
		}
	}
	if longest != mtu {
		t.Errorf("%s: the longest packet has %d bytes, want %d", what, longest, mtu)
	}
}

// superframes counts the packets that are longer than any wire carries.
func superframes(all []gopacket.Packet) (n int) {
	for _, p := range all {
		if len(p.Data()) > 2*underlayMTU {
			n++
		}
	}
	return n
}

// forms of tunnels that superframes take.
var forwardingForms = []struct {
	name    string
	v6      bool
	headers int
	tunnel  []string
}{
	{"IPv4", false, 42, nil},
	{"IPv6", true, 62, nil},
	{"IPv4 with all options", false, 50, []string{"--csum", "--seq", "--network", "net", "--network", "other"}},
	{"IPv6 with all options", true, 70, []string{"--csum", "--seq", "--network", "net", "--network", "other"}},
}

// What comes out of a tunnel is cut into right packets, where the container
// that got it sends it on.
func TestForwardedSuperframesAreCutRight(t *testing.T) {
	for _, form := range forwardingForms {
		t.Run(form.name, func(t *testing.T) {
			f := newForwarding(t, form.v6, form.tunnel...)
			wire := place{"the wire", f.router.Netns, "wire", f.nested}
			port := place{"a port", f.underlay.Outside, "port2", f.nested}
			uplinks := []place{{"a", f.hosts[0].Netns, testutil.Uplink, f.nested}, {"b", f.hosts[1].Netns, testutil.Uplink, f.beyond}}
			for _, joined := range []bool{false, true} {
				what := "handed on"
				if joined { // at b, by a kernel that sees that they are in a tunnel
					what = "joined"
					uplinks[0].offload(t, "off")
					port.offload(t, "off") // a veth joins only what comes from such
					uplinks[1].join(t, "on")
				}
				wire.offload(t, "off")
				for i, to := range f.nested.Addresses() {
					from := f.sender.Addresses()[i]
					before := f.router.Capture(t, testutil.Device, "src", from.String())
					after := f.nested.Capture(t, testutil.Device, "src", from.String())
					sendFile(t, f.sender.Netns, f.nested.Netns, to)
					sendSegments(t, f.sender.Netns, f.nested.Netns, to)
					if n := superframes(before.Packets(t)); n == 0 && len(form.tunnel) == 0 {
						t.Errorf("%s to %s: no superframe came out of the tunnel", what, to)
					}
					expectWhole(t, what+" to "+to.String(), after.Packets(t), underlayMTU-form.headers)
				}
				wire.offload(t, "on")

				// And into the next tunnel, cut behind that.
				uplinks[1].offload(t, "off")
				for i, to := range f.beyond.Addresses() {
					outer := f.hosts[1].IP4
					if form.v6 {
						outer = f.hosts[1].IP6
					}
					wires := f.hosts[2].Capture(t, testutil.Uplink, "src", outer.String(), "and", "proto", "47")
					sendFile(t, f.sender.Netns, f.beyond.Netns, to)
					sendSegments(t, f.sender.Netns, f.beyond.Netns, to)
					sendSegments(t, f.beyond.Netns, f.sender.Netns, f.sender.Addresses()[i])
					expectWhole(t, what+" to "+to.String(), wires.Packets(t), underlayMTU)
				}
				uplinks[1].offload(t, "on")
			}
		})
	}
}

// Wherever superframes are cut or joined, what is sent arrives.
func TestOffloadsAtEachPlace(t *testing.T) {
	for _, form := range forwardingForms {
		t.Run(form.name, func(t *testing.T) {
			f := newForwarding(t, form.v6, form.tunnel...)
			both := []*testutil.Container{f.nested, f.beyond}
			for _, to := range both {
				f.carryAll(t, "as it is, to "+to.Name, to)
			}
			places := f.places(t)
			for _, p := range places {
				p.offload(t, "off")
				f.carryAll(t, "cut by "+p.what, p.to)
				p.offload(t, "on")
			}
			for _, p := range places {
				p.offload(t, "off")
			}
			for _, to := range both {
				f.carryAll(t, "no superframes, to "+to.Name, to)
			}
			for _, p := range places {
				p.join(t, "on")
			}
			for _, to := range both {
				f.carryAll(t, "joined wherever they come in, to "+to.Name, to)
			}
		})
	}
}

// iperf3 gets through both ways, where it is for a container of the network.
func TestStreamsThroughTunnels(t *testing.T) {
	for _, form := range forwardingForms {
		t.Run(form.name, func(t *testing.T) {
			f := newForwarding(t, form.v6, form.tunnel...)
			for _, address := range f.containers[1].Addresses() {
				for _, args := range [][]string{
					{"--bytes", "32M"},
					{"--bytes", "32M", "--reverse"},
					{"--bytes", "4M", "--udp", "--bitrate", "200M", "--length", "16K"},
					{"--bytes", "4M", "--udp", "--bitrate", "200M", "--length", "1300", "--reverse"},
				} {
					carries(t, f.sender.Netns, f.containers[1].Netns, address, args...)
				}
			}
		})
	}
}
