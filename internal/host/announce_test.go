package host

import (
	"net"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

func TestARPAnnouncement(t *testing.T) {
	t.Parallel()
	mac, address := [6]byte{2, 0xeb, 10, 1, 0, 2}, netip.MustParseAddr("10.1.0.2")
	p := decode(t, arpAnnouncement(mac, address))
	ethernet, arp := p.LinkLayer().(*layers.Ethernet), p.Layer(layers.LayerTypeARP).(*layers.ARP)
	if ethernet.SrcMAC.String() != "02:eb:0a:01:00:02" || ethernet.DstMAC.String() != "ff:ff:ff:ff:ff:ff" {
		t.Error(ethernet)
	}
	if arp.Operation != layers.ARPRequest || arp.AddrType != layers.LinkTypeEthernet || arp.Protocol != layers.EthernetTypeIPv4 {
		t.Error(arp)
	}
	if string(arp.SourceHwAddress) != string(mac[:]) || string(arp.DstHwAddress) != string(make([]byte, 6)) {
		t.Error(arp)
	}
	for _, a := range [][]byte{arp.SourceProtAddress, arp.DstProtAddress} {
		if string(a) != string(address.AsSlice()) {
			t.Errorf("%v, want %s", a, address)
		}
	}
}

func TestAdvertisement(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"fd00:1::2", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"} {
		mac := [6]byte{2, 0xff, 0xff, 0xff, 0xff, 0xfe}
		frame := advertisement(mac, netip.MustParseAddr(address))
		p := decode(t, frame)
		ethernet, ip := p.LinkLayer().(*layers.Ethernet), p.NetworkLayer().(*layers.IPv6)
		na := p.Layer(layers.LayerTypeICMPv6NeighborAdvertisement).(*layers.ICMPv6NeighborAdvertisement)
		if ethernet.SrcMAC.String() != net.HardwareAddr(mac[:]).String() || ethernet.DstMAC.String() != "33:33:00:00:00:01" {
			t.Error(ethernet)
		}
		if ip.SrcIP.String() != address || ip.DstIP.String() != "ff02::1" || ip.HopLimit != 255 {
			t.Error(ip)
		}
		if na.TargetAddress.String() != address || !na.Override() || na.Solicited() || na.Router() {
			t.Error(na)
		}
		if len(na.Options) != 1 || na.Options[0].Type != layers.ICMPv6OptTargetAddress || string(na.Options[0].Data) != string(mac[:]) {
			t.Error(na.Options)
		}
		message := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
		told := message.Checksum
		if err := message.SetNetworkLayerForChecksum(ip); err != nil {
			t.Fatal(err)
		}
		buf := gopacket.NewSerializeBuffer()
		options := gopacket.SerializeOptions{ComputeChecksums: true}
		if err := gopacket.SerializeLayers(buf, options, message, gopacket.Payload(message.Payload)); err != nil {
			t.Fatal(err)
		}
		if message.Checksum != told {
			t.Errorf("checksum %#x, want %#x", told, message.Checksum)
		}
	}
}

func decode(t *testing.T, frame []byte) gopacket.Packet {
	t.Helper()
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	if failed := p.ErrorLayer(); failed != nil {
		t.Fatal(failed.Error())
	}
	return p
}
