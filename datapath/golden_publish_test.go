package datapath

import (
	"net/netip"
	"testing"
)

// Published ports of the world: see publishedPorts.
const (
	webPort        = 8080 // TCP, to alice's 80
	alsoWebPort    = 8082 // TCP, to alice's 80
	hereOnlyPort   = 8081 // TCP, to alice's 80, at the loopback addresses
	dnsPort        = 8053 // UDP, to alice's 53
	signalPort     = 8036 // SCTP, to alice's 36
	sameSignalPort = 36   // SCTP, to alice's 36
	oneAddressPort = 8443 // TCP, at the uplink's address, to bob's 443
	restrictedPort = 8083 // TCP, only for website, to alice's 81
	hiddenPort     = 8084 // TCP, to insider's 80
	plainPort      = 8085 // TCP, to plain's 80
	closedPort     = 8086 // TCP, to server's 80
	routedPort     = 8087 // TCP, routed to plain at its own address
)

// publishedPorts returns the ports for both families.
func publishedPorts() []Port {
	any4, any6 := netip.IPv4Unspecified(), netip.IPv6Unspecified()
	anywhere, here := host{ip4: any4, ip6: any6}, host{ip4: netip.MustParseAddr("127.0.0.1"), ip6: netip.IPv6Loopback()}
	var ports []Port
	publish := func(at host, protocol uint8, port uint16, to host, target uint16, allow ...host) {
		for _, v6 := range []bool{false, true} {
			p := Port{
				ID: uint32(port), Address: at.ip(v6), Protocol: protocol, First: port, Last: port,
				Target: to.ip(v6), TargetFirst: target, Network: to.network, Endpoint: to.id,
			}
			for _, a := range allow {
				p.AllowFrom = append(p.AllowFrom, netip.PrefixFrom(a.ip4, 24).Masked(), netip.PrefixFrom(a.ip6, 48).Masked())
			}
			ports = append(ports, p)
		}
	}
	publish(anywhere, protocolTCP, webPort, alice, 80)
	publish(anywhere, protocolTCP, alsoWebPort, alice, 80)
	publish(here, protocolTCP, hereOnlyPort, alice, 80)
	publish(anywhere, protocolUDP, dnsPort, alice, 53)
	publish(anywhere, protocolSCTP, signalPort, alice, 36)
	publish(anywhere, protocolSCTP, sameSignalPort, alice, 36)
	publish(uplink, protocolTCP, oneAddressPort, bob, 443)
	publish(anywhere, protocolTCP, restrictedPort, alice, 81, website)
	publish(anywhere, protocolTCP, hiddenPort, insider, 80)
	publish(anywhere, protocolTCP, plainPort, plain, 80)
	publish(anywhere, protocolTCP, closedPort, server, 80)
	publish(plain, protocolTCP, routedPort, plain, routedPort)
	return ports
}

// reached is a packet to a published port as it arrives at the endpoint.
func reached(p packet, to host, port uint16) packet {
	p = translated(p, to)
	p.l4.dport = port
	return p
}

// replying is the endpoint's reply to a packet.
func replying(p packet, flags string) packet {
	p.from, p.to, p.src, p.dst, p.ttl = p.to, p.from, p.dst, p.src, 64
	p.l4.sport, p.l4.dport, p.l4.flags = p.l4.dport, p.l4.sport, flags
	return p
}

// repliedOutside is that reply as it leaves the host, for the request `asked`.
// The kernel sets its Ethernet header.
func repliedOutside(p, asked packet) packet {
	p.src, p.l4.sport, p.dst, p.l4.dport, p.ttl = asked.dst, asked.l4.dport, asked.src, asked.l4.sport, 63
	return p
}

// publishRows are packets from outside to published ports.
func publishRows(t testing.TB) []row {
	return bothFamilies(func(v6 bool) []row {
		call := func(name string, l4 transport) row { return fromUplink(name, incoming(v6, l4).frame(t)) }
		var rows []row
		for _, c := range []struct {
			name  string
			l4    transport
			to    host
			port  uint16
			reply string
		}{
			{"TCP", tcp(40000, webPort, "S"), alice, 80, "SA"},
			{"UDP", udp(40000, dnsPort), alice, 53, ""},
			{"SCTP", sctp(40000, signalPort), alice, 36, ""},
			{"SCTP, the same port", sctp(40000, sameSignalPort), alice, 36, ""},
			{"TCP at one address", tcp(40000, oneAddressPort, "S"), bob, 443, "SA"},
			{"TCP for some", tcp(40000, restrictedPort, "S"), alice, 81, "SA"},
			{"TCP, not masqueraded", tcp(40000, plainPort, "S"), plain, 80, "SA"},
			{"TCP to a network without ICC", tcp(40000, closedPort, "S"), server, 80, "SA"},
			{"TCP from a low port", tcp(1, webPort, "S"), alice, 80, "SA"},
		} {
			asked := incoming(v6, c.l4)
			arrived := reached(asked, c.to, c.port)
			first := call(c.name, c.l4).delivered(c.to, arrived.frame(t))
			answer := replying(arrived, c.reply)
			back := fromEndpoint(c.name+", reply", c.to, answer.frame(t)).after(first).redirected(repliedOutside(answer, asked).frame(t))
			next := first.after(first, back)
			next.name += ", next packet"
			rows = append(rows, first, back, next)
		}
		return append(rows, publishRefusals(t, v6)...)
	})
}

