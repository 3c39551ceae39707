package datapath

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"

	"github.com/ebpnet/ebpnet/bpf"
)

// trunkRows are packets of trunks and of stations behind them.
func trunkRows(t testing.TB) []row {
	return bothFamilies(func(v6 bool) []row {
		rows := slices.Concat(trunkGuardRows(t, v6), trunkOutwardRows(t, v6), trunkOutsideRows(t, v6),
			trunkShareRows(t, v6), trunkSizeRows(t, v6), trunkErrorRows(t, v6))
		if v6 {
			return append(rows, trunkNDRows(t)...)
		}
		return append(rows, trunkARPRows(t)...)
	})
}

// trunkGuardRows are packets from behind a trunk, allowed and refused.
func trunkGuardRows(t testing.TB, v6 bool) []row {
	behind := stranger(trunk, 80)
	from := func(by mac, a netip.Addr) []byte {
		p := between(behind, alice, v6, udp(1, 2))
		p.from, p.src = by, a
		return p.frame(t)
	}
	says := func(name string, frame []byte) row { return fromEndpoint(name, trunk, frame) }
	let := func(name string, frame []byte) row { return says(name, frame).delivered(alice, nil) }
	unspecified := map[bool]netip.Addr{false: netip.IPv4Unspecified(), true: netip.IPv6Unspecified()}[v6]
	good := from(behind.mac, behind.ip(v6))
	vlan := slices.Concat(good[:atEthertype], []byte{0x81, 0, 0, 5}, good[atEthertype:])
	closed := changeNetwork(openNet, func(n *Network) { n.ICC = false })
	old := outgoing(behind, v6, udp(40000, 53))
	old.ttl = 1
	var rows []row
	for _, a := range invalidSources(v6) {
		rows = append(rows,
			says("from "+a.String(), from(behind.mac, a)).dropped("spoofed_address"),
			says("by the trunk's own MAC from "+a.String(), from(trunk.mac, a)).dropped("spoofed_address"))
	}
	return append(rows,
		let("own MAC and address", from(trunk.mac, trunk.ip(v6))),
		let("another MAC and address", good),
		let("another MAC and the own address", from(behind.mac, trunk.ip(v6))),
		let("own MAC and another address", from(trunk.mac, behind.ip(v6))),
		let("address outside", from(behind.mac, website.ip(v6))),
		let("no address", from(behind.mac, unspecified)),
		let("an unused address of another network", from(behind.mac, address(closedNet, 77, v6))),
		says("neighbor's MAC", from(bob.mac, behind.ip(v6))).dropped("spoofed_mac"),
		says("MAC of a station behind a tunnel", from(remote.mac, behind.ip(v6))).dropped("spoofed_mac"),
		says("another trunk's MAC", from(otherTrunk.mac, behind.ip(v6))).dropped("spoofed_mac"),
		says("gateway's MAC", from(gatewayMAC, behind.ip(v6))).dropped("spoofed_mac"),
		says("neighbor's address", from(behind.mac, bob.ip(v6))).dropped("spoofed_address"),
		says("another trunk's address", from(behind.mac, otherTrunk.ip(v6))).dropped("spoofed_address"),
		says("address of a station behind a tunnel", from(behind.mac, remote.ip(v6))).dropped("spoofed_address"),
		says("gateway's address", from(behind.mac, gatewayOf(openNet).ip(v6))).dropped("spoofed_address"),
		says("address of another network's endpoint", from(behind.mac, client.ip(v6))).dropped("spoofed_address"),
		says("VLAN", vlan).dropped("unknown_protocol"),
		says("LLDP", patch(good, atEthertype, 0x88, 0xcc)).dropped("unknown_protocol"),
		says("without ICC", good).given(closed, remember).dropped("policy"),
		fromEndpoint("another MAC, not from behind a trunk", alice, from(behind.mac, behind.ip(v6))).dropped("spoofed_mac"),
		reaches(t, "to a trunk", trunk, v6).delivered(trunk, nil),
		fromEndpoint("TTL 1", trunk, old.frame(t)).refused("ttl_exceeded", refusal(t, behind, problemTTL(v6), old).frame(t)),
	)
}

