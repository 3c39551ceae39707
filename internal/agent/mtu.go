package agent

import (
	"errors"

	"github.com/ebpnet/ebpnet/internal/host"
	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
)

// defaultMTU is Ethernet's, in bytes, where there is no uplink.
const defaultMTU = 1500

// mtu is what an endpoint of the network can send at once, in bytes: what was
// said of the network, or else what fits through the smallest uplink and in
// there through any tunnel that carries the network. One with a key leaves room
// for a plain tunnel over IPv4 while there is none, so that adding one changes
// nothing. What IPv6 needs of every link is not gone below.
func mtu(n spec.Network, tunnels []spec.Tunnel, uplinks []host.Uplink) int {
	if n.MTU != 0 {
		return n.MTU
	}
	overhead := 0
	if n.Key != nil {
		overhead = spec.Tunnel{}.Overhead(n)
	}
	for _, t := range tunnels {
		if t.Carries(n) {
			overhead = max(overhead, t.Overhead(n))
		}
	}
	size := uplinkMTU(uplinks) - overhead
	for _, subnet := range n.Subnets {
		if subnet.Addr().Is6() {
			size = max(size, spec.MinMTU)
		}
	}
	return size
}

// uplinkMTU is what fits through the smallest uplink, in bytes.
func uplinkMTU(uplinks []host.Uplink) int {
	if len(uplinks) == 0 {
		return defaultMTU
	}
	size := uplinks[0].MTU
	for _, u := range uplinks {
		size = min(size, u.MTU)
	}
	return size
}

// gatewayMTU is what fits through the largest uplink, in bytes, or an Ethernet
// at least: on its way into a tunnel a packet may go by the host's own veth.
func gatewayMTU(uplinks []host.Uplink) int {
	size := defaultMTU
	for _, u := range uplinks {
		size = max(size, u.MTU)
	}
	return size
}

// networkMTU is the MTU that endpoints of the network are to have now.
func (a *Agent) networkMTU(tx *store.Tx, n spec.Network) (int, error) {
	tunnels, err := tx.Tunnels()
	if err != nil {
		return 0, err
	}
	uplinks, err := a.wantedUplinks(tx)
	return mtu(n, tunnels, uplinks), err
}

// wantedUplinks looks at the wanted uplinks that are there now.
func (a *Agent) wantedUplinks(tx *store.Tx) ([]host.Uplink, error) {
	wanted, _, err := tx.Host()
	if err != nil {
		return nil, err
	}
	var uplinks []host.Uplink
	for _, name := range wanted.Uplinks {
		u, err := a.host.Uplink(name)
		if isGone(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		uplinks = append(uplinks, u)
	}
	return uplinks, nil
}

// resized is a local endpoint that is to have another MTU.
type resized struct {
	endpoint spec.Endpoint
	network  spec.Network
	mtu      int
}

// resizedOn gives the local endpoints of a network, to have the MTU.
func resizedOn(tx *store.Tx, n spec.Network, mtu int) ([]resized, error) {
	on, err := tx.EndpointsOn(n.Name)
	if err != nil {
		return nil, err
	}
	var changed []resized
	for _, e := range on {
		if !e.Remote() {
			changed = append(changed, resized{e, n, mtu})
		}
	}
	return changed, nil
}

// resizedBy gives the local endpoints that have another MTU with the tunnels
// after than with those before.
func (a *Agent) resizedBy(tx *store.Tx, before, after []spec.Tunnel) ([]resized, error) {
	uplinks, err := a.wantedUplinks(tx)
	if err != nil {
		return nil, err
	}
	networks, err := tx.Networks()
	if err != nil {
		return nil, err
	}
	var changed []resized
	for _, n := range networks {
		size := mtu(n, after, uplinks)
		if size == mtu(n, before, uplinks) {
			continue
		}
		on, err := resizedOn(tx, n, size)
		if err != nil {
			return nil, err
		}
		changed = append(changed, on...)
	}
	return changed, nil
}

// resize gives endpoints that are there their MTU.
func (a *Agent) resize(changed []resized) error {
	for _, r := range changed {
		_, err := a.host.FindVeth(r.endpoint.ID)
		if isGone(err) {
			continue // it waits for its namespace
		}
		if err != nil {
			return err
		}
		a.resizeEndpoint(r)
	}
	return nil
}

// resizeEndpoint gives an endpoint its MTU. One that works is not given up for
// it.
func (a *Agent) resizeEndpoint(r resized) {
	err := a.host.SetMTU(vethOf(r.endpoint, r.network, r.mtu))
	// A namespace that goes takes the endpoint along; an engine takes interfaces
	// back.
	gone := errors.Is(err, host.ErrNoNamespace) || r.endpoint.Container.Engine != "" && errors.Is(err, host.ErrStrangeInterface)
	if err != nil && !gone {
		a.log.Warn("endpoint keeps its MTU", "endpoint", r.endpoint.Name, "wanted", r.mtu, "error", err)
	}
}
