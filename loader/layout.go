package loader

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// A layout gives the places of the named numbers in a key or a value of a map.
// Two versions need only the same names: offsets, sizes, the order of fields
// and the values of an enum may differ.

// leaf is one number of a key or a value.
type leaf struct {
	name   string // the path to it, for example "sent[0].packets"
	offset uint32
	size   uint32
	signed bool
	values map[string]uint64 // of an enum, by name
}

// layout is the layout of a key or of a value.
type layout struct {
	size   uint32
	leaves []leaf
}

var errNoLayout = errors.New("its layout is not known")

// layoutOf reads a layout from BTF, without padding, locks and timers. former
// are the present names for those of older versions: see formerNames.
func layoutOf(t btf.Type, former map[string]string) (layout, error) {
	if t == nil {
		return layout{}, errNoLayout
	}
	size, err := btf.Sizeof(t)
	if err != nil {
		return layout{}, fmt.Errorf("%w: %w", errNoLayout, err)
	}
	l := layout{size: uint32(size)}
	err = l.add("", 0, t, former)
	return l, err
}

func (l *layout) add(name string, offset uint32, t btf.Type, former map[string]string) error {
	switch t := btf.UnderlyingType(t).(type) {
	case *btf.Int:
		l.leaves = append(l.leaves, leaf{name: name, offset: offset, size: t.Size, signed: t.Encoding == btf.Signed})
	case *btf.Enum:
		values := make(map[string]uint64, len(t.Values))
		for _, v := range t.Values {
			values[nameNow(former, t.Name, v.Name)] = v.Value
		}
		l.leaves = append(l.leaves, leaf{name: name, offset: offset, size: t.Size, signed: t.Signed, values: values})
	case *btf.Array:
		size, err := btf.Sizeof(t.Type)
		if err != nil {
			return fmt.Errorf("%w: %w", errNoLayout, err)
		}
		for i := range t.Nelems {
			if err := l.add(name+"["+strconv.FormatUint(uint64(i), 10)+"]", offset+i*uint32(size), t.Type, former); err != nil {
				return err
			}
		}
	case *btf.Struct:
		return l.addMembers(name, offset, t, former)
	default:
		return fmt.Errorf("%w: %s is %v", errNoLayout, name, t)
	}
	return nil
}

func (l *layout) addMembers(name string, offset uint32, t *btf.Struct, former map[string]string) error {
	if t.Name == "bpf_timer" || t.Name == "bpf_spin_lock" {
		return nil // the kernel's own
	}
	if name != "" {
		name += "."
	}
	for _, m := range t.Members {
		if m.BitfieldSize != 0 {
			return fmt.Errorf("%w: %s%s is a bit field", errNoLayout, name, m.Name)
		}
		if m.Name == padding {
			continue
		}
		path := name + nameNow(former, t.Name, m.Name)
		if err := l.add(path, offset+m.Offset.Bytes(), m.Type, former); err != nil {
			return err
		}
	}
	return nil
}

// padding is the name of all padding.
const padding = "pad"

// find returns a leaf by its name.
func (l layout) find(name string) (leaf, bool) {
	i := slices.IndexFunc(l.leaves, func(f leaf) bool { return f.name == name })
	if i < 0 {
		return leaf{}, false
	}
	return l.leaves[i], true
}

// must returns a leaf by its name. It is an error if there is none.
func (l layout) must(name string) (leaf, error) {
	f, ok := l.find(name)
	if !ok {
		return f, fmt.Errorf("%w: it has no %s", errNoLayout, name)
	}
	return f, nil
}

// start returns the offset of the first number whose name has this prefix.
func (l layout) start(prefix string) uint32 {
	first := l.size
	for _, f := range l.leaves {
		if strings.HasPrefix(f.name, prefix) {
			first = min(first, f.offset)
		}
	}
	return first
}

