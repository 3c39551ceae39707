package datapath

import (
	"net/netip"
	"testing"

	"github.com/ebpnet/ebpnet/bpf"
)

func policyRows(t testing.TB) []row {
	open, shut := changeNetwork(closedNet, func(n *Network) { n.ICC = true }), changeNetwork(closedNet, func(*Network) {})
	unlink := func(t testing.TB, w *world) {
		if err := w.DeleteLink(w.wanted.Links[0]); err != nil {
			t.Fatal(err)
		}
	}
	link := func(t testing.TB, w *world) {
		if err := w.PutLink(w.wanted.Links[0]); err != nil {
			t.Fatal(err)
		}
	}
	return bothFamilies(func(v6 bool) []row {
		to := func(name string, l4 transport) row {
			return fromEndpoint(name, client, between(client, server, v6, l4).frame(t))
		}
		back := func(name string, l4 transport) row {
			return fromEndpoint(name, server, between(server, client, v6, l4).frame(t))
		}
		syn := to("linked port", tcp(40000, 6379, "S"))
		answer := back("answer", tcp(6379, 40000, "SA"))
		around := between(client, server, v6, tcp(40000, 22, "S"))
		around.to = gatewayMAC
		linkedAround := between(client, server, v6, tcp(40000, 6379, "S"))
		toAlice := between(client, alice, v6, tcp(40000, 6379, "S"))
		toAlice.to = gatewayMAC
		toNobody := between(alice, server, v6, tcp(40000, 6379, "S"))
		toNobody.to = gatewayMAC
		toNobody.dst = map[bool]netip.Addr{false: address4(closedNet, 99), true: address6(closedNet, 99)}[v6]
		return []row{
			syn.delivered(server, nil),
			to("last linked port", tcp(40000, 6380, "S")).delivered(server, nil),
			to("linked UDP port", udp(40000, 53)).delivered(server, nil),
			to("port above the linked", tcp(40000, 6381, "S")).dropped("policy").path("drop-policy"),
			to("port below the linked", tcp(40000, 6378, "S")).dropped("policy"),
			to("wrong protocol", udp(40000, 6379)).dropped("policy"),
			to("wrong protocol", tcp(40000, 53, "S")).dropped("policy"),
			to("echo", echo(v6, false, 6379)).dropped("policy"),
			to("SCTP", sctp(1, 6379)).dropped("policy"),
			back("server opens back", tcp(40000, 6379, "S")).dropped("policy"),
			back("server opens from the linked port", tcp(6379, 40000, "S")).dropped("policy"),
			answer.after(syn).delivered(client, nil),
			back("reply to another port", tcp(6379, 40001, "SA")).after(syn).dropped("policy"),
			back("reply from another port", tcp(6380, 40000, "SA")).after(syn).dropped("policy"),
			to("next packet", tcp(40000, 6379, "A")).after(syn, answer).delivered(server, nil),
			to("link deleted", tcp(40000, 6379, "A")).after(syn, answer).given(unlink, link).dropped("policy"),
			back("link deleted, from the server", tcp(6379, 40000, "A")).after(syn, answer).given(unlink, link).dropped("policy"),
			to("ICC switched on", tcp(40000, 22, "S")).given(open, shut).delivered(server, nil),
			to("ICC switched off again", tcp(40000, 22, "S")).given(shut, shut).dropped("policy"),

			fromEndpoint("unlinked, through the gateway", client, around.frame(t)).dropped("policy"),
			fromEndpoint("linked, through the gateway", client, ethernet(linkedAround, client.mac, gatewayMAC).frame(t)).
				delivered(server, linkedAround.frame(t)),
			fromEndpoint("linked, through the gateway, next packet", client, ethernet(linkedAround, client.mac, gatewayMAC).frame(t)).
				after(syn).delivered(server, linkedAround.frame(t)),
			fromEndpoint("another network", client, toAlice.frame(t)).dropped("isolated").path("drop-isolated"),
			fromEndpoint("an unknown address of another network", alice, toNobody.frame(t)).dropped("isolated"),
		}
	})
}

