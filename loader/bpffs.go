package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// bpffsRoot is where the kernel's documentation and systemd mount bpffs.
const bpffsRoot = "/sys/fs/bpf"

// MountBPFFS sees to it that dir can be made on a bpffs: it mounts one at
// /sys/fs/bpf if dir is to lie there and none is mounted yet.
func MountBPFFS(dir string) error {
	existing := dir
	for {
		var fs unix.Statfs_t
		err := unix.Statfs(existing, &fs)
		if err == nil {
			if fs.Type == unix.BPF_FS_MAGIC {
				return nil
			}
			break
		}
		if !errors.Is(err, unix.ENOENT) || existing == "/" {
			return fmt.Errorf("look at the pin directory: %w", &os.PathError{Op: "statfs", Path: existing, Err: err})
		}
		existing = filepath.Dir(existing)
	}
	rel, err := filepath.Rel(bpffsRoot, dir)
	if err != nil || rel == ".." || len(rel) > 2 && rel[:3] == "../" {
		return fmt.Errorf("pin directory %s is not on a bpffs; choose one below %s", dir, bpffsRoot)
	}
	if err := unix.Mount("bpf", bpffsRoot, "bpf", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount bpffs at %s: %w", bpffsRoot, err)
	}
	return nil
}
