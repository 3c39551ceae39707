package cni

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/ebpnet/ebpnet/internal/agent"
	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
)

// portMapping is one of the capability portMappings (CONVENTIONS.md).
type portMapping struct {
	HostPort      int    `json:"hostPort"` // 0: it is not published
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"` // none: tcp
	HostIP        string `json:"hostIP"`   // none: every address of the host
}

// published puts the mappings into ebpnet's terms. Runtimes list each port of a
// range; neighbours become one range again.
func published(mappings []portMapping) ([]spec.Port, error) {
	var ports []spec.Port
	for _, m := range mappings {
		if m.HostPort == 0 {
			continue
		}
		p, err := m.port()
		if err != nil {
			return nil, err
		}
		if last := len(ports) - 1; last >= 0 && follows(ports[last], p) {
			ports[last].Last, ports[last].TargetLast = p.Last, p.TargetLast
			continue
		}
		ports = append(ports, p)
	}
	return ports, nil
}

func (m portMapping) port() (spec.Port, error) {
	text := fmt.Sprintf("%d:%d/%s", m.HostPort, m.ContainerPort, strings.ToLower(cmp.Or(m.Protocol, spec.TCP.String())))
	if m.HostIP != "" {
		address, err := netip.ParseAddr(m.HostIP)
		if err != nil {
			return spec.Port{}, fmt.Errorf("%w host IP %s of published port %s: want an IP address", spec.ErrInvalid, strconv.Quote(m.HostIP), text)
		}
		text = spec.HostText(address) + ":" + text
	}
	return spec.ParsePort(text)
}

// follows tells whether one port and the next are the same range's.
func follows(p, next spec.Port) bool {
	return next.Address == p.Address && next.Protocol == p.Protocol &&
		int(next.First) == int(p.Last)+1 && int(next.TargetFirst) == int(p.TargetLast)+1
}

// unpublished gives those of the wanted ports that the container's interface on
// the network n has to publish. Runtimes ask every network of a container for
// all its ports: the first one that is not internal has them, as it has the
// default route.
func (c *call) unpublished(a *agent.Agent, n spec.Network, wanted []spec.Port) ([]spec.Port, error) {
	if n.Internal && len(wanted) > 0 {
		c.log.Warn("ports are not published by an internal network", "network", n.Name, "container", c.args.ContainerID)
		return nil, nil
	}
	var there []spec.Port
	err := a.View(func(tx *store.Tx) (err error) {
		there, err = c.portsOfContainer(tx)
		return err
	})
	return slices.DeleteFunc(slices.Clone(wanted), func(p spec.Port) bool { return isPublished(there, p) }), err
}

// portsOfContainer gives what all interfaces of the container publish.
func (c *call) portsOfContainer(tx *store.Tx) ([]spec.Port, error) {
	endpoints, err := tx.Endpoints()
	if err != nil {
		return nil, err
	}
	var all []spec.Port
	for _, e := range endpoints {
		if !e.Container.Same(spec.Identity{Engine: Engine, ID: c.args.ContainerID}) {
			continue
		}
		ports, err := tx.PortsOf(e.Name)
		if err != nil {
			return nil, err
		}
		all = append(all, ports...)
	}
	return all, nil
}

func isPublished(there []spec.Port, wanted spec.Port) bool {
	return slices.ContainsFunc(there, func(p spec.Port) bool { return p.Matches(wanted) })
}
