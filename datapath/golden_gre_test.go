package datapath

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket/layers"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// sample is a frame with a name.
type sample struct {
	name  string
	frame []byte
}

// innerFrames returns a frame of every kind that a tunnel carries.
func innerFrames(t testing.TB, from, to host) []sample {
	odd4, odd6 := between(from, to, false, udp(1, 2)), between(from, to, true, udp(1, 2))
	odd4.payload, odd6.payload = "0123456789abcdefghij!", "!"
	long := odd4
	long.payload = string(make([]byte, 700)) + "longer than a few steps of the checksum"
	return []sample{
		{"IPv4", between(from, to, false, udp(1, 2)).frame(t)},
		{"IPv4 of odd length", odd4.frame(t)},
		{"IPv4, long", long.frame(t)},
		{"IPv6", between(from, to, true, udp(1, 2)).frame(t)},
		{"IPv6 of odd length", odd6.frame(t)},
		{"ARP", arp(t, from.mac, to.mac, layers.ARPReply, from.mac, from.ip4, to.mac, to.ip4)},
	}
}

func isARP(frame []byte) bool {
	return layers.EthernetType(binary.BigEndian.Uint16(frame[atEthertype:])) == layers.EthernetTypeARP
}

// enters is tunnelledBy for a tunnel of withForms, where ARP takes the detour
// with its outer headers.
func (r row) enters(tunnel uint32, out []byte) row {
	if isARP(r.in) {
		r.mark = packetMark
	}
	return r.tunnelledBy(tunnel, out)
}

func greRows(t testing.TB) []row {
	rows := append(greOutRows(t), greDetourRows(t)...)
	rows = append(rows, greInRows(t)...)
	rows = append(rows, overIPv6Rows(t)...)
	for _, v6 := range []bool{false, true} {
		rows = append(rows, greRefusalRows(t, v6)...)
	}
	return rows
}

// greOutRows are the outer headers of each kind of tunnel for each kind of
// frame.
func greOutRows(t testing.TB) []row {
	var rows []row
	for _, tunnel := range formTunnels() {
		for _, network := range carries(tunnel.ID) {
			from, to := localOn(network), remoteBehind(tunnel.ID, network)
			around := sentInto(tunnel.ID, network)
			around.ttl = tunnel.TTL
			for _, inner := range innerFrames(t, from, to) {
				name := fmt.Sprintf("into tunnel %d of network %d/%s", tunnel.ID, network, inner.name)
				out := around.around(t, inner.frame)
				r := fromEndpoint(name, from, inner.frame)
				switch {
				case detours(tunnel.ID):
					mark := frameMark(network, tunnel.ID)
					rows = append(rows, r.detoured(mark), toTunnel(name+", after the detour", mark, inner.frame).enters(tunnel.ID, out))
				case tunnel.ID == fragmentable4:
					r = r.enters(tunnel.ID, nil)
					r.outOf = withAnyID(out)
					rows = append(rows, r)
				default:
					rows = append(rows, r.enters(tunnel.ID, out))
				}
			}
		}
	}
	return rows
}

// withAnyID is out, an IPv4 packet without DF, with the identifier of the
// output.
func withAnyID(out []byte) func([]byte) []byte {
	return func(got []byte) []byte {
		want := patch(out, atIP+4, got[atIP+4], got[atIP+5], 0, 0)
		binary.BigEndian.PutUint16(want[atIP+10:], 0)
		binary.BigEndian.PutUint16(want[atIP+10:], internetChecksum(want[atIP:atL4]))
		return want
	}
}

// labelOf returns the outer flow label of a frame: RFC 8200, section 3.
func labelOf(frame []byte) uint32 { return binary.BigEndian.Uint32(frame[atIP:]) & 0xfffff }

// withAnyLabel is out, a packet in a tunnel over IPv6, with the flow label of
// the output. The label must not be zero: RFC 6438. TestFlowLabels checks its
// other properties.
func withAnyLabel(out, got []byte) []byte {
	if out[atEthertype] != 0x86 || len(got) < atL4v6 || labelOf(got) == 0 {
		return out
	}
	return patch(out, atIP+1, out[atIP+1]&0xf0|got[atIP+1]&0x0f, got[atIP+2], got[atIP+3])
}

