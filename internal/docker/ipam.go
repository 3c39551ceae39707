package docker

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ebpnet/ebpnet/internal/agent"
	"github.com/ebpnet/ebpnet/internal/ipam"
	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
)

// The IPAM driver chooses from what ebpnet knows to be free. The store has who
// has what; here is kept only what was given out a moment ago and will be in
// the store a moment later.

// What the engine says that an address is for.
const (
	addressTypeOption  = "RequestAddressType"
	gatewayAddressType = "com.docker.network.gateway"
)

// addressSpaces are where the engine keeps addresses apart. Both are the same:
// an engine from Docker 27 on then leaves it to the driver whether a subnet may
// be one that the host has a route to, as a network's has that is joined.
func addressSpaces() map[string]string {
	return map[string]string{"LocalDefaultAddressSpace": driverName, "GlobalDefaultAddressSpace": driverName}
}

// pool is a subnet and the range in it that addresses are chosen from. Its text
// form, SUBNET or SUBNET,RANGE, is all that the engine is given for it.
type pool struct{ subnet, within netip.Prefix }

func parsePool(s string) (p pool, err error) {
	subnet, within, ranged := strings.Cut(s, ",")
	if p.subnet, err = spec.ParseSubnet(subnet); err != nil {
		return p, err
	}
	p.within = p.subnet
	if !ranged {
		return p, nil
	}
	p.within, err = netip.ParsePrefix(within)
	if err != nil || p.within.Masked() != p.within || !p.subnet.Contains(p.within.Addr()) || p.within.Bits() < p.subnet.Bits() {
		return p, fmt.Errorf("%w range %q: want a part of subnet %s, ADDRESS/BITS without host bits", spec.ErrInvalid, within, p.subnet)
	}
	return p, nil
}

func (p pool) String() string {
	if p.within == p.subnet {
		return p.subnet.String()
	}
	return p.subnet.String() + "," + p.within.String()
}

// network gives the network whose subnet the pool is, if there is one.
func (p pool) network(tx *store.Tx) (n spec.Network, found bool, err error) {
	all, err := tx.Networks()
	for _, n := range all {
		if slices.Contains(n.Subnets, p.subnet) {
			return n, true, nil
		}
	}
	return n, false, err
}

// holdTime is how long what was given out is held: the engine makes an endpoint
// or network of it at once, or has died.
const holdTime = time.Minute

// holds is what was given out and is in the store not yet.
type holds struct {
	mutex sync.Mutex
	until map[netip.Prefix]time.Time // of subnets, and of addresses as such
	// Subnets of networks to join that the engine was offered and has not used.
	offered map[netip.Prefix]bool
}

func newHolds() holds {
	return holds{until: make(map[netip.Prefix]time.Time), offered: make(map[netip.Prefix]bool)}
}

func hostPrefix(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func (h *holds) hold(p netip.Prefix) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	h.until[p] = time.Now().Add(holdTime)
}

func (h *holds) drop(addresses ...netip.Addr) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	for _, a := range addresses {
		delete(h.until, hostPrefix(a))
	}
}

// held tells whether an address is held.
func (h *holds) held(a netip.Addr) bool { return slices.Contains(h.all(), hostPrefix(a)) }

// all lists what is held, and forgets what no longer is.
func (h *holds) all() (list []netip.Prefix) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	now := time.Now()
	for p, until := range h.until {
		if now.After(until) {
			delete(h.until, p)
			continue
		}
		list = append(list, p)
	}
	return list
}

// offer tells whether a subnet can be offered to the engine: not if it has been
// and the engine asks for another instead of using it.
func (h *holds) offer(subnet netip.Prefix) bool {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	if h.offered[subnet] {
		return false
	}
	h.offered[subnet] = true
	return true
}

// take notes that an offer is used, or no longer stands.
func (h *holds) take(subnet netip.Prefix) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	delete(h.offered, subnet)
}

// release notes that a subnet is given back.
func (h *holds) release(subnet netip.Prefix) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	delete(h.offered, subnet)
	delete(h.until, subnet)
}

// poolCall is the engine's RequestPool: a subnet, and a range in it, either of
// which the user may have left to the driver.
type poolCall struct {
	Pool, SubPool string
	Options       map[string]string
	V6            bool
}

// poolAnswer is the answer to it.
type poolAnswer struct{ PoolID, Pool string }

func (p *Plugin) requestPool(ctx context.Context, c poolCall) (poolAnswer, error) {
	subnet, err := p.subnetFor(ctx, c)
	if err != nil {
		return poolAnswer{}, err
	}
	id := subnet.String()
	if c.SubPool != "" {
		id += "," + c.SubPool
	}
	chosen, err := parsePool(id)
	return poolAnswer{chosen.String(), chosen.subnet.String()}, err
}

