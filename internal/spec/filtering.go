package spec

import (
	"encoding"
	"fmt"
	"strconv"
)

// Filtering says from whom an endpoint that is masqueraded takes packets to a
// port that it was given: RFC 4787, section 5. The zero value is the default.
type Filtering uint8

// The kinds of filtering.
const (
	// AddressAndPortDependent is from those that were sent to from there.
	AddressAndPortDependent Filtering = iota
	// EndpointIndependent is from everybody, as peer-to-peer programs need it.
	EndpointIndependent
)

var (
	_ encoding.TextMarshaler   = Filtering(0)
	_ encoding.TextUnmarshaler = (*Filtering)(nil)
)

// ParseFiltering reads what String gives.
func ParseFiltering(s string) (Filtering, error) {
	for _, f := range []Filtering{AddressAndPortDependent, EndpointIndependent} {
		if s == f.String() {
			return f, nil
		}
	}
	return 0, fmt.Errorf("%w filtering %q: want %s or %s", ErrInvalid, s, EndpointIndependent, AddressAndPortDependent)
}

func (f Filtering) String() string {
	switch f {
	case AddressAndPortDependent:
		return "address-and-port-dependent"
	case EndpointIndependent:
		return "endpoint-independent"
	}
	return strconv.Itoa(int(f))
}

// MarshalText gives the form that ParseFiltering reads.
func (f Filtering) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText is ParseFiltering.
func (f *Filtering) UnmarshalText(text []byte) error {
	parsed, err := ParseFiltering(string(text))
	if err == nil {
		*f = parsed
	}
	return err
}
