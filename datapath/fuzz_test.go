package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/bpf"
	"github.com/ebpnet/ebpnet/loader"
)

// entrance is a hook and device where the fuzzer sends packets, with the
// possible verdicts.
type entrance struct {
	hook     loader.Hook
	device   string
	verdicts []int
}

var entrances = []entrance{
	{loader.FromEndpoint, alice.device, []int{verdictShot, verdictDirect}},
	{loader.FromEndpoint, client.device, []int{verdictShot, verdictDirect}},
	{loader.FromEndpoint, insider.device, []int{verdictShot, verdictDirect}},
	{loader.FromHost, "ebpnet1", []int{verdictShot, verdictDirect}},
	{loader.FromUplink, "up0", []int{verdictPass, verdictShot, verdictDirect}},
	{loader.FromLoopback, "lo", []int{verdictPass, verdictShot, verdictDirect}},
	{loader.ToGateway, "ebpnet0", []int{verdictPass, verdictShot}},
	{loader.ToUplink, "up0", []int{verdictPass, verdictShot}},
	{loader.ToTunnel, "ebpnet0", []int{verdictPass, verdictShot, verdictDirect}},
	{loader.FromEndpoint, trunk.device, []int{verdictShot, verdictDirect}},
}

// The most bytes that a program can add to a frame: IPv6 and GRE with all its
// fields in front of the Ethernet header. A neighbor advertisement can also be
// longer than its solicitation.
const (
	mostAdded    = 40 + 16 + atIP
	answerLength = atL4v6 + 32
	fuzzIndex    = 256
	// The largest frame that a test run surely accepts: a page minus the
	// kernel's overhead.
	mostData = 3000
)

// FuzzPrograms runs every program on arbitrary frames, starting from the golden
// ones. A run returns one of the program's verdicts, the output is a valid
// frame and passes judge, and the number of flows stays in bounds.
func FuzzPrograms(f *testing.F) {
	w := newWorld(f, loadChanged(func(spec *ebpf.CollectionSpec) error {
		spec.Maps[bpf.EbpnetMapFlowIndex].MaxEntries = fuzzIndex
		return nil
	}))
	withForms(&w.wanted)
	withShared(&w.wanted)
	remember(f, w)
	opened(closedNet)(f, w)
	j := w.judge()
	for _, g := range groups() {
		for _, r := range g.rows(f) {
			f.Add(uint8(r.entrance()), uint16(r.skb.segments), r.skb.mark, r.in)
		}
	}
	f.Fuzz(func(t *testing.T, by uint8, segments uint16, mark uint32, frame []byte) {
		e := entrances[int(by)%len(entrances)]
		if len(frame) > mostData {
			t.Skip("larger than the limit of a test run")
		}
		skb := skbContext{segments: uint32(segments), size: uint32(min(segments, 1)), mark: mark}
		o, err := w.try(w.program(e.hook), e.device, frame, skb)
		if errors.Is(err, unix.EINVAL) && tooShort(frame) {
			t.Skip("shorter than the limit of a test run")
		}
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(e.verdicts, o.verdict) {
			t.Errorf("verdict %d, want one of %v", o.verdict, e.verdicts)
		}
		out := o.frame
		if len(out) < atIP || len(out) > max(len(frame)+mostAdded, answerLength) {
			t.Errorf("a frame of %d bytes became %d", len(frame), len(out))
		}
		if o.verdict == verdictDirect {
			if err := wellFormed(out, segments > 0); err != nil {
				t.Errorf("%v: %x", err, out)
			}
		}
		if err := j.fault(verdict{e.hook, e.device, frame, skb, o}); err != nil {
			t.Errorf("%v: %x", err, out)
		}
		if n := w.indexed(t); n > fuzzIndex {
			t.Errorf("%d entries in an index of size %d", n, fuzzIndex)
		}
	})
}

// entrance returns the index of the entrance that is equal or similar to the
// row's.
func (r row) entrance() int {
	i := slices.IndexFunc(entrances, func(e entrance) bool { return e.hook == r.hook && e.device == r.device })
	if i < 0 {
		i = slices.IndexFunc(entrances, func(e entrance) bool { return e.hook == r.hook })
	}
	return i
}

// tooShort reports whether the kernel refuses a test run with a frame because
// it is too short: net/bpf/test_run.c.
func tooShort(frame []byte) bool {
	if len(frame) <= atIP {
		return true
	}
	switch binary.BigEndian.Uint16(frame[atEthertype:]) {
	case unix.ETH_P_IP:
		return len(frame) < atL4
	case unix.ETH_P_IPV6:
		return len(frame) < atL4v6
	}
	return false
}

// wellFormed returns an error if an output frame is malformed.
func wellFormed(frame []byte, super bool) error {
	payload := frame[atIP:]
	switch ethertype := binary.BigEndian.Uint16(frame[atEthertype:]); ethertype {
	case unix.ETH_P_ARP:
		if len(payload) < 28 {
			return errors.New("truncated ARP")
		}
	case unix.ETH_P_IP:
		if len(payload) < 20 || payload[0]>>4 != 4 || payload[0]&0xf < 5 {
			return errors.New("bad IPv4 header")
		}
		if length := binary.BigEndian.Uint16(payload[2:]); !super && int(length) > len(payload) {
			return fmt.Errorf("IPv4 length %d, but the frame has %d", length, len(payload))
		}
	case unix.ETH_P_IPV6:
		if len(payload) < 40 || payload[0]>>4 != 6 {
			return errors.New("bad IPv6 header")
		}
		if length := binary.BigEndian.Uint16(payload[4:]); !super && int(length)+40 > len(payload) {
			return fmt.Errorf("IPv6 length %d, but the frame has %d", length, len(payload)-40)
		}
	default:
		return fmt.Errorf("ethertype %#04x forwarded", ethertype)
	}
	return nil
}
