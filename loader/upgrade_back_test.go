package loader

import (
	"encoding/binary"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/ebpnet/ebpnet/bpf"
)

// other gives the programs of a version whose state has another layout: see
// testdata/other_layout.sh.
func other(t testing.TB) *ebpf.CollectionSpec {
	t.Helper()
	return compiled(t, "other_layout.o.gz")
}

func loadOther(t testing.TB, dir string) *Objects {
	t.Helper()
	o, err := load(dir, other(t), Config{GatewayIfindex: 1, Flows: fewFlows, WithoutXDP: true})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() { must(t, o.Close()) })
	return o
}

// in gives a number of an entry by its name.
func in(t testing.TB, l layout, entry []byte, name string) uint64 {
	t.Helper()
	f, err := l.must(name)
	must(t, err)
	return f.read(entry)
}

// TestUpgradeAndBack loads a version of another layout over this one, and this
// one over that. Each finds what the other had, under its own offsets, and what
// it has changed until it was replaced.
func TestUpgradeAndBack(t *testing.T) {
	t.Parallel()
	dir := pinDirectory(t)
	first := loadFor(t, dir, fewFlows)
	flows := []bpf.EbpnetFlow{
		testFlow(t, 1, bpf.EbpnetFlowStateFLOW_ESTABLISHED, 0),
		testFlow(t, 2, bpf.EbpnetFlowStateFLOW_HALF_OPEN, time.Second),
	}
	flows[1].Phase = bpf.EbpnetFlowPhasePHASE_REPLIED
	for i := range flows {
		flows[i].Owner, flows[i].Server = testClient, testServer
	}
	first.putFlows(t, flows...)
	must(t, first.Maps.Neighbors.Put(flows[0].Original.Src, bpf.EbpnetStation{Network: testNetwork, Endpoint: testClient}))
	must(t, first.Maps.Neighbors.Put(flows[0].Original.Dst, bpf.EbpnetStation{Network: testNetwork, Endpoint: testServer}))
	counts := newCounts(t)
	counts.add(t, first.Maps.Drops, uint32(bpf.EbpnetReasonREASON_MALFORMED), counter(1, 10))
	counts.add(t, first.Maps.Drops, uint32(bpf.EbpnetReasonREASON_LOOP), counter(2, 20))
	counts.add(t, first.Maps.EndpointStats, testClient, traffic(3, 4))
	mac := bpf.EbpnetFdbKey{Network: testNetwork, Mac: bpf.EbpnetMac{Byte: [6]byte{2, 1}}}
	learned := bpf.EbpnetLearned{Station: bpf.EbpnetStation{Network: testNetwork, Endpoint: 11, Mac: mac.Mac}, Seen: flows[0].Seen}
	must(t, first.Maps.LearnedFdb.Put(mac, learned))
	link := bpf.EbpnetLinkKey{Client: testClient, Server: testServer, Port: 80, Protocol: 6}
	must(t, first.Maps.Links.Put(link, uint32(1)))

	middle := loadOther(t, dir)
	layouts := map[string]mapLayout{}
	for name, spec := range middle.spec.Maps {
		if isPinned(name) {
			l, err := specLayout(spec)
			must(t, err)
			layouts[name] = l
		}
	}
	flowLayout := layouts[bpf.EbpnetMapFlows].value
	if now, err := specLayout(first.spec.Maps[bpf.EbpnetMapFlows]); err != nil || now.value.size == flowLayout.size {
		t.Fatalf("both versions have flows of one size, %v", err)
	}
	state, err := flowLayout.must(flowState)
	must(t, err)
	if now := uint64(bpf.EbpnetFlowStateFLOW_HALF_OPEN); state.values[flowHalfOpen] == now {
		t.Fatal("both versions have the same states")
	}
	phase, err := flowLayout.must(flowPhase)
	must(t, err)
	if now := uint64(bpf.EbpnetFlowPhasePHASE_ESTABLISHED); phase.values["PHASE_ESTABLISHED"] == now {
		t.Fatal("both versions have the same phases")
	}
	found := 0
	must(t, eachBatch(middle.Maps.Flows, func(value []byte) error {
		s := state.read(value)
		if s != state.values[flowEstablished] && s != state.values[flowHalfOpen] {
			return nil
		}
		found++
		f, reached := flows[0], "PHASE_ESTABLISHED"
		if s == state.values[flowHalfOpen] {
			f, reached = flows[1], "PHASE_REPLIED"
		}
		for name, want := range map[string]uint64{
			"original.sport": uint64(f.Original.Sport), "reply.dport": uint64(f.Reply.Dport), "opened": f.Opened, "seen": f.Seen,
			"sent[0].packets": f.Sent[0].Packets, "sent[0].bytes": f.Sent[0].Bytes, flowPhase: phase.values[reached],
			"owner": testClient, "server": testServer,
		} {
			if got := in(t, flowLayout, value, name); got != want {
				t.Errorf("flow with port %d: %s is %d, want %d", f.Original.Sport, name, got, want)
			}
		}
		return nil
	}))
	if found != len(flows) {
		t.Errorf("%d flows, want %d", found, len(flows))
	}
	drops := layouts[bpf.EbpnetMapDrops]
	for name, want := range map[string]uint64{"REASON_MALFORMED": 1, "REASON_LOOP": 2, "REASON_INTERMEDIATE": 0} {
		index := uint32(drops.key.leaves[0].values[name])
		value, err := middle.Maps.Drops.LookupBytes(index)
		must(t, err)
		sum := mapLayout{kind: ebpf.PerCPUArray, value: drops.value}.sum(value)
		if got := in(t, drops.value, sum, "packets"); got != want*uint64(counts.cpus) {
			t.Errorf("%s, which is %d there, has %d packets, want %d", name, index, got, want*uint64(counts.cpus))
		}
	}
	stats := layouts[bpf.EbpnetMapEndpointStats].value
	value, err := middle.Maps.EndpointStats.LookupBytes(uint32(testClient))
	must(t, err)
	if tx, rx := in(t, stats, value, "tx.packets"), in(t, stats, value, "rx.packets"); tx != 3 || rx != 4 {
		t.Errorf("the endpoint has sent %d and got %d on a CPU, want 3 and 4", tx, rx)
	}
	entry, err := middle.Maps.LearnedFdb.LookupBytes(mac)
	must(t, err)
	l := layouts[bpf.EbpnetMapLearnedFdb].value
	if seen, endpoint := in(t, l, entry, "seen"), in(t, l, entry, "station.endpoint"); seen != learned.Seen || endpoint != 11 {
		t.Errorf("the station was seen at %d and is endpoint %d, want %d and 11", seen, endpoint, learned.Seen)
	}

	// The first version counts on until it is replaced.
	counts.add(t, first.Maps.Drops, uint32(bpf.EbpnetReasonREASON_POLICY), counter(5, 50))
	counts.add(t, first.Maps.EndpointStats, testClient, traffic(1, 1))
	late := testFlow(t, 3, bpf.EbpnetFlowStateFLOW_ESTABLISHED, 0)
	late.Owner, late.Server = testClient, testServer
	first.putFlows(t, late)
	middle.finish(t)

	last := loadFor(t, dir, fewFlows)
	last.finish(t)
	last.check(t, append(flows, late)...)
	for _, f := range last.found(t) {
		if f.Owner != testClient || f.Server != testServer {
			t.Errorf("a flow has owner %d and server %d", f.Owner, f.Server)
		}
	}
	counts.check(t, last)
	var got bpf.EbpnetLearned
	must(t, last.Maps.LearnedFdb.Lookup(mac, &got))
	if got.Station != learned.Station || got.Seen != learned.Seen || got.Number == 0 {
		t.Errorf("the learned station is %+v, was %+v", got, learned)
	}
	var one uint32
	if err := last.Maps.Links.Lookup(link, &one); err != nil || one != 1 {
		t.Errorf("the link: %d, %v", one, err)
	}
}

