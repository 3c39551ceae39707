package loader

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/ebpnet/ebpnet/bpf"
)

// releaseFlagNames are the flags of a flow in versions without phases.
func releaseFlagNames() []string {
	return []string{
		"FLOW_ORIGINAL_FIN", "FLOW_REPLY_FIN", "FLOW_ORIGINAL_RST", "FLOW_REPLY_RST", "FLOW_REPLIED", "FLOW_HANDSHAKEN",
	}
}

// TestPhaseOfFlags converts flows with every set of flags: of the release, and
// of a later version with other names of the flags.
func TestPhaseOfFlags(t *testing.T) {
	t.Parallel()
	spec, err := bpf.LoadEbpnet()
	must(t, err)
	to := mustLayout(t, spec.Maps[bpf.EbpnetMapFlows].Value, nil)
	phase, err := to.must(flowPhase)
	must(t, err)
	later := structOf("flow", btf.Member{Name: "uplink", Type: u32}, btf.Member{Name: flowFlags, Type: flagsOf("flow_flag", releaseFlagNames()...)})
	for version, value := range map[string]btf.Type{
		"release": compiledFlow(t, compiled(t, "e41502a/ebpnet.o.gz")), "later": later,
	} {
		from := mustLayout(t, value, formerNames())
		flags, err := from.must(flowFlags)
		must(t, err)
		if names := slices.Sorted(maps.Keys(flags.values)); !slices.Equal(names, slices.Sorted(slices.Values(releaseFlagNames()))) {
			t.Fatalf("%s: the flags are %v", version, names)
		}
		c := newConverter(from, to)
		for set := range uint64(1) << len(releaseFlagNames()) {
			record := make([]byte, from.size)
			flags.write(record, set)
			got, whole := c.convert(record)
			number := phase.read(got)
			name, ok := nameOf(phase, number)
			if !whole || !ok {
				t.Fatalf("%s: flags %#x give phase %d, whole %v", version, set, number, whole)
			}
			has := func(flag string) bool { return set&flags.values[flag] != 0 }
			checkPhase(t, has, name, number, phase)
		}
	}
}

func compiledFlow(t testing.TB, spec *ebpf.CollectionSpec) btf.Type {
	t.Helper()
	m := spec.Maps[bpf.EbpnetMapFlows]
	if m == nil {
		t.Fatal("no table of flows")
	}
	return m.Value
}

func nameOf(l leaf, value uint64) (string, bool) {
	for name, v := range l.values {
		if v == value {
			return name, true
		}
	}
	return "", false
}

// checkPhase fails unless the phase says the same as the flags about timeout,
// reply, handshake, FINs and RSTs.
func checkPhase(t *testing.T, has func(string) bool, name string, number uint64, phase leaf) {
	t.Helper()
	var flags []string
	for _, f := range releaseFlagNames() {
		if has(f) {
			flags = append(flags, f)
		}
	}
	fins := [2]bool{has("FLOW_ORIGINAL_FIN"), has("FLOW_REPLY_FIN")}
	resets := [2]bool{has("FLOW_ORIGINAL_RST"), has("FLOW_REPLY_RST")}
	both, none := [2]bool{true, true}, [2]bool{}
	handshaken := number >= phase.values["PHASE_ESTABLISHED"]
	if handshaken != has("FLOW_HANDSHAKEN") {
		t.Errorf("%v: %s", flags, name)
	}
	alive := handshaken && number <= phase.values["PHASE_CLOSING_REPLY"]
	if want := handshaken && fins != both && resets == none; alive != want {
		t.Errorf("%v: %s, which has the established timeout: %v", flags, name, alive)
	}
	replied := number >= phase.values["PHASE_REPLIED"]
	if want := handshaken || fins == both || has("FLOW_REPLIED") && !resets[1]; replied != want {
		t.Errorf("%v: %s, which has a reply: %v", flags, name, replied)
	}
	if (fins == both) != strings.HasSuffix(name, "CLOSED") {
		t.Errorf("%v: %s", flags, name)
	}
	if !handshaken || fins == both {
		return
	}
	for i, side := range []string{"ORIGINAL", "REPLY"} {
		reset := strings.Contains(name, "RESET_"+side) || strings.Contains(name, "RESET_BOTH")
		if strings.Contains(name, "CLOSING_"+side) != fins[i] || reset != resets[i] {
			t.Errorf("%v: %s", flags, name)
		}
	}
}
