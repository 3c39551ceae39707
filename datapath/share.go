package datapath

import (
	"fmt"

	"github.com/ebpnet/ebpnet/bpf"
)

// FlowShare is what an owner has of the table of flows, and how much of it it
// may have at this moment.
type FlowShare struct {
	Established int  `json:"established"`
	HalfOpen    int  `json:"half_open"`
	Limit       int  `json:"limit"` // of established ones
	Set         bool `json:"set"`   // by the user; else it follows from what is free
	// Of half-open ones. By default all that there is room for: the owner that has
	// most makes room for others.
	HalfOpenLimit int  `json:"half_open_limit"`
	HalfOpenSet   bool `json:"half_open_set"`
}

// FlowShare reads what an endpoint has of the table of flows.
func (t *Tables) FlowShare(endpoint uint32) (FlowShare, error) { return t.flowShare(endpoint) }

// PortFlowShare reads what the clients outside have by a publication.
func (t *Tables) PortFlowShare(id uint32) (FlowShare, error) { return t.flowShare(ownerPorts + id) }

// The numbers of bpf/share.h.
const (
	leastFlows      = 16
	reservedOfFlows = 64
)

// share reads what an owner has of the table of flows.
func (t *Tables) share(owner uint32) (share bpf.EbpnetFlowShare, err error) {
	if err = t.Maps.FlowShares.Lookup(owner, &share); err != nil {
		err = fmt.Errorf("read %v: %w", t.Maps.FlowShares, err)
	}
	return share, err
}

func (t *Tables) flowShare(owner uint32) (FlowShare, error) {
	own, err := t.share(owner)
	if err != nil {
		return FlowShare{}, err
	}
	all, err := t.share(ownerAll)
	if err != nil {
		return FlowShare{}, err
	}
	limits, err := t.limitsOf(owner)
	if err != nil {
		return FlowShare{}, err
	}
	share := FlowShare{
		Established: int(own.Established), HalfOpen: int(own.HalfOpen),
		Limit: int(limits.Established), Set: limits.Established != 0,
		HalfOpenLimit: int(limits.HalfOpen), HalfOpenSet: limits.HalfOpen != 0,
	}
	if !share.HalfOpenSet {
		share.HalfOpenLimit = int(t.Maps.HalfOpen.MaxEntries())
	}
	if share.Set {
		return share, nil
	}
	capacity := int(t.Maps.Flows.MaxEntries()) - int(t.Maps.HalfOpen.MaxEntries())
	if capacity <= 0 {
		capacity = int(t.Maps.Flows.MaxEntries())
	}
	// It grows until it has as many as are left.
	others := int(all.Established) - share.Established
	share.Limit = max((capacity-capacity/reservedOfFlows-others+1)/2, leastFlows)
	return share, nil
}
