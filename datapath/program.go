package datapath

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
)

// ProgramTime is the number of runs and the run time of a program. The kernel
// measures them only while kernel.bpf_stats_enabled is set.
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
			continue // XDP is not loaded
		}
		stats, err := entry.p.Stats()
		if err != nil {
			return nil, fmt.Errorf("read the run time of %s: %w", entry.name, err)
		}
		times = append(times, ProgramTime{entry.name, stats.RunCount, stats.Runtime})
	}
	return times, nil
}

// headerSize is the length of the Ethernet header before a command to a
// program.
const headerSize = 14

// command runs a program that carries out commands. It returns the command as
// the program changed it.
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
		return what, fmt.Errorf("the program returned %d, want 0", status)
	}
	_, err = binary.Decode(frame[headerSize:], binary.NativeEndian, &what)
	return what, err
}
