package datapath

import (
	"fmt"
	"testing"
)

// The ECN marks of RFC 3168, section 5.
const (
	notECT = 0
	ect1   = 1
	ect0   = 2
	ce     = 3
	lost   = -1 // dropped: the inner packet does not support ECN
)

// decapsulated is figure 4 of RFC 6040: the result by inner mark and outer
// mark.
var decapsulated = [4][4]int{
	notECT: {notECT: notECT, ect0: notECT, ect1: notECT, ce: lost},
	ect0:   {notECT: ect0, ect0: ect0, ect1: ect1, ce: ce},
	ect1:   {notECT: ect1, ect0: ect1, ect1: ect1, ce: ce},
	ce:     {notECT: ce, ect0: ce, ect1: ce, ce: ce},
}

// The traffic class of an urgent packet: RFC 3246.
const expedited = 0xb8

// ecnRows send each ECN mark through tunnels, for both families inside and
// outside.
func ecnRows(t testing.TB) []row {
	return bothFamilies(func(v6 bool) []row {
		var rows []row
		for _, tunnel := range []uint32{plainForm4, plainForm6} {
			far := remoteBehind(tunnel, openNet)
			for inner := range 4 {
				for outer := range 4 {
					rows = append(rows, decapRow(t, tunnel, v6, uint8(inner), uint8(outer)))
				}
				sent := between(alice, far, v6, udp(1, 2))
				sent.class = expedited | uint8(inner)
				around := sentInto(tunnel, openNet)
				around.class = uint8(inner)
				rows = append(rows, fromEndpoint(fmt.Sprintf("mark %d into tunnel %d", inner, tunnel), alice, sent.frame(t)).
					tunnelledBy(tunnel, around.around(t, sent.frame(t))))
			}
			p := between(far, alice, v6, udp(1, 2))
			around := cameOut(tunnel, openNet)
			around.class = expedited
			rows = append(rows, outOf(tunnel, fmt.Sprintf("class of tunnel %d", tunnel), around.around(t, p.frame(t))).delivered(alice, p.frame(t)))
			arp := innerFrames(t, far, alice)[len(innerFrames(t, far, alice))-1].frame
			around.class = ce
			rows = append(rows, outOf(tunnel, fmt.Sprintf("ARP out of congested tunnel %d", tunnel), around.around(t, arp)).delivered(alice, arp))
		}
		return append(rows, dscpRows(t, v6)...)
	})
}

func decapRow(t testing.TB, tunnel uint32, v6 bool, inner, outer uint8) row {
	p := between(remoteBehind(tunnel, openNet), alice, v6, tcp(1, 2, "A"))
	p.class = expedited | inner
	around := cameOut(tunnel, openNet)
	around.class = outer
	r := outOf(tunnel, fmt.Sprintf("mark %d in %d out of tunnel %d", inner, outer, tunnel), around.around(t, p.frame(t)))
	became := decapsulated[inner][outer]
	if became == lost {
		return r.dropped("congestion")
	}
	p.class = expedited | uint8(became)
	return r.delivered(alice, p.frame(t))
}

// dscpRows send DSCP values into tunnels that copy them, and into others.
func dscpRows(t testing.TB, v6 bool) []row {
	var rows []row
	for tunnel, class := range map[uint32]uint8{copyDSCP4: expedited | ect0, copyDSCP6: expedited | ect0, lowTTL4: ect0, lowTTL6: ect0} {
		p := between(alice, remoteBehind(tunnel, openNet), v6, udp(1, 2))
		p.class = expedited | ect0
		around := sentInto(tunnel, openNet)
		around.class = class
		if tunnel == lowTTL4 || tunnel == lowTTL6 {
			around.ttl = lowTTL
		}
		rows = append(rows, fromEndpoint(fmt.Sprintf("urgent into tunnel %d", tunnel), alice, p.frame(t)).
			tunnelledBy(tunnel, around.around(t, p.frame(t))))
	}
	return rows
}
