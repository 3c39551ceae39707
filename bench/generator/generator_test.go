package generator

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// Addresses of streams in tests. The Ethernet addresses are of the inner frame
// where there is GRE.
var (
	from, to           = [6]byte{2, 0, 0x5e, 0, 0, 1}, [6]byte{2, 0, 0x5e, 0, 0, 2}
	outerFrom, outerTo = [6]byte{2, 0, 0x5e, 0, 0, 3}, [6]byte{2, 0, 0x5e, 0, 0, 4}
	source4            = netip.MustParseAddrPort("192.0.2.255:49152")
	source6            = netip.MustParseAddrPort("[2001:db8::1:ffff]:49152")
	destination4       = netip.MustParseAddrPort("198.51.100.7:7000")
	destination6       = netip.MustParseAddrPort("[2001:db8::7]:7000")
	key                = uint32(0xfedcba98)
)

func outer4(key *uint32) *GRE {
	return &GRE{outerFrom, outerTo, netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("203.0.113.2"), key}
}

func outer6(key *uint32) *GRE {
	return &GRE{outerFrom, outerTo, netip.MustParseAddr("2001:db8:1::1"), netip.MustParseAddr("2001:db8:1::2"), key}
}

func stream(change func(*Stream)) Stream {
	s := Stream{From: from, To: to, Source: source4, Destination: destination4, Size: MinSize, Flows: 3}
	change(&s)
	return s
}

func streams() map[string]Stream {
	v6 := func(s *Stream) { s.Source, s.Destination = source6, destination6 }
	return map[string]Stream{
		"udp":           stream(func(s *Stream) {}),
		"udp-odd":       stream(func(s *Stream) { s.Size = 99 }),
		"udp-largest":   stream(func(s *Stream) { s.Size = MaxSize }),
		"udp6":          stream(func(s *Stream) { v6(s); s.Size = 62 }),
		"udp6-largest":  stream(func(s *Stream) { v6(s); s.Size = MaxSize }),
		"syn":           stream(func(s *Stream) { s.Protocol = TCPSYN }),
		"syn6":          stream(func(s *Stream) { v6(s); s.Protocol, s.Size = TCPSYN, 100 }),
		"gre":           stream(func(s *Stream) { s.GRE, s.Size = outer4(nil), 98 }),
		"gre-key":       stream(func(s *Stream) { s.GRE, s.Size = outer4(&key), MaxSize }),
		"gre-syn6":      stream(func(s *Stream) { v6(s); s.Protocol, s.GRE, s.Size = TCPSYN, outer4(&key), 150 }),
		"gre6":          stream(func(s *Stream) { s.GRE, s.Size = outer6(nil), 118 }),
		"gre6-key-udp6": stream(func(s *Stream) { v6(s); s.GRE, s.Size = outer6(&key), 512 }),
		// The next flows' addresses carry into the byte before.
		"many":  stream(func(s *Stream) { s.Flows = portsPerAddress + 3 }),
		"many6": stream(func(s *Stream) { v6(s); s.Flows, s.Size = portsPerAddress+3, 70 }),
	}
}

