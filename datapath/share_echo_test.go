package datapath

import (
	"testing"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// TestPingsFromOutsideCountOnce has a host outside ping an endpoint of a routed
// network. The flow is established, and counts once.
func TestPingsFromOutsideCountOnce(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	w := newWorld(t, loadShares(512, 256))
	withRouted(&w.wanted)
	must(t, w.Replace(w.wanted))
	asked := incoming(false, echo(false, false, 4007))
	asked.dst = plain.ip4
	for range 2 {
		if verdict, _ := w.send(t, fromUplink("", asked.frame(t))); verdict != verdictDirect {
			t.Fatalf("verdict %d", verdict)
		}
		w.send(t, fromEndpoint("", plain, outgoing(plain, false, echo(false, true, 4007)).frame(t)))
	}
	if got := w.share(t, ownerAll); got.Established != 1 {
		t.Errorf("all owners: %+v, want 1 established", got)
	}
	w.checkShares(t)
}
