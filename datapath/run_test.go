package datapath

import (
	"encoding/binary"
	"maps"
	"testing"

	"github.com/cilium/ebpf"
)

// Offsets in struct __sk_buff, and its size, for a test run:
// include/uapi/linux/bpf.h.
const (
	skbSize       = 192
	skbType       = 4
	skbMark       = 8
	skbArrived    = 36
	skbIfindex    = 40
	skbTCIndex    = 44
	skbGSOSegs    = 164
	skbGSOSize    = 176
	extraData     = 256 // more than any program adds
	verdictPass   = -1
	verdictShot   = 2
	verdictDirect = 7 // TC_ACT_REDIRECT
)

// skbContext is the metadata of a packet for a test run.
type skbContext struct {
	segments, size uint32 // of a superframe
	arrived        uint32 // the device where the host received a forwarded packet
	mark           uint32
}

// outcome is the result of a program run.
type outcome struct {
	verdict int
	frame   []byte
	mark    uint32
}

// context returns the metadata for a test run with a packet at a device.
func (w *world) context(device string, c skbContext) []byte {
	context := make([]byte, skbSize)
	binary.NativeEndian.PutUint32(context[skbIfindex:], w.ifindex[device])
	binary.NativeEndian.PutUint32(context[skbGSOSegs:], c.segments)
	binary.NativeEndian.PutUint32(context[skbGSOSize:], c.size)
	binary.NativeEndian.PutUint32(context[skbArrived:], c.arrived)
	binary.NativeEndian.PutUint32(context[skbMark:], c.mark)
	return context
}

// options returns the options for a test run with a frame.
func (w *world) options(device string, frame []byte, c skbContext) *ebpf.RunOptions {
	return &ebpf.RunOptions{
		Data: frame, DataOut: make([]byte, len(frame)+extraData),
		Context: w.context(device, c), ContextOut: make([]byte, skbSize),
	}
}

// try runs a program on a frame at a device. It returns the output, or an error
// if the kernel refuses the frame.
func (w *world) try(p *ebpf.Program, device string, frame []byte, c skbContext) (outcome, error) {
	options := w.options(device, frame, c)
	after := options.ContextOut.([]byte)
	var verdict uint32
	var err error
	w.ns.Do(func() { verdict, err = p.Run(options) })
	return outcome{int(int32(verdict)), options.DataOut, binary.NativeEndian.Uint32(after[skbMark:])}, err
}

// run is try for frames that the kernel accepts.
func (w *world) run(t testing.TB, p *ebpf.Program, device string, frame []byte, c skbContext) (int, []byte) {
	t.Helper()
	o, err := w.try(p, device, frame, c)
	if err != nil {
		t.Fatalf("test run with frame %x: %v", frame, err)
	}
	return o.verdict, o.frame
}

// counters are all counters of the programs.
type counters struct {
	Drops     map[string]Counter
	Endpoints map[string]Traffic
	Networks  map[uint32]Traffic
	Tunnels   map[uint32]Traffic
}

func (w *world) counters(t testing.TB) counters {
	t.Helper()
	c := counters{map[string]Counter{}, map[string]Traffic{}, map[uint32]Traffic{}, map[uint32]Traffic{}}
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	drops, err := w.Drops()
	check(err)
	for _, d := range drops {
		c.Drops[d.Reason] = d.Counter
	}
	for _, e := range locals() {
		c.Endpoints[e.device], err = w.EndpointTraffic(e.id)
		check(err)
	}
	c.Networks, err = w.NetworkTraffic()
	check(err)
	for _, tunnel := range w.wanted.Tunnels {
		c.Tunnels[tunnel.ID], err = w.TunnelTraffic(tunnel.ID)
		check(err)
	}
	return c
}

func (c Counter) minus(o Counter) Counter { return Counter{c.Packets - o.Packets, c.Bytes - o.Bytes} }

func (t Traffic) minus(o Traffic) Traffic { return Traffic{t.Tx.minus(o.Tx), t.Rx.minus(o.Rx)} }

// since returns the counters minus those before, without zeros.
func (c counters) since(before counters) counters {
	d := counters{map[string]Counter{}, map[string]Traffic{}, map[uint32]Traffic{}, map[uint32]Traffic{}}
	for reason := range c.Drops {
		d.Drops[reason] = c.Drops[reason].minus(before.Drops[reason])
	}
	for name := range c.Endpoints {
		d.Endpoints[name] = c.Endpoints[name].minus(before.Endpoints[name])
	}
	for id := range c.Networks {
		d.Networks[id] = c.Networks[id].minus(before.Networks[id])
	}
	for id := range c.Tunnels {
		d.Tunnels[id] = c.Tunnels[id].minus(before.Tunnels[id])
	}
	maps.DeleteFunc(d.Drops, func(_ string, c Counter) bool { return c == Counter{} })
	maps.DeleteFunc(d.Endpoints, func(_ string, t Traffic) bool { return t == Traffic{} })
	none := func(_ uint32, t Traffic) bool { return t == Traffic{} }
	maps.DeleteFunc(d.Networks, none)
	maps.DeleteFunc(d.Tunnels, none)
	return d
}
