package datapath

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/ebpnet/ebpnet/bpf"
	"github.com/ebpnet/ebpnet/loader"
)

// loadRange returns a function that loads the programs with a range of ports
// for masquerading.
func loadRange(first, last uint16) func(testing.TB, loader.Config) *Tables {
	return loadChanged(func(spec *ebpf.CollectionSpec) error {
		if err := setConstant(spec, bpf.EbpnetVarFirstPort, first); err != nil {
			return err
		}
		return setConstant(spec, bpf.EbpnetVarLastPort, last)
	})
}

// mappingRows are the ports of endpoints outside, and the senders that may use
// them.
func mappingRows(t testing.TB) []row {
	return bothFamilies(func(v6 bool) []row {
		return slices.Concat(sameMappingRows(t, v6), filteringRows(t, v6), mappedHairpinRows(t, v6))
	})
}

func sameMappingRows(t testing.TB, v6 bool) []row {
	var rows []row
	for name, l4 := range masqueradeTransports(v6) {
		twin, other := outgoing(alice, v6, l4), outgoing(alice, v6, l4)
		twin.dst = peer.ip(v6)
		other.l4.dport++
		first := sentBy(t, alice, v6, l4)
		rows = append(rows, fromEndpoint(name+" from the same port to another host", alice, twin.frame(t)).after(first).
			redirected(masqueraded(twin).frame(t)))
		if l4.body == "" {
			rows = append(rows, fromEndpoint(name+" from the same port to another port", alice, other.frame(t)).after(first).
				redirected(masqueraded(other).frame(t)))
		}
	}
	return rows
}

// sending returns a setup that sends packets after another setup.
func sending(setup func(testing.TB, *world), packets ...row) func(testing.TB, *world) {
	return func(t testing.TB, w *world) {
		setup(t, w)
		w.clearRouteCache(t)
		for _, r := range packets {
			w.send(t, r)
		}
	}
}

// both returns a function that calls first and then second.
func both(first, second func(testing.TB, *world)) func(testing.TB, *world) {
	return func(t testing.TB, w *world) {
		first(t, w)
		second(t, w)
	}
}

// filteringRows are networks that accept packets of everybody to mapped ports,
// and the packets that they refuse.
func filteringRows(t testing.TB, v6 bool) []row {
	open := opened(openNet)
	arrive := func(name string, src netip.Addr, l4 transport) row {
		p := incoming(v6, l4)
		p.src = src
		return fromUplink(name, p.frame(t)).after(sentBy(t, alice, v6, udp(40000, 53)), sentBy(t, alice, v6, tcp(40000, 80, "S")),
			sentBy(t, alice, v6, sctp(40000, 36)), sentBy(t, alice, v6, echo(v6, false, 40000)))
	}
	stranger := peer.ip(v6)
	got := func(name string, src netip.Addr, l4 transport) row {
		p := incoming(v6, l4)
		p.src = src
		return arrive(name, src, l4).given(open, remember).delivered(alice, translated(p, alice).frame(t))
	}
	refused := func(name string, src netip.Addr, l4 transport) row {
		return arrive(name, src, l4).given(open, remember).dropped("unsolicited")
	}
	loopback := loopbackHost.ip(v6)
	knocked := arrive("", stranger, udp(54, 40000))
	back := outgoing(alice, v6, udp(40000, 54))
	back.dst = stranger
	backOut := masqueraded(back)
	query := sentBy(t, alice, v6, udp(40000, 53))
	listen, shut := listening(v6, 40000)
	return []row{
		got("open to UDP", stranger, udp(54, 40000)),
		got("open to another port of a known host", website.ip(v6), udp(54, 40000)),
		got("open to SYN", stranger, tcp(54, 40000, "S")),
		got("open to ACK", stranger, tcp(54, 40000, "A")),
		got("open to SCTP", stranger, sctp(54, 40000)),
		arrive("not open to UDP", stranger, udp(54, 40000)).dropped("unsolicited"),
		refused("open, but RST", stranger, tcp(54, 40000, "R")),
		refused("open, but SYN+ACK", stranger, tcp(54, 40000, "SA")),
		refused("open, but echo reply", stranger, echo(v6, true, 40000)),
		refused("open, but from a loopback address", loopback, udp(54, 40000)),
		refused("open, but from the host's own address", uplink.ip(v6), udp(54, 40000)),
		refused("open, but from a container's address", client.ip(v6), udp(54, 40000)),
		arrive("open, but not mapped", stranger, udp(54, 40001)).given(open, remember).passed(),
		arrive("open, but the host listens on the port", stranger, tcp(54, 40000, "S")).given(both(listen, open), both(shut, remember)).passed(),
		arrive("another network is open", stranger, udp(54, 40000)).given(opened(closedNet), remember).dropped("unsolicited"),
		fromEndpoint("answer to a stranger", alice, back.frame(t)).after(query).given(sending(open, knocked), remember).
			redirected(backOut.frame(t)),
		// The mapping is for all flows of alice from this port.
		fromEndpoint("from the same port to another host", bob, outgoing(bob, v6, udp(40000, 54)).frame(t)).after(query).
			given(sending(open, knocked), remember).redirectedAs(onAnotherPort(t, masqueraded(outgoing(bob, v6, udp(40000, 54))))),
	}
}

