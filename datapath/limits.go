package datapath

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"

	"github.com/ebpnet/ebpnet/bpf"
)

// Owners of flows and of limits other than endpoints.
const (
	ownerPorts   = uint32(bpf.EbpnetOwnerOWNER_PORTS) // plus a publication's id
	ownerAll     = uint32(bpf.EbpnetOwnerOWNER_ALL)
	ownerTunnels = uint32(bpf.EbpnetOwnerOWNER_TUNNELS) // plus a tunnel's id
)

// The defaults: flooded copies per second for an endpoint; the same for a trunk or
// a tunnel, which have many stations behind them; datagrams in fragments of one
// endpoint at one time.
const (
	DefaultMaxFlood     = uint32(bpf.EbpnetFloodLimitFLOODS_OF_ENDPOINT)
	TrunkMaxFlood       = uint32(bpf.EbpnetFloodLimitFLOODS_OF_TUNNEL)
	DefaultMaxFragments = uint32(bpf.EbpnetStateCapacityENDPOINT_FRAGMENTS)
)

const fragmentTimeout = time.Duration(bpf.EbpnetFragmentTimeoutFRAGMENT_SECONDS) * time.Second

// Limits limit an endpoint. 0 means the default.
type Limits struct {
	MaxFlows     uint32 // established
	MaxHalfOpen  uint32 // flows
	MaxPorts     uint32 // towards one destination
	MaxFragments uint32 // datagrams in fragments at one time
	MaxFlood     uint32 // flooded copies per second
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

// limits gives the limits of a local endpoint as the tables hold them.
func (e Endpoint) limits() Limits {
	l := e.Limits
	if l.MaxFlood == 0 && e.Trunk {
		l.MaxFlood = TrunkMaxFlood
	}
	return l
}

func (p Port) limits() Limits { return Limits{MaxFlows: p.MaxFlows} }

func (t Tunnel) limits() Limits { return Limits{MaxFlood: t.MaxFlood} }

// limitEntries are the limits of all owners whose limits are not the default.
type limitEntries map[uint32]bpf.EbpnetOwnerLimits

func (l limitEntries) add(owner uint32, limits Limits) {
	if limits != (Limits{}) {
		l[owner] = limits.entry()
	}
}

// setLimits sets the limits of an owner. They apply to new flows, ports,
// datagrams and copies.
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
	return t.clearFloodDebt(owner)
}

// clearFloodDebt clears the flood debt of an endpoint or a tunnel. The old
// limit determined how long the debt lasts.
func (t *Tables) clearFloodDebt(owner uint32) error {
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

// SetPortLimit limits the established flows from outside to a publication. It
// applies to new flows. Zero removes the limit.
func (t *Tables) SetPortLimit(id, maxFlows uint32) error {
	return t.setLimits(ownerPorts+id, Limits{MaxFlows: maxFlows})
}

// SetTunnelLimit limits the flooded copies per second out of a tunnel. Zero
// removes the limit.
func (t *Tables) SetTunnelLimit(id, maxFlood uint32) error {
	return t.setLimits(ownerTunnels+id, Limits{MaxFlood: maxFlood})
}

// limitsOf reads the limits of an owner.
func (t *Tables) limitsOf(owner uint32) (l bpf.EbpnetOwnerLimits, err error) {
	err = t.Maps.Limits.Lookup(owner, &l)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return l, fmt.Errorf("read %v: %w", t.Maps.Limits, err)
	}
	return l, nil
}

// EndpointUse is the use of all limits of a local endpoint, except floods: see
// FloodShare.
type EndpointUse struct {
	Flows     EndpointFlows
	Ports     PortShare
	Fragments FragmentShare
}

// PortShare is the number of ports that an endpoint uses towards the
// destination where it uses most.
type PortShare struct {
	Most           int    `json:"most"`
	Towards        string `json:"towards,omitempty"`
	Limit          int    `json:"limit"`           // at that destination: the smaller one of the user's limit and the share of free ports
	Set            bool   `json:"set"`             // the user set the limit, for every destination
	LimitedPackets uint64 `json:"limited_packets"` // dropped because a new port would exceed the limit
}

