package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// maxLines of an answer are shown.
const maxLines = 30

const (
	readyLimit   = 10 * time.Second
	pollInterval = 20 * time.Millisecond
)

// expectation is what a command should give, and what that says.
type expectation struct {
	says   string
	ok     func(out string, err error) bool
	filter []string // only lines with one of these are shown
}

// showing cuts a long answer to the lines that have one of the words.
func (e expectation) showing(words ...string) expectation {
	e.filter = words
	return e
}

func (d *demo) title(text string) {
	if d.ctx.Err() == nil {
		fmt.Printf("\n== %s\n", text)
	}
}

// command runs line in a place. Containers get the /etc/hosts that was set for
// them, from `ip netns exec`. For ebpnet it would hide bpffs, hence nsenter.
func (d *demo) command(where place, line string) *exec.Cmd {
	args := strings.Fields(line)
	if args[0] == "ebpnet" {
		args[0] = d.ebpnet
	}
	enter := []string{"ip", "netns", "exec", where.netns.Name}
	if args[0] == d.ebpnet {
		enter = []string{"nsenter", "--net=" + where.netns.Path()}
	}
	args = append(enter, args...)
	cmd := exec.CommandContext(d.ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(),
		"EBPNET_STATE="+filepath.Join(directory, where.name),
		"EBPNET_PIN="+filepath.Join(pins, where.netns.Name))
	// Ctrl-C goes to the demo alone, which ends the command; and if the demo
	// is killed, the command is.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	return cmd
}

// do shows a command, its answer, and whether it is as expected.
func (d *demo) do(where place, line string, want expectation) string {
	if d.ctx.Err() != nil {
		return ""
	}
	fmt.Printf("\n%s $ %s\n", where.name, line)
	out, err := d.command(where, line).CombinedOutput()
	if d.ctx.Err() != nil {
		return ""
	}
	var failure error
	if !want.ok(string(out), err) {
		failure = fmt.Errorf("it ended with %v", orSuccess(err))
		want.filter = nil // what it said may tell why
	}
	show(string(out), want.filter)
	d.check(want.says, failure)
	return string(out)
}

func orSuccess(err error) any {
	if err == nil {
		return "success"
	}
	return err
}

func (d *demo) check(says string, err error) {
	if d.ctx.Err() != nil {
		return
	}
	d.steps++
	if err != nil {
		d.failed++
		fmt.Printf("✗ NOT as it should be: %s: %v\n", says, err)
		return
	}
	fmt.Printf("✓ %s\n", says)
}

func show(out string, filter []string) {
	shown := 0
	for line := range strings.Lines(out) {
		line = strings.TrimRight(line, "\n ")
		wanted := filter == nil || slices.ContainsFunc(filter, func(word string) bool { return strings.Contains(line, word) })
		if line == "" || !wanted || strings.HasPrefix(line, "# ") {
			continue
		}
		if shown++; shown > maxLines {
			fmt.Println("    ...")
			return
		}
		fmt.Println("   ", line)
	}
}

// serve starts a program that stays, and waits until it says that it is ready.
func (d *demo) serve(where place, line, ready string) {
	if d.ctx.Err() != nil {
		return
	}
	fmt.Printf("\n%s $ %s &\n", where.name, line)
	log := filepath.Join(directory, strings.Fields(line)[0]+".log")
	cmd := d.command(where, line)
	file, err := os.Create(log)
	if err == nil {
		cmd.Stdout, cmd.Stderr = file, file
		if err = cmd.Start(); err == nil {
			d.background = append(d.background, cmd)
		}
		_ = file.Close() // the program has it
	}
	if err != nil {
		d.check("it runs", err)
		return
	}
	for deadline := time.Now().Add(readyLimit); ; time.Sleep(pollInterval) {
		said, err := os.ReadFile(log)
		if err == nil && strings.Contains(string(said), ready) {
			break
		}
		if d.ctx.Err() != nil || time.Now().After(deadline) {
			show(string(said), nil)
			d.check("it runs", fmt.Errorf("it did not say %q", ready))
			return
		}
	}
	d.check("it runs", nil)
}
