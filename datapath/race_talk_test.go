package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/bpf"
)

const (
	raceTime   = 2 * time.Second
	raceFaults = 5 // shown
	// An interrupt of this length and distance widens each race.
	stallEvery = 100 * time.Microsecond
	stallCalls = 1000
	// The website's port in a talk lies so far above the endpoint's.
	talkDistance = 20000
)

// leg is a frame of a talk, and what may come of it.
type leg struct {
	program *ebpf.Program
	options *ebpf.RunOptions
	buffer  []byte
	sport   int // offset of the source port
	allowed []ends
}

// ends are the ends of a packet. Port 0 stands for any port.
type ends struct{ from, to netip.AddrPort }

func (e ends) String() string { return fmt.Sprintf("%s to %s", e.from, e.to) }

func (e ends) match(h headers) bool {
	same := func(want netip.AddrPort, a netip.Addr, port uint16) bool {
		return want.Addr() == a && (want.Port() == 0 || want.Port() == port)
	}
	return same(e.from, h.ip, h.sport) && same(e.to, h.to, h.dport)
}

// leg gives the leg of a packet that comes in by a row. Repeat is how often the
// program runs with it: each time with what the time before has made of it.
func (w *world) leg(t testing.TB, r func(string, []byte) row, p packet, repeat uint32, allowed ...ends) *leg {
	t.Helper()
	if repeat > 1 {
		p.ttl = 255
	}
	in := r("", p.frame(t))
	l := &leg{program: w.program(in.hook), options: w.options(in.device, in.in, in.skb), sport: identifierAt(p), allowed: allowed}
	l.options.Repeat = repeat
	l.buffer = l.options.DataOut
	return l
}

// send runs the program. It gives an error if the packet that comes out is that
// of another talk.
func (l *leg) send() (got headers, verdict int, err error) {
	l.options.DataOut = l.buffer
	status, err := l.program.Run(l.options)
	if err != nil {
		return got, 0, err
	}
	got = headersOf(l.options.DataOut)
	for _, e := range l.allowed {
		if e.match(got) {
			return got, int(int32(status)), nil
		}
	}
	out := ends{netip.AddrPortFrom(got.ip, got.sport), netip.AddrPortFrom(got.to, got.dport)}
	return got, 0, fmt.Errorf("%s comes out, want one of %v", out, l.allowed)
}

// talk is a packet and its answer. Both are of one flow. No other flow has the
// same ports, so that each packet tells its flow on both sides of a translation.
type talk struct {
	ask, answer *leg
	// From where an answer leaves as the first packet of a flow, if its own flow
	// has ended.
	first netip.AddrPort
}

// exchange sends the packet, and the answer if the packet is let through.
func (k *talk) exchange() error {
	got, verdict, err := k.ask.send()
	if err != nil || verdict != verdictDirect {
		return err
	}
	binary.BigEndian.PutUint16(k.answer.options.Data[k.answer.sport+2:], got.sport)
	if k.first.IsValid() {
		k.answer.allowed = append(k.answer.allowed[:2], ends{k.first, netip.AddrPortFrom(got.ip, got.sport)})
	}
	_, _, err = k.answer.send()
	return err
}

func by(h host) func(string, []byte) row {
	return func(name string, in []byte) row { return fromEndpoint(name, h, in) }
}

// talkOutside has an endpoint ask the website from a port.
func (w *world) talkOutside(t testing.TB, h host, v6 bool, port uint16, repeat uint32) *talk {
	t.Helper()
	website, inside, outside := netip.AddrPortFrom(website.ip(v6), port+talkDistance), h.ip(v6), uplink.ip(v6)
	if h.network == plainNet {
		outside = inside
	}
	asked, answered := outgoing(h, v6, udp(port, website.Port())), incoming(v6, udp(website.Port(), 0))
	answered.dst = outside
	at := func(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }
	answers := []ends{{website, at(inside, port)}, {website, at(outside, 0)}}
	return &talk{
		w.leg(t, by(h), asked, repeat, ends{at(outside, 0), website}, ends{at(inside, port), website}),
		w.leg(t, fromUplink, answered, repeat, answers...),
		netip.AddrPort{},
	}
}

