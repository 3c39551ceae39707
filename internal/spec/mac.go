package spec

import (
	"encoding"
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"
)

// MAC is an EUI-48 hardware address. Its text form is aa:bb:cc:dd:ee:ff.
type MAC [6]byte

var (
	_ encoding.TextMarshaler   = MAC{}
	_ encoding.TextUnmarshaler = (*MAC)(nil)
)

// ParseMAC reads a unicast hardware address.
func ParseMAC(s string) (MAC, error) {
	hw, err := net.ParseMAC(s)
	if err != nil || len(hw) != len(MAC{}) {
		return MAC{}, fmt.Errorf("%w MAC %q: want six hexadecimal bytes, like 02:42:ac:11:00:02", ErrInvalid, s)
	}
	m := MAC(hw)
	if m[0]&1 != 0 || m.IsZero() {
		return MAC{}, fmt.Errorf("%w MAC %q: it is no unicast address", ErrInvalid, s)
	}
	return m, nil
}

// MACFor derives a locally administered address from an IP address, so that
// an endpoint keeps its MAC when it moves hosts with its address.
func MACFor(a netip.Addr) MAC {
	low := a.As16()
	if !a.Is4() {
		h := fnv.New32a()
		h.Write(low[:]) // a hash's Write never fails
		return MAC(append([]byte{0x02, 0xeb}, h.Sum(nil)...))
	}
	return MAC{0x02, 0xeb, low[12], low[13], low[14], low[15]}
}

// IsZero tells whether m is unset.
func (m MAC) IsZero() bool { return m == MAC{} }

func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// MarshalText gives the form that ParseMAC reads; an unset MAC is empty.
func (m MAC) MarshalText() ([]byte, error) {
	if m.IsZero() {
		return nil, nil
	}
	return []byte(m.String()), nil
}

// UnmarshalText is ParseMAC; empty text is an unset MAC.
func (m *MAC) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*m = MAC{}
		return nil
	}
	parsed, err := ParseMAC(string(text))
	if err == nil {
		*m = parsed
	}
	return err
}
