package datapath

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/bpf"
)

// Network ids that are no network.
const (
	NetworkOutside  = uint32(bpf.EbpnetNetworkIdNETWORK_OUTSIDE)  // packets from an uplink
	NetworkLoopback = uint32(bpf.EbpnetNetworkIdNETWORK_LOOPBACK) // packets of the host to its own addresses
)

// Flow is one tracked connection.
type Flow struct {
	Protocol  uint8          // IANA number
	Network   uint32         // of the side that opened it
	ToNetwork uint32         // of the side that replies
	From, To  netip.AddrPort // of original packets at the sender
	// The addresses of original packets at the receiver. Each is unset if it
	// equals From or To.
	TranslatedFrom, TranslatedTo netip.AddrPort

	State     FlowState
	Age, Idle time.Duration
	Sent      Counter // in original direction
	Received  Counter // in reply direction
}

// FlowState is the state of a flow.
type FlowState string

// The states of a flow.
const (
	FlowHalfOpen    FlowState = "half-open"   // not confirmed by both sides
	FlowEstablished FlowState = "established" // confirmed by both sides, and TCP's handshake is complete
	FlowClosing     FlowState = "closing"     // RST of one side or FIN of both sides seen
)

// FlowFilter selects the flows that use an address of a network. The zero value
// selects all.
type FlowFilter struct {
	Network   uint32
	Addresses []netip.Addr // at most one per family
	Endpoint  uint32       // owner of the addresses; 0: unknown
}

// matches does what flow_command_is_of() of bpf/flow_command.h does.
func (f FlowFilter) matches(entry *bpf.EbpnetFlow) bool {
	if f.Network == NetworkOutside {
		return true
	}
	for _, key := range []*bpf.EbpnetFlowKey{&entry.Original, &entry.Reply} {
		if key.Network != f.Network {
			continue
		}
		for _, a := range f.Addresses {
			if a := addressOf(a); key.Src == a || key.Dst == a {
				return true
			}
		}
	}
	return false
}

// entry gives f in the form of the programs.
func (f FlowFilter) entry() bpf.EbpnetFlowFilter {
	if f.Network == NetworkOutside {
		return bpf.EbpnetFlowFilter{Choice: bpf.EbpnetFlowChoiceFLOWS_ALL}
	}
	entry := bpf.EbpnetFlowFilter{Choice: bpf.EbpnetFlowChoiceFLOWS_OF_ADDRESSES, Network: f.Network}
	for _, a := range f.Addresses {
		if a.Is4() {
			entry.Ipv4 = addressOf(a)
		} else {
			entry.Ipv6 = addressOf(a)
		}
	}
	return entry
}

