package spec

import (
	"encoding"
	"fmt"
	"strconv"
	"strings"
)

// Ports is a protocol and a range of its ports, First to Last inclusive. Its
// text form is PORT[-END][/tcp|udp], tcp if not said.
type Ports struct {
	Protocol Protocol
	First    uint16
	Last     uint16
}

// Protocol is an IP protocol that has ports (its IANA number).
type Protocol uint8

// The protocols a link can name.
const (
	TCP Protocol = 6
	UDP Protocol = 17
)

var (
	_ encoding.TextMarshaler   = Ports{}
	_ encoding.TextUnmarshaler = (*Ports)(nil)
)

func (p Protocol) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	}
	return strconv.Itoa(int(p))
}

// ParsePorts reads PORT[-END][/tcp|udp].
func ParsePorts(s string) (Ports, error) {
	bad := func(why string) (Ports, error) {
		return Ports{}, fmt.Errorf("%w port %q: %s; want PORT[-END][/tcp|udp]", ErrInvalid, s, why)
	}
	numbers, protocol, named := strings.Cut(s, "/")
	p := Ports{Protocol: TCP}
	if named {
		switch protocol {
		case "tcp":
		case "udp":
			p.Protocol = UDP
		default:
			return bad(fmt.Sprintf("protocol %q is neither tcp nor udp", protocol))
		}
	}
	first, last, ranged := strings.Cut(numbers, "-")
	if !ranged {
		last = first
	}
	var err error
	if p.First, err = parsePort(first); err != nil {
		return bad(err.Error())
	}
	if p.Last, err = parsePort(last); err != nil {
		return bad(err.Error())
	}
	if p.First > p.Last {
		return bad("the range ends before it starts")
	}
	return p, nil
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 || s[0] == '+' {
		return 0, fmt.Errorf("%q is not a number from 1 to 65535", s)
	}
	return uint16(n), nil
}

func (p Ports) String() string {
	if p.First == p.Last {
		return fmt.Sprintf("%d/%s", p.First, p.Protocol)
	}
	return fmt.Sprintf("%d-%d/%s", p.First, p.Last, p.Protocol)
}

// MarshalText gives the form that ParsePorts reads.
func (p Ports) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText is ParsePorts.
func (p *Ports) UnmarshalText(text []byte) error {
	parsed, err := ParsePorts(string(text))
	if err == nil {
		*p = parsed
	}
	return err
}
