package datapath

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/ebpnet/ebpnet/bpf"
	"github.com/ebpnet/ebpnet/internal/testutil"
	"github.com/ebpnet/ebpnet/loader"
)

// loadSlots returns a function that loads the programs with a small flow table,
// so that the sweep checks all flows within seconds. Timeouts are set by the
// names of their constants.
func loadSlots(slots uint32, timeouts map[string]time.Duration) func(testing.TB, loader.Config) *Tables {
	return loadChanged(func(spec *ebpf.CollectionSpec) error {
		spec.Maps[bpf.EbpnetMapFlows].MaxEntries = slots
		for name, timeout := range timeouts {
			if err := setConstant(spec, name, uint64(timeout.Nanoseconds())); err != nil {
				return err
			}
		}
		return setConstant(spec, bpf.EbpnetVarFlowSlots, slots)
	})
}

// life is the packets of one of alice's flows, and whether the flow then has
// its long timeout or its short one.
type life struct {
	name string
	// For TCP: the flags of each packet. "<" before them marks a packet from
	// outside. "!" after them marks an acknowledgment of data that was never
	// sent.
	packets []string
	long    bool
}

func lives() []life {
	return []life{
		{"SYN", []string{"S"}, false},
		{"SYN repeated", []string{"S", "S"}, false},
		{"SYN refused", []string{"S", "<RA"}, false},
		{"SYN and SYN+ACK", []string{"S", "<SA"}, false},
		{"handshake", []string{"S", "<SA", "A"}, true},
		{"handshake with a guessed acknowledgment", []string{"S", "<SA", "A!"}, false},
		{"simultaneous open", []string{"S", "<S", "SA", "<A"}, true},
		{"data from the middle of a connection", []string{"A", "<A", "A"}, true},
		{"FIN out", []string{"S", "<SA", "A", "FA", "<A"}, true},
		{"FIN in", []string{"S", "<SA", "A", "<FA", "A"}, true},
		{"FIN twice out", []string{"S", "<SA", "A", "FA", "FA"}, true},
		{"FIN of both", []string{"S", "<SA", "A", "FA", "<FA", "A"}, false},
		{"RST in", []string{"S", "<SA", "A", "<R"}, false},
		{"RST out", []string{"S", "<SA", "A", "R"}, false},
		{"RST in, and data in", []string{"S", "<SA", "A", "<R", "<A"}, true},
		{"RST in, and data out", []string{"S", "<SA", "A", "<R", "A"}, false},
		{"RST out, and data out", []string{"S", "<SA", "A", "R", "A"}, true},
		{"RST out, and data in", []string{"S", "<SA", "A", "R", "<A"}, false},
		{"RST of both, and data out", []string{"S", "<SA", "A", "R", "<R", "A"}, false},
		{"RST of both, and data of both", []string{"S", "<SA", "A", "R", "<R", "A", "<A"}, true},
		{"RST in before the handshake", []string{"S", "<SA", "<R", "A"}, false},
		{"RST out in place of the handshake", []string{"S", "<SA", "RA"}, false},
		{"FIN and handshake in one", []string{"S", "<SA", "FA"}, true},
		{"FIN in before the handshake", []string{"S", "<SA", "<FA", "A"}, true},
		{"FIN of both before the handshake", []string{"FA", "<FA", "A"}, false},
		{"FIN out, RST in, and data in", []string{"S", "<SA", "A", "FA", "<R", "<A"}, true},
		{"FIN out, RST in, and FIN in", []string{"S", "<SA", "A", "FA", "<R", "<FA"}, false},
		{"reopened", []string{"S", "<SA", "A", "FA", "<FA", "S"}, false},
		{"reopened, handshake", []string{"S", "<SA", "A", "FA", "<FA", "S", "<SA", "A"}, true},
		{"reopened after RST, handshake", []string{"S", "<SA", "A", "<R", "S", "<SA", "A"}, true},
	}
}

// TestTimesOfFlows checks which timeout each flow has. In one part, the long
// timeouts are longer than the test; in the other part, they are shorter than
// the short ones.
func TestTimesOfFlows(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	const slots = 128
	long := []string{bpf.EbpnetVarTcpEstablishedTimeout, bpf.EbpnetVarUdpEstablishedTimeout}
	short := []string{bpf.EbpnetVarTcpTransitoryTimeout, bpf.EbpnetVarUdpNewTimeout, bpf.EbpnetVarIcmpTimeout}
	for _, longEnd := range []bool{false, true} {
		t.Run(fmt.Sprintf("long timeouts end %v", longEnd), func(t *testing.T) {
			t.Parallel()
			// Twice the precision of the time of last use.
			const soon = 2 * time.Second
			timeouts := map[string]time.Duration{}
			for _, name := range long {
				timeouts[name] = map[bool]time.Duration{false: time.Hour, true: soon}[longEnd]
			}
			for _, name := range short {
				timeouts[name] = map[bool]time.Duration{false: soon, true: time.Hour}[longEnd]
			}
			w := newWorld(t, loadSlots(slots, timeouts))
			names, stay := map[uint16]string{}, map[uint16]bool{}
			for _, v6 := range []bool{false, true} {
				w.openLives(t, v6, longEnd, names, stay)
			}
			if n := len(w.flows(t)); n != len(names) {
				t.Fatalf("%d flows, want %d", n, len(names))
			}
			began := time.Now()
			var left map[uint16]bool
			testutil.Eventually(t, "the end of the flows whose timeout is over, after twice that time", func() bool {
				left = map[uint16]bool{}
				for _, f := range w.flows(t) {
					left[f.From.Port()] = true
				}
				return len(left) <= len(stay) && time.Since(began) > 2*soon
			})
			for port, name := range names {
				if left[port] != stay[port] {
					t.Errorf("%s: exists %v, want %v", name, left[port], stay[port])
				}
			}
		})
	}
}

