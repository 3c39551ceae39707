package generator

import (
	"encoding/binary"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// progress is the only entry of the program's map. The program alone writes it.
type progress struct {
	Sent  uint64 // frames given to the device
	Flow  uint64 // the next one's, counted from 0
	First uint64 // when the first one was, in ns of CLOCK_MONOTONIC
	Due   uint64 // when the next one is, likewise; only with a rate
}

// Offsets in progress.
const (
	sentOffset  = 0
	flowOffset  = 8
	firstOffset = 16
	dueOffset   = 24
)

// burst is how much late a frame may be for those after it to make up for it:
// longer than an interrupt takes this CPU away, shorter than a time slice.
const burst = time.Millisecond

// Registers that helpers leave as they are, and what they hold.
const (
	xdpReg     = asm.R6
	flowReg    = asm.R7
	stateReg   = asm.R8
	clockReg   = asm.R9
	dataReg    = asm.R2
	portReg    = asm.R4
	addrReg    = asm.R5
	scratchReg = asm.R3
	sumReg     = asm.R1
)

// Labels.
const (
	begun    = "begun"
	onTime   = "on-time"
	tooEarly = "too-early"
	next     = "next"
)

// Of struct xdp_md.
const (
	xdpData    = 0
	xdpDataEnd = 4
)

// XDP verdicts, enum xdp_action.
const xdpDrop = 1

// program gives what is run once for each frame: it writes the frame's headers
// and sends it out of a device. It writes all of them each time, as the kernel
// hands out the same memory again as the receiver left it.
func (t template) program(s Stream, values *ebpf.Map, ifindex int) *ebpf.ProgramSpec {
	code := asm.Instructions{
		asm.Mov.Reg(xdpReg, asm.R1),
		asm.LoadMapValue(stateReg, values.FD(), 0),
		asm.LoadMem(asm.R0, stateReg, firstOffset, asm.DWord),
		asm.JNE.Imm(asm.R0, 0, begun),
		asm.FnKtimeGetNs.Call(),
		asm.StoreMem(stateReg, firstOffset, asm.R0, asm.DWord),
		asm.StoreMem(stateReg, dueOffset, asm.R0, asm.DWord),
		asm.LoadMem(clockReg, stateReg, dueOffset, asm.DWord).WithSymbol(begun),
	}
	if s.Rate > 0 {
		code = append(code, pace(s.Rate)...)
	}
	code = append(code,
		asm.LoadMem(dataReg, xdpReg, xdpData, asm.Word),
		asm.LoadMem(scratchReg, xdpReg, xdpDataEnd, asm.Word),
		asm.Mov.Reg(portReg, dataReg),
		asm.Add.Imm(portReg, int32(t.headers)),
		asm.JGT.Reg(portReg, scratchReg, tooEarly), // never: the frame is ours
		asm.LoadMem(flowReg, stateReg, flowOffset, asm.DWord),
	)
	code = append(code, t.restore()...)
	code = append(code, t.distinguish(s)...)
	return &ebpf.ProgramSpec{
		Name: "generate", Type: ebpf.XDP, License: "MIT",
		Instructions: append(code,
			asm.LoadMem(asm.R0, stateReg, sentOffset, asm.DWord),
			asm.Add.Imm(asm.R0, 1),
			asm.StoreMem(stateReg, sentOffset, asm.R0, asm.DWord),
			asm.Add.Imm(flowReg, 1),
			asm.JLT.Imm(flowReg, int32(s.flows()), next),
			asm.Mov.Imm(flowReg, 0),
			asm.StoreMem(stateReg, flowOffset, flowReg, asm.DWord).WithSymbol(next),
			asm.Mov.Imm(asm.R1, int32(ifindex)),
			asm.Mov.Imm(asm.R2, 0),
			asm.FnRedirect.Call(),
			asm.Return(),
			asm.Mov.Imm(asm.R0, xdpDrop).WithSymbol(tooEarly),
			asm.Return(),
		),
	}
}

// pace lets a run through when a frame is due.
func pace(rate int) asm.Instructions {
	interval := int32(time.Second.Nanoseconds() / int64(rate))
	return asm.Instructions{
		asm.FnKtimeGetNs.Call(),
		asm.JLT.Reg(asm.R0, clockReg, tooEarly),
		asm.Add.Imm(asm.R0, -int32(burst.Nanoseconds())),
		asm.JGT.Reg(clockReg, asm.R0, onTime),
		asm.Mov.Reg(clockReg, asm.R0), // too late: what was missed stays missed
		asm.Add.Imm(clockReg, interval).WithSymbol(onTime),
		asm.StoreMem(stateReg, dueOffset, clockReg, asm.DWord),
	}
}

// restore writes the headers that all frames have in common.
func (t template) restore() (code asm.Instructions) {
	at := 0
	for ; at+4 <= t.headers; at += 4 {
		word := int32(binary.NativeEndian.Uint32(t.frame[at:]))
		code = append(code, asm.StoreImm(dataReg, int16(at), int64(word), asm.Word))
	}
	for ; at+2 <= t.headers; at += 2 {
		half := int16(binary.NativeEndian.Uint16(t.frame[at:]))
		code = append(code, asm.StoreImm(dataReg, int16(at), int64(half), asm.Half))
	}
	return code
}

// distinguish writes what makes out the flow, and the checksums.
func (t template) distinguish(s Stream) asm.Instructions {
	code := asm.Instructions{
		asm.Mov.Reg(portReg, flowReg),
		asm.And.Imm(portReg, portsPerAddress-1),
		asm.Add.Imm(portReg, int32(s.Source.Port())),
		asm.Mov.Reg(addrReg, flowReg),
		asm.RSh.Imm(addrReg, portBits),
		asm.LoadImm(scratchReg, int64(lowBits(s.Source.Addr())), asm.DWord),
		asm.Add.Reg(addrReg, scratchReg),
	}
	if t.header.offset > 0 {
		code = append(code, asm.Mov.Imm(sumReg, int32(t.header.sum)))
		code = append(code, finish(t.header.offset, "header")...)
	}
	code = append(code, asm.Mov.Imm(sumReg, int32(t.transport.sum)), asm.Add.Reg(sumReg, portReg))
	code = append(code, finish(t.transport.offset, "transport")...)
	return append(code,
		asm.HostTo(asm.BE, portReg, asm.Half),
		asm.StoreMem(dataReg, int16(t.sourcePort), portReg, asm.Half),
		asm.HostTo(asm.BE, addrReg, asm.Word),
		asm.StoreMem(dataReg, int16(t.sourceAddress), addrReg, asm.Word),
	)
}

// finish adds the address to a sum and stores the checksum that comes of it,
// 0 as 0xffff, which is the same but in UDP, where 0 would mean that there is none.
func finish(offset int, name string) asm.Instructions {
	code := asm.Instructions{
		asm.Mov.Reg(scratchReg, addrReg),
		asm.RSh.Imm(scratchReg, 16),
		asm.Add.Reg(sumReg, scratchReg),
		asm.Mov.Reg(scratchReg, addrReg),
		asm.And.Imm(scratchReg, 0xffff),
		asm.Add.Reg(sumReg, scratchReg),
	}
	for range 2 { // the first may carry
		code = append(code,
			asm.Mov.Reg(scratchReg, sumReg),
			asm.RSh.Imm(scratchReg, 16),
			asm.And.Imm(sumReg, 0xffff),
			asm.Add.Reg(sumReg, scratchReg),
		)
	}
	return append(code,
		asm.Xor.Imm(sumReg, 0xffff),
		asm.JNE.Imm(sumReg, 0, name),
		asm.Mov.Imm(sumReg, 0xffff),
		asm.HostTo(asm.BE, sumReg, asm.Half).WithSymbol(name),
		asm.StoreMem(dataReg, int16(offset), sumReg, asm.Half),
	)
}
