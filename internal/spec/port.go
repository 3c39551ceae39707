package spec

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// The ports of the host from which one is chosen where none is asked for: dynamic
// ports (RFC 6335, section 6) above those that Linux gives its own sockets by
// default (net.ipv4.ip_local_port_range).
const (
	FirstChosenPort = 61000
	LastChosenPort  = 65535
)

// MaxSources is how many sources one publication may be restricted to.
const MaxSources = 256

// Port is a publication: ports First to Last of the host lead to as many of an
// endpoint's, from TargetFirst on. Its text form is
// [[HOSTIP:][HOSTPORT[-END]]:]PORT[-END][/tcp|udp|sctp]; an IPv6 HOSTIP stands in
// brackets.
type Port struct {
	ID       uint32 `json:"id"`
	Endpoint string `json:"endpoint"`
	// Of the host; unset: every one of both families; unspecified (0.0.0.0 or
	// ::): every one of its family.
	Address     netip.Addr     `json:"host_address,omitzero"`
	First       uint16         `json:"host_port"` // 0: to be chosen
	Last        uint16         `json:"host_port_end"`
	TargetFirst uint16         `json:"port"`
	TargetLast  uint16         `json:"port_end"`
	Protocol    Protocol       `json:"protocol"`
	AllowFrom   []netip.Prefix `json:"allow_from,omitempty"` // none: from everywhere
	MaxFlows    uint32         `json:"max_flows,omitempty"`  // established ones from outside; 0: the default
	Engine      string         `json:"engine,omitempty"`     // that asked for it; none: the user did
}

const portForm = "[[HOSTIP:][HOSTPORT[-END]]:]PORT[-END][/tcp|udp|sctp]"

// ParsePort reads a publication's text form.
func ParsePort(s string) (Port, error) {
	bad := func(why string) (Port, error) {
		return Port{}, fmt.Errorf("%w published port %q: %s; want %s", ErrInvalid, s, why, portForm)
	}
	rest, protocol, named := strings.Cut(s, "/")
	p := Port{Protocol: TCP}
	if named {
		var err error
		if p.Protocol, err = ParseProtocol(protocol); err != nil {
			return bad(fmt.Sprintf("protocol %q is none of tcp, udp and sctp", protocol))
		}
	}
	address, numbers, err := cutHostAddress(rest)
	if err != nil {
		return bad(err.Error())
	}
	if address != "" {
		if p.Address, err = parseHostAddress(address); err != nil {
			return bad(err.Error())
		}
	}
	outside, inside, both := strings.Cut(numbers, ":")
	if !both {
		outside, inside = "", numbers
	}
	if p.TargetFirst, p.TargetLast, err = parseRange(inside); err != nil {
		return bad(err.Error())
	}
	if outside == "" {
		return p, nil
	}
	if p.First, p.Last, err = parseRange(outside); err != nil {
		return bad(err.Error())
	}
	if p.Last-p.First != p.TargetLast-p.TargetFirst {
		return bad(fmt.Sprintf("%s and %s are not as many ports, and each leads to one", outside, inside))
	}
	return p, nil
}

// cutHostAddress parts HOSTIP, empty if there is none, from what follows.
func cutHostAddress(s string) (address, numbers string, err error) {
	if inside, bracketed := strings.CutPrefix(s, "["); bracketed {
		address, numbers, closed := strings.Cut(inside, "]")
		numbers, parted := strings.CutPrefix(numbers, ":")
		switch {
		case !closed:
			return "", "", errors.New("a bracket is not closed")
		case !strings.Contains(address, ":"):
			return "", "", fmt.Errorf("%q is no IPv6 address", address)
		case !parted || strings.Count(numbers, ":") != 1:
			return "", "", errors.New("[HOSTIP] is not followed by :HOSTPORT:PORT or ::PORT")
		}
		return address, numbers, nil
	}
	switch strings.Count(s, ":") {
	case 0, 1:
		if address, _, _ := strings.Cut(s, ":"); strings.Contains(address, ".") {
			return "", "", fmt.Errorf("%q is no port; after a HOSTIP comes HOSTPORT:PORT, or :PORT to have one chosen", address)
		}
		return "", s, nil
	case 2:
		address, numbers, _ := strings.Cut(s, ":")
		if address == "" {
			return "", "", errors.New("HOSTIP is empty")
		}
		return address, numbers, nil
	}
	return "", "", errors.New("too many colons; an IPv6 HOSTIP stands in brackets")
}