// openLives opens a flow of alice for each life, and some flows of other
// protocols. It adds the name of each flow to names, and the flows that will
// stay to stay, by port.
func (w *world) openLives(t *testing.T, v6, longEnd bool, names map[uint16]string, stay map[uint16]bool) {
	port := uint16(2000)
	if v6 {
		port = 3000
	}
	note := func(name string, isLong bool) {
		names[port] = fmt.Sprintf("%s, IPv6 %v", name, v6)
		if isLong != longEnd {
			stay[port] = true
		}
		port++
	}
	for _, l := range lives() {
		for _, flags := range l.packets {
			if flags[0] == '<' {
				w.send(t, fromUplink("", incoming(v6, tcp(80, port, flags[1:])).frame(t)))
			} else {
				flags, guessed := strings.CutSuffix(flags, "!")
				l4 := tcp(port, 80, flags)
				if guessed {
					l4.ahead = 1 << 20
				}
				w.send(t, sentBy(t, alice, v6, l4))
			}
		}
		note(l.name, l.long)
	}
	for _, c := range []struct {
		name        string
		out, answer transport
		long        bool
	}{
		{"UDP", udp(port, 53), udp(53, port), true},
		{"SCTP", sctp(port+2, 36), sctp(36, port+2), true},
		{"echo", echo(v6, false, port+4), echo(v6, true, port+4), false},
	} {
		w.send(t, sentBy(t, alice, v6, c.out))
		w.send(t, fromUplink("", incoming(v6, c.answer).frame(t)))
		note(c.name+" with reply", c.long)
		unanswered := c.out
		unanswered.sport++
		if c.out.body != "" {
			unanswered = echo(v6, false, port)
		}
		w.send(t, sentBy(t, alice, v6, unanswered))
		note(c.name+" without reply", false)
	}
	for _, c := range livesInside() {
		for _, packet := range c.packets {
			asked := incoming(v6, udp(port, dnsPort))
			if packet == "<" {
				w.send(t, fromEndpoint("", alice, replying(reached(asked, alice, 53), "").frame(t)))
			} else {
				w.send(t, fromUplink("", asked.frame(t)))
			}
		}
		note("published UDP, "+c.name, c.long)
		for _, packet := range c.packets {
			asked := between(client, server, v6, udp(port, 53))
			if packet == "<" {
				w.send(t, fromEndpoint("", server, replying(asked, "").frame(t)))
			} else {
				w.send(t, fromEndpoint("", client, asked.frame(t)))
			}
		}
		note("linked UDP, "+c.name, c.long || c.name == "reply")
	}
}

// livesInside are UDP flows to endpoints. A source outside may be forged, so
// such flows wait for another packet after the reply. A neighbor cannot forge
// its source.
func livesInside() []life {
	return []life{
		{"no reply", []string{"", ""}, false},
		{"reply", []string{"", "<"}, false},
		{"reply and another packet", []string{"", "<", ""}, true},
	}
}

// TestPacketsThatKeepFlows sends packets about idle flows. Accepted packets
// keep their flows. ICMP errors and refused packets neither keep nor end them
// (RFC 4787 REQ-6 and REQ-12, RFC 5382 REQ-10, RFC 5508 REQ-6).
func TestPacketsThatKeepFlows(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	const timeout = 2 * time.Second
	w := newWorld(t, loadSlots(64, map[string]time.Duration{
		bpf.EbpnetVarUdpNewTimeout: timeout, bpf.EbpnetVarUdpEstablishedTimeout: timeout,
		bpf.EbpnetVarTcpEstablishedTimeout: time.Hour,
	}))
	open := func(port uint16) { w.send(t, sentBy(t, alice, false, udp(port, 53))) }
	complain := func(c icmpError) row {
		in, _ := c.frames(t, problemPort(false), wholePacket)
		return fromUplink("", in)
	}
	about := icmpErrorIn(false, website, udp(2001, 53))
	for port := uint16(2001); port <= 2004; port++ {
		open(port)
	}
	for _, flags := range []string{"S", "A"} {
		w.send(t, sentBy(t, alice, false, tcp(2010, 80, flags)))
		w.send(t, fromUplink("", incoming(false, tcp(80, 2010, "SA")).frame(t)))
	}
	began := time.Now()
	kept := map[uint16]row{
		2002: fromUplink("", incoming(false, udp(53, 2002)).frame(t)),
		2003: sentBy(t, alice, false, udp(2003, 53)),
	}
	idle := map[uint16]row{
		2001: complain(about),
		2004: fromUplink("", incoming(false, udp(54, 2004)).frame(t)),
	}
	refused := complain(icmpErrorIn(false, website, tcp(2010, 80, "A")))
	var left map[uint16]bool
	testutil.Eventually(t, "the end of the idle flows, after twice their timeout", func() bool {
		for _, r := range kept {
			w.send(t, r)
		}
		for _, r := range idle {
			w.send(t, r)
		}
		w.send(t, refused)
		left = map[uint16]bool{}
		for _, f := range w.flows(t) {
			left[f.From.Port()] = true
		}
		return time.Since(began) > 2*timeout && len(left) <= len(kept)+1
	})
	for port := range kept {
		if !left[port] {
			t.Errorf("the flow from port %d has ended, but it was used", port)
		}
	}
	for port := range idle {
		if left[port] {
			t.Errorf("the flow from port %d still exists, but it was not used", port)
		}
	}
	if !left[2010] {
		t.Error("an ICMP error has ended a connection")
	}
}
