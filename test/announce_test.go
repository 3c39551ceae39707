package test

import (
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// announces tells whether a frame is of an endpoint that says where it is now.
func announces(a netip.Addr) func(gopacket.Packet) bool {
	return func(p gopacket.Packet) bool {
		if arp, ok := p.Layer(layers.LayerTypeARP).(*layers.ARP); ok {
			return a.Is4() && arp.Operation == layers.ARPRequest &&
				string(arp.SourceProtAddress) == string(a.AsSlice()) && string(arp.DstProtAddress) == string(a.AsSlice())
		}
		na, ok := p.Layer(layers.LayerTypeICMPv6NeighborAdvertisement).(*layers.ICMPv6NeighborAdvertisement)
		return ok && na.TargetAddress.String() == a.String() && na.Override() && !na.Solicited()
	}
}

func TestEndpointsAnnounceThemselves(t *testing.T) {
	h := newHost(t)
	createNet(t, h)
	createOther(t, h, "--icc=false")
	tap := h.NewContainer(t, "watcher", "net").NewTap(t, testutil.Device)
	apart := h.NewContainer(t, "apart", "other").NewTap(t, testutil.Device)
	expect := func(c *testutil.Container) {
		t.Helper()
		for _, a := range c.Addresses() {
			p := tap.Await(t, "an announcement of "+a.String(), announces(a))
			if mac := p.LinkLayer().LinkFlow().Src().String(); mac != c.MAC.String() {
				t.Errorf("%s is announced by %s, want %s", a, mac, c.MAC)
			}
		}
	}
	plain := h.NewContainer(t, "plain", "net")
	expect(plain)
	expect(h.NewContainer(t, "trunk", "net", "--trunk"))

	// Made anew, and told of again; not so one that is there.
	h.Ebpnet(t, "load")
	if p := tap.Receive(t, aMoment, announces(plain.IP4)); p != nil {
		t.Errorf("announced by a load that changes nothing:\n%s", p)
	}
	plain.Run(t, "ip", "link", "del", testutil.Device)
	h.Ebpnet(t, "load")
	expect(plain)

	// Nobody is told where nobody may talk.
	hidden := h.NewContainer(t, "hidden", "other")
	for _, a := range hidden.Addresses() {
		if p := apart.Receive(t, aMoment, announces(a)); p != nil {
			t.Errorf("announced on a network without ICC:\n%s", p)
		}
	}
}
