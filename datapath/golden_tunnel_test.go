package datapath

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

func hostRows(t testing.TB) []row {
	sysctl := func(value string) func(testing.TB, *world) {
		return func(t testing.TB, w *world) {
			w.ns.SetSysctl(t, "ipv4/conf/ebpnet0/forwarding", value)
			w.ns.SetSysctl(t, "ipv6/conf/ebpnet0/forwarding", value)
		}
	}
	return bothFamilies(func(v6 bool) []row {
		to := func(src netip.Addr, dst host) packet {
			return packet{from: gatewayMAC, to: dst.mac, src: src, dst: dst.ip(v6), l4: udp(1, 2), payload: "hello"}
		}
		gw := gatewayOf(openNet).ip(v6)
		const anyDevice = 1
		group := to(gw, alice)
		group.dst, group.to = netip.MustParseAddr("224.0.0.251"), mac{1, 0, 0x5e, 0, 0, 0xfb}
		if v6 {
			group.dst = netip.MustParseAddr("ff02::fb")
			group.to = multicastMAC(group.dst)
		}
		astray := to(gw, alice)
		astray.from, astray.to = bob.mac, bob.mac
		return []row{
			fromHost("from the gateway", to(gw, alice).frame(t)).delivered(alice, nil),
			fromHost("from another network's gateway", to(gatewayOf(closedNet).ip(v6), alice).frame(t)).delivered(alice, nil),
			fromHost("from the uplink's address", to(uplink.ip(v6), alice).frame(t)).delivered(alice, nil),
			fromHost("from the uplink's address, forwarding off", to(uplink.ip(v6), alice).frame(t)).
				given(sysctl("0"), sysctl("1")).delivered(alice, nil),
			fromHost("to a network without ICC", to(gatewayOf(closedNet).ip(v6), server).frame(t)).delivered(server, nil),
			fromHost("to an internal network", to(gatewayOf(internalNet).ip(v6), insider).frame(t)).delivered(insider, nil),
			fromHost("with a stale MAC", astray.frame(t)).delivered(alice, to(gw, alice).frame(t)),
			toGateway("of the host's own", 0, to(gw, alice).frame(t)).passed(),
			toGateway("forwarded", anyDevice, to(website.ip(v6), alice).frame(t)).dropped("not_from_host"),
			toGateway("forwarded as from the gateway", anyDevice, to(gw, alice).frame(t)).dropped("not_from_host"),
			fromHost("to nobody", to(gw, nobody).frame(t)).dropped("unknown_destination"),
			fromHost("to one behind a tunnel", to(gw, remote).frame(t)).dropped("unknown_destination"),
			fromHost("to a group", group.frame(t)).dropped("unknown_destination"),
		}
	})
}

