package loader

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/ebpnet/ebpnet/bpf"
)

func TestLoadKeepsWhatTheMapsHold(t *testing.T) {
	t.Parallel()
	dir := pinDirectory(t)
	first := mustLoad(t, dir)
	key := bpf.EbpnetLinkKey{Client: 1, Server: 2}
	must(t, first.Maps.Links.Put(key, uint32(7)))
	pins := listPins(t, dir)

	second := mustLoad(t, dir)
	var value uint32
	if err := second.Maps.Links.Lookup(key, &value); err != nil || value != 7 {
		t.Errorf("after an upgrade the entry is %d, %v; want 7", value, err)
	}
	if !slices.Equal(listPins(t, dir), pins) {
		t.Errorf("pins changed from %v to %v", pins, listPins(t, dir))
	}
	opened, err := Open(dir)
	must(t, err)
	defer func() { must(t, opened.Close()) }()
	for _, h := range []Hook{FromEndpoint, FromHost, FromUplink, FromLoopback, ToGateway, ToTunnel, ToUplink} {
		older, newer, pinned := programID(t, first.program(h)), programID(t, second.program(h)), programID(t, opened.program(h))
		if older == newer || newer != pinned {
			t.Errorf("%s: was %d, loaded %d, pinned %d; want the pin to be the new one", h, older, newer, pinned)
		}
	}
	if err := opened.Maps.Links.Lookup(key, &value); err != nil || value != 7 {
		t.Errorf("opened: the entry is %d, %v; want 7", value, err)
	}
}

func TestOpenBeforeLoad(t *testing.T) {
	t.Parallel()
	dir := pinDirectory(t)
	notLoaded := func(what string) {
		t.Helper()
		o, err := Open(dir)
		if !errors.Is(err, ErrNotLoaded) {
			t.Errorf("%s: %v, want ErrNotLoaded", what, err)
		}
		if err == nil {
			must(t, o.Close())
		}
	}
	notLoaded("no directory")
	must(t, os.Mkdir(dir, 0o700))
	notLoaded("empty directory")
	mustLoad(t, dir)
	must(t, os.Remove(filepath.Join(dir, programsDirectory, FromHost.name)))
	notLoaded("a program missing")
	mustLoad(t, dir)
	must(t, os.Remove(filepath.Join(dir, mapsDirectory, bpf.EbpnetMapFdb)))
	notLoaded("a map missing")
	mustLoad(t, dir)
	must(t, os.RemoveAll(filepath.Join(dir, linksDirectory)))
	notLoaded("no links")
	mustLoad(t, dir)
	o, err := Open(dir)
	must(t, err)
	must(t, o.Close())
}

// A table whose layout says nothing is configuration at most: Load makes it
// again, and refuses nothing.
func TestUnknownLayout(t *testing.T) {
	t.Parallel()
	dir := pinDirectory(t)
	must(t, os.MkdirAll(filepath.Join(dir, mapsDirectory), 0o700))
	other, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	must(t, err)
	defer func() { must(t, other.Close()) }()
	must(t, other.Put(uint32(1), uint32(2)))
	must(t, other.Pin(filepath.Join(dir, mapsDirectory, bpf.EbpnetMapLinks)))
	must(t, os.MkdirAll(filepath.Join(dir, programsDirectory, "some"), 0o700))
	if o, err := Open(dir); !errors.Is(err, ErrOtherVersion) {
		if err == nil {
			must(t, o.Close())
		}
		t.Fatalf("%v, want ErrOtherVersion", err)
	} else if !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "'ebpnet load'") ||
		strings.Contains(err.Error(), "\n") {
		t.Errorf("%q, want one line that names %s and the command", err, dir)
	}
	o := mustLoad(t, dir)
	var value uint32
	if err := o.Maps.Links.Lookup(bpf.EbpnetLinkKey{Client: 1}, &value); !errors.Is(err, ebpf.ErrKeyNotExist) {
		t.Errorf("an entry of the unknown table is %d, %v", value, err)
	}
	if err := other.Lookup(uint32(1), &value); err != nil || value != 2 {
		t.Errorf("the other version's entry is %d, %v", value, err)
	}
}

