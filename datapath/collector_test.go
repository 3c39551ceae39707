package datapath

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/ebpnet/ebpnet/bpf"
	"github.com/ebpnet/ebpnet/internal/testutil"
	"github.com/ebpnet/ebpnet/loader"
)

func TestTrafficIsReset(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	w := newWorld(t, loadPinned)
	w.send(t, fromEndpoint("", alice, between(alice, remote, false, udp(1, 2)).frame(t)))
	for _, noun := range []struct {
		name  string
		read  func(uint32) (Traffic, error)
		reset func(uint32) error
		id    uint32
	}{
		{"endpoint", w.EndpointTraffic, w.ResetEndpointTraffic, alice.id},
		{"tunnel", w.TunnelTraffic, w.ResetTunnelTraffic, theTunnel},
	} {
		before, err := noun.read(noun.id)
		if err != nil || before.Tx.Packets != 1 {
			t.Errorf("%s: %+v, %v, want one packet", noun.name, before, err)
		}
		if err := noun.reset(noun.id); err != nil {
			t.Fatal(err)
		}
		if after, err := noun.read(noun.id); err != nil || after != (Traffic{}) {
			t.Errorf("%s after the reset: %+v, %v", noun.name, after, err)
		}
	}
	path := bpf.EbpnetTunnelPath{Lowered: 1, Mtu: 1400, Sequence: 3}
	if err := w.Maps.TunnelPaths.Put(uint32(theTunnel), path); err != nil {
		t.Fatal(err)
	}
	if err := w.ResetTunnelTraffic(theTunnel); err != nil {
		t.Fatal(err)
	}
	if err := w.Maps.TunnelPaths.Lookup(uint32(theTunnel), &path); err != nil || path != (bpf.EbpnetTunnelPath{}) {
		t.Errorf("path of the tunnel after the reset: %+v, %v, want none", path, err)
	}
	if _, err := w.EndpointTraffic(firstRemote); err == nil {
		t.Error("a remote endpoint has counters")
	}
}

// TestTrafficOfANetworkOutlivesItsEndpoints checks that the counter of a
// network does not fall when an endpoint is deleted.
func TestTrafficOfANetworkOutlivesItsEndpoints(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	w := newWorld(t, loadPinned)
	for _, from := range []host{alice, bob, alice} {
		w.send(t, fromEndpoint("", from, between(from, remote, false, udp(1, 2)).frame(t)))
	}
	holds := func(when string, want uint64) {
		t.Helper()
		traffic, err := w.NetworkTraffic()
		if err != nil {
			t.Fatal(err)
		}
		if got := traffic[openNet].Tx.Packets; got != want {
			t.Errorf("%s: %d packets sent, want %d", when, got, want)
		}
	}
	holds("at first", 3)
	without := func(gone host) Endpoint {
		at := slices.IndexFunc(w.wanted.Endpoints, func(e Endpoint) bool { return e.ID == gone.id })
		e := w.wanted.Endpoints[at]
		w.wanted.Endpoints = slices.Delete(w.wanted.Endpoints, at, at+1)
		return e
	}
	for range 2 { // a command repeats it if the process before it was killed
		e := w.wanted.Endpoints[0]
		if err := w.DeleteEndpoint(e); err != nil {
			t.Fatal(err)
		}
		holds("after one endpoint is deleted", 3)
	}
	without(alice)
	without(bob)
	for range 2 {
		if err := w.Replace(w.wanted); err != nil {
			t.Fatal(err)
		}
		holds("after all endpoints are deleted", 3)
	}
	if err := w.ResetNetworkTraffic(openNet); err != nil {
		t.Fatal(err)
	}
	holds("after the id is reused", 0)
}

