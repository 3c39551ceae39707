package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/bpf"
)

// What the pin directory holds. bpffs reserves names with dots.
const (
	mapsDirectory     = "maps"
	programsDirectory = "programs"
	linksDirectory    = "links"
	oldDirectory      = "old_tables" // only during a migration; see old_tables.go
	formerDirectory   = "former"     // what versions before format 1 called the old tables
	formatDirectory   = "format"     // see checkFormat
	layoutPrefix      = "layout-"    // of a directory beside the maps
	freshSuffix       = "-new"       // of a directory that is about to take another's place
)

// pinFormat is the number of the arrangement of the pin directory. A version
// that changes the arrangement raises the number. Versions before format 1
// stored no number.
const pinFormat = 1

// checkFormat returns ErrFormat if the pin directory has a later format. The
// format directory has one entry, N-VERSION.
func checkFormat(dir string) error {
	entries, err := os.ReadDir(filepath.Join(dir, formatDirectory))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the pin format: %w", err)
	}
	for _, e := range entries {
		number, version, _ := strings.Cut(e.Name(), "-")
		if n, err := strconv.Atoi(number); err != nil || n > pinFormat {
			return fmt.Errorf("%s: %w %s: it needs ebpnet %s, which made it, or a later version; this one knows format %d",
				dir, ErrFormat, number, strings.ReplaceAll(version, "_", "."), pinFormat)
		}
	}
	return nil
}

// formatName is the entry that this version makes. bpffs reserves names with
// dots.
func formatName(version string) string {
	return fmt.Sprintf("%d-%s", pinFormat, strings.ReplaceAll(version, ".", "_"))
}

func makeDirectories(dir, version string) error {
	format := filepath.Join(dir, formatDirectory)
	own := formatName(version)
	for _, sub := range []string{mapsDirectory, programsDirectory, linksDirectory, filepath.Join(formatDirectory, own)} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return fmt.Errorf("make the pin directory: %w", err)
		}
	}
	entries, err := os.ReadDir(format)
	if err != nil {
		return fmt.Errorf("read the pin format: %w", err)
	}
	for _, e := range entries {
		if e.Name() == own {
			continue
		}
		if err := os.Remove(filepath.Join(format, e.Name())); err != nil {
			return fmt.Errorf("write the pin format: %w", err)
		}
	}
	return nil
}

// hasLayouts reports whether all pinned maps have the layouts of these
// programs.
func hasLayouts(dir string, spec *ebpf.CollectionSpec) (bool, error) {
	_, err := os.Stat(filepath.Join(dir, mapsDirectory, layoutPrefix+layoutVersion(spec)))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// checkLayouts returns ErrOtherVersion if maps of other layouts are pinned.
func checkLayouts(dir string, spec *ebpf.CollectionSpec) error {
	same, err := hasLayouts(dir, spec)
	if err != nil || same {
		return err
	}
	for _, sub := range []string{mapsDirectory, programsDirectory} {
		entries, err := os.ReadDir(filepath.Join(dir, sub))
		if errors.Is(err, os.ErrNotExist) || err == nil && len(entries) == 0 {
			return ErrNotLoaded
		}
		if err != nil {
			return err
		}
	}
	return fmt.Errorf("%s is %w", dir, ErrOtherVersion)
}

// clearLeftovers removes the new pins of an interrupted Load.
func clearLeftovers(dir string) error {
	err := errors.Join(
		os.RemoveAll(filepath.Join(dir, mapsDirectory+freshSuffix)),
		os.RemoveAll(filepath.Join(dir, programsDirectory+freshSuffix)),
		adoptFormer(dir),
		clearOld(dir),
		clearFronts(dir),
	)
	if err != nil {
		return fmt.Errorf("remove what an interrupted load left: %w", err)
	}
	return nil
}

// openMaps opens the pinned maps; ErrNotLoaded if one is missing.
func openMaps(dir string, spec *ebpf.CollectionSpec) (_ map[string]*ebpf.Map, err error) {
	maps := make(map[string]*ebpf.Map, len(spec.Maps))
	defer func() {
		if err != nil {
			closeMaps(maps)
		}
	}()
	for name := range spec.Maps {
		if !isPinned(name) {
			continue
		}
		m, err := ebpf.LoadPinnedMap(filepath.Join(dir, mapsDirectory, name), nil)
		if errors.Is(err, os.ErrNotExist) {
			return nil, ErrNotLoaded
		}
		if err != nil {
			return nil, fmt.Errorf("open map %s: %w", name, err)
		}
		maps[name] = m
	}
	return maps, nil
}

func closeMaps(maps map[string]*ebpf.Map) {
	for _, m := range maps {
		m.Close()
	}
}

// CountDevices counts the endpoints' devices of the loaded datapath, also of
// one of another version. It returns zero if none is loaded.
func CountDevices(dir string) (n int, err error) {
	if err := checkFormat(dir); err != nil {
		return 0, err
	}
	devices, err := openFormer(dir, bpf.EbpnetMapDevices)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err == nil {
		err = errors.Join(eachEntry(devices, func(_, _ []byte) error { n++; return nil }), devices.Close())
	}
	if err != nil {
		return 0, fmt.Errorf("count the devices of %s: %w", dir, err)
	}
	return n, nil
}

// isSection reports whether a map is a section of constants. Such a map belongs
// to the programs with which it was loaded.
func isSection(name string) bool { return strings.HasPrefix(name, ".") }

// isScratch reports whether only the programs with which a map was loaded
// understand its content.
func isScratch(name string) bool {
	return name == bpf.EbpnetMapScratches || name == bpf.EbpnetMapWays
}

func isPinned(name string) bool { return !isSection(name) && !isScratch(name) }

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

// pinMaps pins all maps with the version of their layouts, unless all old maps
// are kept.
func (u *upgrade) pinMaps() error {
	fresh := map[string]pinner{}
	all, err := hasLayouts(u.dir, u.spec)
	if err != nil {
		return err
	}
	for name := range u.spec.Maps {
		if isPinned(name) {
			all = all && u.kept[name] != nil
			fresh[name] = u.maps[name]
		}
	}
	if all {
		return nil
	}
	fresh[layoutPrefix+layoutVersion(u.spec)] = mark{}
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

// mark is an empty directory with a meaningful name.
type mark struct{}

// Pin makes the directory.
func (mark) Pin(path string) error { return os.Mkdir(path, 0o700) }

// replacePins replaces all pins in a directory in one step (Linux 5.16):
// another process finds either all old or all new pins.
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
