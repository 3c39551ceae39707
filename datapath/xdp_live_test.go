package datapath

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket"
	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// TestXDPReachesTheEndpoint sends real frames to the uplink. They arrive at the
// endpoint's device, as the program redirects them.
func TestXDPReachesTheEndpoint(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	w := newWorld(t, loadPinned)
	withXDP(&w.wanted)
	remember(t, w)
	w.containers.Run(t, "ethtool", "-K", "c-alice", "gro", "on") // this turns NAPI on
	tap := w.containers.NewTap(t, "c-alice")
	for _, v6 := range []bool{false, true} {
		w.send(t, sentBy(t, alice, v6, udp(40000, 53)))
		inner, answer := between(remote, alice, v6, tcp(1, 2, "A")), incoming(v6, udp(53, 40000))
		for _, c := range []struct{ in, out []byte }{
			{arriving(false, key(openKey)).around(t, inner.frame(t)), inner.frame(t)},
			{answer.frame(t), translated(answer, alice).frame(t)},
		} {
			w.receive(t, c.in)
			tap.Await(t, "the frame that XDP redirects", func(p gopacket.Packet) bool { return bytes.Equal(p.Data(), c.out) })
		}
	}
}

// receive sends a real frame to the uplink.
func (w *world) receive(t testing.TB, frame []byte) {
	t.Helper()
	context := make([]byte, xdpSize)
	binary.NativeEndian.PutUint32(context[xdpEnd:], uint32(len(frame)))
	binary.NativeEndian.PutUint32(context[xdpIfindex:], w.ifindex["up0"])
	var err error
	w.ns.Do(func() {
		_, err = w.XDP.Run(&ebpf.RunOptions{Data: frame, Context: context, Repeat: 1, Flags: unix.BPF_F_TEST_XDP_LIVE_FRAMES})
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestXDPTakesMultiBufferFrames sends frames larger than a page, whose first
// part has only the headers.
func TestXDPTakesMultiBufferFrames(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	w := newWorld(t, loadPinned)
	withXDP(&w.wanted)
	remember(t, w)
	p := between(remote, alice, false, udp(1, 2))
	p.payload = string(make([]byte, 8000))
	spoofed, large := p, incoming(false, udp(40000, someDNSPort))
	spoofed.src, large.src, large.payload = bob.ip4, peer.ip4, p.payload
	around := arriving(false, key(openKey))
	summed := around
	summed.checksum = true
	unsummed := summed.around(t, p.frame(t))
	for _, r := range []row{
		fromUplink("out of a tunnel", around.around(t, p.frame(t))).passed(),
		fromUplink("with a checksum", summed.around(t, p.frame(t))).passed(),
		fromUplink("with a wrong checksum", patch(unsummed, len(unsummed)-1, 1)).dropped("bad_gre_checksum"),
		fromUplink("of an unknown key", arriving(false, key(strangeKey)).around(t, p.frame(t))).dropped("unknown_key"),
		outOfTunnel("of a spoofed source", around.around(t, spoofed.frame(t))).dropped("spoofed_overlay"),
		fromUplink("to the host", incoming(false, udp(1, 2)).frame(t)).passed(),
		fromUplink("from a source that is not allowed", large.frame(t)).dropped("source_not_allowed"),
		fromUplink("malformed", patch(large.frame(t), atIPLength, 0xff, 0xff)).dropped("malformed"),
	} {
		t.Run(r.name, func(t *testing.T) { r.checkXDP(t, w) })
	}
}
