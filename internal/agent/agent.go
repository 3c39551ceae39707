// Package agent carries out what is wanted: a command changes the store, then
// brings this host's devices and tables to it. It judges whether nouns fit
// together; their own forms it takes as checked (package spec).
//
// A change is written to the store first, marked as pending, and the mark is
// taken away when the kernel has followed. A command that finds a mark mends
// what the one that left it did not finish.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/ebpnet/ebpnet/datapath"
	"github.com/ebpnet/ebpnet/internal/host"
	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
	"github.com/ebpnet/ebpnet/loader"
)

// ErrNotRoot says that the command needs privileges it does not have.
var ErrNotRoot = errors.New("not root: ebpnet changes devices and loads programs; run it as root")

// Errors about nouns that do not fit what is there.
var (
	ErrExists = errors.New("exists already")
	ErrInUse  = errors.New("in use")
	ErrUnfit  = errors.New("does not fit")
	ErrRemote = errors.New("on another host")
)

// Place says where a host's state lies.
type Place struct {
	State string // directory of the store
	Pins  string // directory on a bpffs

	Version string // of this program, to be noted at load
}

// Agent changes one host. It holds the store's lock from Open to Close, so
// that there is one at a time.
type Agent struct {
	place  Place
	log    *slog.Logger
	store  *store.Store
	host   *host.Host
	tables *datapath.Tables // nil: not loaded
	fresh  bool             // the programs were loaded by this Agent
	gone   []spec.Endpoint  // forgotten with their namespaces, which Close tells
}

// Open opens the host for changes and mends what an earlier command left
// unfinished. loader.ErrNotLoaded if there is no datapath, which Load makes.
func Open(ctx context.Context, p Place, log *slog.Logger) (*Agent, error) {
	a, err := open(ctx, p, log)
	if err != nil {
		return nil, err
	}
	if err := a.openTables(); err != nil {
		return nil, errors.Join(err, a.Close())
	}
	if err := a.mend(); err != nil {
		return nil, errors.Join(err, a.Close())
	}
	return a, nil
}

// open opens all but the datapath.
func open(ctx context.Context, p Place, log *slog.Logger) (*Agent, error) {
	if err := CheckRoot(); err != nil {
		return nil, err
	}
	s, err := store.Open(ctx, p.State)
	if err != nil {
		return nil, err
	}
	h, err := host.Open()
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return &Agent{place: p, log: log, store: s, host: h}, nil
}

// CheckRoot gives ErrNotRoot to whoever lacks the privileges.
func CheckRoot() error {
	if os.Geteuid() != 0 {
		return ErrNotRoot
	}
	return nil
}

func (a *Agent) openTables() error {
	tables, err := datapath.Open(a.place.Pins)
	if err != nil {
		return err
	}
	a.tables = tables
	return nil
}

// Close unlocks the store.
func (a *Agent) Close() error {
	for _, e := range a.gone {
		a.log.Warn("endpoint removed: its namespace has gone", "endpoint", e.Name, "namespace", e.Netns.Path)
	}
	var err error
	if a.tables != nil {
		err = a.tables.Close()
	}
	a.host.Close()
	return errors.Join(err, a.store.Close())
}

// mend finishes what other commands left unfinished, and forgets endpoints
// whose namespaces have gone. What cannot be mended is told of and keeps
// nobody from changing something else.
func (a *Agent) mend() error {
	var pending []store.Change
	err := a.store.View(func(tx *store.Tx) (err error) {
		pending, err = tx.Pending()
		return err
	})
	if err != nil {
		return err
	}
	gone, err := a.vanished()
	if err != nil {
		return err
	}
	if len(pending) == 0 && !gone {
		return nil
	}
	if err := a.Reconcile(); err != nil {
		a.log.Error("could not mend everything", "error", err)
	}
	return nil
}

// vanished tells whether the host's own veth has gone, or a local endpoint's,
// as that does with its namespace. It compares what the kernel holds by
// itself, which is quick.
func (a *Agent) vanished() (bool, error) {
	gateway, err := a.host.FindGateway()
	if isGone(err) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	if renew, err := a.isNew(gateway); err != nil || renew {
		return renew, err
	}
	there, err := a.host.Veths()
	if err != nil {
		return false, err
	}
	known, err := a.tables.LocalEndpoints()
	if err != nil {
		return false, err
	}
	for _, id := range known {
		if !there[id] {
			return true, nil
		}
	}
	return false, nil
}

// change writes a change of a noun to the store, carries it out, and takes it
// back if that fails: then everything is as it was.
type change struct {
	noun   store.Change
	write  func(*store.Tx) error // into the store
	apply  func() error          // to the kernel
	revert func(*store.Tx) error // out of the store again
}

func (a *Agent) do(c change) error {
	err := a.store.Update(func(tx *store.Tx) error {
		if err := c.write(tx); err != nil {
			return err
		}
		return tx.MarkPending(c.noun.Kind, c.noun.Key)
	})
	if err != nil {
		return err
	}
	if err := c.apply(); err != nil {
		return errors.Join(err, a.takeBack(c))
	}
	return a.store.Update(func(tx *store.Tx) error { return tx.ClearPending(c.noun) })
}

