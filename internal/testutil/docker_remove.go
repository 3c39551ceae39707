package testutil

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

const cgroupDirectory = "/sys/fs/cgroup"

// remove ends all that the engine has started, and takes away its files. Its
// mounts go with the last process in their namespace.
func (d *Docker) remove(t testing.TB) {
	t.Helper()
	if t.Failed() {
		t.Logf("the engine on %s:\n%s", d.Host.Name, d.complaints(t))
	}
	Eventually(t, "no process of the engine is left", func() bool {
		all := d.processes(t)
		for _, pid := range all {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended by itself
		}
		return len(all) == 0
	})
	Eventually(t, "the engine's cgroups are empty", func() bool { return removeCgroups(d.cgroup) == nil })
	if d.mounts != nil {
		d.mounts.Close()
	}
	if err := os.RemoveAll(d.directory); err != nil {
		t.Errorf("remove the engine's files: %v", err)
	}
}

// complaints are what the engine has printed that tells of more than progress.
func (d *Docker) complaints(t testing.TB) string {
	t.Helper()
	text, err := os.ReadFile(d.log())
	if err != nil {
		t.Errorf("read the engine's log: %v", err)
	}
	all := strings.SplitAfter(string(text), "\n")
	return strings.Join(slices.DeleteFunc(all, func(line string) bool { return strings.Contains(line, "level=info") }), "")
}

// processes are those in the engine's mount namespace (the engine, containerd,
// shims) and in its cgroups (the containers').
func (d *Docker) processes(t testing.TB) (all []int) {
	t.Helper()
	if d.mounts == nil {
		return nil // nothing is started yet
	}
	mounts, err := os.Readlink(d.mountNamespace())
	if err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		directory := filepath.Join("/proc", entry.Name())
		// What cannot be read has ended since.
		namespace, _ := os.Readlink(filepath.Join(directory, "ns/mnt"))
		cgroups, _ := os.ReadFile(filepath.Join(directory, "cgroup"))
		if namespace == mounts || strings.Contains(string(cgroups), d.cgroup) {
			all = append(all, pid)
		}
	}
	return all
}

// removeCgroups removes a cgroup and what is below, in the one hierarchy of
// version 2 and in those of version 1.
func removeCgroups(name string) (err error) {
	for _, pattern := range []string{name, filepath.Join("*", name)} {
		found, globErr := filepath.Glob(filepath.Join(cgroupDirectory, pattern))
		err = errors.Join(err, globErr)
		for _, top := range found {
			err = errors.Join(err, removeCgroup(top))
		}
	}
	return err
}

func removeCgroup(top string) error {
	var all []string
	err := filepath.WalkDir(top, func(path string, entry os.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			all = append(all, path)
		}
		return err
	})
	for _, path := range slices.Backward(all) { // the inner ones first
		err = errors.Join(err, os.Remove(path))
	}
	return err
}
