package spec

import (
	"fmt"
	"strconv"
)

// The highest limits that can be set; the lowest is 1.
const (
	MaxMaxFlows     = MaxFlows
	MaxMaxHalfOpen  = 65536
	MaxMaxPorts     = 65535
	MaxMaxFragments = 64
	MaxMaxFlood     = 100_000_000
)

// Limits are how much a local endpoint may have; of each, 0 is the default.
type Limits struct {
	MaxFlows     uint32 `json:"max_flows,omitempty"`     // established flows that it has opened
	MaxHalfOpen  uint32 `json:"max_half_open,omitempty"` // half-open flows that it has opened
	MaxPorts     uint32 `json:"max_ports,omitempty"`     // ports towards one destination
	MaxFragments uint32 `json:"max_fragments,omitempty"` // datagrams in fragments at once
	MaxFlood     uint32 `json:"max_flood,omitempty"`     // copies a second that are flooded for it
}

// LimitsChange is a change of limits; what is nil stays.
type LimitsChange struct {
	MaxFlows, MaxHalfOpen, MaxPorts, MaxFragments, MaxFlood *uint32
}

// Apply makes the change.
func (c LimitsChange) Apply(l *Limits) {
	for _, field := range []struct{ from, to *uint32 }{
		{c.MaxFlows, &l.MaxFlows},
		{c.MaxHalfOpen, &l.MaxHalfOpen},
		{c.MaxPorts, &l.MaxPorts},
		{c.MaxFragments, &l.MaxFragments},
		{c.MaxFlood, &l.MaxFlood},
	} {
		if field.from != nil {
			*field.to = *field.from
		}
	}
}

// defaultLimit takes a limit back.
const defaultLimit = "default"

// ParseMaxFlows reads how many established flows an endpoint or a published port
// may have. As with all limits, "default" gives 0.
func ParseMaxFlows(s string) (uint32, error) {
	return parseLimit("--max-flows", s, MaxMaxFlows, "")
}

// ParseMaxHalfOpen reads how many half-open flows an endpoint may have.
func ParseMaxHalfOpen(s string) (uint32, error) {
	return parseLimit("--max-half-open", s, MaxMaxHalfOpen, "")
}

// ParseMaxPorts reads how many ports towards one destination an endpoint may
// have.
func ParseMaxPorts(s string) (uint32, error) {
	return parseLimit("--max-ports", s, MaxMaxPorts, "")
}

// ParseMaxFragments reads how many datagrams an endpoint may send in fragments
// at once.
func ParseMaxFragments(s string) (uint32, error) {
	return parseLimit("--max-fragments", s, MaxMaxFragments, "")
}

// ParseMaxFlood reads how many copies of frames a second are flooded for an
// endpoint or a tunnel.
func ParseMaxFlood(s string) (uint32, error) {
	return parseLimit("--max-flood", s, MaxMaxFlood, " a second")
}

func parseLimit(option, s string, highest uint64, unit string) (uint32, error) {
	if s == defaultLimit {
		return 0, nil
	}
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n < 1 || n > highest {
		return 0, fmt.Errorf("%w %s %q: want 1 to %d%s, or %s", ErrInvalid, option, s, highest, unit, defaultLimit)
	}
	return uint32(n), nil
}