// TestFlowLabels checks that all packets of a flow into a tunnel over IPv6 have
// the same label, also its fragments, and that different flows have different
// labels.
func TestFlowLabels(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	w := newWorld(t, loadPinned)
	withForms(&w.wanted)
	remember(t, w)
	const tunnels = 2 // the second one takes the detour
	for i, tunnel := range [tunnels]uint32{plainForm6, firstForm + formChecksum + formOverIPv6} {
		send := func(p packet) uint32 {
			t.Helper()
			r := fromEndpoint("", alice, p.frame(t))
			if i > 0 {
				r = toTunnel("", frameMark(openNet, tunnel), p.frame(t))
			}
			r.out = sentInto(tunnel, openNet).around(t, p.frame(t))
			_, out := w.run(t, w.program(r.hook), r.device, r.in, r.skb)
			if want := withAnyLabel(r.out, out); string(out) != string(want) || labelOf(out) == 0 {
				t.Fatalf("wrong packet (-want +got):\n%s", cmp.Diff(hex.Dump(want), hex.Dump(out)))
			}
			return labelOf(out)
		}
		for _, v6 := range []bool{false, true} {
			labels := map[uint32]bool{}
			const flows = 16
			for port := range uint16(flows) {
				p := between(alice, remoteBehind(tunnel, openNet), v6, udp(1000+port, 53))
				label := send(p)
				p.payload += " and more"
				p.class = expedited
				if again := send(p); again != label {
					t.Errorf("labels %#x and %#x for one flow", label, again)
				}
				labels[label] = true
			}
			if len(labels) < flows/2 {
				t.Errorf("IPv6 %t: %d labels for %d flows", v6, len(labels), flows)
			}
			first := between(alice, remoteBehind(tunnel, openNet), v6, udp(1, 2))
			first.payload = "16 bytes of this"
			later := first
			first.fragment.more, first.fragment.id, later.fragment.id, later.fragment.offset = true, 7, 7, 3
			if a, b := send(first), send(later); a != b {
				t.Errorf("IPv6 %t: labels %#x and %#x for fragments of one datagram", v6, a, b)
			}
		}
	}
}

// greDetourRows are packets at the near end of the host's veth.
func greDetourRows(t testing.TB) []row {
	const numbered, unknown, both = firstForm + formSequence, 999, firstForm + formSequence + formChecksum
	p := between(alice, remoteBehind(numbered, openNet), false, udp(1, 2))
	third := sentInto(numbered, openNet)
	third.sequence = key(2)
	step := toTunnel("", frameMark(openNet, numbered), p.frame(t))
	question := arpRequest(t, alice.mac, alice.ip4, nobody.ip4)
	wrapped := sentInto(plainForm4, openNet).around(t, question)
	astray := leaving(false, key(openKey))
	astray.dst = refused.ip4
	toSelf := leaving(false, key(openKey))
	toSelf.dst = uplink.ip4
	other := toTunnel("with a foreign mark", strangeMark, p.frame(t)).passed()
	other.mark = strangeMark
	broken := patch(p.frame(t), atIP, 0x65)
	closed := func(t testing.TB, w *world) {
		if err := w.DeleteTunnel(tunnelOf(w, numbered), true); err != nil {
			t.Fatal(err)
		}
	}
	return []row{
		toTunnel("without a mark", 0, p.frame(t)).passed(),
		other,
		toTunnel("the third with a sequence number", frameMark(openNet, numbered), p.frame(t)).after(step, step).
			enters(numbered, third.around(t, p.frame(t))),
		toTunnel("ARP with outer headers", packetMark, wrapped).redirected(wrapped),
		toTunnel("ARP with outer headers, over IPv6", packetMark, sentInto(plainForm6, openNet).around(t, question)).redirected(nil),
		toTunnel("ARP with outer headers, without a route", packetMark, astray.around(t, question)).dropped("no_route"),
		toTunnel("ARP with outer headers to this host", packetMark, toSelf.around(t, question)).dropped("no_route"),
		toTunnel("ARP, with checksum and sequence number", frameMark(plainNet, both), arpRequest(t, plain.mac, plain.ip4, nobody.ip4)).
			enters(both, sentInto(both, plainNet).around(t, arpRequest(t, plain.mac, plain.ip4, nobody.ip4))),
		toTunnel("of no tunnel", frameMark(openNet, unknown), p.frame(t)).dropped("unknown_tunnel"),
		toTunnel("of a tunnel that was just deleted", frameMark(openNet, numbered), p.frame(t)).given(closed, remember).dropped("unknown_tunnel"),
		toTunnel("of no network", frameMark(1023, 1023), p.frame(t)).dropped("unknown_tunnel"),
		toTunnel("malformed", frameMark(openNet, numbered), broken).dropped("malformed"),
	}
}

func tunnelOf(w *world, id uint32) Tunnel {
	for _, t := range w.wanted.Tunnels {
		if t.ID == id {
			return t
		}
	}
	return Tunnel{}
}

