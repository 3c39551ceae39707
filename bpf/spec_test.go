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

// maxReasons is MAX_REASONS of types.h: a new reason within it leaves the
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

func TestNamesAreNotCut(t *testing.T) {
	t.Parallel()
	spec := loadSpec(t)
	for name := range spec.Maps {
		if len(name) > maxName && !strings.HasPrefix(name, ".") {
			t.Errorf("map %s: the kernel keeps %s", name, name[:maxName])
		}
	}
	for name := range spec.Programs {
		if len(name) > maxName {
			t.Errorf("program %s: the kernel keeps %s", name, name[:maxName])
		}
	}
}

// TestLicense holds the license that helpers ask for.
func TestLicense(t *testing.T) {
	t.Parallel()
	for name, p := range loadSpec(t).Programs {
		if p.License != "Dual BSD/GPL" {
			t.Errorf("program %s has license %q", name, p.License)
		}
		if p.Type != ebpf.SchedCLS {
			t.Errorf("program %s is of type %s", name, p.Type)
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
	spec := loadSpec(t)
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
