package loader

import (
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/ebpnet/ebpnet/bpf"
)

var (
	u8  = &btf.Int{Name: "unsigned char", Size: 1}
	u32 = &btf.Int{Name: "unsigned int", Size: 4}
	u64 = &btf.Int{Name: "unsigned long long", Size: 8}
	s32 = &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}
)

// structOf makes a struct of fields in a row, without gaps.
func structOf(name string, fields ...btf.Member) *btf.Struct {
	s := &btf.Struct{Name: name}
	for _, f := range fields {
		size, err := btf.Sizeof(f.Type)
		if err != nil {
			panic(err)
		}
		f.Offset = btf.Bits(8 * s.Size)
		s.Members, s.Size = append(s.Members, f), s.Size+uint32(size)
	}
	return s
}

func enumOf(name string, values ...string) *btf.Enum {
	e := &btf.Enum{Name: name, Size: 4}
	for i, v := range values {
		e.Values = append(e.Values, btf.EnumValue{Name: v, Value: uint64(i)})
	}
	return e
}

func flagsOf(name string, values ...string) *btf.Enum {
	e := &btf.Enum{Name: name, Size: 4}
	for i, v := range values {
		e.Values = append(e.Values, btf.EnumValue{Name: v, Value: 1 << i})
	}
	return e
}

func mustLayout(t testing.TB, of btf.Type, former map[string]string) layout {
	t.Helper()
	l, err := layoutOf(of, former)
	must(t, err)
	return l
}

func TestConvert(t *testing.T) {
	t.Parallel()
	inner := structOf("counter", btf.Member{Name: "packets", Type: u64}, btf.Member{Name: "bytes", Type: u64})
	older := structOf("record",
		btf.Member{Name: "opener", Type: u32},
		btf.Member{Name: "state", Type: enumOf("state", "FREE", "OPEN", "ESTABLISHED", "GONE")},
		btf.Member{Name: "flags", Type: flagsOf("flags", "FIN", "RST", "SEEN")},
		btf.Member{Name: "small", Type: u8},
		btf.Member{Name: padding, Type: &btf.Array{Index: u32, Type: u8, Nelems: 3}},
		btf.Member{Name: "sent", Type: &btf.Array{Index: u32, Type: inner, Nelems: 2}},
		btf.Member{Name: "offset", Type: s32},
		btf.Member{Name: "forgotten", Type: u32},
	)
	newer := structOf("record",
		btf.Member{Name: "owner", Type: u64},
		btf.Member{Name: "sent", Type: &btf.Array{Index: u32, Type: structOf("counter",
			btf.Member{Name: "bytes", Type: u64}, btf.Member{Name: "packets", Type: u64}), Nelems: 2}},
		btf.Member{Name: "small", Type: u64},
		btf.Member{Name: "offset", Type: &btf.Int{Name: "long", Size: 8, Encoding: btf.Signed}},
		btf.Member{Name: "flags", Type: flagsOf("flags", "SEEN", "FIN", "RST")},
		btf.Member{Name: "state", Type: enumOf("state", "FREE", "ESTABLISHED", "CLOSING", "OPEN")},
		btf.Member{Name: "original", Type: u32},
	)
	former := map[string]string{"record.opener": "original"}
	from, to := mustLayout(t, older, former), mustLayout(t, newer, former)

	record := func(state, flags uint32) []byte {
		r := binary.LittleEndian.AppendUint32(nil, 7)
		r = binary.LittleEndian.AppendUint32(r, state)
		r = binary.LittleEndian.AppendUint32(r, flags)
		r = append(r, 200, 0, 0, 0)
		for _, n := range []uint64{1, 10, 2, 20} {
			r = binary.LittleEndian.AppendUint64(r, n)
		}
		r = binary.LittleEndian.AppendUint32(r, 0xfffffffb) // -5
		return binary.LittleEndian.AppendUint32(r, 0)
	}
	original := record(2, 1|4)
	got, whole := newConverter(from, to).convert(original)
	if !whole {
		t.Error("the copy is not whole")
	}
	for name, want := range map[string]uint64{
		"original": 7, "owner": 0, "state": 1, "flags": 2 | 1, "small": 200, "offset": ^uint64(4),
		"sent[0].packets": 1, "sent[0].bytes": 10, "sent[1].packets": 2, "sent[1].bytes": 20,
	} {
		l, err := to.must(name)
		must(t, err)
		if n := l.read(got); n != want {
			t.Errorf("%s is %d, want %d", name, n, want)
		}
	}
	back, whole := newConverter(to, from).convert(got)
	if !whole || !slices.Equal(back, original) {
		t.Errorf("back it is %x, whole %v, want %x", back, whole, original)
	}

	if _, whole := newConverter(from, to).convert(record(3, 0)); whole {
		t.Error("a state without a name in the other layout was copied")
	}
	large, err := to.must("small")
	must(t, err)
	large.write(got, 300)
	back, whole = newConverter(to, from).convert(got)
	small, err := from.must("small")
	must(t, err)
	if n := small.read(back); whole || n != 255 {
		t.Errorf("300 in a byte is %d, whole %v; want 255 and not whole", n, whole)
	}
}

