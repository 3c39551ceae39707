package testutil

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// program is what Main builds if it was not told of a binary.
const program = "github.com/ebpnet/ebpnet/cmd/ebpnet"

// devicePrefix begins the name of every device that ebpnet makes on a host.
const devicePrefix = "ebp"

// Main is what TestMain calls for tests that use a Host: it builds ebpnet,
// unless the environment variable EBPNET names one, runs the tests, and then
// looks for what they left behind. It gives the exit code.
func Main(m *testing.M) int {
	if os.Geteuid() != 0 {
		return m.Run() // each test says that it is left out
	}
	before, err := interfaces()
	if err != nil {
		return fail(err)
	}
	// Go finds out once in a process whether it can listen by IPv6: here, and
	// not in a namespace whose lo may be down.
	if l, err := net.Listen("tcp", "[::1]:0"); err == nil {
		l.Close()
	}
	remove, err := build()
	if err != nil {
		return fail(err)
	}
	code := m.Run()
	err = remove()
	if code == 0 { // a failed test has better things to say
		err = errors.Join(err, leftovers(before))
	}
	if err != nil {
		return fail(err)
	}
	return code
}

func fail(err error) int {
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// build makes sure that EBPNET names a binary. It tells how to remove it.
func build() (remove func() error, err error) {
	remove = func() error { return nil }
	if os.Getenv(binaryVariable) != "" {
		return remove, nil
	}
	directory, err := os.MkdirTemp("", "ebpnet-test-")
	if err != nil {
		return remove, err
	}
	remove = func() error { return os.RemoveAll(directory) }
	binary := filepath.Join(directory, "ebpnet")
	if out, err := exec.Command("go", "build", "-o", binary, program).CombinedOutput(); err != nil {
		return remove, errors.Join(fmt.Errorf("build %s: %w\n%s", program, err, out), remove())
	}
	return remove, os.Setenv(binaryVariable, binary)
}

// leftovers tells what of this process is still there, once the kernel had the
// time to take namespaces apart: namespaces, pins, and devices.
func leftovers(before []string) error {
	for deadline := time.Now().Add(patience); ; time.Sleep(pollInterval) {
		var found []string
		for _, directory := range []string{netnsDirectory, bpffsDirectory} {
			left, err := filepath.Glob(filepath.Join(directory, Prefix()+"*"))
			if err != nil {
				return err
			}
			found = append(found, left...)
		}
		now, err := interfaces()
		if err != nil {
			return err
		}
		for _, name := range now {
			if !slices.Contains(before, name) {
				found = append(found, "interface "+name)
			}
		}
		if len(found) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("left behind: %s", strings.Join(found, ", "))
		}
	}
}

// interfaces names the devices of ebpnet outside of any test's namespace.
func interfaces() ([]string, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, i := range all {
		if strings.HasPrefix(i.Name, devicePrefix) {
			names = append(names, i.Name)
		}
	}
	return names, nil
}
