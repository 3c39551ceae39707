package loader

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/ebpnet/ebpnet/bpf"
)

// compiled reads compiled programs below testdata/.
func compiled(t testing.TB, name string) *ebpf.CollectionSpec {
	t.Helper()
	file, err := os.Open(filepath.Join("testdata", name))
	must(t, err)
	defer file.Close()
	unpacked, err := gzip.NewReader(file)
	must(t, err)
	object, err := io.ReadAll(unpacked)
	must(t, err)
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(object))
	must(t, err)
	return spec
}

// TestUpgradeOfTheReleaseWhereAttached replaces attached programs of version
// e41502a, in the links that it made.
func TestUpgradeOfTheReleaseWhereAttached(t *testing.T) {
	t.Parallel()
	old := loadRelease(t)
	w := newWire(t)
	before := &Objects{dir: old.dir, XDP: old.loadXDP(t)}
	before.Programs.FromUplink = old.Programs[FromUplink.name]
	w.Do(func() {
		must(t, before.Attach(FromUplink, w.ifindex))
		must(t, before.AttachXDP(w.ifindex, XDPNative))
	})
	o, err := Load(old.dir, Config{GatewayIfindex: 1, Flows: fewFlows, NeedXDP: true})
	must(t, err)
	t.Cleanup(func() { must(t, o.Close()) })
	w.Do(func() {
		must(t, o.AttachXDP(w.ifindex, XDPNative))
		// First before the older one, then alone.
		if inFront, err := o.AttachInFront(FromUplink, w.ifindex); err != nil || !inFront {
			t.Errorf("from_uplink does not run in front: %v, %v", inFront, err)
		}
	})
	both := []ebpf.ProgramID{programID(t, o.Programs.FromUplink), programID(t, old.Programs[FromUplink.name])}
	if got := w.attached(t); !slices.Equal(got, both) {
		t.Errorf("programs %v are attached, want %v", got, both)
	}
	must(t, o.PromoteFronts())
	w.awaitAttached(t, 1)
	w.Do(func() { must(t, o.Attach(FromUplink, w.ifindex)) })
	w.expectXDP(t, o, map[int]XDPMode{w.ifindex: XDPNative})
	if got, want := w.xdp(t), programID(t, o.XDP); got != want {
		t.Errorf("XDP program %d is attached, want %d", got, want)
	}
	if got, want := w.attached(t), []ebpf.ProgramID{programID(t, o.Programs.FromUplink)}; !slices.Equal(got, want) {
		t.Errorf("programs %v are attached, want %v", got, want)
	}
	must(t, o.DetachXDP(w.ifindex))
}

// addressOf is an IPv4 address as the tables have it.
func addressOf(a, b, c, d byte) (address bpf.EbpnetAddress) {
	whole := [16]byte{10: 0xff, 11: 0xff, 12: a, 13: b, 14: c, 15: d}
	for i := range address.Word {
		address.Word[i] = binary.NativeEndian.Uint32(whole[4*i:])
	}
	return address
}

// Ids of what the tests put into the tables.
const (
	testNetwork     = 1
	testClient      = 7
	testServer      = 9
	testPublication = 3
)

