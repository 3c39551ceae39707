package loader

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Feature is a feature of the kernel that the datapath uses.
type Feature struct {
	Name     string `json:"name"`
	Since    string `json:"since"` // first kernel version with the feature
	Needed   bool   `json:"needed"`
	Present  bool   `json:"present"`
	Fallback string `json:"fallback,omitempty"` // what the datapath does without it
	Err      error  `json:"-"`                  // why the probe was inconclusive
}

// ErrMissingFeature means that the kernel lacks a feature that the datapath
// needs.
var ErrMissingFeature = errors.New("this kernel cannot run the datapath")

// Names of the features whose presence decides how the programs are set up.
const (
	featureTCX       = "TCX links"
	featureSkipNeigh = "route lookup without neighbor"
	featureRouteSrc  = "route lookup with source address"
	featureDecapL3   = "decapsulation to another IP family"
)

// Flags of kernels newer than the headers of cilium/ebpf's asm package, as in
// include/uapi/linux/bpf.h.
const (
	fibLookupSkipNeigh = 1 << 2
	fibLookupSrc       = 1 << 4
	adjRoomDecapIPv4   = 1 << 7
	adjRoomDecapIPv6   = 1 << 8
	adjRoomMAC         = 1
)

// Probe asks the kernel for every feature, the needed ones first.
func Probe() []Feature {
	helper := func(f asm.BuiltinFunc) func() error {
		return func() error { return features.HaveProgramHelper(ebpf.SchedCLS, f) }
	}
	probes := []struct {
		Feature
		probe func() error
	}{
		{Feature{Name: "BTF", Since: "5.4", Needed: true}, haveBTF},
		{Feature{Name: "redirect into a peer's namespace", Since: "5.10", Needed: true}, helper(asm.FnRedirectPeer)},
		{Feature{Name: "redirect to a neighbor", Since: "5.10", Needed: true}, helper(asm.FnRedirectNeigh)},
		{Feature{Name: "coarse clock", Since: "5.11", Needed: true}, helper(asm.FnKtimeGetCoarseNs)},
		{Feature{Name: "timers in maps", Since: "5.15", Needed: true}, helper(asm.FnTimerInit)},
		{Feature{Name: "bounded loops by callback", Since: "5.17", Needed: true}, helper(asm.FnLoop)},
		{Feature{Name: featureTCX, Since: "6.6", Fallback: "clsact filters, replaced in place"}, haveTCX},
		{
			Feature{Name: featureSkipNeigh, Since: "6.3", Fallback: "a neighbor lookup more per routed packet"},
			func() error { return haveFIBFlags(fibLookupSkipNeigh) },
		},
		{
			Feature{Name: featureRouteSrc, Since: "6.7", Fallback: "the uplink's first address masquerades"},
			func() error { return haveFIBFlags(fibLookupSrc) },
		},
		{
			Feature{Name: featureDecapL3, Since: "6.3", Fallback: "IPv6 out of a tunnel takes a slower way"},
			func() error { return haveAdjustRoomFlags(adjRoomDecapIPv6) },
		},
		{Feature{Name: "XDP of frames in parts", Since: "5.18", Fallback: "TC alone, also with 'load --xdp'"}, haveXDP},
	}
	found := make([]Feature, 0, len(probes))
	for _, p := range probes {
		err := p.probe()
		p.Present = err == nil
		if err != nil && !errors.Is(err, ebpf.ErrNotSupported) {
			p.Err = err
		}
		found = append(found, p.Feature)
	}
	return found
}

// CheckFeatures returns one ErrMissingFeature that names all missing features
// that the datapath needs.
func CheckFeatures(found []Feature) error {
	var missing []string
	for _, f := range found {
		switch {
		case !f.Needed || f.Present:
		case f.Err != nil:
			missing = append(missing, fmt.Sprintf("%s (not known: %v)", f.Name, f.Err))
		default:
			missing = append(missing, fmt.Sprintf("%s (Linux %s)", f.Name, f.Since))
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("%w: it lacks %s", ErrMissingFeature, strings.Join(missing, ", "))
}

func haveBTF() error {
	if _, err := btf.LoadKernelSpec(); err != nil {
		return fmt.Errorf("%w: %w", ebpf.ErrNotSupported, err)
	}
	return nil
}

// haveTCX tries to attach to a device that cannot exist. The kernel's error
// shows whether it knows TCX.
func haveTCX() error {
	program, err := ebpf.NewProgram(returning(0))
	if err != nil {
		return err
	}
	defer program.Close()
	const noDevice = 1<<31 - 1
	l, err := link.AttachTCX(link.TCXOptions{Interface: noDevice, Program: program, Attach: ebpf.AttachTCXIngress})
	if err == nil {
		return l.Close()
	}
	if errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// haveFIBFlags makes a route lookup that fails. The kernel refuses unknown
// flags first, with another error.
func haveFIBFlags(flags int32) error {
	const size = 64 // of struct bpf_fib_lookup, with family 0
	instructions := asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1), asm.Mov.Imm(asm.R2, 0)}
	for offset := int16(-size); offset < 0; offset += 8 {
		instructions = append(instructions, asm.StoreMem(asm.RFP, offset, asm.R2, asm.DWord))
	}
	instructions = append(instructions,
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -size),
		asm.Mov.Imm(asm.R3, size),
		asm.Mov.Imm(asm.R4, flags),
		asm.FnFibLookup.Call(),
	)
	return flagsAccepted(instructions)
}

// haveAdjustRoomFlags resizes a frame that is neither IPv4 nor IPv6. The kernel
// refuses unknown flags first, with another error.
func haveAdjustRoomFlags(flags int32) error {
	return flagsAccepted(asm.Instructions{
		asm.Mov.Imm(asm.R2, 0),
		asm.Mov.Imm(asm.R3, adjRoomMAC),
		asm.Mov.Imm(asm.R4, flags),
		asm.FnSkbAdjustRoom.Call(),
	})
}

// flagsAccepted runs a call and returns ErrNotSupported if it returns -EINVAL.
func flagsAccepted(call asm.Instructions) error {
	spec := returning(0)
	spec.Instructions = append(call, asm.Return())
	program, err := ebpf.NewProgram(spec)
	if err != nil {
		return err
	}
	defer program.Close()
	frame := make([]byte, 64)
	frame[12] = 0x08 // ethertype 0x0806, ARP
	frame[13] = 0x06
	verdict, _, err := program.Test(frame)
	if err != nil {
		return err
	}
	if int32(verdict) == -int32(unix.EINVAL) {
		return ebpf.ErrNotSupported
	}
	return nil
}

func returning(verdict int32) *ebpf.ProgramSpec {
	return &ebpf.ProgramSpec{
		Type:         ebpf.SchedCLS,
		License:      "Dual BSD/GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, verdict), asm.Return()},
	}
}

// flags are the helper flags that this kernel knows.
type flags struct {
	fib                  uint32
	decapIPv4, decapIPv6 uint32
}

func probeFlags() (flags, error) {
	found := Probe()
	if err := CheckFeatures(found); err != nil {
		return flags{}, err
	}
	var f flags
	for _, feature := range found {
		if !feature.Present {
			continue
		}
		switch feature.Name {
		case featureSkipNeigh:
			f.fib |= fibLookupSkipNeigh
		case featureRouteSrc:
			f.fib |= fibLookupSrc
		case featureDecapL3:
			f.decapIPv4, f.decapIPv6 = adjRoomDecapIPv4, adjRoomDecapIPv6
		}
	}
	return f, nil
}
