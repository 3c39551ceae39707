package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// kernel is a kernel of Debian, unpacked, and how the jobs ended on it.
type kernel struct {
	release string // as uname -r
	version version
	image   string // file
	base    string // directory: base/lib/modules/release holds the modules

	jobs      []job
	results   []result
	took      time.Duration
	processor time.Duration
}

// findKernel finds the one kernel in the directory. Debian has changed the
// places of its parts since version 12.
func findKernel(directory string) (*kernel, error) {
	one := func(patterns ...string) (string, error) {
		var found []string
		for _, pattern := range patterns {
			matches, err := filepath.Glob(filepath.Join(directory, pattern))
			if err != nil {
				return "", err
			}
			found = append(found, matches...)
		}
		if len(found) != 1 {
			return "", fmt.Errorf("%s: want one of %s, have %d", directory, strings.Join(patterns, ", "), len(found))
		}
		return found[0], nil
	}
	modules, err := one("lib/modules/*", "usr/lib/modules/*")
	if err != nil {
		return nil, err
	}
	image, err := one("boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz")
	if err != nil {
		return nil, err
	}
	k := &kernel{release: filepath.Base(modules), image: image, base: filepath.Join(modules, "../../..")}
	if _, err := fmt.Sscanf(k.release, "%d.%d", &k.version.major, &k.version.minor); err != nil {
		return nil, fmt.Errorf("%s: want a release like 6.12.1, have %s: %w", directory, k.release, err)
	}
	return k, nil
}

// bootLimit ends a machine that hangs. Its jobs end themselves before.
const bootLimit = 2 * time.Hour

// parameters are the kernel's. On a busy machine without KVM, the kernel's
// check of its timer can fail by chance. The rest saves time.
const parameters = "console=ttyS0 quiet panic=-1 no_timer_check mitigations=off"

// processor is what QEMU emulates. One of 2010 has cmpxchg16b, without which
// Linux 7.2 sets no timers of BPF. It has not yet what takes much longer to
// emulate, such as AVX. The machine has one processor: with two, a processor may
// run into a change of the kernel's code that the other has just made, which
// panics Linux 6.12.
const processor = "Westmere"

// test boots the kernel with what base and its modules hold, runs the jobs, and
// shows what the machine prints. The machine has two network cards, and a cable
// between them that leads nowhere else.
func (k *kernel) test(ctx context.Context, base *archive, initramfs string) error {
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	contents := base.clone()
	if err := errors.Join(k.addCommands(contents), k.addModules(ctx, contents), contents.write(initramfs)); err != nil {
		return err
	}
	qemu := exec.CommandContext(ctx, "qemu-system-x86_64",
		"-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio",
		"-M", "q35", "-accel", "tcg", "-cpu", processor, "-smp", "1", "-m", "2048",
		"-netdev", "hubport,id=left,hubid=0", "-device", "virtio-net-pci,netdev=left,romfile=",
		"-netdev", "hubport,id=right,hubid=0", "-device", "virtio-net-pci,netdev=right,romfile=",
		"-kernel", k.image, "-initrd", initramfs, "-append", parameters)
	qemu.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := qemu.StdoutPipe()
	if err != nil {
		return err
	}
	qemu.Stderr = qemu.Stdout
	start := time.Now()
	// A signal at the death of the parent is sent at the end of the thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := qemu.Start(); err != nil {
		return err
	}
	ended, err := k.follow(out)
	err = errors.Join(err, qemu.Wait())
	k.took = time.Since(start)
	k.processor = qemu.ProcessState.UserTime() + qemu.ProcessState.SystemTime()
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("the machine has not ended: %w", ctx.Err())
	case err != nil:
		return fmt.Errorf("qemu: %w", err)
	case !ended:
		return errors.New("the machine ended before its jobs")
	}
	return k.failures()
}

// follow shows what the machine prints, and takes its results from it. It tells
// whether the machine came to its last line.
func (k *kernel) follow(out io.Reader) (ended bool, err error) {
	lines := bufio.NewScanner(out)
	passed := 0 // tests of the job
	for lines.Scan() {
		line := strings.TrimRight(lines.Text(), "\r")
		if isPass(line) {
			passed++
		}
		text, isResult := strings.CutPrefix(line, guestResult)
		switch {
		case line == guestEnd:
			_, err := io.Copy(io.Discard, out) // the kernel's own last words
			return true, err
		case isResult:
			var r result
			if err := json.Unmarshal([]byte(text), &r); err != nil {
				return false, fmt.Errorf("%q: %w", line, err)
			}
			if least := k.jobs[len(k.results)].leastTests(); passed < least {
				k.print(fmt.Sprintf("%s: %d tests passed, want at least %d", r.Job, passed, least))
				r.Failed = true
			}
			k.results, passed = append(k.results, r), 0
			k.print(r.Job + ": " + r.String())
		case !isNoise(line):
			k.print(line)
		}
	}
	return false, lines.Err()
}

func (k *kernel) print(line string) {
	fmt.Printf("%d.%d: %s\n", k.version.major, k.version.minor, line)
}

// isNoise tells whether a line of go test -v says only that a test runs, or that
// a part of it passed.
func isNoise(line string) bool {
	return line == "" || line == "PASS" || strings.HasPrefix(line, "=== ") || strings.HasPrefix(line, " ") && isPass(line)
}

// isPass tells whether a line of go test -v says that a test passed, or a part
// of one.
func isPass(line string) bool { return strings.HasPrefix(strings.TrimSpace(line), "--- PASS: ") }

// failures tells which jobs failed, and which did not run.
func (k *kernel) failures() error {
	var failed []error
	for _, r := range k.results {
		if r.Failed {
			failed = append(failed, fmt.Errorf("%s failed", r.Job))
		}
	}
	if len(k.results) != len(k.jobs) {
		failed = append(failed, fmt.Errorf("%d jobs of %d ran", len(k.results), len(k.jobs)))
	}
	return errors.Join(failed...)
}
