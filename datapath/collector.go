package datapath

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ebpnet/ebpnet/loader"
)

// Names are the nouns by their names, for the labels of metrics; the datapath
// itself knows only ids.
type Names struct {
	Endpoints []NamedEndpoint
	Networks  map[string]uint32
	Tunnels   map[string]uint32
}

// NamedEndpoint is a local endpoint and the network it is on.
type NamedEndpoint struct {
	Name, Network string
	ID            uint32
	// What the engine that made it calls its container; empty if none did.
	Engine, Container, ContainerID string
}

// Collector gives the counters and tables as Prometheus metrics. Each scrape
// opens the datapath anew, so that it follows an unload and load.
type Collector struct {
	open  func() (*Tables, error)
	names func() (Names, error)
}

var _ prometheus.Collector = Collector{}

// NewCollector makes a collector of what open gives, labelled by names.
func NewCollector(open func() (*Tables, error), names func() (Names, error)) Collector {
	return Collector{open, names}
}

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("ebpnet_"+name, help, labels, nil)
}

// trafficMetrics are the four counters of a Traffic.
type trafficMetrics struct{ txPackets, txBytes, rxPackets, rxBytes *prometheus.Desc }

func describeTraffic(noun, labelled string, labels ...string) trafficMetrics {
	return trafficMetrics{
		describe(noun+"_transmit_packets_total", "Packets sent by "+labelled+".", labels...),
		describe(noun+"_transmit_bytes_total", "Bytes sent by "+labelled+".", labels...),
		describe(noun+"_receive_packets_total", "Packets delivered to "+labelled+".", labels...),
		describe(noun+"_receive_bytes_total", "Bytes delivered to "+labelled+".", labels...),
	}
}

func (m trafficMetrics) all() []*prometheus.Desc {
	return []*prometheus.Desc{m.txPackets, m.txBytes, m.rxPackets, m.rxBytes}
}

func (m trafficMetrics) send(to chan<- prometheus.Metric, t Traffic, labels ...string) {
	counter := func(d *prometheus.Desc, v uint64) {
		to <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	counter(m.txPackets, t.Tx.Packets)
	counter(m.txBytes, t.Tx.Bytes)
	counter(m.rxPackets, t.Rx.Packets)
	counter(m.rxBytes, t.Rx.Bytes)
}

// metrics are the descriptions of everything that is collected.
type metrics struct {
	endpoint, network, tunnel                   trafficMetrics
	loaded, dropPackets, dropBytes, mapEntries  *prometheus.Desc
	mapCapacity, programRuns, programRunSeconds *prometheus.Desc
	endpointInfo, learnedStations               *prometheus.Desc
	endpointFlows, endpointMaxFlows             *prometheus.Desc
	floodLimited, tunnelFloodLimited            *prometheus.Desc
	loops, blocked                              *prometheus.Desc
}

func newMetrics() metrics {
	return metrics{
		endpoint:           describeTraffic("endpoint", "the endpoint", "endpoint", "network"),
		network:            describeTraffic("network", "the network's local endpoints", "network"),
		tunnel:             describeTraffic("tunnel", "the tunnel, outer frames", "tunnel"),
		endpointInfo:       describe("endpoint_info", "Always 1; the labels tell for which container an engine made the endpoint.", "endpoint", "network", "engine", "container", "container_id"),
		learnedStations:    describe("network_learned_stations", "MACs that are learned on the network.", "network"),
		endpointFlows:      describe("endpoint_flows", "Flows that the endpoint opened and that are there, by state.", "endpoint", "network", "state"),
		endpointMaxFlows:   describe("endpoint_max_flows", "Established flows that the endpoint may have now.", "endpoint", "network"),
		floodLimited:       describe("endpoint_flood_limited_packets_total", "Frames of the endpoint that were not flooded, as it was over its limit.", "endpoint", "network"),
		tunnelFloodLimited: describe("tunnel_flood_limited_packets_total", "Frames out of the tunnel that were not flooded, as it was over its limit.", "tunnel"),
		loops:              describe("endpoint_loops_total", "How often the endpoint was blocked for a loop between it and another trunk.", "endpoint", "network"),
		blocked:            describe("endpoint_blocked", "Whether the endpoint is blocked for a loop at present.", "endpoint", "network"),
		loaded:             describe("loaded", "Whether the datapath is loaded."),
		dropPackets:        describe("dropped_packets_total", "Packets dropped, by reason.", "reason"),
		dropBytes:          describe("dropped_bytes_total", "Bytes dropped, by reason.", "reason"),
		mapEntries:         describe("map_entries", "Entries that a map of the datapath holds.", "map"),
		mapCapacity:        describe("map_capacity_entries", "Entries that a map of the datapath has room for.", "map"),
		programRuns:        describe("program_runs_total", "Runs of a program, while the kernel measures them.", "program"),
		programRunSeconds:  describe("program_run_seconds_total", "Time spent in a program, while the kernel measures it.", "program"),
	}
}

// Describe implements prometheus.Collector.
func (c Collector) Describe(to chan<- *prometheus.Desc) {
	m := newMetrics()
	for _, t := range []trafficMetrics{m.endpoint, m.network, m.tunnel} {
		for _, d := range t.all() {
			to <- d
		}
	}
	for _, d := range []*prometheus.Desc{
		m.loaded, m.dropPackets, m.dropBytes, m.mapEntries, m.mapCapacity, m.programRuns, m.programRunSeconds,
		m.endpointInfo, m.learnedStations, m.endpointFlows, m.endpointMaxFlows, m.floodLimited, m.tunnelFloodLimited, m.loops, m.blocked,
	} {
		to <- d
	}
}

// Collect implements prometheus.Collector. Without a datapath only
// ebpnet_loaded is given, as 0; any other failure fails the scrape.
func (c Collector) Collect(to chan<- prometheus.Metric) {
	m := newMetrics()
	tables, err := c.open()
	if errors.Is(err, loader.ErrNotLoaded) {
		to <- prometheus.MustNewConstMetric(m.loaded, prometheus.GaugeValue, 0)
		return
	}
	if err != nil {
		to <- prometheus.NewInvalidMetric(m.loaded, err)
		return
	}
	defer tables.Close()
	to <- prometheus.MustNewConstMetric(m.loaded, prometheus.GaugeValue, 1)
	for _, collect := range []func(chan<- prometheus.Metric, metrics, *Tables) error{
		c.collectTraffic, collectDrops, collectMaps, collectPrograms,
	} {
		if err := collect(to, m, tables); err != nil {
			to <- prometheus.NewInvalidMetric(m.loaded, err)
			return
		}
	}
}

func (c Collector) collectTraffic(to chan<- prometheus.Metric, m metrics, t *Tables) error {
	names, err := c.names()
	if err != nil {
		return fmt.Errorf("read the store: %w", err)
	}
	for _, e := range names.Endpoints {
		traffic, err := t.EndpointTraffic(e.ID)
		if err != nil {
			return err
		}
		m.endpoint.send(to, traffic, e.Name, e.Network)
		if err := collectFloods(to, m, t, e); err != nil {
			return err
		}
		to <- prometheus.MustNewConstMetric(m.endpointInfo, prometheus.GaugeValue, 1, e.Name, e.Network, e.Engine, e.Container, e.ContainerID)
		share, err := t.FlowShare(e.ID)
		if err != nil {
			return err
		}
		gauge := func(d *prometheus.Desc, v int, labels ...string) {
			to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), append([]string{e.Name, e.Network}, labels...)...)
		}
		gauge(m.endpointFlows, share.Established, string(FlowEstablished))
		gauge(m.endpointFlows, share.HalfOpen, string(FlowHalfOpen))
		gauge(m.endpointMaxFlows, share.Limit)
	}
	networks, err := t.NetworkTraffic()
	if err != nil {
		return err
	}
	for name, id := range names.Networks {
		m.network.send(to, networks[id], name)
		learned, err := t.LearnedStations(id)
		if err != nil {
			return err
		}
		to <- prometheus.MustNewConstMetric(m.learnedStations, prometheus.GaugeValue, float64(learned), name)
	}
	for name, id := range names.Tunnels {
		traffic, err := t.TunnelTraffic(id)
		if err != nil {
			return err
		}
		m.tunnel.send(to, traffic, name)
		limited, err := t.TunnelFloodLimited(id)
		if err != nil {
			return err
		}
		to <- prometheus.MustNewConstMetric(m.tunnelFloodLimited, prometheus.CounterValue, float64(limited), name)
	}
	return nil
}

