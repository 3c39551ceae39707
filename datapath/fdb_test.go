package datapath

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"github.com/ebpnet/ebpnet/bpf"
)

// learn writes the entries that the datapath writes when it learns a station
// with its addresses.
func (t *Tables) learn(tb testing.TB, s bpf.EbpnetStation, addresses ...netip.Addr) {
	tb.Helper()
	now, err := coarseNow()
	entry := bpf.EbpnetLearned{Station: s, Seen: uint64(now)}
	err = errors.Join(err, t.Maps.LearnedFdb.Put(fdbKey(s.Network, s.Mac), entry))
	for _, a := range addresses {
		entry.Address = addressOf(a)
		err = errors.Join(err, t.Maps.LearnedNeigh.Put(entry.Address, entry))
	}
	for _, place := range placesOf(s) {
		var count bpf.EbpnetLearnedCount
		if missing := t.Maps.LearnedCounts.Lookup(place, &count); !errors.Is(missing, ebpf.ErrKeyNotExist) {
			err = errors.Join(err, missing)
		}
		count.Stations++
		count.Neighbors += uint32(len(addresses))
		err = errors.Join(err, t.Maps.LearnedCounts.Put(place, count))
	}
	if err != nil {
		tb.Fatal(err)
	}
}

// placesOf returns the places that count a station: its network, and its trunk
// or tunnel.
func placesOf(s bpf.EbpnetStation) []bpf.EbpnetLearnedPlace {
	return []bpf.EbpnetLearnedPlace{{Network: s.Network}, {Network: s.Network, Endpoint: s.Endpoint, Tunnel: s.Tunnel}}
}

// behindTrunk returns the nth station behind theTrunk.
func behindTrunk(n byte) bpf.EbpnetStation {
	s := theTrunk.station()
	s.Mac.Byte = mac{2, 7, 5: n}
	return s
}

// behindTunnel returns the nth station of a network behind a tunnel.
func behindTunnel(tunnel, network uint32, n byte) bpf.EbpnetStation {
	s := TunnelNetwork{Tunnel: tunnel, Network: network}.member()
	s.Mac.Byte = mac{2, 8, byte(tunnel), byte(network), 5: n}
	return s
}

// learned lists the learned stations by the last byte of their MAC, and the
// learned addresses. It fails unless the counts match.
func (t *Tables) learned(tb testing.TB) (found []string) {
	tb.Helper()
	counts := map[bpf.EbpnetLearnedPlace]bpf.EbpnetLearnedCount{}
	note := func(what string, l bpf.EbpnetLearned, stations, neighbors uint32) {
		s := l.Station
		found = append(found, fmt.Sprintf("%s on %d behind %d/%d", what, s.Network, s.Endpoint, s.Tunnel))
		for _, place := range placesOf(s) {
			c := counts[place]
			c.Stations, c.Neighbors = c.Stations+stations, c.Neighbors+neighbors
			counts[place] = c
		}
	}
	err := errors.Join(
		dumpTable(t.Maps.LearnedFdb, func(k bpf.EbpnetFdbKey, l bpf.EbpnetLearned) {
			note(fmt.Sprintf("station %d", k.Mac.Byte[5]), l, 1, 0)
		}),
		dumpTable(t.Maps.LearnedNeigh, func(k bpf.EbpnetAddress, l bpf.EbpnetLearned) {
			note(addrOf(k).String(), l, 0, 1)
		}),
	)
	if err != nil {
		tb.Fatal(err)
	}
	if diff := cmp.Diff(counts, t.counted(tb)); diff != "" {
		tb.Errorf("counts (-learned +counted):\n%s", diff)
	}
	slices.Sort(found)
	return found
}

// counted lists the places with their counts, without places that count
// nothing.
func (t *Tables) counted(tb testing.TB) map[bpf.EbpnetLearnedPlace]bpf.EbpnetLearnedCount {
	tb.Helper()
	counts := map[bpf.EbpnetLearnedPlace]bpf.EbpnetLearnedCount{}
	err := dumpTable(t.Maps.LearnedCounts, func(place bpf.EbpnetLearnedPlace, c bpf.EbpnetLearnedCount) {
		if c != (bpf.EbpnetLearnedCount{}) {
			counts[place] = c
		}
	})
	if err != nil {
		tb.Fatal(err)
	}
	return counts
}

