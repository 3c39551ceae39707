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

// sixTunnel is a tunnel of withShared over IPv6.
const sixTunnel = 2

// The trunks of withShared. They use devices that belong to other endpoints in
// other worlds.
var (
	trunk      = trunkBy(plain, 40)
	otherTrunk = trunkBy(insider, 41)
)

func trunkBy(h host, n uint32) host {
	h.network, h.ip4, h.ip6 = openNet, address4(openNet, n), address6(openNet, n)
	return h
}

// stranger is a station of openNet without a static entry. It is behind the
// trunk whose device it has, or elsewhere if `at` is the zero host.
func stranger(at host, n uint32) host {
	return host{
		network: openNet, device: at.device, mac: mac{0x02, 0x5e, 0, 0, 0, byte(n)},
		ip4: address4(openNet, n), ip6: address6(openNet, n),
	}
}

// withShared adds two trunks to openNet, and two tunnels that carry it.
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

// fromTunnel is a frame of openNet that arrives through a tunnel of withShared.
func fromTunnel(t testing.TB, name string, tunnel uint32, inner []byte) row {
	t.Helper()
	return outOf(tunnel, name, arriving(tunnel == sixTunnel, key(openKey)).around(t, inner))
}

// intoTunnel is the frame in transit to the tunnel.
func intoTunnel(t testing.TB, tunnel uint32, inner []byte) []byte {
	t.Helper()
	return leaving(tunnel == sixTunnel, key(openKey)).around(t, inner)
}

// multicast is a packet from a station to a group that every station can join.
func multicast(from host, v6 bool) packet {
	p := packet{from: from.mac, to: mac{1, 0, 0x5e, 0, 0, 0xfb}, src: from.ip(v6), dst: netip.MustParseAddr("224.0.0.251"), l4: udp(5353, 5353)}
	if v6 {
		p.dst = netip.MustParseAddr("ff02::fb")
		p.to = multicastMAC(p.dst)
	}
	return p
}

// question is an ARP request or a neighbor solicitation for an address.
func question(t testing.TB, from host, target netip.Addr) []byte {
	if target.Is4() {
		return arpRequest(t, from.mac, from.ip4, target)
	}
	return ask(from.mac, from.ip6, target, ndOption(optionSourceMAC, from.mac)).frame(t)
}

// floodRows check which receivers get flooded frames.
func floodRows(t testing.TB) []row {
	return bothFamilies(func(v6 bool) []row {
		return slices.Concat(floodLocalRows(t, v6), floodTunnelRows(t, v6), questionRows(t, v6))
	})
}

// floodLocalRows are flooded frames of endpoints.
func floodLocalRows(t testing.TB, v6 bool) []row {
	behind, far := stranger(trunk, 80), stranger(host{}, 90)
	tunnels := []uint32{theTunnel, sixTunnel}
	to := func(from host) []byte { return between(from, far, v6, udp(1, 2)).frame(t) }
	closed := changeNetwork(openNet, func(n *Network) { n.ICC = false })
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
		fromEndpoint("to an unknown MAC", alice, to(alice)).floodedTo(trunk, otherTrunk).into(tunnels...),
		fromEndpoint("of a trunk to an unknown MAC", trunk, to(trunk)).floodedTo(otherTrunk).into(tunnels...),
		fromEndpoint("from behind a trunk to an unknown MAC", trunk, to(behind)).floodedTo(otherTrunk).into(tunnels...),
		fromEndpoint("to a group", alice, group).floodedTo(bob, trunk, otherTrunk).into(tunnels...),
		fromEndpoint("to a group, with a member without a device", alice, group).given(without(bob), remember).
			floodedTo(trunk, otherTrunk).into(tunnels...).alsoDropped("copy_failed"),
		fromEndpoint("of a trunk to a group", trunk, multicast(trunk, v6).frame(t)).floodedTo(alice, bob, otherTrunk).into(tunnels...),
		fromEndpoint("from behind a trunk to a group", trunk, multicast(behind, v6).frame(t)).floodedTo(alice, bob, otherTrunk).into(tunnels...),
		fromEndpoint("question for an unknown address", alice, asked).floodedTo(bob, trunk, otherTrunk).into(tunnels...),
		arrives("to a group, on its way", theTunnel, group),
		arrives("to a group, on its way over IPv6", sixTunnel, group),
		askedOut,
		fromEndpoint("to an unknown MAC, without ICC", alice, to(alice)).given(closed, remember).dropped("policy"),
		fromEndpoint("to a group, without ICC", alice, group).given(closed, remember).dropped("policy"),
		fromEndpoint("from behind a trunk to an unknown MAC, without ICC", trunk, to(behind)).given(closed, remember).dropped("policy"),
		fromEndpoint("to an unknown MAC, without trunks and tunnels", alice, to(alice)).given(unshared, remember).dropped("unknown_destination"),
		fromEndpoint("of a trunk to an unknown MAC, without other trunks and tunnels", trunk, to(trunk)).given(onlyTrunk, remember).dropped("unknown_destination"),
		fromEndpoint("to an unknown MAC, with only a trunk", alice, to(alice)).given(onlyTrunk, remember).floodedTo(trunk),
	}
}

