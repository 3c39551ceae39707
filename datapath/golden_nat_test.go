package datapath

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
)

// outgoing is a packet of an endpoint to the outside.
func outgoing(from host, v6 bool, l4 transport) packet {
	return packet{from: from.mac, to: gatewayMAC, src: from.ip(v6), dst: website.ip(v6), l4: l4, payload: "hello"}
}

// masqueraded is the packet as it leaves the host.
func masqueraded(p packet) packet {
	p.src, p.ttl = uplink.ip(p.dst.Is6()), 63
	return p
}

// incoming is a packet from the outside to the host. translated is that packet
// as the endpoint receives it.
func incoming(v6 bool, l4 transport) packet {
	return packet{from: routerMAC, to: uplinkMAC, src: website.ip(v6), dst: uplink.ip(v6), l4: l4, payload: "hello"}
}

func translated(p packet, to host) packet {
	p.from, p.to, p.dst, p.ttl = gatewayMAC, to.mac, to.ip(p.dst.Is6()), 63
	return p
}

// identifierAt is the offset of the source port in a frame, or of the
// identifier of an echo.
func identifierAt(p packet) int {
	at := atL4
	if p.dst.Is6() {
		at = atL4v6
		if p.fragment.is() {
			at += 8
		}
	}
	if p.l4.body != "" {
		at += 4
	}
	return at
}

// onAnotherPort is p with the source port, or identifier, that the program
// chose. It must differ from that of p, but have the same class and parity (RFC
// 4787 REQ-3 a and REQ-4).
func onAnotherPort(t testing.TB, p packet) func([]byte) []byte {
	return func(got []byte) []byte {
		const firstUserPort = 1024
		at := identifierAt(p)
		own, chosen := binary.BigEndian.Uint16(p.frame(t)[at:]), binary.BigEndian.Uint16(got[at:])
		if chosen == own || chosen == 0 || (chosen < firstUserPort) != (own < firstUserPort) || chosen%2 != own%2 {
			t.Errorf("port %d instead of %d, want another port of the same class and parity", chosen, own)
		}
		return withIdentifier(p, chosen).frame(t)
	}
}

// withIdentifier is p with another source port or echo identifier.
func withIdentifier(p packet, id uint16) packet {
	if p.l4.body != "" {
		p.l4.body = string(binary.BigEndian.AppendUint16(nil, id)) + p.l4.body[2:]
	} else {
		p.l4.sport = id
	}
	return p
}

// masqueradeTransports are the transports that are masqueraded.
func masqueradeTransports(v6 bool) map[string]transport {
	return map[string]transport{
		"TCP": tcp(40000, 80, "S"), "TCP from an odd port": tcp(40001, 80, "S"), "UDP": udp(40000, 53),
		"UDP from port 53": udp(53, 53), "UDP from port 54": udp(54, 53),
		"echo": echo(v6, false, 40000), "SCTP": sctp(40000, 36), "SCTP from an odd port": sctp(40001, 36),
	}
}

