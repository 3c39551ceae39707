package datapath

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
)

// ProgramTime is how often a program ran and for how long, as far as the
// kernel was told to measure that (kernel.bpf_stats_enabled).
type ProgramTime struct {
	Name    string
	Runs    uint64
	Runtime time.Duration
}

// ProgramTimes reads the run times of every program.
func (t *Tables) ProgramTimes() ([]ProgramTime, error) {
	programs := []struct {
		name string
		p    *ebpf.Program
	}{
		{"from_endpoint", t.Programs.FromEndpoint},
		{"from_host", t.Programs.FromHost},
		{"from_loopback", t.Programs.FromLoopback},
		{"from_uplink", t.Programs.FromUplink},
		{"to_gateway", t.Programs.ToGateway},
		{"sweep_flows", t.Programs.SweepFlows},
		{"to_tunnel", t.Programs.ToTunnel},
		{"to_uplink", t.Programs.ToUplink},
		{"xdp_uplink", t.XDP},
	}
	times := make([]ProgramTime, 0, len(programs))
	for _, entry := range programs {
		if entry.p == nil {
			continue // there is no XDP
		}
		stats, err := entry.p.Stats()
		if err != nil {
			return nil, fmt.Errorf("read the run time of %s: %w", entry.name, err)
		}
		times = append(times, ProgramTime{entry.name, stats.RunCount, stats.Runtime})
	}
	return times, nil
}

// headerSize is what a frame begins with that tells a program, beyond it, what
// to do.
const headerSize = 14

// command runs one of the programs that do what they are told, and gives what
// the program has made of that.
func command[T any](p *ebpf.Program, what T) (T, error) {
	frame, err := binary.Append(make([]byte, headerSize), binary.NativeEndian, what)
	if err != nil {
		return what, err
	}
	status, frame, err := p.Test(frame)
	if err != nil {
		return what, err
	}
	if status != 0 {
		return what, fmt.Errorf("the program gives %d", status)
	}
	_, err = binary.Decode(frame[headerSize:], binary.NativeEndian, &what)
	return what, err
}
