package datapath

import (
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"

	"github.com/ebpnet/ebpnet/bpf"
	"github.com/ebpnet/ebpnet/internal/testutil"
)

// phaseRow is a row of the table that bpf/flow_phase.h draws.
type phaseRow struct {
	name string
	next []string // the next phase by column; "": the phase stays
}

// drawnPhases reads the table that bpf/flow_phase.h draws.
func drawnPhases(t testing.TB) (rows []phaseRow) {
	t.Helper()
	header, err := os.ReadFile("../bpf/flow_phase.h")
	must(t, err)
	drawn := regexp.MustCompile(`(?m)^ \* +(\d+) ([A-Z_]+) +\|(.*)\|(.*)$`).FindAllStringSubmatch(string(header), -1)
	for i, line := range drawn {
		if number, err := strconv.Atoi(line[1]); err != nil || number != i+1 {
			t.Fatalf("row %d has the number %s", i+1, line[1])
		}
		row := phaseRow{name: line[2]}
		for _, cell := range strings.Fields(line[3] + line[4]) {
			next := ""
			if cell != "." {
				number, err := strconv.Atoi(cell)
				if err != nil || number < 1 || number > len(drawn) {
					t.Fatalf("row %s: no phase has the number %s", row.name, cell)
				}
				next = drawn[number-1][2]
			}
			row.next = append(row.next, next)
		}
		rows = append(rows, row)
	}
	return rows
}

// phaseNumbers returns the phases by name, without PHASE_.
func phaseNumbers(t testing.TB) map[string]bpf.EbpnetFlowPhase {
	t.Helper()
	spec, err := bpf.LoadEbpnet()
	must(t, err)
	var phase *btf.Enum
	must(t, spec.Types.TypeByName("flow_phase", &phase))
	numbers := map[string]bpf.EbpnetFlowPhase{}
	for _, v := range phase.Values {
		numbers[strings.TrimPrefix(v.Name, "PHASE_")] = bpf.EbpnetFlowPhase(v.Value)
	}
	return numbers
}

// phaseEvents returns packets for each column of the table, in the notation of
// life.
func phaseEvents() [][]string {
	return [][]string{
		{"S", "SF"},
		{"", "A!", "SA!"},
		{"A", "SA"},
		{"F", "FA!"},
		{"FA"},
		{"R", "RA", "RF", "RS"},
		{"<", "<A", "<SA", "<S"},
		{"<F", "<FA"},
		{"<R", "<RA", "<RF"},
	}
}

// tcpConnection is a connection whose packets a test sends.
type tcpConnection struct {
	w        *world
	original func(transport) row
	reply    func(transport) row
	server   uint16
	port     uint16 // of the original side
	slot     uint32
}

// connections returns, for each family, a connection that alice opens to the
// outside, and one that the outside opens to her published port.
func (w *world) connections(t testing.TB) map[string]*tcpConnection {
	t.Helper()
	all := map[string]*tcpConnection{}
	for _, v6 := range []bool{false, true} {
		all[fmt.Sprintf("outward, IPv6 %v", v6)] = &tcpConnection{
			w: w, port: 3000, server: 80,
			original: func(l transport) row { return sentBy(t, alice, v6, l) },
			reply:    func(l transport) row { return fromUplink("", incoming(v6, l).frame(t)) },
		}
		all[fmt.Sprintf("inward, IPv6 %v", v6)] = &tcpConnection{
			w: w, port: 3001, server: webPort,
			original: func(l transport) row { return fromUplink("", incoming(v6, l).frame(t)) },
			reply: func(l transport) row {
				p := replying(reached(incoming(v6, tcp(l.dport, webPort, "")), alice, 80), l.flags)
				return fromEndpoint("", alice, p.frame(t))
			},
		}
	}
	return all
}

// send sends a packet in the notation of life.
func (c *tcpConnection) send(t testing.TB, packet string) {
	t.Helper()
	if flags, isReply := strings.CutPrefix(packet, "<"); isReply {
		c.w.send(t, c.reply(tcp(c.server, c.port, flags)))
		return
	}
	flags, guessed := strings.CutSuffix(packet, "!")
	l := tcp(c.port, c.server, flags)
	if guessed {
		l.ahead = 1 << 20
	}
	c.w.send(t, c.original(l))
}

