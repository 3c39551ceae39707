package test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// serveLarge sends datagrams of any size back as they came, until the test
// ends.
func serveLarge(t *testing.T, n *testutil.Netns, port int) {
	t.Helper()
	const largest = 1 << 16
	for _, network := range []string{"udp4", "udp6"} {
		var c net.PacketConn
		var err error
		n.Do(func() { c, err = net.ListenPacket(network, fmt.Sprintf(":%d", port)) })
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() }) // nothing is left to lose
		go func() {
			for buf := make([]byte, largest); ; {
				n, from, err := c.ReadFrom(buf)
				if errors.Is(err, net.ErrClosed) {
					return
				}
				if err == nil {
					_, _ = c.WriteTo(buf[:n], from) // a lost datagram is the client's to notice
				}
			}
		}()
	}
}

// exchangeLarge sends datagrams that take several packets, and expects them
// back from a server of serveLarge.
func exchangeLarge(t *testing.T, c *testutil.Conn) {
	t.Helper()
	for _, size := range []int{3000, 8000, 1473, 60000, 100} {
		sent, got := make([]byte, size), make([]byte, size+1)
		rand.Read(sent) // never fails, see crypto/rand
		if err := c.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(sent); err != nil {
			t.Fatalf("%d bytes to %s: %v", size, c.RemoteAddr(), err)
		}
		if n, err := c.Read(got); err != nil || !bytes.Equal(got[:n], sent) {
			t.Errorf("%d bytes from %s to %s: %d came back, %v", size, c.LocalAddr(), c.RemoteAddr(), n, err)
		}
	}
}

func TestLargeDatagrams(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h, "--icc=false")
	createOther(t, h)
	expectNoContainerAddress(t, u)
	a, b := h.NewContainer(t, "a", "net"), h.NewContainer(t, "b", "net", "--publish", "8080:7000/udp")
	guest := h.NewContainer(t, "guest", "other")
	serveLarge(t, u.Outside, service)
	serveLarge(t, b.Netns, service)
	h.Ebpnet(t, "link", "add", "a", "b", "--port", "7000/udp")
	for i, path := range paths(h, u) {
		for _, from := range []*testutil.Container{guest, a} { // the second has another port outside
			exchangeLarge(t, from.MustDialFrom(t, "udp", ":41000", at(path.outside, service)))
		}
		exchangeLarge(t, a.MustDial(t, "udp", at(b.Addresses()[i], service)))
		for _, from := range []*testutil.Netns{u.Outside, guest.Netns, a.Netns, b.Netns} {
			exchangeLarge(t, from.MustDial(t, "udp", at(path.host, published)))
		}
		ping(t, a.Netns, path.outside, "-s", "4000")
	}
	for _, reason := range []string{"fragment", "too_big"} {
		if n := h.Drops(t, reason); n > 0 {
			t.Errorf("%d packets are dropped as %s", n, reason)
		}
	}
}

// The host's way to itself takes larger packets than an endpoint does.
func TestLargeDatagramsFromTheHost(t *testing.T) {
	h, _ := newOutside(t)
	createNet(t, h)
	a := h.NewContainer(t, "a", "net", "--publish", "8080:7000/udp")
	serveLarge(t, a.Netns, service)
	for _, address := range []netip.Addr{h.IP4, h.IP6, netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()} {
		exchangeLarge(t, h.MustDial(t, "udp", at(address, published)))
	}
}

// fragments cuts a UDP datagram in pieces, as frames.
func fragments(t *testing.T, srcMAC, dstMAC net.HardwareAddr, src, dst netip.AddrPort, id uint32, payload string) [][]byte {
	t.Helper()
	const (
		ethernetHeader, header4, header6 = 14, 20, 40
		piece                            = 80 // bytes, a multiple of 8
	)
	header := header4
	if src.Addr().Is6() {
		header = header6
	}
	whole := udpFrame(t, srcMAC, dstMAC, src, dst, payload)[ethernetHeader+header:]
	var frames [][]byte
	for offset := 0; offset < len(whole); offset += piece {
		data, more := whole[offset:], false
		if len(data) > piece {
			data, more = data[:piece], true
		}
		if src.Addr().Is4() {
			ip := &layers.IPv4{
				Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: src.Addr().AsSlice(), DstIP: dst.Addr().AsSlice(),
				Id: uint16(id), FragOffset: uint16(offset / 8),
			}
			if more {
				ip.Flags = layers.IPv4MoreFragments
			}
			frames = append(frames, testutil.Frame(t, ethernet(srcMAC, dstMAC, layers.EthernetTypeIPv4), ip, gopacket.Payload(data)))
			continue
		}
		extension := []byte{byte(layers.IPProtocolUDP), 0, byte(offset >> 8), byte(offset), byte(id >> 24), byte(id >> 16), byte(id >> 8), byte(id)}
		if more {
			extension[3] |= 1
		}
		frames = append(frames, testutil.Frame(t, ethernet(srcMAC, dstMAC, layers.EthernetTypeIPv6), &layers.IPv6{
			Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolIPv6Fragment, SrcIP: src.Addr().AsSlice(), DstIP: dst.Addr().AsSlice(),
		}, gopacket.Payload(append(extension, data...))))
	}
	return frames
}

