package loader

import (
	"cmp"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/cilium/ebpf"

	"github.com/ebpnet/ebpnet/bpf"
)

// Tables of flows of another size are made beside those in use, and what they
// hold is carried over twice: before the new ones take the others' place, and
// when all devices have the new programs, for what the old ones opened
// meanwhile. Between the two, former/ID keeps the old `flows` (ID is its number
// in the kernel) and the sweeper that ends the idle ones of it. So whoever
// comes after a Load that was killed knows what is left to do.

// flowTables lists the maps whose sizes follow from the number of flows, and
// that are of use only together.
func flowTables() []string {
	return []string{
		bpf.EbpnetMapFlows, bpf.EbpnetMapFlowIndex,
		bpf.EbpnetMapHalfOpen, bpf.EbpnetMapFlowShares, bpf.EbpnetMapPortCounts, bpf.EbpnetMapPortSecrets,
		bpf.EbpnetMapSweepers,
	}
}

// indexEntries is how many entries of `flow_index` there are for one of
// `flows`: see bpf/maps.h.
const indexEntries = 4

// sizeFlows gives the tables of flows room for so many established ones, and
// returns the entries of `flows`. Zero leaves them as compiled.
func sizeFlows(spec *ebpf.CollectionSpec, established uint32) (slots uint32) {
	flows := spec.Maps[bpf.EbpnetMapFlows]
	if established != 0 {
		flows.MaxEntries = established + spec.Maps[bpf.EbpnetMapHalfOpen].MaxEntries
		spec.Maps[bpf.EbpnetMapFlowIndex].MaxEntries = indexEntries * flows.MaxEntries
	}
	return flows.MaxEntries
}

// retireFlows sees to it that the tables of flows are made anew, all of them,
// if one is missing or has not the size that it is to have.
func (u *upgrade) retireFlows() error {
	fit := !slices.ContainsFunc(flowTables(), func(name string) bool {
		m := u.kept[name]
		return m == nil || m.MaxEntries() != u.spec.Maps[name].MaxEntries
	})
	if fit {
		return nil
	}
	if err := u.keepFormer(); err != nil {
		return fmt.Errorf("keep the flows of before: %w", err)
	}
	for _, name := range flowTables() {
		u.kept[name].Close() // nil closes too
		delete(u.kept, name)
	}
	return nil
}

// makeSecret gives a new table of port_counts its secret: see bpf/ports.h.
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

// keepFormer pins what is to be kept of the tables of flows until FinishResize.
func (u *upgrade) keepFormer() error {
	flows := u.kept[bpf.EbpnetMapFlows]
	if flows == nil {
		return nil
	}
	id, err := mapID(flows)
	if err != nil {
		return err
	}
	directory := formerPath(u.dir, id)
	if err := os.MkdirAll(directory, 0o700); err != nil {
		return err
	}
	for _, name := range []string{bpf.EbpnetMapSweepers, bpf.EbpnetMapFlows} {
		if err := pinTwice(u.kept[name], filepath.Join(directory, name)); err != nil {
			return err
		}
	}
	return nil
}

// pinTwice pins a map that is pinned elsewhere too.
func pinTwice(m *ebpf.Map, path string) error {
	if m == nil {
		return nil
	}
	twin, err := m.Clone()
	if err != nil {
		return err
	}
	defer twin.Close()
	return twin.Pin(path)
}

func formerPath(dir string, id ebpf.MapID) string {
	return filepath.Join(dir, formerDirectory, strconv.FormatUint(uint64(id), 10))
}

// clearFormer removes from the former tables what is in use now: then nothing
// had taken its place yet.
func clearFormer(dir string) error {
	flows, err := ebpf.LoadPinnedMap(filepath.Join(dir, mapsDirectory, bpf.EbpnetMapFlows), nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer flows.Close()
	id, err := mapID(flows)
	if err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(formerPath(dir, id)), removeFormer(dir))
}

