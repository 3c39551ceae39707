package netavark

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"github.com/ebpnet/ebpnet/internal/agent"
	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
	"github.com/ebpnet/ebpnet/loader"
)

// container is one container and one of its networks.
type container struct {
	ID      string        `json:"container_id"`
	Name    string        `json:"container_name"`
	Ports   []portMapping `json:"port_mappings"`
	Network network       `json:"network"`
	On      struct {
		Interface string            `json:"interface_name"`
		Addresses []string          `json:"static_ips"`
		MAC       string            `json:"static_mac"`
		Options   map[string]string `json:"options"`
	} `json:"network_options"`
}

// portMapping is what `podman run --publish` asks for.
type portMapping struct {
	Container uint16 `json:"container_port"`
	HostIP    string `json:"host_ip"` // empty: every address
	Host      uint16 `json:"host_port"`
	Protocol  string `json:"protocol"` // several with commas; empty: tcp
	Range     uint16 `json:"range"`    // how many ports; 0 is 1
}

// status is what Podman is told of a container on a network.
type status struct {
	SearchDomains []string         `json:"dns_search_domains"`
	DNSServers    []string         `json:"dns_server_ips"`
	Interfaces    map[string]inner `json:"interfaces"`
}

type inner struct {
	MAC     spec.MAC  `json:"mac_address"`
	Subnets []address `json:"subnets"`
}

type address struct {
	Gateway netip.Addr   `json:"gateway,omitzero"`
	Address netip.Prefix `json:"ipnet"` // with its subnet's length
}

func readContainer(stdin io.Reader) (c container, err error) {
	in, err := read(stdin)
	if err != nil {
		return c, err
	}
	if err := decode(in, &c); err != nil {
		return c, err
	}
	if c.ID == "" || c.Network.ID == "" || c.On.Interface == "" {
		return c, fmt.Errorf("%w input: container_id, network.id or network_options.interface_name is missing", spec.ErrInvalid)
	}
	return c, nil
}

// endpointName is what the container's interface is called here.
func (c container) endpointName() string {
	return spec.EndpointName(c.ID, c.Network.ID, c.On.Interface)
}

// setup adds the container to the network, which is made again if somebody
// removed it. What was left of an earlier start of the container goes.
func (p Plugin) setup(ctx context.Context, netns string, c container) (any, error) {
	n, err := c.Network.wanted()
	if err != nil {
		return nil, err
	}
	e, err := c.endpoint(netns, n)
	if err != nil {
		return nil, err
	}
	ports, err := c.ports()
	if err != nil {
		return nil, err
	}
	err = p.open(ctx, func(a *agent.Agent) (err error) {
		if n, err = a.EnsureNetwork(n); err != nil {
			return err
		}
		if err := remove(a, e.Name); err != nil {
			return err
		}
		err = a.View(func(tx *store.Tx) (err error) {
			ports, err = p.unpublished(tx, e, n, ports)
			return err
		})
		if err != nil {
			return err
		}
		if err := c.chooseAddresses(a, &e, n); err != nil {
			return err
		}
		e, _, err = a.AddEndpoint(e, ports)
		return err
	})
	if err != nil {
		return nil, err
	}
	return statusOf(e, n), nil
}

// teardown removes the container from the network; nil if it is not on it.
// Where ebpnet is not loaded it is not either: as soon as ebpnet is, it forgets
// the endpoint together with the container's namespace.
func (p Plugin) teardown(ctx context.Context, c container) error {
	err := p.open(ctx, func(a *agent.Agent) error { return remove(a, c.endpointName()) })
	if errors.Is(err, loader.ErrNotLoaded) {
		p.Log.Warn("endpoint is left to be forgotten", "endpoint", c.endpointName(), "error", err)
		return nil
	}
	return err
}

// remove removes an endpoint if it is there.
func remove(a *agent.Agent, name string) error {
	err := a.RemoveEndpoint(name)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}

// endpoint is what the container's interface on n is to be.
func (c container) endpoint(netns string, n spec.Network) (spec.Endpoint, error) {
	for key := range c.On.Options {
		return spec.Endpoint{}, fmt.Errorf("%w option %q of a container's network: ebpnet has none; want ip, ip6, mac, interface_name or alias", spec.ErrInvalid, key)
	}
	routes, err := c.Network.routes(n)
	if err != nil {
		return spec.Endpoint{}, err
	}
	return spec.NewEndpoint(spec.EndpointOptions{
		Name:      c.endpointName(),
		Network:   n.Name,
		Netns:     netns,
		Ifname:    c.On.Interface,
		MAC:       c.On.MAC,
		Addresses: c.On.Addresses,
		Container: spec.Identity{Engine: engine, ID: c.ID, Name: c.Name},
		Routes:    routes,
	})
}

// chooseAddresses gives e an address of each subnet that has a lease range and
// of which Podman chose none. Those of other subnets ebpnet chooses anyway.
func (c container) chooseAddresses(a *agent.Agent, e *spec.Endpoint, n spec.Network) error {
	for i, s := range c.Network.Subnets {
		if s.LeaseRange == nil || slices.ContainsFunc(e.Addresses, n.Subnets[i].Contains) {
			continue
		}
		start, end, err := s.LeaseRange.within(n.Subnets[i])
		if err != nil {
			return err
		}
		outside := func(a netip.Addr) bool { return a.Less(start) || end.Less(a) }
		chosen, err := a.ChooseAddress(n.Name, covering(start, end), outside)
		if err != nil {
			return err
		}
		e.Addresses = append(e.Addresses, chosen)
	}
	return nil
}

