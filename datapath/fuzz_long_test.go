package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/internal/testutil"
	"github.com/ebpnet/ebpnet/loader"
)

// Environment variables of TestFuzzInvariants: the number of frames, and the
// seed (`make fuzz-long`).
const (
	framesVariable = "EBPNET_FUZZ_FRAMES"
	seedVariable   = "EBPNET_FUZZ_SEED"
	fewFrames      = 40_000 // for make test
	defaultSeed    = 13
	faultsShown    = 10
)

func number(t *testing.T, variable string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 0, 64)
	if err != nil {
		t.Fatalf("%s: %v", variable, err)
	}
	return n
}

// TestFuzzInvariants sends golden packets with a few changes to every program
// that receives frames of others, and checks the output against the tables: see
// judge. The seed alone determines the frames. The output also depends on the
// flows that earlier frames have opened, and on the time.
func TestFuzzInvariants(t *testing.T) {
	testutil.RequireRoot(t)
	frames, seed := number(t, framesVariable, fewFrames), number(t, seedVariable, defaultSeed)
	t.Logf("%d frames, seed %d (%s, %s)", frames, seed, framesVariable, seedVariable)
	for i, kind := range []struct {
		name   string
		change func(*Wanted)
	}{
		{"plain endpoints", func(w *Wanted) { withForms(w); withXDP(w) }},
		{"trunks", func(w *Wanted) { withForms(w); withShared(w); withXDP(w) }},
	} {
		t.Run(kind.name, func(t *testing.T) {
			w := newWorld(t, loadPinned)
			kind.change(&w.wanted)
			remember(t, w)
			f := newFuzzer(t, w, rand.New(rand.NewPCG(seed, uint64(i))))
			start := time.Now()
			f.run(t, frames/2)
			took := time.Since(start)
			t.Logf("%d frames in %v, %.0f a second; %v", frames/2, took.Round(time.Millisecond), float64(frames/2)/took.Seconds(), f.outcomes)
			for _, hook := range fuzzed {
				if f.left[hook] == 0 {
					t.Errorf("no packet left %s", nameOf(hook))
				}
			}
		})
	}
}

// fuzzed are the programs that receive frames of others.
var fuzzed = []loader.Hook{
	loader.FromEndpoint, loader.FromUplink, loader.FromLoopback, loader.ToUplink, loader.ToTunnel, loader.FromHost, earlyHook,
}

func nameOf(h loader.Hook) string {
	return map[loader.Hook]string{
		loader.FromEndpoint: "from_endpoint", loader.FromUplink: "from_uplink", loader.FromLoopback: "from_loopback",
		loader.ToUplink: "to_uplink", loader.ToTunnel: "to_tunnel", loader.FromHost: "from_host", earlyHook: "xdp_uplink",
	}[h]
}

// fuzzer makes frames and checks the output.
type fuzzer struct {
	w        *world
	rnd      *rand.Rand
	judge    *judge
	seeds    []row
	words    [][]byte // values for fields of frames: addresses, ports and others
	programs map[loader.Hook]*ebpf.Program
	watched  map[string]*copies
	request  testRun
	context  []byte
	after    []byte
	out      []byte
	left     map[loader.Hook]int
	outcomes map[string]int
	faults   map[string]int
}

func newFuzzer(t *testing.T, w *world, rnd *rand.Rand) *fuzzer {
	t.Helper()
	f := &fuzzer{
		w: w, rnd: rnd, judge: w.judge(), programs: map[loader.Hook]*ebpf.Program{earlyHook: w.XDP}, watched: map[string]*copies{},
		context: make([]byte, skbSize), after: make([]byte, skbSize), out: make([]byte, mostData+extraData),
		left: map[loader.Hook]int{}, outcomes: map[string]int{}, faults: map[string]int{},
	}
	for _, hook := range fuzzed[:len(fuzzed)-1] {
		f.programs[hook] = w.program(hook)
	}
	for _, g := range append(groups(), xdpGroups()...) {
		for _, r := range g.rows(t) {
			if f.programs[r.hook] != nil && len(r.in) < mostData {
				r.name = g.name + "/" + r.name
				f.seeds = append(f.seeds, r)
			}
		}
	}
	for _, h := range append(locals(), remote, remoteClient, website, uplink, peer, nobody, gatewayOf(openNet), trunk, otherTrunk) {
		f.words = append(f.words, h.mac[:])
		if h.ip4.IsValid() {
			f.words = append(f.words, h.ip4.AsSlice(), h.ip6.AsSlice())
		}
	}
	f.words = append(f.words, broadcastMAC[:], []byte{8, 0}, []byte{8, 6}, []byte{0x86, 0xdd}, []byte{0x81, 0}, []byte{0x65, 0x58},
		[]byte{0}, []byte{1}, []byte{2}, []byte{6}, []byte{17}, []byte{41}, []byte{44}, []byte{47}, []byte{58}, []byte{60}, []byte{64}, []byte{255},
		[]byte{0, 0}, []byte{0xff, 0xff}, []byte{0x20, 0}, []byte{0x40, 0}, []byte{0, 1}, []byte{0, 53}, []byte{0, 67}, []byte{0, 68}, []byte{0, 80},
		make([]byte, 4), make([]byte, 16), []byte{127, 0, 0, 1}, []byte{224, 0, 0, 1}, []byte{1, 2, 3, 4}, []byte{5, 6, 7, 8})
	for _, e := range locals() {
		f.watched[e.device] = newCopies(t, w, "c-"+e.device)
	}
	return f
}

