package testutil

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// runcDirectory is where runc keeps what runs, by the containers' ids.
const runcDirectory = "/run/runc"

// Podman4 is Debian 12's Podman with its CNI backend on a host. All that it
// keeps is its own, so that several run side by side.
type Podman4 struct {
	Host     *Host
	Networks string // directory of network configurations

	directory string
	cgroup    string // the parent of its containers'
}

// NewPodman4 starts nothing: Podman has no daemon. Its only image is Image. Its
// containers end with the test.
func NewPodman4(t testing.TB, h *Host) *Podman4 {
	t.Helper()
	// Not t.TempDir: Podman wants short paths.
	directory, err := os.MkdirTemp("", Prefix())
	if err != nil {
		t.Fatal(err)
	}
	p := &Podman4{Host: h, directory: directory, cgroup: uniqueName("podman"), Networks: filepath.Join(directory, "networks")}
	t.Cleanup(func() { p.remove(t) })
	p.configure(t)
	archive := filepath.Join(directory, "image.tar")
	if err := writeImage(archive, strings.Fields(h.Run(t, busybox, "--list"))); err != nil {
		t.Fatalf("write an image: %v", err)
	}
	p.Run(t, "import", archive, Image)
	return p
}

// configure writes what Podman reads. Locks in files are its own, unlike those
// in shared memory; limits are below those that a test may run under.
func (p *Podman4) configure(t testing.TB) {
	t.Helper()
	makeCNIDirectories(t, p.Networks, filepath.Join(p.directory, "plugins"))
	for path, text := range map[string]string{filepath.Join(p.directory, "containers.conf"): podmanConf, p.program(): podmanScript} {
		text = strings.ReplaceAll(text, "DIRECTORY", p.directory)
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

const podmanConf = `[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
runtime = "runc"
[network]
network_backend = "cni"
cni_plugin_dirs = ["DIRECTORY/plugins"]
network_config_dir = "DIRECTORY/networks"
`

// program is a script that runs podman, which keeps no layers that would have to
// be unmounted.
func (p *Podman4) program() string { return filepath.Join(p.directory, "podman") }

const podmanScript = `#!/bin/sh
export CONTAINERS_CONF=DIRECTORY/containers.conf
exec podman --root DIRECTORY/root --runroot DIRECTORY/run --tmpdir DIRECTORY/tmp --storage-driver vfs "$@"
`

// Run runs podman on the host, gives its standard output, and fails the test
// if it fails.
func (p *Podman4) Run(t testing.TB, args ...string) string {
	t.Helper()
	return p.Host.Run(t, p.program(), args...)
}

// Try runs podman on the host; see Netns.Try.
func (p *Podman4) Try(args ...string) (string, error) { return p.Host.Try(p.program(), args...) }

// Begin starts podman without waiting for its end.
func (p *Podman4) Begin(t testing.TB, args ...string) *Process {
	t.Helper()
	return p.Host.Start(t, p.program(), args...)
}

// RunArgs are the arguments that run a container which waits to be ended.
func (p *Podman4) RunArgs(name string, args ...string) []string {
	run := append([]string{"run", "--detach", "--cgroup-parent", "/" + p.cgroup, "--name", name}, args...)
	return append(run, Image, "sleep", "infinity")
}

// Start runs a container, with arguments of podman run.
func (p *Podman4) Start(t testing.TB, name string, args ...string) {
	t.Helper()
	p.Run(t, p.RunArgs(name, args...)...)
}

// Namespace is the network namespace that a container has now.
func (p *Podman4) Namespace(t testing.TB, container string) *Netns {
	t.Helper()
	path := strings.TrimSpace(p.Run(t, "inspect", "--format", "{{.NetworkSettings.SandboxKey}}", container))
	if filepath.Dir(path) != netnsDirectory {
		t.Fatalf("container %s is in namespace %q, want one in %s", container, path, netnsDirectory)
	}
	return &Netns{Name: filepath.Base(path)}
}

// Clear removes all containers.
func (p *Podman4) Clear(t testing.TB) {
	t.Helper()
	p.Run(t, "rm", "--all", "--force", "--time", "0")
}

// Crash takes away from the running containers what the machine's end takes
// away, without a word to anybody, so that Podman begins as after a reboot.
func (p *Podman4) Crash(t testing.TB) {
	t.Helper()
	gone := []string{filepath.Join(p.directory, "run"), filepath.Join(p.directory, "tmp")}
	for _, id := range strings.Fields(p.Run(t, "ps", "--quiet", "--no-trunc")) {
		n := p.Namespace(t, id)
		// conmon first, or it would tell of the other's end.
		for _, text := range strings.Fields(p.Run(t, "inspect", "--format", "{{.State.ConmonPid}} {{.State.Pid}}", id)) {
			pid, err := strconv.Atoi(text)
			if err == nil {
				err = unix.Kill(pid, unix.SIGKILL)
			}
			if err != nil {
				t.Fatalf("kill process %s of container %s: %v", text, id, err)
			}
		}
		n.Remove(t)
		gone = append(gone, filepath.Join(runcDirectory, id))
	}
	p.unmount(t)
	for _, directory := range gone {
		if err := os.RemoveAll(directory); err != nil {
			t.Fatal(err)
		}
	}
}

// unmount unmounts what containers have mounted below Podman's directory.
func (p *Podman4) unmount(t testing.TB) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); strings.HasPrefix(fields[1], p.directory+"/") {
			if err := unix.Unmount(fields[1], unix.MNT_DETACH); err != nil {
				t.Errorf("unmount %s: %v", fields[1], err)
			}
		}
	}
}

func (p *Podman4) remove(t testing.TB) {
	t.Helper()
	p.Clear(t)
	Eventually(t, "the containers' cgroups are empty", func() bool {
		var left int
		for _, pattern := range []string{p.cgroup, filepath.Join("*", p.cgroup)} {
			found, err := filepath.Glob(filepath.Join(cgroupDirectory, pattern))
			if err != nil {
				t.Fatal(err)
			}
			for _, top := range found {
				if removeCgroup(top) != nil {
					left++
				}
			}
		}
		return left == 0
	})
	if err := os.RemoveAll(p.directory); err != nil {
		t.Errorf("remove Podman's files: %v", err)
	}
}
