package datapath

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ebpnet/ebpnet/loader"
)

// Names are the names of the nouns, for the labels of metrics. The datapath
// itself knows only ids.
type Names struct {
	Endpoints []NamedEndpoint
	Ports     []NamedPort
	Networks  map[string]uint32
	Tunnels   map[string]uint32
}

// NamedEndpoint is a local endpoint and the network it is on.
type NamedEndpoint struct {
	Name, Network string
	ID            uint32
	// The container's names at the engine that made the endpoint; empty if no
	// engine made it.
	Engine, Container, ContainerID string
}

// NamedPort is a published port: Name is its text form.
type NamedPort struct {
	Endpoint, Network, Name string
	ID                      uint32
}

// Collector collects the counters and tables as Prometheus metrics. Each scrape
// opens the datapath again, so a Collector works across unload and load.
type Collector struct {
	open  func() (*Tables, error)
	names func() (Names, error)
}

var _ prometheus.Collector = Collector{}

// NewCollector makes a Collector that reads the tables from open and the labels
// from names.
func NewCollector(open func() (*Tables, error), names func() (Names, error)) Collector {
	return Collector{open, names}
}

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("ebpnet_"+name, help, labels, nil)
}

// trafficMetrics describe the four counters of a Traffic.
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

// metrics describe all collected metrics.
type metrics struct {
	endpoint, network, tunnel                   trafficMetrics
	loaded, dropPackets, dropBytes, mapEntries  *prometheus.Desc
	mapCapacity, programRuns, programRunSeconds *prometheus.Desc
	endpointInfo, learnedStations               *prometheus.Desc
	limits                                      limitMetrics
	loops, blocked                              *prometheus.Desc
}

// limitMetrics describe the use of each limit, the limit, and its drops.
type limitMetrics struct {
	flows, maxFlows, maxHalfOpen, flowLimited *prometheus.Desc
	maxPorts, portLimited                     *prometheus.Desc
	datagrams, maxDatagrams, fragmentLimited  *prometheus.Desc
	maxFlood, floodLimited                    *prometheus.Desc
	portFlows, portMaxFlows                   *prometheus.Desc
	tunnelMaxFlood, tunnelFloodLimited        *prometheus.Desc
}

func describeLimits() limitMetrics {
	endpoint := func(name, help string, labels ...string) *prometheus.Desc {
		return describe("endpoint_"+name, help, append([]string{"endpoint", "network"}, labels...)...)
	}
	return limitMetrics{
		flows:           endpoint("flows", "Flows that the endpoint opened, by state.", "state"),
		maxFlows:        endpoint("max_flows", "Most established flows that the endpoint can have now."),
		maxHalfOpen:     endpoint("max_half_open_flows", "Most half-open flows that the endpoint can have."),
		flowLimited:     endpoint("flow_limited_packets_total", "Packets of the endpoint dropped because a new flow would exceed the limit."),
		maxPorts:        endpoint("max_ports", "Most ports of the endpoint towards one destination that no other endpoint uses, if a limit is set."),
		portLimited:     endpoint("port_limited_packets_total", "Packets of the endpoint dropped because a new port would exceed the limit."),
		datagrams:       endpoint("fragmented_datagrams", "Datagrams of the endpoint that are in transit in fragments."),
		maxDatagrams:    endpoint("max_fragmented_datagrams", "Most datagrams of the endpoint that can be in transit in fragments."),
		fragmentLimited: endpoint("fragment_limited_packets_total", "Fragments of the endpoint dropped because a later datagram replaced theirs."),
		maxFlood:        endpoint("max_flooded_copies", "Most copies per second that are flooded for the endpoint."),
		floodLimited:    endpoint("flood_limited_packets_total", "Frames of the endpoint not flooded because of the limit."),

		portFlows:    describe("port_flows", "Flows from outside to the published port, by state.", "endpoint", "network", "port", "state"),
		portMaxFlows: describe("port_max_flows", "Most established flows from outside that the published port can have now.", "endpoint", "network", "port"),

		tunnelMaxFlood:     describe("tunnel_max_flooded_copies", "Most copies per second that are flooded out of the tunnel, for each of its networks.", "tunnel"),
		tunnelFloodLimited: describe("tunnel_flood_limited_packets_total", "Frames out of the tunnel not flooded because of the limit.", "tunnel"),
	}
}

func (m limitMetrics) all() []*prometheus.Desc {
	return []*prometheus.Desc{
		m.flows, m.maxFlows, m.maxHalfOpen, m.flowLimited, m.maxPorts, m.portLimited, m.datagrams, m.maxDatagrams,
		m.fragmentLimited, m.maxFlood, m.floodLimited, m.portFlows, m.portMaxFlows, m.tunnelMaxFlood, m.tunnelFloodLimited,
	}
}

