package testutil

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// Where a capture file has what, and how much of it: pcap-savefile(5).
const (
	captureHeader   = 24 // in front of all packets
	recordHeader    = 16 // in front of each
	recordCaptured  = 8  // where that has the length of what was kept
	recordLength    = 12 // and of what there was
	captureBufferKB = "16384"
)

// Capture is what tcpdump writes of a device.
type Capture struct {
	dump *Process
	path string
}

// Capture starts tcpdump on a device of the namespace, with a filter. It sees
// frames both ways, as the device does: superframes whole, and checksums as
// they are if the device is to complete them.
func (n *Netns) Capture(t testing.TB, device string, filter ...string) *Capture {
	t.Helper()
	c := &Capture{path: filepath.Join(t.TempDir(), "capture")}
	c.dump = n.Start(t, "tcpdump", append([]string{
		"-i", device, "-n", "-Z", "root", "-B", captureBufferKB, "-U", "-w", c.path,
	}, filter...)...)
	c.dump.Await(t, "listening on")
	return c
}

// Packets ends the capture and gives what it has, at least one frame.
func (c *Capture) Packets(t testing.TB) (all []gopacket.Packet) {
	t.Helper()
	c.dump.Interrupt()
	file, err := os.ReadFile(c.path)
	if err != nil {
		t.Fatal(err)
	}
	for at := captureHeader; at+recordHeader <= len(file); {
		captured := int(binary.NativeEndian.Uint32(file[at+recordCaptured:]))
		if length := int(binary.NativeEndian.Uint32(file[at+recordLength:])); captured != length {
			t.Fatalf("tcpdump has kept %d bytes of a frame of %d", captured, length)
		}
		at += recordHeader
		if at+captured > len(file) {
			break // it was still writing that
		}
		all = append(all, gopacket.NewPacket(file[at:at+captured], layers.LayerTypeEthernet, gopacket.Default))
		at += captured
	}
	if len(all) == 0 {
		t.Fatalf("nothing is captured: %s", c.dump.Output())
	}
	return all
}
