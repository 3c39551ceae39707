// Package loader brings the programs of package bpf into the kernel and keeps
// them there: it probes the kernel, loads, pins, attaches and upgrades. It
// knows nothing of containers or networks, and nothing of what the maps mean.
//
// Everything lives under one pin directory on bpffs: maps/NAME, programs/NAME
// and links/PROGRAM-IFINDEX. `bpftool map dump pinned FILE` shows a table as
// the datapath sees it.
package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/bpf"
)

// ErrNotLoaded says that the pin directory holds no datapath.
var ErrNotLoaded = errors.New("not loaded: run 'ebpnet load' first")

// ErrOtherVersion says that the pin directory holds a datapath whose tables
// this version cannot use.
var ErrOtherVersion = errors.New("loaded by another version of ebpnet")

const (
	mapsDirectory     = "maps"
	programsDirectory = "programs"
	linksDirectory    = "links"
)

// Config is what the programs are told at load.
type Config struct {
	GatewayIfindex uint32 // of the near end of the host's own veth
	GatewayMAC     [6]byte
}

// Objects are the maps and programs of a loaded datapath, opened from their
// pins. Close them; what is pinned stays.
type Objects struct {
	Maps     bpf.EbpnetMaps
	Programs bpf.EbpnetPrograms

	dir string
}

// Close lets go of the file descriptors.
func (o *Objects) Close() error { return errors.Join(o.Maps.Close(), o.Programs.Close()) }

// Load loads the programs and pins them under dir in place of those that are
// there, which go on running where they are attached until Attach replaces
// them. Maps that are there already are kept with all they hold;
// ErrOtherVersion if their shape is not what the programs expect. An error of
// the verifier is in the chain as *ebpf.VerifierError.
func Load(dir string, c Config) (*Objects, error) {
	spec, err := bpf.LoadEbpnet()
	if err != nil {
		return nil, fmt.Errorf("read the compiled programs: %w", err)
	}
	if err := configure(spec, c); err != nil {
		return nil, err
	}
	for _, sub := range []string{mapsDirectory, programsDirectory, linksDirectory} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, fmt.Errorf("make the pin directory: %w", err)
		}
	}

	kept, err := openMaps(dir, spec, false)
	if err != nil {
		return nil, err
	}
	defer closeMaps(kept)
	collection, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: kept})
	if err != nil {
		return nil, fmt.Errorf("load the programs: %w", err)
	}
	defer collection.Close()
	if err := pin(dir, collection, kept); err != nil {
		return nil, err
	}
	o, err := assign(dir, collection)
	if err != nil {
		return nil, err
	}
	if err := o.startSweep(); err != nil {
		return nil, errors.Join(err, o.Close())
	}
	return o, nil
}

// How often the start of the sweep is tried, and how long to wait in between:
// the kernel takes the memory for a timer only from where it has some at hand.
const (
	startAttempts = 16
	startPause    = 10 * time.Millisecond
)

// startSweep starts the sweep that ends idle flows, or goes on with it by the
// new program.
func (o *Objects) startSweep() error {
	const shortestFrame = 14
	var status uint32
	for range startAttempts {
		var err error
		status, _, err = o.Programs.SweepFlows.Test(make([]byte, shortestFrame))
		if err != nil {
			return fmt.Errorf("start the sweep of flows: %w", err)
		}
		if status == 0 {
			return nil
		}
		time.Sleep(startPause)
	}
	return fmt.Errorf("start the sweep of flows: %w", unix.Errno(-int32(status)))
}

// Open opens what Load has pinned under dir: ErrNotLoaded if that is nothing,
// or not all.
func Open(dir string) (*Objects, error) {
	spec, err := bpf.LoadEbpnet()
	if err != nil {
		return nil, fmt.Errorf("read the compiled programs: %w", err)
	}
	collection := &ebpf.Collection{Programs: make(map[string]*ebpf.Program, len(spec.Programs))}
	defer func() { collection.Close() }()
	if collection.Maps, err = openMaps(dir, spec, true); err != nil {
		return nil, err
	}
	for name := range spec.Programs {
		program, err := ebpf.LoadPinnedProgram(filepath.Join(dir, programsDirectory, name), nil)
		if errors.Is(err, os.ErrNotExist) {
			return nil, ErrNotLoaded
		}
		if err != nil {
			return nil, fmt.Errorf("open program %s: %w", name, err)
		}
		collection.Programs[name] = program
	}
	return assign(dir, collection)
}

// assign moves the collection's maps and programs into Objects.
func assign(dir string, collection *ebpf.Collection) (*Objects, error) {
	o := &Objects{dir: dir}
	if err := collection.Assign(&o.Maps); err != nil {
		return nil, err
	}
	if err := collection.Assign(&o.Programs); err != nil {
		return nil, errors.Join(err, o.Maps.Close())
	}
	return o, nil
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

// pin pins the maps that were not pinned yet, then the programs. Each takes
// the place of an older one by rename, so that there is always one.
func pin(dir string, collection *ebpf.Collection, kept map[string]*ebpf.Map) error {
	for name, m := range collection.Maps {
		if isSection(name) || kept[name] != nil {
			continue
		}
		if err := m.Pin(filepath.Join(dir, mapsDirectory, name)); err != nil {
			return fmt.Errorf("pin map %s: %w", name, err)
		}
	}
	for name, program := range collection.Programs {
		path := filepath.Join(dir, programsDirectory, name)
		fresh := path + "-new" // bpffs reserves names with dots
		if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove what an interrupted load left: %w", err)
		}
		if err := program.Pin(fresh); err != nil {
			return fmt.Errorf("pin program %s: %w", name, err)
		}
		if err := os.Rename(fresh, path); err != nil {
			return fmt.Errorf("pin program %s: %w", name, err)
		}
	}
	return nil
}

// VerifierLog gives what the kernel's verifier said of a program, beginning
// with a new line, if that is what err is about.
func VerifierLog(err error) string {
	if verifier := (*ebpf.VerifierError)(nil); errors.As(err, &verifier) {
		return fmt.Sprintf("\n%+v", verifier)
	}
	return ""
}

// configure sets the programs' constants.
func configure(spec *ebpf.CollectionSpec, c Config) error {
	var constants bpf.EbpnetVariableSpecs
	if err := spec.Assign(&constants); err != nil {
		return fmt.Errorf("find the programs' constants: %w", err)
	}
	flags, err := probeFlags()
	if err != nil {
		return err
	}
	return errors.Join(
		constants.GatewayIfindex.Set(c.GatewayIfindex),
		constants.GatewayMac.Set(c.GatewayMAC),
		constants.FibFlags.Set(flags.fib),
		constants.DecapIpv4Flags.Set(flags.decapIPv4),
		constants.DecapIpv6Flags.Set(flags.decapIPv6),
	)
}
