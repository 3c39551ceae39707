package datapath

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
)

// What bpf/fragment_send.h marks copies with, and how many it makes at most.
const (
	fragmentMark = 0xeb300000
	maxFragments = 64
)

// The least MTU that IPv4 has: RFC 791, section 3.2.
const leastMTU4 = 68

// vethEnds are both ends of the host's veth.
type vethEnds struct{ near, far *detour }

func (w *world) newEnds(t testing.TB) vethEnds {
	t.Helper()
	return vethEnds{w.newDetour(t, "ebpnet0"), w.newDetour(t, "ebpnet1")}
}

func fragmentMarks(count int) (marks []uint32) {
	for i := range count {
		marks = append(marks, fragmentMark|uint32(i))
	}
	return marks
}

// hops says where copies go on to: the next hop (zero: the kernel finds it) and
// the MTU of the way there.
type hops struct {
	next [4]byte
	mtu  uint16
}

var byTheRouter = hops{[4]byte{192, 0, 2, 254}, uplinkMTU}

// on is a copy of a packet: the way that it goes on has the place of its MAC
// addresses. withIfindex tells the device.
func (h hops) on(frame []byte) []byte {
	way := append([]byte{2, 0}, h.next[:]...)
	way = binary.LittleEndian.AppendUint16(way, h.mtu)
	return patch(frame, 0, append(way, 0, 0, 0, 0)...)
}

func withIfindex(frame []byte, ifindex uint32) []byte {
	return patch(frame, 8, binary.LittleEndian.AppendUint32(nil, ifindex)...)
}

// fragmented is sent in fragments: copies of out, each to become one.
func (r row) fragmented(count int, out []byte) row {
	r = r.floodedTo()
	r.out, r.fragments = out, count
	return r
}

// fragmentsOf gives the fragments of an IPv4 packet without options, of which none
// is longer than the MTU: RFC 791, section 3.2.
func fragmentsOf(frame []byte, mtu int) (all [][]byte) {
	payload := ipPacket(frame)[20:]
	room := (mtu - 20) &^ 7
	place := binary.BigEndian.Uint16(frame[atIP+6:])
	for at := 0; at < len(payload); at += room {
		end := min(at+room, len(payload))
		f := slices.Concat(frame[:atL4], payload[at:end])
		now := place + uint16(at/8)
		if end < len(payload) {
			now |= 0x2000
		}
		binary.BigEndian.PutUint16(f[atIPLength:], uint16(20+end-at))
		binary.BigEndian.PutUint16(f[atIP+6:], now)
		binary.BigEndian.PutUint16(f[atIP+10:], 0)
		binary.BigEndian.PutUint16(f[atIP+10:], internetChecksum(f[atIP:atL4]))
		all = append(all, f)
	}
	return all
}