// copies captures the flooded frames that an endpoint's device receives.
type copies struct {
	fd  int
	buf []byte
}

func newCopies(t *testing.T, w *world, device string) *copies {
	t.Helper()
	c := &copies{-1, make([]byte, 1<<16)}
	var err error
	w.containers.Do(func() {
		var dev *net.Interface
		if dev, err = net.InterfaceByName(device); err != nil {
			return
		}
		if c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
			return
		}
		err = errors.Join(
			unix.SetsockoptInt(c.fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
			unix.Bind(c.fd, &unix.SockaddrLinklayer{Protocol: bits.ReverseBytes16(unix.ETH_P_ALL), Ifindex: dev.Index}),
		)
	})
	if c.fd >= 0 {
		t.Cleanup(func() { _ = unix.Close(c.fd) }) // an error of Close does not matter here
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// each calls f for every captured frame.
func (c *copies) each(t *testing.T, f func([]byte)) {
	t.Helper()
	for {
		n, err := unix.Read(c.fd, c.buf)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return
		case err != nil:
			t.Fatal(err)
		}
		f(c.buf[:n])
	}
}

// framesAtOnce is the number of frames between two checks of the copies.
const framesAtOnce = 256

func (f *fuzzer) run(t *testing.T, frames uint64) {
	for sent := uint64(0); sent < frames; sent += framesAtOnce {
		f.w.ns.Do(func() {
			for range framesAtOnce {
				f.one(t)
			}
		})
		for device, c := range f.watched {
			c.each(t, func(frame []byte) {
				if err := f.judge.copyFault(device, frame); err != nil {
					f.fail(t, fmt.Sprintf("at %s: %v", device, err), "%x", frame)
				}
			})
		}
	}
	for what, n := range f.faults {
		t.Logf("%d times: %s", n, what)
	}
}

// fail reports each kind of failure once.
func (f *fuzzer) fail(t *testing.T, what, format string, args ...any) {
	f.faults[what]++
	if f.faults[what] == 1 && len(f.faults) <= faultsShown {
		t.Errorf("%s: %s", what, fmt.Sprintf(format, args...))
	}
	if f.faults[what] == 1 && len(f.faults) > faultsShown {
		t.Fail()
	}
}

// one sends a frame. Sometimes it first sends the frames that precede a golden
// packet.
func (f *fuzzer) one(t *testing.T) {
	r := f.seeds[f.rnd.IntN(len(f.seeds))]
	v := verdict{hook: r.hook, device: r.device, in: r.in, skb: r.skb}
	if f.rnd.IntN(4) == 0 {
		for _, s := range r.before {
			if f.programs[s.hook] != nil {
				f.try(t, verdict{hook: s.hook, device: s.device, in: s.frame, skb: s.skb}, r.name+", before")
			}
		}
	}
	switch f.rnd.IntN(16) {
	case 0: // through another device
		v.device = locals()[f.rnd.IntN(len(locals()))].device
		if v.hook != loader.FromEndpoint {
			v.device = r.device
		}
	case 1: // from the other side of the host
		v.hook, v.device = loader.FromUplink, "up0"
	case 2:
		v.hook, v.device = loader.FromEndpoint, locals()[f.rnd.IntN(len(locals()))].device
	}
	if v.hook == loader.FromUplink && v.skb == (skbContext{}) && f.rnd.IntN(2) == 0 {
		v.hook = earlyHook
	}
	if v.hook != loader.ToTunnel {
		v.skb.mark = 0 // frames from outside have no mark
	}
	v.in = f.changed(v.in)
	f.try(t, v, r.name)
}

// changed changes a few fields of a frame, and usually corrects its lengths and
// checksums.
func (f *fuzzer) changed(frame []byte) []byte {
	out := slices.Clone(frame)
	for range f.rnd.IntN(4) {
		if len(out) < 2 {
			break
		}
		at := f.rnd.IntN(min(len(out), 128))
		switch f.rnd.IntN(8) {
		case 0, 1:
			out[at] = byte(f.rnd.Uint32())
		case 2:
			out[at] ^= 1 << f.rnd.IntN(8)
		case 3, 4, 5:
			copy(out[at:], f.words[f.rnd.IntN(len(f.words))])
		case 6:
			out = out[:at+1]
		case 7:
			out = slices.Insert(out, at, make([]byte, f.rnd.IntN(24))...)
		}
	}
	if f.rnd.IntN(8) > 0 {
		mend(out, f.rnd.IntN(2) == 0)
	}
	return out[:min(len(out), mostData)]
}

// mend corrects the checksums of a frame and of the frame inside it. If lengths
// is set, it also corrects their lengths.
func mend(frame []byte, lengths bool) {
	h := headersOf(frame)
	if h.end == 0 {
		return
	}
	if inner, _ := h.within(frame); inner != nil {
		mend(inner, lengths)
	}
	if lengths {
		if h.ethertype == typeIPv4 {
			binary.BigEndian.PutUint16(frame[atIPLength:], uint16(len(frame)-atIP))
		} else {
			binary.BigEndian.PutUint16(frame[atIP6Length:], uint16(len(frame)-atL4v6))
		}
		h.end = len(frame)
		if h.protocol == protocolUDP && h.l4 != 0 && h.l4+8 <= len(frame) {
			binary.BigEndian.PutUint16(frame[h.l4+4:], uint16(len(frame)-h.l4))
		}
	}
	if h.ethertype == typeIPv4 {
		header := frame[atIP : atIP+int(frame[atIP]&0xf)*4]
		header[10], header[11] = 0, 0
		binary.BigEndian.PutUint16(header[10:], internetChecksum(header))
	}
	at, known := map[uint8]int{protocolTCP: 16, protocolUDP: 6, protoICMP: 2, protoICMPv6: 2}[h.protocol]
	if !known || h.l4 == 0 || h.fragment || h.end > len(frame) || h.l4+at+2 > h.end {
		return
	}
	message := frame[h.l4:h.end]
	if h.protocol == protocolUDP && message[6] == 0 && message[7] == 0 {
		return
	}
	message[at], message[at+1] = 0, 0
	var sum uint16
	if h.protocol == protoICMP {
		sum = internetChecksum(message)
	} else {
		b := slices.Concat(h.ip.AsSlice(), h.to.AsSlice())
		b = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(b, uint32(len(message))), uint32(h.protocol))
		sum = internetChecksum(append(b, message...))
	}
	if sum == 0 && h.protocol == protocolUDP {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(message[at:], sum)
}

// try runs a program on the frame and checks the output.
func (f *fuzzer) try(t *testing.T, v verdict, name string) {
	if !f.send(t, &v) {
		return
	}
	what := map[int]string{verdictPass: "passed", verdictShot: "dropped", verdictDirect: "sent"}[v.verdict]
	if what == "" {
		f.fail(t, fmt.Sprintf("%s: verdict %d", nameOf(v.hook), v.verdict), "%x", v.in)
		return
	}
	f.outcomes[what]++
	if v.verdict != verdictShot {
		f.left[v.hook]++
	}
	if err := f.judge.fault(v); err != nil {
		f.fail(t, fmt.Sprintf("%s: %v", nameOf(v.hook), err), "%s, by %s, %+v\nin  %x\nout %x (%s)", name, v.device, v.skb, v.in, v.frame, what)
	}
}

// send runs the program on the frame; false if the kernel refuses the frame.
func (f *fuzzer) send(t *testing.T, v *verdict) bool {
	if len(v.in) <= atIP || tooShort(v.in) {
		return false
	}
	p := f.programs[v.hook]
	size := len(f.context)
	clear(f.context)
	if v.hook == earlyHook {
		size = xdpSize
		binary.NativeEndian.PutUint32(f.context[xdpEnd:], uint32(len(v.in)))
		binary.NativeEndian.PutUint32(f.context[xdpIfindex:], f.w.ifindex["up0"])
	} else {
		binary.NativeEndian.PutUint32(f.context[skbIfindex:], f.w.ifindex[v.device])
		binary.NativeEndian.PutUint32(f.context[skbGSOSegs:], v.skb.segments)
		binary.NativeEndian.PutUint32(f.context[skbGSOSize:], v.skb.size)
		binary.NativeEndian.PutUint32(f.context[skbArrived:], v.skb.arrived)
		binary.NativeEndian.PutUint32(f.context[skbMark:], v.skb.mark)
	}
	f.request = testRun{
		program: uint32(p.FD()), size: uint32(len(v.in)), sizeOut: uint32(len(f.out)),
		frame: unsafe.Pointer(&v.in[0]), frameOut: unsafe.Pointer(&f.out[0]), repeat: 1,
		contextSize: uint32(size), contextOut: uint32(size),
		context: unsafe.Pointer(&f.context[0]), contextOutAt: unsafe.Pointer(&f.after[0]),
	}
	for {
		_, _, err := unix.Syscall(unix.SYS_BPF, progTestRun, uintptr(unsafe.Pointer(&f.request)), unsafe.Sizeof(f.request))
		if err == unix.EINTR { // a signal of the Go runtime
			continue
		}
		if err != 0 {
			f.fail(t, fmt.Sprintf("%s: %v", nameOf(v.hook), err), "%x", v.in)
			return false
		}
		break
	}
	runtime.KeepAlive(f)
	v.frame = f.out[:f.request.sizeOut]
	v.verdict = int(int32(f.request.verdict))
	if v.hook == earlyHook {
		v.mark = 0
		v.verdict = map[int]int{xdpDrop: verdictShot, xdpPass: verdictPass, xdpRedirect: verdictDirect}[v.verdict]
		return true
	}
	v.mark = binary.NativeEndian.Uint32(f.after[skbMark:])
	return true
}
