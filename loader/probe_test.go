package loader

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// TestProbe fails on a kernel that lacks something: those that tests run on
// are new enough to have it all.
func TestProbe(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	found := Probe()
	if err := CheckFeatures(found); err != nil {
		t.Error(err)
	}
	for i, f := range found {
		if !f.Present || f.Err != nil {
			t.Errorf("%s is missing: %v", f.Name, f.Err)
		}
		if f.Since == "" || f.Needed == (f.Fallback != "") {
			t.Errorf("%+v: want a version, and a fallback if it is not needed", f)
		}
		if f.Needed && i > 0 && !found[i-1].Needed {
			t.Errorf("%s is needed, and stands behind what is not", f.Name)
		}
	}
}

func TestProbeKnowsWhatDoesNotExist(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	const noFlag = 1 << 30
	if err := haveFIBFlags(noFlag); !errors.Is(err, ebpf.ErrNotSupported) {
		t.Errorf("a flag of bpf_fib_lookup() that no kernel has: %v", err)
	}
	if err := haveAdjustRoomFlags(noFlag); !errors.Is(err, ebpf.ErrNotSupported) {
		t.Errorf("a flag of bpf_skb_adjust_room() that no kernel has: %v", err)
	}
}

func TestCheckFeatures(t *testing.T) {
	t.Parallel()
	unknown := errors.New("no leave to ask")
	err := CheckFeatures([]Feature{
		{Name: "wheels", Since: "5.4", Needed: true},
		{Name: "wings", Since: "5.10", Needed: true, Present: true},
		{Name: "gills", Since: "5.15", Needed: true, Err: unknown},
		{Name: "horns", Since: "6.6", Fallback: "teeth"},
	})
	if !errors.Is(err, ErrMissingFeature) {
		t.Fatalf("%v, want ErrMissingFeature", err)
	}
	message := err.Error()
	for _, want := range []string{"wheels", "5.4", "gills", unknown.Error()} {
		if !strings.Contains(message, want) {
			t.Errorf("%q does not say %q", message, want)
		}
	}
	for _, unwanted := range []string{"wings", "horns", "\n"} {
		if strings.Contains(message, unwanted) {
			t.Errorf("%q says %q", message, unwanted)
		}
	}
	if err := CheckFeatures(slices.Repeat([]Feature{{Needed: true, Present: true}, {}}, 2)); err != nil {
		t.Errorf("nothing needed is missing: %v", err)
	}
}
