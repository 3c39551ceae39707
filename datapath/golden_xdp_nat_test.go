package datapath

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"

	"github.com/ebpnet/ebpnet/bpf"
)

// Published ports of withXDP, only for website.
const (
	someDNSPort    = 8153 // UDP, to alice's 53
	someHiddenPort = 8154 // TCP, to insider's 80
	someUplinkPort = 8155 // TCP, at the uplink's address, to alice's 80
	someAndAllPort = 8156 // TCP, to alice's 80; for everybody at the uplink's address
)

func publishedForSome() []Port {
	var ports []Port
	for _, v6 := range []bool{false, true} {
		anywhere := netip.IPv4Unspecified()
		if v6 {
			anywhere = netip.IPv6Unspecified()
		}
		for i, p := range []Port{
			{Address: anywhere, Protocol: protocolUDP, First: someDNSPort, Target: alice.ip(v6), TargetFirst: 53, Network: openNet, Endpoint: alice.id},
			{Address: anywhere, Protocol: protocolTCP, First: someHiddenPort, Target: insider.ip(v6), TargetFirst: 80, Network: internalNet, Endpoint: insider.id},
			{Address: uplink.ip(v6), Protocol: protocolTCP, First: someUplinkPort, Target: alice.ip(v6), TargetFirst: 80, Network: openNet, Endpoint: alice.id},
			{Address: anywhere, Protocol: protocolTCP, First: someAndAllPort, Target: alice.ip(v6), TargetFirst: 80, Network: openNet, Endpoint: alice.id},
			{Address: uplink.ip(v6), Protocol: protocolTCP, First: someAndAllPort, Target: alice.ip(v6), TargetFirst: 80, Network: openNet, Endpoint: alice.id},
		} {
			const forAll = 4
			p.ID, p.Last = uint32(p.First), p.First
			if i == forAll {
				p.ID++
			} else {
				p.AllowFrom = []netip.Prefix{netip.PrefixFrom(website.ip4, 24).Masked(), netip.PrefixFrom(website.ip6, 48).Masked()}
			}
			ports = append(ports, p)
		}
	}
	return ports
}

