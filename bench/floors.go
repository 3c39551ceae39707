package main

import (
	"errors"
	"fmt"
	"slices"
)

// floor is the least that a topology must be worth beside another in the same
// rounds: `bench --ci` fails below it.
type floor struct {
	family, measure, topology string
	to                        string  // kind that it is compared with
	least                     float64 // times as good: of a measure where less is better, base by value
	reason                    string
}

// floors are what bench holds ebpnet to. They stand below what is measured by
// more than a busy machine was seen to take away.
func floors() []floor {
	return []floor{
		{inside, requests, ebpnet, wire, 0.85, "a packet within the host costs next to nothing beside the stack's own work"},
		{inside, connections, ebpnet, wire, 0.85, "nor does a new connection where ICC needs no state"},
		{inside, datagrams, ebpnet, wire, 0.80, "a datagram waits for no answer, so that the program's share is largest"},
		{inside, stream, ebpnet, bridge, 0.90, "large packets stay large: a stream is copying"},
		{inside, requests, "ebpnet-link", wire, 0.80, "a link is one more look-up, of the flow"},
		{inside, connections, "ebpnet-link", wire, 0.75, "and writes one flow for each connection"},
		{inside, datagrams, "ebpnet-link", wire, 0.75, "the look-up of the flow again, where the program's share is largest"},
		{inside, stream, "ebpnet-link", bridge, 0.88, "one look-up for 64 kB is nothing"},

		{outside, requests, "outside-ebpnet", iptables, 1.15, "masquerade passes neither conntrack nor the chains"},
		{outside, connections, "outside-ebpnet", iptables, 1.20, "a new flow costs one entry, not conntrack's and a walk through the rules"},
		{outside, datagrams, "outside-ebpnet", iptables, 1.20, "the same for each datagram"},
		{outside, stream, "outside-ebpnet", iptables, 0.90, "a stream is copying: nothing is lost by translation"},

		{port, requests, "port-ebpnet-10", iptables, 1.10, "a published port is one look-up, not a rule among others"},
		{port, connections, "port-ebpnet-10", iptables, 1.20, "even beside ten rules only, a new connection is cheaper"},
		{port, datagrams, "port-ebpnet-10", iptables, 1.20, "the same for each datagram"},

		{overlay, requests, "overlay-ebpnet", vxlan, 1.05, "GRE is added and removed on the way, without a second stack"},
		{overlay, connections, "overlay-ebpnet", vxlan, 1.15, "nor does a new connection pass the bridge's hooks"},
		{overlay, datagrams, "overlay-ebpnet", vxlan, 1.15, "the same for each datagram"},
		{overlay, stream, "overlay-ebpnet", vxlan, 0.85, "large packets stay large in GRE too"},

		{pktgenPort, framesUDP, "pktgen-port-tc", iptables, 2.00, "without sockets at either end, what is left is one look-up and a redirect"},
		{pktgenPort, framesSYN, "pktgen-port-tc", iptables, 2.00, "the same for segments that conntrack looks at more closely"},
		{pktgenDrop, framesGRE, "pktgen-drop-xdp", allDrop, 0.35, "a stranger costs his headers and three look-ups in arrays, and no socket buffer"},
		{pktgenGRE, framesGRE, "pktgen-gre-xdp", viaTC, 0.90, "what goes straight to its endpoint is not worse off than by the stack"},

		{moreEndpoints, datagrams, "growth-endpoints-10000", few, 0.80, "a look-up in a hash does not care how much else is in it"},
		{moreLinks, datagrams, "growth-links-50000", few, 0.80, "nor does that of a link, which a flow remembers besides"},
		{moreFlows, connections, "growth-flows-256000", few, 0.75, "nor does opening a flow, but for the cache lines that are not at hand"},

		{overload, floodDelivered, "overload-ebpnet-1x", iptables, 0.85, "what a rival can take is taken"},
		{overload, floodDelivered, "overload-ebpnet-5x", iptables, 1.10, "it takes less of the CPU that receives, so that fewer frames overflow the queues before it"},
	}
}

// errBelow marks a ratio below its floor: the one failure that may be noise.
var errBelow = errors.New("is below its floor")

// needs tells whether the floor cannot be told without a measure over a topology.
func (f floor) needs(m measure, t topology) bool {
	if f.family != t.family || f.measure != m.name {
		return false
	}
	return f.topology == t.name || slices.ContainsFunc(topologies(), func(own topology) bool {
		return own.name == f.topology && t.isBaseOf(own, f.to)
	})
}

// check gives nil where the floor is held, errBelow where it is not, and
// another error where nothing tells.
func (f floor) check(rep *report) error {
	what := fmt.Sprintf("%s %s of %s", f.family, f.measure, f.topology)
	r := rep.find(f.measure, f.topology)
	if r == nil || len(r.Samples) == 0 {
		return fmt.Errorf("%s was not measured, but has a floor", what)
	}
	base := rep.base(r, f.to)
	if base == nil || len(base.Samples) == 0 {
		return fmt.Errorf("%s has a floor beside %s, which was not measured", what, f.to)
	}
	if r.of.lessIsBetter {
		r, base = base, r
	}
	held := median(ratios(r, base))
	if held >= f.least { // and not where it is no number
		return nil
	}
	return fmt.Errorf("%s: %.3f times as good as %s %w of %.2f: %s", what, held, f.to, errBelow, f.least, f.reason)
}

// missed gives the floors that the report does not hold, and an error for each.
func (rep *report) missed(all []floor) (below []floor, failed []error) {
	for _, f := range all {
		if err := f.check(rep); err != nil {
			below, failed = append(below, f), append(failed, err)
		}
	}
	return below, failed
}
