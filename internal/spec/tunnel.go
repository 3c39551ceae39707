package spec

import (
	"fmt"
	"net/netip"
	"slices"
)

// What the TTL (IPv6: hop limit) of a tunnel's outer packets may be. The
// default is what IANA recommends for new packets.
const (
	MinTTL     = 1
	MaxTTL     = 255
	DefaultTTL = 64
)

// Tunnel is GRE to another host.
type Tunnel struct {
	Name     string     `json:"name"`
	ID       uint32     `json:"id"`
	Remote   netip.Addr `json:"remote"`
	Local    netip.Addr `json:"local"`              // of the remote's family
	Networks []string   `json:"networks,omitempty"` // in order; none: all with a key

	Checksums    bool  `json:"checksums,omitempty"`    // sent: RFC 2784
	Sequence     bool  `json:"sequence,omitempty"`     // numbers sent: RFC 2890
	Fragmentable bool  `json:"fragmentable,omitempty"` // IPv4 without DF
	CopyDSCP     bool  `json:"copy_dscp,omitempty"`    // of the inner packet
	TTL          uint8 `json:"ttl,omitempty"`          // 0: DefaultTTL

	MaxFlood uint32 `json:"max_flood,omitempty"` // copies a second that are flooded out of it; 0: the default
}

// TunnelOptions are what the user says of a tunnel. Local may be empty: an
// address of this host is chosen.
type TunnelOptions struct {
	Name, Remote, Local string
	Networks            []string
	Checksums, Sequence bool
	Fragmentable        bool
	CopyDSCP            bool
	TTL                 int
}

// NewTunnel checks what the user says of a tunnel.
func NewTunnel(o TunnelOptions) (Tunnel, error) {
	t := Tunnel{
		Name:         o.Name,
		Networks:     slices.Sorted(slices.Values(o.Networks)),
		Checksums:    o.Checksums,
		Sequence:     o.Sequence,
		Fragmentable: o.Fragmentable,
		CopyDSCP:     o.CopyDSCP,
		TTL:          uint8(o.TTL),
	}
	if err := Name("tunnel", t.Name); err != nil {
		return Tunnel{}, err
	}
	if err := t.setEnds(o.Remote, o.Local); err != nil {
		return Tunnel{}, err
	}
	for i, name := range t.Networks {
		if err := Name("network", name); err != nil {
			return Tunnel{}, err
		}
		if i > 0 && name == t.Networks[i-1] {
			return Tunnel{}, fmt.Errorf("%w tunnel %q: network %q is given twice", ErrInvalid, t.Name, name)
		}
	}
	if t.Fragmentable && t.Remote.Is6() {
		return Tunnel{}, fmt.Errorf("%w tunnel %q: IPv6 has no DF to leave out: it is never fragmented on its way to %s", ErrInvalid, t.Name, t.Remote)
	}
	if o.TTL < MinTTL || o.TTL > MaxTTL {
		return Tunnel{}, fmt.Errorf("%w TTL %d: want %d to %d", ErrInvalid, o.TTL, MinTTL, MaxTTL)
	}
	return t, nil
}

func (t *Tunnel) setEnds(remote, local string) (err error) {
	if t.Remote, err = ParseAddress(remote); err != nil {
		return fmt.Errorf("remote: %w", err)
	}
	if !t.Remote.IsGlobalUnicast() {
		return fmt.Errorf("%w remote %s: no other host can be told by it; want the other host's unicast address", ErrInvalid, t.Remote)
	}
	if local == "" {
		return nil
	}
	if t.Local, err = ParseAddress(local); err != nil {
		return fmt.Errorf("local: %w", err)
	}
	if t.Local.Is4() != t.Remote.Is4() {
		return fmt.Errorf("%w local %s: the remote, %s, is of another family; want both of one", ErrInvalid, t.Local, t.Remote)
	}
	return nil
}

// HopLimit is the TTL or hop limit of the outer packets.
func (t Tunnel) HopLimit() uint8 {
	if t.TTL == 0 {
		return DefaultTTL
	}
	return t.TTL
}

// Carries tells whether the tunnel carries a network: one that it names, or any
// with a key if it names none.
func (t Tunnel) Carries(n Network) bool {
	if len(t.Networks) == 0 {
		return n.Key != nil
	}
	return slices.Contains(t.Networks, n.Name)
}

// Sizes of the headers before a packet that is inside a tunnel, in bytes.
const (
	ipv4Header     = 20 // RFC 791, without options
	ipv6Header     = 40 // RFC 8200
	greHeader      = 4  // RFC 2784
	greField       = 4  // each of checksum (with what is reserved), key and sequence number: RFC 2890
	ethernetHeader = 14 // the inner one
)

// Overhead is by how much a packet of the network n is larger, in bytes, when
// the tunnel carries it.
func (t Tunnel) Overhead(n Network) int {
	size := ipv4Header
	if t.Remote.Is6() {
		size = ipv6Header
	}
	size += greHeader + ethernetHeader
	for _, there := range []bool{n.Key != nil, t.Checksums, t.Sequence} {
		if there {
			size += greField
		}
	}
	return size
}
