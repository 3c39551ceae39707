package datapath

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/gopacket/gopacket/layers"
)

// largestTaken is the largest frame that XDP delivers to an endpoint:
// LARGEST_TAKEN of bpf/xdp.bpf.c.
const largestTaken = 256

// xdpFrameRows are frames that are not for XDP, and malformed frames.
func xdpFrameRows(t testing.TB) []row {
	good4, good6 := incoming(false, udp(1, 2)).frame(t), incoming(true, udp(1, 2)).frame(t)
	mapped := slices.Concat(make([]byte, 10), []byte{0xff, 0xff}, peer.ip4.AsSlice())
	const atSource, atDestination = atIP6Source, atIP6Source + 16
	bad := patch(good4, atIP, 0x65)
	malformed := func(name string, in []byte) row { return fromUplink(name, in).dropped("malformed") }
	tagged := slices.Concat(bad[:atEthertype], []byte{0x81, 0, 0, 5}, bad[atEthertype:])
	extended := incoming(true, transport{protocol: layers.IPProtocolIPv6Destination})
	extended.payload = strings.Repeat(string([]byte{byte(layers.IPProtocolIPv6Destination), 0, 1, 4, 0, 0, 0, 0}), 5) + "0123456789012345678"
	none := changeUplink(func(u *Uplink) { u.Ifindex++ })
	another := changeUplink(func(u *Uplink) { u.MAC = routerMAC })
	nameless := changeUplink(func(u *Uplink) { u.MAC = mac{} })
	return []row{
		fromUplink("IPv4", good4).passed(),
		fromUplink("IPv6", good6).passed(),
		malformed("IPv4/version", bad),
		malformed("IPv4/header length below five", patch(good4, atIP, 0x44)),
		malformed("IPv4/longer than the frame", patch(good4, atIPLength, 0xff, 0xff)),
		malformed("IPv4/one byte longer than the frame", patch(good4, atIPLength, 0, byte(len(good4)-atIP+1))),
		fromUplink("IPv4/as long as the frame", patch(good4, atIPLength, 0, byte(len(good4)-atIP))).passed(),
		malformed("IPv4/shorter than its header", patch(good4, atIPLength, 0, 19)),
		malformed("IPv4/options past its end", patch(patch(good4, atIP, 0x4f), atIPLength, 0, 59)),
		malformed("IPv4/truncated", good4[:atIP+19]),
		malformed("IPv4/only the Ethernet header", good4[:atIP]),
		malformed("IPv6/version", patch(good6, atIP, 0x45)),
		malformed("IPv6/longer than the frame", patch(good6, atIP6Length, 0xff, 0xff)),
		malformed("IPv6/truncated", good6[:atIP+39]),
		malformed("IPv6/mapped source", patch(good6, atSource, mapped...)),
		fromUplink("IPv6/mapped destination", patch(good6, atDestination, mapped...)).passed(),
		fromUplink("IPv6/both mapped", patch(patch(good6, atSource, mapped...), atDestination, mapped...)).passed(),
		fromUplink("IPv6/many extension headers", extended.frame(t)).passed(),
		fromUplink("IPv6/extension header past the end", patch(extended.frame(t), atL4v6, byte(layers.IPProtocolIPv6Destination), 255)).passed(),
		fromUplink("truncated TCP", cutIPv4(t, incoming(false, tcp(1, 2, "S")).frame(t), 39)).passed(),
		fromUplink("malformed, without a driver", bad).given(withoutDriver, remember).passed(),
		fromUplink("malformed, to another's MAC", patch(bad, 0, routerMAC[:]...)).passed(),
		fromUplink("malformed, to the broadcast MAC", patch(bad, 0, broadcastMAC[:]...)).passed(),
		fromUplink("malformed, in a VLAN", tagged).passed(),
		fromUplink("malformed, of another protocol", patch(bad, atEthertype, 0x88, 0xcc)).passed(),
		fromUplink("malformed, at a device that is no uplink", bad).given(none, remember).passed(),
		fromUplink("malformed, where the uplink has another MAC", bad).given(another, remember).passed(),
		fromUplink("malformed, where the uplink has no MAC", bad).given(nameless, remember).passed(),
		fromUplink("ARP", arpRequest(t, routerMAC, peer.ip4, uplink.ip4)).passed(),
	}
}