func newMetrics() metrics {
	return metrics{
		endpoint:          describeTraffic("endpoint", "the endpoint", "endpoint", "network"),
		network:           describeTraffic("network", "the network's local endpoints", "network"),
		tunnel:            describeTraffic("tunnel", "the tunnel, outer frames", "tunnel"),
		endpointInfo:      describe("endpoint_info", "Always 1; the labels name the container that an engine made the endpoint for.", "endpoint", "network", "engine", "container", "container_id"),
		learnedStations:   describe("network_learned_stations", "MACs learned on the network.", "network"),
		limits:            describeLimits(),
		loops:             describe("endpoint_loops_total", "Times that the endpoint was blocked because of a loop with another trunk.", "endpoint", "network"),
		blocked:           describe("endpoint_blocked", "Whether the endpoint is blocked now because of a loop.", "endpoint", "network"),
		loaded:            describe("loaded", "Whether the datapath is loaded."),
		dropPackets:       describe("dropped_packets_total", "Packets dropped, by reason.", "reason"),
		dropBytes:         describe("dropped_bytes_total", "Bytes dropped, by reason.", "reason"),
		mapEntries:        describe("map_entries", "Entries in the map.", "map"),
		mapCapacity:       describe("map_capacity_entries", "Most entries that the map can hold.", "map"),
		programRuns:       describe("program_runs_total", "Runs of the program, while the kernel counts them.", "program"),
		programRunSeconds: describe("program_run_seconds_total", "Run time of the program, while the kernel measures it.", "program"),
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
	for _, d := range append(m.limits.all(),
		m.loaded, m.dropPackets, m.dropBytes, m.mapEntries, m.mapCapacity, m.programRuns, m.programRunSeconds,
		m.endpointInfo, m.learnedStations, m.loops, m.blocked,
	) {
		to <- d
	}
}

// Collect implements prometheus.Collector. Without a datapath it sends only
// ebpnet_loaded, as 0. Any other error fails the scrape.
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
		c.collectNouns, collectDrops, collectMaps, collectPrograms,
	} {
		if err := collect(to, m, tables); err != nil {
			to <- prometheus.NewInvalidMetric(m.loaded, err)
			return
		}
	}
}

func (c Collector) collectNouns(to chan<- prometheus.Metric, m metrics, t *Tables) error {
	names, err := c.names()
	if err != nil {
		return fmt.Errorf("read the store: %w", err)
	}
	return errors.Join(collectTraffic(to, m, t, names), collectLimits(to, m.limits, t, names))
}

func collectTraffic(to chan<- prometheus.Metric, m metrics, t *Tables, names Names) error {
	for _, e := range names.Endpoints {
		traffic, err := t.EndpointTraffic(e.ID)
		if err != nil {
			return err
		}
		m.endpoint.send(to, traffic, e.Name, e.Network)
		if err := collectLoop(to, m, t, e); err != nil {
			return err
		}
		to <- prometheus.MustNewConstMetric(m.endpointInfo, prometheus.GaugeValue, 1, e.Name, e.Network, e.Engine, e.Container, e.ContainerID)
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
	}
	return nil
}

// collectLimits collects what endpoints, published ports and tunnels use of
// their limits.
func collectLimits(to chan<- prometheus.Metric, m limitMetrics, t *Tables, names Names) error {
	gauge := func(d *prometheus.Desc, v int, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	datagrams, err := t.countDatagrams()
	if err != nil {
		return err
	}
	for _, e := range names.Endpoints {
		flood, err := t.FloodShare(e.ID)
		if err != nil {
			return err
		}
		limits, err := t.limitsOf(e.ID)
		if err != nil {
			return err
		}
		refused, err := t.refused(e.ID)
		if err != nil {
			return err
		}
		flows, err := t.endpointFlows(e.ID, limits, refused)
		if err != nil {
			return err
		}
		gauge(m.flows, flows.Established, e.Name, e.Network, string(FlowEstablished))
		gauge(m.flows, flows.HalfOpen, e.Name, e.Network, string(FlowHalfOpen))
		gauge(m.maxFlows, flows.Limit, e.Name, e.Network)
		gauge(m.maxHalfOpen, flows.HalfOpenLimit, e.Name, e.Network)
		counter(m.flowLimited, flows.LimitedPackets, e.Name, e.Network)
		if limits.Ports != 0 {
			gauge(m.maxPorts, min(int(limits.Ports), userPorts.share(0)), e.Name, e.Network)
		}
		counter(m.portLimited, refused.Ports, e.Name, e.Network)
		gauge(m.datagrams, datagrams[e.ID], e.Name, e.Network)
		gauge(m.maxDatagrams, fragmentLimit(limits), e.Name, e.Network)
		counter(m.fragmentLimited, refused.Fragments, e.Name, e.Network)
		gauge(m.maxFlood, int(flood.Limit), e.Name, e.Network)
		counter(m.floodLimited, flood.LimitedPackets, e.Name, e.Network)
	}
	for _, p := range names.Ports {
		flows, err := t.PortFlowShare(p.ID)
		if err != nil {
			return err
		}
		gauge(m.portFlows, flows.Established, p.Endpoint, p.Network, p.Name, string(FlowEstablished))
		gauge(m.portFlows, flows.HalfOpen, p.Endpoint, p.Network, p.Name, string(FlowHalfOpen))
		gauge(m.portMaxFlows, flows.Limit, p.Endpoint, p.Network, p.Name)
	}
	for name, id := range names.Tunnels {
		flood, err := t.TunnelFloodShare(id)
		if err != nil {
			return err
		}
		gauge(m.tunnelMaxFlood, int(flood.Limit), name)
		counter(m.tunnelFloodLimited, flood.LimitedPackets, name)
	}
	return nil
}

// collectLoop collects the loop metrics of an endpoint that was ever blocked.
func collectLoop(to chan<- prometheus.Metric, m metrics, t *Tables, e NamedEndpoint) error {
	loop, err := t.EndpointLoop(e.ID)
	if err != nil {
		return err
	}
	blocked := 0.0
	if loop.Blocked > 0 {
		blocked = 1
	}
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