func TestStations(t *testing.T) {
	t.Parallel()
	tables := emptyTables(t)
	if got, err := tables.Stations(); err != nil || len(got) != 0 {
		t.Fatalf("new tables: %v, %v, want no station", got, err)
	}
	wanted := example()
	wanted.Networks = wanted.Networks[:1]
	wanted.Endpoints = []Endpoint{wanted.Endpoints[0], wanted.Endpoints[len(locals())], theTrunk}
	if err := tables.Replace(wanted); err != nil {
		t.Fatal(err)
	}
	tables.learn(t, behindTunnel(theTunnel, openNet, 9))
	tables.learn(t, behindTrunk(8), address4(openNet, 80))

	got, err := tables.Stations()
	if err != nil {
		t.Fatal(err)
	}
	for i := range got {
		s := &got[i]
		if s.Learned && s.Age > time.Minute || !s.Learned && s.Age != 0 {
			t.Errorf("%+v: want age 0 if it is static, little if it is learned", *s)
		}
		s.Age = 0
	}
	want := []Station{
		{Network: openNet, MAC: theTrunk.MAC, Endpoint: theTrunk.ID},
		{Network: openNet, MAC: mac{2, 7, 5: 8}, Endpoint: theTrunk.ID, Learned: true},
		{Network: openNet, MAC: mac{2, 8, theTunnel, openNet, 5: 9}, Tunnel: theTunnel, Learned: true},
		{Network: openNet, MAC: gatewayMAC, Gateway: true},
		{Network: openNet, MAC: alice.mac, Endpoint: alice.id},
		{Network: openNet, MAC: remote.mac, Endpoint: remote.id, Tunnel: theTunnel},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("stations (-want +got):\n%s", diff)
	}

	long := uint64(20 * time.Second)
	entry := bpf.EbpnetLearned{Station: behindTunnel(theTunnel, openNet, 9)}
	now, err := coarseNow()
	if err != nil {
		t.Fatal(err)
	}
	entry.Seen = uint64(now) - long
	if err := tables.Maps.LearnedFdb.Put(fdbKey(openNet, entry.Station.Mac), entry); err != nil {
		t.Fatal(err)
	}
	if got, err = tables.Stations(); err != nil || got[2].Age < time.Duration(long) || got[1].Age >= time.Duration(long) {
		t.Errorf("want a station seen 20 s ago after one seen just now, got %+v, %v", got, err)
	}
}

func TestForgetLearned(t *testing.T) {
	t.Parallel()
	tables := emptyTables(t)
	if err := tables.Replace(example()); err != nil {
		t.Fatal(err)
	}
	const (
		trunk1, trunk2         = "station 1 on 1 behind 7/0", "station 2 on 1 behind 7/0"
		neighbor               = "172.30.1.80 on 1 behind 7/0"
		open1, open2, internal = "station 3 on 1 behind 0/1", "station 4 on 1 behind 0/2", "station 5 on 3 behind 0/2"
	)
	for _, c := range []struct {
		filter LearnedFilter
		left   []string
	}{
		{LearnedFilter{Network: openNet}, []string{internal}},
		{LearnedFilter{Endpoint: theTrunk.ID}, []string{open1, open2, internal}},
		{LearnedFilter{Tunnel: theTunnel}, []string{neighbor, trunk1, trunk2, open2, internal}},
		{LearnedFilter{Network: openNet, Tunnel: otherTunnel}, []string{neighbor, trunk1, trunk2, open1, internal}},
		{LearnedFilter{Network: closedNet}, []string{neighbor, trunk1, trunk2, open1, open2, internal}},
		{LearnedFilter{Network: internalNet, Tunnel: theTunnel}, []string{neighbor, trunk1, trunk2, open1, open2, internal}},
		{LearnedFilter{Endpoint: theTrunk.ID, Tunnel: theTunnel}, []string{neighbor, trunk1, trunk2, open1, open2, internal}},
		{LearnedFilter{Endpoint: alice.id}, []string{neighbor, trunk1, trunk2, open1, open2, internal}},
		{LearnedFilter{}, nil},
	} {
		if err := tables.ForgetLearned(LearnedFilter{}); err != nil {
			t.Fatal(err)
		}
		tables.learn(t, behindTrunk(1))
		tables.learn(t, behindTrunk(2), address4(openNet, 80))
		tables.learn(t, behindTunnel(theTunnel, openNet, 3))
		tables.learn(t, behindTunnel(otherTunnel, openNet, 4))
		tables.learn(t, behindTunnel(otherTunnel, internalNet, 5))
		if err := tables.ForgetLearned(c.filter); err != nil {
			t.Fatal(err)
		}
		slices.Sort(c.left)
		if diff := cmp.Diff(c.left, tables.learned(t)); diff != "" {
			t.Errorf("left after %+v (-want +got):\n%s", c.filter, diff)
		}
	}
	if got, err := tables.Stations(); err != nil || len(got) != 13 {
		t.Errorf("static stations were removed with the learned ones: %v, %v", got, err)
	}
}