// TestKilledUpgrade stops an upgrade after each of its steps, and a downgrade.
// The next load, of the same version or of the one before, repairs it: every
// flow is there, and nothing is counted twice.
func TestKilledUpgrade(t *testing.T) {
	t.Parallel()
	var (
		all    = len((&upgrade{objects: &Objects{}}).steps())
		pinned = all - 1 // from then on other maps are pinned
		dir    = pinDirectory(t)
		config = Config{GatewayIfindex: 1, Flows: fewFlows, WithoutXDP: true}
		here   = func(t testing.TB) *ebpf.CollectionSpec {
			t.Helper()
			spec, err := bpf.LoadEbpnet()
			must(t, err)
			return spec
		}
		versions = []func(testing.TB) *ebpf.CollectionSpec{here, other}
		packets  uint64
		flows    uint32
	)
	load := func(version int) *Objects {
		t.Helper()
		o, err := load(dir, versions[version](t), config)
		must(t, err)
		t.Cleanup(func() { must(t, o.Close()) })
		return o
	}
	now := 0
	o := load(now)
	// work has the programs count a packet on each CPU, and open a flow.
	work := func() {
		t.Helper()
		packets += o.countDrop(t)
		flow := testFlow(t, flows, bpf.EbpnetFlowStateFLOW_ESTABLISHED, 0)
		o.restore(t, flow)
		flows++
	}
	for done := 1; done <= all; done++ {
		for _, back := range []bool{false, true} {
			if back && done < pinned {
				continue // nothing has changed
			}
			work()
			next := 1 - now
			killSpecAfter(t, dir, versions[next](t), config, done)
			work() // by the old programs, which are attached
			if back {
				next = now
			}
			o = load(next)
			o.finish(t)
			if got := o.drops(t); got != packets {
				t.Errorf("after %d steps, back %v: %d packets are counted, want %d", done, back, got, packets)
			}
			if got := o.countFlows(t); got != flows {
				t.Errorf("after %d steps, back %v: %d flows, want %d", done, back, got, flows)
			}
			if entries, err := os.ReadDir(dir); err != nil || len(entries) != 4 {
				t.Errorf("after %d steps, back %v: %v, %v: something is left", done, back, entries, err)
			}
			now = next
		}
	}
}

