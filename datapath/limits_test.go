package datapath

import (
	"errors"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/ebpnet/ebpnet/bpf"
	"github.com/ebpnet/ebpnet/internal/testutil"
	"github.com/ebpnet/ebpnet/loader"
)

func (w *world) use(t testing.TB, endpoint uint32) EndpointUse {
	t.Helper()
	use, err := w.EndpointUse(endpoint, PortRange{1, 65535})
	must(t, err)
	return use
}

// TestUseOfLimits brings an endpoint to each of its limits. Its use and its
// drops count for this endpoint only.
func TestUseOfLimits(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	w := newWorld(t, loadPinned)
	idle := w.use(t, bob.id)
	if f := idle.Flows; f.HalfOpenSet || f.HalfOpenLimit != 65536 || f.Set {
		t.Errorf("at first: %+v, want room for 65536 half-open flows", f)
	}
	if idle.Fragments.Limit != 64 || idle.Fragments.Set || idle.Ports != (PortShare{Limit: portsForOne / 2}) {
		t.Errorf("at first: %+v, want room for 64 datagrams and half of the ports", idle)
	}

	limits := Limits{MaxFlows: 5, MaxHalfOpen: 4, MaxPorts: 3, MaxFragments: 2}
	for _, e := range w.wanted.Endpoints {
		if e.ID == alice.id {
			e.Limits = limits
			must(t, w.SetEndpoint(e))
		}
	}
	for i := range uint16(4) { // towards one destination
		w.send(t, sentBy(t, alice, false, udp(2000+i, 53)))
	}
	for i := range uint16(2) { // towards other destinations
		w.send(t, sentBy(t, alice, false, udp(2000+i, 54+i)))
	}
	first, _, last := inFragments(outgoing(alice, false, udp(2000, 53)))
	for i := range uint32(3) {
		first.fragment.id = i
		w.send(t, fromEndpoint("", alice, first.frame(t)))
	}
	last.fragment.id = 0
	w.send(t, fromEndpoint("", alice, last.frame(t)))

	got := w.use(t, alice.id)
	if f := got.Flows; f.HalfOpen != 4 || f.HalfOpenLimit != 4 || !f.HalfOpenSet || f.Limit != 5 || !f.Set || f.LimitedPackets != 1 {
		t.Errorf("%+v, want 4 of 4 half-open flows, and one packet dropped", f)
	}
	if p := got.Ports; p != (PortShare{Most: 3, Towards: "udp 198.18.0.9:53", Limit: 3, Set: true, LimitedPackets: 1}) {
		t.Errorf("%+v, want 3 of 3 ports, and one packet dropped", p)
	}
	if f := got.Fragments; f != (FragmentShare{Datagrams: 2, Limit: 2, Set: true, LimitedPackets: 1}) {
		t.Errorf("%+v, want 2 of 2 datagrams, and one packet dropped", f)
	}
	if now := w.use(t, bob.id); now != idle {
		t.Errorf("another endpoint: %+v, want %+v", now, idle)
	}

	must(t, w.ResetEndpointTraffic(alice.id))
	if now := w.use(t, alice.id); now.Flows.LimitedPackets != 0 || now.Ports.LimitedPackets != 0 || now.Fragments.LimitedPackets != 0 {
		t.Errorf("after the reset of the counters: %+v", now)
	}
	for _, e := range w.wanted.Endpoints {
		if e.ID == alice.id {
			must(t, w.DeleteEndpoint(e))
		}
	}
	if l, err := w.limitsOf(alice.id); err != nil || l != (Limits{}).entry() {
		t.Errorf("after the endpoint was deleted: %+v, error %v", l, err)
	}
}

// TestReportedLimitOfPortsHolds checks that the reported limit of ports
// equals the number that the programs allow, also if the user's limit is
// higher.
func TestReportedLimitOfPortsHolds(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	const first, last = 2000, 2000 + 511 // ports
	w := newWorld(t, loadChanged(func(spec *ebpf.CollectionSpec) error {
		return errors.Join(
			setConstant(spec, bpf.EbpnetVarFirstPort, uint16(first)),
			setConstant(spec, bpf.EbpnetVarLastPort, uint16(last)))
	}))
	free := 512 - 2*512/portsReserve
	for i, h := range []host{alice, client} {
		set := i == 1
		if set {
			must(t, w.setLimits(h.id, Limits{MaxPorts: 500}))
		}
		want := (free + 1) / 2
		free -= want
		taken := 0
		for port := uint16(3000); ; port++ {
			if verdict, _ := w.send(t, sentBy(t, h, false, udp(port, 53))); verdict != verdictDirect {
				break
			}
			taken++
		}
		got, err := w.EndpointUse(h.id, PortRange{first, last})
		if err != nil || got.Ports.Most != taken || got.Ports.Limit != taken || got.Ports.Set != set || taken != want || got.Ports.LimitedPackets != 1 {
			t.Errorf("endpoint %d: %+v, error %v; it got %d ports, want %d", i, got.Ports, err, taken, want)
		}
	}
}

