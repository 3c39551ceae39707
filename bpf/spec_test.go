package bpf

import (
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// maxName is the length of the names that the kernel keeps of its objects:
// BPF_OBJ_NAME_LEN of include/uapi/linux/bpf.h, without its end.
const maxName = 15

// maxReasons is MAX_REASONS of types_common.h: a new reason within it leaves the
// maps of a loaded host as they are.
const maxReasons = 64

func loadSpec(t *testing.T) *ebpf.CollectionSpec {
	t.Helper()
	spec, err := LoadEbpnet()
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

func loadXDPSpec(t *testing.T) *ebpf.CollectionSpec {
	t.Helper()
	spec, err := LoadXdp()
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

// TestXDPHasTheSameMaps: its program is loaded with the maps of the others, and
// the constants.
func TestXDPHasTheSameMaps(t *testing.T) {
	t.Parallel()
	spec, xdp := loadSpec(t), loadXDPSpec(t)
	for name, m := range xdp.Maps {
		if strings.HasPrefix(name, ".") {
			continue // of the object's own constants
		}
		same := spec.Maps[name]
		if same == nil {
			t.Errorf("map %s is none of the others'", name)
			continue
		}
		if m.Type != same.Type || m.KeySize != same.KeySize || m.ValueSize != same.ValueSize ||
			m.MaxEntries != same.MaxEntries || m.Flags != same.Flags {
			t.Errorf("map %s is %v, of the others %v", name, m, same)
		}
	}
	for name := range xdp.Variables {
		if spec.Variables[name] == nil {
			t.Errorf("constant %s is none of the others'", name)
		}
	}
}

func TestNamesAreNotCut(t *testing.T) {
	t.Parallel()
	spec := loadSpec(t)
	for name := range spec.Maps {
		if len(name) > maxName && !strings.HasPrefix(name, ".") {
			t.Errorf("map %s: the kernel keeps %s", name, name[:maxName])
		}
	}
	for _, spec := range []*ebpf.CollectionSpec{spec, loadXDPSpec(t)} {
		for name := range spec.Programs {
			if len(name) > maxName {
				t.Errorf("program %s: the kernel keeps %s", name, name[:maxName])
			}
		}
	}
}

// TestLicense holds the license that helpers ask for.
func TestLicense(t *testing.T) {
	t.Parallel()
	for kind, spec := range map[ebpf.ProgramType]*ebpf.CollectionSpec{ebpf.SchedCLS: loadSpec(t), ebpf.XDP: loadXDPSpec(t)} {
		for name, p := range spec.Programs {
			if p.License != "Dual BSD/GPL" {
				t.Errorf("program %s has license %q", name, p.License)
			}
			if p.Type != kind {
				t.Errorf("program %s is of type %s, want %s", name, p.Type, kind)
			}
		}
	}
}

// TestEveryReasonHasAValue holds enum reason: counted from 0 without gaps, as
// it indexes a table of MAX_REASONS entries, with room for reasons to come.
func TestEveryReasonHasAValue(t *testing.T) {
	t.Parallel()
	spec := loadSpec(t)
	var enum *btf.Enum
	if err := spec.Types.TypeByName("reason", &enum); err != nil {
		t.Fatal(err)
	}
	for i, v := range enum.Values {
		if v.Value != uint64(i) {
			t.Errorf("%s is %d, want %d", v.Name, v.Value, i)
		}
	}
	if room, last := spec.Maps[EbpnetMapDrops].MaxEntries, len(enum.Values)-1; int(room) != maxReasons || last > maxReasons {
		t.Errorf("room for %d reasons, want %d; there are %d", room, maxReasons, last)
	}
}

// TestConstantsAreNotWritten: what the loader sets must be frozen in .rodata.
func TestConstantsAreNotWritten(t *testing.T) {
	t.Parallel()
	for _, spec := range []*ebpf.CollectionSpec{loadSpec(t), loadXDPSpec(t)} {
		for name, v := range spec.Variables {
			if !v.Constant() {
				t.Errorf("%s is no constant", name)
			}
		}
		for name := range spec.Maps {
			if name == ".data" || name == ".bss" {
				t.Errorf("the programs have writable globals: %s", name)
			}
		}
	}
}