func tunnelRows(t testing.TB) []row {
	wrapped := func(key uint32, inner []byte) []byte {
		return gre(t, routerMAC, uplinkMAC, peer.ip4, uplink.ip4, key, inner)
	}
	// What goes into a tunnel keeps its Ethernet header until it leaves.
	entered := func(key uint32, p packet) []byte {
		return gre(t, p.from, p.to, uplink.ip4, peer.ip4, key, p.frame(t))
	}
	moved := func(to netip.Addr) func(testing.TB, *world) {
		return func(t testing.TB, w *world) {
			if err := w.PutTunnel(Tunnel{ID: theTunnel, Local: uplink.ip4, Remote: to}); err != nil {
				t.Fatal(err)
			}
		}
	}
	removed := func(t testing.TB, w *world) {
		if err := w.DeleteTunnel(w.wanted.Tunnels[0], false); err != nil {
			t.Fatal(err)
		}
	}
	const ipHeaders = 20 + 8 + 14 // outer IP, GRE, inner Ethernet
	rows := bothFamilies(func(v6 bool) []row {
		out := between(alice, remote, v6, udp(1, 2))
		in := between(remote, alice, v6, udp(2, 1))
		around := ethernet(out, alice.mac, gatewayMAC)
		fits, big := out, out
		fits.payload = string(make([]byte, uplinkMTU-ipHeaders-map[bool]int{false: 28, true: 48}[v6]))
		big.payload = fits.payload + "x"
		// A test run's superframe is of no protocol, and the kernel resizes
		// only TCP's and UDP's.
		super := fromEndpoint("superframe of neither TCP nor UDP", alice, big.frame(t)).dropped("kernel_error")
		super.skb = skbContext{segments: 2, size: 1000}
		superIn := outOfTunnel("superframe of neither TCP nor UDP", wrapped(openKey, in.frame(t))).dropped("kernel_error")
		superIn.skb = skbContext{segments: 2, size: 3}
		wrongMAC, localMAC, wrongIP, goodLL, badLL := in, in, in, in, in
		wrongMAC.from, localMAC.from = nobody.mac, bob.mac
		wrongIP.src = bob.ip(v6)
		goodLL.src, badLL.src = linkLocal(remote.mac), linkLocal(bob.mac)
		strangeIP, fromOutside := in, in
		strangeIP.src, fromOutside.src = remoteClient.ip(v6), website.ip(v6)
		toGateway, toRemote, toGroup, toOther := in, in, in, in
		toGateway.to, toRemote.to, toGroup.to, toOther.to = gatewayMAC, remote.mac, broadcastMAC, client.mac
		spoofed := func(name string, p packet) row {
			return outOfTunnel(name, wrapped(openKey, p.frame(t))).dropped("spoofed_overlay")
		}
		nowhere := func(name string, p packet) row {
			return outOfTunnel(name, wrapped(openKey, p.frame(t))).dropped("unknown_destination")
		}
		request := between(remoteClient, server, v6, tcp(40000, 6379, "S"))
		answer := between(server, remoteClient, v6, tcp(6379, 40000, "SA"))
		asked := outOfTunnel("linked client behind a tunnel", wrapped(closedKey, request.frame(t))).delivered(server, request.frame(t))
		rows := []row{
			fromEndpoint("into a tunnel", alice, out.frame(t)).tunnelled(entered(openKey, out)),
			fromEndpoint("as large as fits", alice, fits.frame(t)).tunnelled(entered(openKey, fits)),
			fromEndpoint("larger than fits", alice, big.frame(t)).dropped("too_big"),
			super,
			fromEndpoint("into a tunnel by way of the gateway", alice, around.frame(t)).tunnelled(entered(openKey, out)),
			fromEndpoint("tunnel to nowhere", alice, out.frame(t)).given(moved(refused.ip4), remember).dropped("no_route"),
			fromEndpoint("tunnel to this host", alice, out.frame(t)).given(moved(uplink.ip4), remember).dropped("no_route"),
			fromEndpoint("tunnel gone", alice, out.frame(t)).given(removed, remember).dropped("unknown_tunnel"),
			outOfTunnel("out of a tunnel", wrapped(openKey, in.frame(t))).delivered(alice, in.frame(t)),
			superIn,
			spoofed("unknown MAC", wrongMAC),
			spoofed("local endpoint's MAC", localMAC),
			spoofed("local endpoint's address", wrongIP),
			spoofed("address of another behind the tunnel", strangeIP),
			spoofed("outside address", fromOutside),
			outOfTunnel("another network's key", wrapped(closedKey, in.frame(t))).dropped("spoofed_overlay"),
			nowhere("to the gateway", toGateway),
			nowhere("back into the tunnel", toRemote),
			nowhere("to everybody", toGroup),
			nowhere("to another network", toOther),
			asked,
			outOfTunnel("unlinked port of one behind a tunnel", wrapped(closedKey, between(remoteClient, server, v6, tcp(40000, 6380, "S")).frame(t))).dropped("policy"),
			fromEndpoint("answer to a client behind a tunnel", server, answer.frame(t)).after(asked).tunnelled(entered(closedKey, answer)),
			fromEndpoint("server opens into a tunnel", server, between(server, remoteClient, v6, tcp(1, 6379, "S")).frame(t)).dropped("policy"),
		}
		if v6 {
			nd := func(kind uint8, body string) packet {
				p := in
				p.ttl, p.payload, p.l4 = 255, "", icmp6(kind, body)
				return p
			}
			fragments, far, last := nd(neighborAnswer, ndBody(ndOverride, bob.ip6, "")), nd(echoRequest6, "\x00\x01\x00\x01 in fragments"), nd(neighborAnswer, "behind it")
			fragments.fragment.more, far.fragment.more, far.ttl, last.fragment = true, true, 64, fragmentAt(2)
			hidden := nd(routerAdvert, "behind options")
			hidden.options = []byte{1, 4, 0, 0, 0, 0} // PadN: RFC 8200, section 4.2
			ping := nd(echoRequest6, "\x00\x01\x00\x01")
			short := nd(neighborAnswer, "")
			rows = append(rows,
				spoofed("neighbor solicitation", nd(neighborAsk, ndBody(0, alice.ip6, ndOption(optionSourceMAC, remote.mac)))),
				spoofed("neighbor advertisement", nd(neighborAnswer, ndBody(ndOverride, remote.ip6, ndOption(optionTargetMAC, remote.mac)))),
				outOfTunnel("neighbor advertisement cut short", wrapped(openKey, short.frame(t))).dropped("malformed"),
				spoofed("router solicitation", nd(routerSolicit, "\x00\x00\x00\x00")),
				spoofed("router advertisement", nd(routerAdvert, "0123456789")),
				spoofed("router advertisement behind options", hidden),
				spoofed("redirect", nd(redirect6, "0123456789")),
				spoofed("multicast query", nd(mldQuery, "0123456789abcdefghij")),
				outOfTunnel("ND in fragments", wrapped(openKey, fragments.frame(t))).dropped("fragment"),
				outOfTunnel("later fragment of ND", wrapped(openKey, last.frame(t))).dropped("fragment"),
				outOfTunnel("ICMPv6 in fragments", wrapped(openKey, far.frame(t))).delivered(alice, far.frame(t)),
				outOfTunnel("ping as from this link", wrapped(openKey, ping.frame(t))).delivered(alice, ping.frame(t)),
			)
			rows = append(rows,
				outOfTunnel("link-local address", wrapped(openKey, goodLL.frame(t))).delivered(alice, goodLL.frame(t)),
				spoofed("another's link-local address", badLL))
		}
		return rows
	})

	inner := between(remote, alice, false, udp(2, 1)).frame(t)
	inner6 := between(remote, alice, true, udp(2, 1)).frame(t)
	good := wrapped(openKey, inner)
	const atGRE = atL4
	outer := func(src, dst netip.Addr, header gopacket.SerializableLayer) []byte {
		ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolGRE, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
		return testutil.Frame(t, &layers.Ethernet{SrcMAC: routerMAC[:], DstMAC: uplinkMAC[:], EthernetType: layers.EthernetTypeIPv4},
			ip, header, gopacket.Payload(inner))
	}
	teb := func() *layers.GRE {
		return &layers.GRE{KeyPresent: true, Key: openKey, Protocol: layers.EthernetTypeTransparentEthernetBridging}
	}
	keyless, sequenced, routed := teb(), teb(), teb()
	keyless.KeyPresent, sequenced.SeqPresent, routed.Protocol = false, true, layers.EthernetTypeIPv4
	fragment := patch(good, atIP+6, 0x20, 0)
	options := testutil.Frame(t, &layers.Ethernet{SrcMAC: routerMAC[:], DstMAC: uplinkMAC[:], EthernetType: layers.EthernetTypeIPv4},
		&layers.IPv4{
			Version: 4, TTL: 64, Protocol: layers.IPProtocolGRE, SrcIP: peer.ip4.AsSlice(), DstIP: uplink.ip4.AsSlice(),
			Options: []layers.IPv4Option{{OptionType: 0x94, OptionLength: 4, OptionData: []byte{0, 0}}},
		},
		teb(), gopacket.Payload(inner))
	six := packet{from: routerMAC, to: uplinkMAC, src: peer.ip6, dst: uplink.ip6, l4: transport{protocol: layers.IPProtocolGRE}, payload: string(good[atGRE:])}
	elsewhere := netip.MustParseAddr("192.0.2.99")
	uncounted := func(name string, in []byte) row { return fromUplink(name, in) }
	tagged := slices.Concat(good[:atEthertype], []byte{0x81, 0, 0, 5}, good[atEthertype:])
	remoteARP := arpRequest(t, remote.mac, remote.ip4, alice.ip4)
	return append(rows,
		outOfTunnel("outer options", options).delivered(alice, inner),
		uncounted("unknown peer", outer(elsewhere, uplink.ip4, teb())).dropped("unknown_tunnel"),
		uncounted("another address of this host", outer(peer.ip4, elsewhere, teb())).passed(),
		uncounted("other GRE of an unknown peer", outer(elsewhere, uplink.ip4, routed)).passed(),
		uncounted("other GRE of a known peer", outer(peer.ip4, uplink.ip4, routed)).dropped("bad_gre"),
		uncounted("without a key", outer(peer.ip4, uplink.ip4, keyless)).dropped("bad_gre"),
		uncounted("with sequence numbers", outer(peer.ip4, uplink.ip4, sequenced)).dropped("bad_gre"),
		uncounted("cut short", patch(good[:atGRE+7], atIPLength, 0, 20+7)).dropped("bad_gre"),
		uncounted("in fragments", fragment).dropped("fragment"),
		uncounted("unknown key", wrapped(strangeKey, inner)).dropped("unknown_key"),
		uncounted("over IPv6", six.frame(t)).passed(),
		uncounted("to another's MAC", patch(good, 0, alice.mac[:]...)).passed(),
		uncounted("in a VLAN", tagged).passed(),
		outOfTunnel("ARP", wrapped(openKey, remoteARP)).dropped("unknown_protocol"),
		outOfTunnel("inner IPv4 header cut short", cutIPv4(t, good, ipHeaders+19)).dropped("malformed"),
		outOfTunnel("inner IPv6 header cut short", cutIPv4(t, wrapped(openKey, inner6), ipHeaders+39)).dropped("malformed"),
		outOfTunnel("inner Ethernet header cut short", cutIPv4(t, good, ipHeaders-1)).dropped("malformed"),
	)
}
