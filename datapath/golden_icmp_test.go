package datapath

import (
	"encoding/binary"
	"slices"
	"testing"
)

// problem is a kind of ICMP error: RFC 792, 1191, 4443.
type problem struct {
	name  string
	icmp  uint8 // type
	code  uint8
	value uint32 // MTU or pointer
}

func problems(v6 bool) []problem {
	if v6 {
		return []problem{
			{"no route", 1, 0, 0},
			{"address unreachable", 1, 3, 0},
			{"port unreachable", 1, 4, 0},
			{"packet too big", 2, 0, 1280},
			{"time exceeded", 3, 0, 0},
			{"parameter problem", 4, 1, 6},
		}
	}
	return []problem{
		{"network unreachable", unreachable4, 0, 0},
		{"host unreachable", unreachable4, 1, 0},
		{"port unreachable", unreachable4, 3, 0},
		{"fragmentation needed", unreachable4, 4, 1280},
		{"time exceeded", 11, 0, 0},
		{"parameter problem", 12, 0, 6 << 24},
	}
}

// problemPort is port unreachable.
func problemPort(v6 bool) problem { return problems(v6)[2] }

// problemSize and problemTTL are the errors that the datapath sends.
func problemSize(v6 bool, mtu uint32) problem {
	p := problems(v6)[3]
	p.value = mtu
	return p
}

func problemTTL(v6 bool) problem { return problems(v6)[4] }

// ipPacket returns the IP packet in a frame, without Ethernet padding.
func ipPacket(frame []byte) []byte {
	packet := frame[atIP:]
	if packet[0]>>4 == 4 {
		return packet[:binary.BigEndian.Uint16(packet[2:])]
	}
	return packet[:40+int(binary.BigEndian.Uint16(packet[4:]))]
}

// A quote of this length contains the whole packet.
const wholePacket = 1 << 16

// mostQuoted is the length of the quote in an error of the datapath. It is the
// most that RFC 1812, section 4.3.2.3, and RFC 4443, section 2.4 (c), allow.
func mostQuoted(v6 bool) int {
	if v6 {
		return 1280 - 40 - 8
	}
	return 576 - 20 - 8
}

// leastQuoted is the shortest quote: the IP header and 8 bytes (RFC 792).
func leastQuoted(p packet) int {
	length := 20
	if p.dst.Is6() {
		length = 40
	}
	if p.options != nil {
		length += (len(p.options) + 7) / 8 * 8
		if p.dst.Is4() {
			length = 20 + len(p.options)
		}
	}
	return length + 8
}

// about is the error about a packet, with a quote of at most this many bytes.
func (e problem) about(t testing.TB, p packet, quote int) transport {
	quoted := ipPacket(p.frame(t))
	body := string(binary.BigEndian.AppendUint32(nil, e.value)) + string(quoted[:min(quote, len(quoted))])
	l4 := icmp4(e.icmp, body)
	if p.dst.Is6() {
		l4 = icmp6(e.icmp, body)
	}
	l4.code = e.code
	return l4
}

// refusal is the error about a packet that the gateway sends to its sender.
func refusal(t testing.TB, to host, e problem, about packet) packet {
	return packet{
		from: gatewayMAC, to: to.mac, src: gatewayOf(to.network).ip(about.dst.Is6()), dst: about.src,
		class: about.class, l4: e.about(t, about, mostQuoted(about.dst.Is6())),
	}
}

// refused expects a drop with an error to the sender.
func (r row) refused(reason string, out []byte) row {
	r.verdict, r.reason, r.out = verdictDirect, reason, out
	return r
}

// icmpError is an ICMP error with its quoted packet, before and after the
// translation.
type icmpError struct {
	in, out           packet
	aboutIn, aboutOut packet
}

// frames returns the error as it arrives and as it leaves. The quoted CRC of
// SCTP does not change: no receiver checks it, and it can cover more than the
// quote.
func (c icmpError) frames(t testing.TB, e problem, quote int) (in, out []byte) {
	c.in.l4, c.out.l4 = e.about(t, c.aboutIn, quote), e.about(t, c.aboutOut, quote)
	if crc := 4 + leastQuoted(c.aboutIn); c.aboutIn.l4.protocol == protocolSCTP && len(c.in.l4.body) > crc {
		c.out.l4.body = c.out.l4.body[:crc] + c.in.l4.body[crc:crc+4] + c.out.l4.body[crc+4:]
	}
	return c.in.frame(t), c.out.frame(t)
}

