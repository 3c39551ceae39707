package datapath

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"

	"github.com/ebpnet/ebpnet/bpf"
)

// The inner packet that fits at any reported path MTU, and how long a reported
// MTU is valid: bpf/tunnel.h.
const (
	leastPacket4 = 552
	leastPacket6 = 1280
	loweredFor   = 600 * time.Second
)

// The least MTU that IPv6 has: RFC 8200, section 5.
const leastMTU6 = 1280

// overhead returns the bytes that a tunnel adds before the inner IP packet,
// without the outer Ethernet header.
func overhead(around wrapping) int {
	length := len(around.gre(nil)) + 20 + atIP
	if around.dst.Is6() {
		length += 20
	}
	return length
}

// ofLength is p with a payload that gives the IP packet this length.
func ofLength(t testing.TB, p packet, length int) packet {
	p.payload = ""
	p.payload = string(make([]byte, length-len(ipPacket(p.frame(t)))))
	return p
}

// sizeRows are packets that fit into a tunnel or not, and the errors to their
// senders.
func sizeRows(t testing.TB) []row {
	rows := bothFamilies(func(v6 bool) []row {
		var rows []row
		for _, tunnel := range formTunnels() {
			if !isForm(tunnel.ID) {
				continue
			}
			for _, network := range carries(tunnel.ID) {
				rows = append(rows, fitRows(t, v6, tunnel.ID, network)...)
			}
		}
		for _, tunnel := range []uint32{keyedTunnel4, keyedTunnel6} {
			rows = append(rows, loweredRows(t, v6, tunnel)...)
			rows = append(rows, narrowUplinkRows(t, v6, tunnel)...)
		}
		return slices.Concat(rows, silentDropRows(t, v6), reportedDropRows(t, v6))
	})
	return slices.Concat(rows, forgedRows(t, false), forgedRows(t, true), ignoredErrorRows(t, false), ignoredErrorRows(t, true), arrivingErrorRows(t))
}

// fitRows are the largest packet that fits into a tunnel of withForms, and one
// that is a byte larger.
func fitRows(t testing.TB, v6 bool, tunnel, network uint32) []row {
	from, to := localOn(network), remoteBehind(tunnel, network)
	around := sentInto(tunnel, network)
	most := uplinkMTU - overhead(around)
	fits := ofLength(t, between(from, to, v6, udp(1, 2)), most)
	small := ofLength(t, fits, most+1) // DF is not set
	big := small
	big.whole = true
	by := ethernet(big, from.mac, gatewayMAC)
	name := func(what string) string { return fmt.Sprintf("%s tunnel %d of network %d", what, tunnel, network) }
	told := refusal(t, from, problemSize(v6, uint32(most)), big).frame(t)
	rows := []row{
		fromEndpoint(name("larger than fits"), from, big.frame(t)).refused("too_big", told),
		fromEndpoint(name("larger than fits, through the gateway"), from, by.frame(t)).refused("too_big", told),
	}
	if !v6 {
		small.fragment.id = datagramID
		around := ethernet(small, from.mac, gatewayMAC)
		copied := intoTunnelAs(small.frame(t), network, tunnel)
		marks := fragmentMarks(fragmentMark(most)|fragmentTunnel, 2)
		for _, r := range []row{
			fromEndpoint(name("larger than fits, without DF"), from, small.frame(t)),
			fromEndpoint(name("larger than fits, without DF, through the gateway"), from, around.frame(t)),
		} {
			r = r.floodedTo()
			r.out, r.fragments = copied, marks
			rows = append(rows, r)
		}
	}
	fitting := fromEndpoint(name("as large as fits"), from, fits.frame(t))
	if !detours(tunnel) {
		return append(rows, fitting.tunnelledBy(tunnel, around.around(t, fits.frame(t))))
	}
	mark := frameMark(network, tunnel)
	return append(rows,
		fitting.detoured(mark),
		toTunnel(name("as large as fits, after the detour"), mark, fits.frame(t)).tunnelledBy(tunnel, around.around(t, fits.frame(t))),
		toTunnel(name("larger than fits, after the detour"), mark, big.frame(t)).dropped("too_big"))
}

