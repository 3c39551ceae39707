package datapath

import (
	"encoding/binary"
	"testing"
)

// Lengths of transport headers without options.
const (
	tcpLength  = 20
	udpLength  = 8
	sctpLength = 12
	echoLength = 8
)

// withLength is a frame whose IP header has this payload length. The rest of
// the frame is padding.
func withLength(frame []byte, payload int) []byte {
	if frame[atEthertype] == 0x86 {
		return patch(frame, atIP6Length, binary.BigEndian.AppendUint16(nil, uint16(payload))...)
	}
	const atChecksum = atIP + 10
	out := patch(frame, atIPLength, binary.BigEndian.AppendUint16(nil, uint16(20+payload))...)
	out = patch(out, atChecksum, 0, 0)
	return patch(out, atChecksum, binary.BigEndian.AppendUint16(nil, internetChecksum(out[atIP:atL4]))...)
}

// withDataOffset changes the header length, in words, of the TCP header at an
// offset.
func withDataOffset(frame []byte, at int, words byte) []byte { return patch(frame, at+12, words<<4) }

// lengthRows are packets that end before their transport header ends, in longer
// frames.
func lengthRows(t testing.TB) []row {
	return bothFamilies(func(v6 bool) []row {
		const padding = "and more"
		l4 := atL4
		if v6 {
			l4 = atL4v6
		}
		padded := func(p packet) []byte {
			p.payload = ""
			return append(p.frame(t), padding...)
		}
		leaves := func(name string, in, out []byte) row { return fromEndpoint(name, alice, in).redirected(out) }
		malformed := func(name string, in []byte) row { return fromEndpoint(name, alice, in).dropped("malformed") }
		var rows []row
		for _, c := range []struct {
			name   string
			l4     transport
			length int
		}{
			{"TCP", tcp(40000, 80, "S"), tcpLength},
			{"UDP", udp(40000, 53), udpLength},
			{"SCTP", sctp(40000, 36), sctpLength},
			{"echo", echo(v6, false, 40000), echoLength},
		} {
			p := outgoing(alice, v6, c.l4)
			first := p
			first.fragment = fragment{more: true, id: datagramID}
			extension := 0
			if v6 {
				extension = 8
			}
			rows = append(rows,
				malformed(c.name+" ends after the packet", withLength(padded(p), c.length-1)),
				malformed(c.name+" starts after the packet", withLength(padded(p), 0)),
				leaves(c.name+" ends with the packet", padded(p), padded(masqueraded(p))),
				malformed(c.name+" ends after the first fragment", withLength(padded(first), extension+c.length-1)),
				leaves(c.name+" ends with the first fragment", padded(first), padded(masqueraded(first))),
			)
		}

		syn := outgoing(alice, v6, tcp(40000, 80, "S"))
		syn.payload = "four"
		in, out := syn.frame(t), masqueraded(syn).frame(t)
		begun := syn
		begun.fragment = fragment{more: true, id: datagramID}
		behind := l4
		if v6 {
			behind += 8
		}
		rows = append(rows,
			malformed("TCP's options end after the packet", withLength(withDataOffset(in, l4, 6), tcpLength+3)),
			leaves("TCP's options end with the packet", withDataOffset(in, l4, 6), withDataOffset(out, l4, 6)),
			malformed("TCP's header length below five", withDataOffset(in, l4, 4)),
			leaves("TCP's options in the next fragment", withDataOffset(begun.frame(t), behind, 15),
				withDataOffset(masqueraded(begun).frame(t), behind, 15)),
		)

		call := incoming(v6, tcp(40000, webPort, "S"))
		own := outgoing(uplink, v6, tcp(40000, 80, "A"))
		own.from, own.to = uplinkMAC, routerMAC
		rows = append(rows,
			fromUplink("to a published port, header ends after the packet", withLength(padded(call), tcpLength-1)).passed(),
			fromUplink("to a published port, header ends with the packet", padded(call)).delivered(alice, padded(reached(call, alice, 80))),
			toUplink("the host's own, header ends after the packet", withLength(padded(own), tcpLength-1)).passed(),
		)

		super := func(r row) row {
			r.skb = skbContext{segments: 2, size: segmentSize(v6)}
			return r
		}
		rows = append(rows,
			super(malformed("superframe, header ends after the packet", withLength(padded(syn), tcpLength-1))),
			super(leaves("superframe, header ends with the packet", padded(syn), padded(masqueraded(syn)))),
		)
		if !v6 {
			return rows
		}
		later := outgoing(alice, v6, udp(40000, 53))
		later.fragment = fragmentAt(5)
		return append(rows,
			malformed("fragment header ends after the packet", withLength(later.frame(t), 7)),
			fromEndpoint("fragment header ends with the packet", alice, withLength(later.frame(t), 8)).dropped("fragment"),
			super(fromEndpoint("superframe of no length, without the option", alice, withLength(padded(syn), 0)).
				redirected(withLength(padded(masqueraded(syn)), 0))),
			fromUplink("of no length, no superframe", withLength(padded(call), 0)).passed(),
		)
	})
}
