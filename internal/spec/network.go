package spec

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Prefix lengths that a subnet may have: at least room for a gateway and an
// endpoint, at most what its family's address plans hand out.
const (
	minPrefix4, maxPrefix4 = 8, 30
	minPrefix6, maxPrefix6 = 48, 126
)

// NewNetwork checks what the user says of a network. gateway may be empty:
// each subnet's gateway is then its first host address; one given serves the
// subnet it lies in. key may be empty: the network stays on this host. An MTU
// of 0 follows the uplinks and the tunnels. The flags ICC, Masquerade and Internal are false.
func NewNetwork(name string, subnets []string, gateway, key string, mtu int) (Network, error) {
	n := Network{Name: name, MTU: mtu}
	if err := Name("network", name); err != nil {
		return Network{}, err
	}
	if len(subnets) == 0 {
		return Network{}, fmt.Errorf("%w network %q: it has no subnet, want one, like 10.88.0.0/16", ErrInvalid, name)
	}
	for _, s := range subnets {
		p, err := ParseSubnet(s)
		if err != nil {
			return Network{}, err
		}
		for _, other := range n.Subnets {
			if other.Addr().Is4() == p.Addr().Is4() {
				return Network{}, fmt.Errorf("%w subnet %q: the network has %s already, want at most one a family",
					ErrInvalid, s, other)
			}
		}
		n.Subnets = append(n.Subnets, p)
		n.Gateways = append(n.Gateways, p.Addr().Next())
	}
	if gateway != "" {
		if err := n.SetGateway(gateway); err != nil {
			return Network{}, err
		}
	}
	if key != "" {
		k, err := ParseKey(key)
		if err != nil {
			return Network{}, err
		}
		n.Key = &k
	}
	if err := CheckMTU(mtu); err != nil {
		return Network{}, err
	}
	return n, nil
}

// CheckMTU checks the MTU that a network is to have, in bytes; with 0 it
// follows the uplinks and the tunnels.
func CheckMTU(mtu int) error {
	if mtu != 0 && (mtu < MinMTU || mtu > MaxMTU) {
		return fmt.Errorf("%w MTU %d: want %d to %d, or 0 to follow the uplinks and the tunnels",
			ErrInvalid, mtu, MinMTU, MaxMTU)
	}
	return nil
}

// SetGateway makes s the gateway of the subnet that it lies in.
func (n Network) SetGateway(s string) error {
	gateway, err := ParseAddress(s)
	if err != nil {
		return fmt.Errorf("gateway: %w", err)
	}
	i := n.subnetOf(gateway)
	if i < 0 {
		return fmt.Errorf("%w gateway %q: it lies outside the network, want an address of %s",
			ErrInvalid, s, n.subnetList())
	}
	if what := reserved(n.Subnets[i], gateway); what != "" {
		return fmt.Errorf("%w gateway %q: it is the %s address of %s, want a host address, like %s",
			ErrInvalid, s, what, n.Subnets[i], n.Gateways[i])
	}
	n.Gateways[i] = gateway
	return nil
}

// unfitFor names the range that p shares addresses with and in which no
// endpoint can live, if there is one.
func unfitFor(p netip.Prefix) (what string, r netip.Prefix) {
	for _, unfit := range []struct{ what, prefix string }{
		{"addresses of \"this network\"", "0.0.0.0/8"},
		{"loopback addresses", "127.0.0.0/8"},
		{"link-local addresses", "169.254.0.0/16"},
		{"multicast addresses", "224.0.0.0/4"},
		{"the limited broadcast address", "255.255.255.255/32"},
		{"the unspecified and the loopback address", "::/64"},
		{"link-local addresses", "fe80::/10"},
		{"multicast addresses", "ff00::/8"},
	} {
		if r = netip.MustParsePrefix(unfit.prefix); r.Overlaps(p) {
			return unfit.what, r
		}
	}
	return "", netip.Prefix{}
}

