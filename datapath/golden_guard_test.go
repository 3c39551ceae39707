package datapath

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/gopacket/gopacket/layers"
)

func guardRows(t testing.TB) []row {
	everyone := netip.MustParseAddr("255.255.255.255")
	allNodes, allRouters := netip.MustParseAddr("ff02::1"), netip.MustParseAddr("ff02::2")
	zero4, zero6 := netip.IPv4Unspecified(), netip.IPv6Unspecified()
	rows := bothFamilies(func(v6 bool) []row {
		spoofed := func(by host, change func(*packet)) []byte {
			p := between(by, bob, v6, udp(1, 2))
			change(&p)
			return p.frame(t)
		}
		return []row{
			fromEndpoint("neighbor's MAC", alice, spoofed(alice, func(p *packet) { p.from = bob.mac })).dropped("spoofed_mac").path("drop-spoofed-mac"),
			fromEndpoint("gateway's MAC", alice, spoofed(alice, func(p *packet) { p.from = gatewayMAC })).dropped("spoofed_mac"),
			fromEndpoint("neighbor's address", alice, spoofed(alice, func(p *packet) { p.src = bob.ip(v6) })).dropped("spoofed_address").path("drop-spoofed-address"),
			fromEndpoint("gateway's address", alice, spoofed(alice, func(p *packet) { p.src = gatewayOf(openNet).ip(v6) })).dropped("spoofed_address"),
			fromEndpoint("outside address", alice, spoofed(alice, func(p *packet) { p.src = website.ip(v6); p.to = gatewayMAC })).dropped("spoofed_address"),
			fromEndpoint("no address", alice, spoofed(alice, func(p *packet) { p.src = map[bool]netip.Addr{false: zero4, true: zero6}[v6] })).dropped("spoofed_address"),
		}
	})
	unknown := fromEndpoint("device of no endpoint", alice, between(alice, bob, false, udp(1, 2)).frame(t)).dropped("unknown_source").path("drop-unknown-source")
	unknown.device, unknown.sender = "side0", nil

	dhcp := func(src, dst netip.Addr, l4 transport) []byte {
		return packet{from: alice.mac, to: broadcastMAC, src: src, dst: dst, l4: l4, payload: "discover"}.frame(t)
	}
	arpBy := func(from, sender mac, ip netip.Addr) []byte {
		return arp(t, from, broadcastMAC, layers.ARPReply, sender, ip, broadcastMAC, ip)
	}
	// nd is an ICMPv6 message to a group.
	nd := func(src, group netip.Addr, kind uint8, body string) packet {
		return packet{from: alice.mac, to: multicastMAC(group), src: src, dst: group, ttl: 255, l4: icmp6(kind, body)}
	}
	unicast := func(p packet) packet { p.to, p.dst = bob.mac, bob.ip6; return p }
	fragmented := nd(alice.ip6, allNodes, routerAdvert, "fragmented!!")
	fragmented.fragment.more = true
	fragmentTo := func(ttl uint8) packet {
		p := unicast(nd(alice.ip6, allNodes, echoRequest6, "\x00\x01\x00\x01 in fragments"))
		p.ttl, p.fragment.more = ttl, true
		return p
	}
	hidden := nd(alice.ip6, allNodes, routerAdvert, "behind options")
	hidden.options = []byte{1, 4, 0, 0, 0, 0} // PadN: RFC 8200, section 4.2
	eui64 := packet{from: alice.mac, to: bob.mac, src: linkLocal(alice.mac), dst: bob.ip6, l4: udp(1, 2)}
	// Superframes with segments of one byte are refused. A test run sets
	// neither the type of a superframe nor checksum offload.
	long := between(alice, bob, false, tcp(1000, 2000, "A"))
	long.payload = strings.Repeat("s", 1400)
	pieces := func(name string, size uint32) row {
		r := fromEndpoint(name, alice, long.frame(t))
		r.skb = skbContext{size: size}
		return r
	}
	known := between(alice, bob, false, udp(1000, 2000))
	optioned := known
	optioned.options = []byte{0x94, 4, 0, 0} // router alert: RFC 2113
	const atIPChecksum = atIP + 10
	wrong := func(frame []byte) []byte { return patch(frame, atIPChecksum, frame[atIPChecksum]^1) }
	foreign := eui64
	foreign.src = linkLocal(bob.mac)
	return append(rows,
		unknown,
		fromEndpoint("DHCP from a wrong port", alice, dhcp(zero4, everyone, udp(69, 67))).dropped("spoofed_address"),
		fromEndpoint("DHCP reply to a relay from no address", alice, packet{
			from: alice.mac, to: broadcastMAC, src: zero4, dst: everyone, l4: udp(68, 67), payload: "\x02reply",
		}.frame(t)).dropped("rogue_server"),
		fromEndpoint("DHCP answer", alice, dhcp(zero4, everyone, udp(67, 68))).dropped("spoofed_address"),
		fromEndpoint("no address and TCP", alice, dhcp(zero4, everyone, tcp(68, 67, "S"))).dropped("spoofed_address"),
		fromEndpoint("DHCP to a subnet's broadcast address", alice, dhcp(zero4, address4(openNet, 255), udp(68, 67))).dropped("spoofed_address"),
		fromEndpoint("truncated DHCP", alice, cutIPv4(t, dhcp(zero4, everyone, udp(68, 67)), 20+4)).dropped("malformed"),

		fromEndpoint("wrong checksum of the IP header", alice, wrong(known.frame(t))).dropped("malformed"),
		fromEndpoint("IP options", alice, optioned.frame(t)).delivered(bob, nil),
		fromEndpoint("wrong checksum with IP options", alice, wrong(optioned.frame(t))).dropped("malformed"),
		pieces("superframe of single bytes", 1).dropped("bad_offload").path("drop-bad-offload"),
		pieces("superframe of two bytes each", 2).delivered(bob, nil),

		fromEndpoint("ARP from another MAC", alice, arpBy(bob.mac, alice.mac, alice.ip4)).dropped("spoofed_mac"),
		fromEndpoint("ARP about another MAC", alice, arpBy(alice.mac, bob.mac, alice.ip4)).dropped("spoofed_mac"),
		fromEndpoint("ARP about another address", alice, arpBy(alice.mac, alice.mac, bob.ip4)).dropped("spoofed_address"),
		fromEndpoint("ARP about the gateway", alice, arpBy(alice.mac, alice.mac, gatewayOf(openNet).ip4)).dropped("spoofed_address"),

		fromEndpoint("link-local address", alice, eui64.frame(t)).delivered(bob, nil),
		fromEndpoint("another's link-local address", alice, foreign.frame(t)).dropped("spoofed_address"),
		fromEndpoint("router solicitation from no address", alice, nd(zero6, allRouters, routerSolicit, "\x00\x00\x00\x00").frame(t)).floodedTo(bob).into(theTunnel),
		fromEndpoint("multicast report from no address", alice, nd(zero6, allRouters, mldReport, "0123456789abcdefghij").frame(t)).floodedTo(bob).into(theTunnel),
		fromEndpoint("NS from no address to a MAC", alice, unicast(nd(zero6, allNodes, neighborAsk, ndBody(0, bob.ip6, ""))).frame(t)).dropped("spoofed_address"),
		fromEndpoint("echo from no address", alice, nd(zero6, allNodes, echoRequest6, "\x00\x01\x00\x01").frame(t)).dropped("spoofed_address"),
		fromEndpoint("NA for another's address", alice, nd(alice.ip6, allNodes, neighborAnswer, ndBody(ndOverride, bob.ip6, ndOption(optionTargetMAC, alice.mac))).frame(t)).
			dropped("spoofed_address"),
		fromEndpoint("NA for another's address to a MAC", alice, unicast(nd(alice.ip6, allNodes, neighborAnswer, ndBody(ndOverride, gatewayOf(openNet).ip6, ""))).frame(t)).
			dropped("spoofed_address"),
		fromEndpoint("NA for no address", alice, nd(alice.ip6, allNodes, neighborAnswer, ndBody(ndOverride, zero6, "")).frame(t)).dropped("spoofed_address"),
		fromEndpoint("NA for its IPv4 address", alice, nd(alice.ip6, allNodes, neighborAnswer, ndBody(ndOverride, netip.AddrFrom16(alice.ip4.As16()), "")).frame(t)).
			dropped("spoofed_address"),
		fromEndpoint("NA for the link-local address", alice, nd(linkLocal(alice.mac), allNodes, neighborAnswer, ndBody(0, linkLocal(alice.mac), "")).frame(t)).floodedTo(bob).into(theTunnel),
		fromEndpoint("NA at another MAC", alice, nd(alice.ip6, allNodes, neighborAnswer, ndBody(ndOverride, alice.ip6, ndOption(optionTargetMAC, bob.mac))).frame(t)).
			dropped("spoofed_mac"),
		fromEndpoint("NA at its own MAC", alice, nd(alice.ip6, allNodes, neighborAnswer, ndBody(ndOverride, alice.ip6, ndOption(optionTargetMAC, alice.mac))).frame(t)).
			floodedTo(bob).into(theTunnel),
		fromEndpoint("NA at another MAC behind another option", alice, unicast(nd(alice.ip6, allNodes, neighborAnswer,
			ndBody(0, alice.ip6, ndOption(14, mac{})+ndOption(optionTargetMAC, bob.mac)))).frame(t)).dropped("spoofed_mac"),
		fromEndpoint("NS at another MAC", alice, unicast(nd(alice.ip6, allNodes, neighborAsk, ndBody(0, nobody.ip6, ndOption(optionSourceMAC, bob.mac)))).frame(t)).
			dropped("spoofed_mac"),
		fromEndpoint("NS at its own MAC", alice, unicast(nd(alice.ip6, allNodes, neighborAsk, ndBody(0, nobody.ip6, ndOption(optionSourceMAC, alice.mac)))).frame(t)).
			delivered(bob, nil),
		fromEndpoint("NA with an option of no length", alice, unicast(nd(alice.ip6, allNodes, neighborAnswer,
			ndBody(0, alice.ip6, "\x0e\x00\x00\x00\x00\x00\x00\x00"))).frame(t)).dropped("malformed"),
		fromEndpoint("NA with eight options", alice, unicast(nd(alice.ip6, allNodes, neighborAnswer,
			ndBody(0, alice.ip6, strings.Repeat(ndOption(14, mac{}), 8)))).frame(t)).delivered(bob, nil),
		fromEndpoint("NA with nine options", alice, unicast(nd(alice.ip6, allNodes, neighborAnswer,
			ndBody(0, alice.ip6, strings.Repeat(ndOption(14, mac{}), 9)))).frame(t)).dropped("malformed"),
		fromEndpoint("truncated NA", alice, nd(alice.ip6, allNodes, neighborAnswer, "\x00\x00\x00\x00short").frame(t)).dropped("malformed"),
		fromEndpoint("router advertisement", alice, nd(linkLocal(alice.mac), allNodes, routerAdvert, "0123456789").frame(t)).
			dropped("rogue_router").path("drop-rogue-router"),
		fromEndpoint("router advertisement to a MAC", alice, unicast(nd(alice.ip6, allNodes, routerAdvert, "0123456789")).frame(t)).dropped("rogue_router"),
		fromEndpoint("router advertisement behind options", alice, hidden.frame(t)).dropped("rogue_router"),
		fromEndpoint("router advertisement in fragments", alice, fragmented.frame(t)).dropped("fragment"),
		fromEndpoint("ICMPv6 in fragments to a MAC, with hop limit 255", alice, fragmentTo(255).frame(t)).dropped("fragment"),
		fromEndpoint("ICMPv6 in fragments to a MAC", alice, fragmentTo(64).frame(t)).delivered(bob, nil),
		fromEndpoint("redirect", alice, unicast(nd(linkLocal(alice.mac), allNodes, redirect6, "0123456789")).frame(t)).dropped("rogue_router"),
		fromEndpoint("multicast query", alice, nd(linkLocal(alice.mac), allNodes, mldQuery, "0123456789abcdefghij").frame(t)).dropped("rogue_router"),
	)
}

