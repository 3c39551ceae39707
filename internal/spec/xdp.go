package spec

import (
	"fmt"
	"slices"
)

// XDPMode says how uplinks are to have XDP: the same work as in TC, before
// there is a socket buffer. The zero value stands for XDPOff.
type XDPMode string

// The modes.
const (
	XDPAuto    XDPMode = "auto"    // native where the driver can and nothing is lost by it, else off
	XDPNative  XDPMode = "native"  // in the driver
	XDPGeneric XDPMode = "generic" // by the kernel, on any device; slower than off, for tests
	XDPOff     XDPMode = "off"
)

// XDPModes lists the modes.
func XDPModes() []XDPMode { return []XDPMode{XDPAuto, XDPNative, XDPGeneric, XDPOff} }

// ParseXDPMode reads one of XDPModes.
func ParseXDPMode(s string) (XDPMode, error) {
	if m := XDPMode(s); slices.Contains(XDPModes(), m) {
		return m, nil
	}
	return "", fmt.Errorf("%w XDP mode %q: want one of %s", ErrInvalid, s, joined(XDPModes()))
}

// Effective gives what m stands for.
func (m XDPMode) Effective() XDPMode {
	if m == "" {
		return XDPOff
	}
	return m
}
