package spec

import (
	"fmt"
	"strconv"
)

// The limits that an endpoint may be given, in copies a second.
const (
	MinMaxFlood = 1
	MaxMaxFlood = 100_000_000
)

// defaultLimit takes a limit back.
const defaultLimit = "default"

// ParseMaxFlood reads how many copies of frames a second are flooded for an
// endpoint: a number, or "default", which gives 0.
func ParseMaxFlood(s string) (uint32, error) {
	if s == defaultLimit {
		return 0, nil
	}
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n < MinMaxFlood || n > MaxMaxFlood {
		return 0, fmt.Errorf("%w limit of flooded copies %q: want %d to %d a second, or %s", ErrInvalid, s, MinMaxFlood, MaxMaxFlood, defaultLimit)
	}
	return uint32(n), nil
}
