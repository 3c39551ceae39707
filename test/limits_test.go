package test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// flowShare reads what an endpoint has of the table of flows, and may have.
func flowShare(t *testing.T, h *testutil.Host, endpoint string) (share struct {
	Established int  `json:"established"`
	HalfOpen    int  `json:"half_open"`
	Limit       int  `json:"limit"`
	Set         bool `json:"set"`
},
) {
	t.Helper()
	e := struct {
		Flows any `json:"flows"`
	}{&share}
	h.EbpnetJSON(t, &e, "endpoint", "inspect", endpoint)
	return share
}

// TestFlowLimit gives a container a limit of flows: it holds for new ones, over a
// load, until it is taken back.
func TestFlowLimit(t *testing.T) {
	h, outside := newOutside(t)
	createNet(t, h)
	c := h.NewContainer(t, "c", "net")
	h.NewContainer(t, "d", "net")
	pings := func() bool {
		out, _ := c.Try("ping", "-c", "1", "-W", "1", outside.IP4.String())
		return strings.Contains(out, "1 received")
	}
	const capacity = 262144
	if got := flowShare(t, h, "c"); got.Set || got.Established != 0 || got.Limit < capacity*2/5 || got.Limit > capacity/2 {
		t.Errorf("at first: %+v, want nearly half of %d", got, capacity)
	}
	for range 3 {
		if !pings() {
			t.Fatal("no answer from outside")
		}
	}
	h.Ebpnet(t, "endpoint", "set", "c", "--max-flows", "3")
	if got := flowShare(t, h, "c"); !got.Set || got.Established != 3 || got.Limit != 3 {
		t.Errorf("%+v, want all 3 flows that it may have", got)
	}
	for _, when := range []string{"set", "loaded again"} {
		h.ExpectDrops(t, "flow_limit", func() {
			if pings() {
				t.Errorf("%s: an answer to one flow more than it may have", when)
			}
		})
		h.Ebpnet(t, "load")
	}
	_, stderr, code := h.TryEbpnet("endpoint", "set", "c", "--max-flows", "2")
	if code != 0 || strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "ebpnet: warning: the limit is for new flows") || !strings.Contains(stderr, "established=3") {
		t.Errorf("a limit below what is there: exit code %d, %q", code, stderr)
	}
	if got := flowShare(t, h, "c"); got.Established != 3 {
		t.Errorf("%+v, want the 3 flows to go on", got)
	}
	h.Ebpnet(t, "endpoint", "set", "c", "--max-flows", "default")
	if got := flowShare(t, h, "c"); got.Set || !pings() {
		t.Errorf("%+v after the limit was taken back", got)
	}

	before := everything(t, h)
	for _, bad := range []string{"", "0", "-1", "4194305", "many", "1e3", "99999999999999999999"} {
		refused(t, h, exitUsage, []string{"endpoint", "set", "c", "--max-flows", bad}, fmt.Sprintf("--max-flows %q: want 1 to 4194304, or default", bad))
	}
	refused(t, h, exitUsage, []string{"endpoint", "set", "c", "--max-everything", "1"}, "max-everything")
	refused(t, h, exitFailure, []string{"endpoint", "set", "nobody", "--max-flows", "9"}, "nobody")
	if after := everything(t, h); after != before {
		t.Errorf("bad limits changed\n%s\nto\n%s", before, after)
	}
}

// inUse is what `endpoint inspect` tells of limits.
type inUse struct {
	Flows struct {
		flowUse
		LimitedPackets int `json:"limited_packets"`
	} `json:"flows"`
	OutwardPorts struct {
		Most           int    `json:"most"`
		Towards        string `json:"towards"`
		Limit          int    `json:"limit"`
		Set            bool   `json:"set"`
		LimitedPackets int    `json:"limited_packets"`
	} `json:"outward_ports"`
	Fragments struct {
		Datagrams int  `json:"datagrams"`
		Limit     int  `json:"limit"`
		Set       bool `json:"set"`
	} `json:"fragments"`
	Ports []portUse `json:"ports"`
}

type flowUse struct {
	Established   int  `json:"established"`
	HalfOpen      int  `json:"half_open"`
	Limit         int  `json:"limit"`
	Set           bool `json:"set"`
	HalfOpenLimit int  `json:"half_open_limit"`
	HalfOpenSet   bool `json:"half_open_set"`
}

