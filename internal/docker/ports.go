package docker

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"github.com/ebpnet/ebpnet/internal/agent"
	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
)

// binding is a port that a container is to publish, as the engine puts it: the
// first free one of ports HostPort to HostPortEnd of the host leads to the
// container's Port. Ranges come as a binding each port.
type binding struct {
	Proto                 spec.Protocol
	Port                  uint16
	HostIP                string // none: the user named none
	HostPort, HostPortEnd uint16 // 0: to be chosen; no end: HostPort itself
}

// UnmarshalJSON takes the protocol as the number that the engine gives.
func (b *binding) UnmarshalJSON(text []byte) error {
	var raw struct {
		Proto                       uint8
		Port, HostPort, HostPortEnd uint16
		HostIP                      string
	}
	err := json.Unmarshal(text, &raw)
	*b = binding{spec.Protocol(raw.Proto), raw.Port, raw.HostIP, raw.HostPort, raw.HostPortEnd}
	return err
}

// isChoice tells whether several ports of the host will do.
func (b binding) isChoice() bool { return b.HostPortEnd > b.HostPort && b.HostPort != 0 }

// target is the text form of count ports of the container from b's on.
func (b binding) target(count int) string { return numbers(b.Port, count) + "/" + b.Proto.String() }

// port gives the publication of count ports from b's on. It goes by the text
// form, which is checked in one place. unnamed is where one is published that
// names no address.
func (b binding) port(count int, unnamed netip.Addr) (spec.Port, error) {
	text := ":" + b.target(count)
	if b.HostPort != 0 {
		text = numbers(b.HostPort, count) + text
	}
	address := unnamed
	if b.HostIP != "" {
		var err error
		if address, err = spec.ParseAddress(b.HostIP); err != nil {
			return spec.Port{}, fmt.Errorf("published port %q: %w", text, err)
		}
	}
	if address.IsValid() {
		text = spec.HostText(address) + ":" + text
	}
	return spec.ParsePort(text)
}

func numbers(first uint16, count int) string {
	if count == 1 {
		return strconv.Itoa(int(first))
	}
	return fmt.Sprintf("%d-%d", first, int(first)+count-1)
}

// parseBindings reads what a container publishes; none if there is no text.
func parseBindings(text json.RawMessage) (all []binding, err error) {
	if text != nil {
		err = json.Unmarshal(text, &all)
	}
	if err != nil {
		return nil, fmt.Errorf("%w ports: %w", spec.ErrInvalid, err)
	}
	return all, nil
}

func byContainerPort(a, b binding) int {
	return cmp.Or(cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.Port, b.Port))
}

// parseExposed reads what a container exposes, into as few ranges as will do.
// SCTP is left out: links are of the other protocols.
func parseExposed(text json.RawMessage) (exposed []spec.Ports, err error) {
	all, err := parseBindings(text) // which have the same names
	if err != nil {
		return nil, fmt.Errorf("%s: %w", exposedPortsOption, err)
	}
	all = slices.DeleteFunc(all, func(b binding) bool { return b.Proto == spec.SCTP })
	slices.SortFunc(all, byContainerPort)
	for len(all) > 0 {
		count := 1
		for count < len(all) && all[count].Proto == all[0].Proto && int(all[count].Port) == int(all[0].Port)+count {
			count++
		}
		ports, err := spec.ParsePorts(all[0].target(count))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", exposedPortsOption, err)
		}
		exposed = append(exposed, ports)
		all = all[count:]
	}
	return exposed, nil
}

// merged puts bindings that follow each other into publications, and gives
// those as they are that leave a choice.
func merged(all []binding, unnamed netip.Addr) (ports []spec.Port, choices []binding, err error) {
	all = slices.Clone(all)
	slices.SortFunc(all, func(a, b binding) int {
		return cmp.Or(cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.HostIP, b.HostIP),
			cmp.Compare(a.HostPort, b.HostPort), cmp.Compare(a.Port, b.Port))
	})
	for len(all) > 0 {
		first, count := all[0], 1
		if first.isChoice() {
			choices = append(choices, first)
			all = all[1:]
			continue
		}
		for count < len(all) && all[count].follows(first, count) {
			count++
		}
		p, err := first.port(count, unnamed)
		if err != nil {
			return nil, nil, err
		}
		ports = append(ports, p)
		all = all[count:]
	}
	return ports, choices, nil
}

// follows tells whether b comes so many ports behind first, on both sides.
func (b binding) follows(first binding, by int) bool {
	return !b.isChoice() && first.HostPort != 0 &&
		int(b.HostPort) == int(first.HostPort)+by && int(b.Port) == int(first.Port)+by &&
		b.HostIP == first.HostIP && b.Proto == first.Proto
}

// routed gives the publications of a network whose endpoints are reached at
// their own addresses: whatever host ports the user names, it is the
// container's that are open.
func routed(all []binding, e spec.Endpoint) ([]spec.Port, error) {
	inside := make([]binding, len(all))
	for i, b := range all {
		inside[i] = binding{Proto: b.Proto, Port: b.Port, HostPort: b.Port}
	}
	slices.SortFunc(inside, byContainerPort)
	inside = slices.Compact(inside)
	var ports []spec.Port
	for _, address := range e.Addresses {
		some, _, err := merged(inside, address)
		if err != nil {
			return nil, err
		}
		ports = append(ports, some...)
	}
	return ports, nil
}

// publish has an endpoint publish what its container does. The engine asks for
// it at the endpoint that has the container's default route.
func (p *Plugin) publish(ctx context.Context, c containerCall) (nothing, error) {
	all, err := parseBindings(c.Options[portMapOption])
	if err != nil {
		return nothing{}, fmt.Errorf("%s: %w", portMapOption, err)
	}
	return nothing{}, p.with(ctx, func(h hostAgent) error {
		e, n, err := c.find(h)
		if err == nil {
			err = h.SetOutward(e.Name, true)
		}
		if err != nil {
			return err
		}
		if n.Routed {
			ports, err := routed(all, e)
			if err == nil {
				_, err = h.SetPorts(e.Name, engineName, ports)
			}
			return err
		}
		ports, choices, err := merged(all, n.HostBinding)
		if err != nil {
			return err
		}
		if err := setPorts(h, e.Name, ports, choices, n.HostBinding); err != nil {
			_, failed := h.SetPorts(e.Name, engineName, nil)
			return errors.Join(err, failed)
		}
		return nil
	})
}

// setPorts publishes the ports, and then the first that is free of each choice.
func setPorts(h hostAgent, endpoint string, ports []spec.Port, choices []binding, unnamed netip.Addr) error {
	ports, err := h.SetPorts(endpoint, engineName, ports)
	if err != nil {
		return err
	}
	for _, b := range choices {
		for last := b.HostPortEnd; ; b.HostPort++ {
			one, err := b.port(1, unnamed)
			if err != nil {
				return err
			}
			more, err := h.SetPorts(endpoint, engineName, append(slices.Clip(ports), one))
			if err == nil {
				ports = more
				break
			}
			if !errors.Is(err, agent.ErrInUse) || b.HostPort == last {
				return err
			}
		}
	}
	return nil
}

// unpublish takes all publications of an endpoint away.
func (p *Plugin) unpublish(ctx context.Context, c idCall) (nothing, error) {
	return nothing{}, p.finish(ctx, func(h hostAgent) error {
		e, _, err := c.find(h)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := h.SetOutward(e.Name, false); err != nil {
			return err
		}
		_, err = h.SetPorts(e.Name, engineName, nil)
		return err
	})
}
