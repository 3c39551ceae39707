package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/bench/generator"
)

// generateCommand is the first argument of this program as a generator alone.
const generateCommand = "generate"

// generation is what its command line asks for.
type generation struct {
	stream   generator.Stream
	out      generator.Outlet
	duration time.Duration
	kernel   bool // by the kernel's pktgen
	count    bool
	in       generator.Outlet // where to count; the CPU is nobody's
}

// Protocols on its command line.
const (
	protocolUDP = "udp"
	protocolSYN = "tcp-syn"
	protocolGRE = "gre"
)

// What a frame inside GRE is made of unless told otherwise.
const (
	innerTo          = "02:00:5e:00:00:03"
	innerSource      = "192.0.2.2"
	innerDestination = "192.0.2.3:7000"
)

// firstFlowPort is the source port of the first flow: from there on as many as
// there can be of one address are free.
const firstFlowPort = 49152

func generate(args []string, stdout, stderr io.Writer) error {
	g, err := parseGeneration(args, stderr)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	if !g.count {
		sent, err := g.send(ctx)
		if err == nil {
			fmt.Fprintf(stdout, "sent %s\n", perSecond(sent.Frames, sent.Elapsed))
		}
		return err
	}
	sent, arrived, err := g.sendCounted(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "sent     %s\nreceived %s\nlost     %.1f%%\n",
		perSecond(sent.Frames, sent.Elapsed), perSecond(arrived, sent.Elapsed), 100*lostOf(sent.Frames, arrived))
	return nil
}

func perSecond(frames uint64, elapsed time.Duration) string {
	return fmt.Sprintf("%d frames, %.0f a second", frames, float64(frames)/elapsed.Seconds())
}

func (g generation) send(ctx context.Context) (generator.Sent, error) {
	if g.kernel {
		return g.stream.RunKernel(ctx, g.out, g.duration)
	}
	return g.stream.Run(ctx, g.out, g.duration)
}

// sendCounted also tells how many frames arrived where they are counted.
func (g generation) sendCounted(ctx context.Context) (sent generator.Sent, arrived uint64, err error) {
	in, err := generator.OpenInlet(g.in.Netns, g.in.Device)
	if err != nil {
		return sent, 0, err
	}
	defer in.Close()
	return in.Count(func() (generator.Sent, error) { return g.send(ctx) })
}

// parseGeneration reads the command line; help goes to w. Errors wrap
// errUsage, or are flag.ErrHelp.
func parseGeneration(args []string, w io.Writer) (generation, error) {
	flags := flag.NewFlagSet("bench "+generateCommand, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	var g generation
	var c streamFlags
	var netns, countNetns string
	flags.StringVar(&netns, "netns", "", "the device's network `namespace`, a name or a file (default: this one)")
	flags.StringVar(&g.out.Device, "device", "", "`device` that the frames leave by")
	flags.IntVar(&g.out.CPU, "cpu", 0, "`CPU` that makes them")
	c.register(flags)
	flags.DurationVar(&g.duration, "duration", time.Second, "how long")
	flags.BoolVar(&g.kernel, "kernel", false, "by the kernel's own pktgen: UDP only, but any receiver gets it")
	flags.StringVar(&countNetns, "count-netns", "", "network `namespace` of the device that counts (default: this one)")
	flags.StringVar(&g.in.Device, "count-device", "", "`device` that counts what arrives (default: nothing is counted)")

	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		helpGenerate(flags, w)
		return g, err
	case err != nil:
	case flags.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q: there are only flags", flags.Arg(0))
	case g.out.Device == "":
		err = errors.New("no --device: want the one that the frames leave by")
	case g.out.CPU < 0 || g.out.CPU >= runtime.NumCPU():
		err = fmt.Errorf("--cpu %d: want 0 to %d", g.out.CPU, runtime.NumCPU()-1)
	case g.duration <= 0:
		err = fmt.Errorf("--duration %s: want more than nothing", g.duration)
	case countNetns != "" && g.in.Device == "":
		err = errors.New("--count-netns without --count-device: want both")
	default:
		g.stream, err = c.stream()
	}
	if err != nil {
		return g, fmt.Errorf("%w: %w", errUsage, err)
	}
	g.count = g.in.Device != ""
	g.out.Netns, g.in.Netns = namespaceFile(netns), namespaceFile(countNetns)
	return g, nil
}

func helpGenerate(flags *flag.FlagSet, w io.Writer) {
	fmt.Fprintln(w, `bench generate sends frames out of a device, of its address, as fast as it can or at a rate.

The other end of a veth gets them only if it receives by NAPI: with an XDP
program attached, or after ethtool -K DEVICE gro on. Otherwise Linux drops them,
and tells nobody. Not so with --kernel.

Example: bench generate --netns outside --device eth0 --to 02:00:5e:00:00:01 \
    --source 198.51.100.2 --destination 198.51.100.1:30000 --flows 1000 --rate 100000

Flags:`)
	flags.SetOutput(w)
	flags.PrintDefaults()
}