type portUse struct {
	HostPort int     `json:"host_port"`
	MaxFlows int     `json:"max_flows"`
	Flows    flowUse `json:"flows"`
}

func inspectUse(t *testing.T, h *testutil.Host, endpoint string) (use inUse) {
	t.Helper()
	h.EbpnetJSON(t, &use, "endpoint", "inspect", endpoint)
	return use
}

// warns expects a command to succeed with one line that has the given words.
func warns(t *testing.T, h *testutil.Host, args []string, words ...string) {
	t.Helper()
	_, stderr, code := h.TryEbpnet(args...)
	if code != 0 || strings.Count(stderr, "\n") != 1 {
		t.Errorf("ebpnet %q: exit code %d, %q; want one line", args, code, stderr)
	}
	for _, word := range words {
		if !strings.Contains(stderr, word) {
			t.Errorf("ebpnet %q: no %q in %q", args, word, stderr)
		}
	}
}

// badLimits expects an option to take 1 to highest and "default", and no more.
func badLimits(t *testing.T, h *testutil.Host, highest, tooHigh string, args ...string) {
	t.Helper()
	before := everything(t, h)
	for _, bad := range []string{"", "0", "-1", tooHigh, "many"} {
		option := args[len(args)-1]
		refused(t, h, exitUsage, append(args, bad), fmt.Sprintf("%s %q: want 1 to %s", option, bad, highest), "or default")
	}
	if after := everything(t, h); after != before {
		t.Errorf("bad limits changed\n%s\nto\n%s", before, after)
	}
}

// TestPublishedPortLimit gives a published port a limit of flows from outside: it
// is apart from the endpoint's, holds for new flows, and over a load.
func TestPublishedPortLimit(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	web := h.NewContainer(t, "web", "net", "--publish", fmt.Sprintf("8081:%d/udp", service))
	serve(t, web.Netns, service)
	port := fmt.Sprintf("8080:%d/udp", service)
	h.Ebpnet(t, "port", "add", "web", port, "--max-flows", "1")
	call := func(port int) *testutil.Conn { return u.Outside.MustDial(t, "udp", at(h.IP4, port)) }
	establish := func(c *testutil.Conn) {
		t.Helper()
		c.MustAsk(t)
		c.MustAsk(t) // the answer establishes the flow
	}
	limited := func() portUse {
		t.Helper()
		for _, p := range inspectUse(t, h, "web").Ports {
			if p.HostPort == 8080 {
				var same portUse
				if h.EbpnetJSON(t, &same, "port", "inspect", "web", port); same != p {
					t.Errorf("port inspect: %+v, endpoint inspect: %+v", same, p)
				}
				if out := h.Ebpnet(t, "port", "inspect", "web", port); strings.Contains(out, "half_open_") {
					t.Errorf("port inspect shows a limit of half-open flows, which a port has not:\n%s", out)
				}
				return p
			}
		}
		t.Fatal("the port is not shown")
		return portUse{}
	}
	first, second := call(8080), call(8080)
	establish(first)
	if got := limited(); got.MaxFlows != 1 || got.Flows.Established != 1 || got.Flows.Limit != 1 || !got.Flows.Set {
		t.Errorf("%+v, want the one flow that it may have", got)
	}
	if got := inspectUse(t, h, "web").Flows; got.Set || got.Established != 0 {
		t.Errorf("the endpoint itself: %+v, want no flow and no limit", got)
	}
	h.Ebpnet(t, "endpoint", "set", "web", "--max-flows", "1") // has no part in it
	for range 2 {
		h.ExpectDrops(t, "flow_limit", func() { stalls(t, second) })
		first.MustAsk(t)
		h.Ebpnet(t, "load")
	}
	for range 2 {
		establish(call(8081)) // another port has its own
	}

	h.Ebpnet(t, "port", "set", "web", port, "--max-flows", "2")
	establish(second)
	warns(t, h, []string{"port", "set", "web", port, "--max-flows", "1"}, "new flows", "established=2", "limit=1")
	first.MustAsk(t)
	second.MustAsk(t)
	h.ExpectDrops(t, "flow_limit", func() { stalls(t, call(8080)) })
	h.Ebpnet(t, "port", "set", "web", port, "--max-flows", "default")
	if got := limited(); got.Flows.Set || got.MaxFlows != 0 || got.Flows.Limit < 1000 {
		t.Errorf("%+v after the limit was taken back", got)
	}
	establish(call(8080))

	badLimits(t, h, "4194304", "4194305", "port", "set", "web", port, "--max-flows")
	badLimits(t, h, "4194304", "4194305", "port", "add", "web", "8082:80", "--max-flows")
	refused(t, h, exitUsage, []string{"port", "set", "web", port}, "--max-flows")
	refused(t, h, exitUsage, []string{"port", "set", "web", port, "--max-half-open", "1"}, "max-half-open")
	refused(t, h, exitFailure, []string{"port", "set", "nobody", port, "--max-flows", "1"}, "nobody")
	refused(t, h, exitFailure, []string{"port", "set", "web", "8089:80", "--max-flows", "1"}, `endpoint "web" publishes no 8089:80/tcp`)
}

