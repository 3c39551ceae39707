package cni

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/ebpnet/ebpnet/internal/agent"
	"github.com/ebpnet/ebpnet/internal/spec"
)

// conf is the plugin's part of a conflist, with what the runtime puts into it.
type conf struct {
	types.PluginConf

	Network string            `json:"network"` // of ebpnet; by default the name of CNI's
	Subnets []string          `json:"subnets"` // none: the network is there already
	Gateway string            `json:"gateway"`
	IPMasq  *bool             `json:"ipMasq"`
	Options map[string]option `json:"options"`
	State   string            `json:"state"`
	Pin     string            `json:"pin"`

	RuntimeConfig struct {
		asked
		PortMappings []portMapping `json:"portMappings"`
	} `json:"runtimeConfig"`
	Args struct {
		CNI asked `json:"cni"`
	} `json:"args"`

	// Attachments is what libcni 1.2.0 called the valid attachments.
	Attachments []types.GCAttachment `json:"cni.dev/attachments"`
}

// asked is what a runtime may ask for by several ways.
type asked struct {
	IPs []string `json:"ips"` // ADDRESS or ADDRESS/BITS
	MAC string   `json:"mac"`
}

// option is the value of an option, which may be written without quotes.
type option string

// UnmarshalJSON reads a string, number or boolean.
func (o *option) UnmarshalJSON(text []byte) error {
	switch text[0] {
	case '"':
		return json.Unmarshal(text, (*string)(o))
	case '{', '[', 'n':
		return fmt.Errorf("option value %s: want a string, a number, true or false", text)
	}
	*o = option(text)
	return nil
}

// knownFields are those that mean something here, or to the protocol and the
// plugins that it is delegated to.
func knownFields() []string {
	return []string{
		"cniVersion", "cniVersions", "name", "type", "capabilities", "ipam", "dns", "prevResult", "runtimeConfig", "args",
		"network", "subnets", "gateway", "ipMasq", "options", "state", "pin",
	}
}

// parseConf reads the configuration, and names fields in it that mean nothing
// here: they may be misspelt, or for another plugin.
func parseConf(text []byte) (c conf, strange []string, err error) {
	fields := map[string]json.RawMessage{}
	if err = json.Unmarshal(text, &c); err == nil {
		err = json.Unmarshal(text, &fields)
	}
	if err != nil {
		return c, nil, types.NewError(types.ErrDecodingFailure, "network configuration: "+agent.OneLine(err), "")
	}
	c.Network = cmp.Or(c.Network, c.Name)
	for _, field := range slices.Sorted(maps.Keys(fields)) {
		if !slices.Contains(knownFields(), field) && !strings.HasPrefix(field, "cni.dev/") {
			strange = append(strange, field)
		}
	}
	for field, path := range map[string]string{"state": c.State, "pin": c.Pin} {
		if path != "" && path[0] != '/' {
			return c, strange, fmt.Errorf("%w %s %q: want a path from /", spec.ErrInvalid, field, path)
		}
	}
	return c, strange, nil
}

// describes tells whether the conflist says what the network is to be like, so
// that it can be made.
func (c conf) describes() bool { return len(c.Subnets) > 0 }

// network gives the network as the conflist describes it.
func (c conf) network() (spec.Network, error) {
	n, err := spec.NewNetwork(c.Network, c.Subnets, c.Gateway, "", 0)
	if err != nil {
		return n, err
	}
	n.ICC, n.Masquerade = true, true
	if c.IPMasq != nil {
		n.Masquerade = *c.IPMasq
	}
	for _, key := range slices.Sorted(maps.Keys(c.Options)) {
		if err := n.SetOption(key, string(c.Options[key])); err != nil {
			return n, err
		}
	}
	return n, nil
}

// checkUndescribed refuses what would be said of a network in vain.
func (c conf) checkUndescribed() error {
	if c.Gateway != "" || len(c.Options) > 0 {
		return fmt.Errorf("%w network configuration %q: it has no subnets, so network %q is taken as it is; "+
			"leave out gateway and options, or give subnets", spec.ErrInvalid, c.Name, c.Network)
	}
	return nil
}

// environment are the arguments in CNI_ARGS that mean something here.
type environment struct {
	types.CommonArgs
	IP           types.UnmarshallableString
	MAC          types.UnmarshallableString
	K8S_POD_NAME types.UnmarshallableString
	// Others of Kubernetes, which comes without IgnoreUnknown at times.
	K8S_POD_NAMESPACE          types.UnmarshallableString
	K8S_POD_INFRA_CONTAINER_ID types.UnmarshallableString
	K8S_POD_UID                types.UnmarshallableString
}

// options gives what the runtime asks for in the container's endpoint. An
// equal wish in the configuration has precedence over one in CNI_ARGS
// (CONVENTIONS.md).
func (c *call) options() (spec.EndpointOptions, error) {
	var env environment
	if err := types.LoadArgs(c.args.Args, &env); err != nil {
		return spec.EndpointOptions{}, badEnvironment(fmt.Errorf("CNI_ARGS: %w", err))
	}
	name := string(env.K8S_POD_NAME)
	if strings.ContainsFunc(name, func(r rune) bool { return r == ' ' || !unicode.IsPrint(r) }) {
		return spec.EndpointOptions{}, badEnvironment(fmt.Errorf("CNI_ARGS: K8S_POD_NAME %q is no name", name))
	}
	ips := c.conf.RuntimeConfig.IPs
	if len(ips) == 0 {
		ips = c.conf.Args.CNI.IPs
	}
	if len(ips) == 0 && env.IP != "" {
		ips = strings.Split(string(env.IP), ",")
	}
	addresses := make([]string, len(ips))
	for i, ip := range ips {
		addresses[i], _, _ = strings.Cut(ip, "/") // the network knows its prefix lengths
	}
	return spec.EndpointOptions{
		Name:      c.endpoint(),
		Network:   c.conf.Network,
		Netns:     c.args.Netns,
		Ifname:    c.args.IfName,
		Addresses: addresses,
		MAC:       cmp.Or(c.conf.RuntimeConfig.MAC, c.conf.Args.CNI.MAC, string(env.MAC)),
		Container: spec.Identity{Engine: Engine, ID: c.args.ContainerID, Name: name},
	}, nil
}