// xdpFlowRows are packets from an uplink in open flows.
func xdpFlowRows(t testing.TB) []row {
	return bothFamilies(func(v6 bool) []row {
		query := sentBy(t, alice, v6, udp(40000, 53))
		answer := incoming(v6, udp(53, 40000))
		in := func(name string, p packet) row { return fromUplink(name, p.frame(t)) }
		left := func(name string, p packet) row { return in(name, p).after(query).passed() }
		got := func(name string, p packet) row {
			return in(name, p).after(query).delivered(alice, translated(p, alice).frame(t))
		}
		stale, dying, other, toPlain := answer, answer, answer, answer
		stale.ttl, dying.ttl, other.src, toPlain.dst = 1, 2, peer.ip(v6), plain.ip(v6)
		dyingOut := translated(dying, alice)
		dyingOut.ttl = 1
		fits := answer
		fits.payload = strings.Repeat("x", largestTaken-map[bool]int{false: 42, true: 62}[v6])
		tooLarge := fits
		tooLarge.payload += "x"
		first, _, last := inFragments(answer)
		asked := incoming(v6, udp(40000, dnsPort))
		begun := in("", asked)
		arrived := reached(asked, alice, 53)
		told := fromEndpoint("", alice, replying(arrived, "").frame(t))
		at := map[bool]int{false: atL4, true: atL4v6}[v6] + 6
		unsummed := answer.frame(t)
		unsummed = patch(unsummed, at, ^unsummed[at])
		options := answer
		options.options = []byte{1, 4, 0, 0, 0, 0} // IPv6: PadN
		if !v6 {
			options.options = []byte{0x94, 4, 0, 0} // router alert: RFC 2113
		}
		open, shut := speaking(v6, 40000, netip.AddrPortFrom(website.ip(v6), 53))
		guest := outgoing(uplink, v6, udp(40000, 53))
		guest.from, guest.to = uplinkMAC, routerMAC
		forwarded := toUplink("", guest.frame(t))
		forwarded.skb.arrived = 1
		rows := []row{
			got("answer", answer),
			got("reply with options", options),
			in("reply, second packet", answer).after(query, in("", answer)).delivered(alice, translated(answer, alice).frame(t)),
			got("reply of the largest size", fits),
			left("larger", tooLarge),
			in("not masqueraded", toPlain).after(sentBy(t, plain, v6, udp(40000, 53))).delivered(plain, translated(toPlain, plain).frame(t)),
			in("published port, first packet", asked).passed(),
			in("published port, second packet", asked).after(begun).delivered(alice, arrived.frame(t)),
			in("published port, answered", asked).after(begun, told).delivered(alice, arrived.frame(t)),
			in("published port, source forbidden later", incoming(v6, udp(40000, someDNSPort))).
				after(in("", incoming(v6, udp(40000, someDNSPort)))).
				delivered(alice, reached(incoming(v6, udp(40000, someDNSPort)), alice, 53).frame(t)),
			in("TTL 2", dying).after(query).delivered(alice, dyingOut.frame(t)),
			left("TTL 1", stale),
			in("no flow", answer).passed(),
			left("from another host", other),
			left("from another port", incoming(v6, udp(54, 40000))),
			in("TCP", incoming(v6, tcp(80, 40000, "SA"))).after(sentBy(t, alice, v6, tcp(40000, 80, "S"))).passed(),
			in("TCP to a published port", incoming(v6, tcp(40000, webPort, "A"))).after(in("", incoming(v6, tcp(40000, webPort, "S")))).passed(),
			in("SCTP", incoming(v6, sctp(36, 40000))).after(sentBy(t, alice, v6, sctp(40000, 36))).passed(),
			in("echo", incoming(v6, echo(v6, true, 4007))).after(sentBy(t, alice, v6, echo(v6, false, 4007))).passed(),
			left("first fragment", first),
			in("last fragment", last).after(query, in("", first)).passed(),
			fromUplink("checksum not filled in yet", unsummed).after(query).passed(),
			left("without a driver", answer).given(withoutDriver, remember),
			left("without NAPI", answer).given(withoutNAPI, remember),
			left("endpoint deleted", answer).given(forget(alice.ip(v6)), remember),
			left("network made internal", answer).given(changeNetwork(openNet, func(n *Network) { n.Internal = true }), remember),
			in("of a guest that the host forwards for", answer).after(forwarded).passed(),
			in("of the host's own", answer).given(open, shut).passed(),
			fromUplink("to another's MAC", ethernet(answer, routerMAC, alice.mac).frame(t)).after(query).passed(),
		}
		if !v6 {
			zero := answer
			zero.l4.noChecksum = true
			rows = append(rows, got("without a checksum", zero))
		}
		return append(rows, checksumOfZero(t, v6, query, answer))
	})
}

// checksumOfZero is a reply whose checksum becomes zero by the translation. A
// checksum of zero is written as all ones: RFC 768.
func checksumOfZero(t testing.TB, v6 bool, query row, answer packet) row {
	at := map[bool]int{false: atL4, true: atL4v6}[v6] + 6
	answer.payload = "\x00\x00"
	out := translated(answer, alice).frame(t)
	// These two bytes make the sum of the packet all ones.
	answer.payload = string(out[at : at+2])
	want := patch(translated(answer, alice).frame(t), at, 0xff, 0xff)
	if got := binary.BigEndian.Uint16(answer.frame(t)[at:]); got == 0 || got == 0xffff {
		t.Fatalf("checksum %#x before the translation, want another", got)
	}
	return fromUplink("checksum that becomes zero", answer.frame(t)).after(query).delivered(alice, want)
}