// TestHalfOpenLimit gives a container a limit of half-open flows.
func TestHalfOpenLimit(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	serve(t, u.Outside, service)
	c, d := h.NewContainer(t, "c", "net"), h.NewContainer(t, "d", "net")
	if got := inspectUse(t, h, "c").Flows; got.HalfOpenSet || got.HalfOpenLimit != 65536 {
		t.Errorf("at first: %+v, want room for all", got)
	}
	const silent = 9
	u.Outside.Run(t, "iptables", "-I", "INPUT", "-p", "udp", "--dport", fmt.Sprint(silent), "-j", "DROP")
	send := func(c *testutil.Container) {
		t.Helper()
		if _, err := fmt.Fprint(c.MustDial(t, "udp", at(u.IP4, silent)), "is anybody there?"); err != nil {
			t.Fatal(err)
		}
	}
	established := c.MustDial(t, "udp", at(u.IP4, service))
	established.MustAsk(t)
	h.Ebpnet(t, "endpoint", "set", "c", "--max-half-open", "2")
	send(c)
	send(c)
	for range 2 {
		if got := inspectUse(t, h, "c").Flows; got.HalfOpen != 2 || got.HalfOpenLimit != 2 || !got.HalfOpenSet {
			t.Errorf("%+v, want all 2 half-open flows that it may have", got)
		}
		before := inspectUse(t, h, "c").Flows.LimitedPackets
		h.ExpectDrops(t, "flow_limit", func() { send(c) })
		if got := inspectUse(t, h, "c").Flows; got.LimitedPackets != before+1 {
			t.Errorf("%+v, want one packet dropped after %d", got, before)
		}
		established.MustAsk(t)
		h.Ebpnet(t, "load")
	}
	send(d)
	if got := inspectUse(t, h, "d").Flows; got.HalfOpen != 1 || got.LimitedPackets != 0 {
		t.Errorf("another endpoint: %+v, want its flow", got)
	}
	warns(t, h, []string{"endpoint", "set", "c", "--max-half-open", "1"}, "new flows", "half_open=2", "limit=1")
	h.Ebpnet(t, "endpoint", "set", "c", "--max-half-open", "default")
	send(c)
	if got := inspectUse(t, h, "c").Flows; got.HalfOpen != 3 || got.HalfOpenSet {
		t.Errorf("%+v after the limit was taken back, want 3 half-open flows", got)
	}
	badLimits(t, h, "65536", "65537", "endpoint", "set", "c", "--max-half-open")
}

