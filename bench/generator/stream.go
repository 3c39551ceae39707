// Package generator sends streams of Ethernet frames out of a device, faster
// than sockets can: by live-frame test runs of an XDP program (Linux 5.18,
// Documentation/bpf/bpf_prog_run.rst), or by the kernel's own pktgen. What is
// at the other end of the device, and what becomes of the frames, it does not
// know; Inlet counts what arrives.
package generator

import (
	"fmt"
	"net"
	"net/netip"
)

// Protocol is what a frame's packet carries.
type Protocol uint8

// The protocols of streams.
const (
	UDP    Protocol = iota // with a checksum, filled with zeros
	TCPSYN                 // first segments of connections, no options and no data
)

// Sizes of frames in bytes, without the frame check sequence: of Ethernet's
// shortest, and of the longest with the usual MTU of 1500.
const (
	MinSize = 60
	MaxSize = 1514
)

// portsPerAddress is how many flows differ only in their source port.
const (
	portsPerAddress = 1 << portBits
	portBits        = 14
)

// Stream is frames that differ in nothing but the flow they are of.
type Stream struct {
	From, To [6]byte // Ethernet addresses; From zero: the device's, if there is no GRE
	// Source is that of the first flow; the next ones count up the port, and
	// from the 16,384th on the address.
	Source, Destination netip.AddrPort
	Protocol            Protocol
	GRE                 *GRE // around the frame; nil: nothing is
	// Size is of whole frames in bytes, the outer one's with GRE, without the
	// frame check sequence. What a SYN leaves of it is padding.
	Size  int
	Flows int // how many take turns; 0: one
	Rate  int // frames a second at most; 0: as many as can be
}

// GRE is an outer packet with an Ethernet frame inside, RFC 2784 and 2890.
type GRE struct {
	From, To            [6]byte // Ethernet addresses; From zero: the device's
	Source, Destination netip.Addr
	Key                 *uint32 // nil: no key field
}

// Check says what is wrong with a stream, in one line; nil: nothing is.
func (s Stream) Check() error {
	switch {
	case !s.Source.IsValid() || !s.Destination.IsValid():
		return fmt.Errorf("stream without addresses: want a source and a destination")
	case s.Source.Addr().Is4() != s.Destination.Addr().Is4():
		return fmt.Errorf("source %s, destination %s: want both IPv4 or both IPv6", s.Source, s.Destination)
	case s.Protocol > TCPSYN:
		return fmt.Errorf("protocol %d: want UDP or TCPSYN", s.Protocol)
	case s.Flows < 0 || s.Flows > maxFlows:
		return fmt.Errorf("flows %d: want 1 to %d", s.Flows, maxFlows)
	case s.Rate < 0 || s.Rate > maxRate:
		return fmt.Errorf("rate %d: want up to %d frames a second, or 0 for all that can be", s.Rate, maxRate)
	}
	if s.GRE != nil {
		if err := s.GRE.check(); err != nil {
			return err
		}
	}
	last := s.flows() - 1
	if int(s.Source.Port())+min(last, portsPerAddress-1) > maxPort {
		return fmt.Errorf("flows %d: from source port %d up there are not as many ports", s.Flows, s.Source.Port())
	}
	if uint64(lowBits(s.Source.Addr()))+uint64(last/portsPerAddress) > maxUint32 {
		return fmt.Errorf("flows %d: from source address %s up there are not as many addresses", s.Flows, s.Source.Addr())
	}
	if least := s.Least(); s.Size < least || s.Size > MaxSize {
		return fmt.Errorf("size %d: want %d to %d, as the headers have it", s.Size, least, MaxSize)
	}
	return nil
}

// Least is the least size that a stream's frames can have.
func (s Stream) Least() int { return max(MinSize, newTemplate(s).headers) }

// fromDevice gives the frames the device's address where they have none.
func (s Stream) fromDevice(address net.HardwareAddr) Stream {
	from := &s.From
	if s.GRE != nil {
		outer := *s.GRE
		s.GRE, from = &outer, &outer.From
	}
	if *from == [6]byte{} {
		copy(from[:], address)
	}
	return s
}

func (g GRE) check() error {
	if !g.Source.IsValid() || !g.Destination.IsValid() || g.Source.Is4() != g.Destination.Is4() {
		return fmt.Errorf("GRE source %s, destination %s: want both IPv4 or both IPv6", g.Source, g.Destination)
	}
	return nil
}

// Limits of fields and of what fits the program's immediate values.
const (
	maxPort   = 1<<16 - 1
	maxUint32 = 1<<32 - 1
	maxRate   = 100_000_000
	maxFlows  = 1<<31 - 1
)

func (s Stream) flows() int { return max(1, s.Flows) }
