package datapath

import (
	"encoding/binary"
	"encoding/hex"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// Offsets in struct xdp_md, and its size, for a test run; and the verdicts of
// XDP programs: include/uapi/linux/bpf.h.
const (
	xdpSize     = 24
	xdpEnd      = 4
	xdpIfindex  = 12
	xdpDrop     = 1
	xdpPass     = 2
	xdpRedirect = 4
)

// tryXDP runs XDP on a frame from the uplink.
func (w *world) tryXDP(frame []byte) (outcome, error) {
	context := make([]byte, xdpSize)
	binary.NativeEndian.PutUint32(context[xdpEnd:], uint32(len(frame)))
	binary.NativeEndian.PutUint32(context[xdpIfindex:], w.ifindex["up0"])
	options := &ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+extraData), Context: context}
	var verdict uint32
	var err error
	w.ns.Do(func() { verdict, err = w.XDP.Run(options) })
	return outcome{verdict: int(verdict), frame: options.DataOut}, err
}

// runXDP is tryXDP for frames that the kernel accepts. It also returns the
// counters.
func (w *world) runXDP(t testing.TB, frame []byte) (outcome, counters) {
	t.Helper()
	before := w.counters(t)
	o, err := w.tryXDP(frame)
	if err != nil {
		t.Fatalf("test run with frame %x: %v", frame, err)
	}
	return o, w.counters(t).since(before)
}

// checkXDP is check for the XDP program. The rows are those of frames from an
// uplink.
func (r row) checkXDP(t *testing.T, w *world) {
	r.prepare(t, w)
	if r.undo != nil {
		defer r.undo(t, w)
	}
	o, counted := w.runXDP(t, r.in)
	want := r.in
	if r.out != nil {
		want = r.out
	}
	verdict := map[int]int{verdictPass: xdpPass, verdictShot: xdpDrop, verdictDirect: xdpRedirect}[r.verdict]
	if o.verdict != verdict {
		t.Errorf("verdict %d, want %d", o.verdict, verdict)
	}
	if string(o.frame) != string(want) {
		t.Errorf("wrong frame (-want +got):\n%s", cmp.Diff(hex.Dump(want), hex.Dump(o.frame)))
	}
	if diff := cmp.Diff(r.counted(want), counted); diff != "" {
		t.Errorf("wrong counters (-want +got):\n%s", diff)
	}
}

// withXDP lets the uplink's driver run XDP, and every endpoint accept frames
// from XDP.
func withXDP(w *Wanted) {
	uplink := &w.Uplinks[0]
	uplink.MAC, uplink.Native = uplinkMAC, true
	for i := range w.Endpoints {
		w.Endpoints[i].NAPI = !w.Endpoints[i].Remote()
	}
	w.Ports = append(w.Ports, publishedForSome()...)
}

// withoutDriver lets the uplink run XDP, but not in its driver.
func withoutDriver(t testing.TB, w *world) {
	t.Helper()
	changeUplink(func(u *Uplink) { u.Native = false })(t, w)
}

func changeUplink(change func(*Uplink)) func(testing.TB, *world) {
	return func(t testing.TB, w *world) {
		t.Helper()
		u := w.wanted.Uplinks[0]
		change(&u)
		if err := w.ReplaceUplinks([]Uplink{u}); err != nil {
			t.Fatal(err)
		}
	}
}

// withoutNAPI lets alice accept no frames from XDP.
func withoutNAPI(t testing.TB, w *world) {
	t.Helper()
	for _, e := range w.wanted.Endpoints {
		e.NAPI = e.NAPI && e.ID != alice.id
		if err := w.PutEndpoint(e); err != nil {
			t.Fatal(err)
		}
	}
}

func xdpGroups() []group {
	return []group{
		{name: "frames", rows: xdpFrameRows},
		{name: "tunnel", rows: xdpTunnelRows},
		{name: "tunnel forms", rows: xdpFormRows, change: withForms},
		{name: "flows", rows: xdpFlowRows},
		{name: "published", rows: xdpPublishedRows},
	}
}

func TestXDPGolden(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	for _, g := range shareWorld(t, xdpGroups()) {
		t.Run(g.name, func(t *testing.T) {
			t.Parallel()
			w := g.world(t, withXDP)
			for _, r := range g.rows(t) {
				t.Run(r.name, func(t *testing.T) { r.checkXDP(t, w) })
			}
		})
	}
}