// TestPortLimit gives a container a limit of ports towards one destination.
func TestPortLimit(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	serve(t, u.Outside, service)
	serve(t, u.Outside, service+1)
	c, d := h.NewContainer(t, "c", "net"), h.NewContainer(t, "d", "net")
	call := func(c *testutil.Container, port int) *testutil.Conn { return c.MustDial(t, "udp", at(u.IP4, port)) }
	h.Ebpnet(t, "endpoint", "set", "c", "--max-ports", "2")
	first := call(c, service)
	first.MustAsk(t)
	call(c, service).MustAsk(t)
	for range 2 {
		got := inspectUse(t, h, "c").OutwardPorts
		if got.Most != 2 || got.Limit != 2 || !got.Set || got.Towards != "udp "+at(u.IP4, service) {
			t.Errorf("%+v, want all 2 ports that it may have", got)
		}
		h.ExpectDrops(t, "port_limit", func() { stalls(t, call(c, service)) })
		if now := inspectUse(t, h, "c").OutwardPorts; now.LimitedPackets != got.LimitedPackets+1 {
			t.Errorf("%+v, want one packet dropped after %d", now, got.LimitedPackets)
		}
		call(c, service+1).MustAsk(t)
		call(d, service).MustAsk(t)
		first.MustAsk(t)
		h.Ebpnet(t, "load")
	}
	warns(t, h, []string{"endpoint", "set", "c", "--max-ports", "1"}, "new flows", "ports=2", "limit=1")
	h.Ebpnet(t, "endpoint", "set", "c", "--max-ports", "default")
	call(c, service).MustAsk(t)
	if got := inspectUse(t, h, "c").OutwardPorts; got.Set || got.Most != 3 {
		t.Errorf("%+v after the limit was taken back, want 3 ports", got)
	}
	badLimits(t, h, "65535", "65536", "endpoint", "set", "c", "--max-ports")
}

// TestFragmentLimit gives a container a limit of datagrams in fragments.
func TestFragmentLimit(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	c := h.NewContainer(t, "c", "net")
	const large = "3000" // bytes, of an echo in three fragments
	if got := inspectUse(t, h, "c").Fragments; got.Datagrams != 0 || got.Limit != 64 || got.Set {
		t.Errorf("at first: %+v, want room for 64", got)
	}
	h.Ebpnet(t, "endpoint", "set", "c", "--max-fragments", "2")
	h.Ebpnet(t, "load")
	for range 3 {
		ping(t, c.Netns, u.IP4, "-s", large)
	}
	if got := inspectUse(t, h, "c").Fragments; got.Datagrams == 0 || got.Datagrams > 2 || got.Limit != 2 || !got.Set {
		t.Errorf("%+v, want 1 or 2 of 2 datagrams", got)
	}
	h.Ebpnet(t, "endpoint", "set", "c", "--max-fragments", "default")
	if got := inspectUse(t, h, "c").Fragments; got.Limit != 64 || got.Set {
		t.Errorf("%+v after the limit was taken back", got)
	}
	// Echoes of many numbers at once, each by a process of its own.
	for range 8 {
		ping(t, c.Netns, u.IP4, "-s", large)
	}
	warns(t, h, []string{"endpoint", "set", "c", "--max-fragments", "1"}, "new datagrams", "datagrams=", "limit=1")
	badLimits(t, h, "64", "65", "endpoint", "set", "c", "--max-fragments")
}

// TestTunnelFloodLimit limits what is flooded out of a tunnel.
func TestTunnelFloodLimit(t *testing.T) {
	p := newPair(t, greKey, greKey)
	type floodUse struct {
		Limit          int  `json:"limit"`
		Set            bool `json:"set"`
		AheadCopies    int  `json:"ahead_copies"`
		LimitedPackets int  `json:"limited_packets"`
	}
	inspect := func() (use floodUse) {
		t.Helper()
		tunnel := struct {
			Flood *floodUse `json:"flood"`
		}{&use}
		p.a.EbpnetJSON(t, &tunnel, "tunnel", "inspect", "peer")
		return use
	}
	if got := inspect(); got.Limit != 200000 || got.Set || got.LimitedPackets != 0 {
		t.Errorf("at first: %+v, want the default", got)
	}
	p.a.Ebpnet(t, "tunnel", "set", "peer", "--max-flood", "2")
	p.a.Ebpnet(t, "load")
	if got := inspect(); got.Limit != 2 || !got.Set {
		t.Errorf("%+v, want a limit of 2", got)
	}
	if options := p.a.Ebpnet(t, "tunnel", "ls"); !strings.Contains(options, "--max-flood=2") {
		t.Errorf("no limit in\n%s", options)
	}
	var listed []struct {
		MaxFlood int `json:"max_flood"`
	}
	if p.a.EbpnetJSON(t, &listed, "tunnel", "ls"); len(listed) != 1 || listed[0].MaxFlood != 2 {
		t.Errorf("%+v, want one tunnel with a limit of 2", listed)
	}
	sender := p.redis1.NewTap(t, testutil.Device)
	p.a.ExpectDrops(t, "flood_limit", func() {
		for range 50 {
			sender.Send(t, broadcast(t, p.redis1))
		}
	})
	if got := inspect(); got.LimitedPackets == 0 || got.AheadCopies == 0 {
		t.Errorf("%+v, want some of 50 frames not flooded", got)
	}
	ping(t, p.web.Netns, p.redis1.IP4)
	p.a.Ebpnet(t, "tunnel", "set", "peer", "--max-flood", "default")
	if got := inspect(); got.Limit != 200000 || got.Set {
		t.Errorf("%+v after the limit was taken back", got)
	}

	badLimits(t, p.a, "100000000", "100000001", "tunnel", "set", "peer", "--max-flood")
	badLimits(t, p.a, "100000000", "100000001", "tunnel", "add", "new", "--remote", "192.0.2.9", "--max-flood")
	refused(t, p.a, exitUsage, []string{"tunnel", "set", "peer"}, "--max-flood")
	refused(t, p.a, exitFailure, []string{"tunnel", "set", "nowhere", "--max-flood", "1"}, "nowhere")
}

