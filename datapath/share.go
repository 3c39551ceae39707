package datapath

import (
	"cmp"
	"fmt"

	"github.com/ebpnet/ebpnet/bpf"
)

// FlowShare is what an owner has of the table of flows, and how much of it the
// owner may have at this moment.
type FlowShare struct {
	Established int  `json:"established"`
	HalfOpen    int  `json:"half_open"`
	Limit       int  `json:"limit"` // of established ones: the lesser of the user's limit and what is free
	Set         bool `json:"set"`   // the user has set a limit
}

// EndpointFlows is what an endpoint has of the table of flows.
type EndpointFlows struct {
	FlowShare
	// Of half-open ones. By default all that there is room for: the owner that has
	// most makes room for others.
	HalfOpenLimit  int    `json:"half_open_limit"`
	HalfOpenSet    bool   `json:"half_open_set"`
	LimitedPackets uint64 `json:"limited_packets"` // dropped, as they would have opened one more
}

// PortFlowShare reads what the clients outside have by a publication.
func (t *Tables) PortFlowShare(id uint32) (FlowShare, error) {
	owner := ownerPorts + id
	limits, err := t.limitsOf(owner)
	if err != nil {
		return FlowShare{}, err
	}
	return t.flowShare(owner, limits.Established)
}

// endpointFlows reads what a local endpoint with the given limits has of the table
// of flows.
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

// share reads what an owner has of the table of flows.
func (t *Tables) share(owner uint32) (share bpf.EbpnetFlowShare, err error) {
	if err = t.Maps.FlowShares.Lookup(owner, &share); err != nil {
		err = fmt.Errorf("read %v: %w", t.Maps.FlowShares, err)
	}
	return share, err
}

// flowShare is share_check() of bpf/share.h: how many established flows it lets
// an owner have. Limit is the user's, or 0.
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
	left := capacity - int(all.Established) + share.Established // by others
	free := left - capacity/reservedOfFlows
	if share.Set {
		share.Limit = min(int(limit), max(free, leastFlows), left)
		return share, nil
	}
	// It grows until it has as many as are left.
	share.Limit = min(max((free+1)/2, leastFlows), left)
	return share, nil
}
