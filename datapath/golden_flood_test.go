package datapath

import (
	"errors"
	"math"
	"net/netip"
	"slices"
	"testing"

	"github.com/gopacket/gopacket/layers"

	"github.com/ebpnet/ebpnet/bpf"
)

// sixTunnel is a tunnel of withShared, over IPv6.
const sixTunnel = 2

// The trunks of withShared, by the devices of endpoints that other worlds have
// elsewhere.
var (
	trunk      = trunkBy(plain, 40)
	otherTrunk = trunkBy(insider, 41)
)

func trunkBy(h host, n uint32) host {
	h.network, h.ip4, h.ip6 = openNet, address4(openNet, n), address6(openNet, n)
	return h
}

// stranger is a station of openNet without a static entry, behind the device
// of a trunk or, if that is the zero host, elsewhere.
func stranger(at host, n uint32) host {
	return host{
		network: openNet, device: at.device, mac: mac{0x02, 0x5e, 0, 0, 0, byte(n)},
		ip4: address4(openNet, n), ip6: address6(openNet, n),
	}
}

// withShared makes openNet one with two trunks, and two tunnels that carry it.
func withShared(w *Wanted) {
	for i := range w.Endpoints {
		for _, h := range []host{trunk, otherTrunk} {
			if e := &w.Endpoints[i]; e.ID == h.id {
				e.Network, e.Addresses, e.Trunk = h.network, []netip.Addr{h.ip4, h.ip6}, true
			}
		}
	}
	w.Tunnels = append(w.Tunnels, Tunnel{ID: sixTunnel, Local: uplink.ip6, Remote: peer.ip6, TTL: tunnelTTL})
	w.TunnelNetworks = append(w.TunnelNetworks, TunnelNetwork{Tunnel: sixTunnel, Network: openNet, Key: key(openKey)})
}

// fromTunnel is a frame of openNet out of a tunnel of withShared.
func fromTunnel(t testing.TB, name string, tunnel uint32, inner []byte) row {
	t.Helper()
	return outOf(tunnel, name, arriving(tunnel == sixTunnel, key(openKey)).around(t, inner))
}

// intoTunnel is the same frame on its way there.
func intoTunnel(t testing.TB, tunnel uint32, inner []byte) []byte {
	t.Helper()
	return leaving(tunnel == sixTunnel, key(openKey)).around(t, inner)
}

// multicast is from a station to a group that everybody may be in.
func multicast(from host, v6 bool) packet {
	p := packet{from: from.mac, to: mac{1, 0, 0x5e, 0, 0, 0xfb}, src: from.ip(v6), dst: netip.MustParseAddr("224.0.0.251"), l4: udp(5353, 5353)}
	if v6 {
		p.dst = netip.MustParseAddr("ff02::fb")
		p.to = multicastMAC(p.dst)
	}
	return p
}

// question asks for the MAC of an address, in ARP or ND.
func question(t testing.TB, from host, target netip.Addr) []byte {
	if target.Is4() {
		return arpRequest(t, from.mac, from.ip4, target)
	}
	return ask(from.mac, from.ip6, target, ndOption(optionSourceMAC, from.mac)).frame(t)
}

// floodRows are of what goes to many, and who gets it.
func floodRows(t testing.TB) []row {
	return bothFamilies(func(v6 bool) []row {
		return slices.Concat(floodLocalRows(t, v6), floodTunnelRows(t, v6), askedRows(t, v6))
	})
}

