package datapath

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// forgedErrorRows are ICMP errors of endpoints. An error passes only if it
// quotes a packet from its receiver to its sender.
func forgedErrorRows(t testing.TB) []row {
	return bothFamilies(func(v6 bool) []row {
		gateway, own := gatewayOf(openNet).ip(v6), alice.ip(v6)
		sent := func(from, to netip.Addr) packet {
			return packet{src: from, dst: to, l4: udp(40000, 53), payload: "quoted"}
		}
		errorAbout := func(e problem, to mac, dst netip.Addr, about packet) packet {
			return packet{from: alice.mac, to: to, src: own, dst: dst, l4: e.about(t, about, wholePacket)}
		}
		says := func(name string, p packet) row { return fromEndpoint(name, alice, p.frame(t)) }
		var rows []row
		for _, e := range problems(v6) {
			for _, c := range []struct {
				name   string
				to     netip.Addr
				about  packet
				wanted bool
			}{
				{"its packet to her", gateway, sent(gateway, own), true},
				{"its packet to her from another address", uplink.ip(v6), sent(uplink.ip(v6), own), true},
				{"its echo request to her", gateway, packet{src: gateway, dst: own, l4: echo(v6, false, 7)}, true},
				{"its packet to her of a protocol without ports", gateway, packet{src: gateway, dst: own, l4: transport{protocol: protocolESP}, payload: "12345678"}, true},
				{"another address' packet to her", gateway, sent(uplink.ip(v6), own), false},
				{"its packet to bob", gateway, sent(gateway, bob.ip(v6)), false},
				{"its packet outside", uplink.ip(v6), sent(uplink.ip(v6), website.ip(v6)), false},
				{"its packet to a tunnel endpoint", uplink.ip(v6), sent(uplink.ip(v6), peer.ip(v6)), false},
				{"its echo reply to a tunnel endpoint", gateway, packet{src: uplink.ip(v6), dst: peer.ip(v6), l4: echo(v6, true, 7)}, false},
				{"her packet to it", gateway, sent(own, gateway), false},
			} {
				r := says(fmt.Sprintf("to the host: %s about %s", e.name, c.name), errorAbout(e, gatewayMAC, c.to, c.about))
				if c.wanted {
					rows = append(rows, r.redirected(nil))
				} else {
					rows = append(rows, r.dropped("unknown_flow"))
				}
			}
		}
		e := problemPort(v6)
		mine, others := errorAbout(e, gatewayMAC, gateway, sent(gateway, own)), errorAbout(e, gatewayMAC, gateway, sent(gateway, bob.ip(v6)))
		first := func(p packet) packet { p.fragment = fragment{more: true, id: datagramID}; return p }
		padded := func(p packet) packet {
			p.options = []byte{1, 4, 0, 0, 0, 0}
			if !v6 {
				p.options = []byte{0x94, 4, 0, 0}
			}
			return p
		}
		short := mine
		short.l4 = e.about(t, sent(gateway, own), leastQuoted(sent(gateway, own))-9)
		least := mine
		least.l4 = e.about(t, sent(gateway, own), leastQuoted(sent(gateway, own)))
		later := mine
		later.fragment, later.payload = fragmentAt(1), "the rest"
		// bare is a fragment that ends after the ICMP header. The frame is
		// longer.
		bare := func(frame []byte) []byte {
			const icmpHeader, fragmentHeader = 8, 8
			if v6 {
				return patch(frame, atIP6Length, 0, fragmentHeader+icmpHeader)
			}
			frame = patch(patch(frame, atIPLength, 0, atL4-atIP+icmpHeader), atIP+10, 0, 0)
			binary.BigEndian.PutUint16(frame[atIP+10:], internetChecksum(frame[atIP:atL4]))
			return frame
		}
		rows = append(rows,
			says("to the host: first fragment, about its packet to her", first(mine)).redirected(nil),
			says("to the host: first fragment, about its packet to bob", first(others)).dropped("unknown_flow"),
			says("to the host: first fragment without a quote", first(packet{
				from: alice.mac, to: gatewayMAC, src: own, dst: gateway, l4: e.about(t, sent(gateway, own), 0),
			})).dropped("unknown_flow"),
			fromEndpoint("to the host: first fragment with the quote in its padding", alice, bare(first(mine).frame(t))).dropped("unknown_flow"),
			says("to the host: later fragment", later).redirected(nil),
			says("to the host: with options, about its packet to her", padded(mine)).redirected(nil),
			says("to the host: with options, about its packet to bob", padded(others)).dropped("unknown_flow"),
			says("to the host: with the shortest quote", least).redirected(nil),
			says("to the host: with a truncated quoted IP header", short).dropped("unknown_flow"),
			fromEndpoint("to the host on an internal network, about its packet", insider, packet{
				from: insider.mac, to: gatewayMAC, src: insider.ip(v6), dst: gatewayOf(internalNet).ip(v6),
				l4: e.about(t, sent(gatewayOf(internalNet).ip(v6), insider.ip(v6)), wholePacket),
			}.frame(t)).redirected(nil),
			fromEndpoint("to the host on an internal network, about another packet", insider, packet{
				from: insider.mac, to: gatewayMAC, src: insider.ip(v6), dst: gatewayOf(internalNet).ip(v6),
				l4: e.about(t, sent(gateway, alice.ip(v6)), wholePacket),
			}.frame(t)).dropped("unknown_flow"),
		)
		for _, way := range []struct {
			name string
			to   mac
		}{{"to bob", bob.mac}, {"to bob through the gateway", gatewayMAC}, {"to everybody", broadcastMAC}} {
			toBob := func(about packet) packet { return errorAbout(problemSize(v6, 1280), way.to, bob.ip(v6), about) }
			good := says(way.name+": about his packet to her", toBob(sent(bob.ip(v6), own)))
			if way.to == broadcastMAC {
				good = good.floodedTo(bob).into(theTunnel)
			} else {
				out := toBob(sent(bob.ip(v6), own))
				out.to = bob.mac
				good = good.delivered(bob, out.frame(t))
			}
			foreign := says(way.name+": about his packet outside, from a router", toBob(sent(bob.ip(v6), website.ip(v6)))).
				given(allowed(alice, false, true), remember)
			switch way.to {
			case gatewayMAC:
				foreign = foreign.dropped("unknown_flow")
			case broadcastMAC:
				foreign = foreign.floodedTo(bob).into(theTunnel)
			default:
				foreign = foreign.delivered(bob, nil)
			}
			rows = append(rows, good, foreign,
				says(way.name+": about his packet outside", toBob(sent(bob.ip(v6), website.ip(v6)))).dropped("unknown_flow"),
				says(way.name+": about his echo reply outside", toBob(packet{src: bob.ip(v6), dst: website.ip(v6), l4: echo(v6, true, 7)})).dropped("unknown_flow"))
		}
		if !v6 {
			return rows
		}
		for _, kind := range []uint8{0, 5, 100, 127} { // errors of undefined types
			unknown := problem{fmt.Sprintf("error of type %d", kind), kind, 0, 0}
			rows = append(rows,
				says(unknown.name+" about its packet to her", errorAbout(unknown, gatewayMAC, gateway, sent(gateway, own))).redirected(nil),
				says(unknown.name+" about its packet to bob", errorAbout(unknown, gatewayMAC, gateway, sent(gateway, bob.ip(v6)))).dropped("unknown_flow"))
		}
		local := packet{from: alice.mac, to: gatewayMAC, src: linkLocal(alice.mac), dst: linkLocal(gatewayMAC)}
		about := func(from, to netip.Addr) packet { p := local; p.l4 = e.about(t, sent(from, to), wholePacket); return p }
		return append(rows, says("to the host, link-local, about its packet to bob", about(local.dst, linkLocal(bob.mac))).dropped("unknown_flow"))
	})
}

