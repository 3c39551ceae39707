// Package loader loads the programs of package bpf into the kernel: it probes
// the kernel, loads, pins, attaches and upgrades. It knows nothing of
// containers or networks, and little of the meaning of the maps: it copies
// their state into the tables of another version, and restores flows.
//
// Everything lives under one pin directory on bpffs: maps/NAME, programs/NAME
// and links/PROGRAM-IFINDEX. `bpftool map dump pinned FILE` shows a table as
// the datapath sees it. maps/layout-VERSION names the layouts of all maps.
// old_tables/ID holds a replaced table during a migration. format/N-VERSION
// names this arrangement, and the version that made it.
package loader

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/bpf"
)

// ErrNotLoaded means that the pin directory holds no datapath.
var ErrNotLoaded = errors.New("not loaded: run 'ebpnet load' first")

// ErrOtherVersion means that the pin directory holds a datapath of another
// version, whose tables have other layouts.
var ErrOtherVersion = errors.New("loaded by another version of ebpnet: run 'ebpnet load', which keeps flows and counts")

// ErrFormat means that this version does not know the arrangement of the pin
// directory.
var ErrFormat = errors.New("unknown pin format")

// Config is the configuration of the programs. If Flows, a port or a timeout is
// zero, the compiled default holds (bpf/config.h).
type Config struct {
	Version string // of this program, for versions that do not know its pin format

	GatewayIfindex  uint32 // of the near end of the host's own veth
	DatapathIfindex uint32 // of its far end
	GatewayMAC      [6]byte

	Flows               uint32 // most established flows
	FirstPort, LastPort uint16 // of the host, for masquerading
	Timeouts            Timeouts

	WithoutXDP bool // do not load the XDP program
	GenericXDP bool // load the XDP program for generic mode
	NeedXDP    bool // Load fails if the kernel refuses the XDP program
}

// Timeouts are the times without a packet after which a flow ends, or a learned
// station is forgotten.
type Timeouts struct {
	TCPEstablished, TCPTransitory, UDPEstablished, UDPNew, ICMP time.Duration
	Learned                                                     time.Duration
}

// Objects are the maps and programs of a loaded datapath, opened from their
// pins. Close closes them, but does not remove the pins.
type Objects struct {
	Maps     bpf.EbpnetMaps
	Programs bpf.EbpnetPrograms
	XDP      *ebpf.Program // nil: see NoXDP
	NoXDP    error         // why XDP is nil: ErrNoXDP, after Load with the kernel's reason

	dir    string
	spec   *ebpf.CollectionSpec
	fronts []front // see AttachInFront
}

// Close closes the file descriptors.
func (o *Objects) Close() error {
	return errors.Join(o.closeFronts(), o.Maps.Close(), o.Programs.Close(), o.XDP.Close()) // nil closes too
}

// Load loads the programs and pins them under dir. It replaces the pins of
// older programs, which run where they are attached until Attach replaces them.
// It keeps a map, with its content, if layout and size are those of the new
// programs. Otherwise it makes a new map and copies the state: call
// FinishMigration when the programs are attached. An error of the verifier is
// in the chain as *ebpf.VerifierError. If the kernel refuses the XDP program,
// Load succeeds without it, unless NeedXDP is set.
//
// If Load is killed, another Load continues. It replaces all pins of maps in
// one step, and then all pins of programs in one step.
func Load(dir string, c Config) (*Objects, error) {
	spec, err := bpf.LoadEbpnet()
	if err != nil {
		return nil, fmt.Errorf("read the compiled programs: %w", err)
	}
	return load(dir, spec, c)
}

func load(dir string, spec *ebpf.CollectionSpec, c Config) (*Objects, error) {
	u, err := prepare(dir, spec, c)
	if err != nil {
		return nil, err
	}
	defer u.close()
	for _, step := range u.steps() {
		if err := step(); err != nil {
			return nil, errors.Join(err, u.objects.Close(), clearLeftovers(dir))
		}
	}
	return u.objects, nil
}

// upgrade is the state of a running Load.
type upgrade struct {
	dir        string
	spec       *ebpf.CollectionSpec
	kept       map[string]*ebpf.Map   // old maps that stay in use
	before     map[string]pinnedTable // old maps that are replaced
	collection *ebpf.Collection
	config     Config
	objects    *Objects // owns what is in these two
	maps       map[string]*ebpf.Map
	programs   map[string]*ebpf.Program
}

// prepare opens the pins, and removes the leftovers of an interrupted Load.
func prepare(dir string, spec *ebpf.CollectionSpec, c Config) (_ *upgrade, err error) {
	if err := checkFormat(dir); err != nil {
		return nil, err
	}
	for _, m := range spec.Maps {
		describeKey(m)
	}
	if err := configure(spec, c); err != nil {
		return nil, err
	}
	if err := makeDirectories(dir, c.Version); err != nil {
		return nil, err
	}
	if err := clearLeftovers(dir); err != nil {
		return nil, err
	}
	u := &upgrade{
		dir: dir, spec: spec, config: c,
		objects: &Objects{dir: dir, spec: spec}, collection: &ebpf.Collection{},
	}
	if u.kept, u.before, err = openBefore(dir, spec); err != nil {
		return nil, err
	}
	if err := u.expectRelease(); err != nil {
		u.close()
		return nil, err
	}
	return u, nil
}

// releaseMark is the mark of packets that version e41502a sends by an uplink.
const releaseMark uint16 = 0xebb1

