package datapath

import (
	"fmt"
	"time"

	"github.com/ebpnet/ebpnet/bpf"
)

// How many copies of frames a second are flooded for an endpoint by default,
// and for a trunk, which has many endpoints behind it: bpf/types.h has the
// same numbers.
const (
	DefaultMaxFlood = 50000
	TrunkMaxFlood   = 200000
)

// FloodLimit is how many copies a second are flooded for the endpoint.
func (e Endpoint) FloodLimit() uint32 {
	switch {
	case e.MaxFlood != 0:
		return e.MaxFlood
	case e.Trunk:
		return TrunkMaxFlood
	}
	return DefaultMaxFlood
}

// putFloodLimit writes the limit of a local endpoint.
func (t *Tables) putFloodLimit(e Endpoint) error {
	return put(t.Maps.FloodLimits, e.ID, e.FloodLimit())
}

// putFloodLimits writes the limits of the local endpoints among all.
func (t *Tables) putFloodLimits(all []Endpoint) error {
	for _, e := range all {
		if e.Remote() {
			continue
		}
		if err := t.putFloodLimit(e); err != nil {
			return err
		}
	}
	return nil
}

// FloodLimited is how many frames of a local endpoint were not flooded, as it
// was over its limit.
func (t *Tables) FloodLimited(endpoint uint32) (uint64, error) { return t.floodLimited(endpoint) }

// TunnelFloodLimited is the same for what came out of a tunnel.
func (t *Tables) TunnelFloodLimited(tunnel uint32) (uint64, error) {
	return t.floodLimited(t.tunnelFlooder(tunnel))
}

// tunnelFlooder is a tunnel's key in the tables of floods: behind those of the
// local endpoints.
func (t *Tables) tunnelFlooder(tunnel uint32) uint32 {
	return t.Maps.EndpointStats.MaxEntries() + tunnel
}

func (t *Tables) floodLimited(flooder uint32) (uint64, error) {
	var budget bpf.EbpnetFloodBudget
	if err := t.Maps.FloodBudgets.Lookup(flooder, &budget); err != nil {
		return 0, fmt.Errorf("read entry %d of %v: %w", flooder, t.Maps.FloodBudgets, err)
	}
	return budget.Limited, nil
}

// Loop is what is known of a loop through a trunk.
type Loop struct {
	Times   uint32        // how often the trunk was blocked
	Blocked time.Duration // how long it still is; 0: it is not
	Other   uint32        // the endpoint by which the frames went out that came back
}

// EndpointLoop reads what is known of a loop through a local endpoint.
func (t *Tables) EndpointLoop(id uint32) (Loop, error) {
	var trunk bpf.EbpnetTrunk
	if err := t.Maps.Trunks.Lookup(id, &trunk); err != nil {
		return Loop{}, fmt.Errorf("read entry %d of %v: %w", id, t.Maps.Trunks, err)
	}
	now, err := coarseNow()
	if err != nil {
		return Loop{}, err
	}
	return Loop{Times: trunk.Loops, Blocked: max(0, time.Duration(trunk.Blocked)-now), Other: trunk.Other}, nil
}

// resetFloods zeroes what was flooded for a local endpoint, and its loops.
func (t *Tables) resetFloods(id uint32) error {
	if err := put(t.Maps.Trunks, id, bpf.EbpnetTrunk{}); err != nil {
		return err
	}
	return put(t.Maps.FloodBudgets, id, bpf.EbpnetFloodBudget{})
}