// TestTrafficOfANetworkNeverFalls reads the counter of a network while one of
// its endpoints is added, sends, and is deleted. The counter never decreases.
func TestTrafficOfANetworkNeverFalls(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	w := newWorld(t, loadPinned)
	at := slices.IndexFunc(w.wanted.Endpoints, func(e Endpoint) bool { return e.ID == alice.id })
	going := w.wanted.Endpoints[at]
	const times = 300
	gone, read := make(chan error, 1), make(chan error, 1)
	go func() {
		var err error
		for i := 0; i < times && err == nil; i++ {
			err = errors.Join(w.DeleteEndpoint(going), w.PutEndpoint(going))
		}
		gone <- err
	}()
	over := make(chan struct{})
	go func() {
		var before uint64
		for {
			traffic, err := w.NetworkTraffic()
			now := traffic[openNet].Tx.Packets
			if err == nil && now < before {
				err = fmt.Errorf("%d packets, but %d before", now, before)
			}
			if err != nil {
				read <- err
				return
			}
			before = now
			select {
			case <-over:
				if before == 0 {
					err = errors.New("no packet was counted")
				}
				read <- err
				return
			default:
			}
		}
	}()
	hello := fromEndpoint("", alice, between(alice, remote, false, udp(1, 2)).frame(t))
	for {
		w.send(t, hello)
		select {
		case err := <-gone:
			close(over)
			if err := errors.Join(err, <-read); err != nil {
				t.Fatal(err)
			}
			return
		default:
		}
	}
}

func TestUsageNamesEveryMap(t *testing.T) {
	t.Parallel()
	tables := emptyTables(t)
	if err := tables.Replace(example()); err != nil {
		t.Fatal(err)
	}
	collection, err := bpf.LoadEbpnet()
	if err != nil {
		t.Fatal(err)
	}
	usage, err := tables.Usage()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]MapUsage{}
	for _, u := range usage {
		got[u.Name] = u
		if u.Entries > int(u.Capacity) || u.Capacity == 0 {
			t.Errorf("%+v", u)
		}
	}
	for name := range collection.Maps {
		if _, ok := got[name]; !ok && !strings.HasPrefix(name, ".") {
			t.Errorf("map %s: no usage", name)
		}
	}
	for name, want := range map[string]int{
		bpf.EbpnetMapDevices: len(locals()) + 1, bpf.EbpnetMapFdb: 13, bpf.EbpnetMapLinks: 4, bpf.EbpnetMapFlowIndex: 0, bpf.EbpnetMapUplinkBuckets: 2, bpf.EbpnetMapTunnelBuckets: 4,
		bpf.EbpnetMapCarried: 5, bpf.EbpnetMapMembers: len(locals()) + 1 + 5, bpf.EbpnetMapTunnels: 2, bpf.EbpnetMapLearnedFdb: 0,
	} {
		if got[name].Entries != want {
			t.Errorf("%d entries in %s, want %d", got[name].Entries, name, want)
		}
	}
}

