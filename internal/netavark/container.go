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
		if err := a.EnsureNoEndpoint(e.Name); err != nil {
			return err
		}
		if ports, err = a.Unpublished(e.Container, n, ports); err != nil {
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
	err := p.open(ctx, func(a *agent.Agent) error { return a.EnsureNoEndpoint(c.endpointName()) })
	if errors.Is(err, loader.ErrNotLoaded) {
		p.Log.Warn("endpoint is left to be forgotten", "endpoint", c.endpointName(), "error", err)
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

// statusOf tells of an endpoint that was made.
func statusOf(e spec.Endpoint, n spec.Network) status {
	i := inner{MAC: e.MAC}
	for _, a := range e.Addresses {
		to := address{Address: n.Prefix(a)}
		if !n.Internal {
			to.Gateway = n.Gateway(a)
		}
		i.Subnets = append(i.Subnets, to)
	}
	return status{
		SearchDomains: []string{},
		DNSServers:    []string{},
		Interfaces:    map[string]inner{e.Ifname: i},
	}
}