// Flows lists the flows that f selects, by source and destination.
func (t *Tables) Flows(f FlowFilter) ([]Flow, error) {
	now, err := coarseNow()
	if err != nil {
		return nil, err
	}
	var flows []Flow
	err = t.EachFlow(func(_ uint32, entry *bpf.EbpnetFlow) error {
		if f.matches(entry) {
			flows = append(flows, flowOf(entry, now))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read flows: %w", err)
	}
	slices.SortFunc(flows, func(a, b Flow) int {
		return cmp.Or(a.From.Compare(b.From), a.To.Compare(b.To), cmp.Compare(a.Protocol, b.Protocol))
	})
	return flows, nil
}

func flowOf(entry *bpf.EbpnetFlow, now time.Duration) Flow {
	original, reply := &entry.Original, &entry.Reply
	flow := Flow{
		Protocol:  original.Protocol,
		Network:   original.Network,
		ToNetwork: reply.Network,
		From:      addrPort(original.Src, original.Sport),
		To:        addrPort(original.Dst, original.Dport),
		State:     flowState(entry),
		Age:       max(0, now-time.Duration(entry.Opened)),
		Idle:      max(0, now-time.Duration(entry.Seen)),
	}
	if from := addrPort(reply.Dst, reply.Dport); from != flow.From {
		flow.TranslatedFrom = from
	}
	if to := addrPort(reply.Src, reply.Sport); to != flow.To {
		flow.TranslatedTo = to
	}
	flow.Sent.add(counterOf(entry.Sent[bpf.EbpnetFlowSideFLOW_ORIGINAL]))
	flow.Received.add(counterOf(entry.Sent[bpf.EbpnetFlowSideFLOW_REPLY]))
	return flow
}

func flowState(entry *bpf.EbpnetFlow) FlowState {
	if entry.State == bpf.EbpnetFlowStateFLOW_HALF_OPEN {
		return FlowHalfOpen
	}
	switch entry.Phase {
	case bpf.EbpnetFlowPhasePHASE_NEW, bpf.EbpnetFlowPhasePHASE_NEW_CLOSING_ORIGINAL,
		bpf.EbpnetFlowPhasePHASE_REPLIED, bpf.EbpnetFlowPhasePHASE_REPLIED_CLOSING_ORIGINAL,
		bpf.EbpnetFlowPhasePHASE_REPLIED_CLOSING_REPLY:
		if entry.Original.Protocol == unix.IPPROTO_TCP {
			return FlowHalfOpen // a new connection reuses the ports
		}
	case bpf.EbpnetFlowPhasePHASE_ESTABLISHED, bpf.EbpnetFlowPhasePHASE_CLOSING_ORIGINAL,
		bpf.EbpnetFlowPhasePHASE_CLOSING_REPLY:
	default:
		return FlowClosing
	}
	return FlowEstablished
}

func addrPort(a bpf.EbpnetAddress, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(addrOf(a), networkOrder16(port))
}

// coarseNow reads the clock that the programs write into flows.
func coarseNow() (time.Duration, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &now); err != nil {
		return 0, fmt.Errorf("read the monotonic clock: %w", err)
	}
	return time.Duration(now.Nano()), nil
}

// FlushFlows ends the flows that f selects.
func (t *Tables) FlushFlows(f FlowFilter) error {
	return t.endFlowsOf(f.Endpoint, f.entry())
}

// endUnbackedFlows ends the flows whose endpoint or published port is gone.
func (t *Tables) endUnbackedFlows() error {
	return t.endFlows(bpf.EbpnetFlowFilter{Choice: bpf.EbpnetFlowChoiceFLOWS_UNBACKED})
}

// endUnbackedFlowsOf does the same for the flows of these endpoints. It checks
// all flows if an id is 0.
func (t *Tables) endUnbackedFlowsOf(endpoints ...uint32) error {
	for _, id := range endpoints {
		if err := t.endFlowsOf(id, bpf.EbpnetFlowFilter{Choice: bpf.EbpnetFlowChoiceFLOWS_UNBACKED}); err != nil {
			return err
		}
	}
	return nil
}

// flowsPerRun is the number of flows that one run of a program checks. The CPU
// does nothing else during a run.
const flowsPerRun = 65536

// endFlows ends the flows that filter matches. It checks all flows.
func (t *Tables) endFlows(filter bpf.EbpnetFlowFilter) error {
	filter.Count = flowsPerRun
	for ; filter.First < t.Maps.Flows.MaxEntries(); filter.First += filter.Count {
		if _, err := command(t.Programs.EndFlows, filter); err != nil {
			return fmt.Errorf("end flows: %w", err)
		}
	}
	return nil
}

// endFlowsOf ends the flows of an endpoint that filter matches. It walks the
// endpoint's list. It checks all flows if the list is incomplete or has no end,
// or if the endpoint is 0.
func (t *Tables) endFlowsOf(endpoint uint32, filter bpf.EbpnetFlowFilter) error {
	if endpoint == 0 {
		return t.endFlows(filter)
	}
	listed := filter
	listed.Endpoint, listed.Count = endpoint, flowsPerRun
	whole := false
	// A flow is in up to two lists. A run may start again at the first flow.
	for range 8 * (1 + 2*t.Maps.Flows.MaxEntries()/flowsPerRun) {
		var err error
		if listed, err = command(t.Programs.EndFlows, listed); err != nil {
			return fmt.Errorf("end flows of endpoint %d: %w", endpoint, err)
		}
		if whole = listed.First == 0; whole {
			break
		}
	}
	share, err := t.share(endpoint)
	if err != nil || whole && share.Unlisted == 0 {
		return err
	}
	return t.endFlows(filter)
}

// FinishMigration moves the flows that programs have opened in the tables of
// the old size. Call it once the programs of the new tables are attached
// everywhere. It returns the number of flows that it lost for lack of room.
func (t *Tables) FinishMigration() (lost int, err error) {
	pending, err := t.MigrationPending()
	if err != nil || !pending {
		return 0, err
	}
	if lost, err = t.Objects.FinishMigration(); err != nil {
		return 0, err
	}
	// If an endpoint or port was removed while a Load was interrupted, its
	// flows ended in only one of the tables.
	return lost, t.endUnbackedFlows()
}

// ProtocolName returns the common name of an IP protocol.
func ProtocolName(protocol uint8) string {
	switch protocol {
	case unix.IPPROTO_ICMP:
		return "icmp"
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_SCTP:
		return "sctp"
	case unix.IPPROTO_ICMPV6:
		return "icmpv6"
	}
	return strconv.Itoa(int(protocol))
}
