package loader

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"

	"github.com/ebpnet/ebpnet/bpf"
	"github.com/ebpnet/ebpnet/internal/testutil"
)

// The limits of each program, on each kernel.
const (
	maxInstructions = 250_000 // that the verifier walks, of its 1,000,000
	maxStack        = 416     // bytes of a chain of calls, of 512
	maxFrames       = 7       // functions of a chain of calls, of 8
)

// How Linux 6.1 counts the stack: check_max_stack_depth() in
// kernel/bpf/verifier.c. Since 6.8 it rounds less, so a program that keeps the
// limit of 6.1 keeps those of later kernels.
const (
	stackRounding = 32
	leastStack    = 1 // of a function that uses none
)

// loopStack is what the verifier adds to a function's stack where it inlines
// bpf_loop(). It does this after it has checked the chains.
const loopStack = 24

// TestBudgets holds each program to limits below those of the verifier. So a
// change finds out here that it takes too much, before an older kernel refuses
// the program.
func TestBudgets(t *testing.T) {
	testutil.RequireRoot(t)
	c := Config{GatewayIfindex: 1, DatapathIfindex: 2, GatewayMAC: [6]byte{2}, Flows: 1024}
	spec, err := bpf.LoadEbpnet()
	must(t, err)
	must(t, configure(spec, c))
	xdp, err := specXDP(spec, c)
	must(t, err)
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "program\tinstructions\tstack\tframes\tdeepest chain")
	for _, b := range slices.Concat(budgets(t, spec), budgets(t, xdp)) {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%s\n", b.program, b.instructions, b.stack, b.frames, strings.Join(b.chain, " + "))
		b.check(t)
	}
	must(t, w.Flush())
	t.Logf("stack and frames as Linux 6.1 counts them\n%s", &table)
}

// budget is what one program uses.
type budget struct {
	program       string
	instructions  int
	stack, frames int      // of the worst chain of each
	chain         []string // the one with the most stack
}

func (b budget) check(t *testing.T) {
	t.Helper()
	for _, limit := range []struct {
		what      string
		used, max int
	}{
		{"instructions", b.instructions, maxInstructions},
		{"bytes of stack", b.stack, maxStack},
		{"frames", b.frames, maxFrames},
	} {
		if limit.used > limit.max {
			t.Errorf("%s uses %d %s, at most %d are allowed; the chain with the most stack is %s",
				b.program, limit.used, limit.what, limit.max, strings.Join(b.chain, " + "))
		}
	}
}

// budgets loads the programs and tells what the verifier says of each.
func budgets(t *testing.T, spec *ebpf.CollectionSpec) (all []budget) {
	t.Helper()
	collection, err := ebpf.NewCollectionWithOptions(spec.Copy(), ebpf.CollectionOptions{
		Programs: ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats},
	})
	if err != nil {
		t.Fatalf("%+v", err)
	}
	defer collection.Close()
	for _, name := range slices.Sorted(maps.Keys(collection.Programs)) {
		program := collection.Programs[name]
		info, err := program.Info()
		must(t, err)
		instructions, _ := info.VerifiedInstructions()
		b := budget{program: name, instructions: int(instructions)}
		functions := keepLive(t, readFunctions(spec.Programs[name].Instructions), info)
		setStacks(t, functions, program.VerifierLog)
		for _, f := range functions {
			if !f.begins {
				continue
			}
			if stack, chain := f.deepest(); stack > b.stack {
				b.stack, b.chain = stack, chain
			}
			b.frames = max(b.frames, f.frames())
		}
		all = append(all, b)
	}
	return all
}

// function is a function of a program, as the verifier sees it.
type function struct {
	name   string
	stack  int
	begins bool // with an empty stack: the program itself, and callbacks of timers
	loops  bool // it calls bpf_loop()
	calls  []*function
}

// readFunctions finds the functions of a program in the order of their
// instructions, and which calls which. The first is the program itself.
func readFunctions(instructions asm.Instructions) (all []*function) {
	byName := map[string]*function{}
	for i := range instructions {
		if f := btf.FuncMetadata(&instructions[i]); f != nil {
			byName[f.Name] = &function{name: f.Name, begins: len(all) == 0}
			all = append(all, byName[f.Name])
		}
	}
	var caller *function
	for i := range instructions {
		ins := &instructions[i]
		if f := btf.FuncMetadata(ins); f != nil {
			caller = byName[f.Name]
		}
		if ins.IsBuiltinCall() && asm.BuiltinFunc(ins.Constant) == asm.FnLoop {
			caller.loops = true
		}
		if !ins.IsFunctionReference() {
			continue
		}
		callee := byName[ins.Reference()]
		if ins.IsLoadOfFunctionPointer() && nextHelper(instructions[i:]) == asm.FnTimerSetCallback {
			callee.begins = true
			continue
		}
		caller.calls = append(caller.calls, callee)
	}
	return all
}

// keepLive leaves out the functions that the verifier has removed, because no
// path leads to them.
func keepLive(t *testing.T, functions []*function, info *ebpf.ProgramInfo) []*function {
	t.Helper()
	infos, err := info.FuncInfos()
	must(t, err)
	live := map[string]bool{}
	for _, i := range infos {
		live[i.Func.Name] = true
	}
	dead := func(f *function) bool { return !live[f.name] }
	for _, f := range functions {
		f.calls = slices.DeleteFunc(f.calls, dead)
	}
	return slices.DeleteFunc(functions, dead)
}

// nextHelper is the kernel's function that the instructions call first.
func nextHelper(instructions asm.Instructions) asm.BuiltinFunc {
	for _, ins := range instructions {
		if ins.IsBuiltinCall() {
			return asm.BuiltinFunc(ins.Constant)
		}
	}
	return asm.FnUnspec
}

// stackDepths finds the stack of each function, in their order, in the
// verifier's log.
var stackDepths = regexp.MustCompile(`(?m)^stack depth ([0-9+]+)`)

func setStacks(t *testing.T, functions []*function, log string) {
	t.Helper()
	found := stackDepths.FindStringSubmatch(log)
	if found == nil {
		t.Fatalf("%s: no stack depth in the verifier's log:\n%s", functions[0].name, log)
	}
	depths := strings.Split(found[1], "+")
	if len(depths) != len(functions) {
		t.Fatalf("%s: the verifier's log has %d stack depths for %d functions: %s", functions[0].name, len(depths), len(functions), found[0])
	}
	for i, f := range functions {
		depth, err := strconv.Atoi(depths[i])
		must(t, err)
		if f.loops {
			depth -= loopStack
		}
		f.stack = (max(depth, leastStack) + stackRounding - 1) / stackRounding * stackRounding
	}
}

// deepest gives the chain of calls from f that takes the most stack.
func (f *function) deepest() (stack int, chain []string) {
	for _, callee := range f.calls {
		if s, c := callee.deepest(); s > stack {
			stack, chain = s, c
		}
	}
	return stack + f.stack, append([]string{fmt.Sprintf("%s %d", f.name, f.stack)}, chain...)
}

// frames gives the length of the longest chain of calls from f.
func (f *function) frames() (most int) {
	for _, callee := range f.calls {
		most = max(most, callee.frames())
	}
	return most + 1
}
