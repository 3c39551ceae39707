package datapath

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

func portOf(h host, v6 bool, port uint16) netip.AddrPort { return netip.AddrPortFrom(h.ip(v6), port) }

// listed returns the flows that f selects, without their times. It checks the
// times.
func (w *world) listed(t testing.TB, f FlowFilter) []Flow {
	t.Helper()
	flows, err := w.Flows(f)
	if err != nil {
		t.Fatal(err)
	}
	for i := range flows {
		if age := flows[i].Age; age < 0 || age > time.Minute || flows[i].Idle < 0 || flows[i].Idle > age {
			t.Errorf("age %v, idle %v", age, flows[i].Idle)
		}
		flows[i].Age, flows[i].Idle = 0, 0
	}
	return flows
}

func (w *world) expectFlows(t testing.TB, after string, f FlowFilter, want ...Flow) {
	t.Helper()
	compare := cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })
	if diff := cmp.Diff(want, w.listed(t, f), compare, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("flows after %s (-want +got):\n%s", after, diff)
	}
}

// TestStateOfAFlow checks the state of a connection to the outside after
// each packet, from first to last.
func TestStateOfAFlow(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	w := newWorld(t, loadPinned)
	out := func(flags string) row {
		return fromEndpoint(flags, alice, outgoing(alice, false, tcp(40000, 80, flags)).frame(t))
	}
	in := func(flags string) row { return fromUplink(flags, incoming(false, tcp(80, 40000, flags)).frame(t)) }
	want := Flow{
		Protocol: protocolTCP, Network: openNet, From: portOf(alice, false, 40000), To: portOf(website, false, 80),
		TranslatedFrom: portOf(uplink, false, 40000),
	}
	for _, step := range []struct {
		send  row
		state FlowState
	}{
		{out("S"), FlowHalfOpen},
		{in("SA"), FlowHalfOpen},
		{out("A"), FlowEstablished},
		{out("FA"), FlowEstablished}, // one side can still send
		{in("A"), FlowEstablished},
		{in("FA"), FlowClosing},
		{out("A"), FlowClosing},
		{out("S"), FlowHalfOpen}, // the ports are reused
		{in("SA"), FlowHalfOpen},
		{in("RA"), FlowClosing},
	} {
		w.send(t, step.send)
		counter := &want.Sent
		if step.send.sender == nil {
			counter = &want.Received
		}
		counter.Packets++
		counter.Bytes += uint64(len(step.send.in))
		want.State = step.state
		w.expectFlows(t, step.send.name, FlowFilter{}, want)
	}
}

