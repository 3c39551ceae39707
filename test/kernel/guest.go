package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// What a machine prints for the program that started it: a line with the result
// of each job, and its last line.
const (
	guestResult = "guest: result "
	guestEnd    = "guest: end"
)

// guest is the first process of a machine. It runs the jobs and ends the
// machine.
func guest() {
	if err := errors.Join(prepare(), runJobs()); err != nil {
		fmt.Println("guest:", err)
	}
	fmt.Println(guestEnd)
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART); err != nil {
		fmt.Println("guest: reboot:", err)
	}
}

// prepare makes of the initramfs what a program expects of a system.
func prepare() error {
	for _, m := range []struct{ fs, directory string }{
		{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}, {"bpf", "/sys/fs/bpf"}, {"cgroup2", "/sys/fs/cgroup"}, {"tmpfs", "/tmp"},
	} {
		if err := os.MkdirAll(m.directory, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.fs, m.directory, m.fs, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.directory, err)
		}
	}
	for name, value := range map[string]string{"PATH": guestPrograms, "EBPNET": guestBinary} {
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	if err := loadModules(); err != nil {
		return err
	}
	return execute("ip", "link", "set", "lo", "up")
}

func loadModules() error {
	files, err := filepath.Glob(guestModules + "/*") // sorted
	if err != nil {
		return err
	}
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		if err = errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("load module %s: %w", file, err)
		}
	}
	return nil
}

// runJobs runs all jobs, also after one that failed.
func runJobs() error {
	text, err := os.ReadFile(guestCommands)
	if err != nil {
		return err
	}
	var commands []command
	if err := json.Unmarshal(text, &commands); err != nil {
		return err
	}
	for _, c := range commands {
		start := time.Now()
		failed := execute(c.Argv...)
		if failed != nil {
			fmt.Printf("guest: %s: %v\n", c.Job, failed)
		}
		text, err := json.Marshal(result{Job: c.Job, Took: time.Since(start), Failed: failed != nil})
		if err != nil {
			return err
		}
		fmt.Printf("%s%s\n", guestResult, text)
	}
	return nil
}

func execute(command ...string) error {
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}
