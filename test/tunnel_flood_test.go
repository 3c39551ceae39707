package test

import (
	"fmt"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// TestTunnelFloodsAreApart: what a container floods through a tunnel, within its
// own limit, keeps no frames to many from another network in the same tunnel.
func TestTunnelFloodsAreApart(t *testing.T) {
	p := newPair(t, 7, 7)
	for _, h := range []*testutil.Host{p.a, p.b} {
		createOther(t, h, "--key", "8")
	}
	victim := newSpanning(t, p.a, p.b, "victim", "other", 10)
	receiver := newSpanning(t, p.b, p.a, "receiver", "other", 20).NewTap(t, testutil.Device)
	for i := range 7 {
		newSpanning(t, p.b, p.a, fmt.Sprint("neighbor", i), "net", 30+i)
	}
	attacker, good := p.web.NewTap(t, testutil.Device), victim.NewTap(t, testutil.Device)
	ours := func(f gopacket.Packet) bool {
		eth, ok := f.LinkLayer().(*layers.Ethernet)
		return ok && eth.SrcMAC.String() == victim.MAC.String() && eth.DstMAC.String() == layers.EthernetBroadcast.String()
	}
	good.Send(t, broadcast(t, victim))
	receiver.Await(t, "a broadcast before the flood", ours)
	flood := broadcast(t, p.web)
	// So that few frames do: by default 200,000 copies a second, and 50,000 for
	// the container, are 200 frames where 1,000 are on the network, and 25,000.
	p.b.Ebpnet(t, "tunnel", "set", "peer", "--max-flood", "1000")
	for range 1000 {
		attacker.Send(t, flood)
	}
	good.Send(t, broadcast(t, victim))
	if receiver.Receive(t, aMoment, ours) == nil {
		t.Errorf("no broadcast of another network any more: %d flood_limit on the sender's host, %d on the receiver's",
			p.a.Drops(t, "flood_limit"), p.b.Drops(t, "flood_limit"))
	}
}
