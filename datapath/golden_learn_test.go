package datapath

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"

	"github.com/ebpnet/ebpnet/bpf"
)

// The timeouts of a learned station and of its address: bpf/config.h.
const (
	learnedFor = 300 * time.Second
	addressFor = 7440 * time.Second // as long as its flows
)

// seen is a frame to alice that makes the datapath learn a station. It comes
// from behind the station's trunk, or from a tunnel.
func seen(t testing.TB, h host, v6 bool, tunnel uint32) row {
	frame := between(h, alice, v6, udp(1, 2)).frame(t)
	if h.device != "" {
		return fromEndpoint("", h, frame)
	}
	return fromTunnel(t, "", tunnel, frame)
}

// reaches is a frame of alice to a station.
func reaches(t testing.TB, name string, h host, v6 bool) row {
	return fromEndpoint(name, alice, between(alice, h, v6, udp(1, 2)).frame(t))
}

// found expects that the station is learned. unknown expects that it is not.
func (r row) found(t testing.TB, h host, tunnel uint32) row {
	if h.device != "" {
		return r.delivered(h, nil)
	}
	return r.tunnelledBy(tunnel, intoTunnel(t, tunnel, r.in))
}

func (r row) unknown() row { return r.floodedTo(trunk, otherTrunk).into(theTunnel, sixTunnel) }

// learnRows are frames from and to learned stations.
func learnRows(t testing.TB) []row {
	return bothFamilies(func(v6 bool) []row {
		return slices.Concat(placeRows(t, v6), learnedPairRows(t, v6), ageRows(t, v6), shareRows(t, v6), notLearnedRows(t, v6))
	})
}

// placeRows are stations that move: frames go to the place where the MAC was
// seen last.
func placeRows(t testing.TB, v6 bool) []row {
	const n = 90
	places := []struct {
		name   string
		at     host
		tunnel uint32
	}{
		{"a tunnel", stranger(host{}, n), theTunnel},
		{"a tunnel over IPv6", stranger(host{}, n), sixTunnel},
		{"a trunk", stranger(trunk, n), 0},
		{"another trunk", stranger(otherTrunk, n), 0},
	}
	var rows []row
	for _, is := range places {
		now := seen(t, is.at, v6, is.tunnel)
		rows = append(rows, reaches(t, "behind "+is.name, is.at, v6).after(now).found(t, is.at, is.tunnel))
		for _, was := range places {
			if was.name != is.name {
				rows = append(rows, reaches(t, fmt.Sprintf("moved from %s to %s", was.name, is.name), is.at, v6).
					after(seen(t, was.at, v6, was.tunnel), now).found(t, is.at, is.tunnel))
			}
		}
	}
	return rows
}

// learnedPairRows are frames from one learned station to another.
func learnedPairRows(t testing.TB, v6 bool) []row {
	here, far := stranger(trunk, 90), stranger(host{}, 91)
	there, farther := stranger(otherTrunk, 92), stranger(host{}, 93)
	sends := func(from, to host) []byte { return between(from, to, v6, udp(1, 2)).frame(t) }
	seenHere, seenFar := seen(t, here, v6, 0), seen(t, far, v6, theTunnel)
	neighbor := stranger(trunk, 94)
	consumed := func(name string, from, to host) row {
		r := fromEndpoint(name, from, sends(from, to)).dropped("")
		return r.after(seenHere, seen(t, neighbor, v6, 0))
	}
	spokenTo := fromEndpoint("", alice, between(alice, far, v6, udp(3, 4)).frame(t))
	return []row{
		reaches(t, "a station that was never seen", far, v6).unknown(),
		reaches(t, "a station that has only received", far, v6).after(spokenTo).unknown(),
		fromTunnel(t, "out of a tunnel to a station behind a trunk", theTunnel, sends(far, here)).after(seenHere).delivered(here, sends(far, here)),
		fromTunnel(t, "out of a tunnel to a station that was never seen", theTunnel, sends(far, there)).after(seenHere).
			floodedAs(sends(far, there), trunk, otherTrunk),
		fromTunnel(t, "out of a tunnel to a station behind another tunnel", sixTunnel, sends(farther, far)).after(seenFar).dropped("unknown_destination"),
		fromTunnel(t, "out of a tunnel to a station behind the same tunnel", theTunnel, sends(farther, far)).after(seenFar).dropped("unknown_destination"),
		fromEndpoint("from behind a trunk to a station behind another trunk", there, sends(there, here)).after(seenHere).delivered(here, nil),
		fromEndpoint("from behind a trunk to a station behind a tunnel", here, sends(here, far)).after(seenFar).
			tunnelled(intoTunnel(t, theTunnel, sends(here, far))),
		consumed("to a station behind the same trunk", neighbor, here),
		consumed("from behind a trunk to the trunk itself", here, trunk),
		consumed("of a trunk to a station behind it", trunk, here),
		fromEndpoint("of a trunk to a station behind another trunk", otherTrunk, sends(otherTrunk, here)).after(seenHere).delivered(here, nil),
		fromEndpoint("from another network", client, sends(client, far)).after(seenFar).dropped("policy"),
	}
}