// Only the arrangement of the pins can be too new.
func TestUnknownFormat(t *testing.T) {
	t.Parallel()
	dir := pinDirectory(t)
	o, err := Load(dir, Config{GatewayIfindex: 1, Version: "v1.2.3"})
	must(t, err)
	must(t, o.Close())
	pins := listPins(t, dir)
	made := filepath.Join(dir, formatDirectory, "1-v1_2_3")
	if _, err := os.Stat(made); err != nil {
		t.Errorf("the format is not noted: %v", err)
	}
	must(t, os.Remove(made))
	must(t, os.Mkdir(filepath.Join(dir, formatDirectory, "2-v3_0_1"), 0o700))
	_, loading := Load(dir, Config{})
	_, opening := Open(dir)
	for _, err := range []error{loading, opening} {
		if !errors.Is(err, ErrFormat) {
			t.Fatalf("%v, want ErrFormat", err)
		}
		for _, want := range []string{dir, "format 2", "ebpnet v3.0.1"} {
			if !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%q, want one line that names %s", err, want)
			}
		}
	}
	if now := listPins(t, dir); !slices.Equal(now, pins) {
		t.Errorf("pins changed from %v to %v", pins, now)
	}
	must(t, Unload(dir))
	mustLoad(t, dir)
}

// Scratch is of one version, and pinned nowhere.
func TestScratchIsNotPinned(t *testing.T) {
	t.Parallel()
	dir := pinDirectory(t)
	first := mustLoad(t, dir)
	second := mustLoad(t, dir)
	for _, name := range []string{bpf.EbpnetMapScratches, bpf.EbpnetMapWays} {
		if _, err := os.Stat(filepath.Join(dir, mapsDirectory, name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is pinned: %v", name, err)
		}
	}
	if idOf(t, first.Maps.Scratches) == idOf(t, second.Maps.Scratches) {
		t.Error("two loads share their scratch")
	}
	opened, err := Open(dir)
	must(t, err)
	defer func() { must(t, opened.Close()) }()
	if idOf(t, opened.Maps.Scratches) != idOf(t, second.Maps.Scratches) || idOf(t, opened.Maps.Ways) != idOf(t, second.Maps.Ways) {
		t.Error("Open does not find the scratch of the programs that are pinned")
	}
}

func TestLoadAfterAnInterruptedOne(t *testing.T) {
	t.Parallel()
	dir := pinDirectory(t)
	o := mustLoad(t, dir)
	pins := listPins(t, dir)
	// As a load leaves it that is killed between pinning and renaming, when
	// some programs and maps were not pinned yet.
	twin, err := o.Programs.FromHost.Clone()
	must(t, err)
	must(t, twin.Pin(filepath.Join(dir, programsDirectory, FromHost.name+"-new")))
	must(t, twin.Close())
	must(t, os.Remove(filepath.Join(dir, programsDirectory, ToUplink.name)))
	must(t, os.Remove(filepath.Join(dir, mapsDirectory, bpf.EbpnetMapUplinkBuckets)))
	mustLoad(t, dir)
	if now := listPins(t, dir); !slices.Equal(now, pins) {
		t.Errorf("pins are %v, want %v", now, pins)
	}
}

func TestLoadFailsWithoutBPFFS(t *testing.T) {
	t.Parallel()
	pinDirectory(t) // for root
	dir := t.TempDir()
	o, err := Load(dir, Config{})
	if err == nil {
		must(t, o.Close())
		t.Fatal("pinned outside of a bpffs")
	}
}

func TestUnload(t *testing.T) {
	t.Parallel()
	dir := pinDirectory(t)
	w := newWire(t)
	o := mustLoad(t, dir)
	w.Do(func() {
		must(t, o.Attach(FromUplink, w.ifindex))
		must(t, o.attachClsact(FromEndpoint, w.ifindex))
		must(t, o.Attach(ToUplink, w.ifindex))
		must(t, o.Attach(ToTunnel, w.ifindex))
	})
	if len(w.attached(t)) != 3 || len(w.filters(t)) != 1 {
		t.Fatalf("attached %v and %v", w.attached(t), w.filters(t))
	}
	w.Do(func() { must(t, Unload(dir)) })
	if left := w.filters(t); len(left) != 0 {
		t.Errorf("filters left: %v", left)
	}
	w.awaitAttached(t, 0)
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the pin directory: %v, want it gone", err)
	}
	w.Do(func() { must(t, Unload(dir)) })
}

func TestMountBPFFS(t *testing.T) {
	t.Parallel()
	pinDirectory(t) // for root, and the mount
	for _, dir := range []string{bpffsRoot, bpffsRoot + "/a", bpffsRoot + "/a/b/c"} {
		if err := MountBPFFS(dir); err != nil {
			t.Errorf("%s: %v", dir, err)
		}
	}
	for _, dir := range []string{t.TempDir(), t.TempDir() + "/not/yet", "/sys/fs", bpffsRoot + "-not", "relative"} {
		err := MountBPFFS(dir)
		if err == nil {
			t.Errorf("%s is taken for a bpffs", dir)
			continue
		}
		if !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), bpffsRoot) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %q, want one line that names it and %s", dir, err, bpffsRoot)
		}
	}
}
