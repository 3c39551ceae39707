package datapath

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/ebpnet/ebpnet/bpf"
	"github.com/ebpnet/ebpnet/internal/testutil"
)

// idleTooLong is a time after which every flow ends; the clock has it behind
// it when tests run.
const idleTooLong = 30 * time.Second

// age has the flows of a host that go to another, or all of it, not used for
// too long, and waits for their end.
func (w *world) age(t *testing.T, from host, v6 bool, to *host) {
	t.Helper()
	meant := func(f *bpf.EbpnetFlow) bool {
		return f.Original.Src == addressOf(from.ip(v6)) && (to == nil || f.Original.Dst == addressOf(to.ip(v6)))
	}
	w.changeFlows(t, bpf.EbpnetFlowStateFLOW_HALF_OPEN, func(f *bpf.EbpnetFlow) {
		if meant(f) {
			f.Seen = 0
		}
	})
	testutil.Eventually(t, "the end of flows of "+from.device, func() bool {
		left := false
		err := w.EachFlow(func(_ uint32, f *bpf.EbpnetFlow) error {
			left = left || meant(f)
			return nil
		})
		return err == nil && !left
	})
}

// TestMappingOutlivesItsFlow shows that a port outside is an endpoint's port's
// as long as any flow by it lasts, and no longer.
func TestMappingOutlivesItsFlow(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	for name, of := range map[string]func(v6 bool) transport{
		"TCP":  func(bool) transport { return tcp(40000, 80, "S") },
		"UDP":  func(bool) transport { return udp(40000, 53) },
		"SCTP": func(bool) transport { return sctp(40000, 36) },
		"echo": func(v6 bool) transport { return echo(v6, false, 40000) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, loadSlots(16, map[string]time.Duration{
				bpf.EbpnetVarTcpTransitoryTimeout: idleTooLong, bpf.EbpnetVarUdpNewTimeout: idleTooLong, bpf.EbpnetVarIcmpTimeout: idleTooLong,
			}))
			for _, v6 := range []bool{false, true} {
				w.outlive(t, v6, of(v6))
			}
		})
	}
}

func (w *world) outlive(t *testing.T, v6 bool, l4 transport) {
	goes := func(from, to host) (port uint16) {
		t.Helper()
		p := outgoing(from, v6, l4)
		p.dst = to.ip(v6)
		verdict, out := w.send(t, fromEndpoint("", from, p.frame(t)))
		if verdict != verdictDirect {
			t.Fatalf("verdict %d", verdict)
		}
		return binary.BigEndian.Uint16(out[identifierAt(p):])
	}
	expect := func(what string, got, want uint16) {
		t.Helper()
		if got != want {
			t.Errorf("IPv6 %v, %s: port %d, want %d", v6, what, got, want)
		}
	}
	another := newUplink // some place outside
	expect("alice's own", goes(alice, website), 40000)
	chosen := goes(bob, website)
	if chosen == 40000 {
		t.Fatal("bob has alice's port")
	}
	expect("bob to a second place", goes(bob, peer), chosen)
	w.age(t, bob, v6, &website)
	expect("bob to a third place, his first flow ended", goes(bob, another), chosen)
	expect("bob to the first place again", goes(bob, website), chosen)
	expect("alice to a second place", goes(alice, peer), 40000)

	back := incoming(v6, reversed(v6, l4, chosen))
	back.src = peer.ip(v6)
	own := translated(incoming(v6, reversed(v6, l4, 40000)), bob)
	own.src = back.src
	fromUplink("", back.frame(t)).delivered(bob, own.frame(t)).checkOnly(t, w)

	w.age(t, alice, v6, nil)
	expect("bob's still", goes(bob, peer), chosen)
	expect("somebody else's, now that alice's is free", goes(client, website), 40000)
	if err := w.FlushFlows(FlowFilter{}); err != nil {
		t.Fatal(err)
	}
	if n := w.indexed(t); n != 0 {
		t.Errorf("%d entries in the index without a flow", n)
	}
	w.changeFlows(t, bpf.EbpnetFlowStateFLOW_ENDED, func(f *bpf.EbpnetFlow) {
		t.Errorf("a slot is kept for its mapping, which nobody uses: %+v", f)
	})
	expect("bob's own, now that nobody has it", goes(bob, website), 40000)
	if err := w.FlushFlows(FlowFilter{}); err != nil {
		t.Fatal(err)
	}
}

// reversed is what answers l4 by another port than its own.
func reversed(v6 bool, l4 transport, port uint16) transport {
	if l4.body != "" {
		return echo(v6, true, port)
	}
	return transport{protocol: l4.protocol, sport: l4.dport, dport: port, flags: "A"}
}

// TestClientsThatLookTheSame opens two flows to one server that differ by the
// published port alone: each gets its own answers.
func TestClientsThatLookTheSame(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	w := newWorld(t, loadPinned)
	for _, v6 := range []bool{false, true} {
		first, second := incoming(v6, tcp(40000, webPort, "S")), incoming(v6, tcp(40000, alsoWebPort, "S"))
		w.send(t, fromUplink("", first.frame(t)))
		_, out := w.send(t, fromUplink("", second.frame(t)))
		chosen := binary.BigEndian.Uint16(out[identifierAt(second):])
		for _, c := range []struct {
			asked packet
			port  uint16
		}{{first, 40000}, {second, chosen}} {
			arrived := reached(c.asked, alice, 80)
			arrived.l4.sport = c.port
			answer := replying(arrived, "SA")
			fromEndpoint("", alice, answer.frame(t)).redirected(repliedOutside(answer, c.asked).frame(t)).checkOnly(t, w)
			next := c.asked
			next.l4.flags, arrived.l4.flags = "A", "A"
			fromUplink("", next.frame(t)).delivered(alice, arrived.frame(t)).checkOnly(t, w)
		}
	}
}
