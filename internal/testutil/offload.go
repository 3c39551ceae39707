package testutil

import (
	"bytes"
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"
)

// Values of Offload: linux/virtio_net.h.
const (
	NeedsChecksum = 1
	GSOTCPv4      = 1
	GSOTCPv6      = 4
)

// Offload is what a sender asks of the kernel with a frame: struct
// virtio_net_hdr. Offsets and sizes are in bytes.
type Offload struct {
	Flags, GSOType                uint8
	HeaderLength, GSOSize         uint16
	ChecksumStart, ChecksumOffset uint16
}

// OffloadTap sends frames with what the sender chooses to ask of the kernel, as
// CAP_NET_RAW allows.
type OffloadTap struct{ tap *Tap }

// NewOffloadTap opens the device in the namespace, until the test ends.
func (n *Netns) NewOffloadTap(t testing.TB, device string) *OffloadTap {
	t.Helper()
	tap := n.NewTap(t, device)
	raw, err := tap.file.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var option error
	err = raw.Control(func(fd uintptr) {
		option = unix.SetsockoptInt(int(fd), unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1)
	})
	if err != nil || option != nil {
		t.Fatalf("in %s: PACKET_VNET_HDR on %s: %v, %v", n.Name, device, err, option)
	}
	return &OffloadTap{tap}
}

// Send puts a frame on the device, as if the namespace sent it. An error says
// that the namespace's own kernel refuses it.
func (s *OffloadTap) Send(offload Offload, frame []byte) error {
	var b bytes.Buffer
	if err := binary.Write(&b, binary.NativeEndian, offload); err != nil {
		return err
	}
	b.Write(frame)
	_, err := s.tap.file.Write(b.Bytes())
	return err
}
