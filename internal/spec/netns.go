package spec

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
)

// Netns says where a network namespace is found. Inode tells one namespace
// from a later one at the same path; zero where it was not looked at yet.
type Netns struct {
	Path  string `json:"path"`
	Inode uint64 `json:"inode,omitempty"`
	Boot  string `json:"boot,omitempty"` // boot id of the kernel it was last seen on
}

// Directories in which namespaces are found by name and by process.
const (
	netnsDirectory = "/run/netns"
	procDirectory  = "/proc"
)

// ParseNetns reads PATH (it begins with a slash), pid:N or NAME, as made by
// `ip netns add NAME`.
func ParseNetns(s string) (Netns, error) {
	if pid, ok := strings.CutPrefix(s, "pid:"); ok {
		n, err := strconv.ParseUint(pid, 10, 31)
		if err != nil || n == 0 {
			return Netns{}, fmt.Errorf("%w namespace %q: %q is not a process id", ErrInvalid, s, pid)
		}
		return Netns{Path: filepath.Join(procDirectory, strconv.FormatUint(n, 10), "ns/net")}, nil
	}
	if strings.HasPrefix(s, "/") {
		return Netns{Path: filepath.Clean(s)}, nil
	}
	if err := Name("namespace", s); err != nil {
		return Netns{}, fmt.Errorf("%w; or a path from /, or pid:N", err)
	}
	return Netns{Path: filepath.Join(netnsDirectory, s)}, nil
}

// Ephemeral tells whether the path may come to mean another namespace once
// the first is gone, as a process id does.
func (n Netns) Ephemeral() bool { return strings.HasPrefix(n.Path, procDirectory+"/") }