// namespaceFile is the file of a namespace given by name or by file.
func namespaceFile(netns string) string {
	if netns == "" || strings.Contains(netns, string(os.PathSeparator)) {
		return netns
	}
	return netnsPath(netns)
}

// streamFlags are a stream as it is told on the command line.
type streamFlags struct {
	protocol, key                          string
	to, source, destination                string
	innerTo, innerSource, innerDestination string
	size, flows, rate                      int
}

func (c *streamFlags) register(flags *flag.FlagSet) {
	flags.StringVar(&c.to, "to", "", "`MAC` that they go to")
	flags.StringVar(&c.source, "source", "", "`address`, or address:port, of the first flow")
	flags.StringVar(&c.destination, "destination", "", "`address:port`; with gre an address")
	flags.StringVar(&c.protocol, "protocol", protocolUDP, "`"+strings.Join([]string{protocolUDP, protocolSYN, protocolGRE}, "|")+"`; inside gre is UDP in Ethernet")
	flags.StringVar(&c.key, "key", "", "of gre (default: none)")
	flags.StringVar(&c.innerTo, "inner-to", "", "`MAC` that the frame inside gre goes to (default "+innerTo+")")
	flags.StringVar(&c.innerSource, "inner-source", "", "as --source, inside gre (default "+innerSource+")")
	flags.StringVar(&c.innerDestination, "inner-destination", "", "as --destination, inside gre (default "+innerDestination+")")
	flags.IntVar(&c.size, "size", 0, fmt.Sprintf("of a frame in `bytes`, up to %d (default: the least)", generator.MaxSize))
	flags.IntVar(&c.flows, "flows", 1, "how many flows take turns; they differ in their source port, and address if there are many")
	flags.IntVar(&c.rate, "rate", 0, "frames a second at most (default: as many as can be)")
}

func (c streamFlags) stream() (s generator.Stream, err error) {
	s = generator.Stream{Size: c.size, Flows: c.flows, Rate: c.rate}
	if c.flows < 1 {
		return s, fmt.Errorf("--flows %d: want at least 1", c.flows)
	}
	if c.size < 0 || c.size > generator.MaxSize {
		return s, fmt.Errorf("--size %d: want up to %d bytes", c.size, generator.MaxSize)
	}
	inner := c.innerTo + c.innerSource + c.innerDestination
	what := "--"
	switch c.protocol {
	case protocolGRE:
		if s.GRE, err = c.gre(); err != nil {
			return s, err
		}
		what = "--inner-"
		c.to, c.source = cmp.Or(c.innerTo, innerTo), cmp.Or(c.innerSource, innerSource)
		c.destination = cmp.Or(c.innerDestination, innerDestination)
	case protocolUDP:
	case protocolSYN:
		s.Protocol = generator.TCPSYN
	default:
		return s, fmt.Errorf("--protocol %q: want %s, %s or %s", c.protocol, protocolUDP, protocolSYN, protocolGRE)
	}
	if s.GRE == nil && (c.key != "" || inner != "") {
		return s, fmt.Errorf("--key and --inner-...: want them with --protocol %s only", protocolGRE)
	}
	if s.To, err = parseMAC(what+"to", c.to); err != nil {
		return s, err
	}
	if s.Source, err = netip.ParseAddrPort(c.source); err != nil {
		address, err := netip.ParseAddr(c.source)
		if err != nil {
			return s, fmt.Errorf("%ssource %q: want an address or an address:port", what, c.source)
		}
		s.Source = netip.AddrPortFrom(address, firstFlowPort)
	}
	if s.Destination, err = netip.ParseAddrPort(c.destination); err != nil {
		return s, fmt.Errorf("%sdestination %q: want an address:port", what, c.destination)
	}
	if s.Size == 0 && s.Source.Addr().Is4() == s.Destination.Addr().Is4() {
		s.Size = s.Least()
	}
	return s, s.Check()
}

// gre is the outer packet.
func (c streamFlags) gre() (g *generator.GRE, err error) {
	g = &generator.GRE{}
	if g.To, err = parseMAC("--to", c.to); err != nil {
		return nil, err
	}
	if g.Source, err = netip.ParseAddr(c.source); err != nil {
		return nil, fmt.Errorf("--source %q: want an address", c.source)
	}
	if g.Destination, err = netip.ParseAddr(c.destination); err != nil {
		return nil, fmt.Errorf("--destination %q: want an address, with %s no port", c.destination, protocolGRE)
	}
	if c.key != "" {
		key, err := strconv.ParseUint(c.key, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("--key %q: want 0 to 4294967295", c.key)
		}
		g.Key = new(uint32)
		*g.Key = uint32(key)
	}
	return g, nil
}

func parseMAC(flag, text string) (mac [6]byte, err error) {
	parsed, err := net.ParseMAC(text)
	if err != nil || len(parsed) != len(mac) {
		return mac, fmt.Errorf("%s %q: want a MAC, six bytes as %s", flag, text, innerTo)
	}
	return [6]byte(parsed), nil
}