// policyDrops finds where o counts packets dropped for REASON_POLICY.
func (o *Objects) policyDrops(t testing.TB) (m mapLayout, index uint32, packets leaf) {
	t.Helper()
	m, err := specLayout(o.spec.Maps[bpf.EbpnetMapDrops])
	must(t, err)
	packets, err = m.value.must("packets")
	must(t, err)
	return m, uint32(m.key.leaves[0].values["REASON_POLICY"]), packets
}

func (o *Objects) drops(t testing.TB) uint64 {
	t.Helper()
	m, index, packets := o.policyDrops(t)
	value, err := o.Maps.Drops.LookupBytes(index)
	must(t, err)
	return packets.read(m.sum(value))
}

// countDrop counts one more on each CPU, and tells how many that are.
func (o *Objects) countDrop(t testing.TB) uint64 {
	t.Helper()
	m, index, packets := o.policyDrops(t)
	value, err := o.Maps.Drops.LookupBytes(index)
	must(t, err)
	perCPU := m.perCPU(value)
	for _, v := range perCPU {
		packets.write(v, packets.read(v)+1)
	}
	must(t, o.Maps.Drops.Put(index, perCPU))
	return uint64(len(perCPU))
}

// restore opens a flow of this version's layout in o's tables.
func (o *Objects) restore(t testing.TB, flow bpf.EbpnetFlow) {
	t.Helper()
	spec, err := bpf.LoadEbpnet()
	must(t, err)
	from, err := specLayout(spec.Maps[bpf.EbpnetMapFlows])
	must(t, err)
	c, err := newTableCopy(from, o.spec.Maps[bpf.EbpnetMapFlows], nil)
	must(t, err)
	record, err := binary.Append(nil, binary.NativeEndian, flow)
	must(t, err)
	record, _ = c.value.convert(record)
	status, err := o.Programs.RestoreFlow.Run(&ebpf.RunOptions{Data: append(make([]byte, shortestFrame), record...)})
	if err != nil || status != 0 {
		t.Fatalf("restore_flow gives %d, %v", status, err)
	}
}

func (o *Objects) countFlows(t testing.TB) (n uint32) {
	t.Helper()
	m, err := specLayout(o.spec.Maps[bpf.EbpnetMapFlows])
	must(t, err)
	state, err := m.value.must(flowState)
	must(t, err)
	must(t, eachBatch(o.Maps.Flows, func(value []byte) error {
		if state.read(value) == state.values[flowEstablished] {
			n++
		}
		return nil
	}))
	return n
}
