package datapath

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket"
	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// Marks of packets on the detour: enum tunnel_mark of bpf/tunnel.h.
const (
	frameKind   = 0xeb100000 // the frame still needs outer headers
	packetMark  = 0xeb200000 // it has outer headers
	strangeMark = 0xeb300000
	markNetwork = 10 // bits to shift
)

// frameMark is the mark of a frame of a network that goes into a tunnel.
func frameMark(network, tunnel uint32) uint32 { return frameKind | network<<markNetwork | tunnel }

// newTaps captures the frames that local endpoints receive, by device.
func (w *world) newTaps(t testing.TB) map[string]*testutil.Tap {
	t.Helper()
	taps := map[string]*testutil.Tap{}
	for _, e := range locals() {
		taps[e.device] = w.containers.NewTap(t, "c-"+e.device)
	}
	return taps
}

// checkFlood fails unless each receiver got exactly one copy and no other
// endpoint got one.
func (r row) checkFlood(t *testing.T, copied []byte, taps map[string]*testutil.Tap) {
	same := func(p gopacket.Packet) bool { return string(p.Data()) == string(copied) }
	for _, e := range r.receivers {
		taps[e.device].Await(t, "a copy for "+e.device, same)
	}
	for name, tap := range taps {
		if tap.Receive(t, 0, same) != nil {
			t.Errorf("%s got an unexpected copy", name)
		}
	}
}

// detour captures the frames that arrive at one end of the host's veth: those
// of to_tunnel at the near end, those of from_host at the far end.
type detour struct{ fd int }

// copied is a captured frame.
type copied struct {
	frame []byte
	mark  uint32
}

func (w *world) newDetour(t testing.TB, device string) *detour {
	t.Helper()
	d := &detour{}
	var err error
	w.ns.Do(func() {
		d.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(d.fd) }) // an error of Close does not matter here
	err = errors.Join(
		unix.SetsockoptInt(d.fd, unix.SOL_SOCKET, unix.SO_RCVMARK, 1),
		unix.SetsockoptInt(d.fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
		unix.Bind(d.fd, &unix.SockaddrLinklayer{Protocol: networkOrder16(unix.ETH_P_ALL), Ifindex: int(w.ifindex[device])}),
	)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// receive returns the next captured frame; false if there is none.
func (d *detour) receive(t testing.TB) (copied, bool) {
	t.Helper()
	frame, control := make([]byte, pageSize), make([]byte, unix.CmsgSpace(4))
	n, controls, _, _, err := unix.Recvmsg(d.fd, frame, control, 0)
	if errors.Is(err, unix.EAGAIN) {
		return copied{}, false
	}
	if err != nil {
		t.Fatal(err)
	}
	c := copied{frame: frame[:n]}
	messages, err := unix.ParseSocketControlMessage(control[:controls])
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range messages {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_MARK {
			c.mark = binary.NativeEndian.Uint32(m.Data)
		}
	}
	return c, true
}

// pageSize is the size of the receive buffer. No frame of a test run is larger.
const pageSize = 4096

// check fails unless exactly one copy arrived for each tunnel that the row
// floods into.
func (d *detour) check(t testing.TB, r row, frame []byte) {
	t.Helper()
	var want []uint32
	for _, tunnel := range r.detours {
		want = append(want, frameMark(r.sender.network, tunnel))
	}
	d.checkMarks(t, frame, want)
}

// checkMarks fails unless exactly one copy arrived with each of the marks.
func (d *detour) checkMarks(t testing.TB, frame []byte, want []uint32) {
	t.Helper()
	var got []uint32
	look := func() bool {
		for {
			c, ok := d.receive(t)
			if !ok {
				return len(got) >= len(want)
			}
			if bytes.Equal(c.frame, frame) {
				got = append(got, c.mark)
			}
		}
	}
	testutil.Eventually(t, "copies for tunnels", look)
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("marks of copies (-want +got):\n%s", diff)
	}
}
