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
	raceFaults = 5 // faults to report
	// Interrupts of this length and interval widen each race.
	stallEvery = 100 * time.Microsecond
	stallCalls = 1000
	// The website's port of a talk is the endpoint's port plus this.
	talkDistance = 20000
)

// leg is a frame of a talk, with the allowed outputs.
type leg struct {
	program *ebpf.Program
	options *ebpf.RunOptions
	buffer  []byte
	sport   int // offset of the source port
	allowed []ends
}

// ends are the ends of a packet. Port 0 matches any port.
type ends struct{ from, to netip.AddrPort }

func (e ends) String() string { return fmt.Sprintf("%s to %s", e.from, e.to) }

func (e ends) match(h headers) bool {
	same := func(want netip.AddrPort, a netip.Addr, port uint16) bool {
		return want.Addr() == a && (want.Port() == 0 || want.Port() == port)
	}
	return same(e.from, h.ip, h.sport) && same(e.to, h.to, h.dport)
}

// leg makes a leg from a row's packet. The program runs repeat times per
// packet; each run gets the output of the run before.
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

// send runs the program. It returns an error if the output packet belongs to
// another talk.
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
	return got, 0, fmt.Errorf("output %s, want one of %v", out, l.allowed)
}

// talk is a packet and its reply, which belong to one flow. No other flow has
// the same ports, so each packet shows its flow on both sides of a translation.
type talk struct {
	ask, answer *leg
	// The source of a reply that opens a flow itself because its own flow has
	// ended.
	first netip.AddrPort
}

// exchange sends the packet, and the reply if the packet passes.
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

// talkOutside is a talk of an endpoint with the website.
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

// talkPublished is a talk of the website with a published port of alice.
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

// talkLinked is a talk of client with server, over their link.
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

// raceTalks has two CPUs exchange their talks for raceTime. Each CPU calls
// disturb before each exchange. Long interrupts stop both CPUs all the time.
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

// stall interrupts this thread often and for long, as if its virtual CPU were
// descheduled, until end is called. Meanwhile the other CPU ends and opens
// flows.
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
		return nil, fmt.Errorf("open a clock event for this thread: %w", err)
	}
	if err := unix.IoctlSetInt(event, unix.PERF_EVENT_IOC_SET_BPF, program.FD()); err != nil {
		return nil, errors.Join(fmt.Errorf("attach a program to the clock event: %w", err), unix.Close(event))
	}
	return func() { _ = unix.Close(event) }, nil
}

// checkCounts fails unless the counts match the existing flows, and all counts
// and entries are gone after all flows ended.
func (w *world) checkCounts(t *testing.T) {
	t.Helper()
	w.checkShares(t)
	must(t, w.FlushFlows(FlowFilter{}))
	w.checkShares(t)
	if n := w.indexed(t); n != 0 {
		t.Errorf("%d entries in the index after all flows ended", n)
	}
	err := eachBatch(w.Maps.PortCounts, func(cells []uint32, counts []uint32) {
		for i := range cells {
			if counts[i] != 0 {
				t.Errorf("cell %d of port_counts is %d after all flows ended", cells[i], int32(counts[i]))
			}
		}
	})
	must(t, err)
	// Mappings that remain have no users.
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
		t.Errorf("slots by state after all flows ended: %v", states)
	}
}
