package docker

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/ebpnet/ebpnet/internal/spec"
)

// What the engine calls its options (moby, daemon/libnetwork/netlabel). Those of the
// user (-o, driver_opts) are in the generic one.
const (
	engineOptions      = "com.docker."
	genericOption      = "com.docker.network.generic"
	internalOption     = "com.docker.network.internal"
	portMapOption      = "com.docker.network.portmap"
	exposedPortsOption = "com.docker.network.endpoint.exposedports"
	ifnameOption       = "com.docker.network.endpoint.ifname"
)

// Options of a user's network, beside those that SetOption of a spec.Network
// takes.
const (
	joinOption        = "ebpnet.network"
	routesOption      = "ebpnet.routes"
	hostBindingOption = "com.docker.network.bridge.host_binding_ipv4"
	mode4Option       = "com.docker.network.bridge.gateway_mode_ipv4"
	mode6Option       = "com.docker.network.bridge.gateway_mode_ipv6"
)

// synonyms are the names that Docker's bridge driver has for options of ours.
func synonyms() map[string]string {
	return map[string]string{
		"com.docker.network.bridge.enable_icc":           "ebpnet.icc",
		"com.docker.network.bridge.enable_ip_masquerade": "ebpnet.masquerade",
		"com.docker.network.driver.mtu":                  "ebpnet.mtu",
	}
}

// What the gateway of a network does for a family's packets to and from
// outside.
const (
	natMode      = "nat"
	routedMode   = "routed"
	isolatedMode = "isolated"
)

// networkCall is the engine's CreateNetwork.
type networkCall struct {
	NetworkID          string
	IPv4Data, IPv6Data []ipamData
	Options            map[string]json.RawMessage
}

// ipamData is what an IPAM driver gave a network: in CIDR notation all, with
// the pool's length.
type ipamData struct {
	Pool         string
	Gateway      string            // none: to be chosen
	AuxAddresses map[string]string // by what the user calls them
}

// outOfRange is the auxiliary address of an engine whose IPAM does not give
// out such addresses anyway, as they are outside of the range.
const outOfRange = "<nil>"

// user is what the engine's network is called among the users of one of ours.
func user(networkID string) spec.Identity { return spec.Identity{Engine: engineName, ID: networkID} }

// network puts the call into a network of its own, which goes with the engine's; or,
// if join is not empty, names the one that the engine's is to be.
func (c networkCall) network() (n spec.Network, join string, err error) {
	var subnets []string
	data := slices.Concat(c.IPv4Data, c.IPv6Data)
	for _, d := range data {
		subnets = append(subnets, d.Pool)
	}
	if n, err = spec.NewNetwork(shortID(c.NetworkID), subnets, "", "", 0); err != nil {
		return n, "", err
	}
	n.ICC, n.Masquerade, n.Transient = true, true, true
	n.Users = []spec.Identity{user(c.NetworkID)}
	for _, d := range data {
		if err := d.addTo(&n); err != nil {
			return n, "", err
		}
	}
	if internal, given := c.Options[internalOption]; given {
		if err := json.Unmarshal(internal, &n.Internal); err != nil {
			return n, "", fmt.Errorf("%w option %q: %w", spec.ErrInvalid, internalOption, err)
		}
	}
	var options map[string]string
	if generic, given := c.Options[genericOption]; given {
		if err := json.Unmarshal(generic, &options); err != nil {
			return n, "", fmt.Errorf("%w option %q: %w", spec.ErrInvalid, genericOption, err)
		}
	}
	if join, joins := options[joinOption]; joins {
		return n, join, checkJoin(n, join, options)
	}
	return n, "", setOptions(&n, options)
}

func (d ipamData) addTo(n *spec.Network) error {
	if d.Gateway != "" {
		gateway, err := netip.ParsePrefix(d.Gateway)
		if err != nil {
			return fmt.Errorf("%w gateway %q: want ADDRESS/BITS", spec.ErrInvalid, d.Gateway)
		}
		if err := n.SetGateway(gateway.Addr().String()); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(d.AuxAddresses)) {
		text := d.AuxAddresses[name]
		if text == outOfRange {
			continue
		}
		address, err := netip.ParsePrefix(text)
		if err != nil {
			return fmt.Errorf("%w auxiliary address %s=%q: want ADDRESS/BITS", spec.ErrInvalid, name, text)
		}
		n.Reserved = append(n.Reserved, address.Addr())
	}
	return nil
}