// trunkSizeRows are packets from behind a trunk that are too big for a tunnel.
// Only a sender with an address gets an error.
func trunkSizeRows(t testing.TB, v6 bool) []row {
	behind := stranger(trunk, 80)
	most := uplinkMTU - overhead(leaving(false, key(openKey)))
	from := func(a netip.Addr) packet {
		p := between(behind, remote, v6, udp(1, 2))
		p.src, p.whole = a, true
		return ofLength(t, p, most+1)
	}
	told := func(name string, p packet) row {
		return fromEndpoint(name, trunk, p.frame(t)).refused("too_big", refusal(t, behind, problemSize(v6, uint32(most)), p).frame(t))
	}
	rows := []row{told("too big for a tunnel", from(behind.ip(v6)))}
	if v6 {
		return append(rows,
			told("too big for a tunnel, from a link-local address", from(linkLocal(behind.mac))),
			fromEndpoint("too big for a tunnel, from no address", trunk, from(netip.IPv6Unspecified()).frame(t)).dropped("too_big"))
	}
	return append(rows,
		fromEndpoint("too big for a tunnel, from no address", trunk, from(netip.IPv4Unspecified()).frame(t)).dropped("too_big"))
}

// address is the address with number n of a network.
func address(network, n uint32, v6 bool) netip.Addr {
	if v6 {
		return address6(network, n)
	}
	return address4(network, n)
}

// trunkOutwardRows are source addresses of packets from behind a trunk to the
// gateway and to the outside. Only addresses of the network are allowed.
func trunkOutwardRows(t testing.TB, v6 bool) []row {
	behind := stranger(trunk, 80)
	away := func(to, from netip.Addr) packet {
		p := outgoing(behind, v6, udp(40000, 53))
		p.src, p.dst = from, to
		return p
	}
	let := func(what string, from netip.Addr) []row {
		out := away(website.ip(v6), from)
		return []row{
			fromEndpoint("to the gateway from "+what, trunk, away(gatewayOf(openNet).ip(v6), from).frame(t)).redirected(nil),
			fromEndpoint("outside from "+what, trunk, out.frame(t)).redirected(masqueraded(out).frame(t)),
		}
	}
	spoofed := func(what string, from netip.Addr) []row {
		return []row{
			fromEndpoint("to the gateway from "+what, trunk, away(gatewayOf(openNet).ip(v6), from).frame(t)).dropped("spoofed_address"),
			fromEndpoint("outside from "+what, trunk, away(website.ip(v6), from).frame(t)).dropped("spoofed_address"),
			fromEndpoint("to a neighbor by the gateway from "+what, trunk, away(bob.ip(v6), from).frame(t)).dropped("spoofed_address"),
		}
	}
	resolver, none := netip.MustParseAddr("8.8.8.8"), netip.IPv4Unspecified()
	if v6 {
		resolver, none = netip.MustParseAddr("2001:4860:4860::8888"), netip.IPv6Unspecified()
	}
	rows := slices.Concat(
		let("an address of the network", behind.ip(v6)),
		let("the trunk's own address", trunk.ip(v6)),
		spoofed("an address outside", resolver),
		spoofed("the peer's address", peer.ip(v6)),
		spoofed("the host's own address", uplink.ip(v6)),
		spoofed("an unused address of another network", address(closedNet, 77, v6)),
		spoofed("another network's endpoint", client.ip(v6)),
		spoofed("a neighbor's address", bob.ip(v6)),
		spoofed("no address", none),
	)
	for _, a := range invalidSources(v6) {
		rows = append(rows, spoofed(a.String(), a)...)
	}
	if !v6 {
		return rows
	}
	own := linkLocal(behind.mac)
	return append(rows,
		fromEndpoint("to the gateway from the link-local address", trunk, away(gatewayOf(openNet).ip6, own).frame(t)).redirected(nil),
		fromEndpoint("outside from the link-local address", trunk, away(website.ip6, own).frame(t)).dropped("no_route"),
		fromHost("from the host to a link-local address that has spoken to the gateway",
			packet{from: gatewayMAC, to: behind.mac, src: linkLocal(gatewayMAC), dst: own, l4: udp(53, 40000)}.frame(t)).
			after(fromEndpoint("", trunk, away(gatewayOf(openNet).ip6, own).frame(t))).dropped("unknown_destination"),
	)
}

