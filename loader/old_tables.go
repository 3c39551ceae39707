package loader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/bpf"
)

// If the layout or the size of a table changes, Load makes a new table beside
// the old one. The state is copied twice: before the new tables replace the old
// ones, and when all devices have the new programs, because the old programs
// change the old tables until then. Between the two copies, old_tables/ID keeps
// the old table (ID is its number in the kernel). So a later Load or
// FinishMigration can continue if a Load was killed. The directory holds, by
// name:
//   - the old table;
//   - for counts, `copied`: the sums that the new table already has;
//   - for flows, the old `sweepers`, whose timer ends idle flows of the old table.

// copiedTable is the name of the table of sums.
const copiedTable = "copied"

// keptTables lists the tables that are copied twice.
func keptTables() []string {
	kept := []string{bpf.EbpnetMapFlows, bpf.EbpnetMapLearnedFdb, bpf.EbpnetMapLearnedNeigh}
	for name := range countTables() {
		kept = append(kept, name)
	}
	return kept
}

// oldTable is a table that another has replaced.
type oldTable struct {
	directory string
	name      string
	table     *ebpf.Map
	layout    mapLayout
	copied    *ebpf.Map // nil if the table has no counts
}

func (t *oldTable) close() {
	t.table.Close()
	t.copied.Close() // nil closes too
}

func closeOldTables(tables []*oldTable) {
	for _, t := range tables {
		t.close()
	}
}

// keepOld pins a table until FinishMigration.
func (u *upgrade) keepOld(name string, m *ebpf.Map) error {
	id, err := mapID(m)
	if err != nil {
		return err
	}
	directory := oldPath(u.dir, id)
	if err := os.MkdirAll(directory, 0o700); err != nil {
		return err
	}
	if name == bpf.EbpnetMapFlows {
		sweepers := u.before[bpf.EbpnetMapSweepers].table
		if err := pinTwice(sweepers, filepath.Join(directory, bpf.EbpnetMapSweepers)); err != nil {
			return err
		}
	}
	return pinTwice(m, filepath.Join(directory, name))
}

// pinTwice pins a map that is already pinned elsewhere.
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

func oldPath(dir string, id ebpf.MapID) string {
	return filepath.Join(dir, oldDirectory, strconv.FormatUint(uint64(id), 10))
}

