package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// lab is the namespaces of one topology and how to remove them. Its first
// failure is kept in err, and everything after it does nothing, so that a
// topology reads as a plain list of what it is made of.
type lab struct {
	ctx    context.Context // ends the building, never the removing
	prefix string          // of every name made, unique to this process
	cpu    int             // that client and server share
	undo   []func() error
	err    error

	daemons []int // processes started, by id
}

// namesake begins the name of everything bench makes.
const namesake = "ebpnet-bench"

// commandTimeout is far more than any command that builds a topology takes.
const commandTimeout = 2 * time.Minute

func newLab(ctx context.Context, topology string, cpu int) *lab {
	return &lab{ctx: ctx, prefix: fmt.Sprintf("%s-%d-%s", namesake, os.Getpid(), topology), cpu: cpu}
}

// close removes what was made, last first, even after an interrupt.
func (l *lab) close() error {
	var errs []error
	for _, undo := range slices.Backward(l.undo) {
		errs = append(errs, undo())
	}
	l.undo = nil
	return errors.Join(errs...)
}

// netns makes a network namespace, lo up, and gives its name.
func (l *lab) netns(role string) string {
	name := l.prefix + "-" + role
	if l.run("ip", "netns", "add", name) {
		l.undo = append(l.undo, func() error { return command("", "ip", "netns", "del", name) })
	}
	l.run("ip", "-n", name, "link", "set", "lo", "up")
	return name
}

// veth joins two namespaces by a pair of devices, up.
func (l *lab) veth(ns, dev, peerNs, peerDev string) {
	l.run("ip", "-n", ns, "link", "add", dev, "type", "veth", "peer", "name", peerDev, "netns", peerNs)
	l.run("ip", "-n", ns, "link", "set", dev, "up")
	l.run("ip", "-n", peerNs, "link", "set", peerDev, "up")
}

// address gives a device an address and its subnet.
func (l *lab) address(ns, dev string, addr netip.Addr) {
	l.run("ip", "-n", ns, "address", "add", netip.PrefixFrom(addr, subnet.Bits()).String(), "dev", dev)
}

// in runs a command in a namespace: only its network changes, /sys stays.
func (l *lab) in(ns string, args ...string) bool {
	return l.run(inNetns(ns, args...)...)
}

// run runs a command and tells whether it succeeded. Once started it is
// not interrupted: half a command could not be undone.
func (l *lab) run(args ...string) bool { return l.runWith("", args...) }

func (l *lab) runWith(stdin string, args ...string) bool {
	return l.try(func() error { return command(stdin, args...) })
}

// try does something unless something has failed before, or the building has
// been ended, and tells whether it succeeded.
func (l *lab) try(do func() error) bool {
	if l.err == nil {
		l.err = l.ctx.Err()
	}
	if l.err == nil {
		l.err = do()
	}
	return l.err == nil
}

// directory makes a directory that close removes, with what is in it.
func (l *lab) directory(path string) {
	if l.try(func() error { return os.Mkdir(path, 0o700) }) {
		l.undo = append(l.undo, func() error { return os.RemoveAll(path) })
	}
}

func inNetns(ns string, args ...string) []string {
	return append([]string{"nsenter", "--net=" + netnsPath(ns)}, args...)
}

func netnsPath(name string) string { return filepath.Join("/run/netns", name) }

// command runs a command; its error holds what it said.
func command(stdin string, args ...string) error {
	_, err := execute(stdin, args...)
	return err
}

// outcome is what a command said, and how long it took.
type outcome struct {
	stdout []byte
	took   time.Duration
}

// execute is command, and gives the outcome.
func execute(stdin string, args ...string) (outcome, error) {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	cmd.SysProcAttr = apart()
	cmd.Env = environment()
	began := time.Now()
	if err := cmd.Run(); err != nil {
		said := append(stdout.Bytes(), stderr.Bytes()...)
		return outcome{}, fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(said))
	}
	return outcome{stdout.Bytes(), time.Since(began)}, nil
}

// environment is for commands: a store or pin directory of the caller's must
// never be the one measured.
func environment() []string {
	return slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "EBPNET_") })
}