// want is the frame of a flow, made by other means.
func (s Stream) want(t *testing.T, flow int) []byte {
	t.Helper()
	ethernet := func(to, from [6]byte, a netip.Addr) gopacket.SerializableLayer {
		kind := layers.EthernetTypeIPv4
		if a.Is6() {
			kind = layers.EthernetTypeIPv6
		}
		return &layers.Ethernet{DstMAC: to[:], SrcMAC: from[:], EthernetType: kind}
	}
	ip := func(source, destination netip.Addr, protocol layers.IPProtocol) gopacket.SerializableLayer {
		if source.Is6() {
			return &layers.IPv6{Version: 6, NextHeader: protocol, HopLimit: 64, SrcIP: source.AsSlice(), DstIP: destination.AsSlice()}
		}
		return &layers.IPv4{
			Version: 4, TTL: 64, Flags: layers.IPv4DontFragment, Protocol: protocol,
			SrcIP: source.AsSlice(), DstIP: destination.AsSlice(),
		}
	}
	source := s.Source.Addr()
	for range flow / portsPerAddress {
		source = source.Next()
	}
	port := s.Source.Port() + uint16(flow%portsPerAddress)
	size := s.Size
	var all []gopacket.SerializableLayer
	if g := s.GRE; g != nil {
		header := &layers.GRE{Protocol: layers.EthernetTypeTransparentEthernetBridging}
		size -= 14 + ipBytes(g.Source) + 4
		if g.Key != nil {
			header.KeyPresent, header.Key = true, *g.Key
			size -= 4
		}
		all = append(all, ethernet(g.To, g.From, g.Source), ip(g.Source, g.Destination, layers.IPProtocolGRE), header)
	}
	all = append(all, ethernet(s.To, s.From, source))
	if s.Protocol == TCPSYN {
		inner := testutil.Frame(t, ethernet(s.To, s.From, source), ip(source, s.Destination.Addr(), layers.IPProtocolTCP),
			&layers.TCP{SrcPort: layers.TCPPort(port), DstPort: layers.TCPPort(s.Destination.Port()), SYN: true, Window: 65535})
		return testutil.Frame(t, append(all[:len(all)-1], gopacket.Payload(append(inner, make([]byte, size-len(inner))...)))...)
	}
	return testutil.Frame(t, append(all, ip(source, s.Destination.Addr(), layers.IPProtocolUDP),
		&layers.UDP{SrcPort: layers.UDPPort(port), DstPort: layers.UDPPort(s.Destination.Port())},
		gopacket.Payload(make([]byte, size-14-ipBytes(source)-8)))...)
}

func ipBytes(a netip.Addr) int {
	if a.Is6() {
		return 40
	}
	return 20
}

// pair is two namespaces joined by eth0 and eth0, the second of which takes
// frames by NAPI.
func pair(t *testing.T) (near, far *testutil.Netns) {
	t.Helper()
	near, far = testutil.NewNetns(t, "near"), testutil.NewNetns(t, "far")
	near.Run(t, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", far.Name)
	for _, n := range []*testutil.Netns{near, far} {
		n.SetSysctl(t, "ipv6/conf/all/disable_ipv6", "1") // nobody else sends
		n.Run(t, "ip", "link", "set", "eth0", "up")
	}
	far.Run(t, "ethtool", "-K", "eth0", "gro", "on")
	return near, far
}

// begin sends a stream until the test ends, no faster than a tap can be read.
func begin(t *testing.T, s Stream, near *testutil.Netns) {
	t.Helper()
	s.Rate = 20_000
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		_, err := s.Run(ctx, Outlet{Netns: near.Path(), Device: "eth0"}, time.Minute)
		ended <- err
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// Every byte that arrives is right, of the first flows in their order, and of
// the one with which they begin again.
func TestFrames(t *testing.T) {
	testutil.RequireRoot(t)
	t.Parallel()
	for name, s := range streams() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			near, far := pair(t)
			tap := far.NewTap(t, "eth0")
			begin(t, s, near)
			for _, flow := range []int{0, 1, s.Flows - 1, 0} {
				want := s.want(t, flow)
				var got []byte
				tap.Receive(t, patience, func(p gopacket.Packet) bool {
					got = p.Data() // a busy machine may lose a flow's turn
					return bytes.Equal(got, want)
				})
				if !bytes.Equal(got, want) {
					t.Fatalf("flow %d: no such frame; want\n%x\nthe last one was\n%x", flow, first(want), first(got))
				}
			}
		})
	}
}

const patience = 30 * time.Second

// first is all headers of a frame.
func first(frame []byte) []byte { return frame[:min(150, len(frame))] }

// received sends a stream for a while and gives what was sent and what came in.
func received(t *testing.T, s Stream, near, far *testutil.Netns, duration time.Duration) (Sent, uint64) {
	t.Helper()
	in, err := OpenInlet(far.Path(), "eth0")
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	before, err := in.Settled(quiet)
	if err != nil {
		t.Fatal(err)
	}
	sent, err := s.Run(t.Context(), Outlet{Netns: near.Path(), Device: "eth0"}, duration)
	if err != nil {
		t.Fatal(err)
	}
	after, err := in.Settled(quiet)
	if err != nil {
		t.Fatal(err)
	}
	return sent, after - before
}

const quiet = 20 * time.Millisecond

