package test

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// Any port is free in a namespace of its own.
const metricsAddress = "127.0.0.1:9469"

// samples are the values of a scrape, by name and labels as NAME{a="b",c="d"}.
type samples map[string]float64

func scrape(t *testing.T, h *testutil.Host) (text string, all samples) {
	t.Helper()
	text = h.Run(t, "curl", "--silent", "--show-error", "--fail", "http://"+metricsAddress+"/metrics")
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatalf("scrape: %v\n%s", err, text)
	}
	all = make(samples)
	for name, family := range families {
		for _, m := range family.Metric {
			labels := model.LabelSet{}
			for _, l := range m.Label {
				labels[model.LabelName(l.GetName())] = model.LabelValue(l.GetValue())
			}
			// Of the two, the one that it is not is 0.
			all[name+labels.String()] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return text, all
}

// startServe runs `ebpnet serve` until it answers.
func startServe(t *testing.T, h *testutil.Host) *testutil.Process {
	t.Helper()
	argv := h.Command("serve", "--listen", metricsAddress)
	serve := h.Start(t, argv[0], argv[1:]...)
	testutil.Eventually(t, "serve answers", func() bool {
		_, err := h.Try("curl", "--silent", "--fail", "http://"+metricsAddress+"/metrics")
		return err == nil
	})
	return serve
}

func TestMetrics(t *testing.T) {
	p := newPair(t, greKey, greKey)
	h := p.a
	h.Ebpnet(t, "port", "add", "other", "127.0.0.1:8080:80", "--max-flows", "9")
	h.Ebpnet(t, "endpoint", "set", "web", "--max-half-open", "8", "--max-ports", "7", "--max-fragments", "6", "--max-flood", "5")
	h.Ebpnet(t, "tunnel", "set", "peer", "--max-flood", "4")
	serve := startServe(t, h)
	text, before := scrape(t, h)

	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range problems {
		t.Errorf("promlint: %s: %s", problem.Metric, problem.Text)
	}
	for name := range before {
		if !strings.HasPrefix(name, "ebpnet_") {
			t.Errorf("%s does not begin with ebpnet_", name)
		}
	}

	// Ten answered echoes from web to redis1 on the other host, 98 bytes each.
	const packets, bytes = 10, 10 * 98
	const outerBytes = bytes + 10*42
	p.web.Run(t, "ping", "-n", "-c", "10", "-i", "0.01", p.redis1.IP4.String())
	h.Ebpnet(t, "network", "set", "net", "--icc=false")
	noPing(t, h, "policy", p.web.Netns, p.other.IP4)
	_, after := scrape(t, h)
	for name, least := range map[string]float64{
		`ebpnet_endpoint_transmit_packets_total{endpoint="web", network="net"}`: packets,
		`ebpnet_endpoint_transmit_bytes_total{endpoint="web", network="net"}`:   bytes,
		`ebpnet_endpoint_receive_packets_total{endpoint="web", network="net"}`:  packets,
		`ebpnet_endpoint_receive_bytes_total{endpoint="web", network="net"}`:    bytes,
		`ebpnet_network_transmit_packets_total{network="net"}`:                  packets,
		`ebpnet_network_receive_packets_total{network="net"}`:                   packets,
		`ebpnet_tunnel_transmit_packets_total{tunnel="peer"}`:                   packets,
		`ebpnet_tunnel_transmit_bytes_total{tunnel="peer"}`:                     outerBytes,
		`ebpnet_tunnel_receive_packets_total{tunnel="peer"}`:                    packets,
		`ebpnet_tunnel_receive_bytes_total{tunnel="peer"}`:                      outerBytes,
		`ebpnet_dropped_packets_total{reason="policy"}`:                         1,
		`ebpnet_dropped_bytes_total{reason="policy"}`:                           98,
	} {
		if grown := after[name] - before[name]; grown < least {
			t.Errorf("%s has grown by %v, want at least %v", name, grown, least)
		}
	}
	if grown := after[`ebpnet_endpoint_transmit_packets_total{endpoint="other", network="net"}`] -
		before[`ebpnet_endpoint_transmit_packets_total{endpoint="other", network="net"}`]; grown >= packets {
		t.Errorf("what web sends is counted for other: %v", grown)
	}

	for name, want := range map[string]float64{
		`ebpnet_port_max_flows{endpoint="other", network="net", port="127.0.0.1:8080:80/tcp"}`:                  9,
		`ebpnet_port_flows{endpoint="other", network="net", port="127.0.0.1:8080:80/tcp", state="established"}`: 0,
		`ebpnet_endpoint_max_half_open_flows{endpoint="web", network="net"}`:                                    8,
		`ebpnet_endpoint_max_ports{endpoint="web", network="net"}`:                                              7,
		`ebpnet_endpoint_max_fragmented_datagrams{endpoint="web", network="net"}`:                               6,
		`ebpnet_endpoint_max_flooded_copies{endpoint="web", network="net"}`:                                     5,
		`ebpnet_tunnel_max_flooded_copies{tunnel="peer"}`:                                                       4,
	} {
		if got, there := before[name]; !there || got != want {
			t.Errorf("%s is %v (%v), want %v", name, got, there, want)
		}
	}
	if _, there := before[`ebpnet_endpoint_max_ports{endpoint="other", network="net"}`]; there {
		t.Error("an endpoint without a limit of ports has one in the metrics")
	}

	entries, capacity := `ebpnet_map_entries{map="`, `ebpnet_map_capacity_entries{map="`
	counted := 0
	for name, value := range after {
		if label, ok := strings.CutPrefix(name, entries); ok {
			counted++
			if room, ok := after[capacity+label]; !ok || value > room {
				t.Errorf("%s is %v, of %v", name, value, room)
			}
		}
	}
	if counted == 0 || after[entries+`flows"}`] != 0 {
		t.Errorf("of %d maps, flows has %v entries, want none: nothing is masqueraded or linked", counted, after[entries+`flows"}`])
	}
	if !strings.Contains(text, "\nebpnet_build_info{") {
		t.Error("no ebpnet_build_info")
	}

	// What they say is what stats says; and a removed endpoint is gone.
	for _, e := range h.Stats(t).Endpoints {
		if got := after[`ebpnet_endpoint_transmit_packets_total{endpoint="`+e.Name+`", network="net"}`]; float64(e.TxPackets) < got {
			t.Errorf("%s: %d packets by stats, %v by metrics", e.Name, e.TxPackets, got)
		}
	}
	h.Ebpnet(t, "endpoint", "rm", "other")
	_, last := scrape(t, h)
	for name := range last {
		if strings.Contains(name, `endpoint="other"`) {
			t.Errorf("%s is there without its endpoint", name)
		}
	}
	serve.Kill()
	h.Ebpnet(t, "network", "set", "net", "--icc=true")
	pingAll(t, p.web, p.redis1)
}

func TestServeMendsWhatChanges(t *testing.T) {
	h := newHost(t)
	createNet(t, h)
	startServe(t, h)
	// Commands go on beside it.
	gone, stays := h.NewContainer(t, "gone", "net"), h.NewContainer(t, "stays", "net")
	pingAll(t, gone, stays)
	_, all := scrape(t, h)
	if _, there := all[`ebpnet_endpoint_transmit_packets_total{endpoint="stays", network="net"}`]; !there {
		t.Error("an endpoint added later is not in the metrics")
	}
	devices := veths(t, h.Netns)
	gone.Remove(t)
	testutil.Eventually(t, "serve takes a vanished endpoint's device away", func() bool {
		return veths(t, h.Netns) == devices-1
	})
	testutil.Eventually(t, "serve forgets a vanished endpoint", func() bool {
		return len(endpoints(t, h)) == 1
	})
}
