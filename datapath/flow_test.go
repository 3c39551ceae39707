package datapath

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/ebpnet/ebpnet/bpf"
	"github.com/ebpnet/ebpnet/internal/testutil"
)

// send runs the program with the row's packet, and returns the verdict and the
// output packet.
func (w *world) send(t testing.TB, r row) (int, []byte) {
	t.Helper()
	return w.run(t, w.program(r.hook), r.device, r.in, r.skb)
}

// TestFlowsExpire checks that the kernel ends idle flows without any process:
// this process only reads the table.
func TestFlowsExpire(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	// Twice the precision of the time of last use.
	const timeout = 2 * time.Second
	w := newWorld(t, loadChanged(func(spec *ebpf.CollectionSpec) error {
		return setConstant(spec, bpf.EbpnetVarUdpNewTimeout, uint64(timeout.Nanoseconds()))
	}))
	idle := fromEndpoint("", alice, outgoing(alice, false, udp(1, 53)).frame(t))
	linked := fromEndpoint("", client, between(client, server, false, udp(1, 53)).frame(t))
	used := fromEndpoint("", bob, outgoing(bob, true, udp(2, 53)).frame(t))
	answered := fromEndpoint("", alice, outgoing(alice, true, udp(3, 53)).frame(t))
	answer := fromUplink("", incoming(true, udp(53, 3)).frame(t))
	tcpFlow := fromEndpoint("", alice, outgoing(alice, true, tcp(4, 80, "S")).frame(t))
	began := time.Now()
	for _, r := range []row{idle, linked, used, answered, answer, tcpFlow} {
		w.send(t, r)
	}
	if n := len(w.flows(t)); n != 5 {
		t.Fatalf("%d flows, want 5", n)
	}
	testutil.Eventually(t, "the end of the idle flows, after twice their timeout", func() bool {
		w.send(t, used)
		return time.Since(began) > 2*timeout && len(w.flows(t)) == 3
	})
	if left := w.indexed(t); left != 12 {
		t.Errorf("%d entries in the index for 3 masqueraded flows, want 12", left)
	}
	for _, f := range w.flows(t) {
		if f.From.Port() == 1 {
			t.Errorf("an idle flow still exists: %+v", f)
		}
	}
}

func (w *world) flows(t testing.TB) []Flow {
	t.Helper()
	flows, err := w.Flows(FlowFilter{})
	if err != nil {
		t.Fatal(err)
	}
	return flows
}

