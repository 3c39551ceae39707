package datapath

import (
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket/layers"
)

// between is a packet from one station of a network to another station of the
// network.
func between(from, to host, v6 bool, l4 transport) packet {
	return packet{from: from.mac, to: to.mac, src: from.ip(v6), dst: to.ip(v6), l4: l4, payload: "hello"}
}

func ethernet(p packet, from, to mac) packet {
	p.from, p.to = from, to
	return p
}

func bridgeRows(t testing.TB) []row {
	everyone := netip.MustParseAddr("255.255.255.255")
	mdns4, mdns6 := netip.MustParseAddr("224.0.0.251"), netip.MustParseAddr("ff02::fb")
	rows := bothFamilies(func(v6 bool) []row {
		known := between(alice, bob, v6, udp(1000, 2000)).frame(t)
		super := fromEndpoint("superframe", alice, between(alice, bob, v6, tcp(1000, 2000, "A")).frame(t)).delivered(bob, nil)
		super.skb = skbContext{segments: 3, size: 1}
		// A superframe from a tunnel has lost its number of segments.
		uncounted := super
		uncounted.name, uncounted.skb = "superframe without a number of segments", skbContext{size: 20}
		fragment := between(alice, bob, v6, udp(1000, 2000))
		fragment.fragment.more = true
		viaGateway := between(alice, bob, v6, udp(1000, 2000))
		mdns := packet{from: alice.mac, to: mac{1, 0, 0x5e, 0, 0, 0xfb}, src: alice.ip(v6), dst: mdns4, l4: udp(5353, 5353)}
		if v6 {
			mdns.dst, mdns.to = mdns6, multicastMAC(mdns6)
		}
		mdnsClosed := mdns
		mdnsClosed.from, mdnsClosed.src = client.mac, client.ip(v6)
		return []row{
			fromEndpoint("known unicast", alice, known).delivered(bob, nil).paths("same-host"),
			fromEndpoint("TCP", alice, between(alice, bob, v6, tcp(1000, 2000, "S")).frame(t)).delivered(bob, nil),
			fromEndpoint("echo", alice, between(alice, bob, v6, echo(v6, false, 1)).frame(t)).delivered(bob, nil),
			fromEndpoint("fragment", alice, fragment.frame(t)).delivered(bob, nil),
			super,
			uncounted,
			fromEndpoint("to itself", alice, between(alice, alice, v6, udp(1000, 2000)).frame(t)).delivered(alice, nil),
			fromEndpoint("unknown unicast", alice, between(alice, nobody, v6, udp(1000, 2000)).frame(t)).floodedTo().into(theTunnel),
			fromEndpoint("another network's MAC", alice, between(alice, client, v6, udp(1000, 2000)).frame(t)).floodedTo().into(theTunnel),
			fromEndpoint("unknown unicast without tunnels", insider, between(insider, nobody, v6, udp(1000, 2000)).frame(t)).
				dropped("unknown_destination").path("drop-unknown-destination"),
			fromEndpoint("unknown unicast without ICC", client, between(client, nobody, v6, udp(1000, 2000)).frame(t)).dropped("policy"),
			fromEndpoint("neighbor through the gateway", alice, ethernet(viaGateway, alice.mac, gatewayMAC).frame(t)).
				delivered(bob, viaGateway.frame(t)),
			fromEndpoint("multicast", alice, mdns.frame(t)).floodedTo(bob).into(theTunnel),
			fromEndpoint("multicast without ICC", client, mdnsClosed.frame(t)).dropped("policy"),
		}
	})
	dhcp := packet{from: alice.mac, to: broadcastMAC, src: netip.IPv4Unspecified(), dst: everyone, l4: udp(68, 67), payload: "discover"}
	broadcast := packet{from: alice.mac, to: broadcastMAC, src: alice.ip4, dst: everyone, l4: udp(1, 2)}
	return append(rows,
		fromEndpoint("DHCP discover", alice, dhcp.frame(t)).floodedTo(bob).into(theTunnel),
		fromEndpoint("broadcast", alice, broadcast.frame(t)).floodedTo(bob).into(theTunnel).path("flood"),
	)
}

