package testutil

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

const netnsDirectory = "/run/netns"

// Netns is a network namespace, empty and with lo down when it is new.
type Netns struct {
	Name string // as in /run/netns
}

// NewNetns makes a network namespace with a unique name that holds name, and
// removes it when the test ends.
func NewNetns(t testing.TB, name string) *Netns {
	t.Helper()
	RequireRoot(t)
	n := &Netns{Name: uniqueName(name)}
	if err := n.create(); err != nil {
		t.Fatalf("make namespace %s: %v", n.Name, err)
	}
	t.Cleanup(func() { n.Remove(t) })
	return n
}

// Path is the file that holds the namespace.
func (n *Netns) Path() string { return filepath.Join(netnsDirectory, n.Name) }

func (n *Netns) create() (err error) {
	if err := os.MkdirAll(netnsDirectory, 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(n.Path(), os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			err = errors.Join(err, os.Remove(n.Path()))
		}
	}()
	home, err := lockThread()
	if err != nil {
		return err
	}
	defer unlockThread(home)
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	return unix.Mount("/proc/thread-self/ns/net", n.Path(), "none", unix.MS_BIND, "")
}

// Remove lets go of the namespace before the end of the test. Processes still
// in it keep it alive.
func (n *Netns) Remove(t testing.TB) {
	t.Helper()
	err := unix.Unmount(n.Path(), unix.MNT_DETACH)
	if err == nil {
		err = os.Remove(n.Path())
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Errorf("remove namespace %s: %v", n.Name, err)
	}
}

// Do runs f with its thread inside the namespace. Sockets and processes that f
// makes stay there; goroutines that it starts do not. It panics if the
// namespace is gone.
func (n *Netns) Do(f func()) {
	home, err := lockThread()
	if err == nil {
		defer unlockThread(home)
		err = setns(n.Path())
	}
	if err != nil {
		panic(fmt.Sprintf("enter namespace %s: %v", n.Name, err))
	}
	f()
}

// lockThread ties the goroutine to its thread and gives the thread's namespace.
func lockThread() (home *os.File, err error) {
	runtime.LockOSThread()
	home, err = os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
	}
	return home, err
}

// unlockThread goes back to the namespace home. A thread that cannot stays
// locked, so that it ends with its goroutine and runs nothing else.
func unlockThread(home *os.File) {
	err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET)
	if err = errors.Join(err, home.Close()); err == nil {
		runtime.UnlockOSThread()
	}
}

func setns(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(unix.Setns(int(f.Fd()), unix.CLONE_NEWNET), f.Close())
}

// SetSysctl writes a setting of the namespace, named by its path below
// /proc/sys/net.
func (n *Netns) SetSysctl(t testing.TB, name, value string) {
	t.Helper()
	var err error
	n.Do(func() { err = os.WriteFile(filepath.Join("/proc/sys/net", name), []byte(value), 0) })
	if err != nil {
		t.Fatalf("set %s in %s: %v", name, n.Name, err)
	}
}
