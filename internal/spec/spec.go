// Package spec holds the nouns of ebpnet as they are wanted: networks,
// endpoints, ports, links, tunnels and the host itself; their text forms, and
// what makes each valid on its own. It knows nothing of the store that keeps
// them, nor of the kernel that carries them out.
package spec

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"time"
)

// ErrInvalid marks input that is wrong in itself, whatever else exists: the
// command line answers it with exit code 2.
var ErrInvalid = errors.New("invalid")

// Limits on what one host holds. They follow from the sizes of the datapath's
// tables (bpf/types_tables.h), which a test compares.
const (
	MaxNameLength = 63
	MaxNetworks   = 1023
	MinMTU        = 1280 // RFC 8200, section 5: every IPv6 link carries this
	MaxMTU        = 65535
)

// Host is what `load` was told about this host.
type Host struct {
	Uplinks       []string   `json:"uplinks"`
	TunnelAddress netip.Addr `json:"tunnel_address,omitzero"`
	GatewayMAC    MAC        `json:"gateway_mac"`
	// Loopback is what the settings of lo that published ports need were before
	// (LoopbackSettings of package host), by name; nil while they are that.
	Loopback map[string]string `json:"loopback,omitempty"`

	Flows           uint32                    `json:"flows,omitempty"` // 0: DefaultFlows
	MasqueradePorts MasqueradePorts           `json:"masquerade_ports,omitzero"`
	Timeouts        map[Timeout]time.Duration `json:"timeouts,omitempty"` // those that were set, in nanoseconds

	XDP XDPMode `json:"xdp,omitempty"`
	// WithoutXDP is why uplinks, by name, had not the XDP that was asked for when
	// the host was last brought to what is wanted.
	WithoutXDP map[string]string `json:"without_xdp,omitempty"`
}

// Network is a layer-2 segment with at most one subnet a family.
type Network struct {
	Name       string         `json:"name"`
	ID         uint32         `json:"id"`
	Subnets    []netip.Prefix `json:"subnets"`
	Gateways   []netip.Addr   `json:"gateways"` // one a subnet, in its order
	ICC        bool           `json:"icc"`
	Masquerade bool           `json:"masquerade"`
	Internal   bool           `json:"internal"`
	Filtering  Filtering      `json:"filtering"`
	Key        *uint32        `json:"key,omitempty"`       // GRE key; nil: stays on this host
	MTU        int            `json:"mtu,omitempty"`       // 0: follows the uplinks and the tunnels
	Users      []Identity     `json:"users,omitempty"`     // the engines' networks that this one is
	Transient  bool           `json:"transient,omitempty"` // goes with the last of its users

	Reserved    []netip.Addr   `json:"reserved,omitempty"`    // no endpoint's
	HostBinding netip.Addr     `json:"host_binding,omitzero"` // where an engine's ports are published that name no address
	Routed      bool           `json:"routed,omitempty"`      // an engine's ports are published at the containers' own addresses
	Routes      []netip.Prefix `json:"routes,omitempty"`      // by the gateway, for an engine's containers
}

// The container engines.
const (
	Docker = "docker"
	Podman = "podman"
	CNI    = "cni"
)

// Identity is what a container engine calls a network or container of its own.
type Identity struct {
	Engine string `json:"engine"`
	ID     string `json:"id,omitempty"`
	Name   string `json:"name,omitempty"` // what people call it there
	// Which engine of several, for those that say so.
	Instance string `json:"instance,omitempty"`
}

// String gives what people call the noun, its short id if they have no name
// for it, or both; nothing for the zero Identity.
func (i Identity) String() string {
	id := i.ID[:min(len(i.ID), ShortID)]
	switch {
	case i.Name == "":
		return id
	case id == "":
		return i.Name
	}
	return i.Name + " (" + id + ")"
}

// ShortID is how many characters of an id engines show to people.
const ShortID = 12

