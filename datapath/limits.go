package datapath

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"

	"github.com/ebpnet/ebpnet/bpf"
)

// Owners of flows and of limits besides endpoints.
const (
	ownerPorts   = uint32(bpf.EbpnetOwnerOWNER_PORTS) // plus a publication's id
	ownerAll     = uint32(bpf.EbpnetOwnerOWNER_ALL)
	ownerTunnels = uint32(bpf.EbpnetOwnerOWNER_TUNNELS) // plus a tunnel's id
)

// The defaults: copies of frames a second that are flooded for an
// endpoint, and for a trunk or a tunnel, which have many endpoints behind them;
// datagrams that an endpoint may send in fragments at once.
const (
	DefaultMaxFlood     = uint32(bpf.EbpnetFloodLimitFLOODS_OF_ENDPOINT)
	TrunkMaxFlood       = uint32(bpf.EbpnetFloodLimitFLOODS_OF_TUNNEL)
	DefaultMaxFragments = uint32(bpf.EbpnetStateCapacityENDPOINT_FRAGMENTS)
)

const fragmentTimeout = time.Duration(bpf.EbpnetFragmentTimeoutFRAGMENT_SECONDS) * time.Second

// Limits are how much an endpoint may have; of each, 0 is the default.
type Limits struct {
	MaxFlows     uint32 // established
	MaxHalfOpen  uint32 // flows
	MaxPorts     uint32 // towards one destination
	MaxFragments uint32 // datagrams in fragments at once
	MaxFlood     uint32 // copies a second that are flooded for it
}

func (l Limits) entry() bpf.EbpnetOwnerLimits {
	return bpf.EbpnetOwnerLimits{
		Established: l.MaxFlows,
		HalfOpen:    l.MaxHalfOpen,
		Ports:       l.MaxPorts,
		Fragments:   l.MaxFragments,
		Flood:       l.MaxFlood,
	}
}

// limits gives what the tables hold of a local endpoint's limits.
func (e Endpoint) limits() Limits {
	l := e.Limits
	if l.MaxFlood == 0 && e.Trunk {
		l.MaxFlood = TrunkMaxFlood
	}
	return l
}

func (p Port) limits() Limits { return Limits{MaxFlows: p.MaxFlows} }

func (t Tunnel) limits() Limits { return Limits{MaxFlood: t.MaxFlood} }

// limitEntries are the limits of all owners that have others than the default.
type limitEntries map[uint32]bpf.EbpnetOwnerLimits

func (l limitEntries) add(owner uint32, limits Limits) {
	if limits != (Limits{}) {
		l[owner] = limits.entry()
	}
}

// setLimits limits an owner, with effect on what it begins from then on.
func (t *Tables) setLimits(owner uint32, l Limits) error {
	before, err := t.limitsOf(owner)
	if err != nil {
		return err
	}
	if l == (Limits{}) {
		err = remove(t.Maps.Limits, owner)
	} else {
		err = put(t.Maps.Limits, owner, l.entry())
	}
	if err != nil || before.Flood == l.MaxFlood {
		return err
	}
	return t.forgiveFloods(owner)
}

// forgiveFloods ends the wait of an endpoint or a tunnel for copies made before.
// Its length is that of the old limit.
func (t *Tables) forgiveFloods(owner uint32) error {
	flooders := []uint32{owner}
	if owner >= ownerTunnels {
		flooders = t.tunnelFlooders(owner - ownerTunnels)
	}
	for _, flooder := range flooders {
		budget, err := t.floodBudget(flooder)
		if err != nil {
			return err
		}
		if budget.Due == 0 {
			continue
		}
		budget.Due = 0
		if err := put(t.Maps.FloodBudgets, flooder, budget); err != nil {
			return err
		}
	}
	return nil
}

// SetPortLimit limits the established flows from outside by a publication, with
// effect on new ones. Zero takes the limit back.
func (t *Tables) SetPortLimit(id, maxFlows uint32) error {
	return t.setLimits(ownerPorts+id, Limits{MaxFlows: maxFlows})
}

// SetTunnelLimit limits the copies a second that are flooded out of a tunnel.
// Zero takes the limit back.
func (t *Tables) SetTunnelLimit(id, maxFlood uint32) error {
	return t.setLimits(ownerTunnels+id, Limits{MaxFlood: maxFlood})
}

// limitsOf reads what the tables hold of an owner's limits.
func (t *Tables) limitsOf(owner uint32) (l bpf.EbpnetOwnerLimits, err error) {
	err = t.Maps.Limits.Lookup(owner, &l)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return l, fmt.Errorf("read %v: %w", t.Maps.Limits, err)
	}
	return l, nil
}

// EndpointUse is what a local endpoint has of all that is limited, but for
// floods: see FloodShare.
type EndpointUse struct {
	Flows     EndpointFlows
	Ports     PortShare
	Fragments FragmentShare
}