func neighborRows(t testing.TB) []row {
	answer := func(owner, asker host) []byte {
		return arp(t, owner.mac, asker.mac, layers.ARPReply, owner.mac, owner.ip4, asker.mac, asker.ip4)
	}
	gw, closedGW := gatewayOf(openNet), gatewayOf(closedNet)
	zero4, zero6 := netip.IPv4Unspecified(), netip.IPv6Unspecified()
	allNodes := netip.MustParseAddr("ff02::1")
	unicastARP := arp(t, alice.mac, bob.mac, layers.ARPRequest, alice.mac, alice.ip4, bob.mac, bob.ip4)
	probe := arp(t, alice.mac, broadcastMAC, layers.ARPRequest, alice.mac, zero4, mac{}, bob.ip4)
	probeAnswer := arp(t, bob.mac, alice.mac, layers.ARPReply, bob.mac, bob.ip4, alice.mac, zero4)
	gratuitous := arp(t, alice.mac, broadcastMAC, layers.ARPReply, alice.mac, alice.ip4, broadcastMAC, alice.ip4)

	withMAC := func(m mac) string { return ndOption(optionSourceMAC, m) }
	solicited := func(owner, asker host) []byte {
		return tell(owner.mac, asker.mac, owner.ip6, asker.ip6, ndSolicited|ndOverride).frame(t)
	}
	unicastNS := ask(alice.mac, alice.ip6, bob.ip6, withMAC(alice.mac))
	unicastNS.to, unicastNS.dst = bob.mac, bob.ip6
	closedNS := ask(client.mac, client.ip6, server.ip6, withMAC(client.mac))
	closedNS.to, closedNS.dst = server.mac, server.ip6
	farNS := ask(alice.mac, alice.ip6, bob.ip6, withMAC(alice.mac))
	farNS.ttl = 254
	shortNS := ask(alice.mac, alice.ip6, bob.ip6, "")
	shortNS.l4.body = shortNS.l4.body[:12]
	longNS := ask(alice.mac, alice.ip6, bob.ip6, withMAC(alice.mac)+ndOption(14, mac{1, 2, 3, 4, 5, 6}))
	ownNS := ask(alice.mac, zero6, alice.ip6, "")
	return []row{
		fromEndpoint("ARP for a neighbor", alice, arpRequest(t, alice.mac, alice.ip4, bob.ip4)).redirected(answer(bob, alice)).path("arp-answer"),
		fromEndpoint("ARP for the gateway", alice, arpRequest(t, alice.mac, alice.ip4, gw.ip4)).redirected(answer(gw, alice)),
		fromEndpoint("ARP for a station behind a tunnel", alice, arpRequest(t, alice.mac, alice.ip4, remote.ip4)).redirected(answer(remote, alice)),
		fromEndpoint("ARP without ICC", client, arpRequest(t, client.mac, client.ip4, server.ip4)).redirected(answer(server, client)),
		fromEndpoint("ARP to a neighbor's MAC", alice, unicastARP).redirected(answer(bob, alice)),
		fromEndpoint("ARP probe", alice, probe).redirected(probeAnswer),
		fromEndpoint("ARP for its own address", alice, arpRequest(t, alice.mac, alice.ip4, alice.ip4)).floodedTo(bob).into(theTunnel),
		fromEndpoint("ARP for an unknown address", alice, arpRequest(t, alice.mac, alice.ip4, nobody.ip4)).floodedTo(bob).into(theTunnel),
		fromEndpoint("ARP for an unknown address without ICC", client, arpRequest(t, client.mac, client.ip4, address4(closedNet, 99))).dropped("policy"),
		fromEndpoint("ARP for another network", alice, arpRequest(t, alice.mac, alice.ip4, client.ip4)).floodedTo(bob).into(theTunnel),
		fromEndpoint("ARP for another network's gateway", alice, arpRequest(t, alice.mac, alice.ip4, closedGW.ip4)).floodedTo(bob).into(theTunnel),
		fromEndpoint("gratuitous ARP", alice, gratuitous).floodedTo(bob).into(theTunnel),

		fromEndpoint("NS for a neighbor", alice, ask(alice.mac, alice.ip6, bob.ip6, withMAC(alice.mac)).frame(t)).redirected(solicited(bob, alice)).path("nd-answer"),
		fromEndpoint("NS shorter than its answer", alice, ask(alice.mac, alice.ip6, bob.ip6, "").frame(t)).redirected(solicited(bob, alice)),
		fromEndpoint("NS longer than its answer", alice, longNS.frame(t)).redirected(solicited(bob, alice)),
		fromEndpoint("NS for the gateway", alice, ask(alice.mac, alice.ip6, gw.ip6, withMAC(alice.mac)).frame(t)).redirected(solicited(gw, alice)),
		fromEndpoint("NS for a station behind a tunnel", alice, ask(alice.mac, alice.ip6, remote.ip6, withMAC(alice.mac)).frame(t)).redirected(solicited(remote, alice)),
		fromEndpoint("NS to a neighbor's MAC", alice, unicastNS.frame(t)).redirected(solicited(bob, alice)),
		fromEndpoint("NS to a neighbor's MAC without ICC", client, closedNS.frame(t)).redirected(solicited(server, client)),
		fromEndpoint("NS from the link-local address", alice, ask(alice.mac, linkLocal(alice.mac), bob.ip6, withMAC(alice.mac)).frame(t)).
			redirected(tell(bob.mac, alice.mac, bob.ip6, linkLocal(alice.mac), ndSolicited|ndOverride).frame(t)),
		fromEndpoint("NS for an address of another endpoint", alice, ask(alice.mac, zero6, bob.ip6, "").frame(t)).
			redirected(tell(bob.mac, multicastMAC(allNodes), bob.ip6, allNodes, ndOverride).frame(t)),
		fromEndpoint("NS for its own address", alice, ownNS.frame(t)).floodedTo(bob).into(theTunnel),
		fromEndpoint("NS for an unknown address", alice, ask(alice.mac, alice.ip6, nobody.ip6, "").frame(t)).floodedTo(bob).into(theTunnel),
		fromEndpoint("NS from another link", alice, farNS.frame(t)).floodedTo(bob).into(theTunnel),
		fromEndpoint("truncated NS", alice, shortNS.frame(t)).floodedTo(bob).into(theTunnel),
		fromEndpoint("own NA", alice, tell(alice.mac, multicastMAC(allNodes), alice.ip6, allNodes, ndOverride).frame(t)).floodedTo(bob).into(theTunnel),

		fromHost("ARP", arpRequest(t, gatewayMAC, gw.ip4, alice.ip4)).redirected(answer(alice, gw)),
		fromHost("ARP for a station behind a tunnel", arpRequest(t, gatewayMAC, gw.ip4, remote.ip4)).redirected(answer(remote, gw)),
		fromHost("ARP for an unknown address", arpRequest(t, gatewayMAC, gw.ip4, nobody.ip4)).dropped("unknown_destination"),
		fromHost("ARP for itself", arpRequest(t, gatewayMAC, gw.ip4, gw.ip4)).dropped("unknown_destination"),
		fromHost("ARP announcement", arp(t, gatewayMAC, broadcastMAC, layers.ARPReply, gatewayMAC, gw.ip4, broadcastMAC, gw.ip4)).
			dropped("unknown_destination"),
		fromHost("NS", ask(gatewayMAC, gw.ip6, alice.ip6, withMAC(gatewayMAC)).frame(t)).redirected(solicited(alice, gw)),
		fromHost("NS to a MAC", packet{
			from: gatewayMAC, to: alice.mac, src: linkLocal(gatewayMAC), dst: alice.ip6, ttl: 255,
			l4: icmp6(neighborAsk, ndBody(0, alice.ip6, withMAC(gatewayMAC))),
		}.frame(t)).
			redirected(tell(alice.mac, gatewayMAC, alice.ip6, linkLocal(gatewayMAC), ndSolicited|ndOverride).frame(t)),
		fromHost("NS for an unknown address", ask(gatewayMAC, gw.ip6, nobody.ip6, "").frame(t)).dropped("unknown_destination"),
	}
}