// silentDropRows are packets that are too big and cause no error.
func silentDropRows(t testing.TB, v6 bool) []row {
	big := ofLength(t, between(alice, remoteBehind(plainForm4, openNet), v6, udp(1, 2)), uplinkMTU)
	big.whole = true
	later := big
	later.fragment = fragmentAt(1)
	tooBigError := big
	tooBigError.l4 = problemPort(v6).about(t, between(remoteBehind(plainForm4, openNet), alice, v6, udp(2, 1)), wholePacket)
	spent := func(t testing.TB, w *world) { w.setBudget(t, alice, time.Minute) }
	left := func(t testing.TB, w *world) { w.setBudget(t, alice, 0) }
	rows := []row{
		fromEndpoint("later fragment, too big", alice, later.frame(t)).dropped("too_big"),
		fromEndpoint("ICMP error, too big", alice, tooBigError.frame(t)).dropped("too_big"),
		fromEndpoint("too big, over the limit of errors", alice, big.frame(t)).given(spent, left).dropped("too_big"),
	}
	groups := []string{"224.0.0.251", "255.255.255.255"}
	if v6 {
		groups = []string{"ff02::fb", "ff0e::5"}
	}
	for _, group := range groups {
		p := big
		p.dst = netip.MustParseAddr(group)
		rows = append(rows, fromEndpoint("to "+group+" at a MAC, too big", alice, p.frame(t)).dropped("too_big"))
	}
	if v6 {
		return rows
	}
	for _, tunnel := range []uint32{plainForm4, plainForm6} {
		far := remoteBehind(tunnel, openNet)
		most := uplinkMTU - overhead(sentInto(tunnel, openNet))
		answer := arp(t, alice.mac, far.mac, layers.ARPReply, alice.mac, alice.ip4, far.mac, far.ip4)
		padded := func(length int, with byte) []byte {
			return append(answer[:len(answer):len(answer)], bytes.Repeat([]byte{with}, atIP+length-len(answer))...)
		}
		fits := padded(most, 0)
		rows = append(rows,
			fromEndpoint(fmt.Sprintf("padded ARP into tunnel %d", tunnel), alice, fits).enters(tunnel, sentInto(tunnel, openNet).around(t, fits)),
			fromEndpoint(fmt.Sprintf("ARP padded with zeros, too big for tunnel %d", tunnel), alice, padded(most+1, 0)).dropped("too_big"),
			fromEndpoint(fmt.Sprintf("ARP padded with other bytes, too big for tunnel %d", tunnel), alice, padded(most+1, 0xff)).dropped("too_big"))
	}
	return rows
}

// reportedDropRows are packets other than TCP and UDP that are too big and
// cause an error.
func reportedDropRows(t testing.TB, v6 bool) []row {
	most := uplinkMTU - overhead(sentInto(plainForm4, openNet))
	big := ofLength(t, between(alice, remoteBehind(plainForm4, openNet), v6, udp(1, 2)), most+1)
	big.whole = true
	told := func(name string, p packet) row {
		return fromEndpoint(name, alice, p.frame(t)).refused("too_big", refusal(t, alice, problemSize(v6, uint32(most)), p).frame(t))
	}
	with := func(l4 transport) packet {
		p := big
		p.l4 = l4
		return ofLength(t, p, most+1)
	}
	urgent, first := big, big
	urgent.class, first.fragment.more = expedited, true
	return []row{
		told("too big, with a traffic class", urgent),
		told("first fragment, too big", ofLength(t, first, most+1)),
		told("TCP, too big", with(tcp(1, 2, "A"))),
		told("ping, too big", with(echo(v6, false, 7))),
		told("echo reply, too big", with(echo(v6, true, 7))),
		told("a protocol without ports, too big", with(transport{protocol: protocolESP})),
	}
}

