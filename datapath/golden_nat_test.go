package datapath

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/ebpnet/ebpnet/bpf"
)

// outgoing is a packet to the outside as an endpoint sends it.
func outgoing(from host, v6 bool, l4 transport) packet {
	return packet{from: from.mac, to: gatewayMAC, src: from.ip(v6), dst: website.ip(v6), l4: l4, payload: "hello"}
}

// masqueraded is the same as it leaves.
func masqueraded(p packet) packet {
	p.src, p.ttl = uplink.ip(p.dst.Is6()), 63
	return p
}

// incoming is a packet from the outside to the host, and translated what the
// endpoint gets of it.
func incoming(v6 bool, l4 transport) packet {
	return packet{from: routerMAC, to: uplinkMAC, src: website.ip(v6), dst: uplink.ip(v6), l4: l4, payload: "hello"}
}

func translated(p packet, to host) packet {
	p.from, p.to, p.dst, p.ttl = gatewayMAC, to.mac, to.ip(p.dst.Is6()), 63
	return p
}

// identifierAt is where a frame has its source port, or the identifier of its
// echo.
func identifierAt(p packet) int {
	at := atL4
	if p.dst.Is6() {
		at = atL4v6
	}
	if p.l4.body != "" {
		at += 4
	}
	return at
}

// onAnotherPort is p with the source port, or identifier, that a program
// chose: one that is not p's own.
func onAnotherPort(t testing.TB, p packet) func([]byte) []byte {
	return func(got []byte) []byte {
		at := identifierAt(p)
		own, chosen := binary.BigEndian.Uint16(p.frame(t)[at:]), binary.BigEndian.Uint16(got[at:])
		if chosen == own || chosen < 1024 {
			t.Errorf("port %d in place of %d, want another from 1024 on", chosen, own)
		}
		if p.l4.body != "" {
			p.l4.body = string(binary.BigEndian.AppendUint16(nil, chosen)) + p.l4.body[2:]
		} else {
			p.l4.sport = chosen
		}
		return p.frame(t)
	}
}

