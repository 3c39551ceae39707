package agent

import (
	"crypto/rand"
	"fmt"
	"slices"

	"github.com/ebpnet/ebpnet/internal/host"
	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
)

// wantedHost completes what `load` was told by what is known of old, and
// checks it. known tells whether the store knew of a load before.
func (a *Agent) wantedHost(given spec.Host) (wanted spec.Host, known bool, err error) {
	err = a.store.View(func(tx *store.Tx) (err error) {
		wanted, known, err = tx.Host()
		return err
	})
	if err != nil {
		return wanted, known, err
	}
	if !known {
		// A MAC of the locally administered, unicast range.
		rand.Read(wanted.GatewayMAC[:]) // never fails: see crypto/rand
		wanted.GatewayMAC[0] = wanted.GatewayMAC[0]&^0x03 | 0x02
		if wanted.Uplinks, err = a.host.DefaultUplinks(); err != nil {
			return wanted, known, err
		}
	}
	if len(given.Uplinks) > 0 {
		wanted.Uplinks = slices.Clone(given.Uplinks)
	}
	slices.Sort(wanted.Uplinks)
	wanted.Uplinks = slices.Compact(wanted.Uplinks)
	if len(wanted.Uplinks) > maxUplinks {
		return wanted, known, fmt.Errorf("%d uplinks: %w, a host has at most %d", len(wanted.Uplinks), ErrUnfit, maxUplinks)
	}
	for _, name := range given.Uplinks {
		if _, err := a.host.Uplink(name); err != nil {
			return wanted, known, fmt.Errorf("uplink: %w", err)
		}
	}
	if given.TunnelAddress.IsValid() {
		wanted.TunnelAddress = given.TunnelAddress
		err = a.checkTunnelEnd("tunnel address", given.TunnelAddress)
	}
	return wanted, known, err
}

// maxUplinks leaves room for the default uplink's second entry (MAX_UPLINKS in
// bpf/types.h).
const maxUplinks = 63

// uplinks looks at the wanted uplinks that are there now.
func (a *Agent) uplinks(wanted spec.Host) ([]host.Uplink, error) {
	var there []host.Uplink
	for _, name := range wanted.Uplinks {
		u, err := a.host.Uplink(name)
		if isGone(err) {
			a.log.Warn("uplink is not there; it is used when it comes back", "uplink", name)
			continue
		}
		if err != nil {
			return nil, err
		}
		there = append(there, u)
	}
	return there, nil
}

// Sizes that an endpoint's MTU follows from, in bytes.
const (
	defaultMTU  = 1500 // Ethernet's, where there is no uplink
	greOverhead = 42   // IPv4, GRE with key, the inner Ethernet header
)

// mtu is what fits through the smallest uplink, and its tunnels where the
// network has a key.
func mtu(n spec.Network, uplinks []host.Uplink) int {
	if n.MTU != 0 {
		return n.MTU
	}
	size := 0
	for _, u := range uplinks {
		if size == 0 || u.MTU < size {
			size = u.MTU
		}
	}
	if size == 0 {
		size = defaultMTU
	}
	if n.Key != nil {
		size -= greOverhead
	}
	return size
}
