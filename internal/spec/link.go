package spec

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// ParseLink reads SERVER[:ALIAS], as in `docker run --link`; the alias is the
// server's name if not said.
func ParseLink(s string) (server, alias string, err error) {
	server, alias, aliased := strings.Cut(s, ":")
	if !aliased {
		alias = server
	}
	if err := Name("server", server); err != nil {
		return "", "", fmt.Errorf("link %q: %w", s, err)
	}
	if err := Name("alias", alias); err != nil {
		return "", "", fmt.Errorf("link %q: %w", s, err)
	}
	return server, alias, nil
}

// Env gives the variables NAME=value that `docker run --link` of Docker
// Engine 20.10 sets in the client for the server's ports, each once, in
// Docker's order. They name the server's IPv4 address, or its IPv6 address if
// it has no other.
func (l Link) Env(server Endpoint) []string {
	v := variables{alias: strings.ReplaceAll(strings.ToUpper(l.Alias), "-", "_")}
	if addresses := ipv4First(server.Addresses); len(addresses) > 0 {
		v.address = addresses[0]
		v.setPorts(expand(l.Ports))
	}
	return append(v.env, fmt.Sprintf("%s_NAME=/%s/%s", v.alias, l.Client, l.Alias))
}

// Hosts gives the lines for the client's /etc/hosts: one for each address of
// the server, IPv4 first, with the alias and the server's name.
func (l Link) Hosts(server Endpoint) []string {
	names := l.Alias
	if l.Alias != l.Server {
		names += " " + l.Server
	}
	var lines []string
	for _, a := range ipv4First(server.Addresses) {
		lines = append(lines, a.String()+" "+names)
	}
	return lines
}

func ipv4First(addresses []netip.Addr) []netip.Addr {
	return slices.SortedStableFunc(slices.Values(addresses), func(a, b netip.Addr) int {
		return cmp.Compare(a.BitLen(), b.BitLen())
	})
}

// port is one of Ports.
type port struct {
	protocol Protocol
	number   uint16
}

// expand gives every port once in Docker's order: by number, TCP before UDP.
func expand(ranges []Ports) []port {
	var ports []port
	for _, r := range ranges {
		for n := int(r.First); n <= int(r.Last); n++ {
			ports = append(ports, port{r.Protocol, uint16(n)})
		}
	}
	slices.SortFunc(ports, func(a, b port) int {
		return cmp.Or(cmp.Compare(a.number, b.number), cmp.Compare(a.protocol, b.protocol))
	})
	return slices.Compact(ports)
}

// variables collects the environment for one server.
type variables struct {
	alias   string
	address netip.Addr
	env     []string
}

func (v *variables) setPorts(ports []port) {
	if len(ports) > 0 {
		v.env = append(v.env, fmt.Sprintf("%s_PORT=%s", v.alias, v.url(ports[0])))
	}
	described := make(map[port]bool) // by the range it starts
	for rest := ports; len(rest) > 0; {
		n := runLength(rest)
		if n > 1 {
			v.setRange(rest[0], rest[n-1])
			described[rest[0]] = true
		}
		rest = rest[n:]
	}
	for _, p := range ports {
		prefix := v.prefix(p)
		v.env = append(v.env, fmt.Sprintf("%s=%s", prefix, v.url(p)))
		if !described[p] {
			v.env = append(v.env, fmt.Sprintf("%s_ADDR=%s", prefix, v.address))
		}
		v.env = append(v.env, fmt.Sprintf("%s_PORT=%d", prefix, p.number))
		if !described[p] {
			v.env = append(v.env, fmt.Sprintf("%s_PROTO=%s", prefix, p.protocol))
		}
	}
}

func (v *variables) setRange(first, last port) {
	start, end := v.prefix(first), v.prefix(port{last.protocol, first.number})
	v.env = append(v.env,
		fmt.Sprintf("%s_START=%s", start, v.url(first)),
		fmt.Sprintf("%s_ADDR=%s", start, v.address),
		fmt.Sprintf("%s_PROTO=%s", start, first.protocol),
		fmt.Sprintf("%s_PORT_START=%d", start, first.number),
		fmt.Sprintf("%s_END=%s", end, v.url(last)),
		fmt.Sprintf("%s_PORT_END=%d", end, last.number))
}

func (v *variables) prefix(p port) string {
	return fmt.Sprintf("%s_PORT_%d_%s", v.alias, p.number, strings.ToUpper(p.protocol.String()))
}

func (v *variables) url(p port) string {
	return fmt.Sprintf("%s://%s", p.protocol, netip.AddrPortFrom(v.address, p.number))
}

// runLength counts the ports at the head of the sorted ports that Docker
// describes as one range; one if they are none. Two ports are no range, and
// Docker counts positions rather than numbers, so that a number with both
// protocols leaves room for a gap later: such ranges are kept as Docker's.
func runLength(ports []port) int {
	const shortest = 3
	n := 1
	for n < len(ports) && int(ports[n].number) <= int(ports[0].number)+n {
		n++
	}
	if n < shortest {
		return 1
	}
	return n
}
