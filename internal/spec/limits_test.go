package spec

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestParseLimits(t *testing.T) {
	t.Parallel()
	for _, limit := range []struct {
		option  string
		parse   func(string) (uint32, error)
		highest uint32
	}{
		{"--max-flows", ParseMaxFlows, 4194304},
		{"--max-half-open", ParseMaxHalfOpen, 65536},
		{"--max-ports", ParseMaxPorts, 65535},
		{"--max-fragments", ParseMaxFragments, 64},
		{"--max-flood", ParseMaxFlood, 100000000},
	} {
		highest := fmt.Sprint(limit.highest)
		for text, want := range map[string]uint32{"default": 0, "1": 1, "50": 50, highest: limit.highest} {
			if got, err := limit.parse(text); err != nil || got != want {
				t.Errorf("%s %q gives %d, error %v; want %d", limit.option, text, got, err, want)
			}
		}
		for _, text := range []string{"", "0", "-1", fmt.Sprint(limit.highest + 1), "4294967297", "1.5", "1k", "none", " 1"} {
			got, err := limit.parse(text)
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("%s %q gives %d, error %v; want ErrInvalid", limit.option, text, got, err)
				continue
			}
			for _, word := range []string{fmt.Sprintf("%s %q: want 1 to", limit.option, text), highest, "default"} {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("%s %q: %q does not say %s", limit.option, text, err, word)
				}
			}
		}
	}
}

func TestLimitsChange(t *testing.T) {
	t.Parallel()
	one, none := uint32(1), uint32(0)
	before := Limits{MaxFlows: 10, MaxHalfOpen: 20, MaxPorts: 30, MaxFragments: 40, MaxFlood: 50}
	for name, c := range map[string]struct {
		change LimitsChange
		want   Limits
	}{
		"nothing":   {LimitsChange{}, before},
		"flows":     {LimitsChange{MaxFlows: &one}, Limits{1, 20, 30, 40, 50}},
		"half-open": {LimitsChange{MaxHalfOpen: &one}, Limits{10, 1, 30, 40, 50}},
		"ports":     {LimitsChange{MaxPorts: &none}, Limits{10, 20, 0, 40, 50}},
		"fragments": {LimitsChange{MaxFragments: &one}, Limits{10, 20, 30, 1, 50}},
		"flood":     {LimitsChange{MaxFlood: &none}, Limits{10, 20, 30, 40, 0}},
	} {
		got := before
		c.change.Apply(&got)
		if got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

// TestLimitsAreStoredInTheEndpoint shows that the records of endpoints have the
// limits beside the rest.
func TestLimitsAreStoredInTheEndpoint(t *testing.T) {
	t.Parallel()
	want := Endpoint{Name: "web", Limits: Limits{MaxFlows: 1, MaxHalfOpen: 2, MaxPorts: 3, MaxFragments: 4, MaxFlood: 5}}
	text, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	for _, field := range []string{`"max_flows":1`, `"max_half_open":2`, `"max_ports":3`, `"max_fragments":4`, `"max_flood":5`} {
		if !strings.Contains(string(text), field) {
			t.Errorf("%s has no %s", text, field)
		}
	}
	var got Endpoint
	if err := json.Unmarshal(text, &got); err != nil || got.Limits != want.Limits {
		t.Errorf("%+v, %v, want %+v", got.Limits, err, want.Limits)
	}
}
