package datapath

import (
	"fmt"
	"slices"
	"testing"
)

// path marks a row as an example of a path. Benchmarks measure its cost, and
// TestLookups counts its lookups.
type path struct {
	name  string // empty: no example
	both  bool   // one path per family
	opens bool   // opens a flow, if it does not exist
}

// path marks the row as an example of a path. If there are rows for both
// families, only the IPv4 row is one.
func (r row) path(name string) row {
	r.example = path{name: name}
	return r
}

// paths marks rows for both families as examples of two paths.
func (r row) paths(name string) row {
	r.example = path{name: name, both: true}
	return r
}

// opening is paths for rows that open a flow.
func (r row) opening(name string) row {
	r.example = path{name: name, both: true, opens: true}
	return r
}

// of returns the path of a row of the family.
func (p path) of(v6 bool) path {
	switch {
	case !v6 || p.name == "":
		return p
	case !p.both:
		return path{}
	}
	p.name += "-ipv6"
	return p
}

// pathGroups returns the groups with only those rows that are examples of a
// path. It merges the groups without a change of the world.
func pathGroups(t testing.TB) []group {
	var all []group
	var alike []row
	for _, g := range groups() {
		rows := slices.DeleteFunc(g.rows(t), func(r row) bool { return r.example.name == "" })
		switch {
		case len(rows) == 0:
		case g.change == nil:
			alike = append(alike, rows...)
		default:
			g.rows = func(testing.TB) []row { return rows }
			all = append(all, g)
		}
	}
	return append(all, group{name: "alike", rows: func(testing.TB) []row { return alike }})
}

func TestPathsHaveDifferentNames(t *testing.T) {
	t.Parallel()
	seen := map[string]string{}
	for _, g := range groups() {
		for _, r := range g.rows(t) {
			name, at := r.example.name, fmt.Sprintf("%s/%s", g.name, r.name)
			if other, ok := seen[name]; ok && name != "" {
				t.Errorf("path %s is both %s and %s", name, other, at)
			}
			seen[name] = at
		}
	}
}

// establishedRows are packets of established flows, by far the most, and the
// packets that open flows.
func establishedRows(t testing.TB) []row {
	return bothFamilies(func(v6 bool) []row {
		return slices.Concat(linkedRows(t, v6), masqueradedRows(t, v6), publishedRows(t, v6), hostPaths(t, v6))
	})
}

func linkedRows(t testing.TB, v6 bool) []row {
	there := func(name, flags string) row {
		return fromEndpoint(name, client, between(client, server, v6, tcp(40000, 6379, flags)).frame(t)).delivered(server, nil)
	}
	back := func(name, flags string) row {
		return fromEndpoint(name, server, between(server, client, v6, tcp(6379, 40000, flags)).frame(t)).delivered(client, nil)
	}
	syn, answer, ack := there("linked, SYN", "S"), back("", "SA"), there("", "A")
	return []row{
		syn.opening("link-open"),
		there("linked", "A").after(syn, answer, ack).paths("link-out"),
		back("linked, back", "A").after(syn, answer, ack).paths("link-back"),
	}
}

func masqueradedRows(t testing.TB, v6 bool) []row {
	out := func(name string, l4 transport) row {
		p := outgoing(alice, v6, l4)
		return fromEndpoint(name, alice, p.frame(t)).redirected(masqueraded(p).frame(t))
	}
	in := func(name string, l4 transport) row {
		p := incoming(v6, l4)
		return fromUplink(name, p.frame(t)).delivered(alice, translated(p, alice).frame(t))
	}
	syn, answer, ack := out("masqueraded, SYN", tcp(40000, 80, "S")), in("", tcp(80, 40000, "SA")), out("", tcp(40000, 80, "A"))
	query, reply := out("masqueraded, UDP", udp(40000, 53)), in("masqueraded, back, UDP", udp(53, 40000))
	return []row{
		syn.opening("masquerade-open"),
		out("masqueraded", tcp(40000, 80, "A")).after(syn, answer, ack).paths("masquerade-out"),
		in("masqueraded, back", tcp(80, 40000, "A")).after(syn, answer, ack).paths("masquerade-back"),
		query.after(query, reply).path("masquerade-udp-out"),
		reply.after(query, reply).path("masquerade-udp-back"),
	}
}

func publishedRows(t testing.TB, v6 bool) []row {
	in := func(name string, l4 transport, port uint16) (row, packet) {
		p := incoming(v6, l4)
		arrived := reached(p, alice, port)
		return fromUplink(name, p.frame(t)).delivered(alice, arrived.frame(t)), arrived
	}
	back := func(name, flags string, l4 transport, arrived packet) row {
		p := replying(arrived, flags)
		return fromEndpoint(name, alice, p.frame(t)).redirected(repliedOutside(p, incoming(v6, l4)).frame(t))
	}
	l4 := tcp(40000, webPort, "S")
	syn, synArrived := in("published, SYN", l4, 80)
	ack, arrived := in("published", tcp(40000, webPort, "A"), 80)
	answer, next := back("", "SA", l4, synArrived), back("published, back", "A", tcp(40000, webPort, "A"), arrived)
	query, queryArrived := in("published, UDP", udp(40000, dnsPort), 53)
	reply := back("published, back, UDP", "", udp(40000, dnsPort), queryArrived)
	return []row{
		syn.opening("publish-open"),
		ack.after(syn, answer, ack).paths("publish-in"),
		next.after(syn, answer, ack).paths("publish-back"),
		query.after(query, reply, query).path("publish-udp-in"),
		reply.after(query, reply, query).path("publish-udp-back"),
	}
}

// hostPaths are packets of the host.
func hostPaths(t testing.TB, v6 bool) []row {
	own := outgoing(uplink, v6, tcp(40000, 80, "A"))
	own.from, own.to = uplinkMAC, routerMAC
	toHost := outgoing(alice, v6, tcp(40000, 22, "A"))
	toHost.dst = gatewayOf(openNet).ip(v6)
	toAlice := packet{from: gatewayMAC, to: alice.mac, src: toHost.dst, dst: toHost.src, l4: tcp(22, 40000, "A"), payload: "hello"}
	return []row{
		toUplink("the host's own", own.frame(t)).passed().paths("host-out"),
		fromUplink("the host's own, back", incoming(v6, tcp(80, 40000, "A")).frame(t)).passed().paths("host-in"),
		fromEndpoint("to the gateway", alice, toHost.frame(t)).redirected(nil).paths("gateway-out"),
		fromHost("from the gateway", toAlice.frame(t)).delivered(alice, nil).paths("gateway-back"),
	}
}

// overIPv6Rows are IPv6 packets in tunnels over IPv6.
func overIPv6Rows(t testing.TB) []row {
	out := between(alice, remoteBehind(plainForm6, openNet), true, udp(1, 2)).frame(t)
	in := between(remoteBehind(plainForm6, openNet), alice, true, udp(2, 1)).frame(t)
	return []row{
		fromEndpoint("IPv6 into a tunnel over IPv6", alice, out).
			tunnelledBy(plainForm6, sentInto(plainForm6, openNet).around(t, out)).path("gre-out-ipv6"),
		outOf(plainForm6, "IPv6 out of a tunnel over IPv6", cameOut(plainForm6, openNet).around(t, in)).
			delivered(alice, in).path("gre-back-ipv6"),
	}
}