// Each change of what a number means is a change of the layout, also if no size
// and no offset changes.
func TestLayoutVersion(t *testing.T) {
	t.Parallel()
	spec := func() *ebpf.CollectionSpec {
		s, err := bpf.LoadEbpnet()
		must(t, err)
		return s
	}
	as := layoutVersion(spec())
	for what, change := range map[string]func(s *ebpf.CollectionSpec){
		"two values of an enum change places": func(s *ebpf.CollectionSpec) {
			reasons := s.Maps[bpf.EbpnetMapDrops].Key.(*btf.Enum)
			reasons.Values[3].Name, reasons.Values[4].Name = reasons.Values[4].Name, reasons.Values[3].Name
		},
		"an enum has one more value": func(s *ebpf.CollectionSpec) {
			reasons := s.Maps[bpf.EbpnetMapDrops].Key.(*btf.Enum)
			reasons.Values = append(reasons.Values, btf.EnumValue{Name: "REASON_NEW", Value: 63})
		},
		"two fields of one size change places": func(s *ebpf.CollectionSpec) {
			members := s.Maps[bpf.EbpnetMapFlows].Value.(*btf.Struct).Members
			i := slices.IndexFunc(members, func(m btf.Member) bool { return m.Name == "uplink" })
			members[i].Name, members[i+1].Name = members[i+1].Name, members[i].Name
		},
		"a table is larger":       func(s *ebpf.CollectionSpec) { s.Maps[bpf.EbpnetMapFdb].MaxEntries *= 2 },
		"a table has other flags": func(s *ebpf.CollectionSpec) { s.Maps[bpf.EbpnetMapFdb].Flags = 0 },
	} {
		changed := spec()
		change(changed)
		if layoutVersion(changed) == as {
			t.Errorf("%s, and the version is the same", what)
		}
	}
	same := spec()
	sizeFlows(same, manyFlows)
	same.Maps[bpf.EbpnetMapWays].MaxEntries = 1
	for _, m := range same.Maps {
		describeKey(m)
	}
	if layoutVersion(same) != as {
		t.Error("the number of flows, a scratch map or a described key changes the version")
	}
}

// The layout of every pinned map can be read, from the program and from the
// kernel.
func TestEveryLayoutIsKnown(t *testing.T) {
	t.Parallel()
	o := mustLoad(t, pinDirectory(t))
	for name, spec := range o.spec.Maps {
		if !isPinned(name) {
			continue
		}
		want, err := specLayout(spec)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		pinned, err := openFormer(o.dir, name)
		must(t, err)
		if got, err := tableLayout(pinned, spec, o.dir); err != nil && !slices.Contains([]string{
			bpf.EbpnetMapLearnedQueue, // made again with the stations
			bpf.EbpnetMapPortSources,  // before Linux 6.3; configuration
		}, name) {
			t.Errorf("%s: %v", name, err)
		} else if err == nil && got.String() != want.String() {
			t.Errorf("the kernel says of %s:\n%s\nwant:\n%s", name, got, want)
		}
		must(t, pinned.Close())
	}
	if text := o.spec.Maps[bpf.EbpnetMapDrops]; !strings.Contains(text.Value.(*btf.Struct).Members[2].Name, keyMember) {
		t.Error("the reasons are not in the type of their counts")
	}
}