// within gives the ends of the range, which has to lie in the subnet.
func (r leaseRange) within(subnet netip.Prefix) (start, end netip.Addr, err error) {
	start, end = subnet.Addr(), spec.LastAddress(subnet)
	if r.Start != "" {
		if start, err = spec.ParseAddress(r.Start); err != nil {
			return start, end, err
		}
	}
	if r.End != "" {
		if end, err = spec.ParseAddress(r.End); err != nil {
			return start, end, err
		}
	}
	if !subnet.Contains(start) || !subnet.Contains(end) || end.Less(start) {
		return start, end, fmt.Errorf("%w range of addresses %s to %s: want one in %s", spec.ErrInvalid, start, end, subnet)
	}
	return start, end, nil
}

// covering gives the longest prefix that holds both addresses, which are of
// one family.
func covering(a, b netip.Addr) netip.Prefix {
	p := netip.PrefixFrom(a, a.BitLen())
	for !p.Contains(b) {
		p = netip.PrefixFrom(a, p.Bits()-1)
	}
	return p.Masked()
}

// ports gives the publications that are asked for.
func (c container) ports() ([]spec.Port, error) {
	var all []spec.Port
	for _, m := range c.Ports {
		protocols := m.Protocol
		if protocols == "" {
			protocols = spec.TCP.String()
		}
		for protocol := range strings.SplitSeq(protocols, ",") {
			p, err := spec.ParsePort(m.text(protocol))
			if err != nil {
				return nil, err
			}
			all = append(all, p)
		}
	}
	return all, nil
}

// text gives the form that spec.ParsePort reads.
func (m portMapping) text(protocol string) string {
	further := int(max(m.Range, 1)) - 1
	ranged := func(first uint16) string {
		if further == 0 {
			return fmt.Sprint(first)
		}
		return fmt.Sprintf("%d-%d", first, int(first)+further)
	}
	at := m.HostIP
	if strings.Contains(at, ":") {
		at = "[" + at + "]"
	}
	if at != "" {
		at += ":"
	}
	return at + ranged(m.Host) + ":" + ranged(m.Container) + "/" + protocol
}

// unpublished gives what e is to publish of a container's ports: netavark names
// them all for each of the container's networks, and each port of the host
// leads to one. The network that comes first has them, in each family that it
// has; an internal one has none.
func (p Plugin) unpublished(tx *store.Tx, e spec.Endpoint, n spec.Network, wanted []spec.Port) ([]spec.Port, error) {
	all, err := tx.Endpoints()
	if err != nil {
		return nil, err
	}
	var there []publication
	for _, o := range all {
		if !o.Container.Same(e.Container) {
			continue
		}
		ports, err := tx.PortsOf(o.Name)
		if err != nil {
			return nil, err
		}
		for _, p := range ports {
			there = append(there, publication{p, o.Addresses})
		}
	}
	var missing []spec.Port
	for _, port := range wanted {
		families := familiesOf(port, n)
		if len(families) == 0 {
			p.Log.Warn("port is not published by a network that is internal or lacks the family of its address", "port", port, "network", n.Name)
		}
		if port, ok := lacking(port, families, there); ok {
			missing = append(missing, port)
		}
	}
	return missing, nil
}

// familiesOf tells in which families a network can publish p; true is IPv4.
func familiesOf(p spec.Port, n spec.Network) []bool {
	var families []bool
	for _, s := range n.Subnets {
		if !n.Internal && (!p.Address.IsValid() || p.Address.Is4() == is4(s)) {
			families = append(families, is4(s))
		}
	}
	return families
}

// publication is a port and the addresses of the endpoint that publishes it.
type publication struct {
	spec.Port
	to []netip.Addr
}

// covers tells whether p is published already in a family.
func (p publication) covers(o spec.Port, ip4 bool) bool {
	return p.Target() == o.Target() && p.First == o.First &&
		spec.AddressesOverlap(p.Address, o.Address) &&
		(!p.Address.IsValid() || p.Address.Is4() == ip4) &&
		slices.ContainsFunc(p.to, func(a netip.Addr) bool { return a.Is4() == ip4 })
}

// lacking gives p as far as it is not there yet in some of the families; false
// if nothing is left of it. What is of one family says so, and leaves the other
// to another network.
func lacking(p spec.Port, families []bool, there []publication) (spec.Port, bool) {
	left := slices.DeleteFunc(slices.Clone(families), func(ip4 bool) bool {
		return slices.ContainsFunc(there, func(t publication) bool { return t.covers(p, ip4) })
	})
	if !p.Address.IsValid() && len(left) == 1 {
		p.Address = netip.IPv6Unspecified()
		if left[0] {
			p.Address = netip.IPv4Unspecified()
		}
	}
	return p, len(left) > 0
}

// statusOf tells of an endpoint that was made.
func statusOf(e spec.Endpoint, n spec.Network) status {
	i := inner{MAC: e.MAC}
	for _, a := range e.Addresses {
		at := slices.IndexFunc(n.Subnets, func(s netip.Prefix) bool { return s.Contains(a) })
		to := address{Address: netip.PrefixFrom(a, n.Subnets[at].Bits())}
		if !n.Internal {
			to.Gateway = n.Gateways[at]
		}
		i.Subnets = append(i.Subnets, to)
	}
	return status{
		SearchDomains: []string{},
		DNSServers:    []string{},
		Interfaces:    map[string]inner{e.Ifname: i},
	}
}
