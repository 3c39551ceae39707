package datapath

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/ebpnet/ebpnet/bpf"
)

// Owners of flows besides endpoints, as bpf/types.h numbers them.
const (
	ownerPorts = 131072 // plus a publication's id
	ownerAll   = ownerPorts
)

// FlowShare is what an owner has of the table of flows, and how much of it it
// may have at this moment.
type FlowShare struct {
	Established int  `json:"established"`
	HalfOpen    int  `json:"half_open"`
	Limit       int  `json:"limit"` // of established ones
	Set         bool `json:"set"`   // by SetFlowLimit; else it follows from what is free
}

// SetFlowLimit limits the established flows of an endpoint, with effect on new
// ones. Zero takes the limit back.
func (t *Tables) SetFlowLimit(endpoint uint32, limit uint32) error {
	if limit == 0 {
		return remove(t.Maps.FlowLimits, endpoint)
	}
	return put(t.Maps.FlowLimits, endpoint, limit)
}

// SetPortFlowLimit does the same for the flows from outside by a publication.
func (t *Tables) SetPortFlowLimit(id uint32, limit uint32) error {
	return t.SetFlowLimit(ownerPorts+id, limit)
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
	share := FlowShare{Established: int(own.Established), HalfOpen: int(own.HalfOpen)}
	var limit uint32
	switch err := t.Maps.FlowLimits.Lookup(owner, &limit); {
	case err == nil:
		share.Limit, share.Set = int(limit), true
		return share, nil
	case !errors.Is(err, ebpf.ErrKeyNotExist):
		return FlowShare{}, fmt.Errorf("read %v: %w", t.Maps.FlowLimits, err)
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