// parseHostAddress reads an address that a host can have, or an unspecified
// one.
func parseHostAddress(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		return a, fmt.Errorf("%q is no IP address", s)
	case a.Zone() != "":
		return a, fmt.Errorf("%q has a zone", s) // which may hold anything
	case a.Is4In6():
		return a, fmt.Errorf("%s is an IPv4 address, to be written %s", s, a.Unmap())
	case a.IsMulticast():
		return a, fmt.Errorf("%s is a multicast address", s)
	case a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return a, fmt.Errorf("%s is the broadcast address", s)
	case a.Is6() && a.IsLinkLocalUnicast():
		return a, fmt.Errorf("%s is link-local, which does not say of which device", s)
	}
	return a, nil
}

// String gives the form that ParsePort reads, whatever the sources.
func (p Port) String() string {
	var s strings.Builder
	if p.Address.IsValid() {
		s.WriteString(HostText(p.Address) + ":")
	}
	if p.First != 0 {
		s.WriteString(rangeText(p.First, p.Last))
	}
	if p.Address.IsValid() || p.First != 0 {
		s.WriteString(":")
	}
	return s.String() + p.Target().String()
}

// HostText gives an address as it stands before a colon: IPv6 in brackets.
func HostText(a netip.Addr) string {
	if a.Is6() {
		return "[" + a.String() + "]"
	}
	return a.String()
}

// Host gives the part of the text form that says where on the host.
func (p Port) Host() string {
	numbers := rangeText(p.First, p.Last)
	if !p.Address.IsValid() {
		return numbers
	}
	return HostText(p.Address) + ":" + numbers
}

// TargetText gives the part of the text form that says where in the endpoint.
func (p Port) TargetText() string { return rangeText(p.TargetFirst, p.TargetLast) }

// Target gives the endpoint's ports.
func (p Port) Target() Ports { return Ports{p.Protocol, p.TargetFirst, p.TargetLast} }

// Count is how many ports are published.
func (p Port) Count() int { return int(p.TargetLast) - int(p.TargetFirst) + 1 }

// Matches tells whether the user may mean p by o: its text form, in which the
// host's address and ports may be left out.
func (p Port) Matches(o Port) bool {
	return (!o.Address.IsValid() || p.Address == o.Address) && p.Target() == o.Target() &&
		(o.First == 0 || p.First == o.First && p.Last == o.Last)
}

// Fulfills tells whether p is a publication that o asks for: at the same address,
// and at ports of the host that o leaves open or names.
func (p Port) Fulfills(o Port) bool { return p.Address == o.Address && p.Matches(o) }

// AddressesOverlap tells whether two addresses of publications stand for one
// and the same at all; see Port.Address.
func AddressesOverlap(a, b netip.Addr) bool {
	if !a.IsValid() || !b.IsValid() {
		return true
	}
	return a.Is4() == b.Is4() && (a == b || a.IsUnspecified() || b.IsUnspecified())
}

// Restrict sets from where p may be reached: prefixes in CIDR notation, their
// host bits zero, or addresses. Each is kept once.
func (p *Port) Restrict(list []string) error {
	var sources []netip.Prefix
	for _, s := range list {
		source, err := parseSource(s)
		if err != nil {
			return err
		}
		if p.Address.IsValid() && p.Address.Is4() != source.Addr().Is4() {
			return fmt.Errorf("%w source %q: it cannot reach %s, which is of the other family", ErrInvalid, s, p.Address)
		}
		if !slices.Contains(sources, source) {
			sources = append(sources, source)
		}
	}
	if len(sources) > MaxSources {
		return fmt.Errorf("%w sources: %d are given, at most %d are allowed", ErrInvalid, len(sources), MaxSources)
	}
	p.AllowFrom = sources
	return nil
}

func parseSource(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		var a netip.Addr
		if a, err = netip.ParseAddr(s); err == nil && a.Zone() == "" {
			p = netip.PrefixFrom(a, a.BitLen())
		}
	}
	if err != nil || !p.IsValid() || p.Addr().Is4In6() {
		return p, fmt.Errorf("%w source %q: want ADDRESS or ADDRESS/BITS, like 192.0.2.0/24 or 2001:db8::/32", ErrInvalid, s)
	}
	if p.Masked() != p {
		return p, fmt.Errorf("%w source %q: it has host bits set, want %s", ErrInvalid, s, p.Masked())
	}
	return p, nil
}
