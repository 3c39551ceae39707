package loader

import (
	"cmp"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/ebpnet/ebpnet/bpf"
)

// flowTables lists the maps of flows. They are only useful together, and their
// sizes depend on the number of flows.
func flowTables() []string {
	return []string{
		bpf.EbpnetMapFlows, bpf.EbpnetMapFlowIndex,
		bpf.EbpnetMapHalfOpen, bpf.EbpnetMapFlowShares, bpf.EbpnetMapPortCounts, bpf.EbpnetMapPortSecrets,
		bpf.EbpnetMapSweepers,
	}
}

// indexEntries is the number of entries of `flow_index` per entry of `flows`:
// see bpf/maps.h.
const indexEntries = 4

// sizeFlows sets the sizes of the flow tables for this number of established
// flows, and returns the entries of `flows`. Zero keeps the compiled sizes.
func sizeFlows(spec *ebpf.CollectionSpec, established uint32) (slots uint32) {
	flows := spec.Maps[bpf.EbpnetMapFlows]
	if established != 0 {
		flows.MaxEntries = established + spec.Maps[bpf.EbpnetMapHalfOpen].MaxEntries
		spec.Maps[bpf.EbpnetMapFlowIndex].MaxEntries = indexEntries * flows.MaxEntries
	}
	return flows.MaxEntries
}

// makeSecret writes the secret of a new table port_counts: see bpf/ports.h.
func (u *upgrade) makeSecret() error {
	if u.kept[bpf.EbpnetMapPortSecrets] != nil {
		return nil
	}
	var secret bpf.EbpnetPortSecret
	if _, err := binary.Decode(randomBytes(binary.Size(secret)), binary.NativeEndian, &secret); err != nil {
		return fmt.Errorf("make the secret of port_counts: %w", err)
	}
	if err := u.objects.Maps.PortSecrets.Put(uint32(0), secret); err != nil {
		return fmt.Errorf("write the secret of port_counts: %w", err)
	}
	return nil
}

func randomBytes(n int) []byte {
	bytes := make([]byte, n)
	_, _ = rand.Read(bytes) // never fails: it aborts the program instead
	return bytes
}

// retireFlows replaces all flow tables if one of them is missing, or has
// another layout or size than the new one.
func (u *upgrade) retireFlows() {
	fit := !slices.ContainsFunc(flowTables(), func(name string) bool {
		m := u.kept[name]
		return m == nil || m.MaxEntries() != u.spec.Maps[name].MaxEntries
	})
	if fit {
		return
	}
	for _, name := range flowTables() {
		u.retire(name)
	}
}

// candidate is a flow to restore, in the new layout.
type candidate struct {
	record      []byte
	established bool
	seen        uint64
	known       bool // it is in the new tables
}

// oldFlows finds the flows of the old tables that the tables of o lack. It
// returns established flows before half-open ones, and the last used ones
// first. If updates is set, it adds the flows that are half-open in o but
// established in the old tables.
func (o *Objects) oldFlows(tables []*oldTable, updates bool) ([]candidate, error) {
	var found []candidate
	for _, t := range tables {
		if t.name != bpf.EbpnetMapFlows {
			continue
		}
		more, err := o.oldFlowsOf(t, updates)
		if err != nil {
			return nil, err
		}
		found = append(found, more...)
	}
	slices.SortFunc(found, func(a, b candidate) int {
		if a.established != b.established {
			if a.established {
				return -1
			}
			return 1
		}
		return cmp.Compare(b.seen, a.seen)
	})
	return found, nil
}

// The fields of a flow.
const (
	flowOriginal    = "original."
	flowState       = "state"
	flowSeen        = "seen"
	flowOwner       = "owner"
	flowHalfOpen    = "FLOW_HALF_OPEN"
	flowEstablished = "FLOW_ESTABLISHED"
)

