package testutil

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
)

// endpointDigits is how much of the engine's id of an endpoint is the name of
// ebpnet's.
const endpointDigits = 12

// DockerContainer is a container of a Docker Engine. It is a Container as what
// it is on the network that it was started on.
type DockerContainer struct {
	*Container
	Name, ID string // as the engine calls it
	PID      int    // of its program

	docker  *Docker
	network string
}

// NewContainer runs a container of Image on a network of the engine, with
// arguments of docker run before the image.
func (d *Docker) NewContainer(t testing.TB, name, network string, args ...string) *DockerContainer {
	t.Helper()
	run := []string{"run", "--detach", "--name", name, "--network", network}
	d.Run(t, append(append(run, args...), Image)...)
	return d.Container(t, name, network)
}

// Container is a container of the engine that runs already, as it is on one of
// its networks.
func (d *Docker) Container(t testing.TB, name, network string) *DockerContainer {
	t.Helper()
	c := &DockerContainer{
		Container: &Container{Netns: &Netns{Name: uniqueName(name)}, Host: d.Host},
		Name:      name, docker: d, network: network,
	}
	t.Cleanup(func() { c.forget(t) })
	c.Look(t)
	return c
}

// inspected is what `docker inspect` says of a container.
type inspected struct {
	ID    string `json:"Id"`
	State struct {
		Pid int
	}
	NetworkSettings struct {
		Networks map[string]struct {
			EndpointID, IPAddress, GlobalIPv6Address, MacAddress string
		}
	}
}

// Look finds out anew what the container is, after the engine has started it
// or changed its networks.
func (c *DockerContainer) Look(t testing.TB) {
	t.Helper()
	var all []inspected
	out := c.docker.Run(t, "inspect", c.Name)
	if err := json.Unmarshal([]byte(out), &all); err != nil || len(all) != 1 {
		t.Fatalf("docker inspect %s: %v\n%s", c.Name, err, out)
	}
	c.ID, c.PID = all[0].ID, all[0].State.Pid
	on, there := all[0].NetworkSettings.Networks[c.network]
	if !there || on.EndpointID == "" || c.PID == 0 {
		t.Fatalf("container %s does not run on network %s:\n%s", c.Name, c.network, out)
	}
	c.Endpoint = on.EndpointID[:endpointDigits]
	var err error
	if c.MAC, err = net.ParseMAC(on.MacAddress); err != nil {
		t.Fatalf("container %s: %v", c.Name, err)
	}
	// An address that it does not have stays the zero one.
	c.IP4, _ = netip.ParseAddr(on.IPAddress)
	c.IP6, _ = netip.ParseAddr(on.GlobalIPv6Address)
	c.forget(t)
	// Nothing here keeps the namespace when the container's program ends.
	if err := os.Symlink(fmt.Sprintf("/proc/%d/ns/net", c.PID), c.Path()); err != nil {
		t.Fatal(err)
	}
}

func (c *DockerContainer) forget(t testing.TB) {
	t.Helper()
	if err := os.Remove(c.Path()); err != nil && !os.IsNotExist(err) {
		t.Errorf("container %s: %v", c.Name, err)
	}
}

// On gives the container as it is on another of its networks.
func (c *DockerContainer) On(t testing.TB, network string) *DockerContainer {
	t.Helper()
	return c.docker.Container(t, c.Name, network)
}

// Restart restarts the container, which has a new namespace then.
func (c *DockerContainer) Restart(t testing.TB) {
	t.Helper()
	c.docker.Run(t, "restart", c.Name)
	c.Look(t)
}

// Exec runs a program in the container, as docker exec does, and gives its
// output.
func (c *DockerContainer) Exec(t testing.TB, args ...string) string {
	t.Helper()
	return c.docker.Run(t, append([]string{"exec", c.Name}, args...)...)
}
