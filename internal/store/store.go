// Package store keeps what is wanted (package spec) in a file of this host,
// so that it outlives commands and reboots. It keeps its own indexes true; it
// does not judge whether the nouns fit together, and knows nothing of the
// kernel.
package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// Errors that a store answers with, each wrapped in one line that says more.
var (
	ErrDamaged   = errors.New("is damaged")
	ErrBusy      = errors.New("is busy")
	ErrVersion   = errors.New("was written by another version of ebpnet")
	ErrNotFound  = errors.New("not found")
	ErrTaken     = errors.New("already taken")
	ErrExhausted = errors.New("all are in use")
)

// File is the store's name in the state directory.
const File = "ebpnet.db"

const (
	lockTimeout = 30 * time.Second
	lockRetry   = 20 * time.Millisecond
)

// Store is a store file, locked from Open to Close. Its methods may be called
// from several goroutines.
type Store struct {
	db   *bolt.DB // nil: there is no file, so nothing is wanted
	path string
}

// Open opens the store in dir for changes; both are made if missing. It waits
// for other commands to close theirs; ErrBusy if that takes more than half a
// minute, or than ctx lasts. A file that is ErrDamaged or of another
// ErrVersion is left as it is.
func Open(ctx context.Context, dir string) (*Store, error) {
	s := &Store{path: filepath.Join(dir, File)}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the state directory: %w", err)
	}
	f, err := os.OpenFile(s.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the store: %w", err)
	}
	if err := s.start(ctx, f, unix.LOCK_EX); err != nil {
		return nil, err
	}
	return s, nil
}

// OpenReadOnly opens the store in dir beside other readers, and waits for
// writers as Open does. It makes nothing: what is missing is an empty store.
func OpenReadOnly(ctx context.Context, dir string) (*Store, error) {
	s := &Store{path: filepath.Join(dir, File)}
	f, err := os.Open(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open the store: %w", err)
	}
	if err := s.start(ctx, f, unix.LOCK_SH); err != nil {
		return nil, err
	}
	return s, nil
}

// start locks and checks f, and then lends it to bbolt.
func (s *Store) start(ctx context.Context, f *os.File, lock int) error {
	readOnly := lock == unix.LOCK_SH
	if err := s.lock(ctx, f, lock); err != nil {
		return errors.Join(err, f.Close())
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(fmt.Errorf("open the store: %w", err), f.Close())
	}
	if info.Size() == 0 && readOnly {
		return f.Close() // a command is about to begin it, or died there
	}
	if info.Size() > 0 {
		if err := check(f); err != nil {
			return errors.Join(s.explain(err), f.Close())
		}
	}
	s.db, err = bolt.Open(s.path, 0, &bolt.Options{
		ReadOnly: readOnly,
		OpenFile: func(string, int, fs.FileMode) (*os.File, error) { return f, nil },
	})
	if err != nil { // bbolt has closed f
		return fmt.Errorf("open the store %s: %w", s.path, err)
	}
	if err := s.begin(readOnly); err != nil {
		return errors.Join(err, s.Close())
	}
	return nil
}

// begin makes a new file's buckets, and checks those of one that is not new. To
// be changed, one of an older schema is made current.
func (s *Store) begin(readOnly bool) error {
	var current bool
	err := s.View(func(tx *Tx) (err error) {
		if !tx.fresh() {
			current, err = tx.checkSchema()
		}
		return err
	})
	if err != nil || current || readOnly {
		return err
	}
	return s.Update((*Tx).makeSchema)
}

// lock takes the lock that bbolt takes too, but before the file is checked.
func (s *Store) lock(ctx context.Context, f *os.File, how int) error {
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	for {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("lock the store %s: %w", s.path, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("store %s %w: another ebpnet command holds it, try again when it is done", s.path, ErrBusy)
		case <-time.After(lockRetry):
		}
	}
}

// explain makes damage a line that says what to do.
func (s *Store) explain(err error) error {
	if d := damage(""); errors.As(err, &d) {
		return fmt.Errorf("store %s %w (%w): it is kept and not overwritten; "+
			"put a good copy in its place, or move it away to begin an empty store", s.path, ErrDamaged, d)
	}
	return err
}

// Close unlocks the store.
func (s *Store) Close() error {
	if s.db == nil {
		return nil
	}
	return s.db.Close()
}

// View runs fn on the store as it stands.
func (s *Store) View(fn func(*Tx) error) error {
	if s.db == nil {
		return fn(&Tx{})
	}
	return s.db.View(func(tx *bolt.Tx) error { return s.explain(fn(&Tx{tx})) })
}

// Update runs fn and then keeps all its changes, on disk; none if fn or the
// writing fails.
func (s *Store) Update(fn func(*Tx) error) error {
	if s.db == nil {
		return fmt.Errorf("change the store %s: it was opened to be read only", s.path)
	}
	return s.db.Update(func(tx *bolt.Tx) error { return s.explain(fn(&Tx{tx})) })
}