// adoptFormer renames the directory of old tables of a version before format 1.
func adoptFormer(dir string) error {
	former, old := filepath.Join(dir, formerDirectory), filepath.Join(dir, oldDirectory)
	err := unix.Renameat2(unix.AT_FDCWD, former, unix.AT_FDCWD, old, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

// clearOld removes the tables that are still in use from the directory of old
// tables: no new tables have replaced them.
func clearOld(dir string) error {
	old, err := os.ReadDir(filepath.Join(dir, oldDirectory))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	pinned, err := os.ReadDir(filepath.Join(dir, mapsDirectory))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	inUse := map[string]bool{}
	for _, e := range pinned {
		if e.IsDir() {
			continue
		}
		m, err := ebpf.LoadPinnedMap(filepath.Join(dir, mapsDirectory, e.Name()), nil)
		if err != nil {
			return err
		}
		id, err := mapID(m)
		m.Close()
		if err != nil {
			return err
		}
		inUse[strconv.FormatUint(uint64(id), 10)] = true
	}
	for _, e := range old {
		if !inUse[e.Name()] {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, oldDirectory, e.Name())); err != nil {
			return err
		}
	}
	return removeOld(dir)
}

// removeOld removes the directory of old tables if it is empty.
func removeOld(dir string) error {
	left, err := os.ReadDir(filepath.Join(dir, oldDirectory))
	if errors.Is(err, os.ErrNotExist) || err == nil && len(left) > 0 {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Remove(filepath.Join(dir, oldDirectory))
}

func mapID(m *ebpf.Map) (ebpf.MapID, error) {
	info, err := m.Info()
	if err != nil {
		return 0, err
	}
	id, _ := info.ID() // available since Linux 4.13
	return id, nil
}

// oldTables opens the old tables, except those that o's programs use
// themselves. They use them if a Load was killed before it pinned its programs.
// Then only another Load can continue.
func (o *Objects) oldTables() (_ []*oldTable, err error) {
	var found []*oldTable
	defer func() {
		if err != nil {
			closeOldTables(found)
		}
	}()
	entries, err := os.ReadDir(filepath.Join(o.dir, oldDirectory))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	used, err := o.usedMaps()
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		id, err := strconv.ParseUint(e.Name(), 10, 32)
		if err != nil || slices.Contains(used, ebpf.MapID(id)) {
			continue
		}
		t, err := openOld(oldPath(o.dir, ebpf.MapID(id)))
		if err != nil {
			return nil, err
		}
		found = append(found, t)
	}
	return found, nil
}

// openOld opens an old table. The table is nil if a Load was killed before it
// pinned the table in the directory.
func openOld(directory string) (_ *oldTable, err error) {
	t := &oldTable{directory: directory}
	defer func() {
		if err != nil {
			t.close()
		}
	}()
	for _, name := range keptTables() {
		t.table, err = ebpf.LoadPinnedMap(filepath.Join(directory, name), nil)
		if err == nil {
			t.name = name
			break
		}
		if !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	if t.table == nil {
		return t, nil
	}
	described := t.table
	t.copied, err = ebpf.LoadPinnedMap(filepath.Join(directory, copiedTable), nil)
	if err == nil {
		described = t.copied
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	t.layout, err = tableLayout(described, &ebpf.MapSpec{}, "")
	t.layout.kind = t.table.Type()
	return t, err
}

// usedMaps lists the maps that o's programs use.
func (o *Objects) usedMaps() ([]ebpf.MapID, error) {
	var used []ebpf.MapID
	for _, p := range o.allPrograms() {
		info, err := p.Info()
		if err != nil {
			return nil, err
		}
		ids, _ := info.MapIDs() // available since Linux 4.15
		used = append(used, ids...)
	}
	return used, nil
}

func (o *Objects) allPrograms() []*ebpf.Program {
	var all []*ebpf.Program
	fields := reflect.ValueOf(o.Programs)
	for i := range fields.NumField() {
		all = append(all, fields.Field(i).Interface().(*ebpf.Program))
	}
	return all
}

// openScratch opens the maps that are not pinned, by a pinned program that uses
// them.
func openScratch(p *ebpf.Program, into map[string]*ebpf.Map) error {
	info, err := p.Info()
	if err != nil {
		return fmt.Errorf("find the maps of %v: %w", p, err)
	}
	ids, _ := info.MapIDs() // available since Linux 4.15
	for _, id := range ids {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			return fmt.Errorf("open map %d: %w", id, err)
		}
		info, err := m.Info()
		if err != nil {
			return errors.Join(fmt.Errorf("read map %d: %w", id, err), m.Close())
		}
		if isScratch(info.Name) && into[info.Name] == nil {
			into[info.Name] = m
			continue
		}
		m.Close()
	}
	return nil
}

// eachEntry calls f with every entry of a map. For a map with a value per CPU,
// the value has those of all CPUs one after the other. Key and value are valid
// until f returns.
func eachEntry(m *ebpf.Map, f func(key, value []byte) error) error {
	if kind := m.Type(); kind == ebpf.Array || kind == ebpf.PerCPUArray {
		return eachIndex(m, f)
	}
	var previous any // none
	for range m.MaxEntries() {
		key, err := m.NextKeyBytes(previous)
		if err != nil {
			return err
		}
		if key == nil {
			return nil
		}
		value, err := m.LookupBytes(key)
		if err != nil {
			return err
		}
		previous = key
		if value == nil { // the entry was just removed
			continue
		}
		if err := f(key, value); err != nil {
			return err
		}
	}
	return nil
}

func eachIndex(m *ebpf.Map, f func(key, value []byte) error) error {
	for i := range m.MaxEntries() {
		value, err := m.LookupBytes(i)
		if err != nil {
			return err
		}
		if err := f(binary.NativeEndian.AppendUint32(nil, i), value); err != nil {
			return err
		}
	}
	return nil
}
