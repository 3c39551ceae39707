package generator

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"time"
)

// kernelDirectory is pktgen's in the thread's namespace,
// Documentation/networking/pktgen.rst.
const kernelDirectory = "/proc/thread-self/net/pktgen"

// control is its file for all threads at once.
const control = "pgctrl"

// kernelHeader is what pktgen puts into each packet, in bytes: struct pktgen_hdr.
const kernelHeader = 16

// HasKernel tells whether the kernel's own pktgen is loaded.
func HasKernel() bool {
	_, err := os.Stat("/proc/net/pktgen")
	return err == nil
}

// RunKernel is Run by the kernel's own pktgen, which sends packets as sockets
// do, so that any receiver gets them. It can UDP only, and flows of one
// address; what it fills a packet with is its own.
func (s Stream) RunKernel(ctx context.Context, out Outlet, duration time.Duration) (Sent, error) {
	if err := s.Check(); err != nil {
		return Sent{}, err
	}
	if s.Protocol != UDP || s.GRE != nil || s.flows() > portsPerAddress {
		return Sent{}, fmt.Errorf("the kernel's pktgen sends UDP of up to %d flows, and nothing else", portsPerAddress)
	}
	if least := newTemplate(s).headers + kernelHeader; s.Size < least {
		return Sent{}, fmt.Errorf("size %d: the kernel's pktgen wants %d to %d, for what it fills packets with", s.Size, least, MaxSize)
	}
	if !HasKernel() {
		return Sent{}, errors.New("the kernel's pktgen is not there: 'modprobe pktgen', or send without it")
	}
	var sent Sent
	err := within(out, func() (err error) {
		sent, err = s.runKernel(ctx, out, duration)
		return err
	})
	return sent, err
}

func (s Stream) runKernel(ctx context.Context, out Outlet, duration time.Duration) (sent Sent, err error) {
	thread := fmt.Sprintf("kpktgend_%d", out.CPU)
	if err := configure(thread, "rem_device_all", "add_device "+out.Device); err != nil {
		return Sent{}, err
	}
	defer func() { err = errors.Join(err, configure(thread, "rem_device_all")) }()
	dev, err := net.InterfaceByName(out.Device)
	if err != nil {
		return Sent{}, fmt.Errorf("device %s: %w", out.Device, err)
	}
	if err := configure(out.Device, s.fromDevice(dev.HardwareAddr).kernelCommands()...); err != nil {
		return Sent{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, duration)
	defer cancel()
	over, stopped := make(chan struct{}), make(chan error, 1)
	go func() {
		<-ctx.Done()
		// A writer's own namespace is the one that is meant.
		stopped <- In(out.Netns, func() error { return stopUntil(over) })
	}()
	err = configure(control, "start") // until it is over
	early := ctx.Err() == nil
	close(over)
	cancel()
	if err = errors.Join(err, <-stopped); err == nil && early {
		err = errors.New("pktgen ended by itself")
	}
	if err != nil {
		return Sent{}, err
	}
	text, err := os.ReadFile(filepath.Join(kernelDirectory, out.Device))
	if err != nil {
		return Sent{}, err
	}
	return parseKernel(string(text))
}

// stopEvery is how often pktgen is told to stop: for its first 125 ms it would
// forget that.
const stopEvery = 50 * time.Millisecond

func stopUntil(over <-chan struct{}) error {
	for {
		err := configure(control, "stop")
		select {
		case <-over:
			return err
		case <-time.After(stopEvery):
		}
	}
}

// configure writes commands into a file of pktgen's, each by itself.
func configure(file string, commands ...string) error {
	for _, c := range commands {
		if err := os.WriteFile(filepath.Join(kernelDirectory, file), []byte(c+"\n"), 0); err != nil {
			return fmt.Errorf("tell pktgen %q: %w", c, err)
		}
	}
	return nil
}

// kernelCommands are a stream in pktgen's words.
func (s Stream) kernelCommands() []string {
	source, destination := s.Source, s.Destination
	commands := []string{
		"count 0", "clone_skb 0", "delay 0", fmt.Sprintf("pkt_size %d", s.Size),
		"dst_mac " + net.HardwareAddr(s.To[:]).String(), "src_mac " + net.HardwareAddr(s.From[:]).String(),
		fmt.Sprintf("udp_dst_min %d", destination.Port()), fmt.Sprintf("udp_dst_max %d", destination.Port()),
		fmt.Sprintf("udp_src_min %d", source.Port()),
		fmt.Sprintf("udp_src_max %d", min(maxPort, int(source.Port())+s.flows())), // the first port not taken
		"flag UDPCSUM",
	}
	if source.Addr().Is4() {
		commands = append(commands, "dst "+destination.Addr().String(), "src_min "+source.Addr().String(), "src_max "+source.Addr().String())
	} else {
		commands = append(commands, "dst6 "+destination.Addr().String(), "src6 "+source.Addr().String())
	}
	if s.Rate > 0 {
		commands = append(commands, fmt.Sprintf("ratep %d", s.Rate))
	}
	return commands
}

// parseKernel reads what pktgen says of a device after a run.
func parseKernel(text string) (Sent, error) {
	found := regexp.MustCompile(`Result: OK: (\d+)\([^)]*\) usec, (\d+) \(`).FindStringSubmatch(text)
	if found == nil {
		return Sent{}, fmt.Errorf("pktgen gives no result: %q", text)
	}
	microseconds, err := strconv.ParseInt(found[1], 10, 64)
	frames, err2 := strconv.ParseUint(found[2], 10, 64)
	return Sent{Frames: frames, Elapsed: time.Duration(microseconds) * time.Microsecond}, errors.Join(err, err2)
}
