package spec

import (
	"encoding/json"
	"errors"
	"slices"
	"testing"
)

func TestParseAllowances(t *testing.T) {
	for s, want := range map[string][]Allowance{
		"none":                      nil,
		"router":                    {AllowRouter},
		"dhcp-server":               {AllowDHCPServer},
		"router,dhcp-server":        {AllowDHCPServer, AllowRouter},
		"router,dhcp-server,router": {AllowDHCPServer, AllowRouter},
	} {
		got, err := ParseAllowances(s)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: got %v, %v, want %v", s, got, err, want)
		}
	}
	for _, s := range []string{"", ",", "router,", "router,none", "none,none", "Router", "router dhcp-server", "dhcp", "1"} {
		if got, err := ParseAllowances(s); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: got %v, %v, want ErrInvalid", s, got, err)
		}
	}
}

func TestAllowancesAreStoredAsWords(t *testing.T) {
	want := Endpoint{Allow: []Allowance{AllowDHCPServer, AllowRouter}}
	text, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var record struct{ Allow []string }
	if err := json.Unmarshal(text, &record); err != nil || !slices.Equal(record.Allow, []string{"dhcp-server", "router"}) {
		t.Errorf("got %s, %v", text, err)
	}
	var got Endpoint
	if err := json.Unmarshal(text, &got); err != nil || !slices.Equal(got.Allow, want.Allow) {
		t.Errorf("got %v, %v, want %v", got.Allow, err, want.Allow)
	}
	if err := json.Unmarshal([]byte(`{"allow":["king"]}`), &got); !errors.Is(err, ErrInvalid) {
		t.Errorf("unknown word: got %v, want ErrInvalid", err)
	}
}
