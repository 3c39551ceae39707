package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// role is a peer's end of the traffic.
type role string

const (
	client role = "client"
	server role = "server"
)

// peer is one end of a measurement: this program again, in a namespace, on
// one CPU, told what to do by this struct as its argument.
type peer struct {
	Measure  string         `json:"measure"`
	Role     role           `json:"role"`
	Netns    string         `json:"netns"` // path
	CPU      int            `json:"cpu"`
	Dial     netip.AddrPort `json:"dial,omitzero"`     // client only
	Duration time.Duration  `json:"duration,omitzero"` // client only
}

// peerCommand is the first argument of this program as a peer.
const peerCommand = "peer"

// ready is the line by which a server says that it listens. The line after
// it, and a client's only line, is the tally as JSON.
const ready = "ready"

// grace is how much longer than its duration a measurement may take.
const grace = 10 * time.Second

// sample is the outcome of one measurement.
type sample struct {
	value float64 // in the measure's unit
	lost  float64 // share of datagrams sent that the server did not get
	// What some measures tell besides; 0: not measured.
	cpu      float64       // CPU seconds a unit
	p50, p99 time.Duration // latency that half, and all but one in a hundred, do not exceed
	// latencies are all there were, in ascending order.
	latencies []time.Duration
}

// run measures once.
func (m measure) run(ctx context.Context, over path, opt options) (sample, error) {
	if over.atMost != 0 {
		opt.duration = min(opt.duration, over.atMost)
	}
	ctx, cancel := context.WithTimeout(ctx, opt.duration+grace)
	defer cancel()
	if m.take != nil {
		return m.take(ctx, over, opt)
	}
	sent, counted, err := m.traffic(ctx, over, opt)
	if err != nil {
		return sample{}, err
	}
	rate, err := counted.rate()
	expected := float64(sent.Total) * float64(max(1, over.copies))
	return sample{value: rate * m.scale, lost: 1 - float64(counted.Total)/expected}, err
}

// traffic runs a server and a client, and gives the client's tally and that of
// the one whose count is the figure.
func (m measure) traffic(ctx context.Context, over path, opt options) (sent, counted tally, err error) {
	cpu, duration := opt.cpu, opt.duration

	srv, err := startPeer(ctx, peer{Measure: m.name, Role: server, Netns: netnsPath(over.server), CPU: cpu})
	if err != nil {
		return sent, counted, err
	}
	defer srv.stop()
	if err := srv.awaitReady(); err != nil {
		return sent, counted, err
	}
	cli, err := startPeer(ctx, peer{
		Measure: m.name, Role: client, Netns: netnsPath(over.client), CPU: cpu,
		Dial: over.dial, Duration: duration,
	})
	if err != nil {
		return sent, counted, err
	}
	defer cli.stop()

	if sent, err = cli.tally(); err != nil || m.counts == client {
		return sent, sent, err
	}
	counted, err = srv.tally()
	return sent, counted, err
}

// process is a running peer.
type process struct {
	role   role
	ctx    context.Context
	cmd    *exec.Cmd
	stdout *bufio.Reader
	stderr bytes.Buffer
}

func startPeer(ctx context.Context, p peer) (*process, error) {
	text, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	run := &process{role: p.Role, ctx: ctx}
	run.cmd = exec.CommandContext(ctx, "/proc/self/exe", peerCommand, string(text))
	run.cmd.Env = append(os.Environ(), "GODEBUG=asyncpreemptoff=1")
	run.cmd.SysProcAttr = apart()
	run.cmd.Stderr = &run.stderr
	out, err := run.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	run.stdout = bufio.NewReader(out)
	if err := run.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", p.Role, err)
	}
	return run, nil
}

// stop ends a peer that has said all that is wanted of it.
func (r *process) stop() {
	// Neither can fail in a way that matters: it is a kill of our own child.
	_ = r.cmd.Process.Kill()
	_ = r.cmd.Wait()
}

func (r *process) awaitReady() error {
	line, err := r.stdout.ReadString('\n')
	if line != ready+"\n" {
		return r.failed(err)
	}
	return nil
}

func (r *process) tally() (t tally, err error) {
	if err := json.NewDecoder(r.stdout).Decode(&t); err != nil {
		return t, r.failed(err)
	}
	return t, nil
}

// failed says why a peer did not say what it should have.
func (r *process) failed(err error) error {
	r.stop() // its stderr is complete only then
	switch said := bytes.TrimPrefix(bytes.TrimSpace(r.stderr.Bytes()), []byte("bench: ")); {
	case errors.Is(r.ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("%s: no end within %s after the time given: traffic does not pass", r.role, grace)
	case r.ctx.Err() != nil:
		return r.ctx.Err()
	case len(said) > 0:
		return fmt.Errorf("%s: %s", r.role, said)
	}
	return fmt.Errorf("%s: %w", r.role, err)
}

// runPeer is the whole life of a peer: argument is a peer as JSON, and stdout
// is where it answers. It leaves its thread changed, so it is the last thing
// a process does.
func runPeer(argument string, stdout io.Writer) error {
	var p peer
	if err := json.Unmarshal([]byte(argument), &p); err != nil {
		return fmt.Errorf("%w: %s is run by bench itself: %w", errUsage, peerCommand, err)
	}
	at := slices.IndexFunc(measures(), func(m measure) bool { return m.name == p.Measure })
	if at < 0 {
		return fmt.Errorf("%w: no measure %q", errUsage, p.Measure)
	}
	m := measures()[at]
	if err := p.settle(); err != nil {
		return err
	}

	var t tally
	var err error
	switch p.Role {
	case server:
		var fd int
		if fd, err = listen(m.socket); err != nil {
			return err
		}
		if _, err = fmt.Fprintln(stdout, ready); err != nil {
			return err
		}
		t, err = m.serve(fd)
	case client:
		t, err = m.drive(p)
	default:
		return fmt.Errorf("%w: no role %q", errUsage, p.Role)
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(stdout).Encode(t)
}

// settle brings the calling thread into the namespace and onto the CPU, and
// quiets the Go runtime: nothing is allocated while traffic runs.
func (p peer) settle() error {
	runtime.LockOSThread()
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(-1)

	ns, err := os.Open(p.Netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter %s: %w", p.Netns, err)
	}
	var cpus unix.CPUSet
	cpus.Set(p.CPU)
	if err := unix.SchedSetaffinity(0, &cpus); err != nil {
		return fmt.Errorf("pin to CPU %d: %w", p.CPU, err)
	}
	return nil
}