func masqueradeRows(t testing.TB) []row {
	return bothFamilies(func(v6 bool) []row {
		var rows []row
		leave := func(name string, from host, p packet) row { return fromEndpoint(name, from, p.frame(t)) }
		for name, l4 := range masqueradeTransports(v6) {
			a, b, p := outgoing(alice, v6, l4), outgoing(bob, v6, l4), outgoing(plain, v6, l4)
			kept := p
			kept.ttl = 63
			first := leave(name, alice, a).redirected(masqueraded(a).frame(t))
			again := leave(name+", next packet", alice, a).after(first).redirected(masqueraded(a).frame(t))
			rows = append(rows, first, again,
				leave(name+" of another endpoint from the same port", bob, b).after(first).redirectedAs(onAnotherPort(t, masqueraded(b))),
				leave(name+", not masqueraded", plain, p).redirected(kept.frame(t)))
		}
		options := outgoing(alice, v6, udp(40000, 53))
		options.options = []byte{1, 4, 0, 0, 0, 0} // IPv6: PadN
		if !v6 {
			options.options = []byte{0x94, 4, 0, 0} // router alert: RFC 2113
		}
		super := leave("superframe", alice, outgoing(alice, v6, tcp(40000, 80, "A"))).
			redirected(masqueraded(outgoing(alice, v6, tcp(40000, 80, "A"))).frame(t))
		super.skb = skbContext{segments: 3, size: 2}
		refused := func(name string, l4 transport, reason string) row {
			return leave(name, alice, outgoing(alice, v6, l4)).dropped(reason)
		}
		query := leave("", alice, outgoing(alice, v6, udp(40000, 53)))
		answered := fromUplink("", incoming(v6, udp(53, 40000)).frame(t))
		rows = append(rows,
			refused("a protocol without ports", transport{protocol: protocolESP, body: "01234567"}, "untranslatable"),
			refused("query other than echo", infoRequest(v6), "untranslatable"),
			refused("echo reply", echo(v6, true, 7), "unknown_flow"),
			refused("TCP SYN+ACK", tcp(40000, 80, "SA"), "unknown_flow"),
			refused("TCP RST", tcp(40000, 80, "R"), "unknown_flow"),
			leave("TCP ACK", alice, outgoing(alice, v6, tcp(40000, 80, "A"))).redirected(masqueraded(outgoing(alice, v6, tcp(40000, 80, "A"))).frame(t)),
			leave("TCP RST in a flow", alice, outgoing(alice, v6, tcp(40000, 80, "R"))).after(leave("", alice, outgoing(alice, v6, tcp(40000, 80, "S")))).
				redirected(masqueraded(outgoing(alice, v6, tcp(40000, 80, "R"))).frame(t)),
			leave("options", alice, options).redirected(masqueraded(options).frame(t)),
			super,
			hostHasPort(t, v6),
			hostListens(t, v6),
			leave("published TCP port", alice, outgoing(alice, v6, tcp(webPort, 80, "S"))).
				redirectedAs(onAnotherPort(t, masqueraded(outgoing(alice, v6, tcp(webPort, 80, "S"))))),
			leave("published port, of another protocol", alice, outgoing(alice, v6, udp(webPort, 80))).
				redirected(masqueraded(outgoing(alice, v6, udp(webPort, 80))).frame(t)),
			leave("published SCTP port", alice, outgoing(alice, v6, sctp(signalPort, 80))).
				redirectedAs(onAnotherPort(t, masqueraded(outgoing(alice, v6, sctp(signalPort, 80))))),
		)
		rows = append(rows, changedRows(t, v6, query, answered)...)
		if !v6 {
			bare := outgoing(alice, v6, udp(40000, 53))
			bare.l4.noChecksum = true
			rows = append(rows, leave("UDP without a checksum", alice, bare).redirected(masqueraded(bare).frame(t)))
		}
		return rows
	})
}

// infoRequest is an ICMP query without ports: a timestamp request (RFC 792), or
// a node information query (RFC 4620).
func infoRequest(v6 bool) transport {
	if v6 {
		return icmp6(139, "\x00\x07\x00\x01")
	}
	return icmp4(13, "\x00\x07\x00\x01")
}

// changedRows are flows during which the host's addresses or policy change.
func changedRows(t testing.TB, v6 bool, query, answered row) []row {
	moving, plainOut := outgoing(alice, v6, udp(40000, 53)), outgoing(plain, v6, udp(40000, 53))
	renumberedOut, bareOut := masqueraded(moving), masqueraded(moving)
	renumberedOut.src, bareOut.src = newUplink.ip(v6), alice.ip(v6)
	fresh, freshOut := moving, renumberedOut
	fresh.l4.sport, freshOut.l4.sport = 40001, 40001
	leave := func(name string, from host, p packet) row { return fromEndpoint(name, from, p.frame(t)) }
	plainQuery := leave("", plain, plainOut)
	masqueradeOn := changeNetwork(plainNet, func(n *Network) { n.Masquerade = true })
	masqueradeOff := changeNetwork(openNet, func(n *Network) { n.Masquerade = false })
	// once returns a setup that makes a change and sends the first packet after
	// it.
	once := func(change func(testing.TB, *world), r row) func(testing.TB, *world) {
		return func(t testing.TB, w *world) {
			change(t, w)
			w.clearRouteCache(t)
			w.send(t, r)
		}
	}
	return []row{
		leave("flow from before the address changed", alice, moving).after(query).
			given(renumbered, numbered).redirected(masqueraded(moving).frame(t)),
		leave("new flow after the address changed", alice, fresh).after(query).
			given(renumbered, numbered).redirected(freshOut.frame(t)),
		fromUplink("reply to another address than the preferred one", incoming(v6, udp(53, 40000)).frame(t)).after(query).
			given(renumbered, numbered).delivered(alice, translated(incoming(v6, udp(53, 40000)), alice).frame(t)),
		leave("flow of a lost address", alice, moving).after(query, answered).
			given(moved, movedBack).dropped("address_lost"),
		leave("flow of a lost address, next packet", alice, moving).after(query, answered).
			given(once(moved, query), movedBack).redirected(renumberedOut.frame(t)),
		leave("flow from before masquerade was off", alice, moving).after(query).
			given(masqueradeOff, remember).redirected(masqueraded(moving).frame(t)),
		leave("new flow after masquerade was off", alice, moving).
			given(masqueradeOff, remember).redirected(bareOut.frame(t)),
		leave("flow from before masquerade was on", plain, plainOut).after(plainQuery).
			given(masqueradeOn, remember).dropped("address_lost"),
		leave("flow from before masquerade was on, next packet", plain, plainOut).after(plainQuery).
			given(once(masqueradeOn, plainQuery), remember).redirected(masqueraded(plainOut).frame(t)),
	}
}

