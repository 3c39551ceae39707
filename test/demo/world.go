package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// Everything the demo makes has a name that begins so: a demo that was killed
// is cleaned up after by the next.
const prefix = "ebpnet-demo-"

const (
	directory = "/run/ebpnet-demo" // stores, logs, redis' working directory
	pins      = "/sys/fs/bpf"
	etcNetns  = "/etc/netns" // see ip-netns(8): NAME/hosts becomes /etc/hosts
)

// place is a network namespace in which commands run.
type place struct {
	name  string // as the story calls it
	netns *testutil.Netns
}

func newPlace(name string) place {
	return place{name: name, netns: &testutil.Netns{Name: prefix + name}}
}

// host is a place with ebpnet.
type host struct {
	place
	address, address6 string // on the underlay
}

// container is a place on the network.
type container struct {
	place
	ipv4, ipv6, mac string
}

// demo is the world, and what was seen in it.
type demo struct {
	ctx    context.Context // until an interrupt
	ebpnet string          // the binary
	lock   net.Listener    // held while the demo is given

	hostA, hostB        host
	outside             place
	web, worker, redis1 container

	background []*exec.Cmd
	server     *http.Server
	steps      int
	failed     int
}

// newDemo checks that a demo can be given, and that no other is being given.
func newDemo(ctx context.Context) (*demo, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("must be root, for network namespaces and BPF")
	}
	ebpnet, err := filepath.Abs(os.Getenv("EBPNET"))
	if err != nil {
		return nil, err
	}
	for _, program := range []string{ebpnet, "ip", "nsenter", "timeout", "ping", "curl", "redis-server", "redis-cli"} {
		if _, err := exec.LookPath(program); err != nil {
			return nil, fmt.Errorf("%w; start it by `make demo`, which builds and installs what is missing", err)
		}
	}
	// The kernel lets go of such a name when its process ends, however it does.
	lock, err := net.Listen("unix", "@ebpnet-demo")
	if err != nil {
		return nil, fmt.Errorf("another demo is running: %w", err)
	}
	return &demo{
		ctx: ctx, ebpnet: ebpnet, lock: lock,
		hostA:   host{newPlace("hostA"), "192.0.2.1", "2001:db8::1"},
		hostB:   host{newPlace("hostB"), "192.0.2.2", "2001:db8::2"},
		outside: newPlace("outside"),
		web:     container{newPlace("web"), "172.30.0.10", "fd00:30::10", "02:00:00:00:00:10"},
		worker:  container{newPlace("worker"), "172.30.0.11", "fd00:30::11", "02:00:00:00:00:11"},
		redis1:  container{newPlace("redis1"), "172.30.0.20", "fd00:30::20", "02:00:00:00:00:20"},
	}, nil
}

func (d *demo) places() []place {
	return []place{d.hostA.place, d.hostB.place, d.outside, d.web.place, d.worker.place, d.redis1.place}
}

// build makes hosts, underlay and outside; what is left of an earlier demo goes
// first.
func (d *demo) build() error {
	if err := errors.Join(d.remove(), os.MkdirAll(directory, 0o755)); err != nil {
		return err
	}
	var script []string
	for _, p := range d.places() {
		script = append(script, "netns add "+p.netns.Name)
	}
	outside := "-n " + d.outside.netns.Name
	script = append(script,
		outside+" link set lo up",
		outside+" link add bridge up type bridge forward_delay 0 mcast_snooping 0",
		outside+" addr add 192.0.2.254/24 dev bridge",
		outside+" addr add 2001:db8::fe/64 dev bridge nodad")
	for _, h := range []host{d.hostA, d.hostB} {
		in := "-n " + h.netns.Name
		script = append(script,
			in+" link set lo up",
			fmt.Sprintf("%s link add up0 type veth peer name %s netns %s", in, h.name, d.outside.netns.Name),
			fmt.Sprintf("%s link set %s up master bridge", outside, h.name),
			in+" link set up0 up",
			in+" addr add "+h.address+"/24 dev up0",
			in+" addr add "+h.address6+"/64 dev up0 nodad",
			in+" route add default via 192.0.2.254",
			in+" route add default via 2001:db8::fe")
	}
	for _, line := range script {
		if out, err := exec.CommandContext(d.ctx, "ip", strings.Fields(line)...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", line, err, strings.TrimSpace(string(out)))
		}
	}
	return d.startWebServer()
}

// startWebServer starts, outside, a server that tells who it is asked by.
func (d *demo) startWebServer() error {
	var l net.Listener
	var err error
	d.outside.netns.Do(func() { l, err = net.Listen("tcp", ":80") })
	if err != nil {
		return fmt.Errorf("web server outside: %w", err)
	}
	d.server = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if peer, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
			fmt.Fprintf(w, "hello from the outside, you are %s\n", peer.Addr().Unmap())
		}
	})}
	go func() { _ = d.server.Serve(l) }() // who asks will notice if it fails
	return nil
}

// remove takes down all that a demo makes, this one's or an earlier one's.
func (d *demo) remove() error {
	var failures []error
	for _, cmd := range d.background {
		_ = cmd.Cancel() // it may have ended by itself,
		_ = cmd.Wait()   // and its end is a violent one
	}
	d.background = nil
	if d.server != nil {
		_ = d.server.Close() // nothing is left to lose
		d.server = nil
	}
	for _, p := range d.places() {
		if _, err := os.Stat(p.netns.Path()); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		// Not bound to d.ctx, which has ended after an interrupt.
		if out, err := exec.Command("ip", "netns", "del", p.netns.Name).CombinedOutput(); err != nil {
			failures = append(failures, fmt.Errorf("ip netns del %s: %w: %s", p.netns.Name, err, strings.TrimSpace(string(out))))
		}
	}
	for _, pattern := range []string{filepath.Join(pins, prefix+"*"), filepath.Join(etcNetns, prefix+"*"), directory} {
		left, err := filepath.Glob(pattern)
		failures = append(failures, err)
		for _, path := range left {
			failures = append(failures, os.RemoveAll(path))
		}
	}
	_ = os.Remove(etcNetns) // stays if it holds others' files
	return errors.Join(failures...)
}

// setHosts makes lines the place's /etc/hosts for programs that `ip netns
// exec` runs.
func (p place) setHosts(lines string) error {
	directory := filepath.Join(etcNetns, p.netns.Name)
	if err := os.MkdirAll(directory, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(directory, "hosts"), []byte(lines), 0o644)
}