// routerError is an ICMP error of a router about a packet of a tunnel.
func routerError(t testing.TB, name string, e problem, about []byte) row {
	v6 := about[0]>>4 == 6
	body := string(binary.BigEndian.AppendUint32(nil, e.value)) + string(about)
	p := packet{from: routerMAC, to: uplinkMAC, src: website.ip(v6), dst: uplink.ip(v6), l4: icmp4(e.icmp, body)}
	if v6 {
		p.l4 = icmp6(e.icmp, body)
	}
	p.l4.code = e.code
	return fromUplink(name, p.frame(t)).passed()
}

// quoted is the quote in such an error: up to the GRE header, with the fields
// of the tunnel.
func quoted(t testing.TB, around wrapping) []byte {
	return ipPacket(around.around(t, nil))
}

// reportMTU is an error that reports a path MTU for a tunnel.
func reportMTU(t testing.TB, tunnel uint32, mtu uint32) row {
	around := sentInto(tunnel, openNet)
	return routerError(t, "", problemSize(around.dst.Is6(), mtu), quoted(t, around))
}

// loweredRows are tunnels with a reported path MTU.
func loweredRows(t testing.TB, v6 bool, tunnel uint32) []row {
	room, least := overhead(sentInto(tunnel, openNet)), leastPacket4
	if v6 {
		least = leastPacket6
	}
	// narrow expects that the path MTU of the tunnel is mtu.
	narrow := func(what string, mtu uint32, change func(testing.TB, *world), before ...row) []row {
		most := min(max(int(mtu)-room, least), uplinkMTU-room)
		rows := mostRows(t, what, v6, tunnel, most)
		for i := range rows {
			rows[i] = rows[i].after(before...).given(change, nil)
		}
		return rows
	}
	// low does the same for a reported MTU, which is ignored if it is
	// impossible in IPv6.
	low := func(what string, mtu uint32, before ...row) []row {
		if overIPv6(tunnel) && mtu < leastMTU6 {
			mtu = uplinkMTU
		}
		return narrow(what, mtu, nil, before...)
	}
	reported := func(mtu uint32) row { return reportMTU(t, tunnel, mtu) }
	// exact is the path MTU that the smallest guaranteed packet needs.
	exact := uint32(least + room)
	then := map[bool]uint32{false: 68, true: 1400}[overIPv6(tunnel)]
	old := func(age time.Duration) func(testing.TB, *world) {
		return func(t testing.TB, w *world) { w.agePath(t, tunnel, age) }
	}
	const slack = 10 * time.Second
	other := map[bool]uint32{false: keyedTunnel6, true: keyedTunnel4}[overIPv6(tunnel)]
	return slices.Concat(
		narrow("reported 1400", 1400, nil, reported(1400)),
		narrow("reported 1400 and then more", 1400, nil, reported(1400), reported(1450)),
		narrow("reported 1400 and then less", 1300, nil, reported(1400), reported(1300)),
		low("reported as much as the guaranteed packet needs", exact, reported(exact)),
		low("reported a byte more", exact+1, reported(exact+1)),
		low("reported a byte less", exact-1, reported(exact-1)),
		low("reported the minimum of IPv6", leastMTU6, reported(leastMTU6)),
		low("reported less than the minimum of IPv6", leastMTU6-1, reported(leastMTU6-1)),
		low("reported the minimum of IPv4", 68, reported(68)),
		low("reported 1", 1, reported(1)),
		narrow("reported 1400 and then the minimum of IPv4", then, nil, reported(1400), reported(68)),
		narrow("reported the minimum of IPv4 and then 1400", then, nil, reported(68), reported(1400)),
		narrow("reported more than the uplink's MTU", uplinkMTU, nil, reported(9000)),
		narrow("reported 0", uplinkMTU, nil, reported(0)),
		narrow("reported for another tunnel", uplinkMTU, nil, reportMTU(t, other, 1400)),
		narrow("reported 1400, before the timeout", 1400, old(loweredFor-slack), reported(1400)),
		narrow("reported 1400, after the timeout", uplinkMTU, old(loweredFor), reported(1400)),
		narrow("more reported after the timeout", 1450, func(t testing.TB, w *world) {
			w.agePath(t, tunnel, loweredFor)
			w.send(t, reported(1450))
		}, reported(1400)),
	)
}

