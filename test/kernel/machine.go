package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// kernel is a kernel of Debian, unpacked.
type kernel struct {
	release string // as uname -r
	image   string // file
	base    string // directory: base/lib/modules/release holds the modules
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
	return &kernel{release: filepath.Base(modules), image: image, base: filepath.Join(modules, "../../..")}, nil
}

// bootLimit ends a machine that hangs. Its jobs end themselves before.
const bootLimit = 25 * time.Minute

// test boots the kernel with what base and its modules hold, and shows what the
// machine prints.
func (k *kernel) test(ctx context.Context, base *archive, initramfs string) error {
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	contents := base.clone()
	if err := errors.Join(k.addModules(ctx, contents), contents.write(initramfs)); err != nil {
		return err
	}
	// 6.12 crashes early where QEMU emulates cmpxchg16b. Without KVM and on a
	// busy machine, the kernel's check of its timer can fail by chance.
	qemu := exec.CommandContext(ctx, "qemu-system-x86_64",
		"-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio",
		"-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "2048",
		"-kernel", k.image, "-initrd", initramfs,
		"-append", "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check")
	qemu.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := qemu.StdoutPipe()
	if err != nil {
		return err
	}
	qemu.Stderr = qemu.Stdout
	if err := qemu.Start(); err != nil {
		return err
	}
	result := ""
	for lines := bufio.NewScanner(out); lines.Scan(); {
		line := strings.TrimRight(lines.Text(), "\r")
		if line == guestPassed || line == guestFailed {
			result = line
			break
		}
		fmt.Println(line)
	}
	_, _ = io.Copy(io.Discard, out) // the kernel's own farewell
	err = qemu.Wait()
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("the machine has not ended: %w", ctx.Err())
	case err != nil:
		return fmt.Errorf("qemu: %w", err)
	case result == guestFailed:
		return errors.New("its tests failed")
	case result != guestPassed:
		return errors.New("the machine ended before its tests")
	}
	return nil
}
