package spec

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

// maxIfnameLength is the kernel's IFNAMSIZ without the final NUL.
const maxIfnameLength = 15

// EndpointOptions are what the user says of an endpoint. Empty is not said.
type EndpointOptions struct {
	Name, Network, Netns, Ifname, MAC, Tunnel string
	Addresses, Expose                         []string
	Trunk                                     bool
	Handed                                    bool // to the engine of the container
	Container                                 Identity
	Routes                                    []Route
}

// NewEndpoint checks what the user says of an endpoint. A local one has a
// namespace and the name of an interface in it, unless it is handed to an
// engine that chooses both; a remote one has a tunnel, a MAC and at least one
// address, which only the other host knows.
func NewEndpoint(o EndpointOptions) (Endpoint, error) {
	e := Endpoint{
		Name: o.Name, Network: o.Network, Tunnel: o.Tunnel, Trunk: o.Trunk,
		Container: o.Container, Routes: o.Routes,
	}
	if err := Name("endpoint", e.Name); err != nil {
		return Endpoint{}, err
	}
	for _, s := range o.Addresses {
		a, err := ParseAddress(s)
		if err != nil {
			return Endpoint{}, err
		}
		for _, other := range e.Addresses {
			if other.Is4() == a.Is4() {
				return Endpoint{}, fmt.Errorf("%w address %q: %s is given too, want at most one a family", ErrInvalid, s, other)
			}
		}
		e.Addresses = append(e.Addresses, a)
	}
	for _, s := range o.Expose {
		p, err := ParsePorts(s)
		if err != nil {
			return Endpoint{}, err
		}
		e.Expose = append(e.Expose, p)
	}
	if o.MAC != "" {
		var err error
		if e.MAC, err = ParseMAC(o.MAC); err != nil {
			return Endpoint{}, err
		}
	}
	if e.Remote() {
		return e, e.checkRemote(o)
	}
	if o.Handed {
		return e, nil
	}
	if o.Netns == "" {
		return Endpoint{}, fmt.Errorf("%w endpoint %q: where is it? give --netns, or --tunnel if it is on another host", ErrInvalid, e.Name)
	}
	var err error
	if e.Netns, err = ParseNetns(o.Netns); err != nil {
		return Endpoint{}, err
	}
	e.Ifname = o.Ifname
	return e, checkIfname(o.Ifname)
}

// nameBytes are the bytes of a hash that EndpointName shows, as 12 digits.
const nameBytes = 6

// EndpointName makes a name of what tells one endpoint of an engine from all
// others: the ids of the container and of its network, the interface.
func EndpointName(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(sum[:nameBytes])
}

func (e Endpoint) checkRemote(o EndpointOptions) error {
	switch {
	case o.Netns != "":
		return fmt.Errorf("%w endpoint %q: it cannot be in a namespace here and behind a tunnel", ErrInvalid, e.Name)
	case e.Trunk:
		return fmt.Errorf("%w endpoint %q: behind a tunnel it is no trunk; make it one on its own host, what is behind it is learned", ErrInvalid, e.Name)
	case len(e.Addresses) == 0:
		return fmt.Errorf("%w endpoint %q: behind a tunnel it needs --ip, as on its own host", ErrInvalid, e.Name)
	case e.MAC.IsZero():
		return fmt.Errorf("%w endpoint %q: behind a tunnel it needs --mac, as on its own host", ErrInvalid, e.Name)
	}
	return nil
}

// checkIfname holds to what the kernel allows (dev_valid_name), and further
// to what can be printed.
func checkIfname(s string) error {
	bad := s == "" || s == "." || s == ".." || s == "lo" || s == "all" || s == "default" ||
		len(s) > maxIfnameLength || strings.ContainsAny(s, "/:%") || strings.HasPrefix(s, "-")
	for _, c := range s {
		bad = bad || c <= ' ' || c >= 0x7f
	}
	if bad {
		return fmt.Errorf("%w interface name %q: want 1 to %d characters without spaces, '/', ':' or '%%', the first no '-'", ErrInvalid, s, maxIfnameLength)
	}
	return nil
}
