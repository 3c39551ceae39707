package loader

import (
	"encoding/binary"
	"math/bits"
)

// converter copies a key or a value from one layout into another.
type converter struct {
	moves []move
	size  uint32
}

// move copies one number.
type move struct {
	from, to leaf
	names    map[uint64]uint64 // of an enum: the new value by the old one
	flags    bool              // the values are single bits, and several may be set
}

// newConverter returns a converter that copies the numbers of both layouts, and
// derives the phase of a flow from its flags. The other numbers are zero.
func newConverter(from, to layout) converter {
	c := converter{size: to.size}
	for _, t := range to.leaves {
		f, ok := from.find(t.name)
		if !ok {
			if flags, ok := from.find(flowFlags); ok && t.name == flowPhase {
				c.moves = append(c.moves, move{from: flags, to: t, names: phasesByFlags(flags, t)})
			}
			continue
		}
		m := move{from: f, to: t}
		if f.values != nil && t.values != nil {
			m.names, m.flags = map[uint64]uint64{}, true
			for name, value := range f.values {
				m.flags = m.flags && bits.OnesCount64(value) <= 1
				if now, ok := t.values[name]; ok {
					m.names[value] = now
				}
			}
		}
		c.moves = append(c.moves, m)
	}
	return c
}

// convert returns the copy. whole is false if the other layout cannot hold a
// number: it is too large, or it is an enum value whose name does not exist
// there.
func (c converter) convert(from []byte) (to []byte, whole bool) {
	to, whole = make([]byte, c.size), true
	for _, m := range c.moves {
		value, ok := m.translate(m.from.read(from))
		whole = m.to.write(to, value) && ok && whole
	}
	return to, whole
}

func (m move) translate(value uint64) (uint64, bool) {
	if m.names == nil {
		return value, true
	}
	if now, ok := m.names[value]; ok {
		return now, true
	}
	if !m.flags {
		return 0, false
	}
	set, whole := uint64(0), true
	for value != 0 {
		bit := value & -value
		now, ok := m.names[bit]
		set, whole, value = set|now, whole && ok, value&^bit
	}
	return set, whole
}

// read returns the number, with its sign extended.
func (l leaf) read(from []byte) uint64 {
	var whole [8]byte
	copy(whole[:], from[l.offset:l.offset+l.size])
	value := binary.LittleEndian.Uint64(whole[:])
	if shift := 64 - 8*l.size; l.signed {
		return uint64(int64(value<<shift) >> shift)
	}
	return value
}

// write stores the number. If the number does not fit, write stores the nearest
// one and returns false.
func (l leaf) write(to []byte, value uint64) bool {
	stored, fits := value, true
	shift := 64 - 8*l.size
	switch {
	case l.signed && int64(value<<shift)>>shift != int64(value):
		stored, fits = 1<<(8*l.size-1)-1, false
	case !l.signed && value<<shift>>shift != value:
		stored, fits = 1<<(8*l.size)-1, false
	}
	var whole [8]byte
	binary.LittleEndian.PutUint64(whole[:], stored)
	copy(to[l.offset:], whole[:l.size])
	return fits
}

// formerNames are the names of state that have changed since version e41502a,
// with the present names: of maps, of fields as "struct.field" and of values as
// "enum.VALUE". Names do not change from this version on, because an older
// version would not find the numbers.
func formerNames() map[string]string {
	return map[string]string{
		"flow.opener":               "original",
		"flow.answer":               "reply",
		"flow_state.FLOW_ANSWERED":  "FLOW_ESTABLISHED",
		"flow_side.FLOW_OPENER":     "FLOW_ORIGINAL",
		"flow_side.FLOW_ANSWER":     "FLOW_REPLY",
		"flow_flag.FLOW_OPENER_FIN": "FLOW_ORIGINAL_FIN",
		"flow_flag.FLOW_ANSWER_FIN": "FLOW_REPLY_FIN",
		"flow_flag.FLOW_OPENER_RST": "FLOW_ORIGINAL_RST",
		"flow_flag.FLOW_ANSWER_RST": "FLOW_REPLY_RST",
	}
}

// nameNow returns the present name of a member of a struct or an enum.
func nameNow(former map[string]string, of, name string) string {
	if now, ok := former[of+"."+name]; ok {
		return now
	}
	return name
}
