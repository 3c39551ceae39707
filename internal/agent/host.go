package agent

import (
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/ebpnet/ebpnet/internal/host"
	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
	"github.com/ebpnet/ebpnet/loader"
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
	}
	if len(wanted.Uplinks) == 0 {
		if wanted.Uplinks, err = a.host.DefaultUplinks(); err != nil {
			return wanted, known, err
		}
	}
	if len(given.Uplinks) > 0 {
		wanted.Uplinks = slices.Clone(given.Uplinks)
	}
	completeFlows(&wanted, given)
	if given.XDP != "" && given.XDP != wanted.XDP {
		wanted.XDP, wanted.WithoutXDP = given.XDP, nil
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

// completeFlows adds what is given about flows to what is wanted.
func completeFlows(wanted *spec.Host, given spec.Host) {
	if given.Flows != 0 {
		wanted.Flows = given.Flows
	}
	if given.MasqueradePorts != (spec.MasqueradePorts{}) {
		wanted.MasqueradePorts = given.MasqueradePorts
	}
	timeouts := maps.Clone(wanted.Timeouts)
	if timeouts == nil {
		timeouts = map[spec.Timeout]time.Duration{}
	}
	for name, d := range given.Timeouts {
		if d == 0 {
			delete(timeouts, name)
		} else {
			timeouts[name] = d
		}
	}
	wanted.Timeouts = timeouts
}

// warnOfTimeouts tells of the timeouts given that are shorter than peers may
// rely on.
func (a *Agent) warnOfTimeouts(given spec.Host) {
	for _, name := range spec.Timeouts() {
		minimum, source := name.Minimum()
		if d := given.Timeouts[name]; d != 0 && d < minimum {
			effect := "idle connections may break"
			if name == spec.Learned {
				effect = "who is silent is flooded to"
			}
			a.log.Warn("timeout is shorter than it should be: "+effect,
				"timeout", name, "is", d, "minimum", minimum, "by", source)
		}
	}
}

// loaderConfig is what the programs are told.
func loaderConfig(gateway host.Gateway, wanted spec.Host) loader.Config {
	ports := wanted.MasqueradePorts.Effective()
	return loader.Config{
		GatewayIfindex:  uint32(gateway.Near),
		DatapathIfindex: uint32(gateway.Far),
		GatewayMAC:      wanted.GatewayMAC,
		Flows:           wanted.FlowCapacity(),
		FirstPort:       ports.First,
		LastPort:        ports.Last,
		WithoutXDP:      wanted.XDP.Effective() == spec.XDPOff,
		GenericXDP:      wanted.XDP == spec.XDPGeneric,
		Timeouts: loader.Timeouts{
			TCPEstablished: wanted.Timeout(spec.TCPEstablished),
			TCPTransitory:  wanted.Timeout(spec.TCPTransitory),
			UDPEstablished: wanted.Timeout(spec.UDPEstablished),
			UDPNew:         wanted.Timeout(spec.UDPNew),
			ICMP:           wanted.Timeout(spec.ICMP),
			Learned:        wanted.Timeout(spec.Learned),
		},
	}
}

// maxUplinks keeps the buckets of `uplink_buckets` far from full.
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

// putHost writes what is to be loaded into the store, marked as pending: if the
// command dies before all is done, the next one loads it. takeBack undoes it.
func (a *Agent) putHost(wanted spec.Host) (takeBack func() error, err error) {
	var (
		before spec.Host
		known  bool
		noun   = store.Change{Kind: store.KindHost}
	)
	err = a.store.Update(func(tx *store.Tx) (err error) {
		if before, known, err = tx.Host(); err != nil {
			return err
		}
		return errors.Join(tx.PutHost(wanted), tx.MarkPending(noun.Kind, noun.Key))
	})
	return func() error {
		return a.store.Update(func(tx *store.Tx) error {
			if known {
				return errors.Join(tx.PutHost(before), tx.ClearPending(noun))
			}
			return errors.Join(tx.DeleteHost(), tx.ClearPending(noun))
		})
	}, err
}
