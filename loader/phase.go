package loader

// Versions without enum flow_phase stored a set of flags in each flow: FIN and
// RST of each side, whether there was a reply, and whether TCP's handshake was
// over. The next packet of a side without RST cleared the RST of that side.

// The fields of a flow.
const (
	flowFlags = "flags"
	flowPhase = "phase"
)

// phasesByFlags returns the phase for each set of flags.
func phasesByFlags(flags, phase leaf) map[uint64]uint64 {
	var all uint64
	for _, bit := range flags.values {
		all |= bit
	}
	phases := map[uint64]uint64{}
	for set := range all + 1 {
		has := func(flag string) bool { return set&flags.values[flag] != 0 }
		phases[set] = phase.values[phaseName(has)]
	}
	return phases
}

// phaseName returns the name of the phase in bpf/flow_phase.h.
func phaseName(has func(flag string) bool) string {
	closed := has("FLOW_ORIGINAL_FIN") && has("FLOW_REPLY_FIN")
	closing := sides(has("FLOW_ORIGINAL_FIN"), has("FLOW_REPLY_FIN"), "_CLOSING")
	reset := sides(has("FLOW_ORIGINAL_RST"), has("FLOW_REPLY_RST"), "_RESET")
	if has("FLOW_HANDSHAKEN") {
		switch {
		case closed:
			return "PHASE_CLOSED"
		case closing+reset == "":
			return "PHASE_ESTABLISHED"
		}
		return "PHASE" + closing + reset
	}
	replied := has("FLOW_REPLIED") && !has("FLOW_REPLY_RST")
	switch {
	case closed:
		return "PHASE_REPLIED_CLOSED"
	case replied:
		return "PHASE_REPLIED" + closing
	case has("FLOW_ORIGINAL_FIN"):
		return "PHASE_NEW_CLOSING_ORIGINAL"
	case has("FLOW_REPLY_RST"):
		return "PHASE_REFUSED" + closing
	}
	return "PHASE_NEW"
}

// sides returns the part of a phase's name that says which sides sent a FIN
// (CLOSING) or a RST (RESET). It is empty if neither did.
func sides(original, reply bool, sent string) string {
	switch {
	case original && reply:
		return sent + "_BOTH"
	case original:
		return sent + "_ORIGINAL"
	case reply:
		return sent + "_REPLY"
	}
	return ""
}