// floodLocalRows are of what endpoints send to many.
func floodLocalRows(t testing.TB, v6 bool) []row {
	behind, far := stranger(trunk, 80), stranger(host{}, 90)
	tunnels := []uint32{theTunnel, sixTunnel}
	to := func(from host) []byte { return between(from, far, v6, udp(1, 2)).frame(t) }
	closed := turned(openNet, func(n *Network) { n.ICC = false })
	group := multicast(alice, v6).frame(t)
	arrives := func(what string, tunnel uint32, frame []byte) row {
		return toTunnel(what, frameMark(openNet, tunnel), frame).tunnelledBy(tunnel, intoTunnel(t, tunnel, frame))
	}
	asked := question(t, alice, nobody.ip(v6))
	askedOut := arrives("question, on its way", theTunnel, asked)
	if !v6 {
		askedOut.mark = packetMark
	}
	return []row{
		fromEndpoint("to nobody", alice, to(alice)).floodedTo(trunk, otherTrunk).into(tunnels...),
		fromEndpoint("of a trunk to nobody", trunk, to(trunk)).floodedTo(otherTrunk).into(tunnels...),
		fromEndpoint("from behind a trunk to nobody", trunk, to(behind)).floodedTo(otherTrunk).into(tunnels...),
		fromEndpoint("to a group", alice, group).floodedTo(bob, trunk, otherTrunk).into(tunnels...),
		fromEndpoint("to a group, without the device of one", alice, group).given(without(bob), remember).
			floodedTo(trunk, otherTrunk).into(tunnels...).alsoDropped("copy_failed"),
		fromEndpoint("of a trunk to a group", trunk, multicast(trunk, v6).frame(t)).floodedTo(alice, bob, otherTrunk).into(tunnels...),
		fromEndpoint("from behind a trunk to a group", trunk, multicast(behind, v6).frame(t)).floodedTo(alice, bob, otherTrunk).into(tunnels...),
		fromEndpoint("question for nobody", alice, asked).floodedTo(bob, trunk, otherTrunk).into(tunnels...),
		arrives("to a group, on its way", theTunnel, group),
		arrives("to a group, on its way over IPv6", sixTunnel, group),
		askedOut,
		fromEndpoint("to nobody, without ICC", alice, to(alice)).given(closed, remember).dropped("policy"),
		fromEndpoint("to a group, without ICC", alice, group).given(closed, remember).dropped("policy"),
		fromEndpoint("from behind a trunk to nobody, without ICC", trunk, to(behind)).given(closed, remember).dropped("policy"),
		fromEndpoint("to nobody, where nothing is shared", alice, to(alice)).given(unshared, remember).dropped("unknown_destination"),
		fromEndpoint("of a trunk to nobody, where nothing else is shared", trunk, to(trunk)).given(onlyTrunk, remember).dropped("unknown_destination"),
		fromEndpoint("to nobody, where a trunk is", alice, to(alice)).given(onlyTrunk, remember).floodedTo(trunk),
	}
}

// unshared leaves neither trunks nor tunnels on openNet, onlyTrunk one trunk.
func unshared(t testing.TB, w *world) { keepShared(t, w, host{}) }

func onlyTrunk(t testing.TB, w *world) { keepShared(t, w, trunk) }

func keepShared(t testing.TB, w *world, keep host) {
	t.Helper()
	wanted := w.wanted
	wanted.Endpoints = slices.DeleteFunc(slices.Clone(w.wanted.Endpoints), func(e Endpoint) bool { return e.Trunk && e.ID != keep.id })
	wanted.TunnelNetworks = slices.DeleteFunc(slices.Clone(w.wanted.TunnelNetworks), func(c TunnelNetwork) bool { return c.Network == openNet })
	if err := w.Replace(wanted); err != nil {
		t.Fatal(err)
	}
}

// without has the members say that h is behind a device that is not there.
func without(h host) func(testing.TB, *world) {
	return func(t testing.TB, w *world) {
		t.Helper()
		members := map[bpf.EbpnetMemberKey]bpf.EbpnetStation{}
		err := dumpTable(w.Maps.Members, func(key bpf.EbpnetMemberKey, s bpf.EbpnetStation) {
			if s.Endpoint == h.id {
				s.Ifindex = math.MaxInt32
				members[key] = s
			}
		})
		if err = errors.Join(err, putAll(w.Maps.Members, members)); err != nil {
			t.Fatal(err)
		}
	}
}

