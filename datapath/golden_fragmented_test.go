package datapath

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
)

// The marks of copies from bpf/fragment_send.h, and the most copies.
const (
	fragmentKind   = 0xeb300000
	fragmentTunnel = 1 << 19 // into a tunnel
	fragmentRoom   = 6       // bits to shift
	maxFragments   = 64
)

// fragmentMark is the mark of the first copy for a path with this MTU.
func fragmentMark(mtu int) uint32 { return fragmentKind | uint32((mtu-20)/8)<<fragmentRoom }

// The least MTU that IPv4 has: RFC 791, section 3.2.
const leastMTU4 = 68

// vethEnds are the two ends of the host's veth.
type vethEnds struct{ near, far *detour }

func (w *world) newEnds(t testing.TB) vethEnds {
	t.Helper()
	return vethEnds{w.newDetour(t, "ebpnet0"), w.newDetour(t, "ebpnet1")}
}

// fragmentMarks are the marks of this many copies.
func fragmentMarks(first uint32, count int) (marks []uint32) {
	for i := range count {
		marks = append(marks, first+uint32(i))
	}
	return marks
}

// nextHop is the next hop of the copies. If it is zero, the kernel finds the
// next hop.
type nextHop [4]byte

var theRouter = nextHop{192, 0, 2, 254}

// on is a copy of a packet. The next hop replaces its MAC addresses.
// withIfindex adds the device.
func (h nextHop) on(frame []byte) []byte {
	return patch(frame, 0, append([]byte{2, 0}, append(h[:], 0, 0, 0, 0, 0, 0)...)...)
}

// intoTunnelAs is a copy of a packet in transit to a tunnel. The network and
// the tunnel replace the length and the checksum in its IP header.
func intoTunnelAs(frame []byte, network, tunnel uint32) []byte {
	mark := network<<markNetwork | tunnel
	return patch(patch(frame, atIP, 0x40|byte(mark>>16)), atIP+10, byte(mark), byte(mark>>8))
}

func withIfindex(frame []byte, ifindex uint32) []byte {
	return patch(frame, 8, binary.LittleEndian.AppendUint32(nil, ifindex)...)
}

// fragmented expects that the uplink sends the packet in fragments, from this
// many copies of out. No fragment is longer than the MTU.
func (r row) fragmented(count, mtu int, out []byte) row {
	r = r.floodedTo()
	r.out, r.fragments = out, fragmentMarks(fragmentMark(mtu), count)
	return r
}

// fragmentsOf returns the fragments of an IPv4 packet without options, none
// longer than the MTU: RFC 791, section 3.2.
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

