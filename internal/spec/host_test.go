package spec

import (
	"encoding/json"
	"errors"
	"maps"
	"strings"
	"testing"
	"time"
)

func TestCheckFlows(t *testing.T) {
	t.Parallel()
	for _, n := range []uint64{MinFlows, DefaultFlows, MaxFlows} {
		if got, err := CheckFlows(n); err != nil || uint64(got) != n {
			t.Errorf("%d: %d, %v", n, got, err)
		}
	}
	for _, n := range []uint64{0, MinFlows - 1, MaxFlows + 1, 1 << 32, 1<<32 + MinFlows} {
		if _, err := CheckFlows(n); !errors.Is(err, ErrInvalid) {
			t.Errorf("%d: %v, want ErrInvalid", n, err)
		}
	}
}

func TestParseMasqueradePorts(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]MasqueradePorts{
		"1-65535":   {1, 65535},
		"5000-5000": {5000, 5000},
		"80-81":     {80, 81},
	} {
		got, err := ParseMasqueradePorts(text)
		if err != nil || got != want || got.String() != text {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "80", "0-80", "81-80", "80-65536", "a-b", "80-", "-80", "80-90-100", "+80-90", "80 - 90"} {
		if got, err := ParseMasqueradePorts(text); !errors.Is(err, ErrInvalid) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v, %v, want ErrInvalid in one line", text, got, err)
		}
	}
	if got := (MasqueradePorts{}).String(); got != "1-65535" {
		t.Errorf("where none are given: %s", got)
	}
}

func TestParseTimeouts(t *testing.T) {
	t.Parallel()
	got, err := ParseTimeouts([]string{"tcp-established=2h4m", "udp-answered=default", "icmp=1s", "tcp-transitory=720h", "udp-unanswered=1500ms", "fdb=1000000s"})
	want := map[Timeout]time.Duration{
		TCPEstablished: 124 * time.Minute, UDPEstablished: 0, ICMP: time.Second,
		TCPTransitory: 720 * time.Hour, UDPNew: 1500 * time.Millisecond,
		Learned: 1_000_000 * time.Second,
	}
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range [][]string{
		{""},
		{"icmp"},
		{"icmp="},
		{"icmp=60"},
		{"icmp=-60s"},
		{"icmp=999ms"},
		{"icmp=720h1s"},
		{"fdb=1000001s"},
		{"fdb=0s"},
		{"icmp=soon"},
		{"ICMP=60s"},
		{"udp=60s"},
		{"icmp=60s", "icmp=70s"},
	} {
		if got, err := ParseTimeouts(bad); !errors.Is(err, ErrInvalid) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v, %v, want ErrInvalid in one line", bad, got, err)
		}
	}
}

func TestTimeoutsOfAHost(t *testing.T) {
	t.Parallel()
	h := Host{Timeouts: map[Timeout]time.Duration{ICMP: time.Second}}
	if got := h.Timeout(ICMP); got != time.Second {
		t.Errorf("the one that was set is %s", got)
	}
	for _, name := range Timeouts() {
		minimum, source := name.Minimum()
		if got := (Host{}).Timeout(name); got < minimum || got != name.Default() || source == "" {
			t.Errorf("%s is %s where nothing was set, and %q wants %s", name, got, source, minimum)
		}
	}
}

// What an older version has stored still says the same.
func TestHostIsStored(t *testing.T) {
	t.Parallel()
	var old Host
	if err := json.Unmarshal([]byte(`{"uplinks":["up0"],"gateway_mac":"02:00:00:00:00:01"}`), &old); err != nil {
		t.Fatal(err)
	}
	if old.FlowCapacity() != DefaultFlows || old.MasqueradePorts.Effective() != (MasqueradePorts{1, 65535}) {
		t.Errorf("%+v", old)
	}
	old.Flows, old.MasqueradePorts = MinFlows, MasqueradePorts{80, 90}
	old.Timeouts = map[Timeout]time.Duration{ICMP: time.Second}
	text, err := json.Marshal(old)
	if err != nil {
		t.Fatal(err)
	}
	var again Host
	if err := json.Unmarshal(text, &again); err != nil {
		t.Fatal(err)
	}
	if again.FlowCapacity() != MinFlows || again.MasqueradePorts != old.MasqueradePorts || again.Timeout(ICMP) != time.Second {
		t.Errorf("%s gives %+v", text, again)
	}
}