// icmpErrorIn is an error from outside about a packet of alice, from the
// receiver or from a router on the path.
func icmpErrorIn(v6 bool, from host, l4 transport) icmpError {
	sent := outgoing(alice, v6, l4)
	sent.ttl = 63
	c := icmpError{aboutIn: masqueraded(sent), aboutOut: sent}
	c.in = packet{from: routerMAC, to: uplinkMAC, src: from.ip(v6), dst: uplink.ip(v6), class: 0xc0}
	c.out = translated(c.in, alice)
	return c
}

// icmpErrorOut is an error of alice about a reply from outside.
func icmpErrorOut(v6 bool, l4 transport) icmpError {
	got := translated(incoming(v6, l4), alice)
	c := icmpError{aboutIn: got, aboutOut: got}
	c.aboutOut.dst = uplink.ip(v6)
	c.in = packet{from: alice.mac, to: gatewayMAC, src: alice.ip(v6), dst: website.ip(v6)}
	c.out = c.in
	c.out.src, c.out.ttl = uplink.ip(v6), 63
	return c
}

// errorRows are ICMP errors that are translated.
func errorRows(t testing.TB) []row {
	return bothFamilies(func(v6 bool) []row {
		var rows []row
		add := func(name string, in row, c icmpError, e problem, quote int, end func(row, []byte) row) {
			var out []byte
			in.name = name
			in.in, out = c.frames(t, e, quote)
			rows = append(rows, end(in, out))
		}
		toAlice := func(r row, out []byte) row { return r.delivered(alice, out) }
		outside := func(r row, out []byte) row { return r.redirected(out) }
		router := peer
		for _, c := range []struct {
			name        string
			out, answer transport
		}{
			{"TCP", tcp(40000, 80, "S"), tcp(80, 40000, "SA")},
			{"UDP", udp(40000, 53), udp(53, 40000)},
			{"SCTP", sctp(40000, 36), sctp(36, 40000)},
			{"echo", echo(v6, false, 40000), echo(v6, true, 40000)},
		} {
			opened := sentBy(t, alice, v6, c.out)
			answered := answerTo(t, "", v6, c.answer, opened)
			fromPeer, fromRouter := icmpErrorIn(v6, website, c.out), icmpErrorIn(v6, router, c.out)
			back := icmpErrorOut(v6, c.answer)
			arrive := fromUplink("", nil).after(opened)
			leave := fromEndpoint("", alice, nil).after(opened, answered)
			for _, e := range problems(v6) {
				name := c.name + ", " + e.name
				add(name+", from the peer", arrive, fromPeer, e, wholePacket, toAlice)
				add(name+", from a router", arrive, fromRouter, e, leastQuoted(fromRouter.aboutIn), toAlice)
				add(name+", of alice", leave, back, e, wholePacket, outside)
				add(name+", of alice with the shortest quote", leave, back, e, leastQuoted(back.aboutIn), outside)
			}
			e := problemPort(v6)
			options := fromPeer
			options.aboutIn.options = []byte{1, 4, 0, 0, 0, 0}
			if !v6 {
				options.aboutIn.options = []byte{0x94, 4, 0, 0}
			}
			options.aboutOut.options = options.aboutIn.options
			add(c.name+", with options", arrive, options, e, wholePacket, toAlice)
			add(c.name+", with options and the shortest quote", arrive, options, e, leastQuoted(options.aboutIn), toAlice)
			add(c.name+", with an odd number of bytes", arrive, fromRouter, e, leastQuoted(fromRouter.aboutIn)+5, toAlice)
			// Bytes of the frame after the packet are not part of the quote.
			padded := arrive
			in, out := fromRouter.frames(t, e, leastQuoted(fromRouter.aboutIn))
			padded.name, padded.in = c.name+", with the shortest quote in a longer frame", slices.Concat(in, []byte("longer, longer"))
			rows = append(rows, padded.delivered(alice, slices.Concat(out, []byte("longer, longer"))))
			if c.name == "UDP" && !v6 {
				bare := fromPeer
				bare.aboutIn.l4.noChecksum, bare.aboutOut.l4.noChecksum = true, true
				add("UDP without a checksum", arrive, bare, e, wholePacket, toAlice)
			}
		}
		// plain is not masqueraded.
		sent := outgoing(plain, v6, udp(40000, 53))
		sent.ttl = 63
		bare := icmpError{aboutIn: sent, aboutOut: sent}
		bare.in = packet{from: routerMAC, to: uplinkMAC, src: router.ip(v6), dst: plain.ip(v6)}
		bare.out = translated(bare.in, plain)
		add("not masqueraded", fromUplink("", nil).after(sentBy(t, plain, v6, udp(40000, 53))), bare, problemTTL(v6), wholePacket,
			func(r row, out []byte) row { return r.delivered(plain, out) })
		return append(rows, publishedErrorRows(t, v6)...)
	})
}

