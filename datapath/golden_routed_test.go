package datapath

import "testing"

// withRouted lets everybody ping the endpoints of plainNet.
func withRouted(wanted *Wanted) {
	networks := append([]Network{}, wanted.Networks...)
	networks[plainNet-1].Routed = true
	wanted.Networks = networks
}

// routedRows are packets to endpoints at their own addresses.
func routedRows(t testing.TB) []row {
	return bothFamilies(func(v6 bool) []row {
		ping, pong := echo(v6, false, 4007), echo(v6, true, 4007)
		outside := func(name string, to host, l4 transport) row {
			asked := incoming(v6, l4)
			asked.dst = to.ip(v6)
			return fromUplink(name, asked.frame(t))
		}
		inside := func(name string, from, to host, l4 transport) row {
			return fromEndpoint(name, from, callsOut(from, to.ip(v6), l4).frame(t))
		}
		// crossed is the packet as it arrives on another network.
		crossed := func(from, to host, l4 transport) []byte {
			p := callsOut(from, to.ip(v6), l4)
			p.from, p.to, p.ttl = gatewayMAC, to.mac, 63
			return p.frame(t)
		}
		pinged := incoming(v6, ping)
		pinged.dst = plain.ip(v6)
		asked := fromUplink("echo", pinged.frame(t)).delivered(plain, translated(pinged, plain).frame(t))
		answer := outgoing(plain, v6, pong)
		gone := answer
		gone.from, gone.to, gone.ttl = plain.mac, gatewayMAC, 63
		called := inside("another network, TCP", client, plain, tcp(40000, routedPort, "S")).
			delivered(plain, crossed(client, plain, tcp(40000, routedPort, "S")))
		echoed := inside("another network, echo", client, plain, ping).delivered(plain, crossed(client, plain, ping))
		return []row{
			asked,
			fromEndpoint("echo, reply", plain, answer.frame(t)).after(asked).redirected(gone.frame(t)),
			outside("echo without an identifier", plain, echo(v6, false, 0)).passed(),
			outside("echo to a network that is not routed", alice, ping).passed(),
			outside("echo to the host", uplink, ping).passed(),

			called,
			inside("another network, TCP, reply", plain, client, tcp(routedPort, 40000, "SA")).after(called).
				delivered(client, crossed(plain, client, tcp(routedPort, 40000, "SA"))),
			inside("another network, RST that opens", client, plain, tcp(40000, routedPort, "R")).dropped("unknown_flow"),
			inside("another network, at a port that is published at the host's addresses", client, plain, tcp(40000, plainPort, "S")).dropped("isolated"),
			inside("another network, at a port that is not published", client, plain, tcp(40000, routedPort+1, "S")).dropped("isolated"),
			inside("another network, of another protocol", client, plain, udp(40000, routedPort)).dropped("isolated"),
			inside("an internal network", insider, plain, tcp(40000, routedPort, "S")).dropped("isolated"),
			inside("reply without a request", plain, client, tcp(routedPort, 40000, "SA")).dropped("isolated"),

			echoed,
			inside("another network, echo, reply", plain, client, pong).after(echoed).delivered(client, crossed(plain, client, pong)),
			inside("another network, echo to a network that is not routed", plain, client, ping).dropped("isolated"),
			inside("an internal network, echo", insider, plain, ping).dropped("isolated"),
			inside("another network, reply without a request", client, plain, pong).dropped("isolated"),
		}
	})
}
