package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/bpf"
)

// pinnedTable is a table that was in use when this Load began.
type pinnedTable struct {
	table     *ebpf.Map
	layout    mapLayout
	layoutErr error // why layout is unknown; nil: it is known
}

// openBefore opens the pinned maps: those with the layout of the new programs,
// which stay in use, and the others.
func openBefore(dir string, spec *ebpf.CollectionSpec) (kept map[string]*ebpf.Map, before map[string]pinnedTable, err error) {
	kept, before = map[string]*ebpf.Map{}, map[string]pinnedTable{}
	defer func() {
		if err != nil {
			closeMaps(kept)
			closeBefore(before)
		}
	}()
	same, err := hasLayouts(dir, spec)
	if err != nil {
		return nil, nil, err
	}
	for name, want := range spec.Maps {
		if !isPinned(name) {
			continue
		}
		m, err := openFormer(dir, name)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("open map %s: %w", name, err)
		}
		if same {
			kept[name] = m
			continue
		}
		p := pinnedTable{table: m}
		p.layout, p.layoutErr = tableLayout(m, want, dir)
		wanted, err := specLayout(want)
		if slices.Contains(flowTables(), name) {
			wanted.entries = p.layout.entries // see retireFlows
		}
		if p.layoutErr == nil && err == nil && p.layout.String() == wanted.String() {
			kept[name] = m
		} else {
			before[name] = p
		}
	}
	return kept, before, nil
}

func closeBefore(before map[string]pinnedTable) {
	for _, p := range before {
		p.table.Close()
	}
}

// openFormer opens a pinned map by its present name, or by its name in an older
// version.
func openFormer(dir, name string) (*ebpf.Map, error) {
	m, err := ebpf.LoadPinnedMap(filepath.Join(dir, mapsDirectory, name), nil)
	if !errors.Is(err, os.ErrNotExist) {
		return m, err
	}
	for former, now := range formerNames() {
		if now == name {
			return ebpf.LoadPinnedMap(filepath.Join(dir, mapsDirectory, former), nil)
		}
	}
	return nil, err
}

// tableLayout reads the layout of a pinned map.
func tableLayout(m *ebpf.Map, want *ebpf.MapSpec, dir string) (mapLayout, error) {
	l := mapLayout{kind: m.Type(), entries: m.MaxEntries(), flags: m.Flags()}
	var err error
	if l.types, err = mapTypes(m); err != nil {
		return l, err
	}
	if l.types[1] == nil && isArray(m.Type()) {
		// An older version gave no BTF to an array whose key is an
		// enum. Its programs have these types.
		if l.types, err = programTypes(dir, want); err != nil {
			return l, err
		}
	}
	return l, l.read(m.KeySize(), m.ValueSize(), formerNames())
}

func isArray(kind ebpf.MapType) bool { return kind == ebpf.Array || kind == ebpf.PerCPUArray }

// mapTypes reads the types of a map's key and value from the kernel. They are
// nil if the map has no BTF.
func mapTypes(m *ebpf.Map) (types [2]btf.Type, err error) {
	type mapInfo struct { // struct bpf_map_info
		_               [64]byte
		btf, key, value uint32
	}
	info := new(mapInfo)
	attr := struct { // of BPF_OBJ_GET_INFO_BY_FD
		fd, length uint32
		info       uint64
	}{uint32(m.FD()), uint32(unsafe.Sizeof(*info)), uint64(uintptr(unsafe.Pointer(info)))}
	_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_OBJ_GET_INFO_BY_FD, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	runtime.KeepAlive(info)
	if errno != 0 {
		return types, fmt.Errorf("read the types of %v: %w", m, errno)
	}
	if info.btf == 0 {
		return types, nil
	}
	spec, err := btfOf(btf.ID(info.btf))
	if err != nil {
		return types, err
	}
	for i, id := range []uint32{info.key, info.value} {
		if id == 0 {
			continue
		}
		if types[i], err = spec.TypeByID(btf.TypeID(id)); err != nil {
			return types, fmt.Errorf("read the types of %v: %w", m, err)
		}
	}
	return types, nil
}

func btfOf(id btf.ID) (*btf.Spec, error) {
	handle, err := btf.NewHandleFromID(id)
	if err != nil {
		return nil, fmt.Errorf("open the types of the kernel: %w", err)
	}
	defer handle.Close()
	spec, err := handle.Spec(nil)
	if err != nil {
		return nil, fmt.Errorf("read the types of the kernel: %w", err)
	}
	return spec, nil
}

