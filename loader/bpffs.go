package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// bpffsRoot is where the kernel's documentation and systemd mount bpffs.
const bpffsRoot = "/sys/fs/bpf"

// MountBPFFS sees to it that dir can be made on a bpffs: it mounts one at
// /sys/fs/bpf if dir is to lie there and none is mounted yet. Of several
// processes that see none at once, only one mounts: a second mount would hide
// what is pinned in the first.
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

// onBPFFS tells whether dir is on a bpffs, or would be if it were made.
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
