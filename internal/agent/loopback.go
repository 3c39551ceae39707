package agent

import (
	"github.com/ebpnet/ebpnet/internal/host"
	"github.com/ebpnet/ebpnet/internal/store"
	"github.com/ebpnet/ebpnet/loader"
)

// The host's own connections to published ports go over lo, which ebpnet
// leaves alone while nothing is published.

// openLoopback prepares lo for published ports, and remembers how it was.
func (a *Agent) openLoopback() error {
	known, err := a.loopbackBefore()
	if err != nil {
		return err
	}
	if known == nil {
		before, err := host.LoopbackSettings()
		if err != nil {
			return err
		}
		if err := a.rememberLoopback(before); err != nil {
			return err
		}
	}
	if err := host.OpenLoopback(); err != nil {
		return err
	}
	return a.tables.Attach(loader.FromLoopback, host.LoopbackIfindex)
}

// closeLoopback leaves lo as it was, unless something is published.
func (a *Agent) closeLoopback() error {
	used, err := a.tables.HasPorts()
	if err != nil || used {
		return err
	}
	if err := a.tables.Detach(loader.FromLoopback, host.LoopbackIfindex); err != nil {
		return err
	}
	return a.restoreLoopback()
}

// restoreLoopback gives lo the settings back that it had.
func (a *Agent) restoreLoopback() error {
	before, err := a.loopbackBefore()
	if err != nil || before == nil {
		return err
	}
	if err := host.SetLoopback(before); err != nil {
		return err
	}
	return a.rememberLoopback(nil)
}

// loopbackBefore is what is remembered of lo, nil if that is as it was.
func (a *Agent) loopbackBefore() (before map[string]string, err error) {
	err = a.store.View(func(tx *store.Tx) error {
		wanted, _, err := tx.Host()
		before = wanted.Loopback
		return err
	})
	return before, err
}

func (a *Agent) rememberLoopback(before map[string]string) error {
	return a.store.Update(func(tx *store.Tx) error {
		wanted, known, err := tx.Host()
		if err == nil && !known {
			err = errUnknownHost
		}
		if err != nil {
			return err
		}
		wanted.Loopback = before
		return tx.PutHost(wanted)
	})
}