// TestReportedLimitOfFlowsHolds checks that the reported limit of flows
// equals the number that the programs allow if the user's limit is higher.
func TestReportedLimitOfFlowsHolds(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	const capacity, halfOpen, beyond = 128, 64, 1000
	const reserve = capacity / shareReserve
	w := newWorld(t, loadChanged(func(spec *ebpf.CollectionSpec) error {
		spec.Maps[bpf.EbpnetMapFlows].MaxEntries = capacity + halfOpen
		spec.Maps[bpf.EbpnetMapHalfOpen].MaxEntries = halfOpen
		return errors.Join(
			setConstant(spec, bpf.EbpnetVarFlowSlots, uint32(capacity+halfOpen)),
			setConstant(spec, bpf.EbpnetVarHalfOpenSlots, uint32(halfOpen)))
	}))
	for _, c := range []struct {
		host
		want    int
		limited uint64
	}{
		{alice, capacity - reserve, 1},
		{bob, reserve, 0}, // fewer than 16, because the table is full
	} {
		must(t, w.setLimits(c.id, Limits{MaxFlows: beyond}))
		before := w.use(t, c.id).Flows
		taken := 0
		for taken < beyond && w.establish(t, c.host, uint16(2000+taken), 53) {
			taken++
		}
		after := w.use(t, c.id).Flows
		if taken != c.want || before.Limit != c.want || after.Limit != c.want || !after.Set || after.LimitedPackets != c.limited {
			t.Errorf("%s got %d flows, want %d; reported before: %+v, after: %+v", c.device, taken, c.want, before, after)
		}
	}
	must(t, w.SetPortLimit(webPort, beyond))
	if got, err := w.PortFlowShare(webPort); err != nil || got != (FlowShare{Set: true}) {
		t.Errorf("a port while the table is full: %+v, error %v; want a limit of 0", got, err)
	}
}

func TestPortsOfClass(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		ports PortRange
		own   uint16
		want  PortRange
	}{
		{PortRange{1, 65535}, 53, PortRange{1, 1023}},
		{PortRange{1, 65535}, 1024, PortRange{1024, 65535}},
		{PortRange{500, 600}, 53, PortRange{500, 600}},
		{PortRange{500, 600}, 2000, PortRange{500, 600}},
		{PortRange{2000, 3000}, 53, PortRange{2000, 3000}},
	} {
		if got := c.ports.ofClass(c.own); got != c.want {
			t.Errorf("%v for port %d: %v, want %v", c.ports, c.own, got, c.want)
		}
	}
}

// TestLimitsAreReplaced writes all tables again. Then each noun has exactly its
// own limits.
func TestLimitsAreReplaced(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	w := newWorld(t, loadPinned)
	must(t, w.setLimits(bob.id, Limits{MaxFlows: 9}))
	wanted := w.population()
	given := Limits{MaxFlows: 1, MaxHalfOpen: 2, MaxPorts: 3, MaxFragments: 4, MaxFlood: 5}
	for i := range wanted.Endpoints {
		if wanted.Endpoints[i].ID == alice.id {
			wanted.Endpoints[i].Limits = given
		}
	}
	for i := range wanted.Ports {
		if wanted.Ports[i].ID == webPort {
			wanted.Ports[i].MaxFlows = 6
		}
	}
	wanted.Tunnels[0].MaxFlood = 7
	must(t, w.Replace(wanted))
	for owner, want := range map[uint32]Limits{
		alice.id: given, bob.id: {}, ownerPorts + webPort: {MaxFlows: 6}, ownerTunnels + theTunnel: {MaxFlood: 7}, firstRemote + theTunnel: {},
	} {
		if got, err := w.limitsOf(owner); err != nil || got != want.entry() {
			t.Errorf("owner %d: %+v, error %v; want %+v", owner, got, err, want)
		}
	}
	if share, err := w.PortFlowShare(webPort); err != nil || share.Limit != 6 || !share.Set {
		t.Errorf("port: %+v, error %v; want a limit of 6", share, err)
	}
	must(t, w.DeleteTunnel(wanted.Tunnels[0], false))
	must(t, w.DeletePorts(portsOf(wanted.Ports, webPort)))
	for _, owner := range []uint32{ownerPorts + webPort, ownerTunnels + theTunnel} {
		if got, err := w.limitsOf(owner); err != nil || got != (Limits{}).entry() {
			t.Errorf("owner %d after its deletion: %+v, error %v", owner, got, err)
		}
	}
}

