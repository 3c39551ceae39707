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

// mostWaiting is more frames than fit in a tap's buffer. Frames beyond these have
// come after the time that a receiver gave.
const mostWaiting = 4096

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
	until := time.Now().Add(limit)
	for late := 0; late < mostWaiting; {
		if !time.Now().Before(until) {
			late++
		}
		n, err := s.read(until)
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
	return nil
}

// read gives the length of the next frame, which is in buf then. It waits until
// a time, and takes a frame that waits also after that.
func (s *Tap) read(until time.Time) (n int, err error) {
	if time.Now().Before(until) {
		if err := s.file.SetReadDeadline(until); err != nil {
			return 0, err
		}
		if n, err = s.file.Read(s.buf); !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
	}
	// With a deadline that is over, nothing can be read.
	if err := s.file.SetReadDeadline(time.Time{}); err != nil {
		return 0, err
	}
	raw, err := s.file.SyscallConn()
	if err != nil {
		return 0, err
	}
	var readErr error
	err = raw.Read(func(fd uintptr) bool {
		n, readErr = unix.Read(int(fd), s.buf)
		return true
	})
	if errors.Is(readErr, unix.EAGAIN) {
		return 0, os.ErrDeadlineExceeded
	}
	return n, errors.Join(err, readErr)
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
