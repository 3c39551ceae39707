package test

import (
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