// What a device receives by NAPI is all that was sent, and the rate is kept,
// whatever the machine does meanwhile: it is an upper limit.
func TestRate(t *testing.T) {
	testutil.RequireRoot(t)
	t.Parallel()
	near, far := pair(t)
	const duration = 200 * time.Millisecond
	for _, rate := range []int{1000, 50_000, 0} {
		s := stream(func(s *Stream) { s.Rate = rate })
		sent, got := received(t, s, near, far, duration)
		if sent.Frames == 0 || got != sent.Frames {
			t.Errorf("rate %d: received %d of %d", rate, got, sent.Frames)
		}
		if sent.Elapsed < duration-nudgeEvery {
			t.Errorf("rate %d: ended after %s", rate, sent.Elapsed)
		}
		limit := float64(rate)*(sent.Elapsed+nudgeEvery).Seconds() + 1
		if rate > 0 && float64(sent.Frames) > limit {
			t.Errorf("rate %d: sent %d in %s, want at most %.0f", rate, sent.Frames, sent.Elapsed, limit)
		}
	}
}

// The kernel hands out the memory of a dropped frame again, as the receiver
// left it: here with other headers.
func TestFramesAfterAReceiverThatWrites(t *testing.T) {
	testutil.RequireRoot(t)
	t.Parallel()
	near, far := pair(t)
	spoilHalf(t, far)
	tap := far.NewTap(t, "eth0")
	s := stream(func(s *Stream) { s.Flows = 1 })
	want := s.want(t, 0)
	begin(t, s, near)
	const looked = 2000 // more than there are pages
	for range looked {
		got := tap.Await(t, "frame", func(gopacket.Packet) bool { return true }).Data()
		if !bytes.Equal(got, want) {
			t.Fatalf("got\n%x, want\n%x", got, want)
		}
	}
}

