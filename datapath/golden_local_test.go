package datapath

import (
	"net/netip"
	"slices"
	"testing"
)

// loopbackHost is the host at its loopback addresses.
var loopbackHost = host{ip4: netip.MustParseAddr("127.0.0.1"), ip6: netip.IPv6Loopback()}

// localCall is a packet of the host to one of its own addresses.
func localCall(at host, v6 bool, l4 transport) packet {
	return packet{src: at.ip(v6), dst: at.ip(v6), l4: l4, payload: "hello"}
}

// localRows are packets of the host to published ports.
func localRows(t testing.TB) []row {
	return bothFamilies(func(v6 bool) []row {
		var rows []row
		for _, c := range []struct {
			name  string
			at    host
			l4    transport
			to    host
			port  uint16
			seen  netip.Addr // the host's address at the server
			reply string
		}{
			{"TCP", loopbackHost, tcp(40000, webPort, "S"), alice, 80, gatewayOf(openNet).ip(v6), "SA"},
			{"TCP for the host only", loopbackHost, tcp(40000, hereOnlyPort, "S"), alice, 80, gatewayOf(openNet).ip(v6), "SA"},
			{"TCP for others only", loopbackHost, tcp(40000, restrictedPort, "S"), alice, 81, gatewayOf(openNet).ip(v6), "SA"},
			{"TCP to another network", loopbackHost, tcp(40000, plainPort, "S"), plain, 80, gatewayOf(plainNet).ip(v6), "SA"},
			{"UDP", loopbackHost, udp(40000, dnsPort), alice, 53, gatewayOf(openNet).ip(v6), ""},
			{"SCTP", loopbackHost, sctp(40000, signalPort), alice, 36, gatewayOf(openNet).ip(v6), ""},
			{"TCP at the uplink's address", uplink, tcp(40000, webPort, "S"), alice, 80, uplink.ip(v6), "SA"},
			{"TCP at one address", uplink, tcp(40000, oneAddressPort, "S"), bob, 443, uplink.ip(v6), "SA"},
			{"UDP at the uplink's address", uplink, udp(40000, dnsPort), alice, 53, uplink.ip(v6), ""},
		} {
			asked := localCall(c.at, v6, c.l4)
			arrived := reached(asked, c.to, c.port)
			arrived.src, arrived.ttl = c.seen, 64
			first := fromLoopback(c.name, asked.frame(t)).delivered(c.to, arrived.frame(t))
			answer := replying(arrived, c.reply)
			out := repliedOutside(answer, asked)
			out.from, out.to, out.ttl = mac{}, mac{}, 64
			rows = append(rows, first,
				fromEndpoint(c.name+", reply", c.to, answer.frame(t)).after(first).redirected(out.frame(t)))
		}
		return append(rows, localRefusals(t, v6)...)
	})
}

