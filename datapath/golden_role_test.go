package datapath

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"github.com/gopacket/gopacket/layers"
)

// Types of ICMP, IGMP and ICMPv6 messages that only routers send, and similar
// ones: RFC 792, 1256, 3376, 4286.
const (
	redirect4          = 5
	routerAdvert4      = 9
	routerSolicit4     = 10
	igmpQuery          = "\x11"
	igmpReport         = "\x22"
	igmpRouterAdvert   = "\x30"
	igmpRouterSolicit  = "\x31"
	igmpRouterEnd      = "\x32"
	mldReport2         = 143
	mldRouterAdvert    = 151
	mldRouterSolicit   = 152
	mldRouterEnd       = 153
	zeroesOfMessage    = "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	bootRequest        = "\x01" + zeroesOfMessage
	bootReply          = "\x02" + zeroesOfMessage
	dhcpv6Solicit      = "\x01" + zeroesOfMessage
	dhcpv6Advertise    = "\x02" + zeroesOfMessage
	dhcpv6Reply        = "\x07" + zeroesOfMessage
	dhcpv6Reconfigure  = "\x0a" + zeroesOfMessage
	dhcpv6InfoRequest  = "\x0b" + zeroesOfMessage
	dhcpv6RelayForward = "\x0c" + zeroesOfMessage
	dhcpv6RelayReply   = "\x0d" + zeroesOfMessage
	dhcpServer4, dhcp4 = 67, 68
	dhcpServer6, dhcp6 = 547, 546
	rogueServer        = "rogue_server"
	rogueRouter        = "rogue_router"
)

// message is a message of an endpoint, and the drop reason if the endpoint does
// not have the role.
type message struct {
	name    string
	l4      transport
	payload string
	reason  string // empty: everybody may send it
	change  func(*packet)
}

// packet returns the message from one station to another.
func (m message) packet(from, to host, v6 bool) packet {
	p := between(from, to, v6, m.l4)
	p.payload = m.payload
	if p.l4.protocol == layers.IPProtocolICMPv6 {
		p.ttl = 255
	}
	if m.change != nil {
		m.change(&p)
	}
	return p
}

func igmp(name, kind, reason string) message {
	return message{name: name, l4: transport{protocol: layers.IPProtocolIGMP}, payload: kind + zeroesOfMessage, reason: reason}
}

