package spec

import (
	"errors"
	"testing"
)

func TestParseMaxFlood(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]uint32{"default": 0, "1": 1, "50000": 50000, "100000000": MaxMaxFlood} {
		if got, err := ParseMaxFlood(text); err != nil || got != want {
			t.Errorf("%q gives %d, error %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "0", "-1", "100000001", "4294967297", "1.5", "1k", "none", " 1"} {
		if got, err := ParseMaxFlood(text); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q gives %d, error %v; want ErrInvalid", text, got, err)
		}
	}
}