// open opens the flow and finds its slot.
func (c *tcpConnection) open(t testing.TB) {
	t.Helper()
	c.send(t, "S")
	found := 0
	must(t, c.w.EachFlow(func(slot uint32, flow *bpf.EbpnetFlow) error {
		if networkOrder16(flow.Original.Sport) == c.port {
			c.slot = slot
			found++
		}
		return nil
	}))
	if found != 1 {
		t.Fatalf("%d flows from port %d", found, c.port)
	}
}

func (c *tcpConnection) flow(t testing.TB) (flow bpf.EbpnetFlow) {
	t.Helper()
	must(t, c.w.Maps.Flows.Lookup(c.slot, &flow))
	return flow
}

// put sets the phase of the flow, and the sequence number that the packets of
// send acknowledge.
func (c *tcpConnection) put(t testing.TB, phase bpf.EbpnetFlowPhase) {
	t.Helper()
	flow := c.flow(t)
	flow.Phase, flow.Sequence = phase, 2
	must(t, c.w.Maps.Flows.Put(c.slot, flow))
}

// TestFlowPhases sends each kind of packet in each phase. The next phase is that
// of the table that bpf/flow_phase.h draws.
func TestFlowPhases(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	rows, numbers, events := drawnPhases(t), phaseNumbers(t), phaseEvents()
	if len(rows) != len(numbers)-1 { // without PHASE_NONE
		t.Fatalf("%d phases are drawn, want %d", len(rows), len(numbers)-1)
	}
	for i, row := range rows {
		if number := numbers[row.name]; int(number) != i+1 || len(row.next) != len(events) {
			t.Fatalf("row %d is %s, which is phase %d, with %d columns", i+1, row.name, number, len(row.next))
		}
	}
	for name := range newSmallWorld(t).connections(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newSmallWorld(t).connections(t)[name]
			c.open(t)
			for _, row := range rows {
				for column, packets := range events {
					want := row.name
					if row.next[column] != "" {
						want = row.next[column]
					}
					for _, packet := range packets {
						c.put(t, numbers[row.name])
						c.send(t, packet)
						if got := c.flow(t).Phase; got != numbers[want] {
							t.Errorf("%s, %q: phase %d, want %d, %s", row.name, packet, got, numbers[want], want)
						}
					}
				}
			}
		})
	}
}

// TestRSTGivesNoSequence sends a RST of the reply side before the handshake is
// over. The original side may have chosen its sequence number, so this is not
// the number to acknowledge.
func TestRSTGivesNoSequence(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	for name := range newSmallWorld(t).connections(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newSmallWorld(t).connections(t)[name]
			c.open(t)
			for phase := bpf.EbpnetFlowPhasePHASE_NEW; phase < bpf.EbpnetFlowPhasePHASE_ESTABLISHED; phase++ {
				c.put(t, phase)
				before := c.flow(t).Sequence
				c.send(t, "<R")
				if got := c.flow(t).Sequence; got != before {
					t.Errorf("phase %d: sequence number %d, want %d", phase, got, before)
				}
			}
		})
	}
}

func newSmallWorld(t *testing.T) *world { return newWorld(t, loadSlots(64, nil)) }

// TestFlowPhasesOfOtherProtocols checks that other flows are new, and replied
// from the first reply on.
func TestFlowPhasesOfOtherProtocols(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	w := newSmallWorld(t)
	for _, c := range []struct{ out, answer transport }{
		{udp(2000, 53), udp(53, 2000)},
		{sctp(2001, 36), sctp(36, 2001)},
		{echo(false, false, 2002), echo(false, true, 2002)},
	} {
		out, in := sentBy(t, alice, false, c.out), fromUplink("", incoming(false, c.answer).frame(t))
		var got []bpf.EbpnetFlowPhase
		for _, r := range []row{out, out, in, in, out} {
			w.send(t, r)
			must(t, w.EachFlow(func(_ uint32, flow *bpf.EbpnetFlow) error {
				if flow.Original.Protocol == uint8(c.out.protocol) {
					got = append(got, flow.Phase)
				}
				return nil
			}))
		}
		const isNew, replied = bpf.EbpnetFlowPhasePHASE_NEW, bpf.EbpnetFlowPhasePHASE_REPLIED
		if want := []bpf.EbpnetFlowPhase{isNew, isNew, replied, replied, replied}; fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%v: phases %v, want %v", c.out.protocol, got, want)
		}
	}
}