// greInRows are each kind of frame in each combination of GRE fields that a
// peer may send.
func greInRows(t testing.TB) []row {
	var rows []row
	for _, tunnel := range []uint32{plainForm4, plainForm6} {
		for _, network := range carries(tunnel) {
			from, to := remoteBehind(tunnel, network), localOn(network)
			for fields := range 4 {
				w := cameOut(tunnel, network)
				w.checksum = fields&formChecksum != 0
				if fields&formSequence != 0 {
					w.sequence = key(0xfffffffe)
				}
				for _, inner := range innerFrames(t, from, to) {
					name := fmt.Sprintf("out of tunnel %d of network %d, with fields %d/%s", tunnel, network, fields, inner.name)
					frame := w.around(t, inner.frame)
					const padding = "padding of Ethernet"
					rows = append(rows,
						outOf(tunnel, name, frame).delivered(to, inner.frame),
						outOf(tunnel, name+", padded", append(frame[:len(frame):len(frame)], padding...)).
							delivered(to, append(inner.frame[:len(inner.frame):len(inner.frame)], padding...)))
				}
			}
		}
	}
	zero, keyless := remoteBehind(zeroTunnel, internalNet), remoteBehind(zeroTunnel, plainNet)
	fromZero, fromKeyless := between(zero, insider, false, udp(1, 2)).frame(t), between(keyless, plain, false, udp(1, 2)).frame(t)
	for _, tunnel := range []uint32{plainForm4, plainForm6} {
		far := remoteBehind(tunnel, openNet)
		padded := arp(t, far.mac, alice.mac, layers.ARPReply, far.mac, far.ip4, alice.mac, alice.ip4)
		rows = append(rows, outOf(tunnel, fmt.Sprintf("ARP without padding, out of tunnel %d", tunnel),
			cameOut(tunnel, openNet).around(t, padded[:atIP+28])).delivered(alice, padded))
	}
	rows = append(rows, greExtensionRows(t)...)
	return append(rows,
		outOf(zeroTunnel, "a key of zero", cameOut(zeroTunnel, internalNet).around(t, fromZero)).delivered(insider, fromZero),
		outOf(zeroTunnel, "no key, where zero is a key", cameOut(zeroTunnel, plainNet).around(t, fromKeyless)).delivered(plain, fromKeyless),
	)
}

// greShortRows are packets without padding.
func greShortRows(t testing.TB) []row { return shortRows(t, false) }

// greOldKernelRows are for kernels before Linux 6.3. They leave a packet at
// least as long as the outer IP header.
func greOldKernelRows(t testing.TB) []row { return append(greInRows(t), shortRows(t, true)...) }

// shortRows are the shortest packets, with or without padding over IPv6.
func shortRows(t testing.TB, padded bool) []row {
	const ipv6Header = 40
	var rows []row
	for _, tunnel := range []uint32{plainForm4, plainForm6} {
		far := remoteBehind(tunnel, openNet)
		for _, payload := range []string{"", "0", "0123456789a", "0123456789ab", "0123456789abc"} {
			p := between(far, alice, false, udp(1, 2))
			p.payload = payload
			inner := p.frame(t)[:atIP+28+len(payload)]
			out := inner
			if padded && overIPv6(tunnel) && len(inner) < atIP+ipv6Header {
				out = append(inner[:len(inner):len(inner)], make([]byte, atIP+ipv6Header-len(inner))...)
			}
			rows = append(rows, outOf(tunnel, fmt.Sprintf("IPv4 of %d bytes out of tunnel %d", len(inner)-atIP, tunnel),
				cameOut(tunnel, openNet).around(t, inner)).delivered(alice, out))
		}
		empty := between(far, alice, true, udp(1, 2))
		empty.payload = ""
		shortest := empty.frame(t)[:atL4v6+8]
		rows = append(rows, outOf(tunnel, fmt.Sprintf("IPv6 without payload out of tunnel %d", tunnel),
			cameOut(tunnel, openNet).around(t, shortest)).delivered(alice, shortest))
	}
	return rows
}

// greExtensionRows are GRE packets after IPv6 extension headers.
func greExtensionRows(t testing.TB) []row {
	inner := between(remoteBehind(plainForm6, openNet), alice, true, udp(1, 2)).frame(t)
	around := cameOut(plainForm6, openNet)
	around.checksum = true
	p := packet{
		from: routerMAC, to: uplinkMAC, src: around.src, dst: around.dst,
		l4: transport{protocol: layers.IPProtocolGRE}, payload: string(around.gre(inner)),
	}
	options, first, last := p, p, p
	options.options = []byte{1, 4, 0, 0, 0, 0} // PadN: RFC 8200, section 4.2
	first.fragment.more, last.fragment = true, fragmentAt(2)
	foreign := first
	foreign.src = website.ip6
	return []row{
		outOf(plainForm6, "behind options of IPv6", options.frame(t)).delivered(alice, inner),
		fromUplink("first fragment of IPv6", first.frame(t)).dropped("fragment"),
		fromUplink("later fragment of IPv6", last.frame(t)).dropped("fragment"),
		fromUplink("first fragment of IPv6, of an unknown peer", foreign.frame(t)).passed(),
	}
}