// trunkOutsideRows are stations behind a trunk, the host, and the outside.
func trunkOutsideRows(t testing.TB, v6 bool) []row {
	behind, later := stranger(trunk, 80), stranger(trunk, 81)
	moved := stranger(otherTrunk, 82)
	moved.ip4, moved.ip6 = behind.ip4, behind.ip6
	gateway := gatewayOf(openNet)
	out := outgoing(behind, v6, udp(40000, 53))
	spoke := fromEndpoint("sent to the outside", behind, out.frame(t)).redirected(masqueraded(out).frame(t))
	hello := func(from host) row {
		p := outgoing(from, v6, udp(40001, 7))
		p.dst = gateway.ip(v6)
		return fromEndpoint("sent to the gateway", from, p.frame(t)).redirected(nil)
	}
	bridged := fromEndpoint("", behind, between(behind, alice, v6, udp(1, 2)).frame(t))
	answer := incoming(v6, udp(53, 40000))
	fromGateway := func(to host) packet {
		return packet{from: gatewayMAC, to: to.mac, src: gateway.ip(v6), dst: to.ip(v6), l4: udp(7, 40001), payload: "hello"}
	}
	calls := func(name string, to host) row { return fromHost(name, fromGateway(to).frame(t)) }
	stale := fromGateway(behind)
	stale.to = bob.mac
	asks := func(name string) row { return fromHost(name, question(t, gateway, behind.ip(v6))) }
	told := arp(t, behind.mac, gatewayMAC, layers.ARPReply, behind.mac, behind.ip4, gatewayMAC, gateway.ip4)
	if v6 {
		told = tell(behind.mac, gatewayMAC, behind.ip6, gateway.ip6, ndSolicited|ndOverride).frame(t)
	}
	abroad := behind
	abroad.ip4, abroad.ip6 = netip.MustParseAddr("10.9.8.7"), netip.MustParseAddr("fd99::7")
	beside := behind
	beside.ip4, beside.ip6 = address4(openNet+40, 1), address6(openNet+40, 1)
	asAlice := hello(behind)
	asAlice.in = patch(asAlice.in, map[bool]int{false: atIP + 12, true: atIP6Source}[v6], alice.ip(v6).AsSlice()...)
	unknown := func(name string, to host) row { return calls(name, to).dropped("unknown_destination") }
	const slack = 10 * time.Second
	closed := func(t testing.TB, w *world) {
		changeNetwork(openNet, func(n *Network) { n.ICC = false })(t, w)
		w.send(t, hello(behind))
	}
	// reused writes the entry as a program sees it if another address takes its
	// memory right after the lookup.
	reused := func(t testing.TB, w *world) {
		var entry bpf.EbpnetLearned
		key := addressOf(behind.ip(v6))
		must(t, w.Maps.LearnedNeigh.Lookup(key, &entry))
		entry.Address, entry.Station.Mac.Byte = addressOf(later.ip(v6)), later.mac
		must(t, w.Maps.LearnedNeigh.Put(key, entry))
	}
	return []row{
		spoke,
		hello(behind),
		hello(trunk),
		fromUplink("reply from outside", answer.frame(t)).after(spoke).delivered(behind, translated(answer, behind).frame(t)),
		fromUplink("reply from outside, to a station that has moved", answer.frame(t)).after(spoke, hello(moved)).
			delivered(moved, translated(answer, moved).frame(t)),
		calls("from the host", behind).after(hello(behind)).delivered(behind, nil),
		calls("from the host, after it sent to the outside", behind).after(spoke).delivered(behind, nil),
		calls("from the host to a trunk", trunk).delivered(trunk, nil),
		calls("from the host to a station that has moved", moved).after(hello(behind), hello(moved)).delivered(moved, nil),
		fromHost("from the host, with a stale MAC", stale.frame(t)).after(hello(behind)).delivered(behind, fromGateway(behind).frame(t)),
		asks("question of the host").after(hello(behind)).redirected(told),
		asks("question of the host, for a station that never sent").dropped("unknown_destination"),
		unknown("from the host, to a station that never sent", behind),
		unknown("from the host, after a packet of its neighbor", behind).after(hello(later)),
		unknown("from the host, to a station that only sent to neighbors", behind).after(bridged),
		unknown("from the host, the entry reused for another address", behind).after(hello(behind)).given(reused, nil),
		fromUplink("reply from outside, the entry reused for another address", answer.frame(t)).after(spoke).given(reused, nil).
			dropped("unknown_destination"),
		asks("question of the host, the entry reused for another address").after(hello(behind)).given(reused, nil).dropped("unknown_destination"),
		unknown("from the host, to an address of no subnet", abroad).after(hello(abroad)),
		unknown("from the host, to an address of another subnet", beside).after(hello(beside)),
		calls("from the host, after the timeout of stations", behind).after(hello(behind)).given(age(learnedFor), nil).delivered(behind, nil),
		calls("from the host, before the timeout of addresses", behind).after(hello(behind)).given(age(addressFor-slack), nil).delivered(behind, nil),
		unknown("from the host, after the timeout of addresses", behind).after(hello(behind)).given(age(addressFor), nil),
		asks("question of the host, before the timeout of addresses").after(hello(behind)).given(age(addressFor-slack), nil).redirected(told),
		asks("question of the host, after the timeout of addresses").after(hello(behind)).given(age(addressFor), nil).dropped("unknown_destination"),
		fromUplink("reply from outside, before the timeout of addresses", answer.frame(t)).after(spoke).given(age(addressFor-slack), nil).
			delivered(behind, translated(answer, behind).frame(t)),
		calls("from the host, without ICC", behind).given(closed, remember).delivered(behind, nil),
		calls("from the host, where another has used the address", alice).after(asAlice).delivered(alice, nil),
		fromEndpoint("ARP to the gateway's MAC", behind,
			arp(t, behind.mac, gatewayMAC, layers.ARPReply, behind.mac, behind.ip4, gatewayMAC, gateway.ip4)).dropped("unknown_destination"),
	}
}

