package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// Where the guest finds its things.
const (
	guestInit     = "/init"
	guestBinary   = "/ebpnet"
	guestCommands = "/commands.json"
	guestTests    = "/tests"
	guestPrograms = "/usr/bin"
	guestModules  = "/modules"
)

// testTag is the build tag of tests that only these machines run: they need
// devices that not every kernel has.
const testTag = "kernels"

// jobLimit ends a job that hangs. It is far more than a job takes on a slow
// and busy machine.
const jobLimit = 30 * time.Minute

// command is a job as the guest runs it.
type command struct {
	Job  string
	Argv []string
}

// testFile is where the guest has the tests of a package.
func testFile(pkg string) string { return filepath.Join(guestTests, filepath.Base(pkg)) }

func (j job) command() command {
	if j.pkg == "" {
		return command{j.name, append([]string{guestBinary}, j.args...)}
	}
	return command{j.name, []string{testFile(j.pkg), "-test.v", "-test.run=" + j.run, "-test.timeout=" + jobLimit.String()}}
}

// addTests adds what does not depend on the kernel: this program, ebpnet, the
// tests, the programs that they run, and what those read.
func addTests(ctx context.Context, a *archive, kernels []*kernel, work string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	binary := os.Getenv("EBPNET")
	if binary == "" {
		return errors.New("EBPNET is not set: it names the ebpnet to test")
	}
	if err := errors.Join(addProgram(ctx, a, guestInit, self), addProgram(ctx, a, guestBinary, binary)); err != nil {
		return err
	}
	for _, name := range programs() {
		file, err := exec.LookPath(name)
		if err != nil {
			return err
		}
		if err := addProgram(ctx, a, filepath.Join(guestPrograms, name), file); err != nil {
			return err
		}
	}
	for _, name := range files() {
		data, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		a.add(name, data)
	}
	for _, k := range kernels {
		for _, j := range k.jobs {
			if j.pkg == "" || a.has(testFile(j.pkg)) {
				continue
			}
			file := filepath.Join(work, "test")
			if out, err := exec.CommandContext(ctx, "go", "test", "-c", "-tags", testTag, "-trimpath", "-ldflags", "-s -w", "-o", file, j.pkg).CombinedOutput(); err != nil {
				return fmt.Errorf("compile the tests of %s: %w\n%s", j.pkg, err, out)
			}
			if err := addProgram(ctx, a, testFile(j.pkg), file); err != nil {
				return err
			}
		}
	}
	return nil
}

// addCommands adds what this kernel runs.
func (k *kernel) addCommands(a *archive) error {
	var commands []command
	for _, j := range k.jobs {
		commands = append(commands, j.command())
	}
	text, err := json.Marshal(commands)
	if err != nil {
		return err
	}
	a.add(guestCommands, text)
	return nil
}

// library finds the path in a line of ldd(1).
var library = regexp.MustCompile(`(/\S+) \(0x`)

// addProgram adds a program and the libraries that it loads.
func addProgram(ctx context.Context, a *archive, name, file string) error {
	files := map[string]string{name: file}
	out, err := exec.CommandContext(ctx, "ldd", file).CombinedOutput()
	switch {
	case err == nil:
		for _, found := range library.FindAllStringSubmatch(string(out), -1) {
			files[found[1]] = found[1]
		}
	case !strings.Contains(string(out), "not a dynamic executable"):
		return fmt.Errorf("find the libraries of %s: %w\n%s", file, err, out)
	}
	for name, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		a.add(name, data)
	}
	return nil
}

// addModules adds the modules of the kernel, so that their names sort in the
// order in which the guest has to load them.
func (k *kernel) addModules(ctx context.Context, a *archive) error {
	if out, err := exec.CommandContext(ctx, "depmod", "-b", k.base, k.release).CombinedOutput(); err != nil {
		return fmt.Errorf("depmod: %w\n%s", err, out)
	}
	show := append([]string{"--dirname", k.base, "--set-version", k.release, "--show-depends", "--all"}, modules()...)
	out, err := exec.CommandContext(ctx, "modprobe", show...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("modprobe: %w\n%s", err, out)
	}
	a.addDirectory(guestModules)
	added := map[string]bool{}
	for lines := bufio.NewScanner(strings.NewReader(string(out))); lines.Scan(); {
		words := strings.Fields(lines.Text())        // insmod FILE OPTION...
		if words[0] != "insmod" || added[words[1]] { // the rest is part of the kernel
			continue
		}
		file := words[1]
		data, err := readModule(ctx, file)
		if err != nil {
			return err
		}
		a.add(fmt.Sprintf("%s/%02d", guestModules, len(added)), data)
		added[file] = true
	}
	return nil
}

func readModule(ctx context.Context, file string) ([]byte, error) {
	if !strings.HasSuffix(file, ".xz") {
		return os.ReadFile(file)
	}
	data, err := exec.CommandContext(ctx, "xz", "--decompress", "--stdout", file).Output()
	if err != nil {
		return nil, fmt.Errorf("decompress %s: %w", file, err)
	}
	return data, nil
}