// TestLimitsOfNewEndpoint gives a container its limits with `endpoint add`.
func TestLimitsOfNewEndpoint(t *testing.T) {
	h, _ := newOutside(t)
	createNet(t, h, "--key", "42")
	h.NewContainer(t, "c", "net", "--max-flows", "1", "--max-half-open", "2", "--max-ports", "3", "--max-fragments", "4", "--max-flood", "5")
	got := inspectUse(t, h, "c")
	limits := []int{got.Flows.Limit, got.Flows.HalfOpenLimit, got.OutwardPorts.Limit, got.Fragments.Limit, inspectFlood(t, h, "c").Limit}
	if want := []int{1, 2, 3, 4, 5}; !slices.Equal(limits, want) {
		t.Errorf("limits of %v, want %v", limits, want)
	}
	h.NewContainer(t, "d", "net", "--max-flows", "default")
	if got := inspectUse(t, h, "d").Flows; got.Set {
		t.Errorf("%+v, want no limit", got)
	}

	h.Ebpnet(t, "tunnel", "add", "peer", "--remote", "192.0.2.2")
	badLimits(t, h, "4194304", "4194305", "endpoint", "add", "e", "--network", "net", "--netns", "c", "--max-flows")
	refused(t, h, exitUsage, []string{
		"endpoint", "add", "e", "--network", "net", "--tunnel", "peer", "--ip", "10.1.0.99", "--mac", "02:00:00:00:00:99", "--max-flows", "9",
	}, "limits", "on its own host")
}

// TestLimitsOutliveUnload has all limits set hold again after an unload.
func TestLimitsOutliveUnload(t *testing.T) {
	h, _ := newOutside(t)
	createNet(t, h, "--key", "42")
	h.NewContainer(t, "c", "net")
	h.Ebpnet(t, "port", "add", "c", "8080:80", "--max-flows", "6")
	h.Ebpnet(t, "tunnel", "add", "peer", "--remote", "192.0.2.2", "--max-flood", "7")
	h.Ebpnet(t, "endpoint", "set", "c", "--max-flows", "1", "--max-half-open", "2", "--max-ports", "3", "--max-fragments", "4", "--max-flood", "5")
	for _, when := range []string{"set", "loaded again"} {
		got := inspectUse(t, h, "c")
		limits := []int{
			got.Flows.Limit, got.Flows.HalfOpenLimit, got.OutwardPorts.Limit, got.Fragments.Limit, inspectFlood(t, h, "c").Limit, got.Ports[0].Flows.Limit,
		}
		var tunnel struct {
			Flood struct {
				Limit int `json:"limit"`
			} `json:"flood"`
		}
		h.EbpnetJSON(t, &tunnel, "tunnel", "inspect", "peer")
		if want := []int{1, 2, 3, 4, 5, 6, 7}; !slices.Equal(append(limits, tunnel.Flood.Limit), want) {
			t.Errorf("%s: limits of %v and %d, want %v", when, limits, tunnel.Flood.Limit, want)
		}
		h.Ebpnet(t, "unload")
		if got := inspectUse(t, h, "c"); got.Flows.Limit != 0 || len(got.Ports) != 1 || got.Ports[0].MaxFlows != 6 {
			t.Errorf("unloaded: %+v, want no use, and the port with its limit", got)
		}
		h.Ebpnet(t, "load")
	}
}