// trunkErrorRows are ICMP errors from behind a trunk.
func trunkErrorRows(t testing.TB, v6 bool) []row {
	behind, gateway := stranger(trunk, 80), gatewayOf(openNet).ip(v6)
	errorAbout := func(to mac, dst, quoted netip.Addr) []byte {
		about := packet{src: dst, dst: quoted, l4: udp(40000, 53), payload: "quoted"}
		return packet{from: behind.mac, to: to, src: behind.ip(v6), dst: dst, l4: problemPort(v6).about(t, about, wholePacket)}.frame(t)
	}
	foreign := errorAbout(alice.mac, alice.ip(v6), website.ip(v6))
	router := allowed(trunk, false, true)
	return []row{
		fromEndpoint("error to alice about another packet, from behind a router", trunk, foreign).given(router, remember).dropped("unknown_flow"),
		fromEndpoint("error to alice about another packet, from a router", trunk, patch(foreign, len(mac{}), trunk.mac[:]...)).
			given(router, remember).delivered(alice, nil),
		fromEndpoint("error to the host about its packet", trunk, errorAbout(gatewayMAC, gateway, behind.ip(v6))).redirected(nil),
		fromEndpoint("error to the host about another packet", trunk, errorAbout(gatewayMAC, gateway, bob.ip(v6))).dropped("unknown_flow"),
		fromEndpoint("error to alice about her packet", trunk, errorAbout(alice.mac, alice.ip(v6), behind.ip(v6))).delivered(alice, nil),
		fromEndpoint("error to alice about another packet", trunk, foreign).dropped("unknown_flow"),
	}
}

