package datapath

import (
	"net/netip"
	"testing"
)

// secondUplink is side0 as an uplink: see takenOver.
var secondUplink = host{ip4: netip.MustParseAddr("198.51.100.1"), ip6: netip.MustParseAddr("2001:db8:51::1")}

// takenOver routes website through a second uplink. givenBack undoes it.
func takenOver(t testing.TB, w *world) {
	w.ip(t, w.ns, "addr add 198.51.100.1/32 dev side0\naddr add 2001:db8:51::1/128 dev side0 nodad\n"+
		"route add 198.18.0.9/32 via 198.51.100.254 dev side0 src 198.51.100.1\n"+
		"route add 2001:db8:9::9/128 via 2001:db8:51::fe dev side0 src 2001:db8:51::1\n")
	side := Uplink{Ifindex: int(w.ifindex["side0"]), IPv4: secondUplink.ip4, IPv6: secondUplink.ip6}
	if err := w.ReplaceUplinks(append([]Uplink{side}, w.wanted.Uplinks...)); err != nil {
		t.Fatal(err)
	}
}

func givenBack(t testing.TB, w *world) {
	w.ip(t, w.ns, "route del 198.18.0.9/32\nroute del 2001:db8:9::9/128\n"+
		"addr del 198.51.100.1/32 dev side0\naddr del 2001:db8:51::1/128 dev side0\n"+
		"route replace 198.51.100.0/24 dev side0\n") // deleted with the address
	if err := w.ReplaceUplinks(w.wanted.Uplinks); err != nil {
		t.Fatal(err)
	}
}

// ruled routes packets from the first uplink's address through that uplink.
// unruled undoes it.
func ruled(t testing.TB, w *world) {
	w.ns.Run(t, "ip", "-6", "rule", "add", "from", "2001:db8:1::1", "lookup", "100")
	w.ip(t, w.ns, "rule add from 192.0.2.1 lookup 100\n"+
		"route add default via 192.0.2.254 table 100\nroute add default via 2001:db8:1::fe table 100\n")
}

func unruled(t testing.TB, w *world) {
	w.ns.Run(t, "ip", "-6", "rule", "del", "from", "2001:db8:1::1", "lookup", "100")
	w.ip(t, w.ns, "rule del from 192.0.2.1 lookup 100\n"+
		"route del default via 192.0.2.254 table 100\nroute del default via 2001:db8:1::fe table 100\n")
}

// rerouteRows are flows from before a second uplink gets the route.
func rerouteRows(t testing.TB) []row {
	return bothFamilies(func(v6 bool) []row {
		p := outgoing(alice, v6, udp(40000, 53))
		query, answered := sentBy(t, alice, v6, p.l4), answerTo(t, "", v6, udp(53, 40000), row{})
		other := masqueraded(p)
		other.src = secondUplink.ip(v6)
		asked := incoming(v6, udp(40000, dnsPort))
		call := fromUplink("", asked.frame(t))
		reply := replying(reached(asked, alice, 53), "")
		return []row{
			named("new flow", query).given(takenOver, givenBack).redirected(other.frame(t)),
			named("flow through the first uplink", query).after(query, answered).given(takenOver, givenBack).dropped("address_lost"),
			named("flow through the first uplink, next packet", query).after(query, answered).
				given(sending(takenOver, query), givenBack).redirected(other.frame(t)),
			named("flow through the first uplink, which still has a route for it", query).after(query, answered).
				given(both(takenOver, ruled), both(unruled, givenBack)).redirected(masqueraded(p).frame(t)),
			fromUplink("reply through the first uplink", incoming(v6, udp(53, 40000)).frame(t)).after(query).given(takenOver, givenBack).
				delivered(alice, translated(incoming(v6, udp(53, 40000)), alice).frame(t)),
			named("flow through the second uplink", query).given(sending(takenOver, query), givenBack).redirected(other.frame(t)),
			fromEndpoint("reply of a published port", alice, reply.frame(t)).after(call).given(takenOver, givenBack).
				redirected(repliedOutside(reply, asked).frame(t)),
		}
	})
}