func localRefusals(t testing.TB, v6 bool) []row {
	call := func(name string, at host, l4 transport) row {
		return fromLoopback(name, localCall(at, v6, l4).frame(t))
	}
	large := localCall(loopbackHost, v6, udp(40000, dnsPort))
	large.payload = string(make([]byte, uplinkMTU)) // lo has a larger MTU than all other devices
	largeOut := reached(large, alice, 53)
	largeOut.src, largeOut.ttl = gatewayOf(openNet).ip(v6), 64
	old := localCall(loopbackHost, v6, udp(40000, dnsPort))
	old.ttl = 1
	oldOut := reached(old, alice, 53)
	oldOut.src, oldOut.ttl = gatewayOf(openNet).ip(v6), 1
	frame := localCall(loopbackHost, v6, tcp(40000, webPort, "S")).frame(t)
	first, _, last := inFragments(localCall(loopbackHost, v6, udp(40000, dnsPort)))
	firstOut, lastOut := reached(first, alice, 53), reached(last, alice, 53)
	firstOut.src, firstOut.ttl = gatewayOf(openNet).ip(v6), 64
	lastOut.src, lastOut.ttl = gatewayOf(openNet).ip(v6), 64
	begun := fromLoopback("first fragment", first.frame(t)).delivered(alice, firstOut.frame(t))
	return []row{
		call("port that is not published", loopbackHost, tcp(40000, 8079, "S")).passed(),
		call("of another protocol", loopbackHost, udp(40000, webPort)).passed(),
		call("for the host only, at the uplink's address", uplink, tcp(40000, hereOnlyPort, "S")).passed(),
		call("at another address than the published one", loopbackHost, tcp(40000, oneAddressPort, "S")).passed(),
		call("of an internal network", loopbackHost, tcp(40000, hiddenPort, "S")).dropped("internal"),
		call("RST that opens", loopbackHost, tcp(40000, webPort, "R")).dropped("unknown_flow"),
		call("echo", loopbackHost, echo(v6, false, webPort)).passed(),
		call("a mapped port", uplink, udp(53, 40000)).after(sentBy(t, alice, v6, udp(40000, 53))).passed(),
		fromLoopback("broken", patch(frame, atIP, 0x05)).passed(),
		fromLoopback("ARP", arpRequest(t, mac{}, uplink.ip4, uplink.ip4)).passed(),
		fromLoopback("larger than a veth's MTU", large.frame(t)).delivered(alice, largeOut.frame(t)),
		fromLoopback("TTL 1", old.frame(t)).delivered(alice, oldOut.frame(t)),
		begun,
		fromLoopback("last fragment", last.frame(t)).after(begun).delivered(alice, lastOut.frame(t)),
		fromLoopback("last fragment before its first", last.frame(t)).passed(),
	}
}

// callsOut is a packet of an endpoint to an address of the host.
func callsOut(from host, at netip.Addr, l4 transport) packet {
	p := outgoing(from, at.Is6(), l4)
	p.dst = at
	return p
}

// hairpinRows are packets of endpoints to published ports of their own host.
func hairpinRows(t testing.TB) []row {
	return bothFamilies(func(v6 bool) []row {
		outside, gateway := uplink.ip(v6), gatewayOf(openNet).ip(v6)
		var rows []row
		for _, c := range []struct {
			name  string
			from  host
			at    netip.Addr
			l4    transport
			to    host
			port  uint16
			seen  netip.Addr
			reply string
		}{
			{"same network, TCP", bob, outside, tcp(40000, webPort, "S"), alice, 80, gateway, "SA"},
			{"same network, UDP", bob, outside, udp(40000, dnsPort), alice, 53, gateway, ""},
			{"same network, SCTP", bob, outside, sctp(40000, signalPort), alice, 36, gateway, ""},
			{"same network, at the gateway", bob, gateway, tcp(40000, webPort, "S"), alice, 80, gateway, "SA"},
			{"same network, without ICC", client, outside, tcp(40000, closedPort, "S"), server, 80, gatewayOf(closedNet).ip(v6), "SA"},
			{"itself", alice, outside, tcp(40000, webPort, "S"), alice, 80, gateway, "SA"},
			{"itself, from the same port", alice, outside, tcp(80, webPort, "S"), alice, 80, gateway, "SA"},
			{"at one address", alice, outside, tcp(40000, oneAddressPort, "S"), bob, 443, gateway, "SA"},
			{"another network, TCP", client, outside, tcp(40000, webPort, "S"), alice, 80, client.ip(v6), "SA"},
			{"another network, UDP", plain, outside, udp(40000, dnsPort), alice, 53, plain.ip(v6), ""},
			{"another network, SCTP", client, outside, sctp(40000, signalPort), alice, 36, client.ip(v6), ""},
			{"another network, at its own gateway", client, gatewayOf(closedNet).ip(v6), tcp(40000, webPort, "S"), alice, 80, client.ip(v6), "SA"},
		} {
			asked := callsOut(c.from, c.at, c.l4)
			arrived := reached(asked, c.to, c.port)
			arrived.src = c.seen
			first := fromEndpoint(c.name, c.from, asked.frame(t)).delivered(c.to, arrived.frame(t))
			answer := replying(arrived, c.reply)
			out := repliedOutside(answer, asked)
			out.from, out.to = gatewayMAC, c.from.mac
			rows = append(rows, first,
				fromEndpoint(c.name+", reply", c.to, answer.frame(t)).after(first).delivered(c.from, out.frame(t)))
		}
		call := func(name string, from host, l4 transport) row {
			return fromEndpoint(name, from, callsOut(from, outside, l4).frame(t))
		}
		at := func(from host, dst netip.Addr) row {
			return fromEndpoint("at the broadcast address "+dst.String(), from, callsOut(from, dst, udp(40000, dnsPort)).frame(t))
		}
		old := callsOut(bob, outside, udp(40000, dnsPort))
		old.ttl = 1
		first, _, last := inFragments(callsOut(bob, outside, udp(40000, dnsPort)))
		firstOut, lastOut := reached(first, alice, 53), reached(last, alice, 53)
		firstOut.src, lastOut.src = gateway, gateway
		begun := fromEndpoint("first fragment", bob, first.frame(t)).delivered(alice, firstOut.frame(t))
		fromInside := replying(reached(callsOut(client, outside, tcp(40000, webPort, "S")), alice, 80), "SA")
		fromInside.dst = client.ip(v6)
		return append(rows,
			call("of a source that is not allowed", bob, tcp(40000, restrictedPort, "S")).dropped("source_not_allowed"),
			call("of an internal network", bob, tcp(40000, hiddenPort, "S")).dropped("internal"),
			call("from an internal network", insider, tcp(40000, webPort, "S")).dropped("internal"),
			at(bob, broadcastOf(uplink.ip4)).redirected(nil),
			at(bob, broadcastOf(gateway)).redirected(nil),
			call("RST that opens", bob, tcp(40000, webPort, "R")).dropped("unknown_flow"),
			call("port that is not published", bob, tcp(40000, 8079, "S")).redirected(nil),
			call("for the host only", bob, tcp(40000, hereOnlyPort, "S")).redirected(nil),
			fromEndpoint("TTL 1", bob, old.frame(t)).refused("ttl_exceeded", refusal(t, bob, problemTTL(v6), old).frame(t)),
			fromEndpoint("reply without a request", alice, fromInside.frame(t)).dropped("isolated"),
			call("endpoint deleted", bob, udp(40000, dnsPort)).given(forget(alice.ip(v6)), remember).dropped("unknown_destination"),
			begun,
			fromEndpoint("last fragment", bob, last.frame(t)).after(begun).delivered(alice, lastOut.frame(t)),
			fromEndpoint("last fragment before its first", bob, last.frame(t)).redirected(nil),
		)
	})
}