// mostRows are the longest packet that fits into a tunnel, and one that is a
// byte longer.
func mostRows(t testing.TB, what string, v6 bool, tunnel uint32, most int) []row {
	fits := ofLength(t, between(alice, remoteBehind(tunnel, openNet), v6, udp(1, 2)), most)
	big := ofLength(t, fits, most+1)
	big.whole = true
	name := func(size string) string { return fmt.Sprintf("%s, %s, tunnel %d", what, size, tunnel) }
	return []row{
		fromEndpoint(name("as large as fits"), alice, fits.frame(t)).
			tunnelledBy(tunnel, sentInto(tunnel, openNet).around(t, fits.frame(t))),
		fromEndpoint(name("larger"), alice, big.frame(t)).
			refused("too_big", refusal(t, alice, problemSize(v6, uint32(most)), big).frame(t)),
	}
}

// narrowUplinkRows are uplinks with a smaller MTU than the reported path MTU.
func narrowUplinkRows(t testing.TB, v6 bool, tunnel uint32) []row {
	const narrow = 1300 // a packet of leastPacket6 does not fit into a tunnel
	room := overhead(sentInto(tunnel, openNet))
	mtu := func(bytes int) func(testing.TB, *world) {
		return func(t testing.TB, w *world) { w.ns.Run(t, "ip", "link", "set", "up0", "mtu", fmt.Sprint(bytes)) }
	}
	var rows []row
	add := func(what string, most int, setup, undo func(testing.TB, *world), before ...row) {
		for _, r := range mostRows(t, what, v6, tunnel, most) {
			rows = append(rows, r.after(before...).given(setup, undo))
		}
	}
	add("narrow uplink", narrow-room, mtu(narrow), mtu(uplinkMTU))
	add("narrow uplink, more reported", narrow-room, mtu(narrow), mtu(uplinkMTU), reportMTU(t, tunnel, 1400))
	if !overIPv6(tunnel) && v6 {
		add("narrow uplink, minimum of IPv4 reported", narrow-room, mtu(narrow), mtu(uplinkMTU), reportMTU(t, tunnel, 68))
	}
	add("forwarding off", uplinkMTU-room, unrouted(uplinkMTU), routed)
	add("forwarding off, narrow uplink", narrow-room, unrouted(narrow), routed)
	add("forwarding off, 1400 reported", 1400-room, unrouted(uplinkMTU), routed, reportMTU(t, tunnel, 1400))
	return rows
}

// agePath makes the reported MTU of a tunnel older.
func (w *world) agePath(t testing.TB, tunnel uint32, by time.Duration) {
	t.Helper()
	var path bpf.EbpnetTunnelPath
	if err := w.Maps.TunnelPaths.Lookup(tunnel, &path); err != nil {
		t.Fatal(err)
	}
	path.Lowered -= uint64(by)
	if err := w.Maps.TunnelPaths.Put(tunnel, path); err != nil {
		t.Fatal(err)
	}
}