// TestFloodsOutOfTunnelAreLimited checks that a tunnel's limit applies to this
// tunnel only.
func TestFloodsOutOfTunnelAreLimited(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	w := newSharedWorld(t, loader.Timeouts{})
	w.calm(t)
	const limit, frames = 1, 20
	must(t, w.SetTunnelLimit(theTunnel, limit))
	group := multicast(stranger(host{}, 90), false).frame(t)
	before := w.counters(t)
	for range frames {
		w.send(t, fromTunnel(t, "", theTunnel, group))
	}
	dropped := w.counters(t).since(before).Drops["flood_limit"].Packets
	got, err := w.TunnelFloodShare(theTunnel)
	if err != nil || got.Limit != limit || got.LimitedPackets != dropped || dropped == 0 || dropped == frames || got.AheadCopies < 2*limit {
		t.Errorf("%+v, error %v; want a limit of %d; %d frames were sent and %d dropped", got, err, limit, frames, dropped)
	}
	if other, err := w.TunnelFloodShare(sixTunnel); err != nil || other != (FloodShare{Limit: 200000}) {
		t.Errorf("another tunnel: %+v, error %v; want no floods and the default limit", other, err)
	}
	must(t, w.SetTunnelLimit(theTunnel, 0))
	w.calm(t)
	before = w.counters(t)
	for range frames {
		w.send(t, fromTunnel(t, "", theTunnel, group))
	}
	if got := w.counters(t).since(before).Drops["flood_limit"].Packets; got != 0 {
		t.Errorf("%d frames were limited at the default", got)
	}
}

// TestNewFloodLimitHoldsAtOnce puts an endpoint and a tunnel in debt for
// flooded copies. A change of their flood limit ends the debt; a change of
// another limit does not. The counters of dropped frames stay.
func TestNewFloodLimitHoldsAtOnce(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	w := newSharedWorld(t, loader.Timeouts{})
	w.calm(t)
	var endpoint Endpoint
	for _, e := range w.wanted.Endpoints {
		if e.ID == alice.id {
			endpoint = e
		}
	}
	setEndpoint := func(l Limits) error {
		endpoint.Limits = l
		return w.SetEndpoint(endpoint)
	}
	group := multicast(stranger(host{}, 90), false).frame(t)
	for name, c := range map[string]struct {
		flooder, byDefault uint32
		set                func(flood uint32) error
		setAnother         func() error
		send               func()
		share              func() (FloodShare, error)
	}{
		"endpoint": {
			alice.id, DefaultMaxFlood,
			func(flood uint32) error { return setEndpoint(Limits{MaxFlood: flood}) },
			func() error { return setEndpoint(Limits{MaxFlood: 1, MaxFlows: 100}) },
			func() { w.send(t, fromEndpoint("", alice, multicast(alice, false).frame(t))) },
			func() (FloodShare, error) { return w.FloodShare(alice.id) },
		},
		"tunnel": {
			w.tunnelFlooder(theTunnel), TrunkMaxFlood,
			func(flood uint32) error { return w.SetTunnelLimit(theTunnel, flood) },
			func() error { return w.SetTunnelLimit(theTunnel, 1) }, // a tunnel has no other limit
			func() { w.send(t, fromTunnel(t, "", theTunnel, group)) },
			func() (FloodShare, error) { return w.TunnelFloodShare(theTunnel) },
		},
	} {
		expect := func(when string, limit uint32, limited uint64) {
			t.Helper()
			c.send()
			if got, err := c.share(); err != nil || got.Limit != limit || got.LimitedPackets != limited {
				t.Errorf("%s, %s: %+v, error %v; want a limit of %d and %d dropped", name, when, got, err, limit, limited)
			}
		}
		owe := func() {
			t.Helper()
			now, err := coarseNow()
			must(t, err)
			budget, err := w.floodBudget(c.flooder)
			must(t, err)
			budget.Due = uint64(now + time.Hour)
			must(t, w.Maps.FloodBudgets.Put(c.flooder, budget))
		}
		must(t, c.set(1))
		owe()
		expect("in debt", 1, 1)
		must(t, c.setAnother())
		expect("after another limit changed", 1, 2)
		must(t, c.set(1000))
		expect("after the limit was raised", 1000, 2)
		owe()
		must(t, c.set(0))
		expect("after the limit was removed", c.byDefault, 2)
	}
}
