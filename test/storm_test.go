package test

import (
	"bytes"
	"net"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// floodShare is what `endpoint inspect` and `status` tell of what is flooded
// for an endpoint.
type floodShare struct {
	Endpoint       string  `json:"endpoint"`
	Limit          int     `json:"limit"`
	LimitedPackets int     `json:"limited_packets"`
	Loops          int     `json:"loops"`
	BlockedSeconds float64 `json:"blocked_seconds"`
	LoopWith       string  `json:"loop_with"`
}

func inspectFlood(t *testing.T, h *testutil.Host, endpoint string) (share floodShare) {
	t.Helper()
	e := struct {
		Flood *floodShare `json:"flood"`
	}{&share}
	h.EbpnetJSON(t, &e, "endpoint", "inspect", endpoint)
	return share
}

func storms(t *testing.T, h *testutil.Host) []floodShare {
	t.Helper()
	var s struct {
		Storms []floodShare `json:"storms"`
	}
	h.EbpnetJSON(t, &s, "status")
	return s.Storms
}

// broadcast is a frame of a container to all.
func broadcast(t *testing.T, c *testutil.Container) []byte {
	t.Helper()
	return testutil.Frame(t,
		&layers.Ethernet{SrcMAC: c.MAC, DstMAC: layers.EthernetBroadcast, EthernetType: layers.EthernetTypeIPv4},
		&layers.IPv4{Version: 4, TTL: 1, Protocol: layers.IPProtocolUDP, SrcIP: c.IP4.AsSlice(), DstIP: net.IPv4bcast},
		&layers.UDP{SrcPort: 9, DstPort: 9},
		gopacket.Payload("to all"),
	)
}

// TestFloodLimit gives a container a limit of flooded copies: more are dropped
// and named, until it is taken back.
func TestFloodLimit(t *testing.T) {
	h, _ := newOutside(t)
	createNet(t, h)
	c, d := h.NewContainer(t, "c", "net"), h.NewContainer(t, "d", "net")
	trunk := h.NewContainer(t, "trunk", "net", "--trunk")
	for name, want := range map[string]int{"c": 50000, "d": 50000, trunk.Endpoint: 200000} {
		if got := inspectFlood(t, h, name); got != (floodShare{Limit: want}) {
			t.Errorf("at first of %s: %+v, want a limit of %d", name, got, want)
		}
	}
	h.Ebpnet(t, "endpoint", "set", "c", "--max-flood", "2")
	h.Ebpnet(t, "load") // which keeps it
	sender, other := c.NewTap(t, testutil.Device), d.NewTap(t, testutil.Device)
	h.ExpectDrops(t, "flood_limit", func() {
		for range 50 {
			sender.Send(t, broadcast(t, c))
		}
	})
	other.Send(t, broadcast(t, d))
	if got := inspectFlood(t, h, "c"); got.Limit != 2 || got.LimitedPackets < 40 || got.LimitedPackets > 50 {
		t.Errorf("%+v, want a limit of 2, and most of 50 frames not flooded", got)
	}
	if got := storms(t, h); len(got) != 1 || got[0].Endpoint != "c" {
		t.Errorf("status tells of storms from %+v, want c alone", got)
	}
	h.Ebpnet(t, "endpoint", "set", "c", "--max-flood", "default")
	if got := inspectFlood(t, h, "c"); got.Limit != 50000 {
		t.Errorf("%+v, want the default limit", got)
	}
	listener := d.NewTap(t, testutil.Device)
	sender.Send(t, broadcast(t, c))
	listener.Await(t, "c's broadcast after its limit was taken back", func(p gopacket.Packet) bool {
		return bytes.Equal(p.Data(), broadcast(t, c))
	})

	before := everything(t, h)
	for _, bad := range []string{"", "0", "-1", "100000001", "many", "1e3", "99999999999999999999"} {
		refused(t, h, exitUsage, []string{"endpoint", "set", "c", "--max-flood", bad}, "invalid --max-flood", "want 1 to 100000000 a second, or default")
	}
	refused(t, h, exitFailure, []string{"endpoint", "set", "nobody", "--max-flood", "9"}, "nobody")
	if after := everything(t, h); after != before {
		t.Errorf("bad limits changed\n%s\nto\n%s", before, after)
	}
}

// TestLoopBetweenTrunks joins two trunks elsewhere: the later one is blocked, and
// who is behind them stays within reach.
func TestLoopBetweenTrunks(t *testing.T) {
	h, _ := newOutside(t)
	createNet(t, h)
	first, second := h.NewContainer(t, "first", "net", "--trunk"), h.NewContainer(t, "second", "net", "--trunk")
	plain := h.NewContainer(t, "plain", "net")
	here, there := bridged(t, first, "here", 51), bridged(t, second, "there", 52)
	reaches := func(c *testutil.Container) func() bool {
		return func() bool {
			_, err := plain.Try("ping", "-c", "1", "-W", "1", c.IP4.String())
			return err == nil
		}
	}
	testutil.Eventually(t, "pings before the loop", func() bool { return reaches(here)() && reaches(there)() })
	if got := storms(t, h); len(got) != 0 {
		t.Fatalf("without a loop there are storms from %+v", got)
	}
	testutil.Wire(t, first.Netns, "cross", nil, second.Netns, "cross", nil)
	for _, trunk := range []*testutil.Container{first, second} {
		trunk.Run(t, "ip", "link", "set", "cross", "master", "br0")
	}
	sender := plain.NewTap(t, testutil.Device)
	var found []floodShare
	testutil.Eventually(t, "the loop", func() bool {
		sender.Send(t, broadcast(t, plain))
		found = storms(t, h)
		return len(found) > 0 && found[len(found)-1].BlockedSeconds > 0
	})
	for _, s := range found {
		if s.Endpoint == "second" && (s.LoopWith != "first" || s.Loops == 0 || s.BlockedSeconds > 60) {
			t.Errorf("%+v, want second in a loop with first", s)
		}
	}
	if got := inspectFlood(t, h, "first"); got.Loops != 0 || got.BlockedSeconds != 0 {
		t.Errorf("the earlier trunk: %+v, want it open", got)
	}
	if got := inspectFlood(t, h, "second"); got.Loops == 0 || got.BlockedSeconds == 0 {
		t.Errorf("the later trunk: %+v, want it blocked", got)
	}
	testutil.Eventually(t, "pings in spite of the loop", func() bool { return reaches(here)() && reaches(there)() })
	if h.Drops(t, "loop") == 0 {
		t.Error("nothing was dropped as loop")
	}
}