// Title names an endpoint in a message, by what its engine calls the container
// too.
func (e Endpoint) Title() string { return title(e.Name, e.Container) }

// Title names a network in a message, by what an engine calls it too.
func (n Network) Title() string {
	var user Identity
	if len(n.Users) > 0 {
		user = n.Users[0]
	}
	return title(n.Name, user)
}

func title(name string, i Identity) string {
	if i.Name == "" || i.Name == name {
		return strconv.Quote(name)
	}
	return fmt.Sprintf("%q (%s's %q)", name, i.Engine, i.Name)
}

// Same tells whether both are the same noun of the same engine, whatever it is
// called by now.
func (i Identity) Same(o Identity) bool { return i.Engine == o.Engine && i.ID == o.ID }

// Endpoint is an interface on a network. It is remote if Tunnel is set, and
// local otherwise.
type Endpoint struct {
	Name      string       `json:"name"`
	ID        uint32       `json:"id"`
	Network   string       `json:"network"`
	MAC       MAC          `json:"mac"`
	Addresses []netip.Addr `json:"addresses"` // at most one a family
	Netns     Netns        `json:"netns,omitzero"`
	Ifname    string       `json:"ifname,omitempty"` // inside its namespace
	Expose    []Ports      `json:"expose,omitempty"`
	Tunnel    string       `json:"tunnel,omitempty"`
	Trunk     bool         `json:"trunk,omitempty"`  // other stations are behind it
	Routes    []Route      `json:"routes,omitempty"` // beside the default ones
	Allow     []Allowance  `json:"allow,omitempty"`  // local: roles whose messages it may send
	Limits                 // local
	Container Identity     `json:"container,omitzero"` // that an engine made it for
	// The engine has the container's default routes go by it; said by Docker.
	Outward bool `json:"outward,omitempty"`
	// The routes of its namespace, when ebpnet last looked; none if all lead by
	// the endpoint, or if the namespace is not known.
	Paths []Path `json:"paths,omitempty"`
}

// Path is a route of an endpoint's namespace, as seen from the endpoint.
type Path struct {
	Destination netip.Prefix `json:"destination"`
	Elsewhere   bool         `json:"elsewhere"` // by another interface than the endpoint's
}

// Route is a route inside an endpoint's namespace.
type Route struct {
	Destination netip.Prefix `json:"destination"`
	Gateway     netip.Addr   `json:"gateway,omitzero"` // unset: on the network itself
}

// Remote tells whether e lives on another host, behind a tunnel.
func (e Endpoint) Remote() bool { return e.Tunnel != "" }

// Handed tells whether e's interface was handed to an engine, which puts it
// into a namespace that is not known yet.
func (e Endpoint) Handed() bool { return !e.Remote() && e.Netns.Path == "" }

// Link is permission for Client to open connections to Server's Ports.
type Link struct {
	Client string  `json:"client"`
	Server string  `json:"server"`
	Alias  string  `json:"alias"`
	Ports  []Ports `json:"ports"`
	Engine string  `json:"engine,omitempty"` // that asked for it; none: the user did
}

// Name checks that s can name a noun of the given kind ("network", ...): one
// to MaxNameLength of the characters a-z A-Z 0-9 . _ -, the first a letter or
// digit. Such a name is also safe as a file name and as a metric label.
func Name(kind, s string) error {
	switch {
	case s == "":
		return fmt.Errorf("%w %s name: it is empty", ErrInvalid, kind)
	case len(s) > MaxNameLength:
		return fmt.Errorf("%w %s name %.20q...: %d characters, at most %d are allowed",
			ErrInvalid, kind, s, len(s), MaxNameLength)
	}
	for i, c := range []byte(s) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if letter || i > 0 && (c == '.' || c == '_' || c == '-') {
			continue
		}
		return fmt.Errorf("%w %s name %q: want letters, digits, '.', '_' or '-', a letter or digit first",
			ErrInvalid, kind, s)
	}
	return nil
}
