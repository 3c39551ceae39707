package datapath

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/internal/testutil"
	"github.com/ebpnet/ebpnet/loader"
)

// TestXDPAgreesWithTC runs every golden packet from an uplink through XDP, and
// its output through TC. It also runs the packet through TC alone. Both ways
// must give the same frames, verdicts and counters.
func TestXDPAgreesWithTC(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	for _, g := range shareWorld(t, append(groups(), xdpGroups()...)) {
		var rows []row
		for _, r := range g.rows(t) {
			if r.hook == loader.FromUplink && r.skb == (skbContext{}) {
				rows = append(rows, r)
			}
		}
		if len(rows) == 0 {
			continue
		}
		t.Run(g.name, func(t *testing.T) {
			t.Parallel()
			w := group{change: g.change}.world(t, withXDP)
			for _, r := range rows {
				t.Run(r.name, func(t *testing.T) {
					r.prepare(t, w)
					if r.undo != nil {
						defer r.undo(t, w)
					}
					if err := w.disagreement(t, r.in); err != nil {
						t.Error(err)
					}
				})
			}
		})
	}
}

// disagreement returns an error if XDP and TC differ for a frame.
func (w *world) disagreement(t testing.TB, frame []byte) error {
	t.Helper()
	early, counted := w.runXDP(t, frame)
	before := w.counters(t)
	late, err := w.try(w.Programs.FromUplink, "up0", frame, skbContext{})
	if errors.Is(err, unix.EINVAL) && tooShort(frame) {
		return nil // the kernel refuses the frame too
	}
	if err != nil {
		t.Fatal(err)
	}
	then := w.counters(t).since(before)
	verdict := map[int]int{xdpDrop: verdictShot, xdpRedirect: verdictDirect}[early.verdict]
	switch {
	case early.verdict == xdpPass:
		late.frame, late.verdict, then = frame, 0, counters{}.since(counters{})
	case early.verdict == xdpDrop && late.verdict == verdictPass && counted.Drops["malformed"] != (Counter{}):
		// TC leaves such frames to the kernel.
		then.Drops["malformed"] = Counter{Packets: 1, Bytes: uint64(len(frame))}
		late.verdict = verdictShot
	}
	switch {
	case early.verdict != xdpPass && early.verdict != xdpDrop && early.verdict != xdpRedirect:
		return fmt.Errorf("XDP: verdict %d", early.verdict)
	case late.verdict != verdict:
		return fmt.Errorf("verdict %d of XDP, but %d of TC", early.verdict, late.verdict)
	}
	if diff := cmp.Diff(then, counted); diff != "" {
		return fmt.Errorf("different counters (-TC +XDP):\n%s", diff)
	}
	if early.verdict != xdpDrop && string(late.frame) != string(early.frame) {
		return fmt.Errorf("different frames:\n%x of TC\n%x of XDP", late.frame, early.frame)
	}
	return nil
}

// FuzzXDPAgreesWithTC compares XDP with TC on arbitrary frames, starting from
// the golden ones.
func FuzzXDPAgreesWithTC(f *testing.F) {
	w := newWorld(f, loadPinned)
	withForms(&w.wanted)
	withXDP(&w.wanted)
	remember(f, w)
	j := w.judge()
	for _, g := range append(groups(), xdpGroups()...) {
		for _, r := range g.rows(f) {
			if r.hook != loader.FromUplink {
				continue
			}
			for _, s := range r.before {
				w.run(f, w.program(s.hook), s.device, s.frame, s.skb)
			}
			f.Add(r.in)
		}
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) > mostData || len(frame) <= atIP {
			t.Skip("outside the size limits of a test run")
		}
		if err := w.disagreement(t, frame); err != nil {
			t.Errorf("%v: %x", err, frame)
		}
		o, err := w.tryXDP(frame)
		if err != nil {
			t.Fatal(err)
		}
		o.verdict = map[int]int{xdpDrop: verdictShot, xdpPass: verdictPass, xdpRedirect: verdictDirect}[o.verdict]
		if err := j.fault(verdict{hook: earlyHook, in: frame, outcome: o}); err != nil {
			t.Errorf("%v: %x", err, frame)
		}
	})
}