// age makes all learned entries older.
func age(by time.Duration) func(testing.TB, *world) {
	return func(t testing.TB, w *world) {
		stations := map[bpf.EbpnetFdbKey]bpf.EbpnetLearned{}
		neighbors := map[bpf.EbpnetAddress]bpf.EbpnetLearned{}
		older := func(l bpf.EbpnetLearned) bpf.EbpnetLearned { l.Seen -= uint64(by); return l }
		for _, err := range []error{
			dumpTable(w.Maps.LearnedFdb, func(k bpf.EbpnetFdbKey, l bpf.EbpnetLearned) { stations[k] = older(l) }),
			dumpTable(w.Maps.LearnedNeigh, func(k bpf.EbpnetAddress, l bpf.EbpnetLearned) { neighbors[k] = older(l) }),
			putAll(w.Maps.LearnedFdb, stations),
			putAll(w.Maps.LearnedNeigh, neighbors),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}

// ageRows are stations that were not seen for some time.
func ageRows(t testing.TB, v6 bool) []row {
	far, here := stranger(host{}, 90), stranger(trunk, 90)
	seenFar, seenHere := seen(t, far, v6, theTunnel), seen(t, here, v6, 0)
	const slack = 10 * time.Second
	again := func(r row) func(testing.TB, *world) {
		return func(t testing.TB, w *world) {
			age(learnedFor)(t, w)
			w.send(t, r)
		}
	}
	return []row{
		reaches(t, "behind a tunnel, before the timeout", far, v6).after(seenFar).given(age(learnedFor-slack), nil).found(t, far, theTunnel),
		reaches(t, "behind a tunnel, after the timeout", far, v6).after(seenFar).given(age(learnedFor), nil).unknown(),
		reaches(t, "behind a tunnel, seen again", far, v6).after(seenFar).given(again(seenFar), nil).found(t, far, theTunnel),
		reaches(t, "behind a trunk, before the timeout", here, v6).after(seenHere).given(age(learnedFor-slack), nil).found(t, here, 0),
		reaches(t, "behind a trunk, after the timeout", here, v6).after(seenHere).given(age(learnedFor), nil).unknown(),
		reaches(t, "behind a trunk, seen again", here, v6).after(seenHere).given(again(seenHere), nil).found(t, here, 0),
		reaches(t, "behind a tunnel, after the timeout, then seen elsewhere", here, v6).after(seenFar).given(again(seenHere), nil).found(t, here, 0),
	}
}

// notLearnedRows are refused frames. Their senders are not learned.
func notLearnedRows(t testing.TB, v6 bool) []row {
	far := stranger(host{}, 90)
	good := between(far, alice, v6, udp(1, 2))
	withSource := func(a netip.Addr) []byte {
		p := good
		p.src = a
		return p.frame(t)
	}
	var rows []row
	notLearned := func(name string, r row) {
		rows = append(rows, reaches(t, "after "+name, far, v6).after(r).unknown())
	}
	out := func(frame []byte) row { return fromTunnel(t, "", theTunnel, frame) }
	notLearned("an endpoint's address", out(withSource(bob.ip(v6))))
	notLearned("the gateway's address", out(withSource(gatewayOf(openNet).ip(v6))))
	notLearned("an unknown protocol", out(patch(good.frame(t), atEthertype, 0x88, 0xcc)))
	notLearned("a malformed packet", out(patch(good.frame(t), atIP, 0x25)))
	notLearned("an unknown key", fromUplink("", arriving(false, key(strangeKey)).around(t, good.frame(t))))
	notLearned("an unknown peer", fromUplink("", patch(arriving(false, key(openKey)).around(t, good.frame(t)), atIP+15, 99)))
	notLearned("another network's key", fromUplink("", arriving(false, key(closedKey)).around(t, good.frame(t))))
	notLearned("an address of a trunk's neighbor", fromEndpoint("", trunk, withSource(bob.ip(v6))))
	// Without ICC, only known stations may send.
	closed := func(says row) func(testing.TB, *world) {
		return func(t testing.TB, w *world) {
			changeNetwork(openNet, func(n *Network) { n.ICC = false })(t, w)
			w.send(t, says)
			changeNetwork(openNet, func(*Network) {})(t, w)
		}
	}
	here := stranger(trunk, 90)
	toGateway := fromEndpoint("", here, outgoing(here, v6, udp(40000, 53)).frame(t))
	rows = append(rows,
		reaches(t, "after a frame without ICC", far, v6).given(closed(out(good.frame(t))), remember).unknown(),
		reaches(t, "after a frame from behind a trunk without ICC", here, v6).given(closed(seen(t, here, v6, 0)), remember).unknown(),
		reaches(t, "after a frame from behind a trunk to the gateway without ICC", here, v6).given(closed(toGateway), remember).unknown())
	return append(rows, staticRows(t, v6)...)
}

// staticRows are MACs with static entries. No other station can take them.
func staticRows(t testing.TB, v6 bool) []row {
	gateway := gatewayOf(openNet)
	stolen := func(what string, of host, tunnel uint32) []row {
		by := of
		by.device = ""
		taken := between(by, alice, v6, udp(1, 2))
		taken.src = stranger(host{}, 90).ip(v6)
		return []row{
			fromTunnel(t, what+" out of a tunnel", tunnel, taken.frame(t)).dropped("spoofed_overlay"),
			fromEndpoint(what+" from behind a trunk", trunk, taken.frame(t)).dropped("spoofed_mac"),
		}
	}
	bobs := between(bob, alice, v6, udp(1, 2)).frame(t)
	remotes := between(remote, alice, v6, udp(1, 2)).frame(t)
	rows := slices.Concat(
		stolen("an endpoint's MAC", bob, theTunnel),
		stolen("the gateway's MAC", gateway, theTunnel),
		stolen("the MAC of a station behind another tunnel", remote, sixTunnel),
		stolen("another trunk's MAC", otherTrunk, theTunnel),
	)
	asGroup := between(stranger(host{}, 90), alice, v6, udp(1, 2))
	asGroup.from[0] |= 1
	rows = append(rows,
		reaches(t, "an endpoint whose MAC others have used", bob, v6).after(fromTunnel(t, "", theTunnel, bobs), fromEndpoint("", trunk, bobs)).
			delivered(bob, nil),
		reaches(t, "a station behind a tunnel whose MAC others have used", remote, v6).
			after(fromTunnel(t, "", sixTunnel, remotes), fromEndpoint("", trunk, remotes)).
			tunnelled(intoTunnel(t, theTunnel, between(alice, remote, v6, udp(1, 2)).frame(t))),
		fromTunnel(t, "a group's MAC out of a tunnel", theTunnel, asGroup.frame(t)).dropped("malformed"),
		fromEndpoint("a group's MAC from behind a trunk", trunk, asGroup.frame(t)).dropped("malformed"),
	)
	return append(rows, overlayGuardRows(t, v6)...)
}

// invalidSources are addresses that no packet may come from: group,
// broadcast, reserved and loopback addresses.
func invalidSources(v6 bool) []netip.Addr {
	texts := []string{"224.0.0.251", "239.1.2.3", "240.0.0.1", "255.255.255.255", "127.0.0.1", "127.255.255.254"}
	if v6 {
		texts = []string{"ff02::fb", "ff0e::5", "::1"}
	}
	var all []netip.Addr
	for _, text := range texts {
		all = append(all, netip.MustParseAddr(text))
	}
	return all
}

// overlayGuardRows are packets of a learned station from a tunnel, allowed and
// refused.
func overlayGuardRows(t testing.TB, v6 bool) []row {
	far := stranger(host{}, 90)
	says := func(name string, frame []byte) row { return fromTunnel(t, name, theTunnel, frame) }
	from := func(a netip.Addr) []byte {
		p := between(far, alice, v6, udp(1, 2))
		p.src = a
		return p.frame(t)
	}
	let := func(name string, frame []byte) row { return says(name, frame).delivered(alice, frame) }
	spoofed := func(name string, frame []byte) row { return says(name, frame).dropped("spoofed_overlay") }
	rows := []row{
		let("own address", from(far.ip(v6))),
		let("an unused address", from(nobody.ip(v6))),
		let("an address outside", from(website.ip(v6))),
		spoofed("an endpoint's address", from(bob.ip(v6))),
		spoofed("the address of the receiver", from(alice.ip(v6))),
		spoofed("a known remote's address", from(remote.ip(v6))),
		spoofed("the gateway's address", from(gatewayOf(openNet).ip(v6))),
		spoofed("an address of another network's", from(client.ip(v6))),
	}
	for _, a := range invalidSources(v6) {
		known := between(remote, alice, v6, udp(1, 2))
		known.src = a
		rows = append(rows, spoofed("from "+a.String(), from(a)), spoofed("a known remote from "+a.String(), known.frame(t)))
	}
	if v6 {
		return append(rows, overlayNDRows(t, far, let, spoofed)...)
	}
	tells := func(frame, sender mac, ip netip.Addr) []byte {
		return arp(t, frame, alice.mac, layers.ARPReply, sender, ip, alice.mac, alice.ip4)
	}
	for _, a := range invalidSources(v6) {
		rows = append(rows, spoofed("ARP from "+a.String(), tells(far.mac, far.mac, a)))
	}
	return append(rows,
		let("no address", from(netip.IPv4Unspecified())),
		let("ARP", tells(far.mac, far.mac, far.ip4)),
		spoofed("ARP about another MAC", tells(far.mac, bob.mac, far.ip4)),
		spoofed("ARP about an endpoint's address", tells(far.mac, far.mac, bob.ip4)),
		spoofed("ARP about the gateway's address", tells(far.mac, far.mac, gatewayOf(openNet).ip4)),
		spoofed("ARP of a known remote about another's address", tells(remote.mac, remote.mac, far.ip4)),
		let("ARP probe of a known remote", tells(remote.mac, remote.mac, netip.IPv4Unspecified())),
		let("ARP of a known remote", tells(remote.mac, remote.mac, remote.ip4)),
		let("ARP probe", tells(far.mac, far.mac, netip.IPv4Unspecified())),
		says("ARP of another hardware", patch(tells(far.mac, far.mac, far.ip4), atIP, 0, 2)).dropped("malformed"),
		says("truncated ARP", tells(far.mac, far.mac, far.ip4)[:atIP+27]).dropped("malformed"),
	)
}

// overlayNDRows are link-local addresses and ND.
func overlayNDRows(t testing.TB, far host, let, spoofed func(string, []byte) row) []row {
	from := func(by mac, a netip.Addr) []byte {
		p := between(far, alice, true, udp(1, 2))
		p.from, p.src = by, a
		return p.frame(t)
	}
	nd := func(by host, kind uint8, body string) []byte {
		p := between(by, alice, true, icmp6(kind, body))
		p.ttl, p.payload = 255, ""
		return p.frame(t)
	}
	opaque := netip.MustParseAddr("fe80::1234:5678:9abc:def0") // RFC 7217
	advert := func(by host, target netip.Addr) []byte {
		return nd(by, neighborAnswer, ndBody(ndOverride, target, ndOption(optionTargetMAC, by.mac)))
	}
	return []row{
		let("no address", from(far.mac, netip.IPv6Unspecified())),
		let("own link-local address", from(far.mac, linkLocal(far.mac))),
		let("a link-local address of an unused MAC", from(far.mac, linkLocal(nobody.mac))),
		let("a link-local address of no MAC", from(far.mac, opaque)),
		spoofed("an endpoint's link-local address", from(far.mac, linkLocal(bob.mac))),
		spoofed("the gateway's link-local address", from(far.mac, linkLocal(gatewayMAC))),
		spoofed("a known remote with a link-local address of no MAC", from(remote.mac, opaque)),
		let("a known remote with no address", from(remote.mac, netip.IPv6Unspecified())),
		let("NA", advert(far, far.ip6)),
		let("NA for the link-local address", advert(far, linkLocal(far.mac))),
		spoofed("NA for an endpoint's address", advert(far, bob.ip6)),
		spoofed("NA for an endpoint's link-local address", advert(far, linkLocal(bob.mac))),
		spoofed("NA for the gateway", advert(far, gatewayOf(openNet).ip6)),
		spoofed("NA for a group", advert(far, netip.MustParseAddr("ff02::1"))),
		spoofed("NA for the loopback address", advert(far, netip.IPv6Loopback())),
		spoofed("NA for no address", advert(far, netip.IPv6Unspecified())),
		spoofed("NA for its IPv4 address", advert(far, netip.AddrFrom16(far.ip4.As16()))),
		spoofed("NA of a known remote for another's address", advert(remote, far.ip6)),
		let("NS", nd(far, neighborAsk, ndBody(0, alice.ip6, ndOption(optionSourceMAC, far.mac)))),
		let("router solicitation", nd(far, routerSolicit, "\x00\x00\x00\x00")),
		spoofed("router advertisement", nd(far, routerAdvert, "0123456789")),
		spoofed("redirect", nd(far, redirect6, "0123456789")),
		spoofed("multicast query", nd(far, mldQuery, "0123456789abcdefghij")),
	}
}
