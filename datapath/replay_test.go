package datapath

import (
	"errors"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// newProgram loads a program for TC.
func newProgram(t testing.TB, code ...asm.Instruction) *ebpf.Program {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: code})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// returning is a program that returns a verdict at once.
func returning(t testing.TB, verdict int32) *ebpf.Program {
	t.Helper()
	return newProgram(t, asm.Mov.Imm(asm.R0, verdict), asm.Return())
}

// newReplay returns a program that restores the row's packet, except its
// length, and then runs the given program.
func (r row) newReplay(t testing.TB, w *world, program *ebpf.Program) *ebpf.Program {
	t.Helper()
	frame, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: uint32(len(r.in)), MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	programs, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(frame.Close(), programs.Close()); err != nil {
			t.Error(err)
		}
	})
	err = errors.Join(frame.Put(uint32(0), r.in), programs.Put(uint32(0), uint32(program.FD())))
	if err != nil {
		t.Fatal(err)
	}
	// The kernel derives the packet type from the MAC and the device.
	kind := newProgram(t, asm.LoadMem(asm.R0, asm.R1, skbType, asm.Word), asm.Return())
	taken, _ := w.run(t, kind, r.device, r.in, r.skb)
	return newProgram(t,
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.StoreImm(asm.R6, skbMark, int64(int32(r.skb.mark)), asm.Word),
		asm.StoreImm(asm.R6, skbTCIndex, 0, asm.Word),
		asm.Mov.Imm(asm.R2, int32(taken)),
		asm.FnSkbChangeType.Call(),

		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Imm(asm.R2, 0),
		asm.LoadMapValue(asm.R3, frame.FD(), 0),
		asm.Mov.Imm(asm.R4, int32(len(r.in))),
		asm.Mov.Imm(asm.R5, 0),
		asm.FnSkbStoreBytes.Call(),

		asm.Mov.Reg(asm.R1, asm.R6),
		asm.LoadMapPtr(asm.R2, programs.FD()),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnTailCall.Call(),
		asm.Mov.Imm(asm.R0, verdictShot), // not reached
		asm.Return(),
	)
}

// checkReplay fails unless the third run of the replay gives the output that
// the golden row expects.
func (r row) checkReplay(t testing.TB, w *world, replay *ebpf.Program) {
	t.Helper()
	const times = 3
	options := w.options(r.device, r.in, r.skb)
	options.Repeat = times
	verdict, err := replay.Run(options)
	if err != nil {
		t.Fatal(err)
	}
	want := r.in
	if r.out != nil {
		want = r.out
	}
	if int(int32(verdict)) != r.verdict || !slices.Equal(options.DataOut, want) {
		t.Fatalf("verdict %d and %x, want %d and %x", int32(verdict), options.DataOut, r.verdict, want)
	}
}
