package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/ebpnet/ebpnet/datapath"
	"github.com/ebpnet/ebpnet/internal/host"
	"github.com/ebpnet/ebpnet/internal/ipam"
	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
	"github.com/ebpnet/ebpnet/loader"
)

// Ids of endpoints.
const (
	firstLocalID  = 1
	lastLocalID   = datapath.MaxLocalID
	firstRemoteID = lastLocalID + 1
	lastRemoteID  = datapath.MaxEndpointID
)

// AddEndpoint makes an endpoint that publishes the given ports, and gives both
// back with what they were given: id, MAC, an address of each family that none
// was asked for in, and ports of the host.
func (a *Agent) AddEndpoint(e spec.Endpoint, publish []spec.Port) (spec.Endpoint, []spec.Port, error) {
	if !e.Remote() && !e.Handed() {
		var err error
		if e.Netns, err = found(e.Netns); err != nil {
			return e, nil, fmt.Errorf("endpoint %q: %w", e.Name, err)
		}
	}
	var (
		network spec.Network
		tunnel  spec.Tunnel
		size    int
		ports   []spec.Port
	)
	err := a.do(change{
		noun: store.Change{Kind: store.KindEndpoint, Key: e.Name},
		write: func(tx *store.Tx) (err error) {
			if _, err := tx.Endpoint(e.Name); err == nil {
				return fmt.Errorf("endpoint %q %w: choose another name, or remove it first", e.Name, ErrExists)
			}
			if network, err = tx.Network(e.Network); err != nil {
				return err
			}
			if tunnel, err = checkTunnelled(tx, e, network); err != nil {
				return err
			}
			if !e.Remote() {
				if size, err = a.networkMTU(tx, network); err != nil {
					return err
				}
			}
			if err := complete(tx, &e, network); err != nil {
				return fmt.Errorf("endpoint %q: %w", e.Name, err)
			}
			if err := tx.PutEndpoint(e); err != nil {
				return err
			}
			ports, err = publishAll(tx, e, network, publish)
			return err
		},
		apply: func() error {
			if err := a.startEndpoint(e, network, tunnel, size); err != nil {
				return fmt.Errorf("endpoint %q: %w", e.Name, err)
			}
			return a.putPorts(ports, e, network)
		},
		revert: func(tx *store.Tx) error { return deleteEndpoint(tx, e.Name) },
	})
	if err != nil {
		return e, ports, err
	}
	return e, ports, a.followPaths(e)
}

// found gives a namespace with what tells it from a later one at its path.
func found(ns spec.Netns) (spec.Netns, error) {
	inode, err := host.Namespace(ns.Path)
	if err != nil {
		return ns, err
	}
	boot, err := host.BootID()
	return spec.Netns{Path: ns.Path, Inode: inode, Boot: boot}, err
}

// checkTunnelled gives a remote endpoint's tunnel, which must carry its
// network.
func checkTunnelled(tx *store.Tx, e spec.Endpoint, n spec.Network) (spec.Tunnel, error) {
	if !e.Remote() {
		return spec.Tunnel{}, nil
	}
	t, err := tx.Tunnel(e.Tunnel)
	if err != nil || t.Carries(n) {
		return t, err
	}
	why := "it carries only those it was added with"
	if len(t.Networks) == 0 {
		why = "it carries those with a key"
	}
	return t, fmt.Errorf("tunnel %q %w: it does not carry network %q, as %s; add the tunnel with --network %s", t.Name, ErrUnfit, n.Name, why, n.Name)
}

// complete gives a new endpoint its id, addresses and MAC, and checks those
// that were asked for.
func complete(tx *store.Tx, e *spec.Endpoint, n spec.Network) (err error) {
	first, last := uint32(firstLocalID), lastLocalID
	if e.Remote() {
		first, last = firstRemoteID, lastRemoteID
	}
	if e.ID, err = tx.NextID(store.KindEndpoint, first, last); err != nil {
		return err
	}
	// An engine that chooses addresses does so for each family that it wants.
	givenWhole := e.Remote() || e.Handed() && len(e.Addresses) > 0
	for _, address := range e.Addresses {
		if err := n.CheckAddress(address); err != nil {
			return err
		}
		if owner, taken := tx.AddressOwner(address); taken {
			return fmt.Errorf("address %s %w: endpoint %q has it; choose another, or leave the choice to ebpnet", address, ErrInUse, owner)
		}
	}
	for _, subnet := range n.Subnets {
		if givenWhole || slices.ContainsFunc(e.Addresses, subnet.Contains) {
			continue
		}
		taken := func(address netip.Addr) bool {
			_, taken := tx.AddressOwner(address)
			return taken
		}
		address, err := ipam.Next(n, subnet, tx.LastAddress(n.Name, subnet), taken)
		if err != nil {
			return err
		}
		if err := tx.SetLastAddress(n.Name, subnet, address); err != nil {
			return err
		}
		e.Addresses = append(e.Addresses, address)
	}
	if e.MAC.IsZero() {
		e.MAC = spec.MACFor(e.Addresses[0])
	}
	if wanted, _, err := tx.Host(); err != nil {
		return err
	} else if e.MAC == wanted.GatewayMAC {
		return fmt.Errorf("MAC %s %w: the gateway has it; choose another", e.MAC, ErrInUse)
	}
	if owner, taken := tx.MACOwner(n.Name, e.MAC); taken {
		return fmt.Errorf("MAC %s %w: endpoint %q has it; choose another", e.MAC, ErrInUse, owner)
	}
	return nil
}

