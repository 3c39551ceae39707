package loader

// Versions before enum flow_phase noted in each flow a set of flags: a FIN and
// a RST of each side, whether there was a reply, and whether TCP's handshake is
// over. A side's next packet without RST cleared its RST.

// Names in the layout of a flow.
const (
	flowFlags = "flags"
	flowPhase = "phase"
)

// phases gives the phase for each set of flags.
func phases(flags, phase leaf) map[uint64]uint64 {
	var all uint64
	for _, bit := range flags.values {
		all |= bit
	}
	of := map[uint64]uint64{}
	for set := range all + 1 {
		of[set] = phase.values[phaseOf(func(flag string) bool { return set&flags.values[flag] != 0 })]
	}
	return of
}

// phaseOf gives the name of the phase: see bpf/flow_phase.h.
func phaseOf(has func(flag string) bool) string {
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

// sides gives the part of a phase's name for the sides that did something.
func sides(original, reply bool, did string) string {
	switch {
	case original && reply:
		return did + "_BOTH"
	case original:
		return did + "_ORIGINAL"
	case reply:
		return did + "_REPLY"
	}
	return ""
}
