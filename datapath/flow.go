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

// Flows lists every flow, once.
func (t *Tables) Flows() ([]Flow, error) {
	entries, err := t.flowEntries()
	if err != nil {
		return nil, err
	}
	now, err := coarseNow()
	if err != nil {
		return nil, err
	}
	flows := make([]Flow, 0, len(entries))
	for key, entry := range entries {
		if entry.Flags&bpf.EbpnetFlowFlagFLOW_OUTSIDE != 0 {
			continue
		}
		seen, flags := entry.Seen, entry.Flags
		flow := Flow{
			Protocol: key.Protocol,
			Network:  key.Network,
			From:     addrPort(key.Src, key.Sport),
			To:       addrPort(key.Dst, key.Dport),
		}
		if entry.Other.Protocol != 0 {
			flow.Translated = addrPort(entry.Other.Dst, entry.Other.Dport)
			if answer, ok := entries[entry.Other]; ok {
				seen = max(seen, answer.Seen)
				flags |= answer.Flags
			}
		}
		flow.State = flowState(flags)
		flow.Age = now - time.Duration(entry.Opened)
		flow.Idle = now - time.Duration(seen)
		flows = append(flows, flow)
	}
	slices.SortFunc(flows, func(a, b Flow) int {
		if order := a.From.Compare(b.From); order != 0 {
			return order
		}
		return a.To.Compare(b.To)
	})
	return flows, nil
}

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

func (t *Tables) flowEntries() (map[bpf.EbpnetFlowKey]bpf.EbpnetFlow, error) {
	entries := map[bpf.EbpnetFlowKey]bpf.EbpnetFlow{}
	err := eachBatch(t.Maps.Flows, func(keys []bpf.EbpnetFlowKey, values []bpf.EbpnetFlow) {
		for i, key := range keys {
			entries[key] = values[i]
		}
	})
	if err != nil {
		return nil, fmt.Errorf("read flows: %w", err)
	}
	return entries, nil
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
	touches := func(key bpf.EbpnetFlowKey) bool {
		return key.Network == network && (inside[key.Src] || inside[key.Dst])
	}
	return t.flushWhere(func(key bpf.EbpnetFlowKey, entry bpf.EbpnetFlow) bool {
		return touches(key) || touches(entry.Other)
	})
}

// FlushAllFlows ends every flow.
func (t *Tables) FlushAllFlows() error {
	return t.flushWhere(func(bpf.EbpnetFlowKey, bpf.EbpnetFlow) bool { return true })
}

func (t *Tables) flushWhere(match func(bpf.EbpnetFlowKey, bpf.EbpnetFlow) bool) error {
	entries, err := t.flowEntries()
	if err != nil {
		return err
	}
	for key, entry := range entries {
		if !match(key, entry) {
			continue
		}
		if err := remove(t.Maps.Flows, key); err != nil {
			return err
		}
	}
	return nil
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
