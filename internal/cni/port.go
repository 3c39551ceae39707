package cni

import (
	"cmp"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/ebpnet/ebpnet/internal/spec"
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