// subnetFor gives the subnet that is asked for, that of the network to join, or
// a free one.
func (p *Plugin) subnetFor(ctx context.Context, c poolCall) (subnet netip.Prefix, err error) {
	join := ""
	for key, value := range c.Options {
		switch {
		case key == joinOption:
			join = value
		case !strings.HasPrefix(key, engineOptions):
			return subnet, fmt.Errorf("%w IPAM option %q: want %s=NAME or none", spec.ErrInvalid, key, joinOption)
		}
	}
	if c.Pool != "" {
		if subnet, err = spec.ParseSubnet(c.Pool); err != nil || join == "" {
			return subnet, err
		}
		c.V6 = subnet.Addr().Is6()
	} else if c.SubPool != "" {
		return subnet, fmt.Errorf("%w range %q: give the subnet too, by --subnet", spec.ErrInvalid, c.SubPool)
	}
	err = p.with(ctx, func(h hostAgent) error {
		if join != "" {
			of, err := subnetToJoin(h, join, c.V6)
			if err == nil && c.Pool != "" && of != subnet {
				err = fmt.Errorf("%w subnet %s: that of network %q is %s", spec.ErrInvalid, subnet, join, of)
			}
			subnet = of
			return err
		}
		pools := ipam.Pools4()
		if c.V6 {
			pools = ipam.Pools6()
		}
		var err error
		if subnet, err = h.FreeSubnet(pools, p.holds.all()); err == nil {
			p.holds.hold(subnet)
		}
		return err
	})
	if err == nil && join != "" && c.Pool == "" && !p.holds.offer(subnet) {
		p.holds.take(subnet)
		err = fmt.Errorf("%w options: this engine takes a subnet that the host has a route to only if that is asked for; give --subnet %s", spec.ErrInvalid, subnet)
	}
	return subnet, err
}

// subnetToJoin gives the subnet of a family that a network has.
func subnetToJoin(h hostAgent, name string, v6 bool) (subnet netip.Prefix, err error) {
	err = h.View(func(tx *store.Tx) error {
		n, err := tx.Network(name)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(n.Subnets, func(s netip.Prefix) bool { return s.Addr().Is6() == v6 })
		if i < 0 {
			return fmt.Errorf("%w IPAM option %q: network %q has subnets %s, and none of the other family", spec.ErrInvalid, joinOption, name, n.Subnets)
		}
		subnet = n.Subnets[i]
		return nil
	})
	return subnet, err
}

// releaseCall is the engine's ReleasePool or ReleaseAddress.
type releaseCall struct{ PoolID, Address string }

func (p *Plugin) releasePool(_ context.Context, c releaseCall) (nothing, error) {
	released, err := parsePool(c.PoolID)
	if err == nil {
		p.holds.release(released.subnet)
	}
	return nothing{}, err
}

// addressCall is the engine's RequestAddress; without an address any will do.
type addressCall struct {
	PoolID, Address string
	Options         map[string]string
}

func (c addressCall) isForGateway() bool { return c.Options[addressTypeOption] == gatewayAddressType }

// addressAnswer is the answer to it, in CIDR notation.
type addressAnswer struct{ Address string }

func (p *Plugin) requestAddress(ctx context.Context, c addressCall) (addressAnswer, error) {
	from, err := parsePool(c.PoolID)
	if err != nil {
		return addressAnswer{}, err
	}
	p.holds.take(from.subnet)
	var address netip.Addr
	err = p.with(ctx, func(h hostAgent) error {
		if address, err = p.addressFor(h, from, c); err == nil && !c.isForGateway() {
			p.holds.hold(hostPrefix(address))
		}
		return err
	})
	if err != nil {
		return addressAnswer{}, err
	}
	return addressAnswer{netip.PrefixFrom(address, from.subnet.Bits()).String()}, nil
}

// addressFor gives the address that is asked for, or chooses one.
func (p *Plugin) addressFor(h hostAgent, from pool, c addressCall) (address netip.Addr, err error) {
	if c.Address != "" {
		if address, err = spec.ParseAddress(c.Address); err != nil {
			return address, err
		}
	}
	var (
		n     spec.Network
		found bool
		owner string
	)
	err = h.View(func(tx *store.Tx) (err error) {
		if address.IsValid() {
			if name, taken := tx.AddressOwner(address); taken {
				e, err := tx.Endpoint(name)
				if err != nil {
					return err
				}
				owner = e.Title()
			}
		}
		n, found, err = from.network(tx)
		return err
	})
	switch {
	case err != nil:
		return address, err
	case c.isForGateway():
		return gatewayFor(n, found, from, address)
	case owner != "":
		return address, fmt.Errorf("address %s %w: endpoint %s has it; choose another, or leave the choice to ebpnet", address, agent.ErrInUse, owner)
	case address.IsValid():
		if !found { // an auxiliary address, before there is the network
			n = spec.Network{Name: from.String(), Subnets: []netip.Prefix{from.subnet}}
		}
		if err := n.CheckAddress(address); err != nil || !p.holds.held(address) {
			return address, err
		}
		return address, fmt.Errorf("address %s %w: a container that is being started has it; choose another, or leave the choice to ebpnet", address, agent.ErrInUse)
	case !found:
		return address, errors.New("it has addresses for containers on its own networks alone: create the network with -d ebpnet")
	}
	if address, err = h.ChooseAddress(n.Name, from.within, p.holds.held); err != nil {
		err = fmt.Errorf("range %s: %w", from.within, err)
	}
	return address, err
}

// gatewayFor gives the gateway of a network to join, or that of one to be made.
func gatewayFor(n spec.Network, found bool, from pool, asked netip.Addr) (netip.Addr, error) {
	if !found {
		var err error
		if n, err = spec.NewNetwork("new", []string{from.subnet.String()}, "", "", 0); err != nil {
			return asked, err
		}
		if asked.IsValid() {
			return asked, n.SetGateway(asked.String())
		}
	}
	gateway := n.Gateway(from.subnet.Addr())
	if asked.IsValid() && asked != gateway {
		return asked, fmt.Errorf("%w gateway %s: that of network %q is %s", spec.ErrInvalid, asked, n.Name, gateway)
	}
	return gateway, nil
}

func (p *Plugin) releaseAddress(_ context.Context, c releaseCall) (nothing, error) {
	address, err := spec.ParseAddress(c.Address)
	if err == nil {
		p.holds.drop(address)
	}
	return nothing{}, err
}
