package spec

import (
	"encoding"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Allowance is a role whose messages the datapath refuses from an endpoint
// unless the endpoint has the role.
type Allowance uint8

// The allowances.
const (
	// AllowDHCPServer is for messages that only servers and relays of DHCP and
	// DHCPv6 send.
	AllowDHCPServer Allowance = iota + 1
	// AllowRouter is for messages that only routers send.
	AllowRouter
)

var (
	_ encoding.TextMarshaler   = Allowance(0)
	_ encoding.TextUnmarshaler = (*Allowance)(nil)
)

// noAllowance takes all allowances back.
const noAllowance = "none"

func (a Allowance) String() string {
	switch a {
	case AllowDHCPServer:
		return "dhcp-server"
	case AllowRouter:
		return "router"
	}
	return strconv.Itoa(int(a))
}

// ParseAllowances reads a list of allowances with commas between them, or
// "none". It returns each allowance once, in the order of their constants.
func ParseAllowances(s string) ([]Allowance, error) {
	if s == noAllowance {
		return nil, nil
	}
	var all []Allowance
	for word := range strings.SplitSeq(s, ",") {
		a, err := parseAllowance(word)
		if err != nil {
			return nil, err
		}
		all = append(all, a)
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

func parseAllowance(s string) (Allowance, error) {
	for _, a := range []Allowance{AllowDHCPServer, AllowRouter} {
		if s == a.String() {
			return a, nil
		}
	}
	return 0, fmt.Errorf("%w allowance %q: want a list of %s and %s, or only %s", ErrInvalid, s, AllowDHCPServer, AllowRouter, noAllowance)
}

// MarshalText gives the form that UnmarshalText reads.
func (a Allowance) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText reads what String gives.
func (a *Allowance) UnmarshalText(text []byte) error {
	parsed, err := parseAllowance(string(text))
	if err == nil {
		*a = parsed
	}
	return err
}
