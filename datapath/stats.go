package datapath

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/bpf"
	"github.com/ebpnet/ebpnet/loader"
)

// Counter counts packets and the bytes of their Ethernet frames. A superframe
// counts as its segments.
type Counter struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

func (c *Counter) add(o Counter) {
	c.Packets += o.Packets
	c.Bytes += o.Bytes
}

// Traffic is what an endpoint, network or tunnel sent (Tx) and received (Rx).
// For a tunnel, it counts the outer frames.
type Traffic struct {
	Tx, Rx Counter
}

func (t *Traffic) add(o Traffic) {
	t.Tx.add(o.Tx)
	t.Rx.add(o.Rx)
}

func counterOf(e bpf.EbpnetCounter) Counter { return Counter{Packets: e.Packets, Bytes: e.Bytes} }

func trafficOf(e bpf.EbpnetTraffic) Traffic { return Traffic{Tx: counterOf(e.Tx), Rx: counterOf(e.Rx)} }

func (t Traffic) entry() (e bpf.EbpnetTraffic) {
	e.Tx.Packets, e.Tx.Bytes = t.Tx.Packets, t.Tx.Bytes
	e.Rx.Packets, e.Rx.Bytes = t.Rx.Packets, t.Rx.Bytes
	return e
}

// EndpointTraffic reads the counters of a local endpoint.
func (t *Tables) EndpointTraffic(id uint32) (Traffic, error) {
	return readTraffic(t.Maps.EndpointStats, id)
}

// NetworkTraffic reads the traffic of the local endpoints of each network,
// including deleted endpoints. Networks without endpoints are missing.
func (t *Tables) NetworkTraffic() (_ map[uint32]Traffic, err error) {
	unlock, err := t.lockCounts(unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	sums := map[uint32]Traffic{}
	add := func(network uint32, traffic Traffic) {
		if traffic != (Traffic{}) {
			sum := sums[network]
			sum.add(traffic)
			sums[network] = sum
		}
	}
	err = eachBatch(t.Maps.PastTraffic, func(networks []uint32, past []bpf.EbpnetTraffic) {
		for i, network := range networks {
			add(network, trafficOf(past[i]))
		}
	})
	if err != nil {
		return nil, fmt.Errorf("read %v: %w", t.Maps.PastTraffic, err)
	}
	devices, err := t.devices()
	if err != nil {
		return nil, err
	}
	for _, d := range devices {
		traffic, err := t.EndpointTraffic(d.Endpoint)
		if err != nil {
			return nil, err
		}
		add(d.Network, traffic)
	}
	return sums, nil
}

// retire adds the counters of deleted endpoints to those of their networks.
// Traffic during the deletion is lost for the network. If the process is killed
// in between, traffic may count twice: a counter must not decrease.
func (t *Tables) retire(going []bpf.EbpnetDevice, remove func() error) (err error) {
	unlock, err := t.lockCounts(unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	for _, d := range going {
		traffic, err := t.EndpointTraffic(d.Endpoint)
		if err != nil {
			return err
		}
		var past bpf.EbpnetTraffic
		if err := t.Maps.PastTraffic.Lookup(d.Network, &past); err != nil {
			return fmt.Errorf("read entry %d of %v: %w", d.Network, t.Maps.PastTraffic, err)
		}
		traffic.add(trafficOf(past))
		if err := put(t.Maps.PastTraffic, d.Network, traffic.entry()); err != nil {
			return err
		}
	}
	if err := remove(); err != nil {
		return err
	}
	for _, d := range going {
		if err := t.ResetEndpointTraffic(d.Endpoint); err != nil {
			return err
		}
	}
	return nil
}

// lockCounts locks the counters of networks: nobody reads them while retire
// moves counters from an endpoint to its network.
func (t *Tables) lockCounts(how int) (unlock func() error, err error) {
	pins, err := os.Open(t.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, loader.ErrNotLoaded // unloaded since
	}
	if err != nil {
		return nil, fmt.Errorf("lock the counters: %w", err)
	}
	for {
		if err = unix.Flock(int(pins.Fd()), how); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock the counters: %w", err), pins.Close())
	}
	return pins.Close, nil // Close releases the lock
}

// TunnelTraffic reads the counters of a tunnel.
func (t *Tables) TunnelTraffic(id uint32) (Traffic, error) {
	return readTraffic(t.Maps.TunnelStats, id)
}

// ResetEndpointTraffic resets the counters of an id before it is reused.
func (t *Tables) ResetEndpointTraffic(id uint32) error {
	if err := t.resetLimited(id); err != nil {
		return err
	}
	return resetTraffic(t.Maps.EndpointStats, id)
}

// ResetNetworkTraffic resets the counters of an id before it is reused.
func (t *Tables) ResetNetworkTraffic(id uint32) error {
	return put(t.Maps.PastTraffic, id, bpf.EbpnetTraffic{})
}

// ResetTunnelTraffic resets the counters and the path MTU of an id before it is
// reused.
func (t *Tables) ResetTunnelTraffic(id uint32) error {
	if err := put(t.Maps.TunnelPaths, id, bpf.EbpnetTunnelPath{}); err != nil {
		return err
	}
	for _, flooder := range t.tunnelFlooders(id) {
		if err := put(t.Maps.FloodBudgets, flooder, bpf.EbpnetFloodBudget{}); err != nil {
			return err
		}
	}
	return resetTraffic(t.Maps.TunnelStats, id)
}

func readTraffic(m *ebpf.Map, id uint32) (sum Traffic, err error) {
	var perCPU []bpf.EbpnetTraffic
	if err := m.Lookup(id, &perCPU); err != nil {
		return sum, fmt.Errorf("read entry %d of %v: %w", id, m, err)
	}
	for _, cpu := range perCPU {
		sum.add(trafficOf(cpu))
	}
	return sum, nil
}

func resetTraffic(m *ebpf.Map, id uint32) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return err
	}
	return put(m, id, make([]bpf.EbpnetTraffic, cpus))
}