// fragmentedRows are of IPv4 packets without DF that do not fit their way.
func fragmentedRows(t testing.TB) []row {
	const long = 3400 // as long as a test run takes
	big := func(from host, l4 transport, length int) packet {
		p := ofText(t, outgoing(from, false, l4), length)
		p.fragment.id = datagramID
		return p
	}
	sent := func(name string, p packet, count int) row {
		return fromEndpoint(name, alice, p.frame(t)).fragmented(count, byTheRouter.on(masqueraded(p).frame(t)))
	}
	var rows []row
	for name, l4 := range map[string]transport{
		"TCP": tcp(40000, 80, "S"), "UDP": udp(40000, 53), "SCTP": sctp(40000, 36), "echo": echo(false, false, 40000),
	} {
		rows = append(rows, sent(name, big(alice, l4, long), 3))
	}
	const room = (uplinkMTU - 20) &^ 7
	query := big(alice, udp(40000, 53), long)
	begun := fromEndpoint("", alice, outgoing(alice, false, udp(40000, 53)).frame(t))
	bare := query
	bare.l4.noChecksum = true
	urgent := query
	urgent.class = expedited
	first, middle, last := inFragments(ofText(t, outgoing(alice, false, udp(40000, 53)), long))
	opened := sent("first fragment", first, 3)
	whole, options, old := query, query, query
	whole.whole, old.ttl = true, 1
	options.options = []byte{0x94, 4, 0, 0}
	options = ofText(t, options, long)
	super := fromEndpoint("superframe", alice, query.frame(t)).
		refused("too_big", refusal(t, alice, problemSize(false, uplinkMTU), query).frame(t))
	super.skb = skbContext{segments: 2, size: uplinkMTU}
	refused := func(name string, p packet, e problem, reason string) row {
		return fromEndpoint(name, alice, p.frame(t)).refused(reason, refusal(t, alice, e, p).frame(t))
	}
	narrow := hops{mtu: 576}
	kept := masqueraded(query)
	rows = append(rows,
		sent("in a flow", query, 3).after(begun),
		sent("without a checksum", bare, 3),
		sent("of a class", urgent, 3),
		sent("of two fragments", big(alice, udp(40000, 53), 20+2*room), 2),
		sent("of two fragments and a byte", big(alice, udp(40000, 53), 20+2*room+1), 3),
		opened,
		sent("middle fragment", middle, 3).after(opened),
		sent("last fragment", last, 3).after(opened),
		fromEndpoint("without a route lookup", alice, query.frame(t)).given(unrouted(int(narrow.mtu)), routed).
			fragmented(7, narrow.on(kept.frame(t))),
		withOutput(fromEndpoint("of too many fragments", alice, query.frame(t)).given(unrouted(leastMTU4), routed).
			dropped("too_big"), kept.frame(t)),
		withOutput(fromEndpoint("where no fragment fits", alice, query.frame(t)).given(unrouted(leastMTU4-1), routed).
			dropped("too_big"), kept.frame(t)),
		refused("with DF", whole, problemSize(false, uplinkMTU), "too_big"),
		refused("with options", options, problemSize(false, uplinkMTU), "too_big"),
		refused("too old", old, problemTTL(false), "ttl_exceeded"),
		super,
	)
	// The field has the sum of the pseudo-header until a device completes it.
	mine := big(plain, udp(40000, 53), long)
	mine.ttl = 63
	completed := mine.frame(t)
	mine.ttl = 64
	in := mine.frame(t)
	pseudo := slices.Concat(in[atIP+12:atIP+20], []byte{0, protocolUDP}, in[atL4+4:atL4+6])
	binary.BigEndian.PutUint16(in[atL4+6:], ^internetChecksum(pseudo))
	wrong := patch(mine.frame(t), len(in)-1, in[len(in)-1]^1)
	wrongOut := patch(completed, len(in)-1, in[len(in)-1]^1)
	rows = append(rows,
		fromEndpoint("its checksum to be completed", plain, in).fragmented(3, byTheRouter.on(completed)),
		fromEndpoint("with a wrong checksum", plain, wrong).fragmented(3, byTheRouter.on(wrongOut)),
	)
	return append(rows, fragmentRowsBehind(t, masqueraded(query), masqueraded(first), masqueraded(middle), masqueraded(last))...)
}

// fragmentRowsBehind are of copies where they become fragments.
func fragmentRowsBehind(t testing.TB, packets ...packet) []row {
	become := func(name string, number int, in []byte) row {
		r := fromHost(name, in)
		r.skb.mark = fragmentMark | uint32(number)
		return r
	}
	var rows []row
	add := func(i int, way hops, numbers ...int) {
		copied := withIfindex(way.on(packets[i].frame(t)), 1)
		all := fragmentsOf(copied, int(way.mtu))
		for _, n := range numbers {
			name := fmt.Sprintf("packet %d for an MTU of %d, fragment %d of %d", i, way.mtu, n, len(all))
			rows = append(rows, become(name, n, copied).redirected(all[n]))
		}
	}
	for i := range packets {
		add(i, byTheRouter, 0, 1, 2)
	}
	add(0, hops{mtu: 576}, 0, 3, 6)
	add(0, hops{mtu: leastMTU4}, 0, 1, maxFragments-1)
	copied := withIfindex(byTheRouter.on(packets[0].frame(t)), 1)
	none := withIfindex(hops{mtu: leastMTU4 - 1}.on(packets[0].frame(t)), 1)
	return append(rows,
		become("fragment that is not there", 3, copied).dropped("malformed"),
		become("fragment with too high a number", maxFragments, withIfindex(hops{mtu: leastMTU4}.on(packets[0].frame(t)), 1)).dropped("malformed"),
		become("fragments without room", 0, none).dropped("malformed"),
	)
}
