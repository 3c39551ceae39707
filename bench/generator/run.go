package generator

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Outlet is where frames go out.
type Outlet struct {
	Netns  string // the namespace's file; empty: the caller's own
	Device string
	CPU    int // that makes the frames
}

// Sent is what a stream came to. A frame is sent when the device was given it;
// what is lost from there on, in the queue of the other end of a veth first,
// only the receiver can tell.
type Sent struct {
	Frames  uint64
	Elapsed time.Duration // from the first frame on
}

// Run sends the stream for a while, or until ctx is done, which is no error.
//
// Frames reach the other end of a veth only if that receives by NAPI: with an
// XDP program attached, or with GRO on. Otherwise Linux drops them, and tells
// nobody.
//
// With a rate the CPU is busy, too: it waits for the next frame by running the
// program for nothing.
func (s Stream) Run(ctx context.Context, out Outlet, duration time.Duration) (Sent, error) {
	if err := s.Check(); err != nil {
		return Sent{}, err
	}
	var sent Sent
	err := within(out, func() (err error) {
		sent, err = s.run(ctx, out.Device, duration)
		return err
	})
	if errors.Is(err, unix.EINVAL) || errors.Is(err, ebpf.ErrNotSupported) {
		err = fmt.Errorf("live-frame test runs of XDP programs need Linux 5.18: %w", err)
	}
	return sent, err
}

func (s Stream) run(ctx context.Context, device string, duration time.Duration) (Sent, error) {
	dev, err := net.InterfaceByName(device)
	if err != nil {
		return Sent{}, fmt.Errorf("device %s: %w", device, err)
	}
	values, err := ebpf.NewMap(&ebpf.MapSpec{
		Name: "progress", Type: ebpf.Array, KeySize: 4, ValueSize: uint32(binary.Size(progress{})), MaxEntries: 1,
	})
	if err != nil {
		return Sent{}, err
	}
	defer values.Close()
	t := newTemplate(s.fromDevice(dev.HardwareAddr))
	program, err := ebpf.NewProgram(t.program(s, values, dev.Index))
	if err != nil {
		return Sent{}, err
	}
	defer program.Close()

	var p progress
	read := func() error { return values.Lookup(uint32(0), &p) }
	end, err := runLive(program, t.frame, func(ended <-chan struct{}) {
		// Setting up takes a while that is not the stream's.
		wait := begunEvery
		for begun := false; !begun; {
			if begun = read() == nil && p.First > 0; begun {
				wait = duration
			}
			select {
			case <-ended:
				return
			case <-ctx.Done():
				return
			case <-time.After(wait):
			}
		}
	})
	if err = errors.Join(err, read()); err != nil {
		return Sent{}, err
	}
	if p.Sent == 0 || p.First > end {
		return Sent{}, fmt.Errorf("ended before the first frame: %w", context.Cause(ctx))
	}
	return Sent{Frames: p.Sent, Elapsed: time.Duration(end - p.First)}, nil
}

// begunEvery is how often it is looked whether the first frame is out.
const begunEvery = time.Millisecond

// within runs f in the outlet's namespace and on its CPU.
func within(out Outlet, f func() error) error {
	return In(out.Netns, func() (err error) {
		var all, one unix.CPUSet
		if err := unix.SchedGetaffinity(0, &all); err != nil {
			return err
		}
		one.Set(out.CPU)
		if err := unix.SchedSetaffinity(0, &one); err != nil {
			return fmt.Errorf("pin to CPU %d: %w", out.CPU, err)
		}
		defer func() { err = errors.Join(err, unix.SchedSetaffinity(0, &all)) }()
		return f()
	})
}

// In runs f with its thread in the namespace of a file, or in the caller's if
// that is empty. The thread lives on: processes it once started may be bound
// to its life.
func In(netns string, f func() error) (err error) {
	runtime.LockOSThread()
	if netns == "" {
		defer runtime.UnlockOSThread()
		return f()
	}
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer home.Close()
	defer func() {
		// A thread that cannot go back runs nothing else.
		back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET)
		if err = errors.Join(err, back); back == nil {
			runtime.UnlockOSThread()
		}
	}()
	ns, err := os.Open(netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter %s: %w", netns, err)
	}
	return f()
}

// Inlet is a device where frames are counted that come in.
type Inlet struct {
	device string
	index  int
	handle *netlink.Handle
}

// OpenInlet finds a device in the namespace of that file, or in the caller's
// if it is empty.
func OpenInlet(path, device string) (*Inlet, error) {
	ns := netns.None()
	if path != "" {
		var err error
		if ns, err = netns.GetFromPath(path); err != nil {
			return nil, fmt.Errorf("namespace %s: %w", path, err)
		}
		defer ns.Close()
	}
	handle, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("count at %s: %w", device, err)
	}
	link, err := handle.LinkByName(device)
	if err != nil {
		handle.Close()
		return nil, fmt.Errorf("count at %s: %w", device, err)
	}
	return &Inlet{device, link.Attrs().Index, handle}, nil
}

// Close lets go of the device.
func (i *Inlet) Close() { i.handle.Close() }

// Received is how many frames the device has ever received; those that an XDP
// program there has dropped are among them.
func (i *Inlet) Received() (uint64, error) {
	link, err := i.handle.LinkByIndex(i.index)
	if err != nil {
		return 0, fmt.Errorf("count at %s: %w", i.device, err)
	}
	return link.Attrs().Statistics.RxPackets, nil
}

// Settled is Received, once the device has received nothing for a while.
func (i *Inlet) Settled(quiet time.Duration) (uint64, error) {
	count, err := i.Received()
	for since := time.Now(); err == nil && time.Since(since) < quiet; {
		time.Sleep(quiet / 4)
		before := count
		if count, err = i.Received(); count != before {
			since = time.Now()
		}
	}
	return count, err
}

// settled is how long nothing has arrived when all has.
const settled = 20 * time.Millisecond

// Count tells how many frames arrive of those that send sends.
func (i *Inlet) Count(send func() (Sent, error)) (sent Sent, arrived uint64, err error) {
	before, err := i.Received()
	if err != nil {
		return sent, 0, err
	}
	if sent, err = send(); err != nil {
		return sent, 0, err
	}
	after, err := i.Settled(settled)
	return sent, after - before, err
}