// newUplink is the uplink with the addresses that renumbered and moved set.
var newUplink = host{mac: uplinkMAC, ip4: netip.MustParseAddr("192.0.2.7"), ip6: netip.MustParseAddr("2001:db8:1::7")}

// renumbered adds newUplink's addresses and makes them the preferred ones.
// numbered undoes it.
func renumbered(t testing.TB, w *world) {
	w.ip(t, w.ns, "addr add 192.0.2.7/24 dev up0\naddr add 2001:db8:1::7/64 dev up0 nodad\n"+
		"route replace default via 192.0.2.254 src 192.0.2.7\nroute replace default via 2001:db8:1::fe src 2001:db8:1::7\n")
}

func numbered(t testing.TB, w *world) {
	w.ip(t, w.ns, "route replace default via 192.0.2.254\nroute replace default via 2001:db8:1::fe\n"+
		"addr del 192.0.2.7/24 dev up0\naddr del 2001:db8:1::7/64 dev up0\n")
}

// moved replaces the uplink's addresses by newUplink's. movedBack undoes it.
func moved(t testing.TB, w *world) { w.move(t, uplink, newUplink) }

func movedBack(t testing.TB, w *world) { w.move(t, newUplink, uplink) }

func (w *world) move(t testing.TB, from, to host) {
	w.ip(t, w.ns, "addr del "+from.ip4.String()+"/24 dev up0\naddr del "+from.ip6.String()+"/64 dev up0\n"+
		"addr add "+to.ip4.String()+"/24 dev up0\naddr add "+to.ip6.String()+"/64 dev up0 nodad\n"+
		"route replace default via 192.0.2.254\nroute replace default via 2001:db8:1::fe\n")
}

// hostHasPort is a row in which a socket of the host already uses the port.
func hostHasPort(t testing.TB, v6 bool) row {
	open, shut := speaking(v6, 40000, netip.AddrPortFrom(website.ip(v6), 53))
	p := outgoing(alice, v6, udp(40000, 53))
	return fromEndpoint("port in use by the host", alice, p.frame(t)).given(open, shut).redirectedAs(onAnotherPort(t, masqueraded(p)))
}

// speaking opens a UDP socket of the host at a port of its uplink's address.
func speaking(v6 bool, port uint16, to netip.AddrPort) (open, shut func(testing.TB, *world)) {
	var socket net.Conn
	open = func(t testing.TB, w *world) {
		var err error
		w.ns.Do(func() {
			d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(uplink.ip(v6), port))}
			socket, err = d.Dial("udp", to.String())
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	shut = func(t testing.TB, _ *world) {
		if err := socket.Close(); err != nil {
			t.Error(err)
		}
	}
	return open, shut
}

// hostListens is a row in which the host listens on the port and would get the
// replies itself.
func hostListens(t testing.TB, v6 bool) row {
	p := outgoing(alice, v6, tcp(40000, 80, "S"))
	open, shut := listening(v6, 40000)
	return fromEndpoint("port on which the host listens", alice, p.frame(t)).given(open, shut).redirectedAs(onAnotherPort(t, masqueraded(p)))
}

// listening opens a TCP listener of the host at its uplink's address.
func listening(v6 bool, port uint16) (open, shut func(testing.TB, *world)) {
	var listener net.Listener
	open = func(t testing.TB, w *world) {
		var err error
		w.ns.Do(func() { listener, err = net.Listen("tcp", netip.AddrPortFrom(uplink.ip(v6), port).String()) })
		if err != nil {
			t.Fatal(err)
		}
	}
	shut = func(t testing.TB, _ *world) {
		if err := listener.Close(); err != nil {
			t.Error(err)
		}
	}
	return open, shut
}

// changeNetwork changes a network's policy.
func changeNetwork(network uint32, change func(*Network)) func(testing.TB, *world) {
	return func(t testing.TB, w *world) {
		n := w.wanted.Networks[network-1]
		change(&n)
		if err := w.PutNetwork(n); err != nil {
			t.Fatal(err)
		}
	}
}

// opened lets everybody send to the mapped ports of a network.
func opened(network uint32) func(testing.TB, *world) {
	return changeNetwork(network, func(n *Network) { n.Open = true })
}

// forget removes an address from the tables. remember restores all tables.
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
