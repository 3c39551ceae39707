package test

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

const (
	vxlanPort        = 4789
	vxlanLength      = 8
	atInnerTransport = atUDPPayload + vxlanLength + atTransport
	sctpChecksum     = 8
)

// wrappedByContainer is a VXLAN packet without DF that a container has built,
// around a UDP packet between stations of its own. It is larger than an uplink.
func wrappedByContainer(t *testing.T, c *testutil.Container, dstMAC net.HardwareAddr, dst netip.Addr) []byte {
	t.Helper()
	inner := udpFrame(t, c.MAC, net.HardwareAddr{2, 0, 0, 0, 0, 9},
		netip.MustParseAddrPort("192.168.7.1:5000"), netip.MustParseAddrPort("192.168.7.2:5001"),
		string(bytes.Repeat([]byte("inner"), 600)))
	vxlan := append([]byte{8, 0, 0, 0, 0, 0, 7, 0}, inner...) // network 7
	return udpFrame(t, c.MAC, dstMAC, netip.AddrPortFrom(c.IP4, vxlanPort), netip.AddrPortFrom(dst, vxlanPort), string(vxlan))
}

// unfinished gives a frame in which the kernel has yet to complete the checksum
// of the UDP header at an offset.
func unfinished(frame []byte, at int) []byte {
	frame = bytes.Clone(frame)
	sum := uint32(layers.IPProtocolUDP)
	for i := at - 8; i < at; i += 2 { // the addresses
		sum += uint32(binary.BigEndian.Uint16(frame[i:]))
	}
	sum += uint32(binary.BigEndian.Uint16(frame[at+4:])) // the length
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(frame[at+udpChecksum:], uint16(sum))
	return frame
}

// awaitDatagram expects a datagram with the payload of a frame.
func awaitDatagram(t *testing.T, c net.PacketConn, what string, frame []byte) {
	t.Helper()
	const most = 1 << 16
	got := make([]byte, most)
	if err := c.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
		t.Fatal(err)
	}
	n, _, err := c.ReadFrom(got)
	if err != nil {
		t.Errorf("%s does not arrive: %v", what, err)
	} else if !bytes.Equal(got[:n], frame[atUDPPayload:]) {
		t.Errorf("%s arrives changed", what)
	}
}

// listenVXLAN receives VXLAN packets as plain datagrams.
func listenVXLAN(t *testing.T, n *testutil.Netns) net.PacketConn {
	t.Helper()
	var c net.PacketConn
	var err error
	n.Do(func() { c, err = net.ListenPacket("udp4", ":4789") })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() }) // nothing is left to lose
	return c
}

// expectUnfinished sends packets that are too large for their way, with
// checksums that the kernel has yet to complete. The packet's own is completed,
// and the packet is fragmented. For another one the sender is told of the MTU.
func expectUnfinished(t *testing.T, h *testutil.Host, from *testutil.Container, dstMAC net.HardwareAddr, dst netip.Addr, receiver net.PacketConn) {
	t.Helper()
	sender, heard := from.NewOffloadTap(t, testutil.Device), from.NewTap(t, testutil.Device)
	send := func(o testutil.Offload, frame []byte) {
		t.Helper()
		if err := sender.Send(o, frame); err != nil {
			t.Fatal(err)
		}
	}
	frame := wrappedByContainer(t, from, dstMAC, dst)
	header, next := ip(from.IP4, dst, layers.IPProtocolSCTP)
	sctp := testutil.Frame(t, ethernet(from.MAC, dstMAC, next), header,
		&layers.SCTP{SrcPort: 4000, DstPort: service}, gopacket.Payload(make([]byte, 3000)))
	for _, refused := range []struct {
		what    string
		offload testutil.Offload
		frame   []byte
	}{
		{
			"an inner checksum",
			testutil.Offload{Flags: testutil.NeedsChecksum, ChecksumStart: atInnerTransport, ChecksumOffset: udpChecksum},
			unfinished(frame, atInnerTransport),
		},
		{"SCTP's", ownChecksum(sctpChecksum), sctp},
	} {
		h.ExpectDrops(t, "too_big", func() { send(refused.offload, refused.frame) })
		heard.Await(t, "the MTU, as "+refused.what+" is unfinished", func(p gopacket.Packet) bool {
			icmp, ok := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
			return ok && icmp.TypeCode == layers.CreateICMPv4TypeCode(
				layers.ICMPv4TypeDestinationUnreachable, layers.ICMPv4CodeFragmentationNeeded)
		})
	}

	before := h.Drops(t, "too_big")
	send(testutil.Offload{}, frame)
	awaitDatagram(t, receiver, "a packet with complete checksums", frame)
	send(ownChecksum(udpChecksum), unfinished(frame, atTransport))
	awaitDatagram(t, receiver, "a packet with its own checksum unfinished", frame)
	if n := h.Drops(t, "too_big"); n > before {
		t.Errorf("%d packets are dropped as too big", n-before)
	}
}

// TestUnfinishedChecksumsAreNotFragmented: a first fragment does not hold what
// the checksum of an inner packet, or of SCTP, is to cover.
func TestUnfinishedChecksumsAreNotFragmented(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h, "--mtu", "9000")
	h.Run(t, "ethtool", "-K", testutil.Uplink, "tx", "off")
	expectUnfinished(t, h, h.NewContainer(t, "a", "net"), gatewayMAC(t, h), u.IP4, listenVXLAN(t, u.Outside))
}

// The same on the way into a tunnel.
func TestUnfinishedChecksumsAreNotFragmentedIntoTunnels(t *testing.T) {
	p := newPair(t, greKey, greKey, "--mtu", "9000")
	for _, h := range []*testutil.Host{p.a, p.b} {
		h.Run(t, "ethtool", "-K", testutil.Uplink, "tx", "off")
	}
	expectUnfinished(t, p.a, p.web, p.redis1.MAC, p.redis1.IP4, listenVXLAN(t, p.redis1.Netns))
}
