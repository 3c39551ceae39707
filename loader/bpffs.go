package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// bpffsRoot is the usual mount point of bpffs, also of systemd.
const bpffsRoot = "/sys/fs/bpf"

// MountBPFFS mounts a bpffs at /sys/fs/bpf if dir is below it and none is
// mounted there. If several processes find none at the same time, only one
// mounts: a second mount would hide the pins in the first.
func MountBPFFS(dir string) error {
	mounted, err := onBPFFS(dir)
	if err != nil || mounted {
		return err
	}
	rel, err := filepath.Rel(bpffsRoot, dir)
	if err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
		return fmt.Errorf("pin directory %s is not on a bpffs; choose one below %s", dir, bpffsRoot)
	}
	root, err := os.Open(bpffsRoot)
	if err != nil {
		return fmt.Errorf("mount bpffs: %w", err)
	}
	defer root.Close()
	if err := unix.Flock(int(root.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", bpffsRoot, err)
	}
	if mounted, err = onBPFFS(dir); err != nil || mounted {
		return err
	}
	if err := unix.Mount("bpf", bpffsRoot, "bpf", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount bpffs at %s: %w", bpffsRoot, err)
	}
	return nil
}

// onBPFFS reports whether dir, or its first parent that exists, is on a bpffs.
func onBPFFS(dir string) (bool, error) {
	for {
		var fs unix.Statfs_t
		err := unix.Statfs(dir, &fs)
		if err == nil {
			return fs.Type == unix.BPF_FS_MAGIC, nil
		}
		if !errors.Is(err, unix.ENOENT) || dir == filepath.Dir(dir) {
			return false, fmt.Errorf("look at the pin directory: %w", &os.PathError{Op: "statfs", Path: dir, Err: err})
		}
		dir = filepath.Dir(dir)
	}
}
