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

// Networks that no network has for an id.
const (
	NetworkOutside  = uint32(bpf.EbpnetNetworkIdNETWORK_OUTSIDE)  // what comes in by an uplink
	NetworkLoopback = uint32(bpf.EbpnetNetworkIdNETWORK_LOOPBACK) // what the host sends to its own addresses
)

// Flow is one tracked connection.
type Flow struct {
	Protocol  uint8          // IANA number
	Network   uint32         // of the one who opened it
	ToNetwork uint32         // of the one who answers
	From, To  netip.AddrPort // as its packets leave the one who opened it
	// Where they are from and to when they reach the one who answers; each is
	// unset where it is the same.
	TranslatedFrom, TranslatedTo netip.AddrPort

	State     FlowState
	Age, Idle time.Duration
	Sent      Counter // by the one who opened it
	Received  Counter // by the same
}

// FlowState tells how far a flow has come.
type FlowState string

// The states of a flow.
const (
	FlowHalfOpen    FlowState = "half-open"   // not known to be wanted by both sides
	FlowEstablished FlowState = "established" // answered, and TCP's handshake over
	FlowClosing     FlowState = "closing"     // RST of one side or FIN of both seen
)

// FlowFilter says which flows are meant: those that the addresses of a network
// have part in. The zero value means all.
type FlowFilter struct {
	Network   uint32
	Addresses []netip.Addr // at most one a family
	Endpoint  uint32       // whose addresses they are; 0: not known
}

// matches is flow_command_is_of() of bpf/flow_command.h.
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

// entry gives the programs' form of f.
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

// Flows lists the flows that f means, by who opened them and where to.
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
	const (
		reset = bpf.EbpnetFlowFlagFLOW_ORIGINAL_RST | bpf.EbpnetFlowFlagFLOW_REPLY_RST
		ended = bpf.EbpnetFlowFlagFLOW_ORIGINAL_FIN | bpf.EbpnetFlowFlagFLOW_REPLY_FIN
	)
	switch {
	case entry.State == bpf.EbpnetFlowStateFLOW_HALF_OPEN:
		return FlowHalfOpen
	case entry.Flags&reset != 0 || entry.Flags&ended == ended:
		return FlowClosing
	// A new connection uses its ports.
	case entry.Original.Protocol == unix.IPPROTO_TCP && entry.Flags&bpf.EbpnetFlowFlagFLOW_HANDSHAKEN == 0:
		return FlowHalfOpen
	}
	return FlowEstablished
}

func addrPort(a bpf.EbpnetAddress, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(addrOf(a), networkOrder16(port))
}

// coarseNow reads the clock that the programs stamp flows with.
func coarseNow() (time.Duration, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &now); err != nil {
		return 0, fmt.Errorf("read the monotonic clock: %w", err)
	}
	return time.Duration(now.Nano()), nil
}

// FlushFlows ends the flows that f means.
func (t *Tables) FlushFlows(f FlowFilter) error {
	return t.endFlowsOf(f.Endpoint, f.entry())
}

// endUnbackedFlows ends the flows whose endpoint or published port is not there
// any more.
func (t *Tables) endUnbackedFlows() error {
	return t.endFlows(bpf.EbpnetFlowFilter{Choice: bpf.EbpnetFlowChoiceFLOWS_UNBACKED})
}

// endUnbackedFlowsOf does the same for the flows from endpoints and to them, or
// for all flows if an id is 0.
func (t *Tables) endUnbackedFlowsOf(endpoints ...uint32) error {
	for _, id := range endpoints {
		if err := t.endFlowsOf(id, bpf.EbpnetFlowFilter{Choice: bpf.EbpnetFlowChoiceFLOWS_UNBACKED}); err != nil {
			return err
		}
	}
	return nil
}

// flowsARun is the number of flows that one run of a program goes through. The
// CPU does nothing else meanwhile.
const flowsARun = 65536

// endFlows ends the flows that filter matches among all flows.
func (t *Tables) endFlows(filter bpf.EbpnetFlowFilter) error {
	filter.Count = flowsARun
	for ; filter.First < t.Maps.Flows.MaxEntries(); filter.First += filter.Count {
		if _, err := command(t.Programs.EndFlows, filter); err != nil {
			return fmt.Errorf("end flows: %w", err)
		}
	}
	return nil
}

// endFlowsOf ends the flows in the list of an endpoint that filter matches. It
// goes through all flows if the list lacks some, or has no end, or if the
// endpoint is 0.
func (t *Tables) endFlowsOf(endpoint uint32, filter bpf.EbpnetFlowFilter) error {
	if endpoint == 0 {
		return t.endFlows(filter)
	}
	listed := filter
	listed.Endpoint, listed.Count = endpoint, flowsARun
	whole := false
	// A flow has two places in lists. A run may begin again at the first.
	for range 8 * (1 + 2*t.Maps.Flows.MaxEntries()/flowsARun) {
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

// FinishMigration carries flows over that programs have opened in the tables of
// the old size. Call it once the programs of the new tables are attached
// everywhere. It gives the number of flows that found no room.
func (t *Tables) FinishMigration() (lost int, err error) {
	pending, err := t.MigrationPending()
	if err != nil || !pending {
		return 0, err
	}
	if lost, err = t.Objects.FinishMigration(); err != nil {
		return 0, err
	}
	// An endpoint or port that went while a Load was interrupted has lost
	// its flows in one of the tables only.
	return lost, t.endUnbackedFlows()
}

// ProtocolName gives the common name of an IP protocol.
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
