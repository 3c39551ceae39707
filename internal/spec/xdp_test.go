package spec

import (
	"errors"
	"strings"
	"testing"
)

func TestParseXDPMode(t *testing.T) {
	t.Parallel()
	for _, m := range XDPModes() {
		if got, err := ParseXDPMode(string(m)); err != nil || got != m || got.Effective() != m {
			t.Errorf("%q gives %q, %v", m, got, err)
		}
	}
	for _, bad := range []string{"", "on", "Native", "native ", "driver"} {
		_, err := ParseXDPMode(bad)
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "auto, native, generic, off") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if got := XDPMode("").Effective(); got != XDPOff {
		t.Errorf("no mode stands for %q", got)
	}
}
