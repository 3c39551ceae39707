package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/ebpnet/ebpnet/internal/store"
)

// run runs ebpnet in the host.
func (g *grown) run(args ...string) (outcome, error) {
	args, err := g.command(args...)
	if err != nil {
		return outcome{}, err
	}
	return execute("", args...)
}

// command is what runs ebpnet in the host.
func (g *grown) command(args ...string) ([]string, error) {
	binary, err := ebpnetBinary()
	global := []string{binary, "--state", stateDirectory(g.host), "--pin", pinDirectory(g.host)}
	return inNetns(g.host, slices.Concat(global, args)...), err
}

func milliseconds(o outcome) sample {
	return sample{value: float64(o.took) / float64(time.Millisecond)}
}

func takeLoad(_ context.Context, over path, _ options) (sample, error) {
	o, err := over.grown.run("load")
	return milliseconds(o), err
}

// takeReconcile has a command that itself does next to nothing mend what seems
// to have been left unfinished, for which it looks through everything.
func takeReconcile(ctx context.Context, over path, _ options) (sample, error) {
	if err := over.grown.setPending(ctx); err != nil {
		return sample{}, err
	}
	o, err := over.grown.run("fdb", "flush")
	return milliseconds(o), err
}

// setPending makes it seem that a command was killed.
func (g *grown) setPending(ctx context.Context) (err error) {
	s, err := store.Open(ctx, stateDirectory(g.host))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	return s.Update(func(tx *store.Tx) error { return tx.MarkPending(store.KindNetwork, crowdNetwork) })
}

// isPending tells whether nobody has seen to it yet. It waits for whoever does.
func (g *grown) isPending(ctx context.Context) (pending bool, err error) {
	s, err := store.OpenReadOnly(ctx, stateDirectory(g.host))
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	err = s.View(func(tx *store.Tx) error {
		all, err := tx.Pending()
		pending = len(all) > 0
		return err
	})
	return pending, err
}

func takeAdding(_ context.Context, over path, _ options) (sample, error) {
	o, err := over.grown.run(over.grown.add...)
	if err == nil {
		_, err = over.grown.run(over.grown.remove...)
	}
	return milliseconds(o), err
}

const (
	bytesPerKiB = 1 << 10
	bytesPerMiB = 1 << 20
)

func takeTables(_ context.Context, over path, _ options) (sample, error) {
	o, err := over.grown.run("status", "-o", "json")
	if err != nil {
		return sample{}, err
	}
	var status struct {
		Memory float64 `json:"memory_bytes"`
	}
	if err := json.Unmarshal(o.stdout, &status); err != nil {
		return sample{}, fmt.Errorf("status: %w", err)
	}
	return sample{value: status.Memory / bytesPerMiB}, nil
}

// metricsAddress is where a server would tell of itself; nobody asks.
const metricsAddress = "127.0.0.1:9469"

// takePeak tells the most that was resident at once.
func takePeak(ctx context.Context, over path, _ options) (s sample, err error) {
	g := over.grown
	if err := g.setPending(ctx); err != nil {
		return sample{}, err
	}
	args, err := g.command("serve", "--listen", metricsAddress)
	if err != nil {
		return sample{}, err
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	var stderr bytes.Buffer
	cmd.Stderr, cmd.SysProcAttr, cmd.Env = &stderr, apart(), environment()
	if err := cmd.Start(); err != nil {
		return sample{}, fmt.Errorf("start ebpnet serve: %w", err)
	}
	defer func() {
		// It is a child of ours, and has nothing left to do.
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, bytes.TrimSpace(stderr.Bytes()))
		}
	}()
	for pending := true; pending; time.Sleep(settledEvery) {
		if err := ctx.Err(); err != nil {
			return sample{}, fmt.Errorf("ebpnet serve has not looked through everything: %w", err)
		}
		if pending, err = g.isPending(ctx); err != nil {
			return sample{}, err
		}
	}
	peak, err := peakOf(cmd.Process.Pid)
	return sample{value: peak / bytesPerMiB}, err
}

// settledEvery is how often it is asked whether something is done.
const settledEvery = 5 * time.Millisecond

// peakOf gives the most bytes that a process has had resident.
func peakOf(pid int) (float64, error) {
	file := fmt.Sprintf("/proc/%d/status", pid)
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	var kibibytes float64
	for line := range strings.Lines(string(text)) {
		if n, _ := fmt.Sscanf(line, "VmHWM: %f kB", &kibibytes); n == 1 {
			return kibibytes * bytesPerKiB, nil
		}
	}
	return 0, fmt.Errorf("%s does not tell VmHWM", file)
}