// unshared removes all trunks and tunnels from openNet. onlyTrunk leaves one
// trunk.
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

// without gives the member h a device that does not exist.
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

// floodTunnelRows are flooded frames from a tunnel. They go only to this host's
// endpoints, so that no loop can form.
func floodTunnelRows(t testing.TB, v6 bool) []row {
	far, nowhere := stranger(host{}, 90), stranger(host{}, 91)
	group := multicast(far, v6).frame(t)
	ofRemote := multicast(remote, v6).frame(t)
	to := between(far, nowhere, v6, udp(1, 2)).frame(t)
	closed := changeNetwork(openNet, func(n *Network) { n.ICC = false })
	var rows []row
	for tunnel, name := range map[uint32]string{theTunnel: "out of a tunnel", sixTunnel: "out of a tunnel over IPv6"} {
		rows = append(rows,
			fromTunnel(t, name+", to a group", tunnel, group).floodedAs(group, alice, bob, trunk, otherTrunk),
			fromTunnel(t, name+", to an unknown MAC", tunnel, to).floodedAs(to, trunk, otherTrunk),
			fromTunnel(t, name+", to a group, without ICC", tunnel, group).given(closed, remember).dropped("policy"),
			fromTunnel(t, name+", to an unknown MAC, without ICC", tunnel, to).given(closed, remember).dropped("policy"),
		)
	}
	return append(rows,
		fromTunnel(t, "out of a tunnel, of a known station, to a group", theTunnel, ofRemote).floodedAs(ofRemote, alice, bob, trunk, otherTrunk),
		fromTunnel(t, "out of another tunnel, of a known station, to a group", sixTunnel, ofRemote).dropped("spoofed_overlay"),
		fromTunnel(t, "out of a tunnel to an unknown MAC, without trunks", theTunnel, to).given(withoutTrunks, remember).droppedAs("unknown_destination", to),
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

// questionRows are questions from a tunnel. A question for a known station is
// not flooded.
func questionRows(t testing.TB, v6 bool) []row {
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
	closed := changeNetwork(openNet, func(n *Network) { n.ICC = false })
	rows := []row{
		asks("an endpoint of this host", alice.ip(v6)).delivered(alice, question(t, far, alice.ip(v6))),
		asks("a trunk", trunk.ip(v6)).delivered(trunk, question(t, far, trunk.ip(v6))),
		asks("a station behind the tunnel", remote.ip(v6)).floodedTo(),
		asks("the gateway", gatewayOf(openNet).ip(v6)).floodedTo(),
		everywhere(asks("an endpoint of another network", client.ip(v6)), question(t, far, client.ip(v6))),
		everywhere(asks("a station of another network behind a tunnel", remoteClient.ip(v6)), question(t, far, remoteClient.ip(v6))),
		everywhere(asks("another network's gateway", gatewayOf(closedNet).ip(v6)), question(t, far, gatewayOf(closedNet).ip(v6))),
		everywhere(asks("an unknown address", nobody.ip(v6)), question(t, far, nobody.ip(v6))),
		asks("an endpoint of another network, without ICC", client.ip(v6)).given(closed, remember).dropped("policy"),
		announces("announcement out of a tunnel", tells(far)),
		announces("announcement of a known station", tells(remote)),
		fromTunnel(t, "announcement of a known station through another tunnel", sixTunnel, tells(remote)).dropped("spoofed_overlay"),
	}
	if v6 {
		return rows
	}
	// A request for the sender's own address asks nobody: RFC 5227, section 3.
	gratuitous := func(by host) []byte { return arpRequest(t, by.mac, by.ip4, by.ip4) }
	taken := arpRequest(t, far.mac, alice.ip4, alice.ip4)
	return append(rows,
		announces("gratuitous ARP", gratuitous(far)),
		announces("gratuitous ARP of a known station", gratuitous(remote)),
		fromTunnel(t, "gratuitous ARP of a known station through another tunnel", sixTunnel, gratuitous(remote)).dropped("spoofed_overlay"),
		fromTunnel(t, "gratuitous ARP about an endpoint of this host", theTunnel, taken).dropped("spoofed_overlay"),
	)
}