// publishedErrorRows are errors about packets to published ports and about
// their replies.
func publishedErrorRows(t testing.TB, v6 bool) []row {
	var rows []row
	e := problemPort(v6)
	for _, c := range []struct {
		name  string
		l4    transport
		port  uint16
		reply string
	}{
		{"published TCP port", tcp(40000, webPort, "S"), 80, "SA"},
		{"published UDP port", udp(40000, dnsPort), 53, ""},
		{"published SCTP port", sctp(40000, signalPort), 36, ""},
	} {
		for _, way := range []struct {
			name  string
			asked packet
			open  func(string, []byte) row
			seen  host // the client's address at alice
			back  host // the client's station, if the packet is delivered to it
		}{
			{"from outside", incoming(v6, c.l4), fromUplink, website, host{}},
			{"from the host", localCall(loopbackHost, v6, c.l4), fromLoopback, gatewayOf(openNet), host{}},
			{"from its network", callsOut(bob, uplink.ip(v6), c.l4), func(name string, in []byte) row { return fromEndpoint(name, bob, in) }, gatewayOf(openNet), bob},
			{"from another network", callsOut(client, uplink.ip(v6), c.l4), func(name string, in []byte) row { return fromEndpoint(name, client, in) }, client, client},
		} {
			name := c.name + ", " + way.name
			arrived := reached(way.asked, alice, c.port)
			arrived.src = way.seen.ip(v6)
			answer := replying(arrived, c.reply)
			asked := way.open("", way.asked.frame(t))
			replied := fromEndpoint("", alice, answer.frame(t)).after(asked)

			// Alice's error, about the request.
			mine := icmpError{aboutIn: arrived, aboutOut: way.asked}
			mine.aboutOut.ttl = arrived.ttl
			mine.in = packet{from: alice.mac, to: gatewayMAC, src: alice.ip(v6), dst: way.seen.ip(v6)}
			mine.out = packet{from: alice.mac, to: gatewayMAC, src: way.asked.dst, dst: way.asked.src, ttl: 63}
			// The client's error, about the reply.
			theirs := icmpError{aboutIn: repliedOutside(answer, way.asked), aboutOut: answer}
			theirs.aboutOut.ttl = theirs.aboutIn.ttl
			theirs.in = packet{from: way.asked.from, to: way.asked.to, src: way.asked.src, dst: way.asked.dst}
			theirs.out = translated(theirs.in, alice)
			theirs.out.src = way.seen.ip(v6)
			switch {
			case way.back.id != 0:
				mine.out.from, mine.out.to = gatewayMAC, way.back.mac
			case way.asked.src == way.asked.dst:
				mine.out.from, mine.out.to, mine.out.ttl, theirs.out.ttl = mac{}, mac{}, 64, 64
			}
			for _, quote := range []int{wholePacket, leastQuoted(arrived)} {
				in, out := mine.frames(t, e, quote)
				told := fromEndpoint(name+", of the server", alice, in).after(asked)
				if way.back.id != 0 {
					rows = append(rows, told.delivered(way.back, out))
				} else {
					rows = append(rows, told.redirected(out))
				}
				in, out = theirs.frames(t, e, quote)
				rows = append(rows, way.open(name+", of the client", in).after(asked, replied).delivered(alice, out))
			}
		}
	}
	return rows
}