// FragmentShare is the number of datagrams of an endpoint that are in transit
// in fragments.
type FragmentShare struct {
	Datagrams      int    `json:"datagrams"`
	Limit          int    `json:"limit"`
	Set            bool   `json:"set"`
	LimitedPackets uint64 `json:"limited_packets"` // fragments dropped because another datagram replaced theirs
}

// EndpointUse reads the use of limits of a local endpoint. The range masquerade
// is the host's ports for masquerading.
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

// mostPorts finds the destination towards which an endpoint uses most ports. It
// reads all flows, because the counts of bpf/ports.h do not name the
// destination.
func (t *Tables) mostPorts(endpoint uint32, masquerade PortRange) (most PortShare, err error) {
	type destination struct {
		at, from   bpf.EbpnetAddress
		port       uint16
		protocol   uint8
		placeClass uint32 // separates ports below 1024 from others
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

// userPorts are the ports at a gateway's address.
var userPorts = PortRange{uint16(bpf.EbpnetPortsRuleFIRST_USER_PORT), uint16(bpf.EbpnetPortsRuleLAST_PORT)}

// PortRange is a range of ports.
type PortRange struct{ First, Last uint16 }

func (r PortRange) len() int { return int(r.Last) - int(r.First) + 1 }

// ofClass does what ports_of_class() of bpf/ports.h does.
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

// share does what ports_check() of bpf/ports.h does: it returns the most ports
// that an endpoint can have if the others have this many.
func (r PortRange) share(others int) int {
	// The share is half of the free ports, so an endpoint can use as many as it
	// leaves.
	reserve := r.len() / portsReserve
	return max((r.len()-2*reserve-others+1)/2, r.len()/portsFew)
}

// countPorts does what ports_counted() of bpf/ports.h does, for all owners at a
// place.
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

// fragmentLimit returns the most datagrams that an endpoint can send in
// fragments at one time.
func fragmentLimit(l bpf.EbpnetOwnerLimits) int { return int(cmp.Or(l.Fragments, DefaultMaxFragments)) }

// countDatagrams counts the datagrams in transit in fragments, by endpoint.
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

// FloodShare is the flooding for an endpoint or out of a tunnel.
type FloodShare struct {
	Limit          uint32 `json:"limit"`           // copies per second
	AheadCopies    uint64 `json:"ahead_copies"`    // copies ahead of the limit; flooding stops at two seconds' worth
	LimitedPackets uint64 `json:"limited_packets"` // frames not flooded because of the limit
}

// FloodShare reads the flooding of a local endpoint.
func (t *Tables) FloodShare(endpoint uint32) (FloodShare, error) {
	return t.floodShare([]uint32{endpoint}, endpoint, DefaultMaxFlood)
}

// TunnelFloodShare reads the flooding out of a tunnel: the most copies ahead of
// any network, and the frames not flooded of all networks.
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

// tunnelFlooders returns the keys of a tunnel's networks in flood_budgets. They
// follow those of the local endpoints.
func (t *Tables) tunnelFlooders(tunnel uint32) []uint32 {
	local := t.Maps.EndpointStats.MaxEntries()
	flooders := make([]uint32, (t.Maps.FloodBudgets.MaxEntries()-local)/t.Maps.TunnelStats.MaxEntries())
	for i := range flooders {
		flooders[i] = local + tunnel*uint32(len(flooders)) + uint32(i)
	}
	return flooders
}

// resetLimited resets the drops of a local endpoint because of limits, its
// flood budget, and its loops.
func (t *Tables) resetLimited(id uint32) error {
	return errors.Join(
		put(t.Maps.Refusals, id, bpf.EbpnetRefused{}),
		put(t.Maps.FloodBudgets, id, bpf.EbpnetFloodBudget{}),
		put(t.Maps.Trunks, id, bpf.EbpnetTrunk{}),
	)
}