// startEndpoint brings a new endpoint into the kernel; its first packet finds
// everything in place.
func (a *Agent) startEndpoint(e spec.Endpoint, n spec.Network, t spec.Tunnel, mtu int) error {
	if e.Remote() {
		return a.tables.PutEndpoint(endpointEntry(e, n, 0, t))
	}
	// One may be left of a command that was killed.
	if err := a.host.RemoveVeth(e.ID); err != nil {
		return err
	}
	if err := a.tables.ResetEndpointTraffic(e.ID); err != nil {
		return err
	}
	veth := vethOf(e, n, mtu)
	ifindex, err := a.host.CreateVeth(veth)
	if err != nil {
		return err
	}
	entry := endpointEntry(e, n, ifindex, t)
	if entry.NAPI, err = a.napi(veth); err != nil {
		return err
	}
	if err := a.tables.PutEndpoint(entry); err != nil {
		return err
	}
	if err := a.tables.Attach(loader.FromEndpoint, ifindex); err != nil {
		return err
	}
	if err := a.host.SetUp(ifindex, veth); err != nil {
		return err
	}
	if !e.Handed() {
		a.announce(veth, n)
	}
	return nil
}

// announce tells an endpoint's network where the endpoint is now, if others of
// the network may talk to it unasked. They find it without that too, later.
func (a *Agent) announce(v host.Veth, n spec.Network) {
	if !n.ICC {
		return
	}
	if err := a.host.Announce(v); err != nil {
		a.log.Warn("endpoint is not announced", "endpoint", v.Alias, "error", err)
	}
}

// EndpointChange is what SetEndpoint changes; what is nil stays.
type EndpointChange struct {
	Allow  *[]spec.Allowance // replaces all that the endpoint had
	Limits spec.LimitsChange
}

func (c EndpointChange) apply(e *spec.Endpoint) {
	if c.Allow != nil {
		e.Allow = *c.Allow
	}
	c.Limits.Apply(&e.Limits)
}

// SetEndpoint changes a local endpoint's settings, with effect on its next
// packet. An endpoint that waits for its namespace gets them with its interface.
func (a *Agent) SetEndpoint(name string, c EndpointChange) error {
	var (
		before, after spec.Endpoint
		network       spec.Network
	)
	return a.do(change{
		noun: store.Change{Kind: store.KindEndpoint, Key: name},
		write: func(tx *store.Tx) (err error) {
			if before, err = tx.Endpoint(name); err != nil {
				return err
			}
			if before.Remote() {
				return fmt.Errorf("endpoint %s is %w, behind tunnel %q: change its settings on that host", before.Title(), ErrRemote, before.Tunnel)
			}
			if network, err = tx.Network(before.Network); err != nil {
				return err
			}
			after = before
			c.apply(&after)
			return tx.PutEndpoint(after)
		},
		apply: func() error {
			device, err := a.host.FindVeth(after.ID)
			if isGone(err) {
				return nil
			}
			if err != nil {
				return err
			}
			return a.tables.SetEndpoint(endpointEntry(after, network, device.Ifindex, spec.Tunnel{}))
		},
		revert: func(tx *store.Tx) error { return tx.PutEndpoint(before) },
	})
}

// EndpointUse reads what a local endpoint has of what is limited.
func (a *Agent) EndpointUse(name string) (datapath.EndpointUse, error) {
	var (
		e    spec.Endpoint
		host spec.Host
	)
	err := a.store.View(func(tx *store.Tx) (err error) {
		if e, err = tx.Endpoint(name); err != nil {
			return err
		}
		host, _, err = tx.Host()
		return err
	})
	if err != nil {
		return datapath.EndpointUse{}, err
	}
	return a.tables.EndpointUse(e.ID, datapath.PortRange(host.MasqueradePorts.Effective()))
}

// RemoveEndpoint removes an endpoint, its links, its ports and its flows.
func (a *Agent) RemoveEndpoint(name string) error {
	var (
		e       spec.Endpoint
		network spec.Network
		tunnel  spec.Tunnel
		links   []linked
		ports   []spec.Port
	)
	err := a.do(change{
		noun: store.Change{Kind: store.KindEndpoint, Key: name},
		write: func(tx *store.Tx) (err error) {
			if e, err = tx.Endpoint(name); err != nil {
				return err
			}
			if network, err = tx.Network(e.Network); err != nil {
				return err
			}
			if e.Remote() {
				if tunnel, err = tx.Tunnel(e.Tunnel); err != nil {
					return err
				}
			}
			if links, err = linksOf(tx, name); err != nil {
				return err
			}
			if ports, err = tx.PortsOf(name); err != nil {
				return err
			}
			return deleteEndpoint(tx, name)
		},
		apply: func() error {
			if err := a.deletePorts(ports, e, network); err != nil {
				return err
			}
			return a.stopEndpoint(e, network, tunnel, links)
		},
		revert: func(tx *store.Tx) error {
			if err := tx.PutEndpoint(e); err != nil {
				return err
			}
			for _, l := range links {
				if err := tx.PutLink(l.Link); err != nil {
					return err
				}
			}
			return putPorts(tx, ports)
		},
	})
	if err != nil || len(e.Paths) == 0 {
		return err
	}
	return a.followSiblings(e)
}

func (a *Agent) stopEndpoint(e spec.Endpoint, n spec.Network, t spec.Tunnel, links []linked) error {
	for _, l := range links {
		if err := a.deleteLink(l); err != nil {
			return err
		}
	}
	ifindex := 0
	if !e.Remote() {
		device, err := a.host.FindVeth(e.ID)
		if err != nil && !isGone(err) {
			return err
		}
		ifindex = device.Ifindex
	}
	if err := a.tables.DeleteEndpoint(endpointEntry(e, n, ifindex, t)); err != nil || e.Remote() {
		return err
	}
	return errors.Join(
		a.host.RemoveVeth(e.ID),
		a.tables.Detach(loader.FromEndpoint, ifindex))
}