// TestUpgradeOfTheRelease loads over version e41502a with every kind of state in
// its tables.
func TestUpgradeOfTheRelease(t *testing.T) {
	t.Parallel()
	old := loadRelease(t)

	// Flows: of a link, half-open, masqueraded, and of a published port.
	linked := testFlow(t, 1, bpf.EbpnetFlowStateFLOW_ESTABLISHED, time.Minute)
	halfOpen := testFlow(t, 2, bpf.EbpnetFlowStateFLOW_HALF_OPEN, time.Second)
	client, server := linked.Original.Src, linked.Original.Dst
	masqueraded := testFlow(t, 3, bpf.EbpnetFlowStateFLOW_ESTABLISHED, 0)
	masqueraded.Original.Dst = addressOf(192, 0, 2, 1)
	masqueraded.Reply = bpf.EbpnetFlowKey{
		Src: masqueraded.Original.Dst, Dst: addressOf(198, 51, 100, 1), Sport: 80, Dport: 5000, Protocol: 6,
	}
	masqueraded.Mapping, masqueraded.Uplink = 2, 5
	published := testFlow(t, 4, bpf.EbpnetFlowStateFLOW_ESTABLISHED, 0)
	published.Original.Network, published.Original.Src = 0, addressOf(192, 0, 2, 7)
	published.Original.Dst, published.Original.Dport = addressOf(198, 51, 100, 1), 8080
	published.Reply = bpf.EbpnetFlowKey{
		Src: server, Dst: published.Original.Src, Sport: 80, Dport: published.Original.Sport, Network: testNetwork, Protocol: 6,
	}
	masqueraded.Phase = bpf.EbpnetFlowPhasePHASE_CLOSING_REPLY
	published.Phase = bpf.EbpnetFlowPhasePHASE_RESET_ORIGINAL
	halfOpen.Phase = bpf.EbpnetFlowPhasePHASE_REPLIED
	closing := testFlow(t, 6, bpf.EbpnetFlowStateFLOW_HALF_OPEN, time.Second)
	closing.Phase = bpf.EbpnetFlowPhasePHASE_REPLIED
	flows := []bpf.EbpnetFlow{linked, halfOpen, masqueraded, published, closing}
	for i, f := range flows {
		old.put(t, uint32(i), f)
	}
	neighbors := old.Maps[bpf.EbpnetMapNeighbors]
	must(t, neighbors.Put(client, releaseStation{Network: testNetwork, Endpoint: testClient}))
	must(t, neighbors.Put(server, releaseStation{Network: testNetwork, Endpoint: testServer}))

	// Configuration, of which the port had a shorter record.
	must(t, old.Maps[bpf.EbpnetMapPorts].Put(
		bpf.EbpnetPortKey{Address: published.Original.Dst, Port: published.Original.Dport, Protocol: 6},
		struct {
			Address            bpf.EbpnetAddress
			Network, ID, Flags uint32
			Port               uint16
			Pad                [2]byte
		}{Address: server, Network: testNetwork, ID: testPublication, Port: 80},
	))
	must(t, old.Maps[bpf.EbpnetMapDevices].Put(uint32(12), bpf.EbpnetDevice{Network: testNetwork, Endpoint: testClient}))
	must(t, old.Maps[bpf.EbpnetMapNetworks].Put(uint32(testNetwork), bpf.EbpnetNetwork{Flags: bpf.EbpnetNetworkFlagNETWORK_ICC, Members: 2}))

	// Counts, a learned station, a path.
	counts := newCounts(t)
	counts.add(t, old.Maps[bpf.EbpnetMapDrops], uint32(bpf.EbpnetReasonREASON_POLICY), counter(3, 300))
	counts.add(t, old.Maps[bpf.EbpnetMapEndpointStats], testClient, traffic(1, 2))
	counts.add(t, old.Maps[bpf.EbpnetMapTunnelStats], 1, traffic(3, 4))
	mac := bpf.EbpnetFdbKey{Network: testNetwork, Mac: bpf.EbpnetMac{Byte: [6]byte{2, 1}}}
	station := bpf.EbpnetStation{Network: testNetwork, Endpoint: 11, Mac: mac.Mac}
	learned := releaseLearned{Station: releaseStation{Network: testNetwork, Endpoint: 11, Mac: mac.Mac}, Seen: linked.Seen}
	must(t, old.Maps[bpf.EbpnetMapLearnedFdb].Put(mac, learned))
	neighbor, lateNeighbor := addressOf(10, 0, 0, 90), addressOf(10, 0, 0, 91)
	must(t, old.Maps[bpf.EbpnetMapLearnedNeigh].Put(neighbor, learned))
	must(t, old.Maps[bpf.EbpnetMapTunnelPaths].Put(uint32(1), bpf.EbpnetTunnelPath{Mtu: 1400, Sequence: 99}))
	must(t, old.Maps[bpf.EbpnetMapPastTraffic].Put(uint32(testNetwork), bpf.EbpnetTraffic{Tx: counter(5, 6)}))

	if n, err := CountDevices(old.dir); n != 1 || err != nil {
		t.Errorf("%d devices, %v; want 1", n, err)
	}
	if o, err := Open(old.dir); !errors.Is(err, ErrOtherVersion) {
		if err == nil {
			must(t, o.Close())
		}
		t.Errorf("before the load: %v, want ErrOtherVersion", err)
	}

	o := loadFor(t, old.dir, fewFlows)
	o.check(t, flows...)
	found := o.found(t)
	for _, c := range []struct {
		flow          bpf.EbpnetFlow
		owner, server uint32
		counted       bool
	}{
		{linked, testClient, testServer, false},
		{halfOpen, testClient, testServer, false},
		{closing, testClient, testServer, false},
		{masqueraded, testClient, 0, true},
		{published, uint32(bpf.EbpnetOwnerOWNER_PORTS) + testPublication, testServer, false},
	} {
		got := found[c.flow.Original]
		if got.Owner != c.owner || got.Server != c.server || (got.PlaceOwn != 0) != c.counted || got.Uplink != c.flow.Uplink {
			t.Errorf("flow with port %d: owner %d, server %d, its port is counted at %d, uplink %d; want %+v",
				c.flow.Original.Sport, got.Owner, got.Server, got.PlaceOwn, got.Uplink, c)
		}
	}
	var port bpf.EbpnetPort
	must(t, o.Maps.Ports.Lookup(bpf.EbpnetPortKey{Address: published.Original.Dst, Port: published.Original.Dport, Protocol: 6}, &port))
	if want := (bpf.EbpnetPort{Address: server, Network: testNetwork, Id: testPublication, Port: 80}); port != want {
		t.Errorf("the port is %+v, want %+v", port, want)
	}
	var got bpf.EbpnetLearned
	must(t, o.Maps.LearnedFdb.Lookup(mac, &got))
	if got.Station != station || got.Seen != learned.Seen || got.Number == 0 {
		t.Errorf("the learned station is %+v, was %+v; want a record too", got, learned)
	}
	checkNeighbor := func(a bpf.EbpnetAddress) {
		t.Helper()
		must(t, o.Maps.LearnedNeigh.Lookup(a, &got))
		if got.Station != station || got.Number == 0 || got.Address != a {
			t.Errorf("the learned neighbor is %+v, was %+v; want a record and the address %v too", got, learned, a)
		}
	}
	checkNeighbor(neighbor)
	var path bpf.EbpnetTunnelPath
	must(t, o.Maps.TunnelPaths.Lookup(uint32(1), &path))
	if path.Mtu != 1400 || path.Sequence != 99 {
		t.Errorf("the path is %+v", path)
	}
	counts.check(t, o)

	// The old programs count and learn on until they are replaced.
	counts.add(t, old.Maps[bpf.EbpnetMapDrops], uint32(bpf.EbpnetReasonREASON_POLICY), counter(1, 100))
	counts.add(t, old.Maps[bpf.EbpnetMapDrops], uint32(bpf.EbpnetReasonREASON_CONGESTION), counter(2, 200))
	late := mac
	late.Mac.Byte[5] = 9
	must(t, old.Maps[bpf.EbpnetMapLearnedFdb].Put(late, learned))
	must(t, old.Maps[bpf.EbpnetMapLearnedNeigh].Put(lateNeighbor, learned))
	lateFlow := testFlow(t, 5, bpf.EbpnetFlowStateFLOW_ESTABLISHED, 0)
	old.put(t, 9, lateFlow)
	halfOpen.State, halfOpen.Phase = bpf.EbpnetFlowStateFLOW_ESTABLISHED, bpf.EbpnetFlowPhasePHASE_ESTABLISHED
	old.put(t, 1, halfOpen)
	// A handshake in the old tables, and a FIN in the new ones.
	closing.State, closing.Phase = bpf.EbpnetFlowStateFLOW_ESTABLISHED, bpf.EbpnetFlowPhasePHASE_ESTABLISHED
	old.put(t, 4, closing)
	closing.Phase = bpf.EbpnetFlowPhasePHASE_REPLIED_CLOSING_REPLY
	o.setPhase(t, closing)
	flows = []bpf.EbpnetFlow{linked, halfOpen, masqueraded, published, closing, lateFlow}

	if lost := o.finish(t); lost != 0 {
		t.Errorf("%d flows are lost", lost)
	}
	o.check(t, flows...)
	counts.check(t, o)
	must(t, o.Maps.LearnedFdb.Lookup(late, &got))
	if got.Number == 0 {
		t.Error("the station that was learned late has no record")
	}
	checkNeighbor(lateNeighbor)
	o.finish(t)
	counts.check(t, o)
	if _, err := os.Stat(filepath.Join(old.dir, oldDirectory)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("old tables are left: %v", err)
	}

	// From now on nothing is made again.
	pins := listPins(t, old.dir)
	again := loadFor(t, old.dir, fewFlows)
	for what, c := range map[string]struct {
		o    *Objects
		want uint16
	}{"the upgrade": {o, releaseMark}, "a load of the same version": {again, 0}} {
		var mark uint16
		must(t, c.o.spec.Variables[bpf.EbpnetVarReleaseMark].Get(&mark))
		if mark != c.want {
			t.Errorf("the programs of %s know the mark %#x, want %#x", what, mark, c.want)
		}
	}
	if idOf(t, o.Maps.Drops) != idOf(t, again.Maps.Drops) || !slices.Equal(pins, listPins(t, old.dir)) {
		t.Error("a load of the same version makes tables again")
	}
}

