package datapath

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// callSite is a call on a map in a program.
type callSite struct {
	program string
	call    asm.BuiltinFunc
	table   string // the map
}

// counterSize is the size of the counter of one call site.
const counterSize = 8

// isCounted reports whether countCalls counts an instruction.
func isCounted(ins asm.Instruction) bool {
	return ins.IsBuiltinCall() && slices.Contains([]asm.BuiltinFunc{
		asm.FnMapLookupElem, asm.FnMapLookupPercpuElem, asm.FnMapUpdateElem, asm.FnMapDeleteElem, asm.FnForEachMapElem,
	}, asm.BuiltinFunc(ins.Constant))
}

// countCalls changes every program so that it counts its calls on maps. It
// returns the call sites and a map with one counter per call site, in the same
// order.
func countCalls(spec *ebpf.CollectionSpec) ([]callSite, *ebpf.Map, error) {
	all := 0
	for _, program := range spec.Programs {
		for _, ins := range program.Instructions {
			if isCounted(ins) {
				all++
			}
		}
	}
	counts, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: uint32(counterSize * all), MaxEntries: 1})
	if err != nil {
		return nil, nil, err
	}
	var sites []callSite
	for name, program := range spec.Programs {
		changed, calls, err := withCounters(program.Instructions, counts, len(sites))
		if err != nil {
			return nil, nil, errors.Join(fmt.Errorf("%s: %w", name, err), counts.Close())
		}
		program.Instructions = changed
		for _, s := range calls {
			s.program = name
			sites = append(sites, s)
		}
	}
	return sites, counts, nil
}

// withCounters inserts an atomic addition before each call on a map. The
// counters start at index first. The inserted code needs no stack and uses only
// registers that are free there: the call overwrites R0 and does not read R5.
func withCounters(code asm.Instructions, counts *ebpf.Map, first int) (asm.Instructions, []callSite, error) {
	flow, err := newFlowGraph(code)
	if err != nil {
		return nil, nil, err
	}
	var changed asm.Instructions
	var sites []callSite
	for at, ins := range flow.code {
		if !isCounted(ins) {
			changed = append(changed, ins)
			continue
		}
		table, err := flow.tableIn(asm.R1, at)
		if err != nil {
			return nil, nil, fmt.Errorf("%v, instruction %d: %w", ins, at, err)
		}
		offset := uint32(counterSize * (first + len(sites)))
		sites = append(sites, callSite{call: asm.BuiltinFunc(ins.Constant), table: table})
		changed = append(changed,
			// Jumps to the call must reach the counter.
			asm.LoadMapValue(asm.R5, counts.FD(), offset).WithSymbol(ins.Symbol()),
			asm.Mov.Imm(asm.R0, 1),
			asm.AddAtomic.Mem(asm.R5, asm.R0, asm.DWord, 0),
			ins.WithSymbol(""),
		)
	}
	return changed, sites, nil
}

// flowGraph is the instructions of a program and their predecessors. Jumps use
// symbols instead of distances, so instructions can be inserted.
type flowGraph struct {
	code asm.Instructions
	from [][]int // the possible predecessors of each instruction
}

func newFlowGraph(code asm.Instructions) (flowGraph, error) {
	f := flowGraph{slices.Clone(code), make([][]int, len(code))}
	at := map[asm.RawInstructionOffset]int{}
	for iter := code.Iterate(); iter.Next(); {
		at[iter.Offset] = iter.Index
	}
	for iter := code.Iterate(); iter.Next(); {
		ins := &f.code[iter.Index]
		op := ins.OpCode
		jumps := op.Class().IsJump() && op.JumpOp() != asm.Call && op.JumpOp() != asm.Exit
		always := op.JumpOp() == asm.Ja || op.JumpOp() == asm.Exit
		if next := iter.Index + 1; !always && next < len(code) {
			f.from[next] = append(f.from[next], iter.Index)
		}
		if !jumps {
			continue
		}
		if op.Class() == asm.Jump32Class && op.JumpOp() == asm.Ja || ins.Reference() != "" {
			return f, fmt.Errorf("%v: unsupported jump", ins)
		}
		to, ok := at[iter.Offset+1+asm.RawInstructionOffset(ins.Offset)]
		if !ok {
			return f, fmt.Errorf("%v: no instruction at the target", ins)
		}
		f.from[to] = append(f.from[to], iter.Index)
		if f.code[to].Symbol() == "" {
			f.code[to] = f.code[to].WithSymbol(fmt.Sprintf("instruction %d", to))
		}
		ins.Offset = -1
		*ins = ins.WithReference(f.code[to].Symbol())
	}
	return f, nil
}

// tableIn returns the map that a register holds before an instruction. It fails
// if different paths leave different maps in the register.
func (f flowGraph) tableIn(r asm.Register, at int) (string, error) {
	type place struct {
		register asm.Register
		at       int
	}
	var found string
	seen, todo := map[place]bool{}, []place{{r, at}}
	for len(todo) > 0 {
		here := todo[0]
		todo = todo[1:]
		if seen[here] {
			continue
		}
		seen[here] = true
		if len(f.from[here.at]) == 0 {
			return "", fmt.Errorf("%s: set outside this function", here.register)
		}
		for _, before := range f.from[here.at] {
			ins := f.code[before]
			switch {
			case !writes(ins, here.register):
				todo = append(todo, place{here.register, before})
			case ins.OpCode == asm.Mov.Op(asm.RegSource):
				todo = append(todo, place{ins.Src, before})
			case !ins.IsLoadFromMap():
				return "", fmt.Errorf("%s: set by %v, want a load of a map", here.register, ins)
			case found != "" && found != ins.Reference():
				return "", fmt.Errorf("%s: map %s or %s, want one map", here.register, found, ins.Reference())
			default:
				found = ins.Reference()
			}
		}
	}
	return found, nil
}

// writes reports whether an instruction changes a register.
func writes(ins asm.Instruction, r asm.Register) bool {
	class := ins.OpCode.Class()
	switch {
	case ins.OpCode.JumpOp() == asm.Call:
		return r <= asm.R5
	case class.IsALU(), class == asm.LdClass, class == asm.LdXClass:
		return ins.Dst == r
	case class == asm.StXClass && ins.OpCode.Mode() == asm.AtomicMode: // it may read the old value into the register
		return ins.Src == r || r == asm.R0
	}
	return false
}

// countedWorld is a world with programs that count their calls on maps.
type countedWorld struct {
	*world
	sites  []callSite
	tables map[string]ebpf.MapType
	counts *ebpf.Map
}

func newCountedWorld(t testing.TB) *countedWorld {
	t.Helper()
	c := &countedWorld{tables: map[string]ebpf.MapType{}}
	c.world = newWorld(t, loadChanged(func(spec *ebpf.CollectionSpec) (err error) {
		for name, table := range spec.Maps {
			c.tables[name] = table.Type
		}
		c.sites, c.counts, err = countCalls(spec)
		return err
	}))
	t.Cleanup(func() {
		if err := c.counts.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// during returns the calls of a program while do runs, by call site.
func (c *countedWorld) during(t testing.TB, program string, do func()) map[callSite]uint64 {
	t.Helper()
	before, after := make([]uint64, len(c.sites)), make([]uint64, len(c.sites))
	err := c.counts.Lookup(uint32(0), &before)
	do()
	err = errors.Join(err, c.counts.Lookup(uint32(0), &after))
	if err != nil {
		t.Fatal(err)
	}
	passed := map[callSite]uint64{}
	for i, s := range c.sites {
		if n := after[i] - before[i]; n > 0 && s.program == program {
			passed[s] += n
		}
	}
	return passed
}