// PortShare is what an endpoint has of the ports towards the destination towards
// which it has most.
type PortShare struct {
	Most           int    `json:"most"`
	Towards        string `json:"towards,omitempty"`
	Limit          int    `json:"limit"`           // there: the lesser of the user's limit and what is free
	Set            bool   `json:"set"`             // the user has set a limit, for every destination
	LimitedPackets uint64 `json:"limited_packets"` // dropped, as they would have taken one more
}

// FragmentShare is how many datagrams of an endpoint are on their way in
// fragments.
type FragmentShare struct {
	Datagrams      int    `json:"datagrams"`
	Limit          int    `json:"limit"`
	Set            bool   `json:"set"`
	LimitedPackets uint64 `json:"limited_packets"` // later fragments that were dropped, as another datagram has their place
}

// EndpointUse reads what a local endpoint has of what is limited. Masquerade are
// the host's ports that endpoints are masqueraded by.
func (t *Tables) EndpointUse(id uint32, masquerade PortRange) (use EndpointUse, err error) {
	if use.Ports, err = t.mostPorts(id, masquerade); err != nil {
		return use, err
	}
	datagrams, err := t.countDatagrams()
	if err != nil {
		return use, err
	}
	limits, err := t.limitsOf(id)
	if err != nil {
		return use, err
	}
	refused, err := t.refused(id)
	if err != nil {
		return use, err
	}
	if use.Flows, err = t.endpointFlows(id, limits, refused); err != nil {
		return use, err
	}
	if limits.Ports != 0 {
		use.Ports.Limit, use.Ports.Set = min(use.Ports.Limit, int(limits.Ports)), true
	}
	use.Fragments = FragmentShare{
		Datagrams: datagrams[id],
		Limit:     fragmentLimit(limits), Set: limits.Fragments != 0,
	}
	use.Ports.LimitedPackets = refused.Ports
	use.Fragments.LimitedPackets = refused.Fragments
	return use, nil
}

func (t *Tables) refused(endpoint uint32) (r bpf.EbpnetRefused, err error) {
	if err = t.Maps.Refusals.Lookup(endpoint, &r); err != nil {
		return r, fmt.Errorf("read entry %d of %v: %w", endpoint, t.Maps.Refusals, err)
	}
	return r, nil
}

// mostPorts finds the destination towards which an endpoint has most ports. It
// reads all flows: the counts of bpf/ports.h do not tell the destination.
func (t *Tables) mostPorts(endpoint uint32, masquerade PortRange) (most PortShare, err error) {
	type destination struct {
		at, from   bpf.EbpnetAddress
		port       uint16
		protocol   uint8
		placeClass uint32 // tells ports below 1024 from others
	}
	counts := map[destination]int{}
	ports, all := masquerade.ofClass(userPorts.First), uint32(0)
	err = t.EachFlow(func(_ uint32, f *bpf.EbpnetFlow) error {
		if f.Owner != endpoint || f.PlaceOwn == 0 {
			return nil
		}
		to := destination{f.Reply.Src, f.Reply.Dst, f.Reply.Sport, f.Reply.Protocol, f.PlaceOwn}
		if counts[to]++; counts[to] > most.Most {
			most.Most = counts[to]
			most.Towards = ProtocolName(to.protocol) + " " + addrPort(to.at, to.port).String()
			ports, all = userPorts, f.PlaceAll
			if f.Reply.Network == NetworkOutside {
				ports = masquerade.ofClass(networkOrder16(f.Original.Sport))
			}
		}
		return nil
	})
	if err != nil {
		return most, fmt.Errorf("read flows: %w", err)
	}
	others := 0
	if most.Most > 0 {
		if others, err = t.countPorts(all); err != nil {
			return most, err
		}
		others = max(0, others-most.Most)
	}
	most.Limit = ports.share(others)
	return most, nil
}

// The rules of bpf/ports.h, and the cells of its table.
const (
	portsReserve = int(bpf.EbpnetPortsRulePORTS_RESERVE)
	portsFew     = int(bpf.EbpnetPortsRulePORTS_FEW)
	portCells    = uint32(bpf.EbpnetPortCellsPORT_CELLS)
	portRowsAll  = uint32(bpf.EbpnetPortCellsPORT_ROWS_ALL)
)

// userPorts are those of a gateway.
var userPorts = PortRange{uint16(bpf.EbpnetPortsRuleFIRST_USER_PORT), uint16(bpf.EbpnetPortsRuleLAST_PORT)}

// PortRange is a range of ports.
type PortRange struct{ First, Last uint16 }

func (r PortRange) len() int { return int(r.Last) - int(r.First) + 1 }

// ofClass is ports_of_class() of bpf/ports.h.
func (r PortRange) ofClass(own uint16) PortRange {
	switch first := userPorts.First; {
	case r.First >= first:
	case own < first:
		r.Last = min(r.Last, first-1)
	case r.Last >= first:
		r.First = first
	}
	return r
}

