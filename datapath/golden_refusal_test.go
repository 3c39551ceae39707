package datapath

import (
	"encoding/binary"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// strayErrorRows are ICMP errors about no flow, or with implausible fields.
func strayErrorRows(t testing.TB) []row {
	return bothFamilies(func(v6 bool) []row {
		e := problemPort(v6)
		query := sentBy(t, alice, v6, udp(40000, 53))
		answered := answerTo(t, "", v6, udp(53, 40000), query)
		in := func(name string, change func(*icmpError), quote int) row {
			c := icmpErrorIn(v6, website, udp(40000, 53))
			change(&c)
			frame, _ := c.frames(t, e, quote)
			return fromUplink(name, frame)
		}
		out := func(name string, change func(*icmpError), quote int) row {
			c := icmpErrorOut(v6, udp(53, 40000))
			change(&c)
			frame, _ := c.frames(t, e, quote)
			return fromEndpoint(name, alice, frame)
		}
		same := func(*icmpError) {}
		short := leastQuoted(icmpErrorIn(v6, website, udp(40000, 53)).aboutIn) - 1
		foreign := func(c *icmpError) { c.aboutIn.l4 = transport{protocol: protocolESP} }
		later := func(c *icmpError) { c.aboutIn.fragment = fragmentAt(1) }
		otherPort := func(c *icmpError) { c.aboutIn.l4.sport++ }
		otherAddress := func(c *icmpError) { c.aboutIn.src = newUplink.ip(v6) }
		bobs := func(c *icmpError) { c.aboutIn.dst = bob.ip(v6) }
		toHost := func(c *icmpError) { c.in.dst = gatewayOf(openNet).ip(v6) }
		from := func(h host) func(*icmpError) { return func(c *icmpError) { c.in.src = h.ip(v6) } }
		bobQuery := sentBy(t, bob, v6, udp(40001, 53))
		ofBob := func(c *icmpError) { c.aboutIn.dst, c.aboutIn.l4.dport = bob.ip(v6), 40001 }
		inside := icmpError{in: between(alice, bob, v6, udp(1, 2)), aboutIn: between(bob, alice, v6, udp(2, 1))}
		inside.in.payload = ""
		inside.out, inside.aboutOut = inside.in, inside.aboutIn
		bridged, _ := inside.frames(t, e, wholePacket)

		stale, dying := icmpErrorIn(v6, website, udp(40000, 53)), icmpErrorOut(v6, udp(53, 40000))
		stale.in.ttl, dying.in.ttl = 1, 1
		staleIn, _ := stale.frames(t, e, wholePacket)
		dyingIn, _ := dying.frames(t, e, wholePacket)

		// A wrong checksum stays wrong by the same amount: RFC 5508 REQ-3.
		wrong := icmpErrorIn(v6, website, udp(40000, 53))
		wrongIn, wrongOut := wrong.frames(t, e, wholePacket)
		at := atL4 + 2
		if v6 {
			at = atL4v6 + 2
		}
		spoil := func(frame []byte) []byte {
			sum := binary.BigEndian.Uint16(frame[at:])
			return patch(frame, at, byte((sum+0x0100)>>8), byte(sum))
		}
		return []row{
			in("from the host's own address", from(uplink), wholePacket).after(query).passed(),
			in("from a container's address", from(bob), wholePacket).after(query).passed(),
			in("from a loopback address", from(loopbackHost), wholePacket).after(query).passed(),
			in("to an endpoint, no flow", same, wholePacket).passed(),
			in("to an endpoint, truncated", same, short).after(query).passed(),
			in("to an endpoint, about a protocol without ports", foreign, wholePacket).after(query).passed(),
			in("to an endpoint, about a later fragment", later, wholePacket).after(query).passed(),
			in("to an endpoint, about another port", otherPort, wholePacket).after(query).passed(),
			in("to an endpoint, about another address", otherAddress, wholePacket).after(query).passed(),
			fromUplink("to an endpoint, with a wrong checksum", spoil(wrongIn)).after(query).delivered(alice, spoil(wrongOut)),
			fromUplink("to an endpoint, TTL 1", staleIn).after(query).dropped("ttl_exceeded"),

			out("of an endpoint, no flow", same, wholePacket).dropped("unknown_flow"),
			out("of an endpoint, truncated", same, short).after(query, answered).dropped("unknown_flow"),
			out("of an endpoint, about a protocol without ports", foreign, wholePacket).after(query, answered).dropped("unknown_flow"),
			out("of an endpoint, about a later fragment", later, wholePacket).after(query, answered).dropped("unknown_flow"),
			out("of an endpoint, about another port", otherPort, wholePacket).after(query, answered).dropped("unknown_flow"),
			out("of an endpoint, about a packet to its neighbor", bobs, wholePacket).after(query, answered).dropped("unknown_flow"),
			out("of an endpoint, about its neighbor's flow", ofBob, wholePacket).after(bobQuery).dropped("unknown_flow"),
			out("of an endpoint, to the host about another's packet", toHost, wholePacket).dropped("unknown_flow"),
			out("of an endpoint, network made internal", same, wholePacket).after(query, answered).
				given(changeNetwork(openNet, func(n *Network) { n.Internal = true }), remember).dropped("internal"),
			fromEndpoint("of an endpoint, TTL 1", alice, dyingIn).after(query, answered).dropped("ttl_exceeded"),
			fromEndpoint("of an endpoint to its neighbor", alice, bridged).delivered(bob, nil),
			fromLoopback("of the host to itself", in("", same, wholePacket).in).passed(),
		}
	})
}

// refusalRows are the errors that the datapath sends.
func refusalRows(t testing.TB) []row {
	return bothFamilies(func(v6 bool) []row {
		refused := func(name string, from host, p packet) row {
			return fromEndpoint(name, from, p.frame(t)).refused("ttl_exceeded", refusal(t, from, problemTTL(v6), p).frame(t))
		}
		old := func(from host, l4 transport) packet { p := outgoing(from, v6, l4); p.ttl = 1; return p }
		urgent, short, long, options := old(alice, udp(40000, 53)), old(alice, udp(40000, 53)), old(alice, tcp(40000, 80, "S")), old(alice, udp(40000, 53))
		urgent.class, short.payload, long.payload = 0xb8, "", text(1300)
		options.options = []byte{1, 4, 0, 0, 0, 0}
		if !v6 {
			options.options = []byte{0x94, 4, 0, 0}
		}
		first, _, last := inFragments(old(alice, udp(40000, 53)))
		fresh, _, _ := inFragments(outgoing(alice, v6, udp(40000, 53)))
		query := outgoing(alice, v6, udp(40000, 53))
		tooBig := query
		tooBig.whole = true
		tooBig.payload = string(make([]byte, uplinkMTU))
		_, bigLast, _ := inFragments(tooBig)
		spent := func(t testing.TB, w *world) { w.setBudget(t, alice, time.Minute) }
		left := func(t testing.TB, w *world) { w.setBudget(t, alice, 0) }
		return []row{
			refused("UDP", alice, old(alice, udp(40000, 53))),
			refused("TCP, longer than the quote", alice, long),
			refused("as long as the quote", alice, ofText(t, long, mostQuoted(v6))),
			refused("longer by a byte", alice, ofText(t, long, mostQuoted(v6)+1)),
			refused("shorter by a byte", alice, ofText(t, long, mostQuoted(v6)-1)),
			refused("SCTP", alice, old(alice, sctp(40000, 36))),
			refused("echo", alice, old(alice, echo(v6, false, 7))),
			refused("padded by Ethernet", alice, short),
			refused("with a traffic class", alice, urgent),
			refused("with options", alice, options),
			refused("of a network without ICC", client, old(client, udp(40000, 53))),
			refused("not masqueraded", plain, old(plain, udp(40000, 53))),
			refused("first fragment", alice, first),
			refused("in a flow", alice, old(alice, udp(40000, 53))).after(fromEndpoint("", alice, query.frame(t))),
			fromEndpoint("later fragment", alice, last.frame(t)).after(fromEndpoint("", alice, fresh.frame(t))).dropped("ttl_exceeded"),
			fromEndpoint("later fragment, too big", alice, bigLast.frame(t)).after(fromEndpoint("", alice, fresh.frame(t))).dropped("too_big"),
			fromEndpoint("too big, in a flow", alice, tooBig.frame(t)).after(fromEndpoint("", alice, query.frame(t))).
				refused("too_big", refusal(t, alice, problemSize(v6, uplinkMTU), tooBig).frame(t)),
			fromEndpoint("over the limit of errors", alice, old(alice, udp(40000, 53)).frame(t)).given(spent, left).dropped("ttl_exceeded"),
			refused("another endpoint than the one over the limit of errors", bob, old(bob, udp(40000, 53))).given(spent, left),
		}
	})
}

// text is a payload in which the bytes differ.
func text(length int) string {
	b := make([]byte, length)
	for i := range b {
		b[i] = byte(i + i/255)
	}
	return string(b)
}

// ofText is ofLength with a payload in which the bytes differ.
func ofText(t testing.TB, p packet, length int) packet {
	p = ofLength(t, p, length)
	p.payload = text(len(p.payload))
	return p
}

// setBudget makes the next ICMP error to an endpoint due after this time.
func (w *world) setBudget(t testing.TB, h host, after time.Duration) {
	t.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		t.Fatal(err)
	}
	due := uint64(now.Nano() + after.Nanoseconds())
	if after == 0 {
		due = 0
	}
	if err := w.Maps.IcmpBudgets.Put(h.id, due); err != nil {
		t.Fatal(err)
	}
}

// TestErrorsAreLimited sends more packets than the datapath answers at once:
// RFC 1812, 4.3.2.8.
func TestErrorsAreLimited(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	const burst, sent = 50, 500 // ICMP_BURST, and more
	w := newWorld(t, loadPinned)
	old := outgoing(alice, false, udp(40000, 53))
	old.ttl = 1
	r := fromEndpoint("", alice, old.frame(t))
	began, answered := time.Now(), 0
	for range sent {
		if verdict, _ := w.send(t, r); verdict == verdictDirect {
			answered++
		}
	}
	// One more is due per millisecond, and the first one at once.
	most := burst + 1 + int(time.Since(began)/time.Millisecond) + 1
	if answered < burst || answered > most || answered == sent {
		t.Errorf("%d errors for %d packets, want %d to %d", answered, sent, burst, most)
	}
	if drops := w.counters(t).Drops["ttl_exceeded"].Packets; drops != sent {
		t.Errorf("%d drops counted, want %d", drops, sent)
	}
}