func trunkARPRows(t testing.TB) []row {
	behind := stranger(trunk, 80)
	tunnels := []uint32{theTunnel, sixTunnel}
	says := func(name string, frame []byte) row { return fromEndpoint(name, trunk, frame) }
	tells := func(frame, sender mac, ip netip.Addr) []byte {
		return arp(t, frame, broadcastMAC, layers.ARPReply, sender, ip, broadcastMAC, ip)
	}
	answer := func(owner host, asker mac, ip netip.Addr) []byte {
		return arp(t, owner.mac, asker, layers.ARPReply, owner.mac, owner.ip4, asker, ip)
	}
	zero := netip.IPv4Unspecified()
	var rows []row
	for _, a := range invalidSources(false) {
		rows = append(rows, says("ARP from "+a.String(), tells(behind.mac, behind.mac, a)).dropped("spoofed_address"))
	}
	return append(rows,
		says("ARP for a neighbor", arpRequest(t, behind.mac, behind.ip4, alice.ip4)).redirected(answer(alice, behind.mac, behind.ip4)),
		says("ARP for the trunk itself", arpRequest(t, behind.mac, behind.ip4, trunk.ip4)).redirected(answer(trunk, behind.mac, behind.ip4)),
		says("ARP for the gateway", arpRequest(t, behind.mac, behind.ip4, gatewayOf(openNet).ip4)).
			redirected(answer(gatewayOf(openNet), behind.mac, behind.ip4)),
		says("ARP probe for a neighbor's address", arpRequest(t, behind.mac, zero, alice.ip4)).redirected(answer(alice, behind.mac, zero)),
		says("ARP probe", arpRequest(t, behind.mac, zero, behind.ip4)).floodedTo(alice, bob, otherTrunk).into(tunnels...),
		says("announcement", tells(behind.mac, behind.mac, behind.ip4)).floodedTo(alice, bob, otherTrunk).into(tunnels...),
		says("announcement of the trunk", tells(trunk.mac, trunk.mac, trunk.ip4)).floodedTo(alice, bob, otherTrunk).into(tunnels...),
		says("ARP about another MAC", tells(behind.mac, bob.mac, behind.ip4)).dropped("spoofed_mac"),
		says("ARP about a neighbor behind the trunk", tells(behind.mac, stranger(trunk, 81).mac, behind.ip4)).dropped("spoofed_mac"),
		says("ARP about a neighbor's address", tells(behind.mac, behind.mac, bob.ip4)).dropped("spoofed_address"),
		says("ARP about the gateway's address", tells(behind.mac, behind.mac, gatewayOf(openNet).ip4)).dropped("spoofed_address"),
		says("truncated ARP", tells(behind.mac, behind.mac, behind.ip4)[:atIP+27]).dropped("malformed"),
		says("ARP of another hardware", patch(tells(behind.mac, behind.mac, behind.ip4), atIP, 0, 2)).dropped("malformed"),
		reachesARP(t, "ARP for a station behind a trunk", behind.ip4).after(says("", tells(behind.mac, behind.mac, behind.ip4))).
			floodedTo(bob, trunk, otherTrunk).into(tunnels...),
	)
}

