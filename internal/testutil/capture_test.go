package testutil

import (
	"os"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

func TestCapture(t *testing.T) {
	t.Parallel()
	a, b := NewNetns(t, "a"), NewNetns(t, "b")
	Wire(t, a, "wa", nil, b, "wb", nil)
	const experimental = layers.EthernetType(0x88b5) // IEEE Std 802, 9.2.4
	frame := func(payload string) []byte {
		return Frame(t, &layers.Ethernet{SrcMAC: make([]byte, 6), DstMAC: layers.EthernetBroadcast, EthernetType: experimental},
			gopacket.Payload(payload))
	}
	frames := [][]byte{frame(strings.Repeat("short ", 20)), frame(strings.Repeat("long ", 250))}
	capture, from := b.Capture(t, "wb", "ether", "proto", "0x88b5"), a.NewTap(t, "wa")
	want := int64(captureHeader)
	for _, f := range frames {
		from.Send(t, f)
		want += recordHeader + int64(len(f))
	}
	Eventually(t, "tcpdump has written all", func() bool {
		info, err := os.Stat(capture.path)
		return err == nil && info.Size() == want
	})
	all := capture.Packets(t)
	if len(all) != len(frames) {
		t.Fatalf("captured %d frames, want %d", len(all), len(frames))
	}
	for i, p := range all {
		if string(p.Data()) != string(frames[i]) {
			t.Errorf("captured:\n%s", p)
		}
	}
}
