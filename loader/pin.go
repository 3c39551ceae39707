package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// What the pin directory holds. bpffs reserves names with dots.
const (
	mapsDirectory     = "maps"
	programsDirectory = "programs"
	linksDirectory    = "links"
	formerDirectory   = "former" // only during a change of size; see resize.go
	freshSuffix       = "-new"   // of a directory that is about to take another's place
)

func makeDirectories(dir string) error {
	for _, sub := range []string{mapsDirectory, programsDirectory, linksDirectory} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return fmt.Errorf("make the pin directory: %w", err)
		}
	}
	return nil
}

// clearLeftovers removes what was about to take the place of maps or programs
// when a Load was interrupted.
func clearLeftovers(dir string) error {
	err := errors.Join(
		os.RemoveAll(filepath.Join(dir, mapsDirectory+freshSuffix)),
		os.RemoveAll(filepath.Join(dir, programsDirectory+freshSuffix)),
		clearFormer(dir),
	)
	if err != nil {
		return fmt.Errorf("remove what an interrupted load left: %w", err)
	}
	return nil
}

// openMaps opens the pinned maps. Those that are missing are left out, or give
// ErrNotLoaded if all are wanted.
func openMaps(dir string, spec *ebpf.CollectionSpec, all bool) (_ map[string]*ebpf.Map, err error) {
	maps := make(map[string]*ebpf.Map, len(spec.Maps))
	defer func() {
		if err != nil {
			closeMaps(maps)
		}
	}()
	for name, want := range spec.Maps {
		if isSection(name) {
			continue
		}
		m, err := ebpf.LoadPinnedMap(filepath.Join(dir, mapsDirectory, name), nil)
		switch {
		case errors.Is(err, os.ErrNotExist) && all:
			return nil, ErrNotLoaded
		case errors.Is(err, os.ErrNotExist):
			continue
		case err != nil:
			return nil, fmt.Errorf("open map %s: %w", name, err)
		}
		maps[name] = m
		if slices.Contains(flowTables(), name) {
			want = want.Copy()
			want.MaxEntries = m.MaxEntries()
		}
		if err := want.Compatible(m); err != nil {
			return nil, fmt.Errorf("%s is %w (table %s): run 'ebpnet unload', then 'ebpnet load'; "+
				"what is wanted stays in the store", dir, ErrOtherVersion, name)
		}
	}
	return maps, nil
}

func closeMaps(maps map[string]*ebpf.Map) {
	for _, m := range maps {
		m.Close()
	}
}

// isSection tells whether a map is a section of constants, which belongs to
// the programs that it was loaded with.
func isSection(name string) bool { return strings.HasPrefix(name, ".") }

// openPrograms opens the pinned programs; ErrNotLoaded if one is missing.
func openPrograms(dir string, spec *ebpf.CollectionSpec) (_ map[string]*ebpf.Program, err error) {
	programs := make(map[string]*ebpf.Program, len(spec.Programs))
	defer func() {
		if err != nil {
			for _, p := range programs {
				p.Close()
			}
		}
	}()
	for name := range spec.Programs {
		program, err := ebpf.LoadPinnedProgram(filepath.Join(dir, programsDirectory, name), nil)
		if errors.Is(err, os.ErrNotExist) {
			return nil, ErrNotLoaded
		}
		if err != nil {
			return nil, fmt.Errorf("open program %s: %w", name, err)
		}
		programs[name] = program
	}
	return programs, nil
}

// pinMaps pins all maps, if there are others than before.
func (u *upgrade) pinMaps() error {
	fresh := map[string]pinner{}
	all := true
	for name := range u.spec.Maps {
		if isSection(name) {
			continue
		}
		all = all && u.kept[name] != nil
		fresh[name] = u.maps[name]
	}
	if all {
		return nil
	}
	return replacePins(filepath.Join(u.dir, mapsDirectory), fresh)
}

func (u *upgrade) pinPrograms() error {
	fresh := map[string]pinner{}
	for name, p := range u.programs {
		fresh[name] = p
	}
	return replacePins(filepath.Join(u.dir, programsDirectory), fresh)
}

type pinner interface{ Pin(path string) error }

// replacePins makes a directory hold just these, all at one moment (Linux
// 5.16): whoever comes later finds either what was there or what is to be.
func replacePins(directory string, pins map[string]pinner) error {
	fresh := directory + freshSuffix
	if err := os.Mkdir(fresh, 0o700); err != nil {
		return fmt.Errorf("make the pin directory: %w", err)
	}
	for name, p := range pins {
		if err := p.Pin(filepath.Join(fresh, name)); err != nil {
			return fmt.Errorf("pin %s: %w", name, err)
		}
	}
	if err := unix.Renameat2(unix.AT_FDCWD, fresh, unix.AT_FDCWD, directory, unix.RENAME_EXCHANGE); err != nil {
		return fmt.Errorf("replace what is pinned under %s: %w", directory, err)
	}
	if err := os.RemoveAll(fresh); err != nil {
		return fmt.Errorf("remove the pins of before: %w", err)
	}
	return nil
}