// routerMessages are messages that only a router may send, and similar ones.
func routerMessages(v6 bool) []message {
	if !v6 {
		icmp := func(name string, kind uint8, reason string) message {
			return message{name: name, l4: icmp4(kind, zeroesOfMessage), reason: reason}
		}
		withOptions := icmp("redirect behind options", redirect4, rogueRouter)
		withOptions.change = func(p *packet) { p.options = []byte{0x94, 4, 0, 0} } // router alert: RFC 2113
		query := igmp("IGMP query behind options", igmpQuery, rogueRouter)
		query.change = withOptions.change
		unreachable := icmp("unreachable, about a packet to its sender", unreachable4, "")
		unreachable.change = func(p *packet) {
			quoted := []byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, protocolUDP, 0, 0}
			p.l4.body = "\x00\x00\x00\x00" + string(slices.Concat(quoted, p.dst.AsSlice(), p.src.AsSlice()))
		}
		inFragments := icmp("redirect in fragments", redirect4, rogueRouter)
		inFragments.change = func(p *packet) { p.fragment.more = true }
		later := icmp("later fragment of ICMP", redirect4, "")
		later.change = func(p *packet) { p.fragment, p.payload = fragmentAt(2), zeroesOfMessage }
		return []message{
			icmp("redirect", redirect4, rogueRouter),
			icmp("router advertisement", routerAdvert4, rogueRouter),
			icmp("router solicitation", routerSolicit4, ""),
			icmp("echo", echoRequest4, ""),
			unreachable,
			igmp("IGMP query", igmpQuery, rogueRouter),
			igmp("IGMP report", igmpReport, ""),
			igmp("multicast router advertisement", igmpRouterAdvert, rogueRouter),
			igmp("multicast router solicitation", igmpRouterSolicit, ""),
			igmp("multicast router termination", igmpRouterEnd, rogueRouter),
			withOptions, query, inFragments, later,
		}
	}
	icmp := func(name string, kind uint8, reason string) message {
		return message{name: name, l4: icmp6(kind, zeroesOfMessage), reason: reason}
	}
	changed := func(m message, how string, reason string, change func(*packet)) message {
		m.name, m.reason, m.change = m.name+how, reason, change
		return m
	}
	behind := func(p *packet) { p.options = []byte{5, 2, 0, 0, 1, 0} } // router alert: RFC 2711
	first := func(p *packet) { p.fragment.more, p.ttl = true, 1 }
	advert, query, report := icmp("router advertisement", routerAdvert, rogueRouter), icmp("MLD query", mldQuery, rogueRouter), icmp("MLD report", mldReport2, "")
	return []message{
		advert, query, report,
		icmp("redirect", redirect6, rogueRouter),
		icmp("router solicitation", routerSolicit, ""),
		icmp("multicast router advertisement", mldRouterAdvert, rogueRouter),
		icmp("multicast router solicitation", mldRouterSolicit, ""),
		icmp("multicast router termination", mldRouterEnd, rogueRouter),
		icmp("echo", echoRequest6, ""),
		changed(advert, " behind options", rogueRouter, behind),
		changed(query, " behind options", rogueRouter, behind),
		changed(report, " behind options", "", behind),
		// RFC 6980 applies to every sender.
		changed(advert, " in fragments", "fragment", first),
		changed(query, " in fragments", "fragment", first),
		changed(report, " in fragments", "fragment", first),
		changed(icmp("neighbor solicitation", neighborAsk, ""), " in fragments", "fragment", first),
		changed(icmp("echo", echoRequest6, ""), " in fragments", "", first),
		changed(icmp("echo", echoRequest6, ""), " in fragments, with hop limit 255", "fragment", func(p *packet) { p.fragment.more = true }),
		changed(icmp("ICMPv6", routerAdvert, ""), ", a later fragment", "", func(p *packet) {
			p.fragment, p.ttl, p.payload = fragmentAt(2), 64, zeroesOfMessage
		}),
		// A fragment header with a whole packet hides nothing: RFC 6946.
		changed(advert, " in one fragment", rogueRouter, func(p *packet) { p.fragment.id = 7 }),
		changed(icmp("echo", echoRequest6, ""), " in one fragment", "", func(p *packet) { p.fragment.id = 7 }),
	}
}

// serverMessages are messages that only a DHCP server or relay may send, and
// similar ones.
func serverMessages(v6 bool) []message {
	server, client, request, reply := uint16(dhcpServer4), uint16(dhcp4), bootRequest, bootReply
	if v6 {
		server, client, request, reply = dhcpServer6, dhcp6, dhcpv6Solicit, dhcpv6Reply
	}
	says := func(name string, from, to uint16, payload, reason string) message {
		return message{name: name, l4: udp(from, to), payload: payload, reason: reason}
	}
	changed := func(m message, how, reason string, change func(*packet)) message {
		m.name, m.reason, m.change = m.name+how, reason, change
		return m
	}
	first := func(p *packet) { p.fragment.more = true }
	later := func(p *packet) { p.fragment = fragmentAt(2) }
	toClient, toServer := says("reply to a client", server, client, reply, rogueServer), says("request to a server", client, server, request, "")
	behind := func(p *packet) { p.options = []byte{0x94, 4, 0, 0} }
	if v6 {
		behind = func(p *packet) { p.options = []byte{1, 4, 0, 0, 0, 0} }
	}
	all := []message{
		toClient, toServer,
		says("reply to a relay", server, server, reply, rogueServer),
		says("request by a relay", server, server, request, rogueServer),
		says("reply from another port", 4000, client, reply, rogueServer),
		says("reply from a client's port", client, client, reply, rogueServer),
		says("reply to another port", server, 4000, reply, rogueServer),
		says("reply to a relay from another port", 4000, server, reply, rogueServer),
		says("reply to a relay from a client's port", client, server, reply, rogueServer),
		says("request from another port", 4000, server, request, ""),
		says("no data, to a server's port", client, server, "", ""),
		says("neighboring ports", server-2, client+2, reply, ""),
		says("mDNS", 5353, 5353, reply, ""),
		says("LLMNR", 5355, 5355, reply, ""),
		changed(toClient, " behind options", rogueServer, behind),
		changed(toServer, " behind options", "", behind),
		changed(toClient, " in fragments", rogueServer, first),
		changed(toServer, " in fragments", "fragment", first),
		changed(says("other UDP", 1, 2, request, ""), " in fragments", "", first),
		changed(toClient, ", a later fragment", "", later),
		{name: "TCP from a server's port", l4: tcp(server, client, "S")},
	}
	if !v6 {
		return append(all,
			says("from a server's port of DHCPv6", dhcpServer6, dhcp6, reply, ""))
	}
	return append(all,
		says("from a server's port of DHCPv4", dhcpServer4, dhcp4, reply, ""),
		says("advertisement to a relay", 4000, server, dhcpv6Advertise, rogueServer),
		says("reconfiguration to a relay", 4000, server, dhcpv6Reconfigure, rogueServer),
		says("relayed reply to a relay", 4000, server, dhcpv6RelayReply, rogueServer),
		says("information request", client, server, dhcpv6InfoRequest, ""),
		changed(toClient, " in one fragment", rogueServer, func(p *packet) { p.fragment.id = 7 }),
		changed(toServer, " in one fragment", "", func(p *packet) { p.fragment.id = 7 }))
}

