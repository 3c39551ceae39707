package datapath

import (
	"slices"
	"testing"

	"github.com/ebpnet/ebpnet/bpf"
)

const datagramID = 7

func fragmentAt(offset uint16) fragment { return fragment{offset: offset, id: datagramID} }

// inFragments returns the first, a middle and the last fragment of a datagram.
func inFragments(p packet) (first, middle, last packet) {
	first, middle, last = p, p, p
	first.fragment = fragment{more: true, id: datagramID}
	middle.fragment = fragment{more: true, offset: 5, id: datagramID}
	last.fragment = fragmentAt(10)
	return first, middle, last
}

// fragmentRows are fragmented datagrams in every direction.
func fragmentRows(t testing.TB) []row {
	return bothFamilies(func(v6 bool) []row {
		return slices.Concat(fragmentsOut(t, v6), fragmentsIn(t, v6), fragmentsInside(t, v6), fragmentShareRows(t, v6))
	})
}

func fragmentsOut(t testing.TB, v6 bool) []row {
	leave := func(name string, from host, p packet) row { return fromEndpoint(name, from, p.frame(t)) }
	var rows []row
	for name, l4 := range map[string]transport{
		"TCP": tcp(40000, 80, "A"), "UDP": udp(40000, 53), "SCTP": sctp(40000, 36), "echo": echo(v6, false, 40000),
	} {
		first, middle, last := inFragments(outgoing(alice, v6, l4))
		begun := leave(name+", first", alice, first).redirected(masqueraded(first).frame(t))
		plainFirst, _, plainLast := inFragments(outgoing(plain, v6, l4))
		kept := plainLast
		kept.ttl = 63
		rows = append(rows, begun,
			leave(name+", middle", alice, middle).after(begun).redirected(masqueraded(middle).frame(t)),
			leave(name+", last", alice, last).after(begun, leave("", alice, middle)).redirected(masqueraded(last).frame(t)),
			leave(name+", last before its first", alice, last).dropped("fragment"),
			leave(name+", not masqueraded", plain, plainLast).after(leave("", plain, plainFirst)).redirected(kept.frame(t)),
		)
	}
	first, _, last := inFragments(outgoing(alice, v6, udp(40000, 53)))
	bobFirst, _, bobLast := inFragments(outgoing(bob, v6, udp(40000, 53)))
	begun, query := leave("", alice, first), leave("", alice, outgoing(alice, v6, udp(40000, 53)))
	other, otherProtocol, elsewhere, toHost := last, last, last, last
	other.fragment.id++
	otherProtocol.l4 = tcp(40000, 53, "A")
	elsewhere.dst = peer.ip(v6)
	toHost.dst = gatewayOf(openNet).ip(v6)
	moved, _, _ := inFragments(outgoing(bob, v6, sctp(40000, 36)))
	// The program translates the fields before the port, and then finds that
	// the checksum is not in the fragment.
	movedOut := masqueraded(moved)
	associate := leave("", alice, outgoing(alice, v6, sctp(40000, 36)))
	return append(rows,
		leave("with another port, first", bob, bobFirst).after(query).redirectedAs(onAnotherPort(t, masqueraded(bobFirst))),
		leave("with another port, last", bob, bobLast).after(query, leave("", bob, bobFirst)).redirected(masqueraded(bobLast).frame(t)),
		leave("SCTP with another port", bob, moved).after(associate).dropped("fragment").withSCTPLeft(movedOut.frame(t)),
		leave("of another datagram", alice, other).after(begun).dropped("fragment"),
		leave("of another protocol", alice, otherProtocol).after(begun).dropped("fragment"),
		leave("to another host", alice, elsewhere).after(begun).dropped("fragment"),
		leave("of another endpoint", bob, bobLast).after(begun).dropped("fragment"),
		leave("after the timeout", alice, last).after(begun).given(agedFragments, nothing).dropped("fragment"),
		leave("to the host", alice, toHost).redirected(nil),
	)
}

// withSCTPLeft expects that a dropped SCTP packet is out, with the checksum of
// the input: the program has not corrected it.
func (r row) withSCTPLeft(out []byte) row {
	at := atL4 + 8
	if r.in[atEthertype] == 0x86 {
		at = atL4v6 + 8 + 8 // after the fragment header
	}
	return withOutput(r, patch(out, at, r.in[at:at+4]...))
}

func nothing(testing.TB, *world) {}

