package loader

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/bpf"
	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/testutil"
)

// Sizes of tables, in established flows.
const (
	fewFlows  = 2048
	manyFlows = 10000
)

func loadFor(t testing.TB, dir string, flows uint32) *Objects {
	t.Helper()
	o, err := Load(dir, Config{GatewayIfindex: 1, Flows: flows, WithoutXDP: true})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() { must(t, o.Close()) })
	return o
}

// checkSizes expects room for so many established flows.
func (o *Objects) checkSizes(t testing.TB, flows uint32) {
	t.Helper()
	slots := flows + o.Maps.HalfOpen.MaxEntries()
	if got := o.Maps.Flows.MaxEntries(); got != slots {
		t.Errorf("room for %d flows, want %d", got, slots)
	}
	if got := o.Maps.FlowIndex.MaxEntries(); got != 4*slots {
		t.Errorf("room for %d entries in the index, want %d", got, 4*slots)
	}
}

func TestConstants(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t) // to ask what the kernel can do
	defaults, err := bpf.LoadEbpnet()
	must(t, err)
	read := func(s *ebpf.CollectionSpec, name string) (n uint64) {
		t.Helper()
		v := s.Variables[name]
		if v == nil {
			t.Fatalf("no constant %s", name)
		}
		value := reflect.New(map[uint32]reflect.Type{
			2: reflect.TypeFor[uint16](), 4: reflect.TypeFor[uint32](), 8: reflect.TypeFor[uint64](),
		}[v.Size()])
		must(t, v.Get(value.Interface()))
		return value.Elem().Uint()
	}
	host := spec.Host{}
	ports := host.MasqueradePorts.Effective()
	halfOpen := uint64(defaults.Maps[bpf.EbpnetMapHalfOpen].MaxEntries)
	given, err := bpf.LoadEbpnet()
	must(t, err)
	must(t, configure(given, Config{
		DatapathIfindex: 7, Flows: fewFlows, FirstPort: 1024, LastPort: 2047,
		Timeouts: Timeouts{1 * time.Second, 2 * time.Second, 3 * time.Second, 4 * time.Second, 5 * time.Second, 6 * time.Second},
	}))
	none, err := bpf.LoadEbpnet()
	must(t, err)
	must(t, configure(none, Config{}))
	for _, c := range []struct {
		name       string
		asCompiled uint64
		asGiven    uint64
	}{
		{bpf.EbpnetVarFlowSlots, spec.DefaultFlows + halfOpen, fewFlows + halfOpen},
		{bpf.EbpnetVarFirstPort, uint64(ports.First), 1024},
		{bpf.EbpnetVarLastPort, uint64(ports.Last), 2047},
		{bpf.EbpnetVarTcpEstablishedTimeout, uint64(host.Timeout(spec.TCPEstablished)), 1e9},
		{bpf.EbpnetVarTcpTransitoryTimeout, uint64(host.Timeout(spec.TCPTransitory)), 2e9},
		{bpf.EbpnetVarUdpEstablishedTimeout, uint64(host.Timeout(spec.UDPEstablished)), 3e9},
		{bpf.EbpnetVarUdpNewTimeout, uint64(host.Timeout(spec.UDPNew)), 4e9},
		{bpf.EbpnetVarIcmpTimeout, uint64(host.Timeout(spec.ICMP)), 5e9},
		// IEEE 802.1Q-2018, table 8-6.
		{bpf.EbpnetVarLearnedTimeout, uint64(5 * time.Minute), 6e9},
		{bpf.EbpnetVarDatapathIfindex, 0, 7},
	} {
		if got := read(defaults, c.name); got != c.asCompiled {
			t.Errorf("%s is compiled to be %d, and spec says %d", c.name, got, c.asCompiled)
		}
		if got := read(none, c.name); got != c.asCompiled {
			t.Errorf("%s is %d when nothing is given, want %d", c.name, got, c.asCompiled)
		}
		if got := read(given, c.name); got != c.asGiven {
			t.Errorf("%s is %d, want %d", c.name, got, c.asGiven)
		}
	}
}