// sides records what the two sides of a connection have sent since its SYN.
type sides struct {
	replied, handshaken bool
	fin, rst            [2]bool // of the original side, of the reply side
	refused             bool    // a RST of the reply side before the handshake
}

// note adds a packet. The RST of a side counts until the side's next packet.
func (s *sides) note(packet string) {
	side := 0
	flags, isReply := strings.CutPrefix(packet, "<")
	if isReply {
		side = 1
	}
	has := func(flag string) bool { return strings.Contains(flags, flag) }
	if flags == "S" && !isReply {
		*s = sides{}
		return
	}
	s.rst[side] = has("R")
	switch {
	case has("R"):
		s.refused = s.refused || isReply && !s.handshaken
		return
	case isReply:
		s.replied = true
	case has("A") && !has("!") && s.replied:
		s.handshaken = true
	}
	s.fin[side] = s.fin[side] || has("F")
}

// live reports whether the handshake is over and at least one side may still
// send.
func (s *sides) live() bool {
	return s.handshaken && s.fin != [2]bool{true, true} && s.rst == [2]bool{}
}

// TestFlowPhasesKeepWhatSidesSent sends random packets. A flow has the
// established timeout only while its connection is live by the record of sides.
// It has that timeout again after a reply and its acknowledgment, if the
// connection is still live.
func TestFlowPhasesKeepWhatSidesSent(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	const rounds, length = 400, 24
	packets := []string{"A!", "A", "A", "FA", "F", "R", "<A", "<A", "<SA", "<FA", "<R"}
	for name, c := range newSmallWorld(t).connections(t) {
		if strings.Contains(name, "true") {
			continue // the families share the table
		}
		c.open(t)
		random := rand.New(rand.NewPCG(13, uint64(c.port)))
		for range rounds {
			sent := []string{"S"}
			c.send(t, "S")
			var s sides
			for range length {
				packet := packets[random.IntN(len(packets))]
				// Most connections begin with a handshake.
				if begin := []string{"<SA", "A"}; len(sent) <= len(begin) && random.IntN(4) > 0 {
					packet = begin[len(sent)-1]
				}
				sent = append(sent, packet)
				c.send(t, packet)
				s.note(packet)
				phase := c.flow(t).Phase
				live := phase >= bpf.EbpnetFlowPhasePHASE_ESTABLISHED && phase <= bpf.EbpnetFlowPhasePHASE_CLOSING_REPLY
				if live && !s.live() {
					t.Fatalf("%s, %v: phase %d, which has the established timeout, after %+v", name, sent, phase, s)
				}
				shown := len(sent) > 2 && sent[len(sent)-2] == "<A" && packet == "A"
				if !live && s.live() && (shown || !s.refused) {
					t.Fatalf("%s, %v: phase %d, which does not have the established timeout, after %+v", name, sent, phase, s)
				}
			}
		}
	}
}

// TestNoFINIsLostUnderRaces has two CPUs send the FINs of the two sides at the
// same time. Then each flow is closed.
func TestNoFINIsLostUnderRaces(t *testing.T) {
	testutil.RequireRoot(t)
	w := newWorld(t, loadShares(16384, 65536))
	const first, rounds = 2000, 3000
	sent := func(port uint16, flags string) row { return sentBy(t, alice, false, tcp(port, 80, flags)) }
	answered := func(port uint16, flags string) row {
		return fromUplink("", incoming(false, tcp(80, port, flags)).frame(t))
	}
	var fins [2][rounds]row
	for i := range uint16(rounds) {
		for _, r := range []row{sent(first+i, "S"), answered(first+i, "SA"), sent(first+i, "A")} {
			w.send(t, r)
		}
		fins[0][i], fins[1][i] = sent(first+i, "FA"), answered(first+i, "FA")
	}
	w.race(t, rounds, func(cpu, round int) error {
		r := fins[cpu][round]
		_, err := w.program(r.hook).Run(w.options(r.device, r.in, r.skb))
		return err
	})
	closed := 0
	must(t, w.EachFlow(func(_ uint32, flow *bpf.EbpnetFlow) error {
		if flow.Phase == bpf.EbpnetFlowPhasePHASE_CLOSED {
			closed++
		}
		return nil
	}))
	if closed != rounds {
		t.Errorf("%d of %d flows are closed", closed, rounds)
	}
}