// cutIPv4 shortens a frame to an IP packet of length bytes, with matching
// lengths.
func cutIPv4(t testing.TB, frame []byte, length int) []byte {
	t.Helper()
	return patch(frame[:atIP+length], atIPLength, 0, byte(length))
}

func cutIPv6(t testing.TB, frame []byte, payload int) []byte {
	t.Helper()
	return patch(frame[:atL4v6+payload], atIP6Length, 0, byte(payload))
}

// parseRows are malformed packets. The test run itself refuses packets shorter
// than an IP header; tunnelRows sends such packets inside a tunnel.
func parseRows(t testing.TB) []row {
	good4 := between(alice, bob, false, udp(1, 2)).frame(t)
	good6 := between(alice, bob, true, udp(1, 2)).frame(t)
	malformed := func(name string, in []byte) row { return fromEndpoint(name, alice, in).dropped("malformed") }
	// Without ICC, the policy needs the ports, so the program reads the
	// transport header.
	short := func(name string, v6 bool, l4 transport, length int) row {
		frame := between(client, server, v6, l4).frame(t)
		if v6 {
			return fromEndpoint("IPv6/"+name, client, cutIPv6(t, frame, length)).dropped("malformed")
		}
		return fromEndpoint("IPv4/"+name, client, cutIPv4(t, frame, 20+length)).dropped("malformed")
	}
	mapped := slices.Concat(make([]byte, 10), []byte{0xff, 0xff}, bob.ip4.AsSlice())
	vlan := slices.Concat(good4[:atEthertype], []byte{0x81, 0, 0, 5}, good4[atEthertype:])
	// extensions is a packet with n option headers and nothing after them.
	extensions := func(n, last int) []byte {
		p := between(client, server, true, transport{protocol: layers.IPProtocolIPv6Destination})
		p.payload = ""
		for i := range n {
			next := byte(layers.IPProtocolIPv6Destination)
			if i == n-1 {
				next = byte(last)
			}
			p.payload += string([]byte{next, 0, 1, 4, 0, 0, 0, 0})
		}
		p.payload += "01234567890123456789" // as long as a TCP header
		return p.frame(t)
	}
	const noNext = 59
	return []row{
		malformed("IPv4/version", patch(good4, atIP, 0x65)).path("drop-malformed"),
		malformed("IPv4/header length below five", patch(good4, atIP, 0x44)),
		malformed("IPv4/longer than the frame", patch(good4, atIPLength, 0xff, 0xff)),
		malformed("IPv4/shorter than its header", patch(good4, atIPLength, 0, 19)),
		malformed("IPv4/options past its end", patch(patch(good4, atIP, 0x4f), atIPLength, 0, 59)),
		malformed("IPv6/version", patch(good6, atIP, 0x45)),
		malformed("IPv6/longer than the frame", patch(good6, atIP6Length, 0xff, 0xff)),
		malformed("IPv6/mapped source", patch(good6, atIP6Source, mapped...)),
		malformed("IPv6/mapped destination", patch(good6, atIP6Source+16, mapped...)),
		fromEndpoint("IPv4/padded frame", alice, append(slices.Clone(good4), 0, 0, 0)).delivered(bob, nil),
		fromEndpoint("IPv6/padded frame", alice, append(slices.Clone(good6), 0, 0, 0)).delivered(bob, nil),
		short("truncated TCP", false, tcp(1, 6379, "S"), 19),
		short("truncated UDP", false, udp(1, 53), 7),
		short("truncated TCP", true, tcp(1, 6379, "S"), 19),
		short("truncated UDP", true, udp(1, 53), 7),
		short("truncated ICMP", true, echo(true, false, 1), 7),
		short("truncated ICMP", false, echo(false, false, 1), 7),
		malformed("truncated ARP", arpRequest(t, alice.mac, alice.ip4, bob.ip4)[:atIP+27]),
		malformed("ARP of another hardware", patch(arpRequest(t, alice.mac, alice.ip4, bob.ip4), atIP, 0, 2)),
		malformed("ARP of another protocol", patch(arpRequest(t, alice.mac, alice.ip4, bob.ip4), atIP+2, 0x86, 0xdd)),
		malformed("ARP of other lengths", patch(arpRequest(t, alice.mac, alice.ip4, bob.ip4), atIP+4, 8, 4)),
		fromEndpoint("as many extension headers as are read", client, extensions(4, noNext)).dropped("policy"),
		fromEndpoint("one extension header more than is read", client, extensions(5, noNext)).dropped("malformed"),
		fromEndpoint("extension header past the end", client, patch(extensions(1, noNext), atL4v6, byte(layers.IPProtocolIPv6Destination), 255)).dropped("malformed"),
		fromEndpoint("VLAN", alice, vlan).dropped("unknown_protocol"),
		fromEndpoint("LLDP", alice, patch(good4, atEthertype, 0x88, 0xcc)).dropped("unknown_protocol").path("drop-unknown-protocol"),
		fromHost("IPv4/version", patch(good4, atIP, 0x65)).dropped("malformed"),
		fromHost("truncated ARP", arpRequest(t, gatewayMAC, gatewayOf(openNet).ip4, bob.ip4)[:atIP+27]).dropped("malformed"),
		fromHost("truncated NS", cutIPv6(t, ask(gatewayMAC, gatewayOf(openNet).ip6, bob.ip6, "").frame(t), 7)).dropped("malformed"),
		fromHost("LLDP", patch(good4, atEthertype, 0x88, 0xcc)).dropped("unknown_protocol"),
		fromUplink("IPv4/version", patch(good4, atIP, 0x65)).passed(),
		fromUplink("ARP", arpRequest(t, routerMAC, peer.ip4, uplink.ip4)).passed(),
		toUplink("IPv4/version", patch(good4, atIP, 0x65)).passed(),
		toUplink("ARP", arpRequest(t, uplinkMAC, uplink.ip4, peer.ip4)).passed(),
	}
}
