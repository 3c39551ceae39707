// Kernel runs tests of this tree on other kernels, each in a virtual machine
// that QEMU emulates. `make test-kernel` calls it with directories into which
// a kernel and its modules are unpacked.
//
// The machine has no disk. It gets an initramfs with this program as its first
// process, the tests, ebpnet, and the programs that the tests run. An emulated
// machine is about ten times slower: it shows behaviour, never speed.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

// job is some tests of one package.
type job struct {
	pkg  string // as go test takes it
	tags string // as go test -tags takes it
	run  string // as go test -run takes it
}

// jobs gives the tests that run on each kernel. Containers ping each other
// through a GRE tunnel between two hosts. They reach the outside by a VLAN's
// device on top of an uplink, and by an uplink on which frames have a priority
// tag.
func jobs() []job {
	return []job{{
		pkg: "./test", tags: "vlan",
		run: "^(TestEndpointMTUFitsTheTunnel|TestVLANOfAnUplink|TestPriorityTags)$",
	}}
}

// programs gives the programs that the jobs run.
func programs() []string { return []string{"ip", "ping"} }

// modules gives the parts of the kernel that the jobs need and that may be
// modules.
func modules() []string { return []string{"8021q", "bridge", "cls_bpf", "sch_ingress", "veth"} }

const exitUsage = 2

func main() {
	if os.Getpid() == 1 {
		guest()
		return
	}
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: kernel DIRECTORY...   with an unpacked kernel and its modules in each")
		os.Exit(exitUsage)
	}
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "kernel:", err)
		os.Exit(1)
	}
}

// run tests each kernel, also after one that failed.
func run(directories []string) (err error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	work, err := os.MkdirTemp("", "ebpnet-kernel-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	base := &archive{there: map[string]bool{}}
	if err := addJobs(ctx, base, work); err != nil {
		return err
	}
	var failed []error
	for _, directory := range directories {
		k, err := findKernel(directory)
		if err != nil {
			return err
		}
		fmt.Printf("== Linux %s\n", k.release)
		start := time.Now()
		if err := k.test(ctx, base, filepath.Join(work, "initramfs")); err != nil {
			failed = append(failed, fmt.Errorf("kernel %s: %w", k.release, err))
			continue
		}
		fmt.Printf("== Linux %s: passed in %d s\n", k.release, int(time.Since(start).Seconds()))
	}
	return errors.Join(failed...)
}
