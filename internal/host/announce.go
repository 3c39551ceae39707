package host

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Announce tells the endpoint's network where it is now: for each IPv4 address
// by an ARP announcement (RFC 5227, section 3), for each IPv6 address by an
// unsolicited neighbor advertisement (RFC 4861, section 7.2.6). They go out by
// the endpoint's own interface, as if it had sent them itself.
func (h *Host) Announce(v Veth) error {
	ns, err := openNamespace(v.Netns.Path)
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := inNamespace(ns, v.announce); err != nil {
		return fmt.Errorf("announce from %s in namespace %s: %w", v.Ifname, v.Netns.Path, err)
	}
	return nil
}

// announce sends the announcements. It runs in the endpoint's namespace.
func (v Veth) announce() error {
	device, err := net.InterfaceByName(v.Ifname)
	if err != nil {
		return err
	}
	// Protocol 0: it receives nothing.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	to := &unix.SockaddrLinklayer{Ifindex: device.Index}
	var failed error
	for _, p := range v.Addresses {
		frame := advertisement(v.MAC, p.Addr())
		if p.Addr().Is4() {
			frame = arpAnnouncement(v.MAC, p.Addr())
		}
		failed = errors.Join(failed, unix.Sendto(fd, frame, 0, to))
	}
	return errors.Join(failed, unix.Close(fd))
}

func ethernetHeader(src [6]byte, dst net.HardwareAddr, ethertype uint16) []byte {
	return binary.BigEndian.AppendUint16(slices.Concat(dst, src[:]), ethertype)
}

// arpAnnouncement is an ARP request of a for itself: RFC 826, of which RFC 5227
// leaves the target's hardware address zero.
func arpAnnouncement(mac [6]byte, a netip.Addr) []byte {
	const ethernet, hardwareLength, protocolLength, request = 1, 6, 4, 1
	broadcast := net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	frame := ethernetHeader(mac, broadcast, unix.ETH_P_ARP)
	frame = binary.BigEndian.AppendUint16(frame, ethernet)
	frame = binary.BigEndian.AppendUint16(frame, unix.ETH_P_IP)
	frame = append(frame, hardwareLength, protocolLength)
	frame = binary.BigEndian.AppendUint16(frame, request)
	return slices.Concat(frame, mac[:], a.AsSlice(), make([]byte, hardwareLength), a.AsSlice())
}

// advertisement is a neighbor advertisement of a to all nodes, to take the
// place of what they know: RFC 4861, section 4.4.
func advertisement(mac [6]byte, a netip.Addr) []byte {
	const (
		version         = 0x60
		hopLimit        = 255
		advertised      = 136 // ICMPv6 type
		override        = 0x20
		targetLinkLayer = 2 // option, of one unit of 8 bytes
	)
	allNodes := netip.MustParseAddr("ff02::1").AsSlice()
	message := slices.Concat(
		[]byte{advertised, 0, 0, 0, override, 0, 0, 0},
		a.AsSlice(),
		[]byte{targetLinkLayer, 1}, mac[:])
	length := []byte{0, byte(len(message))}
	pseudoHeader := slices.Concat(a.AsSlice(), allNodes, []byte{0, 0}, length, []byte{0, 0, 0, unix.IPPROTO_ICMPV6})
	binary.BigEndian.PutUint16(message[2:], checksum(slices.Concat(pseudoHeader, message)))
	// RFC 2464, section 7: the group's last 32 bits behind 33:33.
	group := slices.Concat(net.HardwareAddr{0x33, 0x33}, allNodes[12:])
	return slices.Concat(
		ethernetHeader(mac, group, unix.ETH_P_IPV6),
		[]byte{version, 0, 0, 0}, length, []byte{unix.IPPROTO_ICMPV6, hopLimit},
		a.AsSlice(), allNodes, message)
}

// checksum is RFC 1071's, of an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) > 0; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