// Drop counts the packets dropped for one reason.
type Drop struct {
	Reason string `json:"reason"`
	Counter
}

// Drops reads the counters of all reasons, in the order of enum reason.
func (t *Tables) Drops() ([]Drop, error) {
	names, err := Reasons()
	if err != nil {
		return nil, err
	}
	drops := make([]Drop, 0, len(names))
	for i, name := range names {
		reason := bpf.EbpnetReason(i) + firstReason
		var perCPU []bpf.EbpnetCounter
		if err := t.Maps.Drops.Lookup(reason, &perCPU); err != nil {
			return nil, fmt.Errorf("read drops for %s: %w", name, err)
		}
		drop := Drop{Reason: name}
		for _, cpu := range perCPU {
			drop.add(counterOf(cpu))
		}
		drops = append(drops, drop)
	}
	return drops, nil
}

const (
	firstReason  = bpf.EbpnetReasonREASON_NONE + 1
	reasonPrefix = "REASON_"
)

// Reasons returns the names of all drop reasons, in the order of enum reason of
// bpf/types_common.h, in lower case. Do not modify the result.
func Reasons() ([]string, error) { return reasons() }

// reasons reads the compiled programs once, because that takes longer than to
// read all counters.
var reasons = sync.OnceValues(func() ([]string, error) {
	spec, err := bpf.LoadEbpnet()
	if err != nil {
		return nil, fmt.Errorf("read the compiled programs: %w", err)
	}
	var enum *btf.Enum
	if err := spec.Types.TypeByName("reason", &enum); err != nil {
		return nil, fmt.Errorf("find enum reason: %w", err)
	}
	var names []string
	for _, v := range enum.Values {
		if r := bpf.EbpnetReason(v.Value); r >= firstReason && r < bpf.EbpnetReasonREASON_COUNT {
			names = append(names, strings.ToLower(strings.TrimPrefix(v.Name, reasonPrefix)))
		}
	}
	return names, nil
})

// MapUsage is the fill level and the memory of a table.
type MapUsage struct {
	Name     string `json:"name"`
	Entries  int    `json:"entries"`
	Capacity uint32 `json:"capacity"`
	Memory   uint64 `json:"memory_bytes"` // as the kernel reports it: before Linux 6.3, for a full table
}

