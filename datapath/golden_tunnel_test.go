package datapath

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/gopacket/gopacket/layers"
)

func hostRows(t testing.TB) []row {
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
		toHost := packet{from: alice.mac, to: gatewayMAC, src: alice.ip(v6), dst: gw, l4: udp(1, 2), payload: "hello"}
		return []row{
			marked(fromEndpoint("to the gateway with the mark of a frame for a tunnel", alice, toHost.frame(t)).redirected(nil), frameMark(maxNetworkID, theTunnel), 0),
			marked(fromEndpoint("to the gateway with another mark", alice, toHost.frame(t)).redirected(nil), 7, 7),
			fromHost("from the gateway", to(gw, alice).frame(t)).delivered(alice, nil),
			fromHost("from another network's gateway", to(gatewayOf(closedNet).ip(v6), alice).frame(t)).delivered(alice, nil),
			fromHost("from the uplink's address", to(uplink.ip(v6), alice).frame(t)).delivered(alice, nil),
			fromHost("from the uplink's address, forwarding off", to(uplink.ip(v6), alice).frame(t)).
				given(setForwarding("0"), setForwarding("1")).delivered(alice, nil),
			fromHost("to a network without ICC", to(gatewayOf(closedNet).ip(v6), server).frame(t)).delivered(server, nil),
			fromHost("to an internal network", to(gatewayOf(internalNet).ip(v6), insider).frame(t)).delivered(insider, nil),
			fromHost("with a stale MAC", astray.frame(t)).delivered(alice, to(gw, alice).frame(t)),
			toGateway("of the host's own", 0, to(gw, alice).frame(t)).passed(),
			marked(toGateway("with the mark of a fragment", 0, to(gw, alice).frame(t)).passed(), fragmentMark(uplinkMTU), 0),
			marked(toGateway("with the mark of a frame for a tunnel", 0, to(gw, alice).frame(t)).passed(), frameMark(maxNetworkID, maxTunnelID), 0),
			marked(toGateway("with the mark of a packet of a tunnel", 0, to(gw, alice).frame(t)).passed(), packetMark, 0),
			marked(toGateway("with a mark below", 0, to(gw, alice).frame(t)).passed(), 0xeb0fffff, 0xeb0fffff),
			marked(toGateway("with a mark above", 0, to(gw, alice).frame(t)).passed(), 0xeb400000, 0xeb400000),
			toGateway("forwarded", anyDevice, to(website.ip(v6), alice).frame(t)).dropped("not_from_host").path("drop-not-from-host"),
			toGateway("forwarded, with the gateway's address", anyDevice, to(gw, alice).frame(t)).dropped("not_from_host"),
			fromHost("to an unknown address", to(gw, nobody).frame(t)).dropped("unknown_destination"),
			fromHost("to a station behind a tunnel", to(gw, remote).frame(t)).dropped("unknown_destination"),
			fromHost("to a group", group.frame(t)).dropped("unknown_destination"),
		}
	})
}

// marked sends the packet with a mark, and expects another mark.
func marked(r row, in, out uint32) row {
	r.skb.mark, r.mark = in, out
	return r
}

