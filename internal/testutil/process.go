package testutil

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// commandLimit ends a command that hangs, long after the slowest is done.
const commandLimit = 5 * time.Minute

// Process is a program running inside a namespace.
type Process struct {
	cmd    *exec.Cmd
	output lockedBuffer
	done   chan struct{}
	err    error // of the program; read it after done
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// start starts cmd inside the namespace, to die with the test process.
func (n *Netns) start(cmd *exec.Cmd) (err error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	n.Do(func() { err = cmd.Start() })
	return err
}

// Run runs a program inside the namespace, gives its standard output, and
// fails the test if the program fails.
func (n *Netns) Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	stdout, stderr, err := n.output(name, args...)
	if err != nil {
		t.Fatalf("in %s: %s: %v\n%s%s", n.Name, commandLine(name, args), err, stdout, stderr)
	}
	return stdout
}

// Try runs a program inside the namespace and gives its standard output and
// its standard error, in this order. The error is an *exec.ExitError if the
// program ran and failed.
func (n *Netns) Try(name string, args ...string) (string, error) {
	stdout, stderr, err := n.output(name, args...)
	return stdout + stderr, err
}

func (n *Netns) output(name string, args ...string) (stdout, stderr string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	var out, errOut bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err = n.start(cmd); err == nil {
		err = cmd.Wait()
	}
	return out.String(), errOut.String(), err
}

// Start runs a program inside the namespace until it ends, is stopped, or the
// test is over. A failing test logs what it printed.
func (n *Netns) Start(t testing.TB, name string, args ...string) *Process {
	t.Helper()
	p := &Process{cmd: exec.Command(name, args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = &p.output, &p.output
	if err := n.start(p.cmd); err != nil {
		t.Fatalf("in %s: start %s: %v", n.Name, commandLine(name, args), err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("in %s: %s:\n%s", n.Name, commandLine(name, args), p.Output())
		}
	})
	return p
}

// Output is what the program has printed so far.
func (p *Process) Output() string { return p.output.String() }

// PID is the program's process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Running tells whether the program has not ended yet.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Await waits until the program has printed text.
func (p *Process) Await(t testing.TB, text string) {
	t.Helper()
	Eventually(t, fmt.Sprintf("%s prints %q", p.cmd.Path, text), func() bool {
		return strings.Contains(p.Output(), text)
	})
}

// Wait waits until the program has ended by itself, fails the test if it took
// too long or failed, and gives what it printed.
func (p *Process) Wait(t testing.TB) string {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(commandLimit):
		t.Fatalf("%s has not ended within %v:\n%s", p.cmd.Path, commandLimit, p.Output())
	}
	if p.err != nil {
		t.Fatalf("%s: %v\n%s", p.cmd.Path, p.err, p.Output())
	}
	return p.Output()
}

// Kill ends the program as kill -9 does, and waits until it is gone.
func (p *Process) Kill() { p.end(syscall.SIGKILL) }

// Interrupt ends the program as Ctrl-C does, waits until it is gone, and gives
// what it printed.
func (p *Process) Interrupt() string {
	p.end(syscall.SIGINT)
	return p.Output()
}

func (p *Process) end(sig syscall.Signal) {
	_ = p.cmd.Process.Signal(sig) // it may have ended by itself
	<-p.done
}

// exitCode is -1 for a program that did not run or was killed.
func exitCode(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	return -1
}

func commandLine(name string, args []string) string {
	return strings.Join(append([]string{name}, args...), " ")
}