// mappedHairpinRows are packets of endpoints to each other's mapped ports.
func mappedHairpinRows(t testing.TB, v6 bool) []row {
	outside := uplink.ip(v6)
	var rows []row
	for _, c := range []struct {
		name  string
		to    transport // to the outside, from port 40000
		out   func(sport, dport uint16) transport
		reply func(sport, dport uint16) transport
	}{
		{"UDP", udp(40000, 53), udp, udp},
		{"TCP", tcp(40000, 80, "S"), func(s, d uint16) transport { return tcp(s, d, "S") }, func(s, d uint16) transport { return tcp(s, d, "SA") }},
		{"SCTP", sctp(40000, 36), sctp, sctp},
	} {
		bobsOwn := c.to
		bobsOwn.sport = 40001
		mapped := []row{sentBy(t, alice, v6, c.to), sentBy(t, bob, v6, bobsOwn)}
		call, answer := callsOut(alice, outside, c.out(40000, 40001)), callsOut(bob, outside, c.reply(40001, 40000))
		// through is a packet as it arrives at the other endpoint: from the
		// outside address, with TTL reduced by two.
		through := func(p packet, to host) packet {
			p = translated(p, to)
			p.src, p.ttl = outside, 62
			return p
		}
		opening := fromEndpoint(c.name+" to a mapped port", alice, call.frame(t))
		refusedOut := call
		refusedOut.src, refusedOut.ttl = outside, 63
		punched := fromEndpoint("", bob, callsOut(bob, outside, c.out(40001, 40000)).frame(t))
		rows = append(rows,
			withOutput(opening.after(mapped...).dropped("unsolicited"), refusedOut.frame(t)),
			named(c.name+" to a mapped port that has sent to the sender", opening.after(append(mapped, punched)...)).
				delivered(bob, through(call, bob).frame(t)),
			named(c.name+" to a mapped port, open", opening.after(mapped...).given(opened(openNet), remember)).
				delivered(bob, through(call, bob).frame(t)),
			fromEndpoint(c.name+" back from a mapped port", bob, answer.frame(t)).after(mapped...).
				given(sending(opened(openNet), opening), remember).delivered(alice, through(answer, alice).frame(t)),
		)
	}
	query, bobQuery := sentBy(t, alice, v6, udp(40000, 53)), sentBy(t, bob, v6, udp(40001, 53))
	call := func(name string, from host, p packet) row {
		return fromEndpoint(name, from, p.frame(t)).after(query, bobQuery)
	}
	itself, fromClient, stale := callsOut(alice, outside, udp(40002, 40000)), callsOut(client, outside, udp(40002, 40001)), callsOut(alice, outside, udp(40000, 40001))
	stale.ttl = 2
	staleOut := stale
	staleOut.src, staleOut.ttl = outside, 1
	itselfOut, fromClientOut := translated(itself, alice), translated(fromClient, bob)
	itselfOut.src, fromClientOut.src, itselfOut.ttl, fromClientOut.ttl = outside, outside, 62, 62

	// Bob's error about alice's packet, as bob received it.
	about := translated(callsOut(alice, outside, udp(40000, 40001)), bob)
	about.src, about.ttl = outside, 62
	c := icmpError{aboutIn: about, aboutOut: callsOut(alice, outside, udp(40000, 40001))}
	c.aboutOut.ttl = 62
	c.in = packet{from: bob.mac, to: gatewayMAC, src: bob.ip(v6), dst: outside}
	c.out = translated(c.in, alice)
	c.out.src = outside
	complained, complainedOut := c.frames(t, problemPort(v6), wholePacket)
	half := c
	half.out.from, half.out.to = c.in.from, c.in.to
	half.out.dst, half.out.ttl = outside, 64
	half.aboutOut.src = outside
	half.aboutOut.dst = outside
	_, halfOut := half.frames(t, problemPort(v6), wholePacket)
	listen, shut := listening(v6, 40003)
	opening := call("", alice, callsOut(alice, outside, udp(40000, 40001)))
	flushAlice := func(t testing.TB, w *world) {
		sending(opened(openNet), opening)(t, w)
		if err := w.FlushFlows(FlowFilter{Network: openNet, Addresses: []netip.Addr{alice.ip(v6)}}); err != nil {
			t.Fatal(err)
		}
	}
	return append(rows,
		call("itself at its mapped port", alice, itself).given(opened(openNet), remember).delivered(alice, itselfOut.frame(t)),
		call("from another network to a mapped port", client, fromClient).given(opened(openNet), remember).delivered(bob, fromClientOut.frame(t)),
		call("a mapped port on which the host listens now", alice, callsOut(alice, outside, tcp(40000, 40003, "S"))).
			after(sentBy(t, bob, v6, tcp(40003, 80, "S"))).given(listen, shut).redirected(nil),
		call("a port that is not mapped", alice, callsOut(alice, outside, udp(40000, 40009))).redirected(nil),
		call("RST to a mapped port", alice, callsOut(alice, outside, tcp(40000, 40003, "R"))).
			after(sentBy(t, bob, v6, tcp(40003, 80, "S"))).dropped("unknown_flow"),
		withOutput(call("TTL 2 to a mapped port", alice, stale).given(opened(openNet), remember).dropped("ttl_exceeded"), staleOut.frame(t)),
		fromEndpoint("error about a packet to a mapped port", bob, complained).after(query, bobQuery).
			given(sending(opened(openNet), opening), remember).delivered(alice, complainedOut),
		withOutput(fromEndpoint("error about a packet to a mapped port, whose sender was deleted", bob, complained).after(query, bobQuery).
			given(flushAlice, remember).dropped("unknown_flow"), halfOut),
	)
}