func (o *Objects) oldFlowsOf(t *oldTable, updates bool) (found []candidate, err error) {
	c, err := newTableCopy(t.layout, o.spec.Maps[t.name], nil)
	if err != nil {
		return nil, err
	}
	oldState, err := t.layout.value.must(flowState)
	if err != nil {
		return nil, err
	}
	oldSeen, err := t.layout.value.must(flowSeen)
	if err != nil {
		return nil, err
	}
	_, owned := t.layout.value.find(flowOwner)
	owner, _ := c.layout.value.find(flowOwner)
	state, _ := c.layout.value.find(flowState)
	key, keySize := c.layout.value.start(flowOriginal), o.Maps.FlowIndex.KeySize()
	return found, eachBatch(t.table, func(value []byte) error {
		now := oldState.read(value)
		established := now == oldState.values[flowEstablished]
		if !established && now != oldState.values[flowHalfOpen] {
			return nil
		}
		record, whole := c.value.convert(value)
		if !whole {
			return nil
		}
		if !owned {
			owner.write(record, uint64(bpf.EbpnetOwnerOWNER_UNKNOWN))
		}
		known, open, err := o.knows(record[key:key+keySize], state)
		if update := updates && established && open; err != nil || known && !update {
			return err
		}
		found = append(found, candidate{record, established, oldSeen.read(value), known})
		return nil
	})
}

// knows reports whether a flow is in the new tables, and whether it is
// half-open there.
func (o *Objects) knows(key []byte, state leaf) (known, halfOpen bool, err error) {
	var ref bpf.EbpnetFlowRef
	err = o.Maps.FlowIndex.Lookup(key, &ref)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, false, nil
	}
	if err != nil {
		return false, false, err
	}
	flow, err := o.Maps.Flows.LookupBytes(ref.Slot)
	return true, err == nil && state.read(flow) == state.values[flowHalfOpen], err
}

// restoreFlows opens flows of the old tables in the new ones, as many as fit.
func (o *Objects) restoreFlows(tables []*oldTable, updates bool) (lost int, err error) {
	candidates, err := o.oldFlows(tables, updates)
	if err != nil {
		return 0, err
	}
	fit := min(len(candidates), int(o.Maps.Flows.MaxEntries()))
	lost = len(candidates) - fit
	candidates = candidates[:fit]
	// A new half-open flow displaces others, so the last used one comes
	// last.
	halfOpen := slices.IndexFunc(candidates, func(c candidate) bool { return !c.established })
	if halfOpen >= 0 {
		slices.Reverse(candidates[halfOpen:])
	}
	for _, c := range candidates {
		status, err := o.Programs.RestoreFlow.Run(&ebpf.RunOptions{Data: append(make([]byte, shortestFrame), c.record...)})
		if err != nil {
			return lost, err
		}
		if status != 0 && !c.known {
			lost++
		}
	}
	return lost, nil
}

// EachFlow calls f with the slot and the flow of every established or half-open
// flow, until f fails. The flow is valid until f returns.
func (o *Objects) EachFlow(f func(slot uint32, flow *bpf.EbpnetFlow) error) error {
	return eachFlow(o.Maps.Flows, f)
}

// flowBatch is the number of flows read in one system call.
const flowBatch = 4096

func eachFlow(table *ebpf.Map, f func(slot uint32, flow *bpf.EbpnetFlow) error) error {
	var (
		cursor ebpf.MapBatchCursor
		slots  = make([]uint32, flowBatch)
		flows  = make([]bpf.EbpnetFlow, flowBatch)
	)
	for {
		n, err := table.BatchLookup(&cursor, slots, flows, nil)
		for i := range n {
			switch flows[i].State {
			case bpf.EbpnetFlowStateFLOW_HALF_OPEN, bpf.EbpnetFlowStateFLOW_ESTABLISHED:
			default:
				continue
			}
			if err := f(slots[i], &flows[i]); err != nil {
				return err
			}
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// eachBatch calls f with the values of an array, until f fails.
func eachBatch(table *ebpf.Map, f func(value []byte) error) error {
	var (
		cursor ebpf.MapBatchCursor
		slots  = make([]uint32, flowBatch)
		values = reflect.MakeSlice(reflect.SliceOf(reflect.ArrayOf(int(table.ValueSize()), reflect.TypeFor[byte]())), flowBatch, flowBatch)
	)
	for {
		n, err := table.BatchLookup(&cursor, slots, values.Interface(), nil)
		for i := range n {
			if err := f(values.Index(i).Bytes()); err != nil {
				return err
			}
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
