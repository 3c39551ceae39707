package datapath

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/ebpnet/ebpnet/bpf"
	"github.com/ebpnet/ebpnet/internal/testutil"
)

// reasonNumber returns the number of a drop reason in the programs.
func reasonNumber(t testing.TB, name string) uint32 {
	t.Helper()
	reasons, err := Reasons()
	if err != nil {
		t.Fatal(err)
	}
	for i, reason := range reasons {
		if reason == name {
			return uint32(i + 1) // 0 is REASON_NONE
		}
	}
	t.Fatalf("no reason %s", name)
	return 0
}

// restore writes a flow of another table.
func (w *world) restore(t testing.TB, f bpf.EbpnetFlow) uint32 {
	t.Helper()
	frame, err := binary.Append(make([]byte, headerSize), binary.NativeEndian, f)
	if err != nil {
		t.Fatal(err)
	}
	status, _, err := w.Programs.RestoreFlow.Test(frame)
	if err != nil {
		t.Fatal(err)
	}
	return status
}

// raw returns the entries of all flows.
func (w *world) raw(t testing.TB) []bpf.EbpnetFlow {
	t.Helper()
	var flows []bpf.EbpnetFlow
	err := w.EachFlow(func(_ uint32, f *bpf.EbpnetFlow) error {
		flows = append(flows, *f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return flows
}

// TestRestoredFlowsContinue copies flows of all kinds to another table. Their
// packets pass as before, and their mappings hold.
func TestRestoredFlowsContinue(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	old, w := newWorld(t, loadPinned), newWorld(t, loadSlots(64, nil))
	for _, v6 := range []bool{false, true} {
		query, answer := sentBy(t, alice, v6, udp(40000, 53)), answerTo(t, "", v6, udp(53, 40000), row{})
		elsewhere := outgoing(alice, v6, udp(40000, 53))
		elsewhere.dst = peer.ip(v6)
		asked := incoming(v6, tcp(40000, webPort, "S"))
		call := fromUplink("", asked.frame(t)).delivered(alice, reached(asked, alice, 80).frame(t))
		reply := replying(reached(asked, alice, 80), "SA")
		replied := fromEndpoint("", alice, reply.frame(t)).redirected(repliedOutside(reply, asked).frame(t))
		local := localCall(loopbackHost, v6, udp(40000, dnsPort))
		linked := fromEndpoint("", client, between(client, server, v6, udp(40000, 53)).frame(t))
		bobs := outgoing(bob, v6, udp(40000, 53))
		for _, r := range []row{
			query, answer, fromEndpoint("", alice, elsewhere.frame(t)), call, replied,
			fromLoopback("", local.frame(t)), linked, sentBy(t, alice, v6, echo(v6, false, 7)), sentBy(t, plain, v6, sctp(1, 36)),
		} {
			old.send(t, r)
		}
		_, out := old.send(t, fromEndpoint("", bob, bobs.frame(t)))
		chosen := binary.BigEndian.Uint16(out[identifierAt(bobs):])

		for range 2 { // the second time changes nothing
			for _, f := range old.raw(t) {
				if status := w.restore(t, f); status != 0 {
					t.Errorf("status %d for %+v", status, f)
				}
			}
		}
		compare := []cmp.Option{
			cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
			cmpopts.IgnoreFields(Flow{}, "Age", "Idle"), // of a different time
		}
		if diff := cmp.Diff(old.flows(t), w.flows(t), compare...); diff != "" {
			t.Errorf("flows (-old +new):\n%s", diff)
		}
		if was, is := old.indexed(t), w.indexed(t); was != is {
			t.Errorf("%d entries in the index, want %d", is, was)
		}
		answer.checkOnly(t, w)
		call.checkOnly(t, w)
		replied.checkOnly(t, w)
		bobs.dst = newUplink.ip(v6)
		moved := masqueraded(bobs)
		moved.l4.sport = chosen
		fromEndpoint("", bob, bobs.frame(t)).redirected(moved.frame(t)).checkOnly(t, w)

		for _, each := range []*world{old, w} {
			if err := each.FlushFlows(FlowFilter{}); err != nil {
				t.Fatal(err)
			}
			if n := each.indexed(t); n != 0 {
				t.Errorf("%d entries in the index after all flows ended", n)
			}
		}
	}
}

// TestRestoreIsRefused checks that a flow that conflicts with existing flows is
// not restored, and that no entry of it stays.
func TestRestoreIsRefused(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	old, w := newWorld(t, loadPinned), newWorld(t, loadSlots(2, nil))
	old.send(t, sentBy(t, alice, false, udp(40000, 53)))
	elsewhere := outgoing(alice, false, udp(40000, 53))
	elsewhere.dst = peer.ip4
	old.send(t, fromEndpoint("", alice, elsewhere.frame(t)))
	flows := old.raw(t)

	w.send(t, sentBy(t, bob, false, udp(40000, 53)))
	before := w.indexed(t)
	for _, f := range flows {
		if status := w.restore(t, f); status != reasonNumber(t, "ports_exhausted") {
			t.Errorf("status %d for a flow with the port of another flow", status)
		}
	}
	if n := w.indexed(t); n != before || len(w.flows(t)) != 1 {
		t.Errorf("%d entries and flows %+v after a refused flow, want %d entries", n, w.flows(t), before)
	}
	w.send(t, sentBy(t, bob, false, udp(40001, 53)))
	if status := w.restore(t, flows[0]); status != reasonNumber(t, "flow_table_full") {
		t.Errorf("status %d for a flow in a full table", status)
	}
	for name, run := range map[string]func([]byte) (uint32, []byte, error){
		"restore_flow": w.Programs.RestoreFlow.Test, "end_flows": w.Programs.EndFlows.Test,
	} {
		status, _, err := run(make([]byte, headerSize+1))
		if err != nil || status != reasonNumber(t, "malformed") {
			t.Errorf("%s with a short command: status %d, %v", name, status, err)
		}
	}
	if len(w.flows(t)) != 2 {
		t.Errorf("flows %+v, want bob's two", w.flows(t))
	}
}