// indexed counts the entries of the index. A flow has two entries, and its
// mapping has two.
func (w *world) indexed(t testing.TB) int {
	t.Helper()
	n, err := countEntries[bpf.EbpnetFlowKey, bpf.EbpnetFlowRef](w.Maps.FlowIndex)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestBurstOfFlows opens many flows as fast as it can. None is refused. All
// end, also after this process has closed the programs.
func TestBurstOfFlows(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	const timeout, burst = 500 * time.Millisecond, 5000
	w := newWorld(t, loadChanged(func(spec *ebpf.CollectionSpec) error {
		return setConstant(spec, bpf.EbpnetVarUdpNewTimeout, uint64(timeout.Nanoseconds()))
	}))
	for i := range uint16(burst) {
		// Both endpoints use the same ports, so half of the flows get another
		// port.
		for _, from := range []host{alice, bob} {
			verdict, _ := w.send(t, fromEndpoint("", from, outgoing(from, false, udp(1024+i, 53)).frame(t)))
			if verdict != verdictDirect {
				t.Fatalf("verdict %d for flow %d: %v", verdict, i, w.counters(t).since(counters{}).Drops)
			}
		}
	}
	if err := w.Programs.Close(); err != nil {
		t.Fatal(err)
	}
	testutil.Eventually(t, "the end of all flows of the burst", func() bool { return w.indexed(t) == 0 })
}

func TestAnswersFollowTheChosenPort(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	w := newWorld(t, loadPinned)
	for _, v6 := range []bool{false, true} {
		for _, l4 := range []transport{tcp(40000, 80, "S"), udp(40000, 53), sctp(40000, 36), echo(v6, false, 40000)} {
			first, second := outgoing(alice, v6, l4), outgoing(bob, v6, l4)
			w.send(t, fromEndpoint("", alice, first.frame(t)))
			_, out := w.send(t, fromEndpoint("", bob, second.frame(t)))
			chosen := binary.BigEndian.Uint16(out[identifierAt(second):])
			want := incoming(v6, reversed(v6, l4, 40000))
			answer := fromUplink("", incoming(v6, reversed(v6, l4, chosen)).frame(t)).delivered(bob, translated(want, bob).frame(t))
			// A router's error about the masqueraded packet.
			c := icmpError{aboutIn: withIdentifier(masqueraded(second), chosen), aboutOut: second}
			c.aboutOut.ttl = c.aboutIn.ttl
			c.in = packet{from: routerMAC, to: uplinkMAC, src: peer.ip(v6), dst: uplink.ip(v6)}
			c.out = translated(c.in, bob)
			complained, translatedError := c.frames(t, problemTTL(v6), wholePacket)
			t.Run(l4.protocol.String()+second.dst.String(), func(t *testing.T) {
				answer.checkOnly(t, w)
				fromUplink("", want.frame(t)).delivered(alice, translated(want, alice).frame(t)).checkOnly(t, w)
				fromUplink("", complained).delivered(bob, translatedError).checkOnly(t, w)
			})
		}
	}
}

// checkOnly compares a row's verdict and output. It keeps the existing flows.
func (r row) checkOnly(t *testing.T, w *world) {
	t.Helper()
	verdict, out := w.send(t, r)
	if verdict != r.verdict || string(out) != string(r.out) {
		t.Errorf("verdict %d, packet %x\nwant    %d, packet %x", verdict, out, r.verdict, r.out)
	}
}

// TestHostKeepsItsPort checks that a connection of the host keeps a port that
// was translated, also when the original port is free again.
func TestHostKeepsItsPort(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	w := newWorld(t, loadPinned)
	for _, v6 := range []bool{false, true} {
		theirs := fromEndpoint("", alice, outgoing(alice, v6, tcp(40000, 80, "S")).frame(t))
		own := outgoing(uplink, v6, tcp(40000, 80, "S"))
		own.to = routerMAC
		w.send(t, theirs)
		w.send(t, fromUplink("", incoming(v6, tcp(80, 40000, "SA")).frame(t)))
		w.send(t, sentBy(t, alice, v6, tcp(40000, 80, "A")))
		_, out := w.send(t, toUplink("", own.frame(t)))
		chosen := binary.BigEndian.Uint16(out[identifierAt(own):])
		if chosen == 40000 {
			t.Fatal("the host kept an endpoint's port")
		}
		if err := w.FlushFlows(FlowFilter{Network: openNet, Addresses: []netip.Addr{alice.ip(v6)}}); err != nil {
			t.Fatal(err)
		}
		own.l4.flags = "A"
		moved := own
		moved.l4.sport = chosen
		toUplink("", own.frame(t)).rewritten(moved.frame(t)).checkOnly(t, w)

		back := incoming(v6, tcp(80, chosen, "A"))
		restored := back
		restored.l4.dport = 40000
		fromUplink("", back.frame(t)).rewritten(restored.frame(t)).checkOnly(t, w)

		c := icmpError{aboutIn: moved, aboutOut: own}
		c.in = packet{from: routerMAC, to: uplinkMAC, src: peer.ip(v6), dst: uplink.ip(v6)}
		c.out = c.in
		complained, translatedError := c.frames(t, problemTTL(v6), wholePacket)
		fromUplink("", complained).rewritten(translatedError).checkOnly(t, w)
		// An endpoint that uses the host's new port gets another port.
		taken := outgoing(bob, v6, tcp(chosen, 80, "S"))
		_, out = w.send(t, fromEndpoint("", bob, taken.frame(t)))
		if want := onAnotherPort(t, masqueraded(taken))(out); string(out) != string(want) {
			t.Errorf("packet %x\nwant %x", out, want)
		}
	}
}

// TestHostGoesFirst checks that the host's own packet wins a port from an
// unanswered flow of an endpoint. The flow ends, and the endpoint's next packet
// gets another port.
func TestHostGoesFirst(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	w := newWorld(t, loadPinned)
	for _, v6 := range []bool{false, true} {
		for _, l4 := range []transport{tcp(40000, 80, "S"), udp(40000, 53), echo(v6, false, 40000)} {
			t.Run(l4.protocol.String(), func(t *testing.T) {
				if err := w.FlushFlows(FlowFilter{}); err != nil {
					t.Fatal(err)
				}
				theirs, own := outgoing(alice, v6, l4), outgoing(uplink, v6, l4)
				own.to = routerMAC
				w.send(t, fromEndpoint("", alice, theirs.frame(t)))
				for range 2 {
					toUplink("", own.frame(t)).passed().checkUntouched(t, w)
				}
				flows := w.flows(t)
				if len(flows) != 1 || flows[0].Network != NetworkOutside || flows[0].TranslatedFrom.IsValid() || w.indexed(t) != 2 {
					t.Errorf("flows %+v, %d entries; want only the host's flow", flows, w.indexed(t))
				}
				_, out := w.send(t, fromEndpoint("", alice, theirs.frame(t)))
				if want := onAnotherPort(t, masqueraded(theirs))(out); string(out) != string(want) {
					t.Errorf("packet %x\nwant   %x", out, want)
				}
				toUplink("", own.frame(t)).passed().checkUntouched(t, w)
			})
		}
	}
}

// checkUntouched is checkOnly for a packet that passes unchanged.
func (r row) checkUntouched(t *testing.T, w *world) {
	t.Helper()
	withOutput(r, r.in).checkOnly(t, w)
}