// Usage counts the entries of every table. For an array, it counts the used
// ones.
func (t *Tables) Usage() ([]MapUsage, error) {
	flows, halfOpen, err := t.countFlows()
	if err != nil {
		return nil, fmt.Errorf("count flows: %w", err)
	}
	maps := []struct {
		name  string
		m     *ebpf.Map
		count func(*ebpf.Map) (int, error)
	}{
		{"broadcasts", t.Maps.Broadcasts, countEntries[bpf.EbpnetAddress, uint32]},
		{"carried", t.Maps.Carried, countEntries[bpf.EbpnetTunnelNetworkKey, uint32]},
		{"datagrams", t.Maps.Datagrams, countEntries[bpf.EbpnetFragmentPlace, bpf.EbpnetDatagram]},
		{"devices", t.Maps.Devices, countEntries[uint32, bpf.EbpnetDevice]},
		{"drops", t.Maps.Drops, countReasons},
		{"endpoint_stats", t.Maps.EndpointStats, t.countEndpoints},
		{"fdb", t.Maps.Fdb, countEntries[bpf.EbpnetFdbKey, bpf.EbpnetStation]},
		{"flood_budgets", t.Maps.FloodBudgets, countUsed[bpf.EbpnetFloodBudget]},
		{"flow_index", t.Maps.FlowIndex, countEntries[bpf.EbpnetFlowKey, bpf.EbpnetFlowRef]},
		{"flow_shares", t.Maps.FlowShares, countUsed[bpf.EbpnetFlowShare]},
		{"flows", t.Maps.Flows, counted(flows)},
		{"half_open", t.Maps.HalfOpen, counted(halfOpen)},
		{"icmp_budgets", t.Maps.IcmpBudgets, countUsed[uint64]},
		{"learned_counts", t.Maps.LearnedCounts, countEntries[bpf.EbpnetLearnedPlace, bpf.EbpnetLearnedCount]},
		{"learned_fdb", t.Maps.LearnedFdb, countEntries[bpf.EbpnetFdbKey, bpf.EbpnetLearned]},
		{"learned_neigh", t.Maps.LearnedNeigh, countEntries[bpf.EbpnetAddress, bpf.EbpnetLearned]},
		{"learned_queue", t.Maps.LearnedQueue, t.countLearned},
		{"limits", t.Maps.Limits, countEntries[uint32, bpf.EbpnetOwnerLimits]},
		{"links", t.Maps.Links, countEntries[bpf.EbpnetLinkKey, uint32]},
		{"links_revision", t.Maps.LinksRevision, countAll},
		{"members", t.Maps.Members, countEntries[bpf.EbpnetMemberKey, bpf.EbpnetStation]},
		{"neighbors", t.Maps.Neighbors, countEntries[bpf.EbpnetAddress, bpf.EbpnetStation]},
		{"networks", t.Maps.Networks, t.countNetworks},
		{"past_traffic", t.Maps.PastTraffic, countUsed[bpf.EbpnetTraffic]},
		{"port_counts", t.Maps.PortCounts, countUsed[uint32]},
		{"port_secrets", t.Maps.PortSecrets, countAll},
		{"port_sources", t.Maps.PortSources, countEntries[bpf.EbpnetPortSourceKey, uint32]},
		{"ports", t.Maps.Ports, countEntries[bpf.EbpnetPortKey, bpf.EbpnetPort]},
		{"published_ports", t.Maps.PublishedPorts, countUsed[uint64]},
		{"refusals", t.Maps.Refusals, countUsed[bpf.EbpnetRefused]},
		{"scratches", t.Maps.Scratches, countAll},
		{"sweepers", t.Maps.Sweepers, countAll},
		{"trunks", t.Maps.Trunks, countUsed[bpf.EbpnetTrunk]},
		{"tunnel_buckets", t.Maps.TunnelBuckets, t.tunnelIDs().count},
		{"tunnel_paths", t.Maps.TunnelPaths, countUsed[bpf.EbpnetTunnelPath]},
		{"tunnel_stats", t.Maps.TunnelStats, t.countTunnels},
		{"tunnels", t.Maps.Tunnels, t.countTunnels},
		{"uplink_buckets", t.Maps.UplinkBuckets, t.uplinks().count},
		{"ways", t.Maps.Ways, countAll},
	}
	usage := make([]MapUsage, 0, len(maps))
	for _, entry := range maps {
		entries, err := entry.count(entry.m)
		if err != nil {
			return nil, fmt.Errorf("count %s: %w", entry.name, err)
		}
		info, err := entry.m.Info()
		if err != nil {
			return nil, fmt.Errorf("read the size of %s: %w", entry.name, err)
		}
		capacity := entry.m.MaxEntries()
		if entry.m == t.Maps.TunnelBuckets || entry.m == t.Maps.UplinkBuckets {
			capacity *= uint32(bucketSlots)
		}
		memory, _ := info.Memlock() // available since Linux 4.10
		usage = append(usage, MapUsage{Name: entry.name, Entries: entries, Capacity: capacity, Memory: memory})
	}
	return usage, nil
}