// leastPMTU is the smallest path MTU that the host accepts.
func leastPMTU(v6 bool) uint32 {
	if v6 {
		return leastMTU6
	}
	return leastPacket4
}

// misled makes the host learn the smallest path MTU to an address. It sends an
// error about an echo reply that the host never sent, as any host could.
func misled(to netip.Addr) func(testing.TB, *world) {
	return func(t testing.TB, w *world) {
		t.Helper()
		v6 := to.Is6()
		mtu := leastPMTU(v6)
		e := routerError(t, "", problemSize(v6, mtu), ipPacket(packet{src: uplink.ip(v6), dst: to, l4: echo(v6, true, 7)}.frame(t)))
		w.ns.NewTap(t, "up0peer").Send(t, e.in)
		awaitRoute(t, w, to, fmt.Sprintf("mtu %d ", mtu))
	}
}

// misledRows are packets that fit the MTU of their route, although the host has
// learned a lower path MTU.
func misledRows(t testing.TB) []row {
	return bothFamilies(func(v6 bool) []row {
		fits := ofLength(t, outgoing(alice, v6, udp(40000, 53)), uplinkMTU)
		big := ofLength(t, fits, uplinkMTU+1)
		big.whole = true
		return []row{
			fromEndpoint("outside, as large as fits", alice, fits.frame(t)).given(misled(website.ip(v6)), nil).
				redirected(masqueraded(fits).frame(t)),
			fromEndpoint("outside, larger", alice, big.frame(t)).given(misled(website.ip(v6)), nil).
				refused("too_big", refusal(t, alice, problemSize(v6, uplinkMTU), big).frame(t)),
		}
	})
}

// ignoredErrorRows are errors that do not lower a tunnel's MTU because they
// quote packets that the tunnel does not send.
func ignoredErrorRows(t testing.TB, v6 bool) []row {
	tunnel := map[bool]uint32{false: keyedTunnel4, true: keyedTunnel6}[v6]
	around := sentInto(tunnel, openNet)
	full := ofLength(t, between(alice, remoteBehind(tunnel, openNet), false, udp(1, 2)), uplinkMTU-overhead(around))
	check := func(name string, about row) row {
		return fromEndpoint(fmt.Sprintf("ignored error over IPv6: %v/%s", v6, name), alice, full.frame(t)).
			after(about).tunnelledBy(tunnel, around.around(t, full.frame(t)))
	}
	with := func(change func(*wrapping)) row {
		w := around
		change(&w)
		return routerError(t, "", problemSize(v6, 1400), quoted(t, w))
	}
	body := string(binary.BigEndian.AppendUint32(nil, 1400)) + string(quoted(t, around))
	elsewhere := packet{from: routerMAC, to: uplinkMAC, src: website.ip(v6), dst: newUplink.ip(v6), l4: icmp4(unreachable4, body)}
	if v6 {
		elsewhere.l4 = icmp6(problemSize(v6, 0).icmp, body)
	}
	elsewhere.l4.code = problemSize(v6, 0).code
	rows := []row{
		check("a checksum", with(func(w *wrapping) { w.checksum = true })),
		check("a sequence number", with(func(w *wrapping) { w.sequence = key(3) })),
		check("to another address", fromUplink("", elsewhere.frame(t))),
		fromEndpoint(fmt.Sprintf("ignored error over IPv6: %v/the host has learned it", v6), alice, full.frame(t)).
			given(misled(tunnelPeer(tunnel)), nil).tunnelledBy(tunnel, around.around(t, full.frame(t))),
	}
	if v6 {
		return rows
	}
	// Fragmentable packets cause no error.
	loose := ofLength(t, between(alice, remoteBehind(fragmentable4, openNet), false, udp(1, 2)), uplinkMTU-overhead(around))
	cut := fromEndpoint("ignored error/a tunnel without DF", alice, loose.frame(t)).after(reportMTU(t, fragmentable4, 1400)).tunnelledBy(fragmentable4, nil)
	cut.outOf = withAnyID(sentInto(fragmentable4, openNet).around(t, loose.frame(t)))
	const atFragment = 6
	return append(rows, cut,
		check("without DF", routerError(t, "", problemSize(v6, 1400), patch(quoted(t, around), atFragment, 0, 0))),
		check("a fragment", routerError(t, "", problemSize(v6, 1400), patch(quoted(t, around), atFragment, 0x40, 1))))
}

// awaitRoute waits until the host's route to an address contains a text.
func awaitRoute(t testing.TB, w *world, to netip.Addr, want string) {
	t.Helper()
	testutil.Eventually(t, fmt.Sprintf("%q in the route to %s", want, to), func() bool {
		return strings.Contains(w.ns.Run(t, "ip", "route", "get", to.String()), want)
	})
}
