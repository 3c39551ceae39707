package spec

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestName(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"a", "0", "Web-1.test_a", strings.Repeat("x", MaxNameLength)} {
		if err := Name("endpoint", s); err != nil {
			t.Error(err)
		}
	}
	for s, want := range map[string]string{
		"": "empty", "-a": "a letter or digit first", ".": "a letter or digit first", "a/b": "want letters",
		"a b": "want letters", "a\n": "want letters", "a\x00": "want letters", "é": "want letters",
		strings.Repeat("x", MaxNameLength+1): "at most 63",
	} {
		mustBeInvalid(t, s, Name("endpoint", s), want)
	}
}

func TestParseMAC(t *testing.T) {
	t.Parallel()
	if m, err := ParseMAC("02:42:AC:11:00:02"); err != nil || m.String() != "02:42:ac:11:00:02" {
		t.Errorf("%v, %v", m, err)
	}
	for s, want := range map[string]string{
		"": "want six", "02:42:ac:11:00": "want six", "02:42:ac:11:00:0g": "want six", "02:42:ac:11:00:02:00:01": "want six",
		"01:00:5e:00:00:01": "unicast", "ff:ff:ff:ff:ff:ff": "unicast", "00:00:00:00:00:00": "unicast",
	} {
		_, err := ParseMAC(s)
		mustBeInvalid(t, s, err, want)
	}
}

func TestMACFor(t *testing.T) {
	t.Parallel()
	seen := map[MAC]string{}
	for _, s := range []string{"10.88.0.2", "10.88.0.3", "11.88.0.2", "fd00::2", "fd00::3", "fd01::2"} {
		m := MACFor(netip.MustParseAddr(s))
		if other, twice := seen[m]; twice {
			t.Errorf("%s and %s have the MAC %v", s, other, m)
		}
		seen[m] = s
		if got, err := ParseMAC(m.String()); err != nil || got != m || m[0]&2 == 0 {
			t.Errorf("%s: %v is no locally administered unicast address (%v)", s, m, err)
		}
	}
}

func TestParsePorts(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]string{
		"6379": "6379/tcp", "6379/tcp": "6379/tcp", "53/udp": "53/udp", "1-65535": "1-65535/tcp", "80-80/udp": "80/udp",
	} {
		if p, err := ParsePorts(s); err != nil || p.String() != want {
			t.Errorf("%q: %v, %v; want %s", s, p, err, want)
		}
	}
	for s, want := range map[string]string{
		"": "1 to 65535", "0": "1 to 65535", "65536": "1 to 65535", "+1": "1 to 65535", "-1": "1 to 65535", "a": "1 to 65535",
		"1-": "1 to 65535", "2-1": "ends before", "1/sctp": "neither tcp nor udp", "1/": "neither", "1/TCP": "neither",
	} {
		_, err := ParsePorts(s)
		mustBeInvalid(t, s, err, want)
	}
}

func TestParseNetns(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]struct {
		path      string
		ephemeral bool
	}{
		"blue": {"/run/netns/blue", false}, "/run//netns/x": {"/run/netns/x", false},
		"pid:17": {"/proc/17/ns/net", true}, "/proc/17/ns/net": {"/proc/17/ns/net", true},
	} {
		if n, err := ParseNetns(s); err != nil || n.Path != want.path || n.Ephemeral() != want.ephemeral {
			t.Errorf("%q: %+v, %v; want %+v", s, n, err, want)
		}
	}
	for s, want := range map[string]string{
		"": "or pid:N", "a/b": "or pid:N", "../x": "or pid:N", "pid:": "process id", "pid:0": "process id", "pid:-1": "process id", "pid:x": "process id",
	} {
		_, err := ParseNetns(s)
		mustBeInvalid(t, s, err, want)
	}
}

func TestJSONAndBack(t *testing.T) {
	t.Parallel()
	want := Endpoint{
		Name: "web", ID: 1, Network: "front", MAC: MAC{2, 1}, Addresses: addresses("10.88.0.2", "fd00::2"),
		Expose: []Ports{{TCP, 80, 80}, {UDP, 53, 60}}, Tunnel: "b",
	}
	text, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got Endpoint
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" || !got.Remote() {
		t.Error(diff)
	}
	for _, bad := range []string{`{"mac":"02"}`, `{"expose":["0/tcp"]}`} {
		if err := json.Unmarshal([]byte(bad), &got); err == nil {
			t.Errorf("%s was read", bad)
		}
	}
	var none Endpoint
	if text, err := json.Marshal(none); err != nil || json.Unmarshal(text, &none) != nil || !none.MAC.IsZero() || none.Remote() {
		t.Errorf("an empty endpoint: %s, %v", text, err)
	}
}
