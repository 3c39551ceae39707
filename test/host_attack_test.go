package test

import (
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// TestSourceRoutesLeadNowhere: the host's own veth has forwarding on, so the
// kernel must follow no source route there, whatever `all` says.
func TestSourceRoutesLeadNowhere(t *testing.T) {
	h, u := newOutside(t)
	h.SetSysctl(t, "ipv4/conf/all/accept_source_route", "1")
	createNet(t, h, "--internal")
	a := h.NewContainer(t, "a", "net")
	outside := u.Outside.NewTap(t, "bridge")
	ping(t, h.Netns, u.IP4)
	to := u.IP4.As4()
	header := &layers.IPv4{
		Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: a.IP4.AsSlice(), DstIP: gateway4.AsSlice(),
		Options: []layers.IPv4Option{{OptionType: 131, OptionLength: 7, OptionData: append([]byte{4}, to[:]...)}, {OptionType: 0}},
	}
	a.NewTap(t, testutil.Device).Send(t, testutil.Frame(t, ethernet(a.MAC, gatewayMAC(t, h), layers.EthernetTypeIPv4), header,
		&layers.UDP{SrcPort: 4000, DstPort: service}, gopacket.Payload("out of an internal network")))
	p := outside.Receive(t, aMoment, func(p gopacket.Packet) bool {
		ip, ok := p.NetworkLayer().(*layers.IPv4)
		return ok && ip.SrcIP.String() == a.IP4.String()
	})
	if p != nil {
		t.Errorf("an internal network gets out:\n%s", p)
	}
}

// TestFragmentsLeaveTheHostItsOwn: a container's fragments to the host, of
// datagrams that it never ends, keep no others from the host.
func TestFragmentsLeaveTheHostItsOwn(t *testing.T) {
	h, u := newOutside(t)
	createNet(t, h)
	a := h.NewContainer(t, "a", "net")
	ping(t, u.Outside, h.IP4, "-s", "4000")
	tap := a.NewTap(t, testutil.Device)
	mac := gatewayMAC(t, h)
	for id := range 10000 {
		header := &layers.IPv4{
			Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: a.IP4.AsSlice(), DstIP: gateway4.AsSlice(),
			Id: uint16(id), Flags: layers.IPv4MoreFragments,
		}
		tap.Send(t, testutil.Frame(t, ethernet(a.MAC, mac, layers.EthernetTypeIPv4), header, gopacket.Payload(make([]byte, 1200))))
	}
	for _, to := range []netip.Addr{h.IP4} {
		if out, err := u.Outside.Try("ping", "-n", "-c", "1", "-W", "2", "-s", "4000", to.String()); err != nil {
			t.Errorf("the outside's ping in fragments: %v\n%s\n%s", err, out, h.Netns.Run(t, "nstat", "-asz", "IpReasm*"))
		}
	}
}