// unrouted makes route lookups fail, so that the tables give the uplink's MTU
// (0: unknown). routed undoes it.
func unrouted(mtu int) func(testing.TB, *world) {
	return func(t testing.TB, w *world) {
		t.Helper()
		setForwarding("0")(t, w)
		uplink := w.wanted.Uplinks[0]
		uplink.MTU = mtu
		if err := w.ReplaceUplinks([]Uplink{uplink}); err != nil {
			t.Fatal(err)
		}
	}
}

func routed(t testing.TB, w *world) {
	t.Helper()
	setForwarding("1")(t, w)
	if err := w.ReplaceUplinks(w.wanted.Uplinks); err != nil {
		t.Fatal(err)
	}
}

func gatewayRows(t testing.TB) []row {
	off, on := setForwarding("0"), setForwarding("1")
	stranded := func(t testing.TB, w *world) {
		off(t, w)
		if err := w.ReplaceUplinks(nil); err != nil {
			t.Fatal(err)
		}
	}
	cutOff := func(t testing.TB, w *world) {
		w.ip(t, w.ns, "route del default\nroute del default dev up0 via 2001:db8:1::fe\n")
	}
	reconnected := func(t testing.TB, w *world) {
		w.ip(t, w.ns, "route add default via 192.0.2.254\nroute add default via 2001:db8:1::fe\n")
	}
	return bothFamilies(func(v6 bool) []row {
		loopback, group, none := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("224.0.0.5"), netip.IPv4Unspecified()
		if v6 {
			loopback, group, none = netip.IPv6Loopback(), netip.MustParseAddr("ff0e::5"), netip.IPv6Unspecified()
		}
		leaving := func(from host, to netip.Addr) packet {
			return packet{from: from.mac, to: gatewayMAC, src: from.ip(v6), dst: to, l4: udp(4000, 53), payload: "hello"}
		}
		to := func(name string, from host, dst netip.Addr) row {
			return fromEndpoint(name, from, leaving(from, dst).frame(t))
		}
		masqueraded := leaving(alice, website.ip(v6))
		masqueraded.src, masqueraded.ttl = uplink.ip(v6), 63
		old, dying := leaving(alice, website.ip(v6)), leaving(alice, website.ip(v6))
		old.ttl, dying.ttl = 1, 2
		last := masqueraded
		last.ttl = 1
		big := leaving(alice, website.ip(v6))
		big.payload = string(make([]byte, uplinkMTU))
		fits := leaving(alice, website.ip(v6))
		fits.payload = string(make([]byte, uplinkMTU-map[bool]int{false: 28, true: 48}[v6]))
		fits.whole = true
		fitted := fits
		fitted.src, fitted.ttl = uplink.ip(v6), 63
		tooBig := fits
		tooBig.payload += "x"
		bigMasqueraded, longer, bigToHost := big, fitted, big
		bigMasqueraded.src, bigMasqueraded.ttl = uplink.ip(v6), 63
		longer.payload += "x"
		bigToHost.dst = uplink.ip(v6)
		super := fromEndpoint("superframe larger than the uplink's MTU", alice, big.frame(t)).redirected(bigMasqueraded.frame(t))
		super.skb = skbContext{segments: 2, size: 1000}
		superOff := super.given(off, on)
		superOff.name += ", forwarding off"
		ping := leaving(alice, gatewayOf(openNet).ip(v6))
		ping.l4 = echo(v6, false, 1)
		rows := []row{
			to("gateway", alice, gatewayOf(openNet).ip(v6)).redirected(nil),
			fromEndpoint("gateway, ping", alice, ping.frame(t)).redirected(nil),
			to("gateway without ICC", client, gatewayOf(closedNet).ip(v6)).redirected(nil),
			to("gateway of an internal network", insider, gatewayOf(internalNet).ip(v6)).redirected(nil),
			to("another network's gateway", alice, gatewayOf(closedNet).ip(v6)).redirected(nil),
			to("another address of the host", alice, uplink.ip(v6)).redirected(nil),
			to("another address of the host, internal", insider, uplink.ip(v6)).dropped("internal"),
			to("another network's gateway, internal", insider, gatewayOf(openNet).ip(v6)).dropped("internal"),
			to("outside, internal", insider, website.ip(v6)).dropped("internal").path("drop-internal"),
			to("another network, internal", insider, alice.ip(v6)).dropped("isolated"),
			to("loopback", alice, loopback).dropped("no_route"),
			to("multicast group, at the gateway's MAC", alice, group).dropped("no_route"),
			to("unspecified address", alice, none).dropped("no_route"),
			to("unreachable", alice, refused.ip(v6)).dropped("no_route"),
			to("through a device that is no uplink", alice, sideways.ip(v6)).dropped("not_uplink"),
			to("no route: the host sends the error", alice, website.ip(v6)).given(cutOff, reconnected).redirected(nil),
			fromEndpoint("TTL 1", alice, old.frame(t)).refused("ttl_exceeded", refusal(t, alice, problemTTL(v6), old).frame(t)),
			fromEndpoint("TTL 2", alice, dying.frame(t)).redirected(last.frame(t)),
			fromEndpoint("as large as the uplink's MTU", alice, fits.frame(t)).redirected(fitted.frame(t)),
			fromEndpoint("larger than the uplink's MTU", alice, tooBig.frame(t)).
				refused("too_big", refusal(t, alice, problemSize(v6, uplinkMTU), tooBig).frame(t)),
			super,
			to("outside, forwarding off", alice, website.ip(v6)).given(off, on).redirected(masqueraded.frame(t)),
			fromEndpoint("as large as the uplink's MTU, forwarding off", alice, fits.frame(t)).given(off, on).redirected(fitted.frame(t)),
			fromEndpoint("larger than the uplink's MTU, forwarding off", alice, tooBig.frame(t)).given(off, on).
				refused("too_big", refusal(t, alice, problemSize(v6, uplinkMTU), tooBig).frame(t)),
			fromEndpoint("larger than a narrow uplink's MTU, forwarding off", alice, fits.frame(t)).given(unrouted(uplinkMTU-1), routed).
				refused("too_big", refusal(t, alice, problemSize(v6, uplinkMTU-1), fits).frame(t)),
			fromEndpoint("large, forwarding off and the uplink's MTU unknown", alice, tooBig.frame(t)).given(unrouted(0), routed).
				redirected(longer.frame(t)),
			fromEndpoint("larger than the uplink's MTU to the host, forwarding off", alice, bigToHost.frame(t)).given(off, on).redirected(nil),
			superOff,
			to("host, forwarding off", alice, uplink.ip(v6)).given(off, on).redirected(nil),
			to("gateway, forwarding off", alice, gatewayOf(openNet).ip(v6)).given(off, on).redirected(nil),
			to("another network's gateway, forwarding off", alice, gatewayOf(closedNet).ip(v6)).given(off, on).redirected(nil),
			to("another network's gateway, forwarding off and internal", insider, gatewayOf(openNet).ip(v6)).given(off, on).dropped("internal"),
			to("another network, forwarding off", alice, client.ip(v6)).given(off, on).dropped("isolated"),
			to("outside, forwarding off and no uplink", alice, website.ip(v6)).given(stranded, routed).dropped("no_route"),
		}
		if v6 {
			own := leaving(alice, website.ip6)
			own.src = linkLocal(alice.mac)
			rows = append(rows,
				to("link-local address, at the gateway's MAC", alice, linkLocal(gatewayMAC)).dropped("no_route"),
				fromEndpoint("outside from the link-local address", alice, own.frame(t)).dropped("no_route"))
		}
		return rows
	})
}