// xdpPublishedRows are first packets to published ports.
func xdpPublishedRows(t testing.TB) []row {
	return bothFamilies(func(v6 bool) []row {
		loopback, elsewhere := netip.MustParseAddr("127.0.0.1"), sideways.ip4
		if v6 {
			loopback, elsewhere = netip.IPv6Loopback(), sideways.ip6
		}
		call := func(name string, src, dst netip.Addr, l4 transport) row {
			p := incoming(v6, l4)
			p.src, p.dst = src, dst
			return fromUplink(name, p.frame(t))
		}
		us, allowed, stranger := uplink.ip(v6), website.ip(v6), peer.ip(v6)
		syn := tcp(40000, restrictedPort, "S")
		refused := func(name string, src netip.Addr, l4 transport) row {
			return call(name, src, us, l4).dropped("source_not_allowed")
		}
		left := func(name string, src, dst netip.Addr, l4 transport) row { return call(name, src, dst, l4).passed() }
		open, shut := speaking(v6, someDNSPort, netip.AddrPortFrom(stranger, 40000))
		gone := func(t testing.TB, w *world) {
			if err := w.DeletePorts(w.wanted.Ports); err != nil {
				t.Fatal(err)
			}
		}
		forbidden := func(t testing.TB, w *world) {
			if err := replace(w.Maps.PortSources, map[bpf.EbpnetPortSourceKey]uint32{}); err != nil {
				t.Fatal(err)
			}
		}
		onlyPeer := func(t testing.TB, w *world) {
			wanted := w.wanted
			wanted.Ports = nil
			for _, p := range w.wanted.Ports {
				if p.AllowFrom != nil {
					p.AllowFrom = []netip.Prefix{netip.PrefixFrom(stranger, stranger.BitLen())}
				}
				wanted.Ports = append(wanted.Ports, p)
			}
			if err := w.Replace(wanted); err != nil {
				t.Fatal(err)
			}
		}
		first, _, last := inFragments(incoming(v6, syn))
		first.src, last.src = stranger, stranger
		large := incoming(v6, udp(40000, someDNSPort))
		large.src, large.payload = stranger, string(make([]byte, 1000))
		before := fromUplink("", incoming(v6, syn).frame(t))
		return []row{
			refused("TCP", stranger, syn),
			refused("TCP, ACK", stranger, tcp(40000, restrictedPort, "A")),
			refused("UDP", stranger, udp(40000, someDNSPort)),
			fromUplink("UDP, large", large.frame(t)).dropped("source_not_allowed"),
			refused("from the address before the allowed ones", neighborOf(allowed), syn),
			refused("without a driver", stranger, syn).given(withoutDriver, remember),
			refused("without NAPI", stranger, syn).given(withoutNAPI, remember),
			refused("at one address", stranger, tcp(40000, someUplinkPort, "S")),
			left("allowed", allowed, us, syn),
			left("allowed, UDP", allowed, us, udp(40000, someDNSPort)),
			left("for all", stranger, us, tcp(40000, webPort, "S")),
			left("for all at one address, for some at others", stranger, us, tcp(40000, someAndAllPort, "S")),
			left("of another protocol", stranger, us, udp(40000, restrictedPort)),
			left("another port", stranger, us, tcp(40000, restrictedPort+10, "S")),
			left("at another address than the published one", stranger, gatewayOf(openNet).ip(v6), tcp(40000, someUplinkPort, "S")),
			left("RST", stranger, us, tcp(40000, restrictedPort, "R")),
			left("SYN+ACK", stranger, us, tcp(40000, restrictedPort, "SA")),
			left("from the host's own address", us, us, syn),
			left("from a container's address", client.ip(v6), us, syn),
			left("from a loopback address", loopback, us, syn),
			left("at the loopback address", stranger, loopback, syn),
			left("at a gateway's address", stranger, gatewayOf(openNet).ip(v6), syn),
			left("at an address that is not the host's", stranger, elsewhere, syn),
			left("of an internal network", stranger, us, tcp(40000, someHiddenPort, "S")),
			left("of the host's own connection", stranger, us, udp(40000, someDNSPort)).given(open, shut),
			left("port deleted", stranger, us, syn).given(gone, remember),
			left("in a flow that still exists", allowed, us, syn).after(before).given(forbidden, remember),
			refused("source forbidden later", allowed, syn).after(before).given(onlyPeer, remember),
			fromUplink("first fragment", first.frame(t)).passed(),
			fromUplink("last fragment", last.frame(t)).passed(),
			fromUplink("to another's MAC", ethernet(incoming(v6, syn), routerMAC, alice.mac).frame(t)).passed(),
		}
	})
}