// checkJoin refuses what a network that is there would have to be changed for.
func checkJoin(n spec.Network, join string, options map[string]string) error {
	if err := spec.Name("network", join); err != nil {
		return fmt.Errorf("option %q: %w", joinOption, err)
	}
	for _, key := range slices.Sorted(maps.Keys(options)) {
		if key != joinOption {
			return fmt.Errorf("%w option %q: it cannot go with %s, as network %q is what it is; see 'ebpnet network set'", spec.ErrInvalid, key, joinOption, join)
		}
	}
	if len(n.Reserved) > 0 {
		return fmt.Errorf("%w auxiliary address %s: it cannot go with %s, as network %q is what it is", spec.ErrInvalid, n.Reserved[0], joinOption, join)
	}
	return nil
}

func setOptions(n *spec.Network, options map[string]string) error {
	modes := make(map[string]string)
	for _, key := range slices.Sorted(maps.Keys(options)) {
		value := options[key]
		var err error
		switch key {
		case hostBindingOption:
			n.HostBinding, err = parseHostBinding(value)
		case routesOption:
			n.Routes, err = parseRoutes(*n, value)
		case mode4Option, mode6Option:
			modes[key] = value
			err = checkMode(value)
		default:
			own, renamed := synonyms()[key]
			if !renamed {
				err := n.SetOption(key, value)
				if errors.Is(err, spec.ErrUnknownOption) {
					err = fmt.Errorf("%w option %q: the driver ebpnet has no such option; docs/docker.md has a list of those that it has", spec.ErrInvalid, key)
				}
				if err != nil {
					return err // which names the option
				}
				continue
			}
			err = n.SetOption(own, value)
		}
		if err != nil {
			return fmt.Errorf("option %q: %w", key, err)
		}
	}
	return setMode(n, modes)
}

// parseHostBinding reads the address at which ports are published that name
// none; it is unset for the engine's own default, which is every one of both families.
func parseHostBinding(s string) (netip.Addr, error) {
	a, err := spec.ParseAddress(s)
	if err != nil || a == netip.IPv4Unspecified() {
		return netip.Addr{}, err
	}
	p, err := spec.ParsePort(spec.HostText(a) + "::1") // whatever the port
	return p.Address, err
}

// parseRoutes reads CIDR[,CIDR].
func parseRoutes(n spec.Network, s string) ([]netip.Prefix, error) {
	var routes []netip.Prefix
	for text := range strings.SplitSeq(s, ",") {
		r, err := netip.ParsePrefix(text)
		if err != nil || r.Addr().Is4In6() {
			return nil, fmt.Errorf("%w route %q: want ADDRESS/BITS[,ADDRESS/BITS]", spec.ErrInvalid, text)
		}
		if r.Masked() != r {
			return nil, fmt.Errorf("%w route %q: it has host bits set, want %s", spec.ErrInvalid, text, r.Masked())
		}
		if !n.Gateway(r.Addr()).IsValid() {
			return nil, fmt.Errorf("%w route %q: the network has no gateway of its family", spec.ErrInvalid, text)
		}
		routes = append(routes, r)
	}
	return routes, nil
}

func checkMode(s string) error {
	switch s {
	case natMode, routedMode, isolatedMode:
		return nil
	}
	return fmt.Errorf("%w mode %q: want %s, %s or %s", spec.ErrInvalid, s, natMode, routedMode, isolatedMode)
}

// setMode sets the mode of the network's families, which must be the same.
func setMode(n *spec.Network, modes map[string]string) error {
	var mode, of string
	for _, subnet := range n.Subnets {
		option := mode4Option
		if subnet.Addr().Is6() {
			option = mode6Option
		}
		own := natMode
		if given := modes[option]; given != "" {
			own = given
		}
		if mode != "" && mode != own {
			return fmt.Errorf("%w options: %s is %s and %s is %s, want the same for both families", spec.ErrInvalid, of, mode, option, own)
		}
		mode, of = own, option
	}
	switch mode {
	case routedMode:
		n.Routed, n.Masquerade = true, false
	case isolatedMode:
		if !n.Internal {
			return fmt.Errorf("option %q: %w mode %q: only an internal network is isolated, give --internal", of, spec.ErrInvalid, mode)
		}
	}
	return nil
}