// greRefusalRows are GRE packets that are refused, over one underlay.
func greRefusalRows(t testing.TB, v6 bool) []row {
	tunnel, keyed, keyless, at := uint32(plainForm4), uint32(keyedTunnel4), uint32(keylessTunnel4), atL4
	under := "IPv4"
	if v6 {
		tunnel, keyed, keyless, at, under = plainForm6, keyedTunnel6, keylessTunnel6, atL4v6, "IPv6"
	}
	inner := between(remoteBehind(tunnel, openNet), alice, false, udp(1, 2)).frame(t)
	with := func(change func(*wrapping)) []byte {
		w := cameOut(tunnel, openNet)
		change(&w)
		return w.around(t, inner)
	}
	summed := with(func(w *wrapping) { w.checksum = true })
	all := with(func(w *wrapping) { w.checksum, w.sequence = true, key(1) })
	// cut shortens the frame to this many bytes of GRE, with matching lengths.
	cut := func(frame []byte, length int) []byte {
		if v6 {
			return cutIPv6(t, frame, length)
		}
		return patch(frame[:at+length], atIPLength, 0, byte(20+length))
	}
	refuse := func(name string, in []byte, reason string) row {
		return fromUplink(under+"/"+name, in).dropped(reason)
	}
	flagged := func(flags uint16) []byte { return with(func(w *wrapping) { w.flags = flags }) }
	ofKeyed := between(remoteBehind(keyed, openNet), alice, false, udp(1, 2)).frame(t)
	ofKeyless := between(remoteBehind(keyless, plainNet), plain, false, udp(1, 2)).frame(t)
	around := func(tunnel uint32, k *uint32, inner []byte) []byte {
		w := cameOut(tunnel, openNet)
		w.key = k
		return w.around(t, inner)
	}
	return []row{
		refuse("a wrong byte with a checksum", patch(summed, len(summed)-1, summed[len(summed)-1]^1), "bad_gre_checksum"),
		refuse("a wrong key with a checksum", patch(summed, at+8, ^summed[at+8]), "unknown_key"),
		refuse("a wrong sequence number with a checksum", patch(all, at+12, ^all[at+12]), "bad_gre_checksum"),
		refuse("checksum of zero", patch(summed, at+4, 0, 0), "bad_gre_checksum"),
		refuse("checksum without a frame", cut(summed, 12), "bad_gre_checksum"),
		refuse("truncated before the key", cut(summed, 8), "bad_gre"),
		refuse("truncated in the first word", cut(summed, 3), "bad_gre"),
		outOf(tunnel, under+"/truncated before the sequence number", cut(with(func(w *wrapping) { w.sequence = key(1) }), 8)).dropped("malformed"),
		refuse("routing", flagged(0x4000), "bad_gre"),
		refuse("strict source route", flagged(0x0800), "bad_gre"),
		refuse("recursion", flagged(0x0100), "bad_gre"),
		refuse("acknowledgment", flagged(0x0080), "bad_gre"),
		refuse("a reserved flag", flagged(0x0008), "bad_gre"),
		refuse("version 1", flagged(1), "bad_gre"),
		refuse("no Ethernet inside", with(func(w *wrapping) { w.inside = layers.EthernetTypeIPv4 }), "bad_gre"),
		refuse("a key of no network", around(tunnel, key(strangeKey), inner), "unknown_key"),
		refuse("a key of other tunnels", around(tunnel, key(closedKey), inner), "unknown_key"),
		refuse("key zero, where only packets without a key are accepted", around(tunnel, key(0), inner), "unknown_key"),
		refuse("no key, where only keys are accepted", around(keyed, nil, ofKeyed), "unknown_key"),
		outOf(keyed, under+"/the only key of a tunnel", around(keyed, key(openKey), ofKeyed)).delivered(alice, ofKeyed),
		refuse("a key, where only packets without a key are accepted", around(keyless, key(openKey), ofKeyless), "unknown_key"),
		outOf(keyless, under+"/no key, the only choice of a tunnel", around(keyless, nil, ofKeyless)).delivered(plain, ofKeyless),
		outOf(keyed, under+"/of a station behind another tunnel", around(keyed, key(openKey), inner)).dropped("spoofed_overlay"),
		refuse("unknown peer", with(func(w *wrapping) { w.src = website.ip(v6) }), "unknown_tunnel"),
	}
}