// testFlow is the nth flow inside a network, last seen so long ago.
func testFlow(t testing.TB, n uint32, state bpf.EbpnetFlowState, ago time.Duration) bpf.EbpnetFlow {
	t.Helper()
	var now unix.Timespec
	must(t, unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &now))
	const network, tcp = 1, 6
	key := bpf.EbpnetFlowKey{Network: network, Protocol: tcp, Sport: uint16(n), Dport: 80}
	for i, last := range [][4]byte{{172, 30, byte(n >> 16), 2}, {172, 30, 255, 3}} {
		bytes := append(make([]byte, 10), 0xff, 0xff)
		bytes = append(bytes, last[:]...)
		for word := range key.Src.Word {
			[]*bpf.EbpnetAddress{&key.Src, &key.Dst}[i].Word[word] = binary.NativeEndian.Uint32(bytes[4*word:])
		}
	}
	reply := key
	reply.Src, reply.Dst, reply.Sport, reply.Dport = key.Dst, key.Src, key.Dport, key.Sport
	flow := bpf.EbpnetFlow{
		Original: key, Reply: reply, State: state, Phase: bpf.EbpnetFlowPhasePHASE_ESTABLISHED,
		Opened: uint64(now.Nano() - ago.Nanoseconds()), Mapping: uint32(bpf.EbpnetMappingSlotNO_MAPPING),
	}
	flow.Seen = flow.Opened
	flow.Sent[bpf.EbpnetFlowSideFLOW_ORIGINAL] = bpf.EbpnetCounter{Packets: uint64(n) + 1, Bytes: 64 * uint64(n)}
	flow.Sent[bpf.EbpnetFlowSideFLOW_REPLY] = bpf.EbpnetCounter{Packets: 1}
	return flow
}

// indexed gives the side of a flow inside a network that the index has, which is
// the first in order, and its key: flow_key_is_first() in bpf/flow_key.h.
func indexed(f bpf.EbpnetFlow) (bpf.EbpnetFlowKey, bpf.EbpnetFlowSide) {
	for i := len(f.Original.Src.Word) - 1; i >= 0; i-- {
		if from, to := f.Original.Src.Word[i], f.Original.Dst.Word[i]; from < to {
			break
		} else if from > to {
			return f.Reply, bpf.EbpnetFlowSideFLOW_REPLY
		}
	}
	return f.Original, bpf.EbpnetFlowSideFLOW_ORIGINAL
}

// putFlows writes flows into free slots, as the programs would.
func (o *Objects) putFlows(t testing.TB, flows ...bpf.EbpnetFlow) {
	t.Helper()
	slots, keys, refs := []uint32{}, []bpf.EbpnetFlowKey{}, []bpf.EbpnetFlowRef{}
	for slot := uint32(0); len(slots) < len(flows); slot++ {
		var there bpf.EbpnetFlow
		must(t, o.Maps.Flows.Lookup(slot, &there))
		if there.State != bpf.EbpnetFlowStateFLOW_FREE {
			continue
		}
		key, side := indexed(flows[len(slots)])
		slots, keys = append(slots, slot), append(keys, key)
		refs = append(refs, bpf.EbpnetFlowRef{Slot: slot, Side: side})
	}
	_, err := o.Maps.Flows.BatchUpdate(slots, flows, nil)
	must(t, err)
	_, err = o.Maps.FlowIndex.BatchUpdate(keys, refs, nil)
	must(t, err)
}

