package host

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
)

// LoopbackIfindex is the number of lo in every network namespace:
// LOOPBACK_IFINDEX of the kernel's include/net/flow.h.
const LoopbackIfindex = 1

// loopbackSettings are what published ports need of lo for IPv4: that what the
// host sends to itself may come in there with one of its own addresses as its
// source, and may go on to an endpoint though it was for 127.0.0.1.
func loopbackSettings() map[string]string {
	return map[string]string{"accept_local": "1", "route_localnet": "1"}
}

// LoopbackSettings reads the settings of lo that OpenLoopback changes, by name.
func LoopbackSettings() (map[string]string, error) {
	found := map[string]string{}
	for name := range loopbackSettings() {
		value, err := os.ReadFile(settingPath("ipv4", "lo", name))
		if errors.Is(err, os.ErrNotExist) {
			continue // see setSysctl
		}
		if err != nil {
			return nil, fmt.Errorf("read %s of lo: %w", name, err)
		}
		found[name] = strings.TrimSpace(string(value))
	}
	return found, nil
}

// OpenLoopback sets lo up for published ports.
func OpenLoopback() error { return SetLoopback(loopbackSettings()) }

// SetLoopback gives settings of lo the values that LoopbackSettings read.
func SetLoopback(settings map[string]string) error {
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		if err := setSysctl("ipv4", "lo", name, settings[name]); err != nil {
			return err
		}
	}
	return nil
}