func fullRows(t testing.TB) []row {
	return bothFamilies(func(v6 bool) []row {
		flow := func(name string, port uint16) row {
			p := packet{from: alice.mac, to: gatewayMAC, src: alice.ip(v6), dst: website.ip(v6), l4: udp(port, 53)}
			out := p
			out.src, out.ttl = uplink.ip(v6), 63
			return fromEndpoint(name, alice, p.frame(t)).redirected(out.frame(t))
		}
		linked := func(name string, port uint16) row {
			return fromEndpoint(name, client, between(client, server, v6, udp(port, 53)).frame(t))
		}
		first, second, third := flow("first", 1001), flow("second", 1002), flow("", 1003)
		reply := incoming(v6, udp(53, 1001))
		refused := func(name string) row {
			return fromEndpoint(name, alice, third.in).dropped("flow_table_full")
		}
		own := outgoing(uplink, v6, echo(v6, false, 7))
		own.from, own.to = uplinkMAC, routerMAC
		taken := own
		taken.l4 = udp(1001, 53)
		theirs := outgoing(alice, v6, echo(v6, false, 7)).frame(t)
		return []row{
			toUplink("the host's echo", own.frame(t)).after(first, second).passed(),
			fromEndpoint("endpoint's echo", alice, theirs).after(first, second).dropped("flow_table_full"),
			toUplink("the host with an endpoint's port", taken.frame(t)).
				after(first, second, fromUplink("", reply.frame(t))).dropped("flow_table_full"),
			toUplink("the host with the port of an unanswered flow", taken.frame(t)).after(first, second).passed(),
			refused("translated flow").after(first, second),
			refused("translated flow again").after(first, second, third, third),
			linked("link's flow", 1).after(first, second).dropped("flow_table_full"),
			linked("a refused flow uses no slot", 1).after(first, third, linked("", 2)).dropped("flow_table_full"),
			flow("established flow", 1001).after(first, second),
			fromUplink("answer", reply.frame(t)).after(first, second).delivered(alice, translated(reply, alice).frame(t)),
			linked("established link's flow", 1).after(linked("", 1), linked("", 2), first).delivered(server, nil),
		}
	})
}

