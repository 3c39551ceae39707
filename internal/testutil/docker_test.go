package testutil

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Two engines run side by side, and nothing is left of them.
func TestDocker(t *testing.T) {
	t.Parallel()
	var engines []*Docker
	var containers []*DockerContainer
	t.Run("engines", func(t *testing.T) {
		for _, name := range []string{"a", "b"} {
			d := NewDocker(t, NewHost(t, name))
			d.Run(t, "network", "create", "--subnet", "172.30.0.0/24", "net")
			engines, containers = append(engines, d), append(containers, d.NewContainer(t, "web", "net"))
		}
		for i, c := range containers {
			if out := c.Exec(t, "ip", "-o", "addr", "show", Device); !strings.Contains(out, c.IP4.String()+"/24") {
				t.Errorf("want address %s in the container:\n%s", c.IP4, out)
			}
			engines[i].Kill(t)
			engines[i].Start(t)
			engines[i].Stop(t)
			engines[i].Start(t)
		}
		if containers[0].ID == containers[1].ID {
			t.Error("both are one engine")
		}
	})
	for i, d := range engines {
		if _, err := os.Stat(d.directory); !os.IsNotExist(err) {
			t.Errorf("%s: %v", d.directory, err)
		}
		if left, err := filepath.Glob(filepath.Join(cgroupDirectory, "*", d.cgroup)); err != nil || len(left) > 0 {
			t.Errorf("cgroups %q are left: %v", left, err)
		}
		if _, err := os.Lstat(containers[i].Path()); !os.IsNotExist(err) {
			t.Errorf("%s: %v", containers[i].Path(), err)
		}
	}
}