// collisionRows are clients that a server could not tell apart.
func collisionRows(t testing.TB) []row {
	return bothFamilies(func(v6 bool) []row {
		gateway := gatewayOf(openNet).ip(v6)
		arrive := func(name string, l4 transport) row { return fromUplink(name, incoming(v6, l4).frame(t)) }
		first := arrive("", tcp(40000, webPort, "S"))
		second := incoming(v6, tcp(40000, alsoWebPort, "S"))
		asked := callsOut(bob, uplink.ip(v6), tcp(40000, webPort, "S"))
		hairpin := fromEndpoint("", bob, asked.frame(t))
		local := localCall(loopbackHost, v6, tcp(40000, webPort, "S"))
		localOut := reached(local, alice, 80)
		localOut.src, localOut.ttl = gateway, 64
		again := asked
		again.l4.dport = alsoWebPort
		againOut := reached(again, alice, 80)
		againOut.src = gateway
		open, shut := listening(v6, 40000)
		return []row{
			arrive("two ports of one server", second.l4).after(first).deliveredAs(alice, onAnotherPort(t, reached(second, alice, 80))),
			fromEndpoint("two ports of one server, from its network", bob, again.frame(t)).after(hairpin).
				deliveredAs(alice, onAnotherPort(t, againOut)),
			fromLoopback("an endpoint and the host", local.frame(t)).after(hairpin).deliveredAs(alice, onAnotherPort(t, localOut)),
			arrive("another client", second.l4).after(hairpin).delivered(alice, reached(second, alice, 80).frame(t)),
			fromEndpoint("client whose port the host has open at another address", bob, again.frame(t)).given(open, shut).
				delivered(alice, againOut.frame(t)),
		}
	})
}

func publicationRows(t testing.TB) []row {
	return slices.Concat(publishRows(t), collisionRows(t))
}
