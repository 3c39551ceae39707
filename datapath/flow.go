package datapath

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/bpf"
)

// Flow is one tracked connection.
type Flow struct {
	Protocol uint8          // IANA number
	Network  uint32         // of the endpoint that opened it; 0: the host
	From, To netip.AddrPort // as its packets leave the one who opened it
	// As the outside sees From; unset for a flow inside a network.
	Translated netip.AddrPort
	State      FlowState
	Age, Idle  time.Duration
}

// FlowState tells how far a flow has come.
type FlowState string

// The states of a flow.
const (
	FlowNew         FlowState = "new"         // not answered yet
	FlowEstablished FlowState = "established" // answered
	FlowClosing     FlowState = "closing"     // FIN or RST seen
)

// Flows lists every flow.
func (t *Tables) Flows() ([]Flow, error) {
	now, err := coarseNow()
	if err != nil {
		return nil, err
	}
	var flows []Flow
	err = t.eachFlow(func(_ uint32, entry bpf.EbpnetFlow) error {
		flow := Flow{
			Protocol: entry.Opener.Protocol,
			Network:  entry.Opener.Network,
			From:     addrPort(entry.Opener.Src, entry.Opener.Sport),
			To:       addrPort(entry.Opener.Dst, entry.Opener.Dport),
			State:    flowState(entry.Flags),
			Age:      max(0, now-time.Duration(entry.Opened)),
			Idle:     max(0, now-time.Duration(entry.Seen)),
		}
		if entry.Answer.Network == networkOutside {
			flow.Translated = addrPort(entry.Answer.Dst, entry.Answer.Dport)
		}
		flows = append(flows, flow)
		return nil
	})
	slices.SortFunc(flows, func(a, b Flow) int {
		if order := a.From.Compare(b.From); order != 0 {
			return order
		}
		return a.To.Compare(b.To)
	})
	return flows, err
}

// networkOutside is NETWORK_OUTSIDE of bpf/types.h.
const networkOutside = 0

func flowState(flags bpf.EbpnetFlowFlag) FlowState {
	switch {
	case flags&(bpf.EbpnetFlowFlagFLOW_FIN|bpf.EbpnetFlowFlagFLOW_RST) != 0:
		return FlowClosing
	case flags&bpf.EbpnetFlowFlagFLOW_ANSWERED != 0:
		return FlowEstablished
	}
	return FlowNew
}

func addrPort(a bpf.EbpnetAddress, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(addrOf(a), networkOrder16(port))
}

// eachFlow gives f every live flow and its slot.
func (t *Tables) eachFlow(f func(slot uint32, entry bpf.EbpnetFlow) error) error {
	var slots []uint32
	err := eachBatch(t.Maps.FlowIndex, func(_ []bpf.EbpnetFlowKey, refs []bpf.EbpnetFlowRef) {
		for _, ref := range refs {
			if ref.Side == bpf.EbpnetFlowSideFLOW_OPENER {
				slots = append(slots, ref.Slot)
			}
		}
	})
	if err != nil {
		return fmt.Errorf("read flows: %w", err)
	}
	for _, slot := range slots {
		var entry bpf.EbpnetFlow
		if err := t.Maps.Flows.Lookup(slot, &entry); err != nil {
			return fmt.Errorf("read flow %d: %w", slot, err)
		}
		if entry.State != bpf.EbpnetFlowStateFLOW_LIVE {
			continue // ended since
		}
		if err := f(slot, entry); err != nil {
			return err
		}
	}
	return nil
}

// coarseNow reads the clock that the programs stamp flows with.
func coarseNow() (time.Duration, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &now); err != nil {
		return 0, fmt.Errorf("read the monotonic clock: %w", err)
	}
	return time.Duration(now.Nano()), nil
}

// FlushFlows ends the flows that the given addresses of a network have part
// in.
func (t *Tables) FlushFlows(network uint32, addresses []netip.Addr) error {
	inside := make(map[bpf.EbpnetAddress]bool, len(addresses))
	for _, a := range addresses {
		inside[addressOf(a)] = true
	}
	return t.eachFlow(func(slot uint32, entry bpf.EbpnetFlow) error {
		key := entry.Opener
		if key.Network != network || !inside[key.Src] && !inside[key.Dst] {
			return nil
		}
		return t.endFlow(slot, entry)
	})
}

// FlushAllFlows ends every flow.
func (t *Tables) FlushAllFlows() error { return t.eachFlow(t.endFlow) }

// endFlow does what the sweep does with a flow that was idle for too long.
func (t *Tables) endFlow(slot uint32, entry bpf.EbpnetFlow) error {
	if err := remove(t.Maps.FlowIndex, entry.Opener); err != nil {
		return err
	}
	if err := remove(t.Maps.FlowIndex, entry.Answer); err != nil {
		return err
	}
	entry.State = bpf.EbpnetFlowStateFLOW_DEAD
	return put(t.Maps.Flows, slot, entry)
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
	case unix.IPPROTO_ICMPV6:
		return "icmpv6"
	}
	return strconv.Itoa(int(protocol))
}