// noSlotRows are packets while all slots of the flow table are in use.
func noSlotRows(t testing.TB) []row {
	return bothFamilies(func(v6 bool) []row {
		leaving := outgoing(alice, v6, udp(1001, 53))
		first := fromEndpoint("", alice, leaving.frame(t))
		linked := fromEndpoint("link's flow", client, between(client, server, v6, udp(1, 53)).frame(t))
		refused := fromEndpoint("translated flow", alice, first.in).given(takeSlots, freeSlots).dropped("flow_table_full")
		again := fromEndpoint("established flow", alice, first.in).after(first).given(takeSlots, freeSlots)
		own := outgoing(uplink, v6, echo(v6, false, 7))
		own.from, own.to = uplinkMAC, routerMAC
		return []row{
			toUplink("the host's echo", own.frame(t)).given(takeSlots, freeSlots).passed(),
			refused,
			linked.given(takeSlots, freeSlots).dropped("flow_table_full"),
			again.redirected(masqueraded(leaving).frame(t)),
		}
	})
}

// takeSlots marks every free or retired slot as in use. freeSlots undoes it.
func takeSlots(t testing.TB, w *world) {
	changeSlots(t, w, bpf.EbpnetFlowStateFLOW_FREE, bpf.EbpnetFlowStateFLOW_CLAIMED)
	changeSlots(t, w, bpf.EbpnetFlowStateFLOW_DEAD, bpf.EbpnetFlowStateFLOW_CLAIMED)
}

func freeSlots(t testing.TB, w *world) {
	changeSlots(t, w, bpf.EbpnetFlowStateFLOW_CLAIMED, bpf.EbpnetFlowStateFLOW_FREE)
}

func changeSlots(t testing.TB, w *world, from, to bpf.EbpnetFlowState) {
	t.Helper()
	err := eachBatch(w.Maps.Flows, func(slots []uint32, flows []bpf.EbpnetFlow) {
		for i := range flows {
			if flows[i].State == from {
				flows[i].State = to
			}
		}
		if _, err := w.Maps.Flows.BatchUpdate(slots, flows, nil); err != nil {
			t.Fatal(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

// smallIndex has room for two masqueraded flows, of four entries each, and for
// no flow of a link.
const smallIndex = 8

func withOutput(r row, out []byte) row {
	r.out = out
	return r
}