// without returns the layout without a number.
func (l layout) without(name string) layout {
	l.leaves = slices.DeleteFunc(slices.Clone(l.leaves), func(f leaf) bool { return f.name == name })
	return l
}

// mapLayout is the layout of a map. Two versions can use the same map if their
// mapLayouts are equal.
type mapLayout struct {
	kind       ebpf.MapType
	entries    uint32
	flags      uint32
	key, value layout
	types      [2]btf.Type // of key and value
}

// String returns the whole layout as text. Equal texts mean equal layouts.
func (m mapLayout) String() string {
	var s strings.Builder
	fmt.Fprintf(&s, "%s %d %#x", m.kind, m.entries, m.flags)
	for _, l := range []layout{m.key, m.value} {
		fmt.Fprintf(&s, "\n%d", l.size)
		for _, f := range l.leaves {
			fmt.Fprintf(&s, "\n%s %d %d %v", f.name, f.offset, f.size, f.signed)
			for _, name := range slices.Sorted(maps.Keys(f.values)) {
				fmt.Fprintf(&s, " %s=%d", name, f.values[name])
			}
		}
	}
	return s.String()
}

// specLayout reads the layout of a map from its spec.
func specLayout(spec *ebpf.MapSpec) (mapLayout, error) {
	m := mapLayout{kind: spec.Type, entries: spec.MaxEntries, flags: spec.Flags, types: [2]btf.Type{spec.Key, spec.Value}}
	return m, m.read(spec.KeySize, spec.ValueSize, nil)
}

// read fills in the layouts of key and value from their types. The key of a
// queue has size zero.
func (m *mapLayout) read(keySize, valueSize uint32, former map[string]string) (err error) {
	keyType := m.types[0]
	if described := describedKey(m.types[1]); described != nil {
		keyType = described
	}
	if keySize > 0 {
		if m.key, err = layoutOf(keyType, former); err != nil {
			return err
		}
	}
	if m.value, err = layoutOf(m.types[1], former); err != nil {
		return err
	}
	if m.key.size != keySize || m.value.size != valueSize {
		return errNoLayout
	}
	return nil
}

// describeKey changes the BTF of an array whose key is an enum, because the
// kernel refuses such BTF. The key's type becomes the type of an empty array
// behind the value.
func describeKey(m *ebpf.MapSpec) {
	key, ok := m.Key.(*btf.Enum)
	value, ok2 := m.Value.(*btf.Struct)
	if !ok || !ok2 || describedKey(value) != nil {
		return
	}
	index := &btf.Int{Name: "unsigned int", Size: key.Size}
	described := *value
	described.Members = append(slices.Clone(value.Members), btf.Member{
		Name: keyMember, Type: &btf.Array{Index: index, Type: key}, Offset: btf.Bits(value.Size * 8),
	})
	m.Key, m.Value = index, &described
}

// keyMember is the name of the member that describes the key.
const keyMember = "key"

func describedKey(value btf.Type) btf.Type {
	s, ok := value.(*btf.Struct)
	if !ok || len(s.Members) == 0 {
		return nil
	}
	last := s.Members[len(s.Members)-1]
	if a, ok := last.Type.(*btf.Array); ok && last.Name == keyMember && a.Nelems == 0 {
		return a.Type
	}
	return nil
}

// layoutVersion is a name for the layouts of all pinned maps together. It does
// not depend on the number of flows.
func layoutVersion(spec *ebpf.CollectionSpec) string {
	sum := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(spec.Maps)) {
		if isPinned(name) {
			addLayout(sum, name, spec.Maps[name])
		}
	}
	return fmt.Sprintf("%x", sum.Sum(nil)[:8])
}

func addLayout(sum hash.Hash, name string, spec *ebpf.MapSpec) {
	m, err := specLayout(spec)
	if slices.Contains(flowTables(), name) {
		m.entries = 0
	}
	fmt.Fprintln(sum, name, m, err)
}
