package testutil

import (
	"errors"
	"math/bits"
	"net"
	"os"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"
)

// maxFrame holds the largest frame a device delivers, a superframe included.
const maxFrame = 1 << 17

// Tap sends and receives whole Ethernet frames on a device.
type Tap struct {
	file *os.File
	buf  []byte
}

// NewTap opens the device in the namespace, until the test ends. From now on
// every frame that the device receives waits to be read.
func (n *Netns) NewTap(t testing.TB, device string) *Tap {
	t.Helper()
	var file *os.File
	var err error
	n.Do(func() { file, err = openTap(device) })
	if err != nil {
		t.Fatalf("in %s: tap %s: %v", n.Name, device, err)
	}
	t.Cleanup(func() { _ = file.Close() }) // nothing is left to lose
	return &Tap{file: file, buf: make([]byte, maxFrame)}
}

func openTap(device string) (*os.File, error) {
	dev, err := net.InterfaceByName(device)
	if err != nil {
		return nil, err
	}
	every := bits.ReverseBytes16(unix.ETH_P_ALL)
	// Protocol 0: nothing arrives from other devices before bind.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "tap of "+device)
	err = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: every, Ifindex: dev.Index})
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// Send puts a frame on the device, as if the namespace sent it.
func (s *Tap) Send(t testing.TB, frame []byte) {
	t.Helper()
	if _, err := s.file.Write(frame); err != nil {
		t.Fatalf("send a frame of %d bytes on %s: %v", len(frame), s.file.Name(), err)
	}
}

// Receive gives the next frame for which match is true, or nil if none arrives
// within the limit. A limit of zero looks only at what waits already.
func (s *Tap) Receive(t testing.TB, limit time.Duration, match func(gopacket.Packet) bool) gopacket.Packet {
	t.Helper()
	// A deadline that is over already would hide frames that wait.
	if err := s.file.SetReadDeadline(time.Now().Add(max(limit, pollInterval))); err != nil {
		t.Fatal(err)
	}
	for {
		n, err := s.file.Read(s.buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			t.Fatalf("receive on %s: %v", s.file.Name(), err)
		}
		p := gopacket.NewPacket(s.buf[:n], layers.LayerTypeEthernet, gopacket.Default)
		if match(p) {
			return p
		}
	}
}

// Await is Receive for a frame that has to arrive.
func (s *Tap) Await(t testing.TB, what string, match func(gopacket.Packet) bool) gopacket.Packet {
	t.Helper()
	p := s.Receive(t, patience, match)
	if p == nil {
		t.Fatalf("%s: nothing within %v: %s", s.file.Name(), patience, what)
	}
	return p
}

// Frame joins layers to a frame, and fills in lengths and checksums.
func Frame(t testing.TB, l ...gopacket.SerializableLayer) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	options := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	for i := range l {
		var err error
		switch transport := l[i].(type) {
		case *layers.UDP:
			err = transport.SetNetworkLayerForChecksum(l[i-1].(gopacket.NetworkLayer))
		case *layers.TCP:
			err = transport.SetNetworkLayerForChecksum(l[i-1].(gopacket.NetworkLayer))
		case *layers.ICMPv6:
			err = transport.SetNetworkLayerForChecksum(l[i-1].(gopacket.NetworkLayer))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := gopacket.SerializeLayers(buf, options, l...); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}
