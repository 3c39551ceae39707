package testutil

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Debian 13's Podman and what it needs are in the directory that an environment
// variable names, or where `make test` unpacks them, as seen from the tests.
const (
	podman5Variable  = "PODMAN5"
	podman5Directory = "../bin/podman5"
)

// Podman5 is Podman with ebpnet as a netavark plugin on a host. It has a view
// of its own of the machine's files, in which /usr is Debian 13's where that
// has something and /run is empty, and of its processes: all of them go with
// the test.
type Podman5 struct {
	Host *Host

	directory string
	cgroup    string   // the parent of its containers'
	holder    *Process // keeps the view
}

// NewPodman5 starts nothing but the view: Podman has no daemon. Its only image
// is Image.
func NewPodman5(t testing.TB, h *Host) *Podman5 {
	t.Helper()
	usr, err := filepath.Abs(filepath.Join(cmp.Or(os.Getenv(podman5Variable), podman5Directory), "usr"))
	if err == nil {
		_, err = os.Stat(filepath.Join(usr, "bin/podman"))
	}
	if err != nil {
		t.Fatalf("Podman 5: %v; 'make test' unpacks it, or %s names its directory", err, podman5Variable)
	}
	p := &Podman5{Host: h, directory: t.TempDir(), cgroup: uniqueName("podman5")}
	p.configure(t)
	// The containers' processes go with the view, but their cgroups do not.
	t.Cleanup(func() {
		Eventually(t, "the containers' cgroups are empty", func() bool { return removeCgroups(p.cgroup) == nil })
	})
	view := fmt.Sprintf("mount -t overlay overlay -o lowerdir=%s:/usr /usr && mount -t tmpfs tmpfs /run && echo ready && exec sleep infinity", usr)
	p.holder = h.Start(t, "unshare", "--mount", "--mount-proc", "--pid", "--fork", "--kill-child", "sh", "-c", view)
	p.holder.Await(t, "ready")
	archive := filepath.Join(p.directory, "image.tar")
	if err := writeImage(archive, strings.Fields(h.Run(t, busybox, "--list"))); err != nil {
		t.Fatalf("write an image: %v", err)
	}
	p.Run(t, "import", archive, Image)
	t.Cleanup(func() { p.Run(t, "rm", "--all", "--force", "--time", "0") })
	return p
}

// configure writes what Podman reads. The runtime is runc, and the cgroups are
// its own, as crun takes no hybrid of cgroup versions and systemd may be
// missing.
func (p *Podman5) configure(t testing.TB) {
	t.Helper()
	for name, text := range map[string]string{
		"containers.conf": `
[containers]
default_ulimits = ["nofile=4096:4096"]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
runtime = "runc"
static_dir = "DIR/static"
tmp_dir = "DIR/tmp"
volume_path = "DIR/volumes"
[network]
network_backend = "netavark"
network_config_dir = "DIR/networks"
netavark_plugin_dirs = ["DIR/plugins"]
`,
		"storage.conf": `
[storage]
driver = "vfs"
graphroot = "DIR/store"
runroot = "DIR/run"
`,
		"plugins/ebpnet": "#!/bin/sh\nexec " + strings.Join(p.Host.Command(), " ") + " \"$@\"\n",
	} {
		path := filepath.Join(p.directory, name)
		text = strings.ReplaceAll(text, "DIR", p.directory)
		err := os.MkdirAll(filepath.Dir(path), 0o700)
		if err = errors.Join(err, os.WriteFile(path, []byte(text), 0o700)); err != nil {
			t.Fatal(err)
		}
	}
}

// inView is the command line that runs podman in its view.
func (p *Podman5) inView(args []string) (string, []string) {
	ns := "/proc/" + strconv.Itoa(p.holder.PID()) + "/ns/"
	return "nsenter", append([]string{
		"--mount=" + ns + "mnt", "--pid=" + ns + "pid_for_children",
		"env", "CONTAINERS_CONF=" + p.directory + "/containers.conf",
		"CONTAINERS_STORAGE_CONF=" + p.directory + "/storage.conf",
		"CONTAINERS_REGISTRIES_CONF=/dev/null", "PODMAN_IGNORE_CGROUPSV1_WARNING=1",
		"podman",
	}, args...)
}

// Run runs podman on the host, gives its standard output, and fails the test
// if it fails.
func (p *Podman5) Run(t testing.TB, args ...string) string {
	t.Helper()
	name, all := p.inView(args)
	return p.Host.Run(t, name, all...)
}

// Try runs podman on the host; see Netns.Try.
func (p *Podman5) Try(args ...string) (string, error) {
	name, all := p.inView(args)
	return p.Host.Try(name, all...)
}

// RunArgs are the arguments that run a container which waits to be ended.
func (p *Podman5) RunArgs(name string, args ...string) []string {
	run := append([]string{"run", "--detach", "--cgroup-parent", "/" + p.cgroup, "--name", name}, args...)
	return append(run, Image, "sleep", "infinity")
}

// Start runs a container, with arguments of podman run, and gives its network
// namespace.
func (p *Podman5) Start(t testing.TB, name string, args ...string) *Netns {
	t.Helper()
	p.Run(t, p.RunArgs(name, args...)...)
	return p.Namespace(t, name)
}

// Namespace gives the network namespace that a container has now. It is kept
// until the end of the test, or Remove.
func (p *Podman5) Namespace(t testing.TB, container string) *Netns {
	t.Helper()
	key := strings.TrimSpace(p.Run(t, "inspect", "--format", "{{.NetworkSettings.SandboxKey}}", container))
	n := &Netns{Name: uniqueName(container)}
	err := os.WriteFile(n.Path(), nil, 0o444)
	if err == nil {
		source := fmt.Sprintf("/proc/%d/root%s", p.holder.PID(), key)
		err = unix.Mount(source, n.Path(), "", unix.MS_BIND, "")
	}
	t.Cleanup(func() { n.Remove(t) })
	if err != nil {
		t.Fatalf("namespace %s of container %s: %v", key, container, err)
	}
	return n
}

// TryNetavark calls ebpnet as netavark calls its plugins, and gives what it
// answers.
func (h *Host) TryNetavark(t testing.TB, input string, args ...string) (answer string, code int) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "input.json")
	if err := os.WriteFile(file, []byte(input), 0o600); err != nil {
		t.Fatal(err)
	}
	script := []string{"-c", `exec "$@" <` + file, "sh"}
	answer, _, err := h.output("sh", append(script, h.Command(args...)...)...)
	return answer, exitCode(err)
}
