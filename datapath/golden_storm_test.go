package datapath

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/ebpnet/ebpnet/bpf"
)

// Constants of bpf/flood.h and bpf/loop.h.
const (
	floodBurst     = 2 * time.Second
	tunnelNetworks = 64 // each with a budget: TUNNEL_FLOODERS
	loopBlocked    = time.Minute
	loopEthertype  = 0x88b5
	theNonce       = 0x12345679
	never          = 1 << 62 // no probe becomes due
)

// tunnelFlooder is the key of openNet for a tunnel.
func (w *world) tunnelFlooder(tunnel uint32) uint32 { return w.tunnelFlooders(tunnel)[openNet] }

// ahead puts an endpoint or a tunnel into debt for flooded copies, until this
// time from now.
func ahead(flooder uint32, by time.Duration) func(testing.TB, *world) {
	return func(t testing.TB, w *world) {
		t.Helper()
		now, err := coarseNow()
		if err = errors.Join(err, w.Maps.FloodBudgets.Put(flooder, bpf.EbpnetFloodBudget{Due: uint64(now + by)})); err != nil {
			t.Fatal(err)
		}
	}
}

// calm resets all flood budgets and trunks: no trunk is blocked, and no probe
// is due.
func (w *world) calm(t testing.TB) {
	t.Helper()
	for _, e := range locals() {
		if err := errors.Join(
			w.Maps.FloodBudgets.Put(e.id, bpf.EbpnetFloodBudget{}),
			w.Maps.Trunks.Put(e.id, bpf.EbpnetTrunk{Probed: never}),
		); err != nil {
			t.Fatal(err)
		}
	}
	for _, tunnel := range w.wanted.Tunnels {
		for _, flooder := range w.tunnelFlooders(tunnel.ID) {
			must(t, w.Maps.FloodBudgets.Put(flooder, bpf.EbpnetFloodBudget{}))
		}
	}
}

// markBlocked blocks a trunk until this time from now, and marks its device.
func markBlocked(h host, by time.Duration) func(testing.TB, *world) {
	return func(t testing.TB, w *world) {
		t.Helper()
		now, err := coarseNow()
		var device bpf.EbpnetDevice
		err = errors.Join(err, w.Maps.Devices.Lookup(w.ifindex[h.device], &device))
		device.Trunk = 3 // TRUNK | TRUNK_BLOCKED
		err = errors.Join(err,
			w.Maps.Devices.Put(w.ifindex[h.device], device),
			w.Maps.Trunks.Put(h.id, bpf.EbpnetTrunk{Probed: never, Blocked: uint64(now + by)}),
		)
		if err != nil {
			t.Fatal(err)
		}
	}
}

// probed records that a trunk has sent a probe.
func probed(h host) func(testing.TB, *world) {
	return func(t testing.TB, w *world) {
		t.Helper()
		if err := w.Maps.Trunks.Put(h.id, bpf.EbpnetTrunk{Probed: never, Network: openNet, Nonce: theNonce}); err != nil {
			t.Fatal(err)
		}
	}
}

// probe is the probe frame of a trunk.
func probe(h host, nonce uint32) []byte {
	frame := slices.Concat(broadcastMAC[:], gatewayMAC[:], make([]byte, 60-12))
	binary.BigEndian.PutUint16(frame[atEthertype:], loopEthertype)
	binary.NativeEndian.PutUint32(frame[16:], h.id)
	binary.NativeEndian.PutUint32(frame[20:], nonce)
	return frame
}

// unblocked unblocks all trunks.
func unblocked(t testing.TB, w *world) {
	t.Helper()
	w.calm(t)
	for _, h := range []host{trunk, otherTrunk} {
		var device bpf.EbpnetDevice
		err := w.Maps.Devices.Lookup(w.ifindex[h.device], &device)
		device.Trunk = 1
		if err = errors.Join(err, w.Maps.Devices.Put(w.ifindex[h.device], device)); err != nil {
			t.Fatal(err)
		}
	}
}

// stormRows are limited floods, and loops between trunks.
func stormRows(t testing.TB) []row {
	return append(bothFamilies(func(v6 bool) []row {
		return slices.Concat(floodLimitRows(t, v6), blockedRows(t, v6))
	}), probeRows(t)...)
}