func TestCollector(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	dir := pinDirectory(t)
	w := newWorld(t, loadAt(dir))
	w.send(t, fromEndpoint("", alice, between(alice, remote, false, udp(1, 2)).frame(t)))
	w.send(t, fromEndpoint("", insider, between(insider, nobody, false, udp(1, 2)).frame(t)))
	w.send(t, sentBy(t, alice, false, udp(1, 2)))
	fragmented, _, _ := inFragments(outgoing(alice, false, udp(1, 2)))
	w.send(t, fromEndpoint("", alice, fragmented.frame(t)))
	w.send(t, fromUplink("", incoming(false, tcp(40000, webPort, "S")).frame(t)))
	must(t, w.setLimits(alice.id, Limits{MaxFlows: 100, MaxHalfOpen: 200, MaxPorts: 300, MaxFragments: 4, MaxFlood: 500}))
	w.learn(t, Endpoint{Network: openNet, Tunnel: theTunnel, MAC: nobody.mac}.station())
	if err := errors.Join(
		w.Maps.FloodBudgets.Put(alice.id, bpf.EbpnetFloodBudget{Limited: 7}),
		w.Maps.FloodBudgets.Put(w.tunnelFlooder(theTunnel), bpf.EbpnetFloodBudget{Limited: 8}),
		w.Maps.Refusals.Put(alice.id, bpf.EbpnetRefused{Flows: 10, Ports: 11, Fragments: 12}),
		w.SetPortLimit(webPort, 600), w.SetTunnelLimit(theTunnel, 700),
		w.Maps.Trunks.Put(alice.id, bpf.EbpnetTrunk{Loops: 9, Blocked: never}),
	); err != nil {
		t.Fatal(err)
	}
	names := Names{
		Endpoints: []NamedEndpoint{{Name: "web", Network: "front", ID: alice.id, Engine: "docker", Container: "web1", ContainerID: "4f1c"}},
		Ports:     []NamedPort{{Endpoint: "web", Network: "front", Name: "80:80/tcp", ID: webPort}},
		Networks:  map[string]uint32{"front": openNet, "back": closedNet},
		Tunnels:   map[string]uint32{"hB": theTunnel},
	}
	// The collector closes the tables, so each scrape opens them again.
	open := func() (*Tables, error) { return Open(dir) }
	metrics := gather(t, NewCollector(open, func() (Names, error) { return names, nil }))
	for want, value := range map[string]float64{
		"ebpnet_loaded": 1,
		"ebpnet_endpoint_transmit_packets_total endpoint=web network=front":                              3,
		"ebpnet_endpoint_receive_packets_total endpoint=web network=front":                               1,
		"ebpnet_endpoint_flood_limited_packets_total endpoint=web network=front":                         7,
		"ebpnet_tunnel_flood_limited_packets_total tunnel=hB":                                            8,
		"ebpnet_endpoint_loops_total endpoint=web network=front":                                         9,
		"ebpnet_endpoint_blocked endpoint=web network=front":                                             1,
		"ebpnet_endpoint_info container=web1 container_id=4f1c endpoint=web engine=docker network=front": 1,

		"ebpnet_endpoint_flows endpoint=web network=front state=established": 0,
		"ebpnet_endpoint_flows endpoint=web network=front state=half-open":   1,
		"ebpnet_endpoint_max_flows endpoint=web network=front":               100,

		"ebpnet_endpoint_max_half_open_flows endpoint=web network=front":                200,
		"ebpnet_endpoint_flow_limited_packets_total endpoint=web network=front":         10,
		"ebpnet_endpoint_max_ports endpoint=web network=front":                          300,
		"ebpnet_endpoint_port_limited_packets_total endpoint=web network=front":         11,
		"ebpnet_endpoint_fragmented_datagrams endpoint=web network=front":               1,
		"ebpnet_endpoint_max_fragmented_datagrams endpoint=web network=front":           4,
		"ebpnet_endpoint_fragment_limited_packets_total endpoint=web network=front":     12,
		"ebpnet_endpoint_max_flooded_copies endpoint=web network=front":                 500,
		"ebpnet_tunnel_max_flooded_copies tunnel=hB":                                    700,
		"ebpnet_port_flows endpoint=web network=front port=80:80/tcp state=established": 0,
		"ebpnet_port_flows endpoint=web network=front port=80:80/tcp state=half-open":   1,
		"ebpnet_port_max_flows endpoint=web network=front port=80:80/tcp":               600,

		"ebpnet_network_transmit_packets_total network=front":     3,
		"ebpnet_network_transmit_packets_total network=back":      0,
		"ebpnet_tunnel_transmit_packets_total tunnel=hB":          1,
		"ebpnet_tunnel_transmit_bytes_total tunnel=hB":            60 + 42,
		"ebpnet_dropped_packets_total reason=unknown_destination": 1,
		"ebpnet_dropped_bytes_total reason=unknown_destination":   60,
		"ebpnet_dropped_packets_total reason=policy":              0,
		"ebpnet_network_learned_stations network=front":           1,
		"ebpnet_network_learned_stations network=back":            0,
		"ebpnet_map_entries map=devices":                          float64(len(locals())),
	} {
		if got, ok := metrics[want]; !ok || got != value {
			t.Errorf("%s is %v (%v), want %v", want, got, ok, value)
		}
	}

	unloaded := func() (*Tables, error) { return nil, loader.ErrNotLoaded }
	if got := gather(t, NewCollector(unloaded, nil)); !maps.Equal(got, map[string]float64{"ebpnet_loaded": 0}) {
		t.Errorf("without a datapath: %v", got)
	}
	for what, c := range map[string]Collector{
		"the tables": NewCollector(func() (*Tables, error) { return nil, errors.New("permission denied") }, nil),
		"the store":  NewCollector(open, func() (Names, error) { return Names{}, errors.New("permission denied") }),
	} {
		registry := prometheus.NewPedanticRegistry()
		if err := registry.Register(c); err != nil {
			t.Fatal(err)
		}
		if _, err := registry.Gather(); err == nil || !strings.Contains(err.Error(), "permission denied") {
			t.Errorf("no permission to read %s: error %v, want permission denied", what, err)
		}
	}
}

// gather scrapes a collector and returns the metrics by name and labels.
func gather(t *testing.T, c Collector) map[string]float64 {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	if err := registry.Register(c); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	found := map[string]float64{}
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "ebpnet_") {
			t.Errorf("metric %s", f.GetName())
		}
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetName() + "=" + l.GetValue()
			}
			found[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return found
}
