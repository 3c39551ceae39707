package loader

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/ebpnet/ebpnet/bpf"
)

// release is a datapath of version e41502a, the first that was released.
type release struct {
	*ebpf.Collection
	dir string
}

// loadRelease loads and pins the programs of version e41502a, as it did.
func loadRelease(t testing.TB) *release {
	t.Helper()
	dir := pinDirectory(t)
	spec := compiled(t, "e41502a/ebpnet.o.gz")
	sizeFlows(spec, fewFlows)
	must(t, spec.Variables[bpf.EbpnetVarFlowSlots].Set(spec.Maps[bpf.EbpnetMapFlows].MaxEntries))
	must(t, spec.Variables[bpf.EbpnetVarGatewayIfindex].Set(uint32(1)))
	c, err := ebpf.NewCollection(spec)
	must(t, err)
	t.Cleanup(c.Close)
	for _, sub := range []string{mapsDirectory, programsDirectory, linksDirectory} {
		must(t, os.MkdirAll(filepath.Join(dir, sub), 0o700))
	}
	for name, m := range c.Maps {
		if !isSection(name) {
			must(t, m.Pin(filepath.Join(dir, mapsDirectory, name)))
		}
	}
	for name, p := range c.Programs {
		must(t, p.Pin(filepath.Join(dir, programsDirectory, name)))
	}
	return &release{c, dir}
}

// loadXDP loads and pins the release's program of XDP, with the maps of the
// others.
func (r *release) loadXDP(t testing.TB) *ebpf.Program {
	t.Helper()
	spec := compiled(t, "e41502a/xdp.o.gz")
	shared := map[string]*ebpf.Map{}
	for name, m := range spec.Maps {
		if !isSection(name) {
			shared[name] = r.Maps[name]
			m.MaxEntries = r.Maps[name].MaxEntries()
		}
	}
	c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: shared})
	must(t, err)
	t.Cleanup(c.Close)
	program := c.Programs[bpf.XdpProgXdpUplink]
	must(t, program.Pin(filepath.Join(r.dir, programsDirectory, bpf.XdpProgXdpUplink)))
	return program
}

// releaseFlow is the struct flow of version e41502a.
type releaseFlow struct {
	Original, Reply bpf.EbpnetFlowKey
	Opened, Seen    uint64
	Sent            [2]bpf.EbpnetCounter
	Mapping, Users  uint32
	Turn            uint32
	Flags           uint32
	State           uint32
	Uplink          uint32
	Sequence        uint32
	Revision        uint32
	Client, Server  uint32 // of a link only
}

// releaseStation is the struct station of version e41502a.
type releaseStation struct {
	Network, Endpoint, Ifindex, Tunnel, Kind uint32
	Mac                                      bpf.EbpnetMac
	Trunk, Napi                              uint8
}

// releaseLearned is the struct learned of version e41502a.
type releaseLearned struct {
	Station releaseStation
	Number  uint32
	Seen    uint64
}

// Values of enum flow_state of version e41502a.
const (
	releaseHalfOpen    = 2
	releaseEstablished = 3
)

// releaseFlags returns the flags of version e41502a for the phases that the
// tests use.
func releaseFlags(phase bpf.EbpnetFlowPhase) uint32 {
	const (
		answerFIN, openerRST   = 2, 4
		answered, isHandshaken = 16, 32
	)
	return map[bpf.EbpnetFlowPhase]uint32{
		bpf.EbpnetFlowPhasePHASE_REPLIED:        answered,
		bpf.EbpnetFlowPhasePHASE_ESTABLISHED:    answered | isHandshaken,
		bpf.EbpnetFlowPhasePHASE_CLOSING_REPLY:  answered | isHandshaken | answerFIN,
		bpf.EbpnetFlowPhasePHASE_RESET_ORIGINAL: answered | isHandshaken | openerRST,
	}[phase]
}

// put writes a flow into a slot of the release's tables.
func (r *release) put(t testing.TB, slot uint32, f bpf.EbpnetFlow) {
	t.Helper()
	state := uint32(releaseEstablished)
	if f.State == bpf.EbpnetFlowStateFLOW_HALF_OPEN {
		state = releaseHalfOpen
	}
	must(t, r.Maps[bpf.EbpnetMapFlows].Put(slot, releaseFlow{
		Original: f.Original, Reply: f.Reply, Opened: f.Opened, Seen: f.Seen, Sent: f.Sent, Mapping: f.Mapping,
		Flags: releaseFlags(f.Phase), State: state, Uplink: f.Uplink, Sequence: f.Sequence,
		Client: 4711, Server: 4712, // what a link's flow left behind
	}))
}