// found gives the flows that o knows, by their original key.
func (o *Objects) found(t testing.TB) map[bpf.EbpnetFlowKey]bpf.EbpnetFlow {
	t.Helper()
	found := map[bpf.EbpnetFlowKey]bpf.EbpnetFlow{}
	must(t, o.EachFlow(func(slot uint32, flow *bpf.EbpnetFlow) error {
		key, side := indexed(*flow)
		var ref bpf.EbpnetFlowRef
		must(t, o.Maps.FlowIndex.Lookup(key, &ref))
		if ref.Slot != slot || ref.Side != side {
			t.Errorf("the index says %+v for side %d of the flow in slot %d", ref, side, slot)
		}
		if _, twice := found[flow.Original]; twice {
			t.Errorf("two flows with original key %+v", flow.Original)
		}
		found[flow.Original] = *flow
		return nil
	}))
	return found
}

// check expects just these flows, as they were.
func (o *Objects) check(t testing.TB, want ...bpf.EbpnetFlow) {
	t.Helper()
	found := o.found(t)
	if len(found) != len(want) {
		t.Errorf("%d flows, want %d", len(found), len(want))
	}
	for _, w := range want {
		got, ok := found[w.Original]
		if !ok {
			t.Errorf("flow with port %d is lost", w.Original.Sport)
			continue
		}
		if got.Reply != w.Reply || got.Opened != w.Opened || got.Seen != w.Seen ||
			got.Sent != w.Sent || got.Phase != w.Phase || got.State != w.State {
			t.Errorf("flow is %+v, was %+v", got, w)
		}
	}
}

func (o *Objects) finish(t testing.TB) (lost int) {
	t.Helper()
	lost, err := o.FinishMigration()
	must(t, err)
	return lost
}

func TestResizeKeepsTheFlows(t *testing.T) {
	t.Parallel()
	dir := pinDirectory(t)
	first := loadFor(t, dir, fewFlows)
	first.checkSizes(t, fewFlows)
	pins := listPins(t, dir)
	must(t, first.Maps.Links.Put(bpf.EbpnetLinkKey{Client: 1, Server: 2}, uint32(7)))
	flows := []bpf.EbpnetFlow{
		testFlow(t, 1, bpf.EbpnetFlowStateFLOW_ESTABLISHED, 0),
		testFlow(t, 2, bpf.EbpnetFlowStateFLOW_HALF_OPEN, time.Second),
		testFlow(t, 3, bpf.EbpnetFlowStateFLOW_ESTABLISHED, time.Minute),
	}
	first.putFlows(t, flows...)

	same := loadFor(t, dir, fewFlows)
	if a, b := idOf(t, first.Maps.Flows), idOf(t, same.Maps.Flows); a != b {
		t.Error("the table of flows was made anew in the size that it had")
	}
	if pending, err := same.MigrationPending(); err != nil || pending {
		t.Errorf("a change of size goes on: %v, %v", pending, err)
	}

	for _, size := range []uint32{manyFlows, fewFlows} {
		before := same
		same = loadFor(t, dir, size)
		same.checkSizes(t, size)
		same.check(t, flows...)
		for name, maps := range map[string][2]*ebpf.Map{
			"flow_index": {before.Maps.FlowIndex, same.Maps.FlowIndex},
			"half_open":  {before.Maps.HalfOpen, same.Maps.HalfOpen},
			"sweepers":   {before.Maps.Sweepers, same.Maps.Sweepers},
		} {
			if idOf(t, maps[0]) == idOf(t, maps[1]) {
				t.Errorf("%s was not made anew with the table of flows", name)
			}
		}
		var value uint32
		if err := same.Maps.Links.Lookup(bpf.EbpnetLinkKey{Client: 1, Server: 2}, &value); err != nil || value != 7 {
			t.Errorf("the entry of another table is %d, %v; want 7", value, err)
		}

		// Until all devices have the new programs, the old ones go on.
		late := testFlow(t, 10+size, bpf.EbpnetFlowStateFLOW_ESTABLISHED, 0)
		before.putFlows(t, late)
		flows = append(flows, late)
		if pending, err := same.MigrationPending(); err != nil || !pending {
			t.Errorf("no change of size goes on: %v, %v", pending, err)
		}
		if lost := same.finish(t); lost != 0 {
			t.Errorf("%d flows found no room", lost)
		}
		same.check(t, flows...)
		if now := listPins(t, dir); !slices.Equal(now, pins) {
			t.Errorf("pins are %v, were %v", now, pins)
		}
		same.finish(t)
		same.check(t, flows...)
	}
}

