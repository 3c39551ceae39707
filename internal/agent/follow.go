package agent

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/ebpnet/ebpnet/datapath"
	"github.com/ebpnet/ebpnet/internal/host"
	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
)

// follower keeps up with a host's uplinks.
type follower struct {
	mtu int // of the uplinks when all was reconciled; 0: it has not been
}

// follow does what the uplinks' changes ask for.
func (f *follower) follow(a *Agent) error {
	var uplinks []host.Uplink
	err := a.store.View(func(tx *store.Tx) (err error) {
		uplinks, err = a.wantedUplinks(tx)
		return err
	})
	if err != nil {
		return err
	}
	if now := uplinkMTU(uplinks); now != f.mtu {
		if err := a.Reconcile(); err != nil {
			return err
		}
		f.mtu = now
		return nil
	}
	return a.followUplinks()
}

// followUplinks brings what is kept of the uplinks to what they are now.
func (a *Agent) followUplinks() error {
	var (
		wanted  spec.Host
		tunnels []spec.Tunnel
	)
	err := a.store.View(func(tx *store.Tx) (err error) {
		if wanted, _, err = tx.Host(); err != nil {
			return err
		}
		tunnels, err = tx.Tunnels()
		return err
	})
	if err != nil {
		return err
	}
	gateway, err := a.host.EnsureGateway(wanted.GatewayMAC)
	if err != nil {
		return err
	}
	renew, err := a.isNew(gateway)
	if err != nil {
		return err
	}
	if renew {
		return a.Reconcile()
	}
	if wanted.Loopback != nil {
		if err := host.OpenLoopback(); err != nil {
			return err
		}
	}
	uplinks, err := a.uplinks(wanted)
	if err != nil {
		return err
	}
	planned, err := a.planXDP(wanted.XDP, uplinks)
	if err != nil {
		return err
	}
	broadcasts, err := a.broadcasts()
	if err != nil {
		return err
	}
	if err := errors.Join(a.tables.ReplaceUplinks(uplinkEntries(planned)), a.tables.ReplaceBroadcasts(broadcasts)); err != nil {
		return err
	}
	if err := a.warnOfTunnels(slices.Values(tunnels)); err != nil {
		return err
	}
	toUplink, fromUplink := uplinkHooks(uplinks)
	if err := a.attach([]attachment{toUplink, fromUplink}); err != nil {
		return err
	}
	return a.followXDP(wanted, planned)
}

// broadcasts gives the addresses at which no published port answers although
// they lead to the host.
func (a *Agent) broadcasts() ([]netip.Addr, error) {
	addresses, whole, err := a.host.Broadcasts(datapath.MaxBroadcasts)
	if err == nil && !whole {
		a.log.Warn("host has too many broadcast addresses: published ports answer at the rest too", "used", len(addresses))
	}
	return addresses, err
}
