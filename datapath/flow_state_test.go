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

// loadSlots gives a function that loads the programs with a table of few
// flows, round which the sweep goes in a second or few, and with timeouts by
// the names of their constants.
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

// life is what goes by in a flow of alice's, and whether it then has its long
// time or its short one.
type life struct {
	name string
	// Of TCP: the flags of each packet, behind < if it comes in, and before ! if
	// it acknowledges what was never sent.
	packets []string
	long    bool
}

func lives() []life {
	return []life{
		{"SYN", []string{"S"}, false},
		{"SYN repeated", []string{"S", "S"}, false},
		{"SYN refused", []string{"S", "<RA"}, false},
		{"SYN answered", []string{"S", "<SA"}, false},
		{"handshake", []string{"S", "<SA", "A"}, true},
		{"handshake by a guess", []string{"S", "<SA", "A!"}, false},
		{"both at once", []string{"S", "<S", "SA", "<A"}, true},
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
		{"RST of both, and data of both", []string{"S", "<SA", "A", "R", "<R", "A", "<A"}, false},
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

// TestTimesOfFlows shows which time a flow has by what went by in it: once
// where the long times are longer than the test, and once where they are
// shorter than the others.
func TestTimesOfFlows(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	const slots = 128
	long := []string{bpf.EbpnetVarTcpEstablishedTimeout, bpf.EbpnetVarUdpEstablishedTimeout}
	short := []string{bpf.EbpnetVarTcpTransitoryTimeout, bpf.EbpnetVarUdpNewTimeout, bpf.EbpnetVarIcmpTimeout}
	for _, longEnd := range []bool{false, true} {
		t.Run(fmt.Sprintf("long ones end %v", longEnd), func(t *testing.T) {
			t.Parallel()
			// Twice the precision with which the programs note that a flow is used.
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
			testutil.Eventually(t, "the end of the flows whose time is over, for twice their time", func() bool {
				left = map[uint16]bool{}
				for _, f := range w.flows(t) {
					left[f.From.Port()] = true
				}
				return len(left) <= len(stay) && time.Since(began) > 2*soon
			})
			for port, name := range names {
				if left[port] != stay[port] {
					t.Errorf("%s: there %v, want %v", name, left[port], stay[port])
				}
			}
		})
	}
}

// openLives opens a flow of alice's for each life, and some of other
// protocols; in names and stay it tells by their ports what they are and
// whether they stay.
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
		note(c.name+" answered", c.long)
		unanswered := c.out
		unanswered.sport++
		if c.out.body != "" {
			unanswered = echo(v6, false, port)
		}
		w.send(t, sentBy(t, alice, v6, unanswered))
		note(c.name+" not answered", false)
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
		note("linked UDP, "+c.name, c.long || c.name == "answered")
	}
}

// livesInside are of flows of UDP to endpoints. A source outside may be made
// up, so that those wait for another packet after the answer; a neighbor's may
// not.
func livesInside() []life {
	return []life{
		{"not answered", []string{"", ""}, false},
		{"answered", []string{"", "<"}, false},
		{"answered and gone on", []string{"", "<", ""}, true},
	}
}

// TestWhatKeepsFlows sends packets about idle flows: those that are let in keep
// them; ICMP errors, and what is not let in, neither keep nor end them (RFC 4787
// REQ-6 and REQ-12, RFC 5382 REQ-10, RFC 5508 REQ-6).
func TestWhatKeepsFlows(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	const timeout = 2 * time.Second
	w := newWorld(t, loadSlots(64, map[string]time.Duration{
		bpf.EbpnetVarUdpNewTimeout: timeout, bpf.EbpnetVarUdpEstablishedTimeout: timeout,
		bpf.EbpnetVarTcpEstablishedTimeout: time.Hour,
	}))
	open := func(port uint16) { w.send(t, sentBy(t, alice, false, udp(port, 53))) }
	complain := func(c complaint) row {
		in, _ := c.frames(t, problemPort(false), wholePacket)
		return fromUplink("", in)
	}
	about := complaintIn(false, website, udp(2001, 53))
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
	refused := complain(complaintIn(false, website, tcp(2010, 80, "A")))
	var left map[uint16]bool
	testutil.Eventually(t, "the end of the idle flows, for twice their time", func() bool {
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
			t.Errorf("the flow from port %d has ended, and was used", port)
		}
	}
	for port := range idle {
		if left[port] {
			t.Errorf("the flow from port %d is there, and was not used", port)
		}
	}
	if !left[2010] {
		t.Error("an ICMP error has ended a connection")
	}
}