// TestDeletionForgetsLearned checks that a deletion forgets the stations
// learned at the deleted place, and no others.
func TestDeletionForgetsLearned(t *testing.T) {
	t.Parallel()
	tables := emptyTables(t)
	const (
		trunk, neighbor    = "station 1 on 1 behind 7/0", "172.30.1.80 on 1 behind 7/0"
		open1, open2       = "station 2 on 1 behind 0/1", "station 3 on 1 behind 0/2"
		internal, elseways = "station 4 on 3 behind 0/2", "station 5 on 4 behind 0/1"
	)
	all := []string{neighbor, trunk, open1, open2, internal, elseways}
	without := func(gone ...string) []string {
		return slices.DeleteFunc(slices.Sorted(slices.Values(all)), func(s string) bool { return slices.Contains(gone, s) })
	}
	renewed := theTrunk
	renewed.Ifindex++
	plainEndpoint := theTrunk
	plainEndpoint.Trunk = false
	moved := example().Tunnels[0]
	moved.Remote = netip.MustParseAddr("192.0.2.3")
	changed := example().Tunnels[0]
	changed.Checksums, changed.TTL = true, 1
	is := func(c TunnelNetwork) func(TunnelNetwork) bool {
		return func(o TunnelNetwork) bool { return o.Tunnel == c.Tunnel && o.Network == c.Network }
	}
	for _, c := range []struct {
		name  string
		want  func(*Wanted)
		apply func() error // nil: only Replace can do it
		left  []string
	}{
		{
			"no change", func(*Wanted) {},
			func() error { return tables.putAll(example()) }, without(),
		},
		{
			"the trunk", func(w *Wanted) { w.Endpoints = w.Endpoints[:len(w.Endpoints)-1] },
			func() error { return tables.DeleteEndpoint(theTrunk) }, without(trunk, neighbor),
		},
		{
			"an endpoint", func(w *Wanted) { w.Endpoints = w.Endpoints[1:] },
			func() error { return tables.DeleteEndpoint(example().Endpoints[0]) }, without(),
		},
		{
			"the endpoint is a trunk no more", func(w *Wanted) { w.Endpoints[len(w.Endpoints)-1] = plainEndpoint },
			func() error { return tables.PutEndpoint(plainEndpoint) }, without(trunk, neighbor),
		},
		{
			"the trunk's veth", func(w *Wanted) { w.Endpoints[len(w.Endpoints)-1] = renewed },
			func() error { return errors.Join(tables.DeleteEndpoint(theTrunk), tables.PutEndpoint(renewed)) }, without(trunk, neighbor),
		},
		{
			"a tunnel stops carrying a network",
			func(w *Wanted) {
				w.TunnelNetworks = slices.DeleteFunc(w.TunnelNetworks, is(TunnelNetwork{Tunnel: otherTunnel, Network: openNet}))
			},
			nil, without(open2),
		},
		{
			"a tunnel stops carrying a network, and both stay", func(*Wanted) {},
			func() error {
				return tables.DeleteTunnelNetwork(TunnelNetwork{Tunnel: otherTunnel, Network: openNet, Key: key(openKey)})
			},
			without(),
		},
		{
			"a tunnel",
			func(w *Wanted) {
				w.Tunnels = w.Tunnels[1:]
				w.TunnelNetworks = slices.DeleteFunc(w.TunnelNetworks, func(c TunnelNetwork) bool { return c.Tunnel == theTunnel })
			},
			func() error { return tables.DeleteTunnel(example().Tunnels[0], false) },
			without(open1, elseways),
		},
		{"a tunnel to another remote", func(w *Wanted) { w.Tunnels[0] = moved }, nil, without(open1, elseways)},
		{"a tunnel with other headers", func(w *Wanted) { w.Tunnels[0] = changed }, func() error { return tables.PutTunnel(changed) }, without()},
		{
			"a network",
			func(w *Wanted) {
				w.Networks = slices.DeleteFunc(w.Networks, func(n Network) bool { return n.ID == internalNet })
				w.Endpoints = slices.DeleteFunc(w.Endpoints, func(e Endpoint) bool { return e.Network == internalNet })
				w.TunnelNetworks = slices.DeleteFunc(w.TunnelNetworks, is(TunnelNetwork{Tunnel: otherTunnel, Network: internalNet}))
			},
			func() error { return tables.DeleteNetwork(example().Networks[internalNet-1]) },
			without(internal),
		},
		{"everything", func(w *Wanted) { *w = Wanted{} }, nil, nil},
	} {
		wanted := example()
		c.want(&wanted)
		for how, apply := range map[string]func() error{
			"with Replace":      func() error { return tables.Replace(wanted) },
			"with its own call": c.apply,
		} {
			if apply == nil {
				continue
			}
			if err := errors.Join(tables.Replace(example()), tables.ForgetLearned(LearnedFilter{})); err != nil {
				t.Fatal(err)
			}
			tables.learn(t, behindTrunk(1), address4(openNet, 80))
			tables.learn(t, behindTunnel(theTunnel, openNet, 2))
			tables.learn(t, behindTunnel(otherTunnel, openNet, 3))
			tables.learn(t, behindTunnel(otherTunnel, internalNet, 4))
			tables.learn(t, behindTunnel(theTunnel, plainNet, 5))
			if err := apply(); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.left, tables.learned(t)); diff != "" {
				t.Errorf("%s, %s: learned (-want +got):\n%s", c.name, how, diff)
			}
		}
	}
}