func masqueradeRows(t testing.TB) []row {
	return bothFamilies(func(v6 bool) []row {
		var rows []row
		leave := func(name string, from host, p packet) row { return fromEndpoint(name, from, p.frame(t)) }
		for name, l4 := range map[string]transport{
			"TCP": tcp(40000, 80, "S"), "UDP": udp(40000, 53), "UDP from port 53": udp(53, 53), "echo": echo(v6, false, 40000),
		} {
			a, b, p := outgoing(alice, v6, l4), outgoing(bob, v6, l4), outgoing(plain, v6, l4)
			kept := p
			kept.ttl = 63
			first := leave(name, alice, a).redirected(masqueraded(a).frame(t))
			again := leave(name+", next packet", alice, a).after(first).redirected(masqueraded(a).frame(t))
			rows = append(rows, first, again,
				leave(name+" of another endpoint by the same port", bob, b).after(first).redirectedAs(onAnotherPort(t, masqueraded(b))),
				leave(name+", not masqueraded", plain, p).redirected(kept.frame(t)))
		}
		sctp := outgoing(alice, v6, transport{protocol: protocolSCTP})
		answer := outgoing(alice, v6, echo(v6, true, 7))
		problem := outgoing(alice, v6, icmp4(unreachable4, "\x00\x00\x00\x00"))
		if v6 {
			problem.l4 = icmp6(1, "\x00\x00\x00\x00")
		}
		first, later := outgoing(alice, v6, udp(40000, 53)), outgoing(alice, v6, udp(40000, 53))
		first.fragment, later.fragment = fragment{more: true, id: 7}, fragmentAt(10)
		options := outgoing(alice, v6, udp(40000, 53))
		options.options = []byte{1, 4, 0, 0, 0, 0} // IPv6: PadN
		if !v6 {
			options.options = []byte{0x94, 4, 0, 0} // router alert: RFC 2113
		}
		twin := outgoing(alice, v6, udp(40000, 53))
		twin.dst = peer.ip(v6)
		refusedHere := func(name string, p packet, reason string) row {
			return withOutput(leave(name, alice, p).dropped(reason), decremented(t, p.frame(t)))
		}
		moving, plainOut := outgoing(alice, v6, udp(40000, 53)), outgoing(plain, v6, udp(40000, 53))
		renumberedOut, bareOut := masqueraded(moving), masqueraded(moving)
		renumberedOut.src, bareOut.src = newUplink.ip(v6), alice.ip(v6)
		super := leave("superframe", alice, outgoing(alice, v6, tcp(40000, 80, "A"))).
			redirected(masqueraded(outgoing(alice, v6, tcp(40000, 80, "A"))).frame(t))
		super.skb = skbContext{segments: 3, size: 2}
		rows = append(rows,
			refusedHere("SCTP", sctp, "untranslatable"),
			refusedHere("echo reply", answer, "untranslatable"),
			refusedHere("ICMP error", problem, "untranslatable"),
			refusedHere("first fragment", first, "fragment"),
			refusedHere("later fragment", later, "fragment"),
			leave("options", alice, options).redirected(masqueraded(options).frame(t)),
			leave("same port to another host", alice, twin).
				after(leave("", alice, outgoing(alice, v6, udp(40000, 53)))).redirected(masqueraded(twin).frame(t)),
			super,
			leave("flow from before another address", alice, moving).after(leave("", alice, moving)).
				given(renumbered, numbered).redirected(renumberedOut.frame(t)),
			leave("flow from before masquerade was off", alice, moving).after(leave("", alice, moving)).
				given(turned(openNet, func(n *Network) { n.Masquerade = false }), remember).redirected(bareOut.frame(t)),
			leave("flow from before masquerade was on", plain, plainOut).after(leave("", plain, plainOut)).
				given(turned(plainNet, func(n *Network) { n.Masquerade = true }), remember).redirected(masqueraded(plainOut).frame(t)),
			refusedHere("ports exhausted", outgoing(alice, v6, udp(40000, 53)), "ports_exhausted").given(exhaustPorts(v6), freePorts),
			hostHasPort(t, v6),
		)
		if !v6 {
			bare := outgoing(alice, v6, udp(40000, 53))
			bare.l4.noChecksum = true
			rows = append(rows, leave("UDP without a checksum", alice, bare).redirected(masqueraded(bare).frame(t)))
		}
		return rows
	})
}

// newUplink is the uplink with the addresses that renumbered gives it.
var newUplink = host{mac: uplinkMAC, ip4: netip.MustParseAddr("192.0.2.7"), ip6: netip.MustParseAddr("2001:db8:1::7")}

// renumbered has the host speak to the outside from newUplink's addresses, and
// numbered undoes it.
func renumbered(t testing.TB, w *world) {
	w.ip(t, w.ns, "addr add 192.0.2.7/24 dev up0\naddr add 2001:db8:1::7/64 dev up0 nodad\n"+
		"route replace default via 192.0.2.254 src 192.0.2.7\nroute replace default via 2001:db8:1::fe src 2001:db8:1::7\n")
}

func numbered(t testing.TB, w *world) {
	w.ip(t, w.ns, "route replace default via 192.0.2.254\nroute replace default via 2001:db8:1::fe\n"+
		"addr del 192.0.2.7/24 dev up0\naddr del 2001:db8:1::7/64 dev up0\n")
}

// exhaustPorts takes every port towards the outside's port 53.
func exhaustPorts(v6 bool) func(testing.TB, *world) {
	return func(t testing.TB, w *world) {
		const ports = 1 << 16
		keys, refs := make([]bpf.EbpnetFlowKey, ports), make([]bpf.EbpnetFlowRef, ports)
		for port := range keys {
			keys[port] = bpf.EbpnetFlowKey{
				Src: addressOf(website.ip(v6)), Dst: addressOf(uplink.ip(v6)),
				Sport: networkOrder16(53), Dport: networkOrder16(uint16(port)), Protocol: protocolUDP,
			}
			refs[port].Side = bpf.EbpnetFlowSideFLOW_ANSWER
		}
		if _, err := w.Maps.FlowIndex.BatchUpdate(keys, refs, nil); err != nil {
			t.Fatal(err)
		}
	}
}