func reachesARP(t testing.TB, name string, target netip.Addr) row {
	return fromEndpoint(name, alice, arpRequest(t, alice.mac, alice.ip4, target))
}

func trunkNDRows(t testing.TB) []row {
	behind := stranger(trunk, 80)
	tunnels := []uint32{theTunnel, sixTunnel}
	zero, allNodes := netip.IPv6Unspecified(), netip.MustParseAddr("ff02::1")
	says := func(name string, p packet) row { return fromEndpoint(name, trunk, p.frame(t)) }
	flooded := func(name string, p packet) row {
		return says(name, p).floodedTo(alice, bob, otherTrunk).into(tunnels...)
	}
	advert := func(target netip.Addr) packet {
		p := tell(behind.mac, multicastMAC(allNodes), target, allNodes, ndOverride)
		p.src = behind.ip6
		return p
	}
	nd := func(kind uint8, body string) packet {
		return packet{from: behind.mac, to: multicastMAC(allNodes), src: linkLocal(behind.mac), dst: allNodes, ttl: 255, l4: icmp6(kind, body)}
	}
	from := func(a netip.Addr) packet {
		p := between(behind, alice, true, udp(1, 2))
		p.src = a
		return p
	}
	short := advert(behind.ip6)
	short.l4.body = short.l4.body[:12]
	fragments := from(behind.ip6)
	fragments.l4, fragments.ttl, fragments.fragment.more = icmp6(neighborAnswer, ndBody(ndOverride, bob.ip6, "")), 255, true
	hidden := nd(routerAdvert, "behind options")
	hidden.options = []byte{1, 4, 0, 0, 0, 0} // PadN: RFC 8200, section 4.2
	return []row{
		says("NS for a neighbor", ask(behind.mac, behind.ip6, alice.ip6, ndOption(optionSourceMAC, behind.mac))).
			redirected(tell(alice.mac, behind.mac, alice.ip6, behind.ip6, ndSolicited|ndOverride).frame(t)),
		says("NS for a neighbor's address, from no address", ask(behind.mac, zero, alice.ip6, "")).
			redirected(tell(alice.mac, multicastMAC(allNodes), alice.ip6, allNodes, ndOverride).frame(t)),
		flooded("NS for its own address", ask(behind.mac, zero, behind.ip6, "")),
		flooded("NA", advert(behind.ip6)),
		flooded("NA for the link-local address", advert(linkLocal(behind.mac))),
		flooded("router solicitation", nd(routerSolicit, "\x00\x00\x00\x00")),
		flooded("multicast report", nd(mldReport, "0123456789abcdefghij")),
		says("NA for a neighbor's address", advert(bob.ip6)).dropped("spoofed_address"),
		says("NA for the gateway", advert(gatewayOf(openNet).ip6)).dropped("spoofed_address"),
		says("NA for a group", advert(allNodes)).dropped("spoofed_address"),
		says("NA for the loopback address", advert(netip.IPv6Loopback())).dropped("spoofed_address"),
		says("NA for a neighbor's link-local address", advert(linkLocal(bob.mac))).dropped("spoofed_address"),
		says("truncated NA", short).dropped("malformed"),
		says("router advertisement", nd(routerAdvert, "0123456789")).dropped("rogue_router"),
		says("router advertisement behind options", hidden).dropped("rogue_router"),
		says("redirect", nd(redirect6, "0123456789")).dropped("rogue_router"),
		says("multicast query", nd(mldQuery, "0123456789abcdefghij")).dropped("rogue_router"),
		says("ND in fragments", fragments).dropped("fragment"),
		says("own link-local address", from(linkLocal(behind.mac))).delivered(alice, nil),
		says("link-local address of no MAC", from(netip.MustParseAddr("fe80::1234:5678:9abc:def0"))).delivered(alice, nil),
		says("link-local address of the trunk", from(linkLocal(trunk.mac))).delivered(alice, nil),
		says("neighbor's link-local address", from(linkLocal(bob.mac))).dropped("spoofed_address"),
		says("gateway's link-local address", from(linkLocal(gatewayMAC))).dropped("spoofed_address"),
	}
}