// xdpTunnelRows are senders and receivers of frames from a tunnel.
func xdpTunnelRows(t testing.TB) []row {
	closed := changeNetwork(openNet, func(n *Network) { n.ICC = false })
	return bothFamilies(func(v6 bool) []row {
		wrapped := func(k uint32, p packet) []byte { return arriving(false, key(k)).around(t, p.frame(t)) }
		in := between(remote, alice, v6, tcp(1, 2, "A"))
		out := func(name string, p packet) row { return outOfTunnel(name, wrapped(openKey, p)) }
		left := func(name string, p packet) row { return fromUplink(name, wrapped(openKey, p)).passed() }
		to := func(m mac) packet { p := in; p.to = m; return p }
		with := func(l4 transport) packet { p := in; p.l4 = l4; return p }
		wrongMAC, localMAC, wrongIP, large := in, in, in, in
		wrongMAC.from, localMAC.from, wrongIP.src = nobody.mac, bob.mac, bob.ip(v6)
		large.payload = string(make([]byte, 1000))
		largeSpoofed := wrongIP
		largeSpoofed.payload = large.payload
		fits := large
		fits.payload = large.payload[len(wrapped(openKey, large))-largestTaken:]
		tooLarge := fits
		tooLarge.payload += "x"
		first, _, last := inFragments(in)
		request, unlinked := between(remoteClient, server, v6, tcp(40000, 6379, "S")), between(remoteClient, server, v6, tcp(40000, 6380, "S"))
		asked := outOfTunnel("linked client", wrapped(closedKey, request)).delivered(server, request.frame(t))
		unsummed := in.frame(t)
		at := map[bool]int{false: atL4, true: atL4v6}[v6]
		unsummed = patch(unsummed, at+16, ^unsummed[at+16])
		rows := []row{
			out("TCP", in).delivered(alice, in.frame(t)),
			out("UDP", with(udp(1, 2))).delivered(alice, with(udp(1, 2)).frame(t)),
			out("to another", to(bob.mac)).delivered(bob, to(bob.mac).frame(t)),
			out("of the largest size", fits).delivered(alice, fits.frame(t)),
			left("larger", tooLarge),
			left("much larger", large),
			left("to an endpoint without NAPI", in).given(withoutNAPI, remember),
			out("to an endpoint with NAPI, beside one without", to(bob.mac)).delivered(bob, to(bob.mac).frame(t)).given(withoutNAPI, remember),
			left("without a driver", in).given(withoutDriver, remember),
			left("to the broadcast MAC", to(broadcastMAC)),
			left("to an unknown MAC", to(nobody.mac)),
			left("to the gateway", to(gatewayMAC)),
			left("back into the tunnel", to(remote.mac)),
			left("to another network", to(client.mac)),
			left("SCTP", with(sctp(1, 2))),
			left("echo", with(echo(v6, false, 1))),
			left("first fragment", first),
			left("last fragment", last),
			fromUplink("checksum not filled in yet", arriving(false, key(openKey)).around(t, unsummed)).passed(),
			out("address of a local endpoint", wrongIP).dropped("spoofed_overlay"),
			out("address of a local endpoint, in a large frame", largeSpoofed).dropped("spoofed_overlay"),
			out("address of a local endpoint, without a driver", wrongIP).given(withoutDriver, remember).dropped("spoofed_overlay"),
			out("unknown MAC, address of another", wrongMAC).dropped("spoofed_overlay"),
			out("local endpoint's MAC", localMAC).dropped("spoofed_overlay"),
			outOfTunnel("another network's key", wrapped(closedKey, in)).dropped("spoofed_overlay"),
			asked,
			outOfTunnel("linked client, next packet", wrapped(closedKey, request)).delivered(server, request.frame(t)).after(asked),
			outOfTunnel("unlinked port", wrapped(closedKey, unlinked)).dropped("policy"),
			out("ICC switched off", in).given(closed, remember).dropped("policy"),
			left("ICC switched off, larger", tooLarge).given(closed, remember),
		}
		if !v6 {
			zero := patch(with(udp(1, 2)).frame(t), atL4+6, 0, 0)
			reply := arp(t, remote.mac, alice.mac, layers.ARPReply, remote.mac, remote.ip4, alice.mac, alice.ip4)
			rows = append(rows, outOfTunnel("UDP without a checksum", arriving(false, key(openKey)).around(t, zero)).delivered(alice, zero),
				fromUplink("ARP", arriving(false, key(openKey)).around(t, reply)).passed())
		} else {
			zero := patch(with(udp(1, 2)).frame(t), atL4v6+6, 0, 0)
			rogue := in
			rogue.ttl, rogue.payload, rogue.l4 = 255, "", icmp6(routerAdvert, "0123456789")
			rows = append(rows, fromUplink("UDP without a checksum", arriving(false, key(openKey)).around(t, zero)).passed(),
				out("router advertisement", rogue).dropped("spoofed_overlay"))
		}
		return rows
	})
}

// xdpFormRows are all combinations of headers that a tunnel adds to frames.
func xdpFormRows(t testing.TB) []row {
	var rows []row
	for _, tunnel := range []uint32{plainForm4, plainForm6} {
		far, under := remoteBehind(tunnel, openNet), fmt.Sprintf("tunnel %d", tunnel)
		for _, v6 := range []bool{false, true} {
			inner := between(far, alice, v6, udp(1, 2)).frame(t)
			for fields := range 4 {
				w := cameOut(tunnel, openNet)
				w.checksum = fields&formChecksum != 0
				if fields&formSequence != 0 {
					w.sequence = key(7)
				}
				const padding = "padding of Ethernet"
				frame, name := w.around(t, inner), fmt.Sprintf("%s, IPv6 %v, fields %d", under, v6, fields)
				rows = append(rows, outOf(tunnel, name, frame).delivered(alice, inner),
					outOf(tunnel, name+", padded", slices.Concat(frame, []byte(padding))).delivered(alice, slices.Concat(inner, []byte(padding))))
			}
			rows = append(rows, xdpMarkRows(t, tunnel, v6)...)
		}
		for _, n := range []int{0, 1, 127, 128} {
			p := between(far, alice, false, udp(1, 2))
			p.payload = strings.Repeat("x", n)
			inner := p.frame(t)[:atL4+8+n]
			rows = append(rows, outOf(tunnel, fmt.Sprintf("%s, %d bytes", under, n), cameOut(tunnel, openNet).around(t, inner)).delivered(alice, inner))
		}
	}
	return append(rows, xdpRefusalRows(t)...)
}

