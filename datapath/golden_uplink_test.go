package datapath

import (
	"slices"
	"testing"
)

// uplinkRows are packets through an uplink, of flows of endpoints and of the
// host.
func uplinkRows(t testing.TB) []row {
	return bothFamilies(func(v6 bool) []row {
		return slices.Concat(uplinkInRows(t, v6), uplinkOutRows(t, v6))
	})
}

// sentBy is a packet of an endpoint to the outside.
func sentBy(t testing.TB, from host, v6 bool, l4 transport) row {
	return fromEndpoint("", from, outgoing(from, v6, l4).frame(t))
}

// answerTo is a reply to alice, as she receives it.
func answerTo(t testing.TB, name string, v6 bool, l4 transport, before row) row {
	p := incoming(v6, l4)
	return fromUplink(name, p.frame(t)).after(before).delivered(alice, translated(p, alice).frame(t))
}

func uplinkInRows(t testing.TB, v6 bool) []row {
	syn, query, ping := sentBy(t, alice, v6, tcp(40000, 80, "S")), sentBy(t, alice, v6, udp(40000, 53)), sentBy(t, alice, v6, echo(v6, false, 4007))
	toPlain := incoming(v6, udp(53, 40000))
	toPlain.dst = plain.ip(v6)
	stale, other := incoming(v6, udp(53, 40000)), incoming(v6, udp(53, 40000))
	stale.ttl, other.src = 1, peer.ip(v6)
	unknown := func(name string, l4 transport, before ...row) row {
		return fromUplink(name, incoming(v6, l4).frame(t)).after(before...).passed()
	}
	unsolicited := func(name string, l4 transport, before ...row) row {
		return fromUplink(name, incoming(v6, l4).frame(t)).after(before...).dropped("unsolicited")
	}
	gone := incoming(v6, udp(53, 40000))
	super := answerTo(t, "superframe", v6, tcp(80, 40000, "A"), syn)
	super.skb = skbContext{segments: 2, size: 3}
	astray, toAll := incoming(v6, udp(53, 40000)), incoming(v6, udp(53, 40000))
	astray.to, toAll.to = alice.mac, broadcastMAC
	tagged := incoming(v6, udp(53, 40000)).frame(t)
	tagged = slices.Concat(tagged[:atEthertype], []byte{0x81, 0, 0, 5}, tagged[atEthertype:])
	listen, shut := listening(v6, 40000)
	return []row{
		answerTo(t, "TCP", v6, tcp(80, 40000, "SA"), syn),
		answerTo(t, "TCP simultaneous open", v6, tcp(80, 40000, "S"), syn),
		answerTo(t, "UDP", v6, udp(53, 40000), query),
		answerTo(t, "echo", v6, echo(v6, true, 4007), ping),
		answerTo(t, "SCTP", v6, sctp(36, 40000), sentBy(t, alice, v6, sctp(40000, 36))),
		super,
		fromUplink("not masqueraded", toPlain.frame(t)).after(sentBy(t, plain, v6, udp(40000, 53))).
			delivered(plain, translated(toPlain, plain).frame(t)),
		fromUplink("endpoint's own address from outside", toPlain.frame(t)).passed(),
		unknown("no flow", udp(53, 40000)),
		unsolicited("from another port", udp(54, 40000), query).path("drop-unsolicited"),
		unsolicited("SYN to a mapped port", tcp(81, 40000, "S"), syn),
		unsolicited("SCTP to a mapped port", sctp(37, 40000), sentBy(t, alice, v6, sctp(40000, 36))),
		fromUplink("from another host", other.frame(t)).after(query).dropped("unsolicited"),
		fromUplink("to a port on which the host listens now", incoming(v6, tcp(81, 40000, "S")).frame(t)).after(syn).
			given(listen, shut).passed(),
		answerTo(t, "from a port on which the host listens now", v6, tcp(80, 40000, "SA"), syn).given(listen, shut),
		unknown("to another port", udp(53, 40001), query),
		unknown("of another protocol", tcp(53, 40000, "A"), query),
		unknown("echo request", echo(v6, false, 4007), ping),
		unknown("echo request without an identifier", echo(v6, false, 0), sentBy(t, alice, v6, echo(v6, false, 0))),
		unknown("echo reply with another identifier", echo(v6, true, 4008), ping),
		unknown("SCTP", sctp(36, 40000)),
		unknown("a protocol without ports", transport{protocol: protocolESP}),
		fromUplink("TTL 1", stale.frame(t)).after(query).dropped("ttl_exceeded"),
		fromUplink("endpoint deleted", gone.frame(t)).after(query).given(forget(alice.ip(v6)), remember).dropped("unknown_destination"),
		fromUplink("reply in a VLAN", tagged).after(query).passed(),
		fromUplink("reply to another MAC", astray.frame(t)).after(query).passed(),
		fromUplink("reply to the broadcast MAC", toAll.frame(t)).after(query).passed(),
		fromUplink("network made internal", incoming(v6, udp(53, 40000)).frame(t)).after(query).
			given(changeNetwork(openNet, func(n *Network) { n.Internal = true }), remember).dropped("internal"),
	}
}