// endpointFragments is the most datagrams of one endpoint that are kept:
// ENDPOINT_FRAGMENTS of bpf/types_state.h.
const endpointFragments = 64

// beginning sends the first fragments, like p, of n more datagrams.
func beginning(n int, r func(string, []byte) row, p packet) func(testing.TB, *world) {
	return func(t testing.TB, w *world) {
		for i := range n {
			p.fragment.id = datagramID + 1 + uint32(i)
			w.send(t, r("", p.frame(t)))
		}
	}
}

// fragmentShareRows are senders that start more datagrams than are kept.
func fragmentShareRows(t testing.TB, v6 bool) []row {
	by := func(h host) func(string, []byte) row {
		return func(name string, frame []byte) row { return fromEndpoint(name, h, frame) }
	}
	first, _, last := inFragments(outgoing(alice, v6, udp(40000, 53)))
	bobFirst, _, _ := inFragments(outgoing(bob, v6, udp(40001, 53)))
	begun := by(alice)("", first.frame(t))
	out := func(name string, given func(testing.TB, *world)) row {
		return by(alice)(name, last.frame(t)).after(begun).given(given, nothing)
	}
	withLimit := func(name string, limited uint32, n int) row {
		begin := func(t testing.TB, w *world) {
			w.send(t, begun)
			beginning(n, by(alice), first)(t, w)
		}
		return by(alice)(name, last.frame(t)).given(begin, nothing).givenLimits(limited, Limits{MaxFragments: 8})
	}
	linked := func(name string, n int) row {
		first, _, last := inFragments(between(client, server, v6, udp(40000, 53)))
		return by(client)(name, last.frame(t)).after(by(client)("", first.frame(t))).given(beginning(n, by(client), first), nothing)
	}
	in, _, inLast := inFragments(incoming(v6, udp(53, 40000)))
	query := by(alice)("", outgoing(alice, v6, udp(40000, 53)).frame(t))
	return []row{
		out("last, after as many other datagrams as are kept", beginning(endpointFragments, by(alice), first)).dropped("fragment_limit"),
		out("last, after one datagram less", beginning(endpointFragments-1, by(alice), first)).redirected(masqueraded(last).frame(t)),
		out("last, after many of another endpoint", beginning(4*endpointFragments, by(bob), bobFirst)).redirected(masqueraded(last).frame(t)),
		out("last, after many from outside", beginning(4*endpointFragments, fromUplink, in)).redirected(masqueraded(last).frame(t)),
		withLimit("last, after as many other datagrams as the endpoint's limit", alice.id, 8).dropped("fragment_limit"),
		withLimit("last, after one datagram less than the endpoint's limit", alice.id, 7).redirected(masqueraded(last).frame(t)),
		withLimit("last, after more datagrams than another endpoint's limit", bob.id, 8).redirected(masqueraded(last).frame(t)),
		linked("last over a link, after as many other datagrams as are kept", endpointFragments).dropped("fragment_limit"),
		linked("last over a link, after one datagram less", endpointFragments-1).delivered(server, nil),
		fromUplink("reply, last, after many of an endpoint", inLast.frame(t)).after(query, fromUplink("", in.frame(t))).
			given(beginning(4*endpointFragments, by(alice), first), nothing).delivered(alice, translated(inLast, alice).frame(t)),
	}
}