// A later fragment goes where its first one went, and nowhere before.
func TestFragmentsOutOfOrder(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	a := h.NewContainer(t, "a", "net", "--publish", "8080:7000/udp")
	b := h.NewContainer(t, "b", "net")
	container, neighbor, outside := a.NewTap(t, testutil.Device), b.NewTap(t, testutil.Device), u.Outside.NewTap(t, "bridge")
	uplink, gateway := deviceMAC(t, h.Netns, testutil.Uplink), gatewayMAC(t, h)
	const pieces = 3
	marks := []string{strings.Repeat("first", 14), strings.Repeat("midst", 16), strings.Repeat("final", 10)}
	mark := func(i int) func(gopacket.Packet) bool {
		return func(p gopacket.Packet) bool {
			quoted := p.Layer(layers.LayerTypeICMPv4) != nil || p.Layer(layers.LayerTypeICMPv6) != nil
			return !quoted && bytes.Contains(p.Data(), []byte(marks[i][:20]))
		}
	}
	payload := marks[0] + "  " + marks[1] + marks[2] // 72 bytes follow the UDP header in the first
	for i, path := range paths(h, u) {
		inside := netip.AddrPortFrom(a.Addresses()[i], 41000)
		server := netip.AddrPortFrom(path.outside, service)
		out := fragments(t, a.MAC, gateway, inside, server, 0x1001, payload)
		client := netip.AddrPortFrom(path.outside, 42000)
		in := fragments(t, nobodysMAC, uplink, client, netip.AddrPortFrom(path.host, published), 0x1002, payload)
		if len(out) != pieces || len(in) != pieces {
			t.Fatalf("cut in %d and %d pieces", len(out), len(in))
		}

		// Out: what comes before the first is dropped, and told.
		for _, later := range out[1:] {
			h.ExpectDrops(t, "fragment", func() { container.Send(t, later) })
		}
		for n, f := range out {
			container.Send(t, f)
			p := outside.Await(t, "a fragment of the container", mark(n))
			if src := p.NetworkLayer().NetworkFlow().Src().String(); src != path.host.String() {
				t.Errorf("fragment %d comes from %s, want %s", n, src, path.host)
			}
		}
		// After the first any order will do.
		out = fragments(t, a.MAC, gateway, inside, server, 0x1003, payload)
		for _, n := range []int{0, 2, 1} {
			container.Send(t, out[n])
			outside.Await(t, "a fragment of the container", mark(n))
		}

		// In: it is left to the host, which gives it to nobody.
		for _, later := range in[1:] {
			outside.Send(t, later)
		}
		if p := container.Receive(t, aMoment, mark(1)); p != nil {
			t.Errorf("a fragment whose first has not come is given to a container:\n%s", p)
		}
		for _, n := range []int{0, 2, 1} {
			outside.Send(t, in[n])
			p := container.Await(t, "a fragment from outside", mark(n))
			want := fmt.Sprintf("%s->%s", client.Addr(), a.Addresses()[i])
			if got := p.NetworkLayer().NetworkFlow().String(); got != want {
				t.Errorf("fragment %d goes %s, want %s", n, got, want)
			}
		}
		// Another datagram's, though all but its identification is the same.
		other := fragments(t, nobodysMAC, uplink, client, netip.AddrPortFrom(path.host, published), 0x1004, payload)
		outside.Send(t, other[1])
		if p := container.Receive(t, aMoment, mark(1)); p != nil {
			t.Errorf("a fragment of another datagram is given to a container:\n%s", p)
		}
		for n := range pieces {
			if p := neighbor.Receive(t, 0, mark(n)); p != nil {
				t.Errorf("a fragment is misdelivered:\n%s", p)
			}
		}
	}
}