// fragmentedRows are IPv4 packets without DF that exceed the MTU of their path.
func fragmentedRows(t testing.TB) []row {
	const long = 3400 // the most that a test run accepts
	big := func(from host, l4 transport, length int) packet {
		p := ofText(t, outgoing(from, false, l4), length)
		p.fragment.id = datagramID
		return p
	}
	sent := func(name string, p packet, count int) row {
		return fromEndpoint(name, alice, p.frame(t)).fragmented(count, uplinkMTU, theRouter.on(masqueraded(p).frame(t)))
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
	const narrow = 576
	kept := masqueraded(query)
	rows = append(rows,
		sent("in a flow", query, 3).after(begun),
		sent("without a checksum", bare, 3),
		sent("with a traffic class", urgent, 3),
		sent("of two fragments", big(alice, udp(40000, 53), 20+2*room), 2),
		sent("of two fragments and a byte", big(alice, udp(40000, 53), 20+2*room+1), 3),
		opened,
		sent("middle fragment", middle, 3).after(opened),
		sent("last fragment", last, 3).after(opened),
		fromEndpoint("without a route lookup", alice, query.frame(t)).given(unrouted(narrow), routed).
			fragmented(7, narrow, nextHop{}.on(kept.frame(t))),
		withOutput(fromEndpoint("of too many fragments", alice, query.frame(t)).given(unrouted(leastMTU4), routed).
			dropped("too_big"), kept.frame(t)),
		withOutput(fromEndpoint("with an MTU too small for a fragment", alice, query.frame(t)).given(unrouted(leastMTU4-1), routed).
			dropped("too_big"), kept.frame(t)),
		refused("with DF", whole, problemSize(false, uplinkMTU), "too_big"),
		refused("with options", options, problemSize(false, uplinkMTU), "too_big"),
		refused("with an expired TTL", old, problemTTL(false), "ttl_exceeded"),
		super,
	)
	// The metadata of a packet says whether a device completes its checksum.
	// The checksum field does not show it.
	mine := big(plain, udp(40000, 53), long)
	mine.ttl = 63
	out := mine.frame(t)
	mine.ttl = 64
	in := mine.frame(t)
	pseudo := slices.Concat(in[atIP+12:atIP+20], []byte{0, protocolUDP}, in[atL4+4:atL4+6])
	sum := binary.BigEndian.AppendUint16(nil, ^internetChecksum(pseudo))
	wrong := patch(mine.frame(t), len(in)-1, in[len(in)-1]^1)
	wrongOut := patch(out, len(in)-1, in[len(in)-1]^1)
	rows = append(rows,
		fromEndpoint("with a checksum that looks incomplete", plain, patch(in, atL4+6, sum...)).
			fragmented(3, uplinkMTU, theRouter.on(patch(out, atL4+6, sum...))),
		fromEndpoint("with a wrong checksum", plain, wrong).fragmented(3, uplinkMTU, theRouter.on(wrongOut)),
	)
	return append(rows, fragmentRowsBehind(t, masqueraded(query), masqueraded(first), masqueraded(middle), masqueraded(last))...)
}

// fragmentRowsBehind are copies where they become fragments.
func fragmentRowsBehind(t testing.TB, packets ...packet) []row {
	become := func(name string, mark uint32, in []byte) row {
		r := fromHost(name, in)
		r.skb.mark = mark
		return r
	}
	var rows []row
	add := func(i int, hop nextHop, mtu int, numbers ...int) {
		copied := withIfindex(hop.on(packets[i].frame(t)), 1)
		all := fragmentsOf(copied, mtu)
		for _, n := range numbers {
			name := fmt.Sprintf("packet %d for an MTU of %d, fragment %d of %d", i, mtu, n, len(all))
			rows = append(rows, become(name, fragmentMark(mtu)+uint32(n), copied).redirected(all[n]))
		}
	}
	for i := range packets {
		add(i, theRouter, uplinkMTU, 0, 1, 2)
	}
	add(0, nextHop{}, 576, 0, 3, 6)
	add(0, nextHop{}, leastMTU4, 0, 1, maxFragments-1)
	for _, tunnel := range []uint32{theTunnel, maxTunnelID} {
		in := packets[0].frame(t)
		copied := intoTunnelAs(in, maxNetworkID, tunnel)
		const mtu = 1458
		for n, out := range fragmentsOf(in, mtu) {
			r := become(fmt.Sprintf("for tunnel %d, fragment %d", tunnel, n), fragmentMark(mtu)+uint32(n)|fragmentTunnel, copied)
			r = r.detoured(frameMark(maxNetworkID, tunnel))
			r.out = out
			rows = append(rows, r)
		}
	}
	copied := withIfindex(theRouter.on(packets[0].frame(t)), 1)
	return append(rows,
		become("fragment number beyond the last", fragmentMark(uplinkMTU)+3, copied).dropped("malformed"),
		become("fragments without room for data", fragmentMark(20), copied).dropped("malformed"),
	)
}

// The highest ids: MAX_NETWORKS and MAX_TUNNELS of bpf/types_tables.h.
const maxNetworkID, maxTunnelID = 1023, 1023