// programTypes finds the types of a map by name in the BTF of a pinned program.
// They are nil if there are none.
func programTypes(dir string, want *ebpf.MapSpec) (types [2]btf.Type, err error) {
	program, err := ebpf.LoadPinnedProgram(filepath.Join(dir, programsDirectory, FromEndpoint.name), nil)
	if errors.Is(err, os.ErrNotExist) {
		return types, nil
	}
	if err != nil {
		return types, fmt.Errorf("open program %s: %w", FromEndpoint, err)
	}
	defer program.Close()
	info, err := program.Info()
	if err != nil {
		return types, fmt.Errorf("read program %s: %w", FromEndpoint, err)
	}
	id, _ := info.BTFID() // available since Linux 5.0
	spec, err := btfOf(id)
	if err != nil {
		return types, err
	}
	key := want.Key
	if described := describedKey(want.Value); described != nil {
		key = described
	}
	for i, t := range []btf.Type{key, want.Value} {
		if types[i], err = spec.AnyTypeByName(t.TypeName()); err != nil {
			return [2]btf.Type{}, nil
		}
	}
	return types, nil
}

// learnedTables lists the tables of learned stations. They are only useful
// together.
func learnedTables() []string {
	return []string{
		bpf.EbpnetMapLearnedFdb, bpf.EbpnetMapLearnedNeigh,
		bpf.EbpnetMapLearnedQueue, bpf.EbpnetMapLearnedCounts,
	}
}

// retireTables replaces tables that belong together if one of them is replaced.
// It keeps the replaced tables whose state changes until FinishMigration.
func (u *upgrade) retireTables() error {
	u.retireFlows()
	if slices.ContainsFunc(learnedTables(), func(name string) bool { return u.kept[name] == nil }) {
		for _, name := range learnedTables() {
			u.retire(name)
		}
	}
	for _, name := range keptTables() {
		p, ok := u.before[name]
		if !ok || p.layoutErr != nil {
			continue
		}
		if err := u.keepOld(name, p.table); err != nil {
			return fmt.Errorf("keep table %s of before: %w", name, err)
		}
	}
	return nil
}

// retire replaces a table that would stay in use.
func (u *upgrade) retire(name string) {
	m := u.kept[name]
	if m == nil {
		return
	}
	delete(u.kept, name)
	layout, err := tableLayout(m, u.spec.Maps[name], u.dir)
	u.before[name] = pinnedTable{m, layout, err}
}

// copyTables copies the state of the replaced tables into the new ones. It does
// not copy configuration, because the agent writes it again from the store.
func (u *upgrade) copyTables() error {
	for name, p := range u.before {
		if p.layoutErr != nil || slices.Contains(flowTables(), name) ||
			name == bpf.EbpnetMapLearnedQueue || name == bpf.EbpnetMapLearnedCounts {
			continue
		}
		if err := u.copyTable(name, p); err != nil {
			return fmt.Errorf("copy table %s: %w", name, err)
		}
	}
	return nil
}

func (u *upgrade) copyTable(name string, p pinnedTable) error {
	c, err := newTableCopy(p.layout, u.spec.Maps[name], u.maps[name])
	if err != nil {
		return err
	}
	var copied *ebpf.Map
	if _, ok := countTables()[name]; ok {
		if copied, err = u.makeCopied(p); err != nil {
			return err
		}
		defer copied.Close()
	}
	return eachEntry(p.table, func(key, value []byte) error {
		if isZero(value) && isArray(p.layout.kind) {
			return nil
		}
		if copied != nil {
			if err := copied.Put(key, c.from.sum(value)); err != nil {
				return err
			}
		}
		return c.put(key, value)
	})
}

// tableCopy copies entries of one table into another.
type tableCopy struct {
	to         *ebpf.Map
	from       mapLayout
	layout     mapLayout // of to
	key, value converter
}

func newTableCopy(from mapLayout, spec *ebpf.MapSpec, to *ebpf.Map) (*tableCopy, error) {
	layout, err := specLayout(spec)
	if err != nil {
		return nil, err
	}
	c := &tableCopy{to: to, from: from, layout: layout, key: newConverter(from.key, layout.key)}
	value := layout.value
	if slices.Contains(learnedTables(), spec.Name) {
		value = value.without("number") // of a record in `learned_queue`, which is new
	}
	c.value = newConverter(from.value, value)
	return c, nil
}

