package spec

import (
	"fmt"
	"strconv"
	"strings"
)

// optionPrefix begins the names of ebpnet's own options of engines' networks.
const optionPrefix = "ebpnet."

// ErrUnknownOption is an ErrInvalid about an option that there is not.
var ErrUnknownOption = fmt.Errorf("%w option", ErrInvalid)

// SetOption sets what an engine's network was given by one of the options that
// all engines have: ebpnet.icc, .masquerade, .internal, .key, .mtu, .filtering.
func (n *Network) SetOption(key, value string) error {
	name, ours := strings.CutPrefix(key, optionPrefix)
	if !ours {
		name = ""
	}
	var err error
	switch name {
	case "icc":
		n.ICC, err = parseBool(value)
	case "masquerade":
		n.Masquerade, err = parseBool(value)
	case "internal":
		n.Internal, err = parseBool(value)
	case "filtering":
		n.Filtering, err = ParseFiltering(value)
	case "key":
		var k uint32
		k, err = ParseKey(value)
		n.Key = &k
	case "mtu":
		if n.MTU, err = strconv.Atoi(value); err != nil {
			err = fmt.Errorf("%w MTU %q: want a number of bytes", ErrInvalid, value)
		} else {
			err = CheckMTU(n.MTU)
		}
	default:
		return fmt.Errorf("%w %q: ebpnet has none of that name, but icc, masquerade, internal, key, mtu and filtering after %q", ErrUnknownOption, key, optionPrefix)
	}
	if err != nil {
		return fmt.Errorf("option %q: %w", key, err)
	}
	return nil
}

func parseBool(s string) (bool, error) {
	b, err := strconv.ParseBool(s)
	if err != nil {
		return false, fmt.Errorf("%w value %q: want true or false", ErrInvalid, s)
	}
	return b, nil
}
