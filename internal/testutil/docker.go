package testutil

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

const (
	// dockerCLI is that of Debian's package, whatever else PATH has.
	dockerCLI = "/usr/bin/docker"
	// pluginSocket is where `ebpnet serve --docker` listens, in its directory.
	pluginSocket = "ebpnet.sock"
)

// Docker is a Docker Engine on a host. What it keeps is its own, so that
// several run side by side: its directories, a mount namespace in which some
// of them lie where the engine and its parts insist on them, and a cgroup.
type Docker struct {
	Host   *Host
	Plugin *Process // `ebpnet serve --docker`; set by ServePlugin

	directory string // of all that it keeps
	cgroup    string // the parent of its containers'
	options   []string
	mounts    *os.File // the mount namespace
	daemon    *Process
}

// NewDocker starts a Docker Engine on the host, with options of dockerd, and
// gives it the image Image. It ends with the test, and all of its containers
// with it.
func NewDocker(t testing.TB, h *Host, options ...string) *Docker {
	t.Helper()
	d := &Docker{Host: h, cgroup: uniqueName("docker"), options: options}
	var err error
	// Not t.TempDir: the path of a socket has at most 107 bytes.
	if d.directory, err = os.MkdirTemp("", Prefix()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.remove(t) })
	d.isolate(t)
	d.Start(t)
	d.importImage(t)
	return d
}

// run is the directory that the engine has as /run/docker.
func (d *Docker) run() string { return filepath.Join(d.directory, "run") }

func (d *Docker) log() string { return filepath.Join(d.directory, "log") }

func (d *Docker) socket() string { return filepath.Join(d.run(), "docker.sock") }

// URL is where the engine's API is served.
func (d *Docker) URL() string { return "unix://" + d.socket() }

// isolate makes the engine's mount namespace. In it, directories that the
// engine and its shims share with any other engine are the engine's own, and
// containers' files are in memory.
func (d *Docker) isolate(t testing.TB) {
	t.Helper()
	script := "set -e"
	for own, shared := range map[string]string{
		"run":        "/run/docker",     // plugins
		"containerd": "/run/containerd", // sockets of shims
		"etc":        "/etc/docker",     // the engine's key
	} {
		for _, directory := range []string{filepath.Join(d.directory, own), shared} {
			if err := os.MkdirAll(directory, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		script += fmt.Sprintf("; mount --bind %s %s", filepath.Join(d.directory, own), shared)
	}
	data := d.data()
	if err := os.Mkdir(data, 0o755); err != nil {
		t.Fatal(err)
	}
	script += "; mount -t tmpfs data " + data + "; echo mounted; exec sleep infinity"
	first := d.Host.Start(t, "unshare", "--mount", "--propagation", "private", "sh", "-c", script)
	first.Await(t, "mounted")
	// Open, the namespace stays, and no other is taken for it by its number.
	var err error
	if d.mounts, err = os.Open(fmt.Sprintf("/proc/%d/ns/mnt", first.PID())); err != nil {
		t.Fatal(err)
	}
	first.Kill()
}

func (d *Docker) data() string { return filepath.Join(d.directory, "data") }

// mountNamespace is a path to it for the processes of this test.
func (d *Docker) mountNamespace() string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), d.mounts.Fd())
}

// Start starts the engine again after Stop or Kill, and waits until it answers.
func (d *Docker) Start(t testing.TB) {
	t.Helper()
	// Its output goes to a file, not to this process: containerd, which outlives
	// an engine that is killed, holds it open.
	d.daemon = d.Host.Start(t, "sh", append([]string{
		"-c", `exec "$@" >>"$0" 2>&1`, d.log(),
		"nsenter", "--mount=" + d.mountNamespace(),
		"env", "TMPDIR=" + d.directory,
		"dockerd", "--host", d.URL(), "--data-root", d.data(), "--exec-root", d.run(),
		"--pidfile", filepath.Join(d.run(), "docker.pid"),
		"--storage-driver", "overlay2", "--log-level", "warn",
		"--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", "/" + d.cgroup,
	}, d.options...)...)
	Eventually(t, "the engine listens", func() bool {
		if !d.daemon.Running() {
			t.Fatalf("dockerd has ended:\n%s", d.complaints(t))
		}
		return listens(d.socket())
	})
	d.Run(t, "version") // which the engine answers once it has read its state
}