func countAll(m *ebpf.Map) (int, error) { return int(m.MaxEntries()), nil }

func countReasons(*ebpf.Map) (int, error) {
	names, err := Reasons()
	return len(names), err
}

func (t *Tables) countEndpoints(*ebpf.Map) (int, error) {
	return countEntries[uint32, bpf.EbpnetDevice](t.Maps.Devices)
}

// countNetworks counts the networks that have a gateway or members. The entry
// of a network without any policy is zero.
func (t *Tables) countNetworks(*ebpf.Map) (int, error) {
	found := map[uint32]bool{}
	err := eachBatch(t.Maps.Fdb, func(keys []bpf.EbpnetFdbKey, _ []bpf.EbpnetStation) {
		for _, key := range keys {
			found[key.Network] = true
		}
	})
	return len(found), err
}

func (t *Tables) countTunnels(*ebpf.Map) (int, error) {
	return countUsed[bpf.EbpnetTunnel](t.Maps.Tunnels)
}

// countLearned counts the learned stations and addresses. Each has a record in
// `learned_queue`, which cannot be listed.
func (t *Tables) countLearned(*ebpf.Map) (int, error) {
	stations, err := countEntries[bpf.EbpnetFdbKey, bpf.EbpnetLearned](t.Maps.LearnedFdb)
	if err != nil {
		return 0, err
	}
	neighbors, err := countEntries[bpf.EbpnetAddress, bpf.EbpnetLearned](t.Maps.LearnedNeigh)
	return stations + neighbors, err
}

// countFlows counts all flows and the half-open flows.
func (t *Tables) countFlows() (all, halfOpen int, err error) {
	err = t.EachFlow(func(_ uint32, flow *bpf.EbpnetFlow) error {
		all++
		if flow.State == bpf.EbpnetFlowStateFLOW_HALF_OPEN {
			halfOpen++
		}
		return nil
	})
	return all, halfOpen, err
}

func counted(n int) func(*ebpf.Map) (int, error) {
	return func(*ebpf.Map) (int, error) { return n, nil }
}

// countUsed counts the entries of an array that are not zero.
func countUsed[V comparable](m *ebpf.Map) (used int, err error) {
	err = eachBatch(m, func(_ []uint32, values []V) {
		for _, v := range values {
			if v != *new(V) {
				used++
			}
		}
	})
	return used, err
}

func countEntries[K, V any](m *ebpf.Map) (total int, err error) {
	err = eachBatch(m, func(keys []K, _ []V) { total += len(keys) })
	return total, err
}

// batch is the number of entries read in one system call.
const batch = 4096

// eachBatch calls f with all entries of a hash, many per call.
func eachBatch[K, V any](m *ebpf.Map, f func([]K, []V)) error {
	var (
		cursor ebpf.MapBatchCursor
		keys   = make([]K, batch)
		values = make([]V, batch)
	)
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		f(keys[:n], values[:n])
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
