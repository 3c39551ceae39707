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
)

// Place says where a host's state lies.
type Place struct {
	State string // directory of the store
	Pins  string // directory on a bpffs
}

// Agent changes one host. It holds the store's lock from Open to Close, so
// that there is one at a time.
type Agent struct {
	place  Place
	log    *slog.Logger
	store  *store.Store
	host   *host.Host
	tables *datapath.Tables // nil: not loaded
}

// Open opens the host for changes and mends what an earlier command left
// unfinished. loader.ErrNotLoaded if there is no datapath, which Load makes.
func Open(p Place, log *slog.Logger) (*Agent, error) {
	a, err := open(p, log)
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
func open(p Place, log *slog.Logger) (*Agent, error) {
	if err := checkRoot(); err != nil {
		return nil, err
	}
	s, err := store.Open(p.State)
	if err != nil {
		return nil, err
	}
	h, err := host.Open()
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return &Agent{place: p, log: log, store: s, host: h}, nil
}

func checkRoot() error {
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
	var err error
	if a.tables != nil {
		err = a.tables.Close()
	}
	a.host.Close()
	return errors.Join(err, a.store.Close())
}

// mend finishes what other commands left unfinished, and forgets endpoints
// whose namespaces have gone.
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
	return a.Reconcile()
}

// vanished tells whether a local endpoint's veth has gone, as it does with
// its namespace. It compares what the kernel holds by itself, which is quick.
func (a *Agent) vanished() (bool, error) {
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

// Serve keeps this host as wanted while devices, addresses and routes change,
// until ctx ends. The store is locked only while it works.
func Serve(ctx context.Context, p Place, log *slog.Logger) error {
	changed, err := host.Watch(ctx)
	if err != nil {
		return err
	}
	for {
		if err := reconcileOnce(p, log); err != nil {
			log.Error("reconcile", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case _, open := <-changed:
			if !open && ctx.Err() == nil {
				return errors.New("the kernel stopped telling of changes of devices; start serve again")
			}
		}
	}
}

func reconcileOnce(p Place, log *slog.Logger) error {
	a, err := Open(p, log)
	if errors.Is(err, loader.ErrNotLoaded) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(a.Reconcile(), a.Close())
}

// Unload detaches and removes everything of ebpnet's but the store.
func Unload(p Place, log *slog.Logger) error {
	a, err := open(p, log)
	if err != nil {
		return err
	}
	return errors.Join(a.unload(), a.Close())
}

func (a *Agent) unload() error {
	if err := loader.Unload(a.place.Pins); err != nil {
		return err
	}
	there, err := a.host.Veths()
	if err != nil {
		return err
	}
	for id := range there {
		if err := a.host.RemoveVeth(id); err != nil {
			return err
		}
	}
	return a.host.RemoveGateway()
}

// Load loads or upgrades the datapath, and brings everything to what the
// store wants. uplinks and tunnel address that are not given stay what they
// were; at first the uplinks are those that default routes lead to.
func Load(p Place, log *slog.Logger, given spec.Host) (err error) {
	if err := checkRoot(); err != nil {
		return err
	}
	if err := loader.CheckFeatures(loader.Probe()); err != nil {
		return err
	}
	if err := loader.MountBPFFS(p.Pins); err != nil {
		return err
	}
	a, err := open(p, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.Close()) }()

	wanted, err := a.wantedHost(given)
	if err != nil {
		return err
	}
	gateway, err := a.host.EnsureGateway(wanted.GatewayMAC)
	if err != nil {
		return err
	}
	a.tables, err = datapath.Load(p.Pins, loader.Config{
		GatewayIfindex: uint32(gateway.Near),
		GatewayMAC:     wanted.GatewayMAC,
	})
	if err != nil {
		return err
	}
	if err := a.store.Update(func(tx *store.Tx) error { return tx.PutHost(wanted) }); err != nil {
		return err
	}
	return a.Reconcile()
}

// FlushFlows forgets every flow.
func (a *Agent) FlushFlows() error { return a.tables.FlushAllFlows() }