// allowed gives a local endpoint roles.
func allowed(who host, server, router bool) func(testing.TB, *world) {
	return func(t testing.TB, w *world) {
		for _, e := range w.wanted.Endpoints {
			if e.ID != who.id {
				continue
			}
			e.DHCPServer, e.Router = server, router
			if err := w.SetEndpoint(e); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// as is the station `from` as it sends through the device of `by`.
func as(by, from host) host {
	from.device, from.id, from.network = by.device, by.id, by.network
	return from
}

// roleRows are messages that only routers and DHCP servers may send.
func roleRows(t testing.TB) []row {
	behind := stranger(trunk, 80)
	beyond := stranger(host{}, 90)
	rows := bothFamilies(func(v6 bool) []row {
		var rows []row
		messages := append(routerMessages(v6), serverMessages(v6)...)
		for _, m := range messages {
			say := func(from host) row {
				return fromEndpoint(m.name+", from "+from.device, from, m.packet(from, bob, v6).frame(t))
			}
			known, learned := m.packet(remote, bob, v6).frame(t), m.packet(beyond, bob, v6).frame(t)
			out := fromTunnel(t, m.name+", out of a tunnel", theTunnel, known)
			outLearned := fromTunnel(t, m.name+", from an unknown station in a tunnel", sixTunnel, learned)
			plainly := []row{say(alice), say(trunk), say(as(trunk, behind))}
			plainly[2].name += ", from behind it"
			if m.reason == "" {
				for _, r := range plainly {
					rows = append(rows, r.delivered(bob, nil))
				}
				rows = append(rows, out.delivered(bob, known), outLearned.delivered(bob, learned))
				continue
			}
			for _, r := range plainly {
				rows = append(rows, r.dropped(m.reason))
			}
			overlay := m.reason
			if overlay == rogueRouter {
				overlay = "spoofed_overlay"
			}
			rows = append(rows, out.dropped(overlay), outLearned.dropped(overlay))
			rows = append(rows, roleHolderRows(t, m, v6, behind)...)
		}
		return append(rows, roleDirectionRows(t, v6)...)
	})
	return append(rows, roleHiddenRows(t)...)
}

// roleHolderRows are a refused message from endpoints with roles.
func roleHolderRows(t testing.TB, m message, v6 bool, behind host) []row {
	may := func(from host, server, router bool) row {
		r := fromEndpoint(m.name+", from an endpoint with the role", from, m.packet(from, bob, v6).frame(t))
		return r.given(allowed(from, server, router), remember)
	}
	server, router := m.reason == rogueServer, m.reason == rogueRouter
	if !server && !router {
		if m.reason == "fragment" && m.l4.protocol == layers.IPProtocolUDP {
			return []row{may(alice, true, false).delivered(bob, nil)}
		}
		return []row{may(alice, true, true).dropped(m.reason)}
	}
	other := may(alice, !server, !router).dropped(m.reason)
	other.name += " for another role"
	own, nested := may(trunk, server, router).delivered(bob, nil), may(trunk, true, true)
	own.name += " as a trunk"
	nested.in = m.packet(as(trunk, behind), bob, v6).frame(t)
	nested.name += ", from a station behind it"
	peer := fromEndpoint(m.name+", to an endpoint with the role", alice, m.packet(alice, bob, v6).frame(t)).given(allowed(bob, true, true), remember)
	return []row{may(alice, server, router).delivered(bob, nil), other, own, nested.dropped(m.reason), peer.dropped(m.reason)}
}

// roleDirectionRows are the messages in other directions.
func roleDirectionRows(t testing.TB, v6 bool) []row {
	everybody := func(p packet) packet {
		p.to, p.dst = broadcastMAC, netip.MustParseAddr("255.255.255.255")
		if v6 {
			p.dst = netip.MustParseAddr("ff02::1")
			p.to = multicastMAC(p.dst)
		}
		return p
	}
	towards := func(p packet, to host) packet {
		p.to, p.dst = to.mac, to.ip(v6)
		return p
	}
	outside := website
	outside.mac = gatewayMAC
	var rows []row
	for _, m := range []message{routerMessages(v6)[0], serverMessages(v6)[0]} {
		p := m.packet(alice, bob, v6)
		says := func(name string, p packet) row { return fromEndpoint(m.name+" "+name, alice, p.frame(t)) }
		all := says("to everybody", everybody(p))
		tunnels := []uint32{theTunnel, sixTunnel}
		rows = append(rows,
			all.dropped(m.reason),
			says("to the host", towards(p, gatewayOf(openNet))).dropped(m.reason),
			says("to the outside", towards(p, outside)).dropped(m.reason),
			says("into a tunnel", towards(p, remote)).dropped(m.reason),
			says("to an unknown address", towards(p, nobody)).dropped(m.reason),
			fromHost(m.name+" from the host", towards(m.packet(gatewayOf(openNet), alice, v6), alice).frame(t)).delivered(alice, nil))
		all.name += ", from an endpoint with the role"
		rows = append(rows, all.given(allowed(alice, true, true), remember).floodedTo(bob, trunk, otherTrunk).into(tunnels...))
		host := says("to the host, from an endpoint with the role", towards(p, gatewayOf(openNet)))
		rows = append(rows, host.given(allowed(alice, true, true), remember).redirected(nil))
	}
	client := everybody(serverMessages(v6)[1].packet(alice, bob, v6))
	rows = append(rows, fromEndpoint("a client's request to everybody", alice, client.frame(t)).
		floodedTo(bob, trunk, otherTrunk).into(theTunnel, sixTunnel))
	return rows
}

// roleHiddenRows are first fragments with incomplete headers. The padding of
// the frame is not part of a header.
func roleHiddenRows(t testing.TB) []row {
	cut := func(v6 bool, l4 transport, length int) []byte {
		p := between(alice, bob, v6, l4)
		p.payload, p.fragment.more = zeroesOfMessage, true
		frame := p.frame(t)
		if v6 {
			return patch(frame, atIP6Length, 0, byte(8+length))
		}
		return patch(frame, atIPLength, 0, byte(20+length))
	}
	// from changes the sender of a frame to another station.
	from := func(by host, v6 bool, frame []byte) []byte {
		frame = patch(frame, len(mac{}), by.mac[:]...)
		if v6 {
			return patch(frame, atIP6Source, by.ip6.AsSlice()...)
		}
		frame = patch(patch(frame, atIP+12, by.ip4.AsSlice()...), atIP+10, 0, 0)
		binary.BigEndian.PutUint16(frame[atIP+10:], internetChecksum(frame[atIP:atL4]))
		return frame
	}
	var rows []row
	for _, v6 := range []bool{false, true} {
		name := map[bool]string{false: "IPv4", true: "IPv6"}[v6]
		for _, by := range []host{alice, trunk} {
			short, whole := from(by, v6, cut(v6, udp(1, 2), 7)), from(by, v6, cut(v6, udp(1, 2), 8))
			rows = append(rows,
				fromEndpoint(name+"/UDP header in the padding of a fragment, from "+by.device, by, short).dropped("malformed"),
				fromEndpoint(name+"/UDP header alone in a fragment, from "+by.device, by, whole).delivered(bob, nil))
		}
	}
	return append(rows,
		fromEndpoint("IPv6/ICMPv6 header in the padding of a fragment", alice, cut(true, icmp6(echoRequest6, "\x00\x01\x00\x01"), 7)).dropped("malformed"))
}