func uplinkOutRows(t testing.TB, v6 bool) []row {
	syn, query, ping := sentBy(t, alice, v6, tcp(40000, 80, "S")), sentBy(t, alice, v6, udp(40000, 53)), sentBy(t, alice, v6, echo(v6, false, 4007))
	sent := func(name string, p packet) row {
		p.from, p.to, p.src = uplinkMAC, routerMAC, uplink.ip(v6)
		return toUplink(name, p.frame(t))
	}
	own := func(l4 transport) packet { return outgoing(uplink, v6, l4) }
	collision := func(name string, l4 transport, before ...row) row {
		p := own(l4)
		p.from, p.to = uplinkMAC, routerMAC
		return toUplink(name, p.frame(t)).after(before...).rewrittenAs(onAnotherPort(t, p))
	}
	accepted, shaken := answerTo(t, "", v6, tcp(80, 40000, "SA"), syn), sentBy(t, alice, v6, tcp(40000, 80, "A"))
	told := answerTo(t, "", v6, udp(53, 40000), query)
	echoed := answerTo(t, "", v6, echo(v6, true, 4007), ping)
	associate := sentBy(t, alice, v6, sctp(40000, 36))
	associated := answerTo(t, "", v6, sctp(36, 40000), associate)
	hostPing := sent("", own(echo(v6, false, 4007)))
	guest := sent("forwarded for a guest", own(tcp(40000, 80, "S")))
	guest.skb = skbContext{arrived: 1}
	ownPublished := sent("from a published port", own(tcp(webPort, 80, "S")))
	asGuest := outgoing(bob, v6, tcp(40000, 80, "S"))
	asHost := outgoing(bob, v6, echo(v6, false, 4007))
	return []row{
		sent("TCP", own(tcp(40000, 80, "S"))).passed(),
		sent("UDP", own(udp(40000, 53))).passed(),
		sent("echo", own(echo(v6, false, 4007))).passed(),
		sent("echo reply", own(echo(v6, true, 4007))).passed(),
		sent("SCTP", own(sctp(40000, 36))).passed(),
		sent("a protocol without ports", own(transport{protocol: protocolESP})).passed(),
		sent("other port than an endpoint's", own(udp(40001, 53))).after(query).passed(),
		sent("from an endpoint's port to another host", own(udp(40000, 54))).after(query, told).passed(),
		collision("TCP from an endpoint's port", tcp(40000, 80, "S"), syn, accepted, shaken),
		collision("UDP from an endpoint's port", udp(40000, 53), query, told),
		collision("SCTP from an endpoint's port", sctp(40000, 36), associate, associated),
		collision("echo with an endpoint's identifier", echo(v6, false, 4007), ping, echoed),
		sent("TCP from the port of an unanswered flow", own(tcp(40000, 80, "S"))).after(syn).passed(),
		sent("TCP from the port of a flow without the last ACK of its handshake", own(tcp(40000, 80, "S"))).after(syn, accepted).passed(),
		sent("UDP from the port of an unanswered flow", own(udp(40000, 53))).after(query).passed(),
		sent("echo with the identifier of an unanswered flow", own(echo(v6, false, 4007))).after(ping).passed(),
		fromEndpoint("echo with the host's identifier", bob, asHost.frame(t)).after(hostPing).
			redirectedAs(onAnotherPort(t, masqueraded(asHost))),
		guest.passed(),
		fromEndpoint("port of a guest that the host forwards for", bob, asGuest.frame(t)).after(guest).
			redirectedAs(onAnotherPort(t, masqueraded(asGuest))),
		ownPublished.passed(),
		fromUplink("reply to the host's own connection from a published port", incoming(v6, tcp(80, webPort, "SA")).frame(t)).after(ownPublished).passed(),
		fromUplink("reply to a published port without a connection", incoming(v6, tcp(80, webPort, "SA")).frame(t)).dropped("unknown_flow"),
		fromUplink("reply to a guest that the host forwards for", incoming(v6, tcp(80, 40000, "SA")).frame(t)).after(guest).passed(),
	}
}

func (r row) rewrittenAs(outOf func([]byte) []byte) row {
	r.verdict, r.outOf = verdictPass, outOf
	return r
}
