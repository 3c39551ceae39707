package test

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

const (
	etherHeader = 14
	ipv4Header  = 20
	ipv6Header  = 40
	udpHeader   = 8
	summedBytes = 64 // the length of every IP packet that a checksumReader reads
)

// checksumReader keeps the IP packets that a device receives, by their last 4
// bytes, and the sum of each that the kernel holds (CHECKSUM_COMPLETE).
type checksumReader struct{ packets *ebpf.Map }

// summed is a packet as a checksumReader keeps it.
type summed struct {
	Sum    int64 // less than 0: the kernel holds none
	Packet [summedBytes]byte
}

// newChecksumReader reads what the device in the namespace receives.
func newChecksumReader(t *testing.T, n *testutil.Netns, device string) *checksumReader {
	t.Helper()
	const size = 8 + summedBytes
	packets, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.LRUHash, KeySize: 4, ValueSize: size, MaxEntries: 64})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = packets.Close() }) // nothing is left to lose
	const value, key = -size, -4              // on the stack
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{
			asm.Mov.Reg(asm.R6, asm.R1),
			asm.Mov.Imm(asm.R2, 0),
			asm.FnCsumUpdate.Call(),
			asm.StoreMem(asm.RFP, value, asm.R0, asm.DWord),
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.Mov.Imm(asm.R2, etherHeader),
			asm.Mov.Reg(asm.R3, asm.RFP),
			asm.Add.Imm(asm.R3, value+8),
			asm.Mov.Imm(asm.R4, summedBytes),
			asm.FnSkbLoadBytes.Call(),
			asm.JNE.Imm(asm.R0, 0, "out"),
			asm.LoadMapPtr(asm.R1, packets.FD()),
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, key),
			asm.Mov.Reg(asm.R3, asm.RFP),
			asm.Add.Imm(asm.R3, value),
			asm.Mov.Imm(asm.R4, 0),
			asm.FnMapUpdateElem.Call(),
			asm.Mov.Imm(asm.R0, -1).WithSymbol("out"), // on to the stack
			asm.Return(),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	var attached link.Link
	n.Do(func() {
		var d *net.Interface
		if d, err = net.InterfaceByName(device); err == nil {
			attached, err = link.AttachTCX(link.TCXOptions{Interface: d.Index, Program: program, Attach: ebpf.AttachTCXIngress})
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = attached.Close() }) // nothing is left to lose
	return &checksumReader{packets}
}

// expect waits for a UDP packet of the family with the payload, and compares
// the kernel's sum of it with its bytes.
func (r *checksumReader) expect(t *testing.T, what string, v6 bool, payload string) {
	t.Helper()
	header := ipv4Header
	if v6 {
		header = ipv6Header
	}
	var got summed
	testutil.Eventually(t, what, func() bool {
		err := r.packets.Lookup([]byte(payload[len(payload)-4:]), &got)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			t.Fatal(err)
		}
		return err == nil && string(got.Packet[header+udpHeader:]) == payload
	})
	if got.Sum < 0 {
		t.Fatalf("%s: the kernel holds no sum of the packet", what)
	}
	var sum uint64
	for i := 0; i < len(got.Packet); i += 2 {
		sum += uint64(binary.NativeEndian.Uint16(got.Packet[i:]))
	}
	if fold(sum) != fold(uint64(got.Sum)) {
		t.Errorf("%s: the kernel's sum is %#x, that of the bytes %#x: %x", what, fold(uint64(got.Sum)), fold(sum), got.Packet)
	}
}

// fold gives a sum in one's complement, of which 0 and 0xffff are the same.
func fold(sum uint64) uint64 { return sum % 0xffff }

// The kernel holds a sum of each packet that it takes out of VXLAN with outer
// checksums, as it does for a NIC that sums up what it receives. It follows
// what the datapath writes.
func TestChecksumsOfWholePacketsFollow(t *testing.T) {
	t.Parallel()
	h := testutil.NewHost(t, "host")
	u := testutil.NewUnderlay(t, h)
	const device, here4, there4, here6, there6 = "vx0", "198.51.100.1", "198.51.100.2", "2001:db8:5::1", "2001:db8:5::2"
	for _, end := range []struct {
		n                  *testutil.Netns
		local, remote      netip.Addr
		address4, address6 string
	}{{h.Netns, h.IP4, u.IP4, here4, here6}, {u.Outside, u.IP4, h.IP4, there4, there6}} {
		end.n.Run(t, "ip", "link", "add", device, "up", "type", "vxlan", "id", "5", "dstport", "4789", "udpcsum",
			"local", end.local.String(), "remote", end.remote.String())
		end.n.Run(t, "ip", "addr", "add", end.address4+"/24", "dev", device)
		end.n.Run(t, "ip", "addr", "add", end.address6+"/64", "dev", device, "nodad")
	}
	// A packet that is said to be whole is not summed up.
	u.Outside.Run(t, "ethtool", "-K", "port1", "tx", "off")
	h.Ebpnet(t, "load", "--uplink", device)
	createNet(t, h)
	a := h.NewContainer(t, "a", "net", bothPublished()...)
	serve(t, a.Netns, service)
	reader := newChecksumReader(t, a.Netns, testutil.Device)

	payload := func(v6 bool, mark byte) string {
		length := summedBytes - ipv4Header - udpHeader
		if v6 {
			length = summedBytes - ipv6Header - udpHeader
		}
		b := make([]byte, length)
		for i := range b {
			b[i] = mark + byte(i)
		}
		return string(b)
	}
	send := func(c net.Conn, what string) {
		t.Helper()
		if _, err := c.Write([]byte(what)); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []struct{ here, there netip.Addr }{
		{netip.MustParseAddr(here4), netip.MustParseAddr(there4)}, {netip.MustParseAddr(here6), netip.MustParseAddr(there6)},
	} {
		v6 := path.here.Is6()
		inward := u.Outside.MustDial(t, "udp", at(path.here, published))
		send(inward, payload(v6, 'A'))
		reader.expect(t, "to a published port at "+path.here.String(), v6, payload(v6, 'A'))

		// An answer to what is masqueraded.
		var server net.PacketConn
		var err error
		u.Outside.Do(func() { server, err = net.ListenPacket("udp", at(path.there, service)) })
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		outward := a.MustDial(t, "udp", at(path.there, service))
		send(outward, "a question")
		from := receiveFrom(t, server)
		if _, err := server.WriteTo([]byte(payload(v6, 'a')), from); err != nil {
			t.Fatal(err)
		}
		reader.expect(t, "an answer from "+path.there.String(), v6, payload(v6, 'a'))
	}

	bare := u.Outside.MustDial(t, "udp", at(netip.MustParseAddr(here4), published))
	withoutChecksums(t, bare.Conn)
	send(bare, payload(false, '!'))
	reader.expect(t, "UDP without a checksum", false, payload(false, '!'))
}

// receiveFrom tells who sends the next datagram.
func receiveFrom(t *testing.T, c net.PacketConn) net.Addr {
	t.Helper()
	_, from, err := c.ReadFrom(make([]byte, 1))
	if err != nil {
		t.Fatal(err)
	}
	return from
}

// withoutChecksums has a socket send UDP over IPv4 without checksums.
func withoutChecksums(t *testing.T, c net.Conn) {
	t.Helper()
	raw, err := c.(*net.UDPConn).SyscallConn()
	if err == nil {
		var set error
		err = raw.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_NO_CHECK, 1) })
		err = errors.Join(err, set)
	}
	if err != nil {
		t.Fatal(err)
	}
}
