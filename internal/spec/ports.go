package spec

import (
	"encoding"
	"errors"
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

// The protocols. SCTP can be published; a link is of the other two.
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

var (
	_ encoding.TextMarshaler   = Ports{}
	_ encoding.TextUnmarshaler = (*Ports)(nil)
	_ encoding.TextMarshaler   = Protocol(0)
	_ encoding.TextUnmarshaler = (*Protocol)(nil)
)

// ParseProtocol reads the name of a protocol: tcp, udp or sctp.
func ParseProtocol(s string) (Protocol, error) {
	for _, p := range []Protocol{TCP, UDP, SCTP} {
		if s == p.String() {
			return p, nil
		}
	}
	return 0, fmt.Errorf("%w protocol %q: want tcp, udp or sctp", ErrInvalid, s)
}

func (p Protocol) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case SCTP:
		return "sctp"
	}
	return strconv.Itoa(int(p))
}

// MarshalText gives the form that ParseProtocol reads.
func (p Protocol) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText is ParseProtocol.
func (p *Protocol) UnmarshalText(text []byte) error {
	parsed, err := ParseProtocol(string(text))
	if err == nil {
		*p = parsed
	}
	return err
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
	var err error
	if p.First, p.Last, err = parseRange(numbers); err != nil {
		return bad(err.Error())
	}
	return p, nil
}

// parseRange reads PORT[-END].
func parseRange(s string) (first, last uint16, err error) {
	from, to, ranged := strings.Cut(s, "-")
	if !ranged {
		to = from
	}
	if first, err = parsePort(from); err != nil {
		return 0, 0, err
	}
	if last, err = parsePort(to); err != nil {
		return 0, 0, err
	}
	if first > last {
		return 0, 0, errors.New("the range ends before it starts")
	}
	return first, last, nil
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 || s[0] == '+' {
		return 0, fmt.Errorf("%q is not a number from 1 to 65535", s)
	}
	return uint16(n), nil
}

func (p Ports) String() string {
	return rangeText(p.First, p.Last) + "/" + p.Protocol.String()
}

// rangeText gives the form that parseRange reads.
func rangeText(first, last uint16) string {
	if first == last {
		return strconv.Itoa(int(first))
	}
	return fmt.Sprintf("%d-%d", first, last)
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