func named(name string, r row) row {
	r.name = name
	return r
}

// onePortRows are for a host with one masquerade port: 40000.
func onePortRows(t testing.TB) []row {
	return bothFamilies(func(v6 bool) []row {
		flow := func(from host, dst netip.Addr, l4 transport) packet {
			p := outgoing(from, v6, l4)
			p.dst = dst
			return p
		}
		there := website.ip(v6)
		first := sentBy(t, alice, v6, udp(40000, 53))
		another := flow(alice, there, udp(50001, 53))
		byOne := masqueraded(another)
		byOne.l4.sport = 40000
		sharing, sharingOut := flow(bob, peer.ip(v6), udp(40001, 53)), masqueraded(flow(bob, peer.ip(v6), udp(40000, 53)))
		shared := fromEndpoint("shared to another host", bob, sharing.frame(t)).after(first).redirected(sharingOut.frame(t))
		back := incoming(v6, udp(53, 40000))
		back.src = peer.ip(v6)
		backOut := translated(back, bob)
		backOut.l4.dport = 40001
		stranger := incoming(v6, udp(54, 40000))
		stranger.src = peer.ip(v6)
		toShare := sentBy(t, bob, v6, udp(40000, 53))
		flush := func(t testing.TB, w *world) {
			if err := w.FlushFlows(FlowFilter{Network: openNet, Addresses: []netip.Addr{alice.ip(v6)}}); err != nil {
				t.Fatal(err)
			}
		}
		inTheWay, ownOut := sentBy(t, alice, v6, echo(v6, false, 40000)), outgoing(bob, v6, echo(v6, false, 7))
		return []row{
			named("its own port", first).redirected(masqueraded(outgoing(alice, v6, udp(40000, 53))).frame(t)),
			fromEndpoint("another port than its own", alice, another.frame(t)).redirected(byOne.frame(t)),
			named("taken", toShare).after(first).dropped("ports_exhausted"),
			named("used by itself", fromEndpoint("", alice, another.frame(t))).after(first).dropped("port_limit"),
			named("used, echo", fromEndpoint("", bob, ownOut.frame(t))).after(inTheWay).dropped("ports_exhausted"),
			named("of another protocol", sentBy(t, bob, v6, tcp(40000, 53, "S"))).after(first).
				redirected(masqueraded(outgoing(bob, v6, tcp(40000, 53, "S"))).frame(t)),
			named("freed", toShare).after(first).given(flush, nothing).redirected(masqueraded(outgoing(bob, v6, udp(40000, 53))).frame(t)),
			shared,
			named("shared, next packet", shared).after(first, shared),
			fromUplink("shared, reply", back.frame(t)).after(first, shared).delivered(bob, backOut.frame(t)),
			fromUplink("shared, reply to the other endpoint", incoming(v6, udp(53, 40000)).frame(t)).after(first, shared).
				delivered(alice, translated(incoming(v6, udp(53, 40000)), alice).frame(t)),
			fromUplink("shared, from a stranger", stranger.frame(t)).after(first, shared).dropped("unsolicited"),
			named("not masqueraded", sentBy(t, plain, v6, udp(40000, 53))).after(first).redirected(keptOut(t, v6)),
		}
	})
}

// keptOut is a packet of plain as it leaves, with plain's own address.
func keptOut(t testing.TB, v6 bool) []byte {
	p := outgoing(plain, v6, udp(40000, 53))
	p.ttl = 63
	return p.frame(t)
}