func floodLimitRows(t testing.TB, v6 bool) []row {
	const slack = 500 * time.Millisecond
	far, nowhere := stranger(host{}, 90), stranger(host{}, 91)
	group, farGroup := multicast(alice, v6).frame(t), multicast(far, v6).frame(t)
	unknown := between(alice, nowhere, v6, udp(1, 2)).frame(t)
	question := question(t, alice, nobody.ip(v6))
	const tunnel, beside = firstRemote + theTunnel*tunnelNetworks + openNet, firstRemote + theTunnel*tunnelNetworks + closedNet
	over := func(r row, flooder uint32) row {
		return r.given(ahead(flooder, floodBurst+time.Hour), unblocked).dropped("flood_limit")
	}
	under := func(r row, flooder uint32) row { return r.given(ahead(flooder, floodBurst-slack), unblocked) }
	all := func(name string, frame []byte) row { return fromEndpoint(name, alice, frame) }
	tunnels := []uint32{theTunnel, sixTunnel}
	out := func(name string) row { return fromTunnel(t, name, theTunnel, farGroup) }
	return []row{
		over(all("to a group, over the limit", group), alice.id),
		under(all("to a group, just below the limit", group), alice.id).floodedTo(bob, trunk, otherTrunk).into(tunnels...),
		over(all("to an unknown MAC, over the limit", unknown), alice.id),
		under(all("to an unknown MAC, just below the limit", unknown), alice.id).floodedTo(trunk, otherTrunk).into(tunnels...),
		over(all("question for an unknown address, over the limit", question), alice.id),
		under(all("question for an unknown address, just below the limit", question), alice.id).floodedTo(bob, trunk, otherTrunk).into(tunnels...),
		over(all("to a group, while another is over the limit", group), bob.id).floodedToAll(group, bob, trunk, otherTrunk).into(tunnels...),
		over(all("to a neighbor, over the limit", between(alice, bob, v6, udp(1, 2)).frame(t)), alice.id).delivered(bob, nil).noReason(),
		over(out("out of a tunnel to a group, over the limit"), tunnel).droppedAs("flood_limit", farGroup),
		under(out("out of a tunnel to a group, just below the limit"), tunnel).floodedAs(farGroup, alice, bob, trunk, otherTrunk),
		out("out of a tunnel to a group, while another network in it is over the limit").given(ahead(beside, floodBurst+time.Hour), unblocked).
			floodedAs(farGroup, alice, bob, trunk, otherTrunk),
	}
}

// floodedToAll and noReason make a row of a dropped frame a row of an accepted
// one.
func (r row) floodedToAll(out []byte, receivers ...host) row {
	r.reason = ""
	return r.floodedAs(out, receivers...)
}

func (r row) noReason() row {
	r.reason = ""
	return r
}

// blockedRows are trunks that are blocked, or were.
func blockedRows(t testing.TB, v6 bool) []row {
	here, group := stranger(trunk, 90), multicast(alice, v6).frame(t)
	tunnels := []uint32{theTunnel, sixTunnel}
	sends := between(here, alice, v6, udp(1, 2)).frame(t)
	blocked, over := markBlocked(trunk, loopBlocked), markBlocked(trunk, -time.Second)
	seenHere := seen(t, here, v6, 0)
	outward := outgoing(here, v6, udp(40000, 53)).frame(t)
	return []row{
		fromEndpoint("from behind a blocked trunk", trunk, sends).given(blocked, unblocked).dropped("loop"),
		fromEndpoint("from behind a blocked trunk to the gateway", trunk, outward).given(blocked, unblocked).dropped("loop"),
		fromEndpoint("of a blocked trunk", trunk, multicast(trunk, v6).frame(t)).given(blocked, unblocked).dropped("loop"),
		fromEndpoint("from behind a trunk that was blocked", trunk, sends).given(over, unblocked).delivered(alice, nil),
		fromEndpoint("from behind another trunk than the blocked one", otherTrunk, between(stranger(otherTrunk, 91), alice, v6, udp(1, 2)).frame(t)).
			given(blocked, unblocked).delivered(alice, nil),
		fromEndpoint("to a group, with a blocked trunk", alice, group).given(blocked, unblocked).floodedTo(bob, otherTrunk).into(tunnels...),
		fromEndpoint("to a group, with a trunk that was blocked", alice, group).given(over, unblocked).floodedTo(bob, trunk, otherTrunk).into(tunnels...),
		reaches(t, "a station behind a blocked trunk", here, v6).after(seenHere).given(blocked, unblocked).floodedTo(otherTrunk).into(tunnels...),
		reaches(t, "a station behind a trunk that was blocked", here, v6).after(seenHere).given(over, unblocked).delivered(here, nil),
	}
}

// probeRows are probes that arrive. otherTrunk is earlier than trunk.
func probeRows(t testing.TB) []row {
	otherNet := func(t testing.TB, w *world) {
		t.Helper()
		if err := w.Maps.Trunks.Put(otherTrunk.id, bpf.EbpnetTrunk{Probed: never, Network: closedNet, Nonce: theNonce}); err != nil {
			t.Fatal(err)
		}
	}
	in := func(name string, by host, frame []byte, given func(testing.TB, *world)) row {
		return fromEndpoint(name, by, frame).given(given, unblocked)
	}
	return []row{
		in("probe of an earlier trunk", trunk, probe(otherTrunk, theNonce), probed(otherTrunk)).dropped("loop"),
		in("probe of a later trunk", otherTrunk, probe(trunk, theNonce), probed(trunk)).dropped("loop"),
		in("probe of the trunk itself", trunk, probe(trunk, theNonce), probed(trunk)).dropped("loop"),
		in("probe of an earlier trunk with a wrong nonce", trunk, probe(otherTrunk, theNonce+2), probed(otherTrunk)).dropped("unknown_protocol"),
		in("probe of a trunk that sent none", trunk, probe(otherTrunk, 0), probed(trunk)).dropped("unknown_protocol"),
		in("probe of another network", trunk, probe(otherTrunk, theNonce), otherNet).dropped("unknown_protocol"),
		in("probe from an endpoint that is no trunk", alice, probe(otherTrunk, theNonce), probed(otherTrunk)).dropped("spoofed_mac"),
	}
}