// removeFormer removes the directory of former tables if it is empty.
func removeFormer(dir string) error {
	left, err := os.ReadDir(filepath.Join(dir, formerDirectory))
	if errors.Is(err, os.ErrNotExist) || err == nil && len(left) > 0 {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Remove(filepath.Join(dir, formerDirectory))
}

func mapID(m *ebpf.Map) (ebpf.MapID, error) {
	info, err := m.Info()
	if err != nil {
		return 0, err
	}
	id, _ := info.ID() // known since Linux 4.13
	return id, nil
}

// former is a table of flows that another has taken the place of.
type former struct {
	directory string
	flows     *ebpf.Map
}

// formers opens the tables that o's programs have taken the place of. Those
// that these programs themselves still use are left out: then a Load was
// killed before it pinned its programs, and only another Load can go on.
func (o *Objects) formers() (_ []former, err error) {
	var found []former
	defer func() {
		if err != nil {
			closeFormers(found)
		}
	}()
	entries, err := os.ReadDir(filepath.Join(o.dir, formerDirectory))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	info, err := o.Programs.RestoreFlow.Info()
	if err != nil {
		return nil, err
	}
	used, _ := info.MapIDs() // known since Linux 4.15
	for _, e := range entries {
		id, err := strconv.ParseUint(e.Name(), 10, 32)
		if err != nil || slices.Contains(used, ebpf.MapID(id)) {
			continue
		}
		directory := formerPath(o.dir, ebpf.MapID(id))
		flows, err := ebpf.LoadPinnedMap(filepath.Join(directory, bpf.EbpnetMapFlows), nil)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		found = append(found, former{directory, flows})
	}
	return found, nil
}

func closeFormers(formers []former) {
	for _, f := range formers {
		f.flows.Close() // nil closes too
	}
}

// Resizing tells whether FinishResize has something to do.
func (o *Objects) Resizing() (bool, error) {
	formers, err := o.formers()
	if err != nil {
		return false, fmt.Errorf("look for the flows of before: %w", err)
	}
	closeFormers(formers)
	return len(formers) > 0, nil
}

// CarryFlows carries over the flows that the former tables hold and the ones
// in use do not.
func (o *Objects) CarryFlows() error {
	_, err := o.carry(false)
	return err
}

// FinishResize carries over what the old programs have opened until they were
// replaced everywhere, and forgets the tables that they used. It gives the
// number of flows that the new tables did not take.
func (o *Objects) FinishResize() (lost int, err error) { return o.carry(true) }

func (o *Objects) carry(finish bool) (lost int, err error) {
	formers, err := o.formers()
	if err != nil {
		return 0, fmt.Errorf("look for the flows of before: %w", err)
	}
	defer closeFormers(formers)
	waiting, err := o.unknownFlows(formers)
	if err != nil {
		return 0, fmt.Errorf("read the flows of before: %w", err)
	}
	lost, err = o.restore(waiting)
	if err != nil {
		return 0, fmt.Errorf("carry over the flows of before: %w", err)
	}
	if !finish {
		return lost, nil
	}
	for _, f := range formers {
		err = errors.Join(err, os.RemoveAll(f.directory))
	}
	if err := errors.Join(err, removeFormer(o.dir)); err != nil {
		return lost, fmt.Errorf("forget the flows of before: %w", err)
	}
	return lost, nil
}

// candidate is a flow that may be carried over.
type candidate struct {
	flows       *ebpf.Map // the table it is in
	slot        uint32
	established bool
	seen        uint64
}

// unknownFlows finds the flows that o does not know, the worthiest first:
// established before half-open ones, and those that were used last.
func (o *Objects) unknownFlows(formers []former) ([]candidate, error) {
	var found []candidate
	for _, f := range formers {
		if f.flows == nil {
			continue
		}
		err := eachFlow(f.flows, func(slot uint32, flow *bpf.EbpnetFlow) error {
			var ref bpf.EbpnetFlowRef
			err := o.Maps.FlowIndex.Lookup(&flow.Original, &ref)
			if errors.Is(err, ebpf.ErrKeyNotExist) {
				established := flow.State == bpf.EbpnetFlowStateFLOW_ESTABLISHED
				found = append(found, candidate{f.flows, slot, established, flow.Seen})
				return nil
			}
			return err
		})
		if err != nil {
			return nil, err
		}
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

// restore carries flows over, as many as there may be room for.
func (o *Objects) restore(candidates []candidate) (lost int, err error) {
	fit := min(len(candidates), int(o.Maps.Flows.MaxEntries()))
	lost = len(candidates) - fit
	candidates = candidates[:fit]
	// Of half-open flows the one that was opened first will make room first.
	established := slices.IndexFunc(candidates, func(c candidate) bool { return !c.established })
	if established >= 0 {
		slices.Reverse(candidates[established:])
	}
	frame := make([]byte, shortestFrame)
	for _, c := range candidates {
		flow, err := c.flows.LookupBytes(c.slot)
		if err != nil {
			return lost, err
		}
		status, err := o.Programs.RestoreFlow.Run(&ebpf.RunOptions{Data: append(frame, flow...)})
		if err != nil {
			return lost, err
		}
		if status != 0 {
			lost++
		}
	}
	return lost, nil
}

// EachFlow gives f every flow that is established or half-open, with its slot,
// until f fails. What f is given may change with the next call.
func (o *Objects) EachFlow(f func(slot uint32, flow *bpf.EbpnetFlow) error) error {
	return eachFlow(o.Maps.Flows, f)
}

// flowBatch is how many flows are read from the kernel at once.
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
