package netavark

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/ebpnet/ebpnet/internal/agent"
	"github.com/ebpnet/ebpnet/internal/ipam"
	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
)

// hostLocal is Podman's way to choose addresses: from a file of its own. It
// tells netavark of them as static ones.
const hostLocal = "host-local"

// network is what of a Podman network means something here.
type network struct {
	Name        string            `json:"name"`
	ID          string            `json:"id"`
	Interface   string            `json:"network_interface"`
	Internal    bool              `json:"internal"`
	IPv6        bool              `json:"ipv6_enabled"`
	Options     map[string]string `json:"options"`
	IPAMOptions map[string]string `json:"ipam_options"`
	DNSServers  []string          `json:"network_dns_servers"`
	Subnets     []subnet          `json:"subnets"`
	Routes      []route           `json:"routes"`
}

type subnet struct {
	Subnet     string      `json:"subnet"`
	Gateway    string      `json:"gateway,omitempty"`
	LeaseRange *leaseRange `json:"lease_range,omitempty"`
}

// leaseRange is what of a subnet addresses are chosen from, both ends included;
// one that is not said is the subnet's.
type leaseRange struct {
	Start string `json:"start_ip,omitempty"`
	End   string `json:"end_ip,omitempty"`
}

type route struct {
	Destination string  `json:"destination"`
	Gateway     string  `json:"gateway"`
	Metric      *uint32 `json:"metric"`
	Type        string  `json:"route_type"`
}

// create makes an ebpnet network and completes Podman's. Podman has no call for
// the removal of a network: one that it made before and that nobody is on is
// what was left of a removed one.
func (p Plugin) create(ctx context.Context, in []byte) (any, error) {
	// What is not known here goes back as it came.
	var answer map[string]any
	var asked network
	if err := decode(in, &answer); err != nil {
		return nil, err
	}
	if err := decode(in, &asked); err != nil {
		return nil, err
	}
	var n spec.Network
	err := p.open(ctx, func(a *agent.Agent) (err error) {
		if err := asked.chooseSubnets(a); err != nil {
			return err
		}
		if n, err = asked.wanted(); err != nil {
			return err
		}
		if err := removeLeftover(a, n.Name); err != nil {
			return err
		}
		n, err = a.CreateNetwork(n)
		return err
	})
	if err != nil {
		return nil, err
	}
	for i, gateway := range n.Gateways {
		asked.Subnets[i].Gateway = gateway.String()
	}
	answer["subnets"] = asked.Subnets
	answer["ipv6_enabled"] = slices.ContainsFunc(n.Subnets, is6)
	answer["internal"] = n.Internal
	answer["dns_enabled"] = false
	answer["ipam_options"] = map[string]string{"driver": hostLocal}
	return answer, nil
}

func is4(p netip.Prefix) bool { return p.Addr().Is4() }
func is6(p netip.Prefix) bool { return p.Addr().Is6() }

// chooseSubnets adds the subnets that Podman's own drivers would choose: an IPv4
// one where none is asked for, and where IPv6 is asked for one of each family.
func (n *network) chooseSubnets(a *agent.Agent) error {
	var has []netip.Prefix
	for _, s := range n.Subnets {
		p, err := spec.ParseSubnet(s.Subnet)
		if err != nil {
			return err
		}
		has = append(has, p)
	}
	var pools [][]ipam.Pool
	if (len(has) == 0 || n.IPv6) && !slices.ContainsFunc(has, is4) {
		pools = append(pools, ipam.Pools4())
	}
	if n.IPv6 && !slices.ContainsFunc(has, is6) {
		pools = append(pools, ipam.Pools6())
	}
	for _, from := range pools {
		free, err := a.FreeSubnet(from, nil)
		if err != nil {
			return err
		}
		n.Subnets = append(n.Subnets, subnet{Subnet: free.String()})
	}
	return nil
}

