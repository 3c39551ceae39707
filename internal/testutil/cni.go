package testutil

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

const (
	// CNIPlugin is the name by which ebpnet is a plugin of CNI.
	CNIPlugin = "ebpnet-cni"
	// cniPlugins is where Debian keeps those of containernetworking-plugins.
	cniPlugins = "/usr/lib/cni"
	cniTool    = "github.com/containernetworking/cni/cnitool" // of the version in go.mod
)

// CNI is what container runtimes on a host have for the Container Network
// Interface.
type CNI struct {
	Host     *Host
	Networks string // directory of network configurations
	Plugins  string // directory of plugins: ebpnet's and Debian's

	tool string // cnitool
}

// NewCNI makes the directories and builds cnitool.
func NewCNI(t testing.TB, h *Host) *CNI {
	t.Helper()
	directory := t.TempDir()
	c := &CNI{Host: h, Networks: filepath.Join(directory, "networks"), Plugins: filepath.Join(directory, "plugins"), tool: filepath.Join(directory, "cnitool")}
	makeCNIDirectories(t, c.Networks, c.Plugins)
	if out, err := exec.Command("go", "build", "-o", c.tool, cniTool).CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", cniTool, err, out)
	}
	return c
}

// makeCNIDirectories makes a directory of networks, and one of plugins with
// links to what there is.
func makeCNIDirectories(t testing.TB, networks, plugins string) {
	t.Helper()
	for _, directory := range []string{networks, plugins} {
		if err := os.MkdirAll(directory, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	there, err := filepath.Glob(filepath.Join(cniPlugins, "*"))
	if err != nil {
		t.Fatal(err)
	}
	links := map[string]string{CNIPlugin: os.Getenv(binaryVariable)}
	for _, path := range there {
		links[filepath.Base(path)] = path
	}
	for name, path := range links {
		if err := os.Symlink(path, filepath.Join(plugins, name)); err != nil {
			t.Fatal(err)
		}
	}
}

// WriteCNINetwork writes the conflist of a network into the directory, for a
// version of the spec, with plugins each of which calls another.
func WriteCNINetwork(t testing.TB, directory, name, version string, plugins ...map[string]any) {
	t.Helper()
	text, err := json.MarshalIndent(map[string]any{"cniVersion": version, "name": name, "plugins": plugins}, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(directory, name+".conflist"), text, 0o644); err != nil {
		t.Fatal(err)
	}
}

// environment is what tells plugins where they are, and where the host's state
// lies.
func (c *CNI) environment(more []string) []string {
	return append([]string{"CNI_PATH=" + c.Plugins, "NETCONFPATH=" + c.Networks, "EBPNET_STATE=" + c.Host.State, "EBPNET_PIN=" + c.Host.Pin}, more...)
}

// TryTool runs cnitool for a network and a namespace on the host, with
// variables NAME=VALUE in its environment. It gives what cnitool printed: the
// result on standard output, what failed on standard error.
func (c *CNI) TryTool(verb, network string, n *Netns, variables ...string) (stdout, stderr string, err error) {
	command := append(c.environment(variables), c.tool, verb, network, n.Path())
	return c.Host.output("env", command...)
}

// Tool is TryTool that fails the test if cnitool fails, and gives the result.
func (c *CNI) Tool(t testing.TB, verb, network string, n *Netns, variables ...string) string {
	t.Helper()
	stdout, stderr, err := c.TryTool(verb, network, n, variables...)
	if err != nil {
		t.Fatalf("on %s: cnitool %s %s %s: %v\n%s%s", c.Host.Name, verb, network, n.Name, err, stdout, stderr)
	}
	return stdout
}

// Attachment is what a runtime calls a plugin for.
type Attachment struct {
	ContainerID, Netns, Ifname string
	Args                       string // CNI_ARGS
}

// CNIError is what a plugin says if it fails.
type CNIError struct {
	Code uint   `json:"code"`
	Msg  string `json:"msg"`
}

// Call calls ebpnet's plugin as a runtime does, with a configuration that is
// marshalled to JSON. failed is what the plugin said of its failure, stderr what
// else it had to say.
func (c *CNI) Call(t testing.TB, verb string, at Attachment, conf any) (stdout, stderr string, failed *CNIError) {
	t.Helper()
	command := c.command(t, verb, at, conf)
	stdout, stderr, err := c.Host.output(command[0], command[1:]...)
	if err == nil {
		return stdout, stderr, nil
	}
	failed = &CNIError{}
	if exitCode(err) != 1 || json.Unmarshal([]byte(stdout), failed) != nil {
		t.Fatalf("on %s: %s %s: %v\n%s%s", c.Host.Name, CNIPlugin, verb, err, stdout, stderr)
	}
	return "", stderr, failed
}

// BeginCall is Call that does not wait for the plugin.
func (c *CNI) BeginCall(t testing.TB, verb string, at Attachment, conf any) *Process {
	t.Helper()
	command := c.command(t, verb, at, conf)
	return c.Host.Start(t, command[0], command[1:]...)
}

func (c *CNI) command(t testing.TB, verb string, at Attachment, conf any) []string {
	t.Helper()
	text, err := json.Marshal(conf)
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.CreateTemp(t.TempDir(), "conf")
	if err == nil {
		_, err = file.Write(text)
		err = errors.Join(err, file.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	variables := c.environment([]string{
		"CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + at.ContainerID, "CNI_NETNS=" + at.Netns, "CNI_IFNAME=" + at.Ifname, "CNI_ARGS=" + at.Args,
	})
	return slices.Concat([]string{"env"}, variables, []string{"sh", "-c", `exec "$0" <"$1"`, filepath.Join(c.Plugins, CNIPlugin), file.Name()})
}