// ParseSubnet reads a subnet in CIDR notation, its host bits zero.
func ParseSubnet(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("%w subnet %q: want ADDRESS/BITS, like 10.88.0.0/16 or fd00:88::/64", ErrInvalid, s)
	}
	if p.Masked() != p {
		return netip.Prefix{}, fmt.Errorf("%w subnet %q: it has host bits set, want %s", ErrInvalid, s, p.Masked())
	}
	least, most := minPrefix4, maxPrefix4
	if p.Addr().Is6() {
		least, most = minPrefix6, maxPrefix6
	}
	if p.Bits() < least || p.Bits() > most {
		return netip.Prefix{}, fmt.Errorf("%w subnet %q: prefix length %d, want /%d to /%d",
			ErrInvalid, s, p.Bits(), least, most)
	}
	if what, r := unfitFor(p); what != "" {
		return netip.Prefix{}, fmt.Errorf("%w subnet %q: it holds %s, want unicast addresses outside %s",
			ErrInvalid, s, what, r)
	}
	return p, nil
}

// ParseAddress reads an IP address without a zone. An IPv4-mapped IPv6
// address is the IPv4 address.
func ParseAddress(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("%w address %q: want one like 10.88.0.2 or fd00:88::2", ErrInvalid, s)
	}
	if a.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("%w address %q: it has a zone, want %s", ErrInvalid, s, a.WithZone(""))
	}
	return a.Unmap(), nil
}

// ParseKey reads a GRE key (RFC 2890): a decimal number of 32 bits.
func ParseKey(s string) (uint32, error) {
	k, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%w key %q: want a number from 0 to %d", ErrInvalid, s, ^uint32(0))
	}
	return uint32(k), nil
}

// CheckAddress tells why an endpoint of n cannot have the address a, whatever
// other endpoints there are; nil if it can.
func (n Network) CheckAddress(a netip.Addr) error {
	i := n.subnetOf(a)
	if i < 0 {
		return fmt.Errorf("%w address %s: it lies outside network %q, want one in %s",
			ErrInvalid, a, n.Name, n.subnetList())
	}
	what := reserved(n.Subnets[i], a)
	if what == "" && slices.Contains(n.Gateways, a) {
		what = "gateway"
	}
	if what == "" && slices.Contains(n.Reserved, a) {
		what = "reserved"
	}
	if what != "" {
		return fmt.Errorf("%w address %s: it is the %s address of network %q, want another in %s",
			ErrInvalid, a, what, n.Name, n.Subnets[i])
	}
	return nil
}

// Overlaps gives the first subnet of o that shares addresses with one of n's.
func (n Network) Overlaps(o Network) (netip.Prefix, bool) {
	for _, theirs := range o.Subnets {
		if slices.ContainsFunc(n.Subnets, theirs.Overlaps) {
			return theirs, true
		}
	}
	return netip.Prefix{}, false
}

// subnetOf gives the index of the subnet that holds a, or -1.
func (n Network) subnetOf(a netip.Addr) int {
	return slices.IndexFunc(n.Subnets, func(p netip.Prefix) bool { return p.Contains(a) })
}

// Gateway gives the gateway of an address's family; the zero Addr if the network
// has none.
func (n Network) Gateway(family netip.Addr) netip.Addr {
	for _, gateway := range n.Gateways {
		if gateway.Is4() == family.Is4() {
			return gateway
		}
	}
	return netip.Addr{}
}

// Prefix gives an address with the length of the subnet that holds it; the zero
// Prefix if none does.
func (n Network) Prefix(address netip.Addr) netip.Prefix {
	if i := n.subnetOf(address); i >= 0 {
		return netip.PrefixFrom(address, n.Subnets[i].Bits())
	}
	return netip.Prefix{}
}

func (n Network) subnetList() string {
	var list []string
	for _, p := range n.Subnets {
		list = append(list, p.String())
	}
	return strings.Join(list, " or ")
}

// LastAddress gives the highest address of p: for IPv4 its broadcast address.
func LastAddress(p netip.Prefix) netip.Addr {
	a := p.Addr().AsSlice()
	for bit := p.Bits(); bit < p.Addr().BitLen(); bit++ {
		a[bit/8] |= 0x80 >> (bit % 8)
	}
	last, _ := netip.AddrFromSlice(a) // of the length it came with
	return last
}

// reserved names the address of p that is no host's: "network" (for IPv6 the
// routers' anycast address, RFC 4291, section 2.6.1), "broadcast", or "".
func reserved(p netip.Prefix, a netip.Addr) string {
	switch {
	case a == p.Masked().Addr():
		return "network"
	case a.Is4() && a == LastAddress(p):
		return "broadcast"
	}
	return ""
}