// talkPublished has the website ask alice from a port at a published port.
func (w *world) talkPublished(t testing.TB, v6 bool, port uint16) *talk {
	t.Helper()
	const target = 53
	asked := incoming(v6, udp(port, dnsPort))
	answered := replying(reached(asked, alice, target), "")
	client, anybody := netip.AddrPortFrom(website.ip(v6), port), netip.AddrPortFrom(website.ip(v6), 0)
	inside, outside := netip.AddrPortFrom(alice.ip(v6), target), netip.AddrPortFrom(uplink.ip(v6), dnsPort)
	return &talk{
		w.leg(t, fromUplink, asked, 1, ends{anybody, inside}, ends{client, outside}),
		w.leg(t, by(alice), answered, 1, ends{outside, client}, ends{inside, anybody}),
		netip.AddrPortFrom(uplink.ip(v6), 0),
	}
}

// talkLinked has client ask server by their link.
func (w *world) talkLinked(t testing.TB, v6 bool, port uint16) *talk {
	t.Helper()
	asked := between(client, server, v6, udp(port, 53))
	one, other := netip.AddrPortFrom(client.ip(v6), port), netip.AddrPortFrom(server.ip(v6), 53)
	return &talk{
		w.leg(t, by(client), asked, 1, ends{one, other}),
		w.leg(t, by(server), replying(asked, ""), 1, ends{other, one}),
		netip.AddrPort{},
	}
}

// raceTalks has two CPUs exchange their talks for raceTime, and each call
// disturb before each exchange. Both are interrupted all the time.
func (w *world) raceTalks(t *testing.T, talks [2][]*talk, disturb func(cpu, n int) error) {
	t.Helper()
	var over atomic.Bool
	var exchanged [2]int
	w.race(t, 1, func(cpu, _ int) error {
		defer over.Store(true)
		restore, err := stall()
		if err != nil {
			return err
		}
		defer restore()
		var faults []error
		for began := time.Now(); !over.Load() && time.Since(began) < raceTime; exchanged[cpu]++ {
			n := exchanged[cpu]
			if err := disturb(cpu, n); err != nil {
				return err
			}
			if err := talks[cpu][n%len(talks[cpu])].exchange(); err != nil && len(faults) < raceFaults {
				faults = append(faults, err)
			}
		}
		return errors.Join(faults...)
	})
	t.Logf("%d and %d exchanges", exchanged[0], exchanged[1])
}

// stall has long interrupts come to this thread, as if its virtual CPU were
// descheduled, until end is called: another CPU ends and opens flows meanwhile.
func stall() (end func(), err error) {
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.PerfEvent, License: "GPL",
		Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R6, stallCalls),
			asm.FnKtimeGetNs.Call().WithSymbol("again"),
			asm.Sub.Imm(asm.R6, 1),
			asm.JNE.Imm(asm.R6, 0, "again"),
			asm.Mov.Imm(asm.R0, 0),
			asm.Return(),
		},
	})
	if err != nil {
		return nil, err
	}
	defer program.Close()
	clock := &unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_CPU_CLOCK, Sample: uint64(stallEvery.Nanoseconds())}
	event, err := unix.PerfEventOpen(clock, 0, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("have a clock interrupt this thread: %w", err)
	}
	if err := unix.IoctlSetInt(event, unix.PERF_EVENT_IOC_SET_BPF, program.FD()); err != nil {
		return nil, errors.Join(fmt.Errorf("have a program run at each interrupt: %w", err), unix.Close(event))
	}
	return func() { _ = unix.Close(event) }, nil
}

// checkCounts expects that the counts are those of the flows that are there, and
// that nothing is counted or known any more after the end of all flows.
func (w *world) checkCounts(t *testing.T) {
	t.Helper()
	w.checkShares(t)
	must(t, w.FlushFlows(FlowFilter{}))
	w.checkShares(t)
	if n := w.indexed(t); n != 0 {
		t.Errorf("%d entries in the index after the end of all flows", n)
	}
	err := eachBatch(w.Maps.PortCounts, func(cells []uint32, counts []uint32) {
		for i := range cells {
			if counts[i] != 0 {
				t.Errorf("cell %d of the ports counts %d after the end of all flows", cells[i], int32(counts[i]))
			}
		}
	})
	must(t, err)
	// What is left of mappings has no user.
	states := map[bpf.EbpnetFlowState]int{}
	err = eachBatch(w.Maps.Flows, func(_ []uint32, flows []bpf.EbpnetFlow) {
		for _, f := range flows {
			states[f.State]++
		}
	})
	must(t, err)
	delete(states, bpf.EbpnetFlowStateFLOW_FREE)
	delete(states, bpf.EbpnetFlowStateFLOW_DEAD)
	if len(states) != 0 {
		t.Errorf("slots by state after the end of all flows: %v", states)
	}
}