// collectFloods tells of an endpoint whose floods were limited, or that was
// blocked for a loop.
func collectFloods(to chan<- prometheus.Metric, m metrics, t *Tables, e NamedEndpoint) error {
	limited, err := t.FloodLimited(e.ID)
	if err != nil {
		return err
	}
	loop, err := t.EndpointLoop(e.ID)
	if err != nil {
		return err
	}
	blocked := 0.0
	if loop.Blocked > 0 {
		blocked = 1
	}
	to <- prometheus.MustNewConstMetric(m.floodLimited, prometheus.CounterValue, float64(limited), e.Name, e.Network)
	to <- prometheus.MustNewConstMetric(m.loops, prometheus.CounterValue, float64(loop.Times), e.Name, e.Network)
	to <- prometheus.MustNewConstMetric(m.blocked, prometheus.GaugeValue, blocked, e.Name, e.Network)
	return nil
}

func collectDrops(to chan<- prometheus.Metric, m metrics, t *Tables) error {
	drops, err := t.Drops()
	if err != nil {
		return err
	}
	for _, d := range drops {
		to <- prometheus.MustNewConstMetric(m.dropPackets, prometheus.CounterValue, float64(d.Packets), d.Reason)
		to <- prometheus.MustNewConstMetric(m.dropBytes, prometheus.CounterValue, float64(d.Bytes), d.Reason)
	}
	return nil
}

func collectMaps(to chan<- prometheus.Metric, m metrics, t *Tables) error {
	usage, err := t.Usage()
	if err != nil {
		return err
	}
	for _, u := range usage {
		to <- prometheus.MustNewConstMetric(m.mapEntries, prometheus.GaugeValue, float64(u.Entries), u.Name)
		to <- prometheus.MustNewConstMetric(m.mapCapacity, prometheus.GaugeValue, float64(u.Capacity), u.Name)
	}
	return nil
}

func collectPrograms(to chan<- prometheus.Metric, m metrics, t *Tables) error {
	times, err := t.ProgramTimes()
	if err != nil {
		return err
	}
	for _, p := range times {
		to <- prometheus.MustNewConstMetric(m.programRuns, prometheus.CounterValue, float64(p.Runs), p.Name)
		to <- prometheus.MustNewConstMetric(m.programRunSeconds, prometheus.CounterValue, p.Runtime.Seconds(), p.Name)
	}
	return nil
}
