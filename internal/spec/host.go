package spec

import (
	"encoding"
	"fmt"
	"strings"
	"time"
)

// How many established flows a host has room for.
const (
	MinFlows     = 1024
	MaxFlows     = 4194304
	DefaultFlows = 262144
)

// CheckFlows checks the number of established flows that there should be room
// for.
func CheckFlows(n uint64) (uint32, error) {
	if n < MinFlows || n > MaxFlows {
		return 0, fmt.Errorf("%w number of flows %d: want %d to %d", ErrInvalid, n, MinFlows, MaxFlows)
	}
	return uint32(n), nil
}

// FlowCapacity is how many established flows there is room for.
func (h Host) FlowCapacity() uint32 {
	if h.Flows == 0 {
		return DefaultFlows
	}
	return h.Flows
}

// MasqueradePorts are the host's ports that endpoints are masqueraded by,
// First to Last inclusive. The text form is FIRST-LAST; the zero value stands
// for all.
type MasqueradePorts struct {
	First uint16
	Last  uint16
}

var (
	_ encoding.TextMarshaler   = MasqueradePorts{}
	_ encoding.TextUnmarshaler = (*MasqueradePorts)(nil)
)

// allPorts is what the zero MasqueradePorts stands for.
var allPorts = MasqueradePorts{First: 1, Last: 65535}

// ParseMasqueradePorts reads FIRST-LAST.
func ParseMasqueradePorts(s string) (MasqueradePorts, error) {
	bad := func(why string) (MasqueradePorts, error) {
		return MasqueradePorts{}, fmt.Errorf("%w masquerade ports %q: %s; want FIRST-LAST", ErrInvalid, s, why)
	}
	first, last, ranged := strings.Cut(s, "-")
	if !ranged {
		return bad("it is no range")
	}
	var p MasqueradePorts
	var err error
	if p.First, err = parsePort(first); err != nil {
		return bad(err.Error())
	}
	if p.Last, err = parsePort(last); err != nil {
		return bad(err.Error())
	}
	if p.First > p.Last {
		return bad("the range ends before it starts")
	}
	return p, nil
}

// Effective gives what p stands for.
func (p MasqueradePorts) Effective() MasqueradePorts {
	if p == (MasqueradePorts{}) {
		return allPorts
	}
	return p
}

func (p MasqueradePorts) String() string {
	p = p.Effective()
	return fmt.Sprintf("%d-%d", p.First, p.Last)
}

// MarshalText gives the form that ParseMasqueradePorts reads.
func (p MasqueradePorts) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText is ParseMasqueradePorts.
func (p *MasqueradePorts) UnmarshalText(text []byte) error {
	parsed, err := ParseMasqueradePorts(string(text))
	if err == nil {
		*p = parsed
	}
	return err
}

// Timeout names a time after which a flow without a packet ends, or a station
// without a packet is forgotten.
type Timeout string

// The timeouts.
const (
	TCPEstablished Timeout = "tcp-established" // handshake over, no FIN of both sides, no RST
	TCPTransitory  Timeout = "tcp-transitory"  // before and after
	UDPEstablished Timeout = "udp-answered"
	UDPNew         Timeout = "udp-unanswered"
	ICMP           Timeout = "icmp"
	Learned        Timeout = "fdb" // of a station that was learned
)

// Timeouts lists the timeouts, in the order in which they are shown.
func Timeouts() []Timeout {
	return []Timeout{TCPEstablished, TCPTransitory, UDPEstablished, UDPNew, ICMP, Learned}
}

// What a timeout may be set to.
const (
	MinTimeout        = time.Second // the precision with which flows and stations are stamped
	MaxTimeout        = 30 * 24 * time.Hour
	MaxLearnedTimeout = 1_000_000 * time.Second // IEEE 802.1Q-2018, table 8-6
)

// Maximum is the longest that the timeout may be set to.
func (t Timeout) Maximum() time.Duration {
	if t == Learned {
		return MaxLearnedTimeout
	}
	return MaxTimeout
}

// Default is how long the timeout is where nobody has set it.
func (t Timeout) Default() time.Duration {
	switch t {
	case UDPEstablished:
		return 5 * time.Minute // recommended by RFC 4787, REQ-5
	case Learned:
		return 5 * time.Minute // recommended by IEEE 802.1Q-2018, table 8-6
	}
	minimum, _ := t.Minimum()
	return minimum
}

// Minimum is the shortest that the timeout should be, and who says so.
func (t Timeout) Minimum() (minimum time.Duration, source string) {
	switch t {
	case TCPEstablished:
		return 2*time.Hour + 4*time.Minute, "RFC 5382, REQ-5"
	case TCPTransitory:
		return 4 * time.Minute, "RFC 5382, REQ-5"
	case UDPEstablished, UDPNew:
		return 2 * time.Minute, "RFC 4787, REQ-5"
	case Learned:
		return 10 * time.Second, "IEEE 802.1Q-2018, table 8-6"
	default:
		return time.Minute, "RFC 5508, REQ-2"
	}
}

// defaultWord stands for a timeout's default in its text form.
const defaultWord = "default"

// ParseTimeouts reads NAME=DURATION, where the duration is Go's (90s, 2h4m) or
// "default", which gives zero.
func ParseTimeouts(settings []string) (map[Timeout]time.Duration, error) {
	timeouts := make(map[Timeout]time.Duration, len(settings))
	for _, s := range settings {
		name, d, err := parseTimeout(s)
		if err != nil {
			return nil, err
		}
		if _, twice := timeouts[name]; twice {
			return nil, fmt.Errorf("%w timeout %q: %s is given twice", ErrInvalid, s, name)
		}
		timeouts[name] = d
	}
	return timeouts, nil
}

func parseTimeout(s string) (Timeout, time.Duration, error) {
	bad := func(format string, args ...any) (Timeout, time.Duration, error) {
		return "", 0, fmt.Errorf("%w timeout %q: %s", ErrInvalid, s, fmt.Sprintf(format, args...))
	}
	text, value, ok := strings.Cut(s, "=")
	if !ok {
		return bad("want NAME=DURATION")
	}
	for _, name := range Timeouts() {
		if string(name) != text {
			continue
		}
		if value == defaultWord {
			return name, 0, nil
		}
		d, err := time.ParseDuration(value)
		if err != nil {
			return bad("%q is neither a duration, such as 90s or 2h4m, nor %q", value, defaultWord)
		}
		if d < MinTimeout || d > name.Maximum() {
			return bad("want %s to %s", MinTimeout, name.Maximum())
		}
		return name, d, nil
	}
	return bad("no timeout is called %q; want one of %s", text, joined(Timeouts()))
}

func joined[T ~string](names []T) string {
	texts := make([]string, len(names))
	for i, name := range names {
		texts[i] = string(name)
	}
	return strings.Join(texts, ", ")
}

// Timeout is how long a flow or a station without a packet lives.
func (h Host) Timeout(t Timeout) time.Duration {
	if d, set := h.Timeouts[t]; set {
		return d
	}
	return t.Default()
}
