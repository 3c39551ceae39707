// Kernel runs tests of this tree on other kernels, each in a virtual machine
// that QEMU emulates. `make test-kernels` calls it with directories into which
// a kernel and its modules are unpacked.
//
// The machine has no disk. It gets an initramfs with this program as its first
// process, the tests, ebpnet, and the programs that the tests run. An emulated
// machine is about ten times slower: it shows behaviour, never speed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"sync"
	"syscall"
)

const exitUsage = 2

func main() {
	if os.Getpid() == 1 {
		guest()
		return
	}
	flag.Usage = func() {
		fmt.Fprintln(os.Stderr, "usage: kernel [-all] [-only REGEXP] DIRECTORY...   with an unpacked kernel and its modules in each")
		flag.PrintDefaults()
	}
	all := flag.Bool("all", false, "run all jobs, also those that take long")
	only := flag.String("only", "", "run the jobs whose names match `REGEXP`, also those that take long")
	flag.Parse()
	names, err := regexp.Compile(*only)
	if err != nil || flag.NArg() == 0 {
		flag.Usage()
		os.Exit(exitUsage)
	}
	if err := run(choice{*all || *only != "", names}, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "kernel:", err)
		os.Exit(1)
	}
}

// run tests all kernels at once, each on a processor of its own.
func run(wanted choice, directories []string) (err error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	work, err := os.MkdirTemp("", "ebpnet-kernel-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	kernels := make([]*kernel, len(directories))
	for i, directory := range directories {
		if kernels[i], err = findKernel(directory); err != nil {
			return err
		}
		kernels[i].jobs = wanted.jobs(kernels[i].version)
	}
	base := &archive{there: map[string]bool{}}
	if err := addTests(ctx, base, kernels, work); err != nil {
		return err
	}
	failed := make([]error, len(kernels))
	var machines sync.WaitGroup
	for i, k := range kernels {
		machines.Go(func() {
			if err := k.test(ctx, base, filepath.Join(work, k.release)); err != nil {
				failed[i] = fmt.Errorf("kernel %s: %w", k.release, err)
			}
		})
	}
	machines.Wait()
	printResults(os.Stdout, kernels)
	return errors.Join(failed...)
}