// spoilHalf writes into half of the frames that eth0 receives, and drops them.
func spoilHalf(t *testing.T, far *testutil.Netns) {
	t.Helper()
	spoil := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.FnGetPrandomU32.Call(),
		asm.And.Imm(asm.R0, 1),
		asm.JEq.Imm(asm.R0, 1, "pass"),
		asm.LoadMem(asm.R2, asm.R6, xdpData, asm.Word),
		asm.LoadMem(asm.R3, asm.R6, xdpDataEnd, asm.Word),
		asm.Mov.Reg(asm.R4, asm.R2),
		asm.Add.Imm(asm.R4, MinSize),
		asm.JGT.Reg(asm.R4, asm.R3, "pass"),
	}
	for at := range int16(udp4Headers) {
		spoil = append(spoil, asm.StoreImm(asm.R2, at, 0x5a, asm.Byte))
	}
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, License: "MIT",
		Instructions: append(spoil,
			asm.Mov.Imm(asm.R0, xdpDrop),
			asm.Return(),
			asm.Mov.Imm(asm.R0, 2).WithSymbol("pass"), // XDP_PASS
			asm.Return(),
		),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	far.Do(func() {
		var dev *net.Interface
		if dev, err = net.InterfaceByName("eth0"); err == nil {
			var l link.Link
			if l, err = link.AttachXDP(link.XDPOptions{Program: program, Interface: dev.Index}); err == nil {
				t.Cleanup(func() { l.Close() })
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

// udp4Headers is how long those of IPv4 and UDP are, Ethernet's included.
const udp4Headers = 42

// A veth whose other end does not receive by NAPI loses all of it, as Run says.
func TestWithoutNAPI(t *testing.T) {
	testutil.RequireRoot(t)
	t.Parallel()
	near, far := pair(t)
	far.Run(t, "ethtool", "-K", "eth0", "gro", "off")
	sent, got := received(t, stream(func(*Stream) {}), near, far, 10*quiet)
	if sent.Frames == 0 || got > 0 {
		t.Errorf("received %d of %d, want none", got, sent.Frames)
	}
}

func TestRunFails(t *testing.T) {
	testutil.RequireRoot(t)
	t.Parallel()
	near := testutil.NewNetns(t, "near")
	s := stream(func(*Stream) {})
	for want, out := range map[string]Outlet{
		"device none":         {Netns: near.Path(), Device: "none"},
		"no such file":        {Netns: near.Path() + "-gone", Device: "lo"},
		"pin to CPU 100000: ": {Netns: near.Path(), Device: "lo", CPU: 100_000},
	} {
		if _, err := s.Run(t.Context(), out, time.Minute); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: error %v, want %q", out, err, want)
		}
	}
	if _, err := OpenInlet(near.Path(), "none"); err == nil || !strings.Contains(err.Error(), "count at none") {
		t.Errorf("inlet: error %v", err)
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	for name, s := range streams() {
		if err := s.Check(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for want, change := range map[string]func(*Stream){
		"want a source and a destination":        func(s *Stream) { s.Source = netip.AddrPort{} },
		"want both IPv4 or both IPv6":            func(s *Stream) { s.Destination = destination6 },
		"want UDP or TCPSYN":                     func(s *Stream) { s.Protocol = 7 },
		"size 59: want 60 to 1514":               func(s *Stream) { s.Size = 59 },
		"size 1515: want 60 to 1514":             func(s *Stream) { s.Size = 1515 },
		"size 61: want 62 to 1514":               func(s *Stream) { s.Source, s.Destination, s.Size = source6, destination6, 61 },
		"size 83: want 84 to 1514":               func(s *Stream) { s.GRE, s.Size = outer4(&key), 83 },
		"GRE source invalid IP":                  func(s *Stream) { s.GRE = &GRE{} },
		"flows -1: want 1 to 2147483647":         func(s *Stream) { s.Flows = -1 },
		"from source port 65000 up":              func(s *Stream) { s.Source, s.Flows = netip.AddrPortFrom(source4.Addr(), 65_000), 537 },
		"from source address 255.255.255.254 up": func(s *Stream) { s.Source, s.Flows = netip.MustParseAddrPort("255.255.255.254:1"), 3*portsPerAddress },
		"rate -1: want up to 100000000":          func(s *Stream) { s.Rate = -1 },
	} {
		err := stream(change).Check()
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("error %v, want one line with %q", err, want)
		}
	}
}

func TestParseKernel(t *testing.T) {
	t.Parallel()
	sent, err := parseKernel("Params: count 0\nResult: OK: 1000123(c998000+d2123) usec, 250000 (60byte,0frags)\n  249969pps 119Mb/sec\n")
	if want := (Sent{250_000, 1_000_123 * time.Microsecond}); err != nil || sent != want {
		t.Errorf("%v, %v; want %v", sent, err, want)
	}
	if _, err := parseKernel("Result: Idle\n"); err == nil {
		t.Error("no error without a result")
	}
}

// The kernel's pktgen sends what it is told, and no more than it can.
func TestKernel(t *testing.T) {
	testutil.RequireRoot(t)
	s := stream(func(s *Stream) { s.Protocol = TCPSYN })
	if _, err := s.RunKernel(t.Context(), Outlet{Device: "lo"}, quiet); err == nil || !strings.Contains(err.Error(), "UDP") {
		t.Errorf("a SYN: error %v", err)
	}
	s = streams()["udp6"]
	if _, err := s.RunKernel(t.Context(), Outlet{Device: "lo"}, quiet); err == nil || !strings.Contains(err.Error(), "wants 78 to 1514") {
		t.Errorf("too short: error %v", err)
	}
	if !HasKernel() { // and its module is not for a test to load
		if _, err := streams()["udp"].RunKernel(t.Context(), Outlet{Device: "lo"}, quiet); err == nil || !strings.Contains(err.Error(), "modprobe pktgen") {
			t.Errorf("without pktgen: error %v", err)
		}
		return
	}
	near, far := pair(t)
	for _, name := range []string{"udp", "udp6-largest"} {
		s := streams()[name]
		tap := far.NewTap(t, "eth0")
		sent, err := s.RunKernel(t.Context(), Outlet{Netns: near.Path(), Device: "eth0"}, quiet)
		if err != nil || sent.Frames == 0 || sent.Elapsed == 0 {
			t.Fatalf("%s: sent %+v, %v", name, sent, err)
		}
		ports := map[string]bool{}
		for range 3 * s.Flows {
			p := tap.Await(t, name, func(gopacket.Packet) bool { return true })
			if len(p.Data()) != s.Size || !bytes.Equal(p.Data()[:14], s.want(t, 0)[:14]) {
				t.Fatalf("%s: got %x", name, p.Data())
			}
			ports[p.TransportLayer().TransportFlow().Src().String()] = true
		}
		if len(ports) != s.Flows {
			t.Errorf("%s: flows from ports %v, want %d", name, ports, s.Flows)
		}
	}
}