// agedFragments makes the kept datagrams older than the fragment timeout.
func agedFragments(t testing.TB, w *world) {
	const timeout = 30e9 // in nanoseconds: FRAGMENT_TIMEOUT of bpf/fragment.h
	aged := map[bpf.EbpnetFragmentPlace]bpf.EbpnetDatagram{}
	err := eachBatch(w.Maps.Datagrams, func(keys []bpf.EbpnetFragmentPlace, datagrams []bpf.EbpnetDatagram) {
		for i := range keys {
			datagrams[i].Seen -= timeout + 1
			aged[keys[i]] = datagrams[i]
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	for key, datagram := range aged {
		if err := w.Maps.Datagrams.Put(key, datagram); err != nil {
			t.Fatal(err)
		}
	}
}

func fragmentsIn(t testing.TB, v6 bool) []row {
	arrive := func(name string, p packet) row { return fromUplink(name, p.frame(t)) }
	query := fromEndpoint("", alice, outgoing(alice, v6, udp(40000, 53)).frame(t))
	first, middle, last := inFragments(incoming(v6, udp(53, 40000)))
	strange, _, strangeLast := inFragments(incoming(v6, udp(54, 40000)))
	begun := arrive("reply, first", first).after(query).delivered(alice, translated(first, alice).frame(t))
	pingFirst, _, pingLast := inFragments(incoming(v6, echo(v6, false, 40000)))
	ping := fromEndpoint("", alice, outgoing(alice, v6, echo(v6, false, 40000)).frame(t))
	echoFirst, _, echoLast := inFragments(incoming(v6, echo(v6, true, 40000)))

	asked, _, askedLast := inFragments(incoming(v6, udp(40000, dnsPort)))
	reachedFirst := reached(asked, alice, 53)
	replyFirst, _, replyLast := inFragments(replying(reachedFirst, ""))
	lastOut := askedLast
	lastOut = translated(lastOut, alice)
	published := arrive("published port, first", asked).delivered(alice, reachedFirst.frame(t))
	replied := fromEndpoint("published port's reply, first", alice, replyFirst.frame(t)).after(published).
		redirected(repliedOutside(replyFirst, asked).frame(t))

	own := outgoing(uplink, v6, udp(40000, 53))
	own.from, own.to = uplinkMAC, routerMAC
	ownFirst, _, ownLast := inFragments(own)
	answered := fromUplink("", incoming(v6, udp(53, 40000)).frame(t))
	return []row{
		begun,
		arrive("reply, middle", middle).after(query, begun).delivered(alice, translated(middle, alice).frame(t)),
		arrive("reply, last", last).after(query, begun).delivered(alice, translated(last, alice).frame(t)),
		arrive("reply, last before its first", last).after(query).passed(),
		arrive("reply, last after the timeout", last).after(query, begun).given(agedFragments, nothing).passed(),
		arrive("unsolicited, first", strange).after(query).dropped("unsolicited"),
		arrive("unsolicited, last", strangeLast).after(query, arrive("", strange)).passed(),
		arrive("no flow, first", first).passed(),
		arrive("no flow, last", last).after(arrive("", first)).passed(),
		arrive("echo request, first", pingFirst).after(ping).passed(),
		arrive("echo request, last", pingLast).after(ping, arrive("", pingFirst)).passed(),
		arrive("echo reply, first", echoFirst).after(ping).delivered(alice, translated(echoFirst, alice).frame(t)),
		arrive("echo reply, last", echoLast).after(ping, arrive("", echoFirst)).delivered(alice, translated(echoLast, alice).frame(t)),

		published,
		arrive("published port, last", askedLast).after(published).delivered(alice, lastOut.frame(t)),
		replied,
		fromEndpoint("published port's reply, last", alice, replyLast.frame(t)).after(published, replied).
			redirected(repliedOutside(replyLast, asked).frame(t)),

		toUplink("the host's own", ownFirst.frame(t)).passed(),
		toUplink("the host's own, last", ownLast.frame(t)).passed(),
		toUplink("the host's own with an endpoint's port", ownFirst.frame(t)).after(query, answered).rewrittenAs(onAnotherPort(t, ownFirst)),
		toUplink("the host's own with an endpoint's port, last", ownLast.frame(t)).
			after(query, answered, toUplink("", ownFirst.frame(t))).passed(),
	}
}

// fragmentsInside are fragments that depend on a link.
func fragmentsInside(t testing.TB, v6 bool) []row {
	first, middle, last := inFragments(between(client, server, v6, udp(40000, 53)))
	unlinked, _, unlinkedLast := inFragments(between(client, server, v6, udp(40000, 54)))
	back, _, backLast := inFragments(between(server, client, v6, udp(53, 40000)))
	to := func(name string, p packet) row { return fromEndpoint(name, client, p.frame(t)) }
	from := func(name string, p packet) row { return fromEndpoint(name, server, p.frame(t)) }
	begun := to("linked port, first", first).delivered(server, nil)
	return []row{
		begun,
		to("linked port, middle", middle).after(begun).delivered(server, nil),
		to("linked port, last", last).after(begun).delivered(server, nil),
		to("linked port, last before its first", last).dropped("fragment"),
		to("port without a link, first", unlinked).dropped("policy"),
		to("port without a link, last", unlinkedLast).after(to("", unlinked)).dropped("fragment"),
		from("linked port's reply, first", back).after(begun).delivered(client, nil),
		from("linked port's reply, last", backLast).after(begun, from("", back)).delivered(client, nil),
		from("linked port's reply, last before its first", backLast).after(begun).dropped("fragment"),
	}
}