// put copies an entry. It skips an entry whose key does not exist in the other
// layout, and an entry that does not fit into a full table.
func (c *tableCopy) put(key, value []byte) error {
	key, whole := c.key.convert(key)
	if !whole {
		return nil
	}
	var err error
	if c.layout.kind == ebpf.PerCPUArray {
		perCPU := c.from.perCPU(value)
		for i := range perCPU {
			perCPU[i], _ = c.value.convert(perCPU[i])
		}
		err = c.to.Put(key, perCPU)
	} else {
		value, _ = c.value.convert(value)
		err = c.to.Update(key, value, ebpf.UpdateAny)
	}
	if errors.Is(err, unix.E2BIG) {
		return nil
	}
	return err
}

// perCPU returns the values of an entry: one per CPU, or one.
func (m mapLayout) perCPU(value []byte) [][]byte {
	if m.kind != ebpf.PerCPUArray {
		return [][]byte{value}
	}
	const aligned = 8
	return slices.Collect(func(yield func([]byte) bool) {
		for chunk := range slices.Chunk(value, int(m.value.size+aligned-1)/aligned*aligned) {
			if !yield(chunk[:m.value.size]) {
				return
			}
		}
	})
}

func isZero(bytes []byte) bool {
	return !slices.ContainsFunc(bytes, func(b byte) bool { return b != 0 })
}

// MigrationPending reports whether there are old tables for FinishMigration.
func (o *Objects) MigrationPending() (bool, error) {
	tables, err := o.oldTables()
	if err != nil {
		return false, fmt.Errorf("open the tables of the previous version: %w", err)
	}
	closeOldTables(tables)
	return len(tables) > 0, nil
}

// CarryFlows opens the flows of the old tables in the new ones.
func (o *Objects) CarryFlows() error {
	_, err := o.migrate(false)
	return err
}

// FinishMigration copies the changes that the old programs have made in the old
// tables, and removes these tables. Call it when the old programs are replaced
// on all devices. It returns the number of flows that did not fit into the new
// tables.
func (o *Objects) FinishMigration() (lost int, err error) { return o.migrate(true) }

func (o *Objects) migrate(finish bool) (lost int, err error) {
	tables, err := o.oldTables()
	if err != nil {
		return 0, fmt.Errorf("open the tables of the previous version: %w", err)
	}
	defer closeOldTables(tables)
	if lost, err = o.restoreFlows(tables, finish); err != nil {
		return 0, fmt.Errorf("restore the flows of the previous version: %w", err)
	}
	if !finish {
		return lost, nil
	}
	for _, t := range tables {
		if t.table != nil {
			if err := o.finishTable(t); err != nil {
				return lost, fmt.Errorf("copy table %s of the previous version: %w", t.name, err)
			}
		}
		if err := os.RemoveAll(t.directory); err != nil {
			return lost, fmt.Errorf("remove the tables of the previous version: %w", err)
		}
	}
	if err := removeOld(o.dir); err != nil {
		return lost, fmt.Errorf("remove the tables of the previous version: %w", err)
	}
	return lost, nil
}

func (o *Objects) finishTable(t *oldTable) error {
	switch t.name {
	case bpf.EbpnetMapLearnedFdb:
		return o.addLearned(t, o.Maps.LearnedFdb)
	case bpf.EbpnetMapLearnedNeigh:
		return o.addLearned(t, o.Maps.LearnedNeigh)
	}
	if number, ok := countTables()[t.name]; ok && t.copied != nil {
		return o.addCounts(t, number)
	}
	return nil
}

// addLearned adds the stations that the old programs have learned since the
// first copy.
func (o *Objects) addLearned(t *oldTable, to *ebpf.Map) error {
	c, err := newTableCopy(t.layout, o.spec.Maps[t.name], to)
	if err != nil {
		return err
	}
	added := false
	err = eachEntry(t.table, func(key, value []byte) error {
		key, _ = c.key.convert(key)
		value, _ = c.value.convert(value)
		err := to.Update(key, value, ebpf.UpdateNoExist)
		if errors.Is(err, ebpf.ErrKeyExist) || errors.Is(err, unix.E2BIG) {
			return nil
		}
		added = added || err == nil
		return err
	})
	if err != nil || !added {
		return err
	}
	return o.startSweep() // it makes their records
}
