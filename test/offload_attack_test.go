package test

import (
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// Offsets in a frame with IPv4 without options.
const (
	atIPv4         = 14
	atIPv4Protocol = atIPv4 + 9
	atIPv4Source   = atIPv4 + 12
	atTransport    = atIPv4 + 20
	atUDPChecksum  = atTransport + 6
	atUDPPayload   = atTransport + 8
	atARPSender    = atIPv4 + 14
)

// writeAt asks for a checksum over the payload, written to offset at.
func writeAt(at int) testutil.Offload {
	return testutil.Offload{Flags: testutil.NeedsChecksum, ChecksumStart: uint16(at)}
}

// ownChecksum asks for the checksum of the packet's own transport.
func ownChecksum(offset uint16) testutil.Offload {
	return testutil.Offload{Flags: testutil.NeedsChecksum, ChecksumStart: atTransport, ChecksumOffset: offset}
}

const (
	tcpChecksum = 16 // offset in the header
	udpChecksum = 6
)

// TestChecksumsAreWrittenNowhereElse: root in a container chooses where the
// kernel writes a checksum; not over what was checked or translated.
func TestChecksumsAreWrittenNowhereElse(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	a, b := h.NewContainer(t, "a", "net"), h.NewContainer(t, "b", "net")
	// Else checksums would stay incomplete to the end of the wire.
	h.Run(t, "ethtool", "-K", testutil.Uplink, "tx-checksumming", "off")
	attacker := a.NewOffloadTap(t, testutil.Device)
	outside, neighbor := u.Outside.NewTap(t, "bridge"), b.NewTap(t, testutil.Device)
	gateway := gatewayMAC(t, h)

	const payload = "twenty-two bytes of it"
	out := udpFrame(t, a.MAC, gateway, netip.AddrPortFrom(a.IP4, 4000), netip.AddrPortFrom(u.IP4, service), payload)
	near := udpFrame(t, a.MAC, b.MAC, netip.AddrPortFrom(a.IP4, 4000), netip.AddrPortFrom(b.IP4, service), payload)
	near6 := udpFrame(t, a.MAC, b.MAC, netip.AddrPortFrom(a.IP6, 4000), netip.AddrPortFrom(b.IP6, service), payload)
	question := append(arpRequest(t, a.MAC, a.IP4, nobody4), make([]byte, 18)...)
	tcp := func(size int) []byte {
		header, next := ip(a.IP4, b.IP4, layers.IPProtocolTCP)
		return testutil.Frame(t, ethernet(a.MAC, b.MAC, next), header,
			&layers.TCP{SrcPort: 4000, DstPort: service, SYN: true}, gopacket.Payload(make([]byte, size)))
	}
	echo := func() []byte {
		header, next := ip(a.IP4, b.IP4, layers.IPProtocolICMPv4)
		return testutil.Frame(t, ethernet(a.MAC, b.MAC, next), header,
			&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(layers.ICMPv4TypeEchoRequest, 0)}, gopacket.Payload(payload))
	}
	superframe := func(kind uint8, size uint16, checksum uint16) testutil.Offload {
		o := ownChecksum(checksum)
		o.GSOType, o.GSOSize, o.HeaderLength = kind, size, atTransport+8
		if checksum == tcpChecksum {
			o.HeaderLength = atTransport + 20
		}
		return o
	}
	for _, attack := range []struct {
		what    string
		offload testutil.Offload
		frame   []byte
	}{
		{"the source address, behind masquerade", writeAt(atIPv4Source), out},
		{"half of it", writeAt(atIPv4Source + 2), out},
		{"the protocol", writeAt(atIPv4Protocol), out},
		{"the source port", writeAt(atTransport), out},
		{"the length in UDP", writeAt(atTransport + 4), out},
		{"the MAC", writeAt(0), near},
		{"the source address, from the transport on", testutil.Offload{Flags: testutil.NeedsChecksum, ChecksumStart: atTransport, ChecksumOffset: 2}, near},
		{"the source in IPv6", writeAt(atIPv4 + 8), near6},
		{"the sender in ARP", writeAt(atARPSender), question},
		{"a port of TCP", ownChecksum(0), tcp(0)},
		{"what ICMP says", writeAt(atTransport + 4), echo()},
		{"ICMP's checksum", ownChecksum(2), echo()},
		{"TCP as a superframe of the other family", superframe(testutil.GSOTCPv6, 1000, tcpChecksum), tcp(4000)},
		{"a superframe of single bytes", superframe(testutil.GSOTCPv4, 1, tcpChecksum), tcp(4000)},
	} {
		before := h.Drops(t, "bad_offload")
		if err := attacker.Send(attack.offload, attack.frame); err != nil {
			t.Logf("%s: the container's own kernel refuses it: %v", attack.what, err)
			continue
		}
		testutil.Eventually(t, "a drop of what would overwrite "+attack.what, func() bool {
			return h.Drops(t, "bad_offload") > before
		})
	}
	fromAttacker := func(p gopacket.Packet) bool {
		return p.LinkLayer().(*layers.Ethernet).SrcMAC.String() == a.MAC.String() && p.Layer(layers.LayerTypeICMPv6) == nil
	}
	if p := neighbor.Receive(t, 0, fromAttacker); p != nil {
		t.Errorf("the neighbor gets:\n%s", p)
	}
	isDatagram := func(p gopacket.Packet) bool {
		ip, ok := p.NetworkLayer().(*layers.IPv4)
		return ok && (ip.Protocol == layers.IPProtocolUDP || ip.Protocol == layers.IPProtocolGRE)
	}
	if p := outside.Receive(t, 0, isDatagram); p != nil {
		t.Errorf("the outside gets:\n%s", p)
	}

	// Its own checksum is completed, and so is one inside of what it has
	// wrapped itself.
	for _, honest := range []testutil.Offload{ownChecksum(udpChecksum), writeAt(atUDPPayload + 2)} {
		if err := attacker.Send(honest, out); err != nil {
			t.Fatal(err)
		}
		p := outside.Await(t, "an honest packet", isDatagram)
		if got := p.NetworkLayer().NetworkFlow().Src().String(); got != h.IP4.String() {
			t.Errorf("the packet comes from %s, want the host:\n%s", got, p)
		}
	}
}

// TestWrongHeaderChecksumIsMalformed: Linux would not forward it.
func TestWrongHeaderChecksumIsMalformed(t *testing.T) {
	h := newHost(t)
	createNet(t, h)
	a, b := h.NewContainer(t, "a", "net"), h.NewContainer(t, "b", "net")
	tap := a.NewTap(t, testutil.Device)
	frame := datagram(t, a, b.MAC, b.IP4, "wrong")
	frame[atIPv4+10] ^= 1
	h.ExpectDrops(t, "malformed", func() { tap.Send(t, frame) })
}