// TestFlowsOfAnEndpoint opens flows of all kinds. It lists and ends the flows
// of one endpoint after the other.
func TestFlowsOfAnEndpoint(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	w := newWorld(t, loadPinned)
	var filters []FlowFilter
	flows := map[uint32]Flow{} // by endpoint
	of := func(h host) FlowFilter { return FlowFilter{Network: h.network, Addresses: []netip.Addr{h.ip4, h.ip6}} }
	opens := func(h host, p packet, f Flow) {
		frame := p.frame(t)
		w.send(t, fromEndpoint("", h, frame))
		f.Network, f.State, f.Sent = h.network, FlowHalfOpen, Counter{1, uint64(len(frame))}
		flows[h.id] = f
		filters = append(filters, of(h))
	}
	opens(alice, outgoing(alice, false, udp(40000, 53)), Flow{
		Protocol: protocolUDP, From: portOf(alice, false, 40000), To: portOf(website, false, 53),
		TranslatedFrom: portOf(uplink, false, 40000),
	})
	opens(bob, outgoing(bob, true, echo(true, false, 7)), Flow{
		Protocol: 58, From: portOf(bob, true, 7), To: portOf(website, true, 0),
		TranslatedFrom: portOf(uplink, true, 7),
	})
	opens(plain, outgoing(plain, false, udp(5, 53)), Flow{
		Protocol: protocolUDP, From: portOf(plain, false, 5), To: portOf(website, false, 53),
	})
	opens(client, between(client, server, true, udp(1000, 53)), Flow{
		Protocol: protocolUDP, ToNetwork: closedNet, From: portOf(client, true, 1000), To: portOf(server, true, 53),
	})
	if n := len(w.listed(t, FlowFilter{})); n != len(flows) {
		t.Errorf("%d flows, want %d", n, len(flows))
	}
	w.expectFlows(t, "all", of(alice), flows[alice.id])
	w.expectFlows(t, "all", of(bob), flows[bob.id])
	w.expectFlows(t, "all", of(plain), flows[plain.id])
	w.expectFlows(t, "all", of(client), flows[client.id])
	w.expectFlows(t, "all", of(server), flows[client.id]) // it belongs to both endpoints
	w.expectFlows(t, "all", of(insider))
	// An address must not select an endpoint of another network.
	w.expectFlows(t, "all", FlowFilter{Network: closedNet, Addresses: []netip.Addr{alice.ip4}})

	flush := func(f FlowFilter) {
		t.Helper()
		if err := w.FlushFlows(f); err != nil {
			t.Fatal(err)
		}
	}
	flush(of(insider))
	if n := len(w.listed(t, FlowFilter{})); n != len(flows) {
		t.Errorf("%d flows after the flush of an endpoint without flows, want %d", n, len(flows))
	}
	flush(of(alice))
	w.expectFlows(t, "a flush", of(alice))
	w.expectFlows(t, "another's flush", of(bob), flows[bob.id])
	flush(of(server))
	w.expectFlows(t, "its server's flush", of(client))
	if n := len(w.listed(t, FlowFilter{})); n != 2 {
		t.Errorf("%d flows, want 2", n)
	}
	flush(FlowFilter{})
	w.expectFlows(t, "the flush of all", FlowFilter{})
	if n := w.indexed(t); n != 0 {
		t.Errorf("%d entries in the index after the flush of all", n)
	}
}

// TestUnbackedFlowsEnd removes an endpoint. Only its flows end.
func TestUnbackedFlowsEnd(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	w := newWorld(t, loadPinned)
	for i, from := range []host{alice, bob, plain} {
		w.send(t, fromEndpoint("", from, outgoing(from, false, udp(uint16(40000+i), 53)).frame(t)))
	}
	w.send(t, fromEndpoint("", client, between(client, server, false, tcp(1000, 6379, "S")).frame(t)))
	if err := w.endUnbackedFlows(); err != nil {
		t.Fatal(err)
	}
	if n := len(w.listed(t, FlowFilter{})); n != 4 {
		t.Fatalf("%d flows, want all 4: no endpoint was removed", n)
	}
	for _, gone := range []host{alice, server} {
		for _, e := range w.wanted.Endpoints {
			if e.ID != gone.id {
				continue
			}
			if err := w.DeleteEndpoint(e); err != nil {
				t.Fatal(err)
			}
		}
		for _, f := range w.listed(t, FlowFilter{}) {
			if f.From.Addr() == gone.ip4 || f.To.Addr() == gone.ip4 {
				t.Errorf("%s was removed, but its flow still exists: %+v", gone.device, f)
			}
		}
	}
	if n := len(w.listed(t, FlowFilter{})); n != 2 {
		t.Errorf("%d flows, want the 2 of the other endpoints", n)
	}
}

func TestUsageSeparatesHalfOpenFlows(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	w := newWorld(t, loadPinned)
	w.send(t, fromEndpoint("", alice, outgoing(alice, false, udp(1, 53)).frame(t)))
	w.send(t, fromEndpoint("", bob, outgoing(bob, false, udp(2, 53)).frame(t)))
	w.send(t, fromUplink("", incoming(false, udp(53, 2)).frame(t)))
	usage, err := w.Usage()
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range usage {
		if want, ok := map[string]int{"flows": 2, "half_open": 1}[u.Name]; ok && u.Entries != want {
			t.Errorf("%s holds %d, want %d", u.Name, u.Entries, want)
		}
		// The kernel counts no memory for an empty LPM trie.
		if u.Memory == 0 && u.Name != "port_sources" {
			t.Errorf("%s uses no memory", u.Name)
		}
		if u.Name == "flows" && u.Memory < uint64(u.Capacity)*uint64(w.Maps.Flows.ValueSize()) {
			t.Errorf("flows use %d bytes, too few for %d entries", u.Memory, u.Capacity)
		}
	}
}
