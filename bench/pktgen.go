package main

import (
	"context"
	"fmt"
	"time"

	"github.com/ebpnet/ebpnet/bench/generator"
)

// Names of the families whose traffic the generator makes.
const (
	pktgenDrop = "pktgen-drop"
	pktgenPort = "pktgen-port"
	pktgenGRE  = "pktgen-gre"
)

// Kinds of topology that only those have.
const (
	allDrop = "all-drop" // an XDP program that does nothing else
	viaTC   = "tc"       // ebpnet without XDP
	viaXDP  = "xdp"      // ebpnet with it
)

// aim is where the generator's frames leave, what they are, and where those
// that arrive are counted.
type aim struct {
	outNetns, outDevice string
	inNetns, inDevice   string
	stream, stream6     generator.Stream
}

func pktgenFamilies() []family {
	return []family{
		{
			pktgenDrop, "GRE of unknown hosts, flat out, into an uplink",
			[]string{allDrop},
			[]string{framesGRE, framesGRE6},
		},
		{
			pktgenPort, "flat out to a published port, counted in the container",
			[]string{wire, iptables, viaTC},
			append([]string{framesUDP, framesMany, framesLarge, framesSYN}, kernelFrames()...),
		},
		{
			pktgenGRE, "flat out through a tunnel to an endpoint, counted in the container",
			[]string{viaTC},
			[]string{framesGRE},
		},
	}
}

// Names of the measures by the generator.
const (
	framesUDP   = "gen_udp"
	framesMany  = "gen_udp_many"
	framesLarge = "gen_udp_1514"
	framesSYN   = "gen_syn"
	framesGRE   = "gen_gre"
	framesGRE6  = "gen_gre6"
	framesByOld = "kernel_udp"
)

// How many flows take turns.
const (
	someFlows = 16
	manyFlows = 10_000
)

func pktgenMeasures() []measure {
	generated := func(name, about string, of func(*aim) generator.Stream) measure {
		return measure{
			name: name, about: about, unit: "frames/s", scale: 1,
			take: func(ctx context.Context, over path, opt options) (sample, error) {
				return over.aim.take(ctx, of(over.aim), opt, generator.Stream.Run)
			},
		}
	}
	all := []measure{
		generated(framesUDP, fmt.Sprintf("60-byte frames of %d UDP flows, by the generator", someFlows), (*aim).least),
		generated(framesMany, fmt.Sprintf("the same of %d flows", manyFlows), func(a *aim) generator.Stream {
			s := a.least()
			s.Flows = manyFlows
			return s
		}),
		generated(framesLarge, fmt.Sprintf("the same in frames of %d bytes", generator.MaxSize), func(a *aim) generator.Stream {
			s := a.least()
			s.Size = generator.MaxSize
			return s
		}),
		generated(framesSYN, "60-byte frames of as many TCP SYNs over and over", func(a *aim) generator.Stream {
			s := a.stream
			s.Protocol, s.Size = generator.TCPSYN, generator.MinSize
			return s
		}),
		generated(framesGRE, "the shortest frames of UDP in GRE, by the generator", (*aim).least),
		generated(framesGRE6, "the same in IPv6", func(a *aim) generator.Stream {
			s := a.stream6
			s.Size = s.Least()
			return s
		}),
	}
	if generator.HasKernel() {
		all = append(all, measure{
			name: framesByOld, about: "60-byte frames of UDP, by the kernel's pktgen", unit: "frames/s", scale: 1,
			take: func(ctx context.Context, over path, opt options) (sample, error) {
				return over.aim.take(ctx, over.aim.least(), opt, generator.Stream.RunKernel)
			},
		})
	}
	return all
}

// kernelFrames is the measure by the kernel's pktgen, where that is loaded.
func kernelFrames() []string {
	if !generator.HasKernel() {
		return nil
	}
	return []string{framesByOld}
}

func (a *aim) least() generator.Stream {
	s := a.stream
	s.Size = s.Least()
	return s
}

// take sends a stream flat out, on the CPU that then receives it, too: one
// that is slower to receive keeps the generator from sending.
func (a *aim) take(ctx context.Context, s generator.Stream, opt options, run runStream) (sample, error) {
	out := generator.Outlet{Netns: netnsPath(a.outNetns), Device: a.outDevice, CPU: opt.cpu}
	sent, arrived, err := a.counted(func() (generator.Sent, error) { return run(s, ctx, out, opt.duration) })
	if err != nil {
		return sample{}, err
	}
	if arrived == 0 {
		return sample{}, fmt.Errorf("none of %d frames arrived at %s", sent.Frames, a.inDevice)
	}
	return sample{
		value: float64(arrived) / sent.Elapsed.Seconds(),
		lost:  lostOf(sent.Frames, arrived),
	}, nil
}

type runStream func(s generator.Stream, ctx context.Context, out generator.Outlet, duration time.Duration) (generator.Sent, error)

// counted tells how many frames arrive of those sent.
func (a *aim) counted(send func() (generator.Sent, error)) (sent generator.Sent, arrived uint64, err error) {
	in, err := generator.OpenInlet(netnsPath(a.inNetns), a.inDevice)
	if err != nil {
		return sent, 0, err
	}
	defer in.Close()
	return in.Count(send)
}

// lostOf is the share of frames that did not arrive. A stray one more, as a
// device sends of its own, is not less than none.
func lostOf(sent, arrived uint64) float64 {
	return max(0, 1-float64(arrived)/float64(max(1, sent)))
}