func idOf(t testing.TB, m *ebpf.Map) ebpf.MapID {
	t.Helper()
	id, err := mapID(m)
	must(t, err)
	return id
}

func TestResizeTakesTheWorthiest(t *testing.T) {
	t.Parallel()
	dir := pinDirectory(t)
	const halfOpen = 100
	first := loadFor(t, dir, manyFlows)
	room := first.Maps.HalfOpen.MaxEntries() + 1
	flows := make([]bpf.EbpnetFlow, room+manyFlows/2)
	for i := range flows {
		state := bpf.EbpnetFlowStateFLOW_ESTABLISHED
		if i < halfOpen {
			state = bpf.EbpnetFlowStateFLOW_HALF_OPEN
		}
		flows[i] = testFlow(t, uint32(i), state, 0)
		flows[i].Seen = flows[0].Seen - uint64(i)
	}
	first.putFlows(t, flows...)
	small := loadFor(t, dir, 1)
	lost := small.finish(t)
	found := small.found(t)
	if len(found)+lost != len(flows) {
		t.Errorf("%d flows carried over and %d lost, want %d altogether", len(found), lost, len(flows))
	}
	// A place is looked for at random, so that the last few stay empty.
	const sure = 0.9
	if float64(len(found)) < sure*float64(room) || len(found) > int(room) {
		t.Errorf("%d flows carried over, where %d have room", len(found), room)
	}
	for i, f := range flows {
		_, there := found[f.Original]
		switch {
		case i < halfOpen && there:
			t.Fatalf("a half-open flow took the place of an established one")
		case i >= halfOpen && float64(i-halfOpen) < sure*float64(room) && !there:
			t.Fatalf("flow %d of %d is lost, and flows used less recently are not", i, len(flows))
		}
	}
}

func TestUnloadWhileResizing(t *testing.T) {
	t.Parallel()
	dir := pinDirectory(t)
	loadFor(t, dir, fewFlows).putFlows(t, testFlow(t, 1, bpf.EbpnetFlowStateFLOW_ESTABLISHED, 0))
	o := loadFor(t, dir, manyFlows)
	if pending, err := o.MigrationPending(); err != nil || !pending {
		t.Fatalf("no change of size goes on: %v, %v", pending, err)
	}
	must(t, Unload(dir))
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the pin directory: %v, want it gone", err)
	}
	loadFor(t, dir, fewFlows).check(t)
}

// Tables that do not belong together are never used together.
func TestMissingFlowTable(t *testing.T) {
	t.Parallel()
	dir := pinDirectory(t)
	flow := testFlow(t, 1, bpf.EbpnetFlowStateFLOW_ESTABLISHED, 0)
	before := loadFor(t, dir, fewFlows)
	for _, missing := range []string{bpf.EbpnetMapFlowIndex, bpf.EbpnetMapFlows} {
		if missing == bpf.EbpnetMapFlowIndex {
			before.putFlows(t, flow)
		}
		must(t, os.Remove(filepath.Join(dir, mapsDirectory, missing)))
		o := loadFor(t, dir, fewFlows)
		o.finish(t)
		if idOf(t, before.Maps.Sweepers) == idOf(t, o.Maps.Sweepers) {
			t.Errorf("without %s, another table of flows is used on", missing)
		}
		if missing == bpf.EbpnetMapFlows {
			o.check(t)
		} else {
			o.check(t, flow)
		}
		before = o
	}
}