func (a *Agent) takeBack(c change) error {
	if err := a.store.Update(c.revert); err != nil {
		return fmt.Errorf("take the change back: %w", err)
	}
	if err := a.Reconcile(); err != nil {
		return fmt.Errorf("take the change back: %w", err)
	}
	return nil
}

// How long Serve waits: at most until it looks again, as for a change that the
// kernel does not tell of (forwarding switched off); and after a failure.
const (
	refresh = 10 * time.Second
	backOff = 5 * time.Second
)

// settle is how long Serve lets changes gather before it looks at them: the
// kernel tells of a new endpoint in a dozen messages.
const settle = 200 * time.Millisecond

// Serve keeps this host as wanted while devices, addresses and routes change,
// until ctx ends. The store is locked only while it works.
func Serve(ctx context.Context, p Place, log *slog.Logger) error {
	var f follower
	for ctx.Err() == nil {
		changed, err := host.Watch(ctx)
		if err != nil {
			return err
		}
		for open := true; open && ctx.Err() == nil; {
			wait := settle
			if err := openOnce(ctx, p, log, f.follow); err != nil && ctx.Err() == nil {
				log.Error("cannot follow changes of this host", "error", err)
				wait = backOff
			}
			pause(ctx, wait)
			select {
			case <-ctx.Done():
			case <-time.After(refresh):
			case _, open = <-changed:
			}
		}
		f = follower{} // some changes may not have been told of
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// openOnce opens the host, which mends what needs mending, and does f.
func openOnce(ctx context.Context, p Place, log *slog.Logger, f func(*Agent) error) error {
	a, err := Open(ctx, p, log)
	if errors.Is(err, loader.ErrNotLoaded) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(f(a), a.Close())
}

// loadPrograms loads the programs, in place of those that are loaded.
func (a *Agent) loadPrograms(config loader.Config) error {
	config.Version = a.place.Version
	tables, err := datapath.Load(a.place.Pins, config)
	if err != nil {
		return err
	}
	if a.tables != nil {
		err = a.tables.Close()
	}
	a.tables, a.fresh = tables, true
	return err
}

// Unload detaches and removes everything of ebpnet's but the store.
func Unload(ctx context.Context, p Place, log *slog.Logger) error {
	a, err := open(ctx, p, log)
	if err != nil {
		return err
	}
	return errors.Join(a.unload(), a.Close())
}

// unload takes the veths away first: while one is up its program is needed.
func (a *Agent) unload() error {
	there, err := a.host.Veths()
	if err != nil {
		return err
	}
	for id := range there {
		if err := a.host.RemoveVeth(id); err != nil {
			return err
		}
	}
	if err := loader.Unload(a.place.Pins); err != nil {
		return err
	}
	if err := a.restoreLoopback(); err != nil {
		return err
	}
	return a.host.RemoveGateway()
}

// Load loads or upgrades the datapath, and brings everything to what the
// store wants. What is not given stays what it was, and a timeout of zero
// becomes the default again; as long as there are none, the uplinks are those
// that default routes lead to.
func Load(ctx context.Context, p Place, log *slog.Logger, given spec.Host) (err error) {
	if err := CheckRoot(); err != nil {
		return err
	}
	if err := loader.CheckFeatures(loader.Probe()); err != nil {
		return err
	}
	if err := loader.MountBPFFS(p.Pins); err != nil {
		return err
	}
	a, err := open(ctx, p, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.Close()) }()

	wanted, known, err := a.wantedHost(given)
	if err != nil {
		return err
	}
	if err := a.checkLoaded(known); err != nil {
		return err
	}
	if err := a.checkXDP(given.XDP, wanted.Uplinks); err != nil {
		return err
	}
	a.warnOfTimeouts(given)
	if len(wanted.Uplinks) == 0 {
		log.Warn("no uplink: no default route leads to a device; give --uplink DEV, or load again when there is one, for containers to reach outside")
	}
	takeBack, err := a.putHost(wanted)
	if err != nil {
		return err
	}
	gateway, err := a.host.EnsureGateway(wanted.GatewayMAC)
	if err != nil {
		return err
	}
	config := loaderConfig(gateway, wanted)
	config.NeedXDP = isForced(given.XDP)
	if err := a.loadPrograms(config); err != nil {
		return errors.Join(err, takeBack())
	}
	return a.Reconcile()
}

// checkLoaded looks at what is loaded already, before anything is changed: it
// must be of this store unless it is empty.
func (a *Agent) checkLoaded(known bool) error {
	devices, err := loader.CountDevices(a.place.Pins)
	if err == nil && !known && devices > 0 {
		err = fmt.Errorf("%s is loaded with %d endpoints that the store in %s knows nothing of: "+
			"name the right --state, or 'ebpnet unload' first", a.place.Pins, devices, a.place.State)
	}
	return err
}