// forgedRows are errors that do not lower a tunnel's MTU.
func forgedRows(t testing.TB, v6 bool) []row {
	tunnel := map[bool]uint32{false: keyedTunnel4, true: keyedTunnel6}[v6]
	around := sentInto(tunnel, openNet)
	full := ofLength(t, between(alice, remoteBehind(tunnel, openNet), false, udp(1, 2)), uplinkMTU-overhead(around))
	e := problemSize(v6, 1400)
	var rows []row
	forged := func(name string, e problem, quote []byte) {
		rows = append(rows, fromEndpoint(fmt.Sprintf("forged over IPv6: %v/%s", v6, name), alice, full.frame(t)).
			after(routerError(t, "", e, quote)).tunnelledBy(tunnel, around.around(t, full.frame(t))))
	}
	with := func(change func(*wrapping)) []byte {
		w := around
		change(&w)
		return quoted(t, w)
	}
	good := quoted(t, around)
	protocol := map[bool]int{false: 9, true: 6}[v6] // offset of the protocol in the IP header
	forged("another remote", e, with(func(w *wrapping) { w.dst = tunnelPeer(tunnel).Next().Next().Next().Next() }))
	forged("another local address", e, with(func(w *wrapping) { w.src = website.ip(v6) }))
	forged("ends swapped", e, with(func(w *wrapping) { w.src, w.dst = w.dst, w.src }))
	forged("another key", e, with(func(w *wrapping) { w.key = key(strangeKey) }))
	forged("another tunnel's key", e, with(func(w *wrapping) { w.key = key(closedKey) }))
	forged("no key", e, with(func(w *wrapping) { w.key = nil }))
	forged("other GRE", e, with(func(w *wrapping) { w.inside = 0x0800 }))
	forged("not GRE", e, patch(good, protocol, protocolESP))
	forged("truncated before the key", e, good[:len(good)-4])
	forged("truncated before GRE", e, good[:len(good)-8])
	forged("no MTU", problemSize(v6, 0), good)
	forged("another error", problemPort(v6), good)
	late := problemTTL(v6)
	late.value = 1400
	forged("another error with a value", late, good)
	if !v6 {
		forged("options", e, patch(good, 0, 0x46))
	}
	return rows
}

// arrivingErrorRows are the same errors as they arrive, which the host
// processes too, for tunnels with all combinations of headers.
func arrivingErrorRows(t testing.TB) []row {
	const all4, all6 = firstForm + formChecksum + formSequence, firstForm + formChecksum + formSequence + formOverIPv6
	var rows []row
	for _, tunnel := range []uint32{all4, all6} {
		around := sentInto(tunnel, openNet)
		reported := reportMTU(t, tunnel, 1400)
		reported.name = fmt.Sprintf("about tunnel %d", tunnel)
		big := ofLength(t, between(alice, remoteBehind(tunnel, openNet), false, udp(1, 2)), 1400-overhead(around)+1)
		big.whole = true
		fits := ofLength(t, big, 1400-overhead(around))
		mark := frameMark(openNet, tunnel)
		rows = append(rows,
			reported,
			fromEndpoint(fmt.Sprintf("before the detour into tunnel %d", tunnel), alice, big.frame(t)).after(reported).
				refused("too_big", refusal(t, alice, problemSize(false, uint32(1400-overhead(around))), big).frame(t)),
			toTunnel(fmt.Sprintf("after the detour into tunnel %d", tunnel), mark, big.frame(t)).after(reported).dropped("too_big"),
			toTunnel(fmt.Sprintf("after the detour into tunnel %d, as large as fits", tunnel), mark, fits.frame(t)).after(reported).
				tunnelledBy(tunnel, around.around(t, fits.frame(t))))
	}
	keyless := sentInto(keylessTunnel4, plainNet)
	big := ofLength(t, between(plain, remoteBehind(keylessTunnel4, plainNet), false, udp(1, 2)), 1400-overhead(keyless)+1)
	big.whole = true
	return append(rows,
		fromEndpoint("about a packet without a key", plain, big.frame(t)).
			after(routerError(t, "", problemSize(false, 1400), quoted(t, keyless))).
			refused("too_big", refusal(t, plain, problemSize(false, uint32(1400-overhead(keyless))), big).frame(t)))
}