// setPhase moves a flow in the tables to the phase of f.
func (o *Objects) setPhase(t testing.TB, f bpf.EbpnetFlow) {
	t.Helper()
	key, _ := indexed(f)
	var ref bpf.EbpnetFlowRef
	must(t, o.Maps.FlowIndex.Lookup(key, &ref))
	var there bpf.EbpnetFlow
	must(t, o.Maps.Flows.Lookup(ref.Slot, &there))
	there.Phase = f.Phase
	must(t, o.Maps.Flows.Put(ref.Slot, there))
}

func counter(packets, bytes uint64) bpf.EbpnetCounter {
	return bpf.EbpnetCounter{Packets: packets, Bytes: bytes}
}

func traffic(tx, rx uint64) bpf.EbpnetTraffic {
	return bpf.EbpnetTraffic{Tx: counter(tx, 10*tx), Rx: counter(rx, 10*rx)}
}

// counts are the sums that the tables should have: of every CPU, by table and
// key.
type counts struct {
	cpus     int
	drops    map[uint32]bpf.EbpnetCounter
	traffics map[string]map[uint32]bpf.EbpnetTraffic
}

func newCounts(t testing.TB) *counts {
	t.Helper()
	cpus, err := ebpf.PossibleCPU()
	must(t, err)
	return &counts{cpus, map[uint32]bpf.EbpnetCounter{}, map[string]map[uint32]bpf.EbpnetTraffic{}}
}