func tunnelRows(t testing.TB) []row {
	wrapped := func(k uint32, inner []byte) []byte { return arriving(false, key(k)).around(t, inner) }
	entered := func(k uint32, p packet) []byte { return leaving(false, key(k)).around(t, p.frame(t)) }
	moved := func(to netip.Addr) func(testing.TB, *world) {
		return func(t testing.TB, w *world) {
			if err := w.PutTunnel(Tunnel{ID: theTunnel, Local: uplink.ip4, Remote: to, TTL: tunnelTTL}); err != nil {
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
		big.payload, big.whole = fits.payload+"x", true
		// A superframe of a test run has no protocol, and the kernel resizes
		// only TCP and UDP superframes. The detour segments it, except in a
		// test run.
		super := fromEndpoint("superframe of neither TCP nor UDP", alice, big.frame(t)).detoured(frameMark(openNet, theTunnel))
		super.skb = skbContext{segments: 2, size: 1000}
		superClosed := fromEndpoint("superframe of neither TCP nor UDP, without ICC", server, between(server, remoteClient, v6, tcp(6379, 40000, "SA")).frame(t))
		superClosed.skb = skbContext{segments: 2, size: 1}
		superLong := fromEndpoint("superframe of neither TCP nor UDP, with too long segments", alice, big.frame(t)).
			refused("too_big", refusal(t, alice, problemSize(v6, uplinkMTU-ipHeaders), big).frame(t))
		superLong.skb = skbContext{segments: 2, size: uplinkMTU}
		superThen := toTunnel("superframe of neither TCP nor UDP, after its detour", frameMark(openNet, theTunnel), big.frame(t)).dropped("kernel_error")
		superThen.skb.segments, superThen.skb.size = 2, 1000
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
		let := func(name string, p packet) row {
			return outOfTunnel(name, wrapped(openKey, p.frame(t))).delivered(alice, p.frame(t))
		}
		nowhere := func(name string, p packet) row {
			return outOfTunnel(name, wrapped(openKey, p.frame(t))).dropped("unknown_destination")
		}
		request := between(remoteClient, server, v6, tcp(40000, 6379, "S"))
		answer := between(server, remoteClient, v6, tcp(6379, 40000, "SA"))
		asked := outOfTunnel("linked client behind a tunnel", wrapped(closedKey, request.frame(t))).delivered(server, request.frame(t))
		rows := []row{
			fromEndpoint("into a tunnel", alice, out.frame(t)).tunnelled(entered(openKey, out)).path("gre-out"),
			fromEndpoint("as large as fits", alice, fits.frame(t)).tunnelled(entered(openKey, fits)),
			fromEndpoint("larger than fits", alice, big.frame(t)).
				refused("too_big", refusal(t, alice, problemSize(v6, uplinkMTU-ipHeaders), big).frame(t)),
			super,
			superLong,
			superThen,
			superClosed.after(asked).detoured(frameMark(closedNet, theTunnel)),
			fromEndpoint("into a tunnel through the gateway", alice, around.frame(t)).tunnelled(entered(openKey, out)),
			fromEndpoint("tunnel without a route", alice, out.frame(t)).given(moved(refused.ip4), remember).dropped("no_route"),
			fromEndpoint("tunnel to this host", alice, out.frame(t)).given(moved(uplink.ip4), remember).dropped("no_route"),
			fromEndpoint("tunnel deleted", alice, out.frame(t)).given(removed, remember).dropped("unknown_tunnel"),
			outOfTunnel("out of a tunnel", wrapped(openKey, in.frame(t))).delivered(alice, in.frame(t)).path("gre-back"),
			superIn,
			spoofed("unknown MAC", wrongMAC),
			spoofed("local endpoint's MAC", localMAC),
			spoofed("local endpoint's address", wrongIP).path("drop-spoofed-overlay"),
			spoofed("address of another station behind the tunnel", strangeIP),
			spoofed("outside address", fromOutside),
			outOfTunnel("another network's key", wrapped(closedKey, in.frame(t))).dropped("spoofed_overlay"),
			nowhere("to the gateway", toGateway),
			nowhere("back into the tunnel", toRemote),
			outOfTunnel("to everybody", wrapped(openKey, toGroup.frame(t))).floodedAs(toGroup.frame(t), alice, bob),
			outOfTunnel("to another network", wrapped(openKey, toOther.frame(t))).droppedAs("unknown_destination", toOther.frame(t)),
			asked,
			outOfTunnel("unlinked port, from a client behind a tunnel", wrapped(closedKey, between(remoteClient, server, v6, tcp(40000, 6380, "S")).frame(t))).dropped("policy"),
			fromEndpoint("reply to a client behind a tunnel", server, answer.frame(t)).after(asked).tunnelled(entered(closedKey, answer)),
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
				let("neighbor solicitation", nd(neighborAsk, ndBody(0, alice.ip6, ndOption(optionSourceMAC, remote.mac)))),
				let("neighbor advertisement", nd(neighborAnswer, ndBody(ndOverride, remote.ip6, ndOption(optionTargetMAC, remote.mac)))),
				spoofed("neighbor advertisement for another", nd(neighborAnswer, ndBody(ndOverride, bob.ip6, ndOption(optionTargetMAC, remote.mac)))),
				spoofed("neighbor advertisement for the gateway", nd(neighborAnswer, ndBody(ndOverride, gatewayOf(openNet).ip6, ndOption(optionTargetMAC, remote.mac)))),
				outOfTunnel("truncated neighbor advertisement", wrapped(openKey, short.frame(t))).dropped("malformed"),
				let("router solicitation", nd(routerSolicit, "\x00\x00\x00\x00")),
				spoofed("router advertisement", nd(routerAdvert, "0123456789")),
				spoofed("router advertisement behind options", hidden),
				spoofed("redirect", nd(redirect6, "0123456789")),
				spoofed("multicast query", nd(mldQuery, "0123456789abcdefghij")),
				outOfTunnel("ND in fragments", wrapped(openKey, fragments.frame(t))).dropped("fragment"),
				outOfTunnel("later fragment of ND", wrapped(openKey, last.frame(t))).dropped("fragment"),
				let("ICMPv6 in fragments", far),
				let("ping with hop limit 255", ping),
				let("link-local address", goodLL),
				spoofed("another's link-local address", badLL))
		}
		return rows
	})

	inner := between(remote, alice, false, udp(2, 1)).frame(t)
	inner6 := between(remote, alice, true, udp(2, 1)).frame(t)
	good := wrapped(openKey, inner)
	const atGRE = atL4
	with := func(change func(*wrapping)) []byte {
		w := arriving(false, key(openKey))
		change(&w)
		return w.around(t, inner)
	}
	options := with(func(w *wrapping) {
		w.options = []layers.IPv4Option{{OptionType: 0x94, OptionLength: 4, OptionData: []byte{0, 0}}}
	})
	otherGRE := func(w *wrapping) { w.inside = layers.EthernetTypeIPv4 }
	fragment := patch(good, atIP+6, 0x20, 0)
	elsewhere := netip.MustParseAddr("192.0.2.99")
	uncounted := func(name string, in []byte) row { return fromUplink(name, in) }
	tagged := slices.Concat(good[:atEthertype], []byte{0x81, 0, 0, 5}, good[atEthertype:])
	remoteARP := arpRequest(t, remote.mac, remote.ip4, alice.ip4)
	return append(rows,
		outOfTunnel("outer options", options).delivered(alice, inner),
		uncounted("unknown peer", with(func(w *wrapping) { w.src = elsewhere })).dropped("unknown_tunnel").path("drop-unknown-tunnel"),
		uncounted("another address of this host", with(func(w *wrapping) { w.dst = elsewhere })).passed(),
		uncounted("other GRE of an unknown peer", with(func(w *wrapping) { otherGRE(w); w.src = elsewhere })).passed(),
		uncounted("other GRE of a known peer", with(otherGRE)).dropped("bad_gre").path("drop-bad-gre"),
		uncounted("without a key", with(func(w *wrapping) { w.key = nil })).dropped("unknown_key"),
		outOfTunnel("with sequence numbers", with(func(w *wrapping) { w.sequence = key(7) })).delivered(alice, inner),
		uncounted("truncated", patch(good[:atGRE+7], atIPLength, 0, 20+7)).dropped("bad_gre"),
		uncounted("in fragments", fragment).dropped("fragment").path("drop-fragment"),
		uncounted("unknown key", wrapped(strangeKey, inner)).dropped("unknown_key").path("drop-unknown-key"),
		uncounted("over IPv6", arriving(true, key(openKey)).around(t, inner)).passed(),
		uncounted("to another's MAC", patch(good, 0, alice.mac[:]...)).passed(),
		uncounted("in a VLAN", tagged).passed(),
		outOfTunnel("ARP", wrapped(openKey, remoteARP)).delivered(alice, remoteARP),
		outOfTunnel("of an unknown protocol", wrapped(openKey, patch(inner, atEthertype, 0x88, 0xcc))).dropped("unknown_protocol"),
		outOfTunnel("truncated inner IPv4 header", cutIPv4(t, good, ipHeaders+19)).dropped("malformed"),
		outOfTunnel("truncated inner IPv6 header", cutIPv4(t, wrapped(openKey, inner6), ipHeaders+39)).dropped("malformed"),
		outOfTunnel("truncated inner Ethernet header", cutIPv4(t, good, ipHeaders-1)).dropped("malformed"),
	)
}