// freePorts undoes exhaustPorts.
func freePorts(t testing.TB, w *world) {
	if err := replace(w.Maps.FlowIndex, map[bpf.EbpnetFlowKey]bpf.EbpnetFlowRef{}); err != nil {
		t.Error(err)
	}
}

// hostHasPort is a row in which a socket of the host has the port already.
func hostHasPort(t testing.TB, v6 bool) row {
	var socket net.Conn
	open := func(t testing.TB, w *world) {
		var err error
		w.ns.Do(func() {
			d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(uplink.ip(v6), 40000))}
			socket, err = d.Dial("udp", netip.AddrPortFrom(website.ip(v6), 53).String())
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	shut := func(t testing.TB, _ *world) {
		if err := socket.Close(); err != nil {
			t.Error(err)
		}
	}
	p := outgoing(alice, v6, udp(40000, 53))
	return fromEndpoint("port of the host's own", alice, p.frame(t)).given(open, shut).redirectedAs(onAnotherPort(t, masqueraded(p)))
}

func uplinkRows(t testing.TB) []row {
	return bothFamilies(func(v6 bool) []row {
		opened := func(from host, l4 transport) row { return fromEndpoint("", from, outgoing(from, v6, l4).frame(t)) }
		syn, query, ping := opened(alice, tcp(40000, 80, "S")), opened(alice, udp(40000, 53)), opened(alice, echo(v6, false, 7))
		answer := func(name string, l4 transport, before row) row {
			p := incoming(v6, l4)
			return fromUplink(name, p.frame(t)).after(before).delivered(alice, translated(p, alice).frame(t))
		}
		toPlain := incoming(v6, udp(53, 40000))
		toPlain.dst = plain.ip(v6)
		stale, other := incoming(v6, udp(53, 40000)), incoming(v6, udp(53, 40000))
		stale.ttl, other.src = 1, peer.ip(v6)
		fragment := incoming(v6, udp(53, 40000))
		fragment.fragment.more = true
		unknown := func(name string, l4 transport, before ...row) row {
			return fromUplink(name, incoming(v6, l4).frame(t)).after(before...).passed()
		}
		gone := incoming(v6, udp(53, 40000))
		goneOut := translated(gone, alice)
		goneOut.from, goneOut.to = gone.from, gone.to
		super := answer("superframe", tcp(80, 40000, "A"), syn)
		super.skb = skbContext{segments: 2, size: 3}

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
		accepted := answer("", tcp(80, 40000, "SA"), syn)
		told := answer("", udp(53, 40000), query)
		echoed := answer("", echo(v6, true, 7), ping)
		astray, toAll := incoming(v6, udp(53, 40000)), incoming(v6, udp(53, 40000))
		astray.to, toAll.to = alice.mac, broadcastMAC
		tagged := incoming(v6, udp(53, 40000)).frame(t)
		tagged = slices.Concat(tagged[:atEthertype], []byte{0x81, 0, 0, 5}, tagged[atEthertype:])
		hostPing := sent("", own(echo(v6, false, 7)))
		guest := sent("forwarded for a guest", own(tcp(40000, 80, "S")))
		guest.skb = skbContext{arrived: 1}
		asGuest := outgoing(bob, v6, tcp(40000, 80, "S"))
		asHost := outgoing(bob, v6, echo(v6, false, 7))
		ownFragment := own(udp(40000, 53))
		ownFragment.fragment.more = true
		return []row{
			answer("TCP", tcp(80, 40000, "SA"), syn),
			answer("UDP", udp(53, 40000), query),
			answer("echo", echo(v6, true, 7), ping),
			super,
			fromUplink("not masqueraded", toPlain.frame(t)).after(opened(plain, udp(40000, 53))).
				delivered(plain, translated(toPlain, plain).frame(t)),
			fromUplink("endpoint's own address from outside", toPlain.frame(t)).passed(),
			unknown("no flow", udp(53, 40000)),
			unknown("from another port", udp(54, 40000), query),
			unknown("to another port", udp(53, 40001), query),
			unknown("of another protocol", tcp(53, 40000, "A"), query),
			unknown("echo request", echo(v6, false, 7), ping),
			unknown("echo request without an identifier", echo(v6, false, 0), opened(alice, echo(v6, false, 0))),
			unknown("SCTP", transport{protocol: protocolSCTP}),
			fromUplink("from another host", other.frame(t)).after(query).passed(),
			fromUplink("fragment", fragment.frame(t)).after(query).passed(),
			fromUplink("TTL 1", stale.frame(t)).after(query).dropped("ttl_exceeded"),
			withOutput(fromUplink("endpoint gone", gone.frame(t)).after(query).given(forget(alice.ip(v6)), remember).
				dropped("unknown_destination"), goneOut.frame(t)),

			sent("TCP", own(tcp(40000, 80, "S"))).passed(),
			sent("UDP", own(udp(40000, 53))).passed(),
			sent("echo", own(echo(v6, false, 7))).passed(),
			sent("echo reply", own(echo(v6, true, 7))).passed(),
			sent("SCTP", own(transport{protocol: protocolSCTP})).passed(),
			sent("fragment", ownFragment).after(query).passed(),
			sent("other port than an endpoint's", own(udp(40001, 53))).after(query).passed(),
			collision("TCP by an endpoint's port", tcp(40000, 80, "S"), syn, accepted),
			collision("UDP by an endpoint's port", udp(40000, 53), query, told),
			collision("echo by an endpoint's identifier", echo(v6, false, 7), ping, echoed),
			sent("TCP by the port of an endpoint whom nobody answered", own(tcp(40000, 80, "S"))).after(syn).passed(),
			sent("UDP by the port of an endpoint whom nobody answered", own(udp(40000, 53))).after(query).passed(),
			sent("echo by the identifier of an endpoint whom nobody answered", own(echo(v6, false, 7))).after(ping).passed(),
			fromEndpoint("echo by the host's identifier", bob, asHost.frame(t)).after(hostPing).
				redirectedAs(onAnotherPort(t, masqueraded(asHost))),
			guest.passed(),
			fromEndpoint("port of one whom the host forwards for", bob, asGuest.frame(t)).after(guest).
				redirectedAs(onAnotherPort(t, masqueraded(asGuest))),
			fromUplink("answer to one whom the host forwards for", incoming(v6, tcp(80, 40000, "SA")).frame(t)).after(guest).passed(),

			fromUplink("answer in a VLAN", tagged).after(query).passed(),
			fromUplink("answer to another's MAC", astray.frame(t)).after(query).passed(),
			fromUplink("answer to everybody's MAC", toAll.frame(t)).after(query).passed(),
			fromUplink("network turned internal", incoming(v6, udp(53, 40000)).frame(t)).after(query).
				given(turned(openNet, func(n *Network) { n.Internal = true }), remember).dropped("internal"),
		}
	})
}

func (r row) rewrittenAs(outOf func([]byte) []byte) row {
	r.verdict, r.outOf = verdictPass, outOf
	return r
}

// turned changes a network's policy.
func turned(network uint32, change func(*Network)) func(testing.TB, *world) {
	return func(t testing.TB, w *world) {
		n := w.wanted.Networks[network-1]
		change(&n)
		if err := w.PutNetwork(n); err != nil {
			t.Fatal(err)
		}
	}
}

// forget takes an address out of the tables, and remember puts all back.
func forget(a netip.Addr) func(testing.TB, *world) {
	return func(t testing.TB, w *world) {
		if err := w.Maps.Neighbors.Delete(addressOf(a)); err != nil {
			t.Fatal(err)
		}
	}
}

func remember(t testing.TB, w *world) {
	if err := w.Replace(w.wanted); err != nil {
		t.Fatal(err)
	}
}
