package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/bench/generator"
)

// overload is the family of hosts that get more than they can take.
const overload = "overload"

// Names of its measures.
const (
	floodDelivered = "flood_60"
	floodBeside    = "flood_rr"
)

func overloadFamily() family {
	return family{
		overload, "from outside to a published port, so many times what iptables delivers of far more",
		[]string{iptables},
		[]string{floodDelivered, floodBeside, requests},
	}
}

// overloads are how many times as much is offered.
func overloads() []int { return []int{1, 2, 5} }

// pressure is how much is offered.
type pressure struct {
	times int
	limit *limit
}

func toOverload() []topology {
	var all []topology
	shared := &limit{}
	for _, times := range overloads() {
		for _, t := range translators() {
			if t.kind == nftables {
				continue // what it has in common with iptables decides here
			}
			all = append(all, topology{
				name: fmt.Sprintf("%s-%s-%dx", overload, t.kind, times), about: fmt.Sprintf("%s, %d times as much", t.about, times),
				family: overload, kind: t.kind, ports: publishedBeside, times: times,
				build: func(l *lab) path {
					shared.find(l)
					p := l.overloaded(t)
					p.pressure = &pressure{times, shared}
					return p
				},
			})
		}
	}
	return all
}

// overloaded is a host with a container behind a published port. What arrives
// is received on the generator's CPU, and the container's program has another.
func (l *lab) overloaded(t translator) path {
	container, beyond := t.build(l, publishedBeside)
	host := l.prefix + "-host"
	l.receiveByNAPI(host, underlayDevice)
	to := netip.AddrPortFrom(uplinkAddr, publishedPort)
	return path{client: beyond, server: container, dial: to, aim: &aim{
		outNetns: beyond, outDevice: "eth0", inNetns: container, inDevice: "eth0",
		stream: generator.Stream{
			To: l.mac(host, underlayDevice), Flows: someFlows, Size: generator.MinSize,
			Source: netip.AddrPortFrom(outsideAddr, firstFlowPort), Destination: to,
		},
	}}
}

func overloadMeasures() []measure {
	return []measure{
		{
			name: floodDelivered, about: "60-byte frames of the generator that reached the server's program", unit: "packets/s", scale: 1,
			take: takeFlooded,
		},
		{
			name: floodBeside, about: "1 byte and its answer, over one TCP connection made beside that flood", unit: "transactions/s", scale: 1,
			socket: unix.SOCK_STREAM, counts: client, serve: serveTransactions, drive: driveBeside,
			take: takeBeside,
		},
	}
}

// limit is how many frames a second a rival delivers of far more.
type limit struct {
	once sync.Once
	rate int
	err  error
}

// How it is found: the best of some tries, as something else may disturb.
const (
	farMore  = 5_000_000
	tries    = 3
	tryLasts = 200 * time.Millisecond
)

// find takes it, once for all who share it, over a host of its own.
func (c *limit) find(l *lab) {
	l.try(func() error {
		c.once.Do(func() {
			own := newLab(l.ctx, overload+"-limit", l.cpu)
			p := own.overloaded(translator{kind: iptables, build: buildIptables})
			c.err = own.err
			if c.err == nil {
				c.rate, c.err = p.most(l.ctx, l.cpu)
			}
			c.err = errors.Join(c.err, own.close())
		})
		return c.err
	})
}

// most is how many frames a second arrive at most.
func (p path) most(ctx context.Context, cpu int) (rate int, err error) {
	for range tries {
		got, err := p.flooded(ctx, farMore, options{cpu: cpu, duration: tryLasts})
		if err != nil {
			return 0, err
		}
		rate = max(rate, int(got.value))
	}
	if rate == 0 {
		return 0, errors.New("nothing arrives of a flood")
	}
	return rate, nil
}

// takeFlooded gives what the server's program gets of a flood.
func takeFlooded(ctx context.Context, over path, opt options) (sample, error) {
	return over.flooded(ctx, over.pressure.rate(), opt)
}

func (p pressure) rate() int { return p.times * p.limit.rate }

// flooded floods a server with so many frames a second and gives what it got.
// What the generator could not send, as its CPU was busy receiving, is lost: a
// card would have had no room for it.
func (p path) flooded(ctx context.Context, rate int, opt options) (sample, error) {
	srv, err := p.datagramServer(ctx, opt)
	if err != nil {
		return sample{}, err
	}
	defer srv.stop()
	sent, err := p.flood(ctx, rate, opt.cpu, opt.duration)
	if err != nil {
		return sample{}, err
	}
	t, err := srv.tally()
	got := float64(t.Total) / sent.Elapsed.Seconds()
	return sample{value: got, lost: max(0, 1-got/float64(rate))}, err
}

func (p path) datagramServer(ctx context.Context, opt options) (*process, error) {
	srv, err := startPeer(ctx, peer{Measure: oneWay, Role: server, Netns: netnsPath(p.server), CPU: opt.cpu})
	if err != nil {
		return nil, err
	}
	if err := srv.awaitReady(); err != nil {
		return nil, err
	}
	return srv, nil
}

// flood sends from another CPU than the receiver's.
func (p path) flood(ctx context.Context, rate, cpu int, duration time.Duration) (generator.Sent, error) {
	s := p.aim.stream
	s.Rate = rate
	out := generator.Outlet{Netns: netnsPath(p.aim.outNetns), Device: p.aim.outDevice, CPU: (cpu + 1) % runtime.NumCPU()}
	return s.Run(ctx, out, duration)
}

// takeBeside gives what a connection gets beside a flood, from its first
// packet on.
func takeBeside(ctx context.Context, over path, opt options) (sample, error) {
	datagrams, err := over.datagramServer(ctx, opt)
	if err != nil {
		return sample{}, err
	}
	defer datagrams.stop()
	in, err := generator.OpenInlet(netnsPath(over.aim.inNetns), over.aim.inDevice)
	if err != nil {
		return sample{}, err
	}
	defer in.Close()
	floodCtx, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() {
		_, err := over.flood(floodCtx, over.pressure.rate(), opt.cpu, opt.duration+grace)
		ended <- err
	}()
	if err := awaitFrame(ctx, in); err != nil {
		return sample{}, err
	}
	asked, _, err := measure{name: floodBeside, counts: client}.traffic(ctx, over, opt)
	stop()
	if err := errors.Join(err, <-ended); err != nil {
		return sample{}, err
	}
	rate, err := asked.rate()
	return sample{value: rate}, err
}

// awaitFrame waits for a flood to begin.
func awaitFrame(ctx context.Context, in *generator.Inlet) error {
	before, err := in.Received()
	for now := before; err == nil && now == before; now, err = in.Received() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("no flood: %w", ctx.Err())
		case <-time.After(countEvery):
		}
	}
	return err
}

// driveBeside counts for its time, however little there is to count.
func driveBeside(p peer) (t tally, err error) {
	end := time.Now().Add(p.Duration)
	fd, err := socket(unix.SOCK_STREAM)
	if err != nil {
		return t, err
	}
	limit := unix.NsecToTimeval(p.Duration.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit); err != nil { // of connect, too
		return t, fmt.Errorf("set send time-out: %w", err)
	}
	err = connect(fd, p.Dial)
	for err == nil {
		left := time.Until(end)
		if left <= 0 {
			break
		}
		if err = receiveTimeout(fd, left); err == nil {
			err = ask(fd)
		}
		if err == nil {
			t.Total++
		}
	}
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINPROGRESS) {
		err = nil // the time is over
	}
	t.Units, t.Elapsed = t.Total, p.Duration
	return t, err
}