// floodTunnelRows are of what comes out of a tunnel for many: for this host
// alone, so that no loop can form.
func floodTunnelRows(t testing.TB, v6 bool) []row {
	far, nowhere := stranger(host{}, 90), stranger(host{}, 91)
	group := multicast(far, v6).frame(t)
	ofRemote := multicast(remote, v6).frame(t)
	to := between(far, nowhere, v6, udp(1, 2)).frame(t)
	closed := turned(openNet, func(n *Network) { n.ICC = false })
	var rows []row
	for tunnel, name := range map[uint32]string{theTunnel: "out of a tunnel", sixTunnel: "out of one over IPv6"} {
		rows = append(rows,
			fromTunnel(t, name+", to a group", tunnel, group).floodedAs(group, alice, bob, trunk, otherTrunk),
			fromTunnel(t, name+", to nobody", tunnel, to).floodedAs(to, trunk, otherTrunk),
			fromTunnel(t, name+", to a group, without ICC", tunnel, group).given(closed, remember).dropped("policy"),
			fromTunnel(t, name+", to nobody, without ICC", tunnel, to).given(closed, remember).dropped("policy"),
		)
	}
	return append(rows,
		fromTunnel(t, "out of a tunnel, of one who is known, to a group", theTunnel, ofRemote).floodedAs(ofRemote, alice, bob, trunk, otherTrunk),
		fromTunnel(t, "out of another tunnel, of one who is known, to a group", sixTunnel, ofRemote).dropped("spoofed_overlay"),
		fromTunnel(t, "out of a tunnel to nobody, where no trunk is", theTunnel, to).given(withoutTrunks, remember).droppedAs("unknown_destination", to),
		fromTunnel(t, "out of a tunnel into another", sixTunnel, between(far, remote, v6, udp(1, 2)).frame(t)).dropped("unknown_destination"),
		fromTunnel(t, "out of a tunnel into itself", theTunnel, between(far, remote, v6, udp(1, 2)).frame(t)).dropped("unknown_destination"),
	)
}

func withoutTrunks(t testing.TB, w *world) {
	t.Helper()
	wanted := w.wanted
	wanted.Endpoints = slices.DeleteFunc(slices.Clone(w.wanted.Endpoints), func(e Endpoint) bool { return e.Trunk })
	if err := w.Replace(wanted); err != nil {
		t.Fatal(err)
	}
}

// askedRows are of questions out of a tunnel: whoever is known need not be
// looked for.
func askedRows(t testing.TB, v6 bool) []row {
	far := stranger(host{}, 90)
	asks := func(name string, target netip.Addr) row {
		return fromTunnel(t, "question out of a tunnel for "+name, theTunnel, question(t, far, target))
	}
	everywhere := func(r row, inner []byte) row { return r.floodedAs(inner, alice, bob, trunk, otherTrunk) }
	tells := func(by host) []byte {
		if v6 {
			allNodes := netip.MustParseAddr("ff02::1")
			return tell(by.mac, multicastMAC(allNodes), by.ip6, allNodes, ndOverride).frame(t)
		}
		return arp(t, by.mac, broadcastMAC, layers.ARPReply, by.mac, by.ip4, broadcastMAC, by.ip4)
	}
	announces := func(name string, frame []byte) row {
		return everywhere(fromTunnel(t, name, theTunnel, frame), frame)
	}
	closed := turned(openNet, func(n *Network) { n.ICC = false })
	rows := []row{
		asks("one here", alice.ip(v6)).delivered(alice, question(t, far, alice.ip(v6))),
		asks("a trunk", trunk.ip(v6)).delivered(trunk, question(t, far, trunk.ip(v6))),
		asks("one behind the tunnel", remote.ip(v6)).floodedTo(),
		asks("the gateway", gatewayOf(openNet).ip(v6)).floodedTo(),
		everywhere(asks("one of another network", client.ip(v6)), question(t, far, client.ip(v6))),
		everywhere(asks("one behind a tunnel of another network", remoteClient.ip(v6)), question(t, far, remoteClient.ip(v6))),
		everywhere(asks("another network's gateway", gatewayOf(closedNet).ip(v6)), question(t, far, gatewayOf(closedNet).ip(v6))),
		everywhere(asks("nobody", nobody.ip(v6)), question(t, far, nobody.ip(v6))),
		asks("one of another network, without ICC", client.ip(v6)).given(closed, remember).dropped("policy"),
		announces("announcement out of a tunnel", tells(far)),
		announces("announcement of one who is known", tells(remote)),
		fromTunnel(t, "announcement of one who is known, by another tunnel", sixTunnel, tells(remote)).dropped("spoofed_overlay"),
	}
	if v6 {
		return rows
	}
	// A request by whom it is for asks nobody: RFC 5227, section 3.
	gratuitous := func(by host) []byte { return arpRequest(t, by.mac, by.ip4, by.ip4) }
	taken := arpRequest(t, far.mac, alice.ip4, alice.ip4)
	return append(rows,
		announces("gratuitous ARP", gratuitous(far)),
		announces("gratuitous ARP of one who is known", gratuitous(remote)),
		fromTunnel(t, "gratuitous ARP of one who is known, by another tunnel", sixTunnel, gratuitous(remote)).dropped("spoofed_overlay"),
		fromTunnel(t, "gratuitous ARP about one here", theTunnel, taken).dropped("spoofed_overlay"),
	)
}