// add counts on every CPU.
func (c *counts) add(t testing.TB, m *ebpf.Map, key uint32, more any) {
	t.Helper()
	n := uint64(c.cpus)
	switch more := more.(type) {
	case bpf.EbpnetCounter:
		var values []bpf.EbpnetCounter
		must(t, m.Lookup(key, &values))
		for i := range values {
			values[i] = addCounter(values[i], more, 1)
		}
		must(t, m.Put(key, values))
		c.drops[key] = addCounter(c.drops[key], more, n)
	case bpf.EbpnetTraffic:
		info, err := m.Info()
		must(t, err)
		var values []bpf.EbpnetTraffic
		must(t, m.Lookup(key, &values))
		for i := range values {
			values[i] = addTraffic(values[i], more, 1)
		}
		must(t, m.Put(key, values))
		if c.traffics[info.Name] == nil {
			c.traffics[info.Name] = map[uint32]bpf.EbpnetTraffic{}
		}
		c.traffics[info.Name][key] = addTraffic(c.traffics[info.Name][key], more, n)
	}
}

func addCounter(a, b bpf.EbpnetCounter, times uint64) bpf.EbpnetCounter {
	return counter(a.Packets+times*b.Packets, a.Bytes+times*b.Bytes)
}

func addTraffic(a, b bpf.EbpnetTraffic, times uint64) bpf.EbpnetTraffic {
	return bpf.EbpnetTraffic{Tx: addCounter(a.Tx, b.Tx, times), Rx: addCounter(a.Rx, b.Rx, times)}
}

// check expects just these counts.
func (c *counts) check(t testing.TB, o *Objects) {
	t.Helper()
	for key := range o.Maps.Drops.MaxEntries() {
		var values []bpf.EbpnetCounter
		must(t, o.Maps.Drops.Lookup(key, &values))
		var sum bpf.EbpnetCounter
		for _, v := range values {
			sum = addCounter(sum, v, 1)
		}
		if sum != c.drops[key] {
			t.Errorf("reason %d: %+v, want %+v", key, sum, c.drops[key])
		}
	}
	for name, want := range c.traffics {
		m := map[string]*ebpf.Map{
			bpf.EbpnetMapEndpointStats: o.Maps.EndpointStats, bpf.EbpnetMapTunnelStats: o.Maps.TunnelStats,
		}[name]
		for key, w := range want {
			var values []bpf.EbpnetTraffic
			must(t, m.Lookup(key, &values))
			var sum bpf.EbpnetTraffic
			for _, v := range values {
				sum = addTraffic(sum, v, 1)
			}
			if sum != w {
				t.Errorf("%s of %d: %+v, want %+v", name, key, sum, w)
			}
		}
	}
}