// xdpMarkRows are the ECN marks of RFC 6040, figure 4.
func xdpMarkRows(t testing.TB, tunnel uint32, v6 bool) []row {
	var rows []row
	for inner := range uint8(4) {
		for outer := range uint8(4) {
			r := decapRow(t, tunnel, v6, inner, outer)
			r.name = fmt.Sprintf("IPv6 %v, %s", v6, r.name)
			rows = append(rows, r)
		}
	}
	p := between(remoteBehind(tunnel, openNet), alice, v6, tcp(1, 2, "A"))
	p.payload = string(make([]byte, largestTaken))
	around := cameOut(tunnel, openNet)
	around.class = ce
	return append(rows, fromUplink(fmt.Sprintf("IPv6 %v, congestion in a large frame out of tunnel %d", v6, tunnel), around.around(t, p.frame(t))).passed())
}

// xdpRefusalRows are refused GRE packets.
func xdpRefusalRows(t testing.TB) []row {
	var rows []row
	for _, v6 := range []bool{false, true} {
		tunnel, under := uint32(plainForm4), "IPv4"
		if v6 {
			tunnel, under = plainForm6, "IPv6"
		}
		inner := between(remoteBehind(tunnel, openNet), alice, false, udp(1, 2)).frame(t)
		with := func(change func(*wrapping)) []byte {
			w := cameOut(tunnel, openNet)
			change(&w)
			return w.around(t, inner)
		}
		refuse := func(name string, in []byte, reason string) row { return fromUplink(under+"/"+name, in).dropped(reason) }
		pass := func(name string, in []byte) row { return fromUplink(under+"/"+name, in).passed() }
		summed := with(func(w *wrapping) { w.checksum = true })
		unsummed := patch(summed, len(summed)-1, summed[len(summed)-1]^1)
		unknown := with(func(w *wrapping) { w.src = website.ip(v6) })
		other := func(w *wrapping) { w.inside = layers.EthernetTypeIPv4 }
		p := packet{
			from: routerMAC, to: uplinkMAC, src: tunnelPeer(tunnel), dst: uplink.ip(v6),
			l4: transport{protocol: layers.IPProtocolGRE}, payload: string(cameOut(tunnel, openNet).gre(inner)),
		}
		// cut shortens the frame to this many bytes of GRE, with matching
		// lengths.
		cut := func(frame []byte, length int) []byte {
			if v6 {
				return cutIPv6(t, frame, length)
			}
			return cutIPv4(t, frame, atL4-atIP+length)
		}
		first, _, last := inFragments(p)
		foreign := first
		foreign.src = website.ip(v6)
		large := cameOut(tunnel, openNet)
		large.key = key(strangeKey)
		rows = append(
			rows,
			refuse("unknown peer", unknown, "unknown_tunnel"),
			refuse("unknown peer, without a driver", unknown, "unknown_tunnel").given(withoutDriver, remember),
			pass("unknown peer, to another's MAC", patch(unknown, 0, alice.mac[:]...)),
			pass("another address of this host", with(func(w *wrapping) { w.dst = gatewayOf(openNet).ip(v6) })),
			pass("other GRE of an unknown peer", with(func(w *wrapping) { other(w); w.src = website.ip(v6) })),
			refuse("other GRE of a known peer", with(other), "bad_gre"),
			refuse("version 1", with(func(w *wrapping) { w.flags = 1 }), "bad_gre"),
			refuse("unknown key", with(func(w *wrapping) { w.key = key(strangeKey) }), "unknown_key"),
			refuse("unknown key, large", large.around(t, make([]byte, 1000)), "unknown_key"),
			refuse("a key of other tunnels", with(func(w *wrapping) { w.key = key(closedKey) }), "unknown_key"),
			refuse("a wrong byte with a checksum", unsummed, "bad_gre_checksum"),
			pass("a wrong byte with a checksum, without a driver", unsummed).given(withoutDriver, remember),
			refuse("first fragment", first.frame(t), "fragment"),
			refuse("last fragment", last.frame(t), "fragment"),
			pass("fragment of an unknown peer", foreign.frame(t)),
			pass("truncated inner header", cut(with(func(*wrapping) {}), 8+atIP+19)),
			pass("of an unknown protocol", cameOut(tunnel, openNet).around(t, patch(inner, atEthertype, 0x88, 0xcc))),
		)
	}
	return rows
}