// Stop ends the engine as its service manager does.
func (d *Docker) Stop(t testing.TB) {
	t.Helper()
	if err := syscall.Kill(d.daemon.PID(), syscall.SIGTERM); err != nil {
		t.Fatalf("end dockerd: %v", err)
	}
	d.daemon.Wait(t)
}

// Kill ends the engine as kill -9 does. Its containerd ends with it, as the
// engine has started it.
func (d *Docker) Kill(t testing.TB) {
	t.Helper()
	file := filepath.Join(d.run(), "containerd", "containerd.pid")
	pid, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	d.daemon.Kill()
	Eventually(t, "containerd ends", func() bool {
		_, err := os.Readlink(filepath.Join("/proc", strings.TrimSpace(string(pid)), "ns/mnt"))
		return err != nil
	})
	// Where init leaves it a zombie, the next engine would believe that it runs.
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
}

// ServePlugin starts `ebpnet serve --docker` beside the engine, and waits until
// it answers there.
func (d *Docker) ServePlugin(t testing.TB) {
	t.Helper()
	argv := d.Host.Command("serve", "--docker", "--docker-plugins", d.plugins(), "--docker-host", d.URL())
	d.Plugin = d.Host.Start(t, argv[0], argv[1:]...)
	Eventually(t, "ebpnet serves the engine", func() bool {
		if !d.Plugin.Running() {
			t.Fatalf("ebpnet serve --docker has ended:\n%s", d.Plugin.Output())
		}
		return listens(filepath.Join(d.plugins(), pluginSocket))
	})
}

func (d *Docker) plugins() string { return filepath.Join(d.run(), "plugins") }

// listens tells whether somebody accepts connections at the socket.
func listens(socket string) bool {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// Run runs docker against the engine, gives its standard output, and fails the
// test if it fails.
func (d *Docker) Run(t testing.TB, args ...string) string {
	t.Helper()
	return d.Host.Run(t, dockerCLI, d.arguments(args)...)
}

// Try runs docker against the engine and gives what it printed.
func (d *Docker) Try(args ...string) (string, error) {
	return d.Host.Try(dockerCLI, d.arguments(args)...)
}

// Begin starts docker against the engine without waiting for its end.
func (d *Docker) Begin(t testing.TB, args ...string) *Process {
	t.Helper()
	return d.Host.Start(t, dockerCLI, d.arguments(args)...)
}

func (d *Docker) arguments(args []string) []string {
	return append([]string{"--config", filepath.Join(d.directory, "cli"), "--host", d.URL()}, args...)
}

// Compose runs docker-compose against the engine for the project that is in
// a directory.
func (d *Docker) Compose(t testing.TB, directory string, args ...string) string {
	t.Helper()
	return d.Host.Run(t, "docker-compose", append([]string{
		"--host", d.URL(), "--project-directory", directory,
		"--file", filepath.Join(directory, "docker-compose.yml"),
	}, args...)...)
}

// Clear removes all containers, and all networks but the engine's own.
func (d *Docker) Clear(t testing.TB) {
	t.Helper()
	var removals []*Process // at once: each waits for its container to end
	for _, id := range strings.Fields(d.Run(t, "ps", "--all", "--quiet")) {
		removals = append(removals, d.Begin(t, "rm", "--force", id))
	}
	for _, removal := range removals {
		removal.Wait(t)
	}
	if all := strings.Fields(d.Run(t, "network", "ls", "--quiet", "--filter", "type=custom")); len(all) > 0 {
		d.Run(t, append([]string{"network", "rm"}, all...)...)
	}
}