// removeLeftover removes the network of that name if Podman made it, nobody
// else uses it, and no endpoint is on it.
func removeLeftover(a *agent.Agent, name string) error {
	left := false
	err := a.View(func(tx *store.Tx) error {
		n, err := tx.Network(name)
		if err != nil {
			return err
		}
		on, err := tx.EndpointsOn(name)
		left = len(on) == 0 && len(n.Users) > 0 &&
			!slices.ContainsFunc(n.Users, func(u spec.Identity) bool { return u.Engine != engine })
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil || !left {
		return err
	}
	return a.RemoveNetwork(name)
}

// wanted is the ebpnet network that n is to be. Its subnets are chosen.
func (n network) wanted() (spec.Network, error) {
	var subnets []string
	for _, s := range n.Subnets {
		subnets = append(subnets, s.Subnet)
	}
	w, err := spec.NewNetwork(n.Name, subnets, "", "", 0)
	if err != nil {
		return w, err
	}
	for _, s := range n.Subnets {
		if s.Gateway == "" {
			continue
		}
		if err := w.SetGateway(s.Gateway); err != nil {
			return w, err
		}
	}
	w.ICC, w.Masquerade, w.Internal = true, true, n.Internal
	w.Users = []spec.Identity{{Engine: engine, ID: n.ID, Name: n.Name}}
	if err := n.checkFixed(); err != nil {
		return w, err
	}
	for _, key := range slices.Sorted(maps.Keys(n.Options)) {
		if err := setOption(&w, key, n.Options[key]); err != nil {
			return w, err
		}
	}
	_, err = n.routes(w)
	return w, err
}

// checkFixed refuses what every ebpnet network has one way.
func (n network) checkFixed() error {
	switch driver := n.IPAMOptions["driver"]; {
	case driver != "" && driver != hostLocal:
		return fmt.Errorf("%w IPAM driver %q: ebpnet's networks have subnets with fixed addresses, want %s", spec.ErrInvalid, driver, hostLocal)
	case n.Interface != "":
		return fmt.Errorf("%w interface name %q: ebpnet makes no bridge that could be called so", spec.ErrInvalid, n.Interface)
	case len(n.DNSServers) > 0:
		return fmt.Errorf("%w DNS server %q of a network: ebpnet answers no names; give it to the containers, as podman run --dns", spec.ErrInvalid, n.DNSServers[0])
	}
	return nil
}

// setOption sets what `podman network create -o KEY=VALUE` asked for: ebpnet's
// own options, and those of Podman's bridge driver that mean something here.
func setOption(w *spec.Network, key, value string) error {
	refuse := func(why string) error {
		return fmt.Errorf("%w option %s=%s: %s", spec.ErrInvalid, key, value, why)
	}
	switch key {
	case "mtu", "com.docker.network.driver.mtu":
		mtu, err := strconv.Atoi(value)
		if err != nil {
			return refuse("want a number of bytes")
		}
		w.MTU = mtu
		if err := spec.CheckMTU(mtu); err != nil {
			return fmt.Errorf("option %s=%s: %w", key, value, err)
		}
		return nil
	case "isolate":
		if value == "strict" {
			return nil
		}
		isolate, err := strconv.ParseBool(value)
		if err != nil {
			return refuse("want true or strict")
		}
		if !isolate {
			return refuse("ebpnet's networks are always apart; put containers that are to meet on one network, or link them")
		}
		return nil
	}
	if !strings.HasPrefix(key, "ebpnet.") {
		return refuse("ebpnet has no such option; want mtu, isolate or one of ebpnet's own, see docs/podman.md")
	}
	return w.SetOption(key, value)
}

// routes gives the routes of every container on the network.
func (n network) routes(w spec.Network) ([]spec.Route, error) {
	var all []spec.Route
	for _, r := range n.Routes {
		parsed, err := r.parse(w)
		if err != nil {
			return nil, fmt.Errorf("%w route to %q: %w", spec.ErrInvalid, r.Destination, err)
		}
		all = append(all, parsed)
	}
	return all, nil
}

func (r route) parse(w spec.Network) (spec.Route, error) {
	destination, err := netip.ParsePrefix(r.Destination)
	switch {
	case err != nil || destination != destination.Masked():
		return spec.Route{}, errors.New("want ADDRESS/BITS without host bits, like 10.1.0.0/16")
	case r.Type != "" && r.Type != "unicast":
		return spec.Route{}, fmt.Errorf("it is of type %q, want unicast", r.Type)
	case r.Metric != nil && *r.Metric != 0:
		return spec.Route{}, fmt.Errorf("it has metric %d, want none", *r.Metric)
	}
	gateway, err := netip.ParseAddr(r.Gateway)
	if err != nil {
		return spec.Route{}, fmt.Errorf("gateway %q is no IP address", r.Gateway)
	}
	if !slices.ContainsFunc(w.Subnets, func(s netip.Prefix) bool { return s.Contains(gateway) }) || gateway.Is4() != destination.Addr().Is4() {
		return spec.Route{}, fmt.Errorf("gateway %s is not on the network, in the subnet of its family", gateway)
	}
	return spec.Route{Destination: destination, Gateway: gateway}, nil
}
