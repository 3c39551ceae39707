package datapath

import (
	"net/netip"
	"slices"
	"testing"
)

// Ports of bob, whose namespace is also on closedNet.
const (
	nearPort = 8088 // TCP, to 88; the default route of bob is on openNet
	awayPort = 8089 // TCP, to 89; the default route of bob is on closedNet
)

// withSeveral publishes these ports.
func withSeveral(wanted *Wanted) {
	wanted.Ports = slices.Clone(wanted.Ports)
	for _, v6 := range []bool{false, true} {
		bits, everywhere, length := prefix4, netip.IPv4Unspecified(), 32
		if v6 {
			bits, everywhere, length = prefix6, netip.IPv6Unspecified(), 128
		}
		subnet := func(network uint32) netip.Prefix {
			return netip.PrefixFrom(gatewayOf(network).ip(v6), bits).Masked()
		}
		for port, away := range map[uint16]bool{nearPort: false, awayPort: true} {
			wanted.Ports = append(wanted.Ports, Port{
				ID: uint32(port), Address: everywhere, Protocol: protocolTCP, First: port, Last: port,
				Target: bob.ip(v6), TargetFirst: port - 8000, Network: bob.network, Endpoint: bob.id,
				AllowFrom: []netip.Prefix{netip.PrefixFrom(everywhere, 0), netip.PrefixFrom(client.ip(v6), length)},
				Routes: []PortRoute{
					{netip.PrefixFrom(everywhere, 0), away},
					{subnet(openNet), false},
					{subnet(closedNet), true},
				},
			})
		}
	}
}

// severalRows are published ports of an endpoint on several networks.
func severalRows(t testing.TB) []row {
	return bothFamilies(func(v6 bool) []row {
		gateway := gatewayOf(openNet).ip(v6)
		near, away := tcp(40000, nearPort, "S"), tcp(40000, awayPort, "S")
		var rows []row
		for _, c := range []struct {
			name string
			l4   transport
			seen netip.Addr
		}{
			{"outside, over the network with the default route", near, website.ip(v6)},
			{"outside, over the network without the default route", away, gateway},
		} {
			asked := incoming(v6, c.l4)
			arrived := reached(asked, bob, c.l4.dport-8000)
			arrived.src = c.seen
			first := fromUplink(c.name, asked.frame(t)).delivered(bob, arrived.frame(t))
			answer := replying(arrived, "SA")
			rows = append(rows, first,
				fromEndpoint(c.name+", reply", bob, answer.frame(t)).after(first).redirected(repliedOutside(answer, asked).frame(t)))
		}
		for _, c := range []struct {
			name string
			from host
			l4   transport
			seen netip.Addr
		}{
			{"the other network", client, near, gateway},
			{"a third network", plain, near, plain.ip(v6)},
			{"a third network, over the network without the default route", plain, away, gateway},
			{"the endpoint itself", bob, near, gateway},
		} {
			asked := callsOut(c.from, uplink.ip(v6), c.l4)
			arrived := reached(asked, bob, c.l4.dport-8000)
			arrived.src = c.seen
			first := fromEndpoint(c.name, c.from, asked.frame(t)).delivered(bob, arrived.frame(t))
			answer := replying(arrived, "SA")
			out := repliedOutside(answer, asked)
			out.from, out.to = gatewayMAC, c.from.mac
			rows = append(rows, first,
				fromEndpoint(c.name+", reply", bob, answer.frame(t)).after(first).delivered(c.from, out.frame(t)))
		}
		for _, c := range []struct {
			name string
			at   host
			l4   transport
			seen netip.Addr
		}{
			{"the host at the gateway of the other network", gatewayOf(closedNet), near, gateway},
			{"the host at the gateway of a third network", gatewayOf(plainNet), near, gatewayOf(plainNet).ip(v6)},
			{"the host at the uplink", uplink, away, gateway},
		} {
			asked := localCall(c.at, v6, c.l4)
			arrived := reached(asked, bob, c.l4.dport-8000)
			arrived.src, arrived.ttl = c.seen, 64
			first := fromLoopback(c.name, asked.frame(t)).delivered(bob, arrived.frame(t))
			answer := replying(arrived, "SA")
			out := repliedOutside(answer, asked)
			out.from, out.to, out.ttl = mac{}, mac{}, 64
			rows = append(rows, first,
				fromEndpoint(c.name+", reply", bob, answer.frame(t)).after(first).redirected(out.frame(t)))
		}
		if v6 { // link-local addresses on lo have no known device
			linkLocal := host{ip6: netip.MustParseAddr("fe80::1")}
			rows = append(rows, fromLoopback("the host at a link-local address", localCall(linkLocal, v6, near).frame(t)).passed())
		}
		return rows
	})
}
