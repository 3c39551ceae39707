package attack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

const (
	largestFrame = 1 << 17
	snifferQueue = 64 << 20
	patience     = 15 * time.Second
)

// seen is a frame at a sniffer.
type seen struct {
	vnet vnet
	vlan bool // the device has taken a tag off
	data []byte
}

// completed is the frame as a device or the stack makes it when it completes
// the checksum that the frame asks for. It is not defined for superframes.
func (s seen) completed() []byte {
	if s.vnet.flags&needsChecksum == 0 || s.vnet.gso != gsoNone {
		return s.data
	}
	start, at := int(s.vnet.csumStart), int(s.vnet.csumStart)+int(s.vnet.csumOff)
	if start > len(s.data) || at+2 > len(s.data) {
		return s.data
	}
	out := slices.Clone(s.data)
	check := ^sum(0, out[start:])
	if check == 0 {
		check = 0xffff
	}
	binary.BigEndian.PutUint16(out[at:], check)
	return out
}

// sniffer receives what a device receives.
type sniffer struct {
	name   string
	check  func(attacker *member, s seen, frame []byte) string
	fences []string // whose fences arrive here
	fd     int
	buf    []byte
	oob    []byte
}

// newSniffer opens a packet socket on the device. If unmarked, it leaves out
// packets with a mark: those are on their way into a tunnel.
func newSniffer(t *testing.T, n *testutil.Netns, device string, unmarked bool) *sniffer {
	t.Helper()
	s := &sniffer{name: n.Name + "/" + device, fd: -1, buf: make([]byte, largestFrame), oob: make([]byte, 256)}
	var err error
	n.Do(func() { s.fd, err = openSniffer(device, unmarked) })
	if err != nil {
		t.Fatalf("sniff %s in %s: %v", device, n.Name, err)
	}
	t.Cleanup(func() { _ = unix.Close(s.fd) }) // nothing is left to lose
	return s
}

func openSniffer(device string, unmarked bool) (int, error) {
	dev, err := net.InterfaceByName(device)
	if err != nil {
		return -1, err
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	set := func(option, value int) {
		err = errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_PACKET, option, value))
	}
	set(unix.PACKET_IGNORE_OUTGOING, 1)
	set(unix.PACKET_VNET_HDR, 1)
	set(unix.PACKET_AUXDATA, 1)
	err = errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, snifferQueue))
	if unmarked {
		const markAt = 0xfffff000 + 20 // SKF_AD_OFF + SKF_AD_MARK
		filter := []unix.SockFilter{
			{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: markAt},
			{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 1},
			{Code: unix.BPF_RET | unix.BPF_K},
			{Code: unix.BPF_RET | unix.BPF_K, K: largestFrame},
		}
		err = errors.Join(err, unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			&unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}))
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: bits.ReverseBytes16(unix.ETH_P_ALL), Ifindex: dev.Index})
	}
	if err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// next gives the next frame that waits; false if none does.
func (s *sniffer) next(t *testing.T) (seen, bool) {
	t.Helper()
	for {
		n, oobn, _, _, err := unix.Recvmsg(s.fd, s.buf, s.oob, 0)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return seen{}, false
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EINVAL):
			// The kernel has no words for the offload that the packet asks for.
			return seen{vnet: vnet{gso: 0xff}}, true
		case err != nil:
			t.Fatalf("%s: %v", s.name, err)
		}
		return seen{vnet: readVnet(s.buf), vlan: hasTag(s.oob[:oobn]), data: slices.Clone(s.buf[vnetLength:n])}, true
	}
}

// hasTag reads struct tpacket_auxdata.
func hasTag(oob []byte) bool {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return false
	}
	for _, m := range messages {
		if m.Header.Level == unix.SOL_PACKET && m.Header.Type == unix.PACKET_AUXDATA && len(m.Data) >= 4 {
			return binary.NativeEndian.Uint32(m.Data)&unix.TP_STATUS_VLAN_VALID != 0
		}
	}
	return false
}

// lost tells how many frames the sniffer had no room for.
func (s *sniffer) lost(t *testing.T) uint32 {
	t.Helper()
	stats, err := unix.GetsockoptTpacketStats(s.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		t.Fatal(err)
	}
	return stats.Drops
}

// A fence is a datagram that is sent after a row's frames, on every way that
// these could have gone and from the same CPU: once it has arrived, so have
// they.
const (
	fenceWord = "ebpnet-fence"
	fencePort = 9
)

type fence struct {
	name string
	conn net.Conn
}

func (f fence) text(round int) string { return fmt.Sprintf("%s %s %d.", fenceWord, f.name, round) }

// send repeats what fails because nobody listens where the last fence went.
func (f fence) send(t *testing.T, round int) {
	t.Helper()
	for {
		_, err := f.conn.Write([]byte(f.text(round)))
		if err == nil {
			return
		}
		if !errors.Is(err, unix.ECONNREFUSED) {
			t.Fatalf("fence %s: %v", f.name, err)
		}
	}
}

// fenced reads frames of every sniffer until all its fences of the round have
// arrived, and gives the others.
func (s *sniffer) fenced(t *testing.T, round int, fences map[string]fence, each func(seen)) {
	t.Helper()
	missing := slices.Clone(s.fences)
	for deadline := time.Now().Add(patience); len(missing) > 0; {
		frame, ok := s.next(t)
		if !ok {
			if time.Now().After(deadline) {
				t.Fatalf("%s: no fence within %v: %s", s.name, patience, strings.Join(missing, ", "))
			}
			_, err := unix.Poll([]unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}}, 100)
			if err != nil && !errors.Is(err, unix.EINTR) {
				t.Fatal(err)
			}
			continue
		}
		if !bytes.Contains(frame.data, []byte(fenceWord)) {
			each(frame)
			continue
		}
		missing = slices.DeleteFunc(missing, func(name string) bool {
			return bytes.Contains(frame.data, []byte(fences[name].text(round)))
		})
	}
}

// sender writes frames with their virtio_net_hdr to a container's device.
type sender struct{ fd int }

func newSender(t *testing.T, n *testutil.Netns) *sender {
	t.Helper()
	s := &sender{-1}
	var err error
	n.Do(func() {
		var dev *net.Interface
		if dev, err = net.InterfaceByName(testutil.Device); err != nil {
			return
		}
		// Protocol 0: it receives nothing.
		if s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return
		}
		err = errors.Join(
			unix.SetsockoptInt(s.fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1),
			unix.Bind(s.fd, &unix.SockaddrLinklayer{Ifindex: dev.Index}),
		)
	})
	if s.fd >= 0 {
		t.Cleanup(func() { _ = unix.Close(s.fd) }) // nothing is left to lose
	}
	if err != nil {
		t.Fatalf("in %s: %v", n.Name, err)
	}
	return s
}

// send tells whether the container's own kernel took the frame: it refuses what
// makes no sense to it.
func (s *sender) send(t *testing.T, c crafted) bool {
	t.Helper()
	for {
		_, err := unix.Write(s.fd, append(c.vnet.bytes(), c.frame...))
		switch {
		case err == nil:
			return true
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENOBUFS):
			continue
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EMSGSIZE),
			errors.Is(err, unix.ENOMEM): // it cannot be segmented
			return false
		}
		t.Fatalf("send %x: %v", c.frame, err)
	}
}
