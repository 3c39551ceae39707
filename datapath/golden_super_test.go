package datapath

import (
	"encoding/binary"
	"slices"
	"testing"
)

// segmentSize is the payload of a segment that exactly fits the uplink's MTU,
// with IP and TCP headers without options.
func segmentSize(v6 bool) uint32 {
	if v6 {
		return uplinkMTU - 40 - 20
	}
	return uplinkMTU - 20 - 20
}

// withoutLength is the frame of a superframe of more than 64 KB. The length in
// its IP header is 0. In IPv6, a hop-by-hop header has the length.
func withoutLength(frame []byte) []byte {
	frame = slices.Clone(frame)
	if frame[atEthertype] == 0x86 {
		return patch(frame, atIP6Length, 0, 0)
	}
	const atChecksum = atIP + 10
	frame = patch(patch(frame, atIPLength, 0, 0), atChecksum, 0, 0)
	return patch(frame, atChecksum, binary.BigEndian.AppendUint16(nil, internetChecksum(frame[atIP:atL4]))...)
}

// withJumbo adds that header to an IPv6 packet: RFC 2675.
func withJumbo(p packet) packet {
	if p.dst.Is6() {
		p.options = []byte{0xc2, 4, 0, 1, 0, 20}
	}
	return p
}

// superRows are superframes of more than 64 KB.
func superRows(t testing.TB) []row {
	return bothFamilies(func(v6 bool) []row {
		super := func(r row, size uint32) row {
			r.skb = skbContext{segments: 2, size: size}
			return r
		}
		sent := withJumbo(outgoing(alice, v6, tcp(40000, 80, "S")))
		datagram := outgoing(alice, v6, udp(40000, 53))
		call, wide := withJumbo(incoming(v6, tcp(40000, webPort, "S"))), segmentSize(v6)
		inside := withJumbo(packet{from: alice.mac, to: bob.mac, src: alice.ip(v6), dst: bob.ip(v6), l4: tcp(40000, 80, "S"), payload: "hello"})
		rows := []row{
			super(fromEndpoint("out", alice, withoutLength(sent.frame(t))).redirected(withoutLength(masqueraded(sent).frame(t))), wide),
			super(fromEndpoint("to a neighbor", alice, withoutLength(inside.frame(t))).delivered(bob, withoutLength(inside.frame(t))), wide),
			super(fromUplink("to a published port", withoutLength(call.frame(t))).delivered(alice, withoutLength(reached(call, alice, 80).frame(t))), wide),
		}
		if v6 {
			return rows
		}
		return append(rows,
			fromEndpoint("out, no superframe", alice, withoutLength(sent.frame(t))).dropped("malformed"),
			super(fromEndpoint("out, not of TCP", alice, withoutLength(datagram.frame(t))).dropped("malformed"), wide),
			fromUplink("to a published port, no superframe", withoutLength(call.frame(t))).passed())
	})
}