// share is ports_check() of bpf/ports.h: how many ports it lets an endpoint have
// where others have so many.
func (r PortRange) share(others int) int {
	// It grows until it has as many as are left.
	reserve := r.len() / portsReserve
	return max((r.len()-2*reserve-others+1)/2, r.len()/portsFew)
}

// countPorts is ports_counted() of bpf/ports.h, of what all have at a place.
func (t *Tables) countPorts(place uint32) (int, error) {
	var one, other uint32
	for cell, count := range map[uint32]*uint32{
		portRowsAll*portCells + place%portCells:     &one,
		(portRowsAll+1)*portCells + place/portCells: &other,
	} {
		if err := t.Maps.PortCounts.Lookup(cell, count); err != nil {
			return 0, fmt.Errorf("read entry %d of %v: %w", cell, t.Maps.PortCounts, err)
		}
	}
	return int(min(one, other)), nil
}

// fragmentLimit is how many datagrams an endpoint may send in fragments at once.
func fragmentLimit(l bpf.EbpnetOwnerLimits) int { return int(cmp.Or(l.Fragments, DefaultMaxFragments)) }

// countDatagrams counts the datagrams that are on their way in fragments, by
// endpoint.
func (t *Tables) countDatagrams() (map[uint32]int, error) {
	now, err := coarseNow()
	if err != nil {
		return nil, err
	}
	counts := map[uint32]int{}
	err = eachBatch(t.Maps.Datagrams, func(places []bpf.EbpnetFragmentPlace, datagrams []bpf.EbpnetDatagram) {
		for i, place := range places {
			if now-time.Duration(datagrams[i].Seen) <= fragmentTimeout {
				counts[place.Owner]++
			}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("read %v: %w", t.Maps.Datagrams, err)
	}
	return counts, nil
}

// FloodShare is what is flooded for an endpoint or out of a tunnel.
type FloodShare struct {
	Limit          uint32 `json:"limit"`           // copies a second
	AheadCopies    uint64 `json:"ahead_copies"`    // made ahead of the limit; as many as it allows in two seconds may be
	LimitedPackets uint64 `json:"limited_packets"` // frames that were not flooded
}

// FloodShare reads it for a local endpoint.
func (t *Tables) FloodShare(endpoint uint32) (FloodShare, error) {
	return t.floodShare([]uint32{endpoint}, endpoint, DefaultMaxFlood)
}

// TunnelFloodShare reads it for a tunnel: of its networks, the most copies ahead,
// and all frames that were not flooded.
func (t *Tables) TunnelFloodShare(tunnel uint32) (FloodShare, error) {
	return t.floodShare(t.tunnelFlooders(tunnel), ownerTunnels+tunnel, TrunkMaxFlood)
}

func (t *Tables) floodShare(flooders []uint32, owner, byDefault uint32) (share FloodShare, err error) {
	limits, err := t.limitsOf(owner)
	if err != nil {
		return share, err
	}
	now, err := coarseNow()
	if err != nil {
		return share, err
	}
	share.Limit = cmp.Or(limits.Flood, byDefault)
	for _, flooder := range flooders {
		budget, err := t.floodBudget(flooder)
		if err != nil {
			return share, err
		}
		ahead := max(0, time.Duration(budget.Due)-now)
		share.AheadCopies = max(share.AheadCopies, uint64(ahead.Seconds()*float64(share.Limit)))
		share.LimitedPackets += budget.Limited
	}
	return share, nil
}

func (t *Tables) floodBudget(flooder uint32) (b bpf.EbpnetFloodBudget, err error) {
	if err = t.Maps.FloodBudgets.Lookup(flooder, &b); err != nil {
		err = fmt.Errorf("read entry %d of %v: %w", flooder, t.Maps.FloodBudgets, err)
	}
	return b, err
}

// tunnelFlooders are the keys of a tunnel's networks in the table of what is
// flooded: behind those of the local endpoints.
func (t *Tables) tunnelFlooders(tunnel uint32) []uint32 {
	local := t.Maps.EndpointStats.MaxEntries()
	flooders := make([]uint32, (t.Maps.FloodBudgets.MaxEntries()-local)/t.Maps.TunnelStats.MaxEntries())
	for i := range flooders {
		flooders[i] = local + tunnel*uint32(len(flooders)) + uint32(i)
	}
	return flooders
}

// resetLimited zeroes what was dropped for the limits of a local endpoint, what
// was flooded for it, and its loops.
func (t *Tables) resetLimited(id uint32) error {
	return errors.Join(
		put(t.Maps.Refusals, id, bpf.EbpnetRefused{}),
		put(t.Maps.FloodBudgets, id, bpf.EbpnetFloodBudget{}),
		put(t.Maps.Trunks, id, bpf.EbpnetTrunk{}),
	)
}