// publishRefusals are packets that published ports refuse, and similar packets
// that they accept.
func publishRefusals(t testing.TB, v6 bool) []row {
	at := func(dst netip.Addr, l4 transport) packet { p := incoming(v6, l4); p.dst = dst; return p }
	from := func(src netip.Addr, l4 transport) packet { p := incoming(v6, l4); p.src = src; return p }
	call := func(name string, p packet) row { return fromUplink(name, p.frame(t)) }
	loopback, group, elsewhere := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("224.0.0.5"), sideways.ip4
	if v6 {
		loopback, group, elsewhere = netip.IPv6Loopback(), netip.MustParseAddr("ff0e::5"), sideways.ip6
	}
	web := incoming(v6, tcp(40000, webPort, "S"))
	first := call("", web)
	gatewayed := at(gatewayOf(openNet).ip(v6), tcp(40000, webPort, "S"))
	stale := web
	stale.ttl = 1
	reset := incoming(v6, tcp(40000, webPort, "R"))
	answer := replying(reached(web, alice, 80), "SA")
	replaced := func(change func(*Port)) func(testing.TB, *world) {
		return func(t testing.TB, w *world) {
			wanted := w.wanted
			wanted.Ports = publishedPorts()
			for i := range wanted.Ports {
				change(&wanted.Ports[i])
			}
			if err := w.Replace(wanted); err != nil {
				t.Fatal(err)
			}
		}
	}
	removed := func(t testing.TB, w *world) {
		if err := w.DeletePorts(publishedPorts()); err != nil {
			t.Fatal(err)
		}
	}
	toBob := replaced(func(p *Port) { p.Target, p.Network = bob.ip(p.Target.Is6()), bob.network })
	toPeer := replaced(func(p *Port) {
		p.AllowFrom = []netip.Prefix{netip.PrefixFrom(peer.ip(v6), peer.ip(v6).BitLen())}
	})
	super := call("superframe", web).delivered(alice, reached(web, alice, 80).frame(t))
	super.skb = skbContext{segments: 2, size: 3}
	askedThere := at(plain.ip(v6), tcp(40000, routedPort, "S"))
	routed := call("at the endpoint's own address", askedThere).delivered(plain, reached(askedThere, plain, routedPort).frame(t))
	routedAnswer := replying(reached(askedThere, plain, routedPort), "SA")
	// A device fills in the checksum later.
	unsummed := incoming(v6, sctp(40000, signalPort))
	unsummedIn, unsummedOut := withoutCRC(unsummed.frame(t)), withoutCRC(reached(unsummed, alice, 36).frame(t))
	return []row{
		super,
		fromUplink("SCTP without its checksum", unsummedIn).delivered(alice, unsummedOut),
		call("of another protocol", incoming(v6, udp(40000, webPort))).passed(),
		call("at another address than the published one", at(gatewayOf(openNet).ip(v6), tcp(40000, oneAddressPort, "S"))).passed(),
		call("at a gateway's address", gatewayed).passed(),
		routed,
		fromEndpoint("at the endpoint's own address, reply", plain, routedAnswer.frame(t)).after(routed).
			redirected(repliedOutside(routedAnswer, askedThere).frame(t)),
		call("for all, at the endpoint's own address", at(plain.ip(v6), tcp(40000, plainPort, "S"))).passed(),
		call("at the endpoint's own address, at the host's", incoming(v6, tcp(40000, routedPort, "S"))).passed(),
		call("at the broadcast address", at(broadcastOf(uplink.ip(v6)), tcp(40000, webPort, "S"))).passed(),
		call("at the broadcast address, UDP", at(broadcastOf(uplink.ip(v6)), udp(40000, dnsPort))).passed(),
		call("at an address that is not the host's", at(elsewhere, tcp(40000, webPort, "S"))).passed(),
		call("for the host only, at the uplink's address", incoming(v6, tcp(40000, hereOnlyPort, "S"))).passed(),
		call("for the host only, at the loopback address", at(loopback, tcp(40000, hereOnlyPort, "S"))).dropped("loopback_only"),
		call("for all, at the loopback address", at(loopback, tcp(40000, webPort, "S"))).dropped("loopback_only").path("drop-loopback-only"),
		call("for none, at the loopback address", at(loopback, tcp(40000, 8079, "S"))).passed(),
		call("from a loopback address", from(loopback, tcp(40000, webPort, "S"))).dropped("spoofed_address"),
		call("from the host's own address", from(uplink.ip(v6), tcp(40000, webPort, "S"))).dropped("spoofed_address"),
		call("from a container's address", from(client.ip(v6), tcp(40000, webPort, "S"))).dropped("spoofed_address").path("drop-spoofed-outside"),
		call("from an address in a network's subnet", from(nobody.ip(v6), tcp(40000, webPort, "S"))).dropped("spoofed_address"),
		call("from an address to which the host has no route", from(refused.ip(v6), tcp(40000, webPort, "S"))).
			delivered(alice, reached(from(refused.ip(v6), tcp(40000, webPort, "S")), alice, 80).frame(t)),
		hostSpeaksByPort(t, v6),
		call("from a group's address", from(group, tcp(40000, webPort, "S"))).dropped("spoofed_address"),
		call("from a source that is not allowed", from(peer.ip(v6), tcp(40000, restrictedPort, "S"))).dropped("source_not_allowed").path("drop-source-not-allowed"),
		call("from the address before the allowed ones", from(neighborOf(website.ip(v6)), tcp(40000, restrictedPort, "S"))).dropped("source_not_allowed"),
		call("of an internal network", incoming(v6, tcp(40000, hiddenPort, "S"))).dropped("internal"),
		call("RST that opens", reset).dropped("unknown_flow"),
		call("SYN+ACK that opens", incoming(v6, tcp(40000, webPort, "SA"))).dropped("unknown_flow").path("drop-unknown-flow"),
		call("ACK that opens", incoming(v6, tcp(40000, webPort, "A"))).
			delivered(alice, reached(incoming(v6, tcp(40000, webPort, "A")), alice, 80).frame(t)),
		call("RST in a flow", reset).after(first).delivered(alice, reached(reset, alice, 80).frame(t)),
		call("TTL 1", stale).dropped("ttl_exceeded"),
		call("endpoint deleted", web).given(forget(alice.ip(v6)), remember).dropped("unknown_destination"),
		call("port deleted", web).after(first).given(removed, remember).passed(),
		fromEndpoint("reply of a deleted port", alice, answer.frame(t)).after(first).given(removed, remember).dropped("unknown_flow"),
		fromEndpoint("packet after the reply of a deleted port", alice, replying(reached(web, alice, 80), "A").frame(t)).after(first).
			given(removed, remember).dropped("unknown_flow"),
		// The old connection must not continue, so the client gets another
		// port.
		call("port deleted and published again", web).after(first).given(both(removed, remember), nothing).deliveredAs(alice, onAnotherPort(t, reached(web, alice, 80))),
		call("another endpoint behind the port", web).after(first).given(toBob, remember).delivered(bob, reached(web, bob, 80).frame(t)),
		call("source forbidden later", web).after(first).given(toPeer, remember).dropped("source_not_allowed"),
		call("another source forbidden later", from(peer.ip(v6), web.l4)).after(call("", from(peer.ip(v6), web.l4))).given(toPeer, remember).
			delivered(alice, reached(from(peer.ip(v6), web.l4), alice, 80).frame(t)),
		call("network made internal", web).after(first).
			given(changeNetwork(openNet, func(n *Network) { n.Internal = true }), remember).dropped("internal"),
		fromEndpoint("reply from a lost address", alice, answer.frame(t)).after(first).given(moved, movedBack).dropped("address_lost"),
		fromEndpoint("reply from an address that is not preferred any more", alice, answer.frame(t)).after(first).
			given(renumbered, numbered).redirected(repliedOutside(answer, web).frame(t)),
	}
}

// withoutCRC is an SCTP frame whose checksum is zero.
func withoutCRC(frame []byte) []byte {
	at := atL4 + 8
	if frame[atEthertype] == 0x86 {
		at = atL4v6 + 8
	}
	return patch(frame, at, 0, 0, 0, 0)
}

// hostSpeaksByPort is a row in which the host has a connection that uses a
// published port. The host's connection wins.
func hostSpeaksByPort(t testing.TB, v6 bool) row {
	open, shut := speaking(v6, dnsPort, netip.AddrPortFrom(website.ip(v6), 40000))
	return fromUplink("of the host's own connection", incoming(v6, udp(40000, dnsPort)).frame(t)).given(open, shut).passed()
}

// neighborOf is the last address before the prefix that publishedPorts allows
// for the family.
func neighborOf(a netip.Addr) netip.Addr {
	bits := 24
	if a.Is6() {
		bits = 48
	}
	return netip.PrefixFrom(a, bits).Masked().Addr().Prev()
}