// expectRelease tells the programs the mark of version e41502a if older programs
// may run beside them: until all are replaced. The mark of all later versions is
// that of route_send_mark() in bpf/route_send.h. A load that migrates nothing
// clears the mark again.
func (u *upgrade) expectRelease() error {
	_, err := os.Stat(filepath.Join(u.dir, oldDirectory))
	if len(u.before) == 0 && errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("look for tables of the previous version: %w", err)
	}
	return u.spec.Variables[bpf.EbpnetVarReleaseMark].Set(releaseMark)
}

func (u *upgrade) close() {
	closeMaps(u.kept)
	closeBefore(u.before)
	u.collection.Close()
}

// steps are the steps of Load. After each of them, the datapath works.
func (u *upgrade) steps() []func() error {
	return []func() error{
		u.retireTables,
		u.load,
		u.loadXDP,
		u.copyTables,
		u.objects.startSweep,
		u.objects.CarryFlows,
		u.pinMaps,
		u.pinPrograms,
	}
}

// load loads the programs into the kernel, with the maps that are kept.
func (u *upgrade) load() (err error) {
	u.collection, err = ebpf.NewCollectionWithOptions(u.spec, ebpf.CollectionOptions{MapReplacements: u.kept})
	if err != nil {
		u.collection = &ebpf.Collection{}
		return fmt.Errorf("load the programs: %w", err)
	}
	u.maps, u.programs = maps.Clone(u.collection.Maps), maps.Clone(u.collection.Programs)
	if err := u.objects.assign(u.collection); err != nil {
		return err
	}
	return u.makeSecret()
}

// assign moves the collection's maps and programs into o.
func (o *Objects) assign(collection *ebpf.Collection) error {
	if err := collection.Assign(&o.Maps); err != nil {
		return err
	}
	if err := collection.Assign(&o.Programs); err != nil {
		return err
	}
	return nil
}

// shortestFrame is the shortest frame with which the kernel runs a program.
const shortestFrame = 14

// How often the start of the sweep is tried, and the pause between two tries.
// The start fails while the kernel has no free memory for a timer.
const (
	startAttempts = 16
	startPause    = 10 * time.Millisecond
)

// startSweep starts the sweep that ends idle flows. If it runs already, the new
// program continues it.
func (o *Objects) startSweep() error {
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

// embedded returns the spec of the embedded programs. Do not modify it. It is
// read only once, because a daemon calls Open often, and reading the spec takes
// longer than the rest of Open.
var embedded = sync.OnceValues(func() (*ebpf.CollectionSpec, error) {
	spec, err := bpf.LoadEbpnet()
	if err != nil {
		return nil, fmt.Errorf("read the compiled programs: %w", err)
	}
	for _, m := range spec.Maps {
		describeKey(m)
	}
	return spec, nil
})

// Open opens the maps and programs pinned under dir. It returns ErrNotLoaded if
// a pin is missing, and ErrOtherVersion if the tables have other layouts.
func Open(dir string) (*Objects, error) {
	spec, err := embedded()
	if err != nil {
		return nil, err
	}
	if err := checkFormat(dir); err != nil {
		return nil, err
	}
	if err := checkLayouts(dir, spec); err != nil {
		return nil, err
	}
	collection := &ebpf.Collection{}
	defer func() { collection.Close() }()
	if collection.Maps, err = openMaps(dir, spec); err != nil {
		return nil, err
	}
	if collection.Programs, err = openPrograms(dir, spec); err != nil {
		return nil, err
	}
	if err := openScratch(collection.Programs[FromEndpoint.name], collection.Maps); err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(dir, linksDirectory)); errors.Is(err, os.ErrNotExist) {
		return nil, ErrNotLoaded
	}
	o := &Objects{dir: dir, spec: spec}
	if err := errors.Join(o.assign(collection), o.openXDP()); err != nil {
		return nil, errors.Join(err, o.Close())
	}
	return o, nil
}

// VerifierLog returns the verifier's log after a newline, if err is about a
// program that the verifier refused. Otherwise it returns nothing.
func VerifierLog(err error) string {
	if verifier := (*ebpf.VerifierError)(nil); errors.As(err, &verifier) {
		return fmt.Sprintf("\n%+v", verifier)
	}
	return ""
}

// configure sets the programs' constants, and the sizes of the tables of flows.
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
		constants.DatapathIfindex.Set(c.DatapathIfindex),
		constants.GatewayMac.Set(c.GatewayMAC),
		constants.FibFlags.Set(flags.fib),
		constants.DecapIpv4Flags.Set(flags.decapIPv4),
		constants.DecapIpv6Flags.Set(flags.decapIPv6),
		constants.FlowSlots.Set(sizeFlows(spec, c.Flows)),
		setGiven(constants.FirstPort, c.FirstPort),
		setGiven(constants.LastPort, c.LastPort),
		setGiven(constants.TcpEstablishedTimeout, c.Timeouts.TCPEstablished),
		setGiven(constants.TcpTransitoryTimeout, c.Timeouts.TCPTransitory),
		setGiven(constants.UdpEstablishedTimeout, c.Timeouts.UDPEstablished),
		setGiven(constants.UdpNewTimeout, c.Timeouts.UDPNew),
		setGiven(constants.IcmpTimeout, c.Timeouts.ICMP),
		setGiven(constants.LearnedTimeout, c.Timeouts.Learned),
	)
}

// setGiven sets a constant, unless the value is zero.
func setGiven[T comparable](constant *ebpf.VariableSpec, value T) error {
	if value == *new(T) {
		return nil
	}
	return constant.Set(value)
}
