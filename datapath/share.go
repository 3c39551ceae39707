package datapath

import (
	"cmp"
	"fmt"

	"github.com/ebpnet/ebpnet/bpf"
)

// FlowShare is the use of the flow table by an owner, and its limit at this
// moment.
type FlowShare struct {
	Established int  `json:"established"`
	HalfOpen    int  `json:"half_open"`
	Limit       int  `json:"limit"` // of established flows: the smaller one of the user's limit and the share of free flows
	Set         bool `json:"set"`   // the user set the limit
}

// EndpointFlows is the use of the flow table by an endpoint.
type EndpointFlows struct {
	FlowShare
	// Of half-open flows. The default is the size of the table: the owner with
	// most half-open flows loses some to others.
	HalfOpenLimit  int    `json:"half_open_limit"`
	HalfOpenSet    bool   `json:"half_open_set"`
	LimitedPackets uint64 `json:"limited_packets"` // dropped because a new flow would exceed the limit
}

// PortFlowShare reads the use of the flow table by the clients of a
// publication.
func (t *Tables) PortFlowShare(id uint32) (FlowShare, error) {
	owner := ownerPorts + id
	limits, err := t.limitsOf(owner)
	if err != nil {
		return FlowShare{}, err
	}
	return t.flowShare(owner, limits.Established)
}

// endpointFlows reads the use of the flow table by a local endpoint with the
// given limits.
func (t *Tables) endpointFlows(id uint32, limits bpf.EbpnetOwnerLimits, refused bpf.EbpnetRefused) (f EndpointFlows, err error) {
	f.FlowShare, err = t.flowShare(id, limits.Established)
	f.HalfOpenLimit = int(cmp.Or(limits.HalfOpen, t.Maps.HalfOpen.MaxEntries()))
	f.HalfOpenSet = limits.HalfOpen != 0
	f.LimitedPackets = refused.Flows
	return f, err
}

// The rules of bpf/share.h.
const (
	leastFlows      = int(bpf.EbpnetShareRuleSHARE_MINIMUM)
	reservedOfFlows = int(bpf.EbpnetShareRuleSHARE_RESERVE)
)

// share reads the flow counts of an owner.
func (t *Tables) share(owner uint32) (share bpf.EbpnetFlowShare, err error) {
	if err = t.Maps.FlowShares.Lookup(owner, &share); err != nil {
		err = fmt.Errorf("read %v: %w", t.Maps.FlowShares, err)
	}
	return share, err
}

// flowShare does what share_check() of bpf/share.h does: it returns the most
// established flows that an owner can have. The parameter limit is the user's
// limit, or 0.
func (t *Tables) flowShare(owner, limit uint32) (FlowShare, error) {
	own, err := t.share(owner)
	if err != nil {
		return FlowShare{}, err
	}
	all, err := t.share(ownerAll)
	if err != nil {
		return FlowShare{}, err
	}
	share := FlowShare{Established: int(own.Established), HalfOpen: int(own.HalfOpen), Set: limit != 0}
	capacity := int(t.Maps.Flows.MaxEntries()) - int(t.Maps.HalfOpen.MaxEntries())
	if capacity <= 0 {
		capacity = int(t.Maps.Flows.MaxEntries())
	}
	left := capacity - int(all.Established) + share.Established // not used by others
	free := left - capacity/reservedOfFlows
	if share.Set {
		share.Limit = min(int(limit), max(free, leastFlows), left)
		return share, nil
	}
	// The share is half of the free flows, so an owner can use as many as it
	// leaves.
	share.Limit = min(max((free+1)/2, leastFlows), left)
	return share, nil
}
