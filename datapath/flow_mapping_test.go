package datapath

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/ebpnet/ebpnet/bpf"
	"github.com/ebpnet/ebpnet/internal/testutil"
)

// idleTooLong is a time after which every flow ends. The machine is up for
// longer when tests run.
const idleTooLong = 30 * time.Second

// age sets back the last use of the flows of a host, or only of those to one
// other host, and waits until they end.
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

// TestMappingOutlivesItsFlow checks that a mapping of an endpoint's port exists
// as long as any flow uses it, and no longer.
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
	another := newUplink // another host outside
	expect("alice keeps her port", goes(alice, website), 40000)
	chosen := goes(bob, website)
	if chosen == 40000 {
		t.Fatal("bob got alice's port")
	}
	expect("bob to a second host", goes(bob, peer), chosen)
	w.age(t, bob, v6, &website)
	expect("bob to a third host, after his first flow ended", goes(bob, another), chosen)
	expect("bob to the first host again", goes(bob, website), chosen)
	expect("alice to a second host", goes(alice, peer), 40000)

	back := incoming(v6, reversed(v6, l4, chosen))
	back.src = peer.ip(v6)
	own := translated(incoming(v6, reversed(v6, l4, 40000)), bob)
	own.src = back.src
	fromUplink("", back.frame(t)).delivered(bob, own.frame(t)).checkOnly(t, w)

	w.age(t, alice, v6, nil)
	expect("bob still has his port", goes(bob, peer), chosen)
	expect("client gets alice's port, which is free", goes(client, website), 40000)
	if err := w.FlushFlows(FlowFilter{}); err != nil {
		t.Fatal(err)
	}
	if n := w.indexed(t); n != 0 {
		t.Errorf("%d entries in the index without a flow", n)
	}
	w.changeFlows(t, bpf.EbpnetFlowStateFLOW_ENDED, func(f *bpf.EbpnetFlow) {
		t.Errorf("a slot is kept for an unused mapping: %+v", f)
	})
	expect("bob keeps his port, which is free", goes(bob, website), 40000)
	if err := w.FlushFlows(FlowFilter{}); err != nil {
		t.Fatal(err)
	}
}

// reversed is the reply to l4, if l4 was sent from another port.
func reversed(v6 bool, l4 transport, port uint16) transport {
	if l4.body != "" {
		return echo(v6, true, port)
	}
	return transport{protocol: l4.protocol, sport: l4.dport, dport: port, flags: "A"}
}

// TestIndistinguishableClients opens two flows to one server that differ only
// in the published port. Each client gets its own replies.
func TestIndistinguishableClients(t *testing.T) {
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
