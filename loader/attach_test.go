package loader

import (
	"os"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

func pinnedLinkID(t testing.TB, o *Objects, h Hook, ifindex int) link.ID {
	t.Helper()
	l, err := link.LoadPinnedLink(o.linkPath(h, ifindex), nil)
	must(t, err)
	defer func() { must(t, l.Close()) }()
	info, err := l.Info()
	must(t, err)
	return info.ID
}

func TestAttachUpgradesInPlace(t *testing.T) {
	t.Parallel()
	dir := pinDirectory(t)
	w := newWire(t)
	first := mustLoad(t, dir)
	attach := func(o *Objects) {
		t.Helper()
		w.Do(func() {
			must(t, o.Attach(FromEndpoint, w.ifindex))
			must(t, o.Attach(ToUplink, w.ifindex))
		})
	}
	running := func(o *Objects) {
		t.Helper()
		want := []ebpf.ProgramID{programID(t, o.Programs.FromEndpoint), programID(t, o.Programs.ToUplink)}
		if got := w.attached(t); !slices.Equal(got, want) {
			t.Errorf("programs %v run, want %v", got, want)
		}
	}
	attach(first)
	running(first)
	id := pinnedLinkID(t, first, FromEndpoint, w.ifindex)
	attach(first)
	running(first)

	second := mustLoad(t, dir)
	running(first)
	attach(second)
	running(second)
	if now := pinnedLinkID(t, second, FromEndpoint, w.ifindex); now != id {
		t.Errorf("link %d took the place of %d: packets went by in between", now, id)
	}
	w.send(t)
	testutil.Eventually(t, "a packet dropped by the program", func() bool { return dropped(t, second) == 1 })

	w.Do(func() { must(t, second.Detach(FromEndpoint, w.ifindex)) })
	w.awaitAttached(t, 1)
	w.Do(func() {
		must(t, second.Detach(FromEndpoint, w.ifindex))
		must(t, second.Detach(ToUplink, w.ifindex))
	})
	w.awaitAttached(t, 0)
}

func TestAttachToADeviceThatTookAnotherNumber(t *testing.T) {
	t.Parallel()
	dir := pinDirectory(t)
	w := newWire(t)
	o := mustLoad(t, dir)
	w.Do(func() { must(t, o.Attach(FromEndpoint, w.ifindex)) })
	old := w.ifindex
	w.unplug(t)
	if linked, err := o.Linked(FromEndpoint); err != nil || !slices.Equal(linked, []int{old}) {
		t.Errorf("linked %v, %v; want the device that has gone, %d", linked, err, old)
	}
	w.plug(t)
	// As if the new device had the old one's number.
	must(t, os.Rename(o.linkPath(FromEndpoint, old), o.linkPath(FromEndpoint, w.ifindex)))
	w.Do(func() { must(t, o.Attach(FromEndpoint, w.ifindex)) })
	if got := w.attached(t); !slices.Equal(got, []ebpf.ProgramID{programID(t, o.Programs.FromEndpoint)}) {
		t.Errorf("programs %v run", got)
	}
	w.Do(func() { must(t, o.Detach(FromEndpoint, old)) })
	w.Do(func() { must(t, o.Attach(FromEndpoint, w.ifindex)) })
}

func TestDetachFromADeviceThatHasGone(t *testing.T) {
	t.Parallel()
	dir := pinDirectory(t)
	w := newWire(t)
	o := mustLoad(t, dir)
	w.Do(func() { must(t, o.Attach(FromEndpoint, w.ifindex)) })
	w.unplug(t)
	w.Do(func() { must(t, o.Detach(FromEndpoint, w.ifindex)) })
	if linked, err := o.Linked(FromEndpoint); err != nil || len(linked) != 0 {
		t.Errorf("linked %v, %v; want none", linked, err)
	}
	w.Do(func() {
		if err := o.Attach(FromEndpoint, w.ifindex); err == nil {
			t.Error("attached to a device that has gone")
		}
	})
}

func TestLinkedTellsHooksApart(t *testing.T) {
	t.Parallel()
	dir := pinDirectory(t)
	w := newWire(t)
	o := mustLoad(t, dir)
	w.Do(func() { must(t, o.Attach(FromUplink, w.ifindex)) })
	for h, want := range map[Hook]int{FromUplink: 1, FromEndpoint: 0, ToUplink: 0} {
		if linked, err := o.Linked(h); err != nil || len(linked) != want {
			t.Errorf("%s: linked %v, %v; want %d", h, linked, err, want)
		}
	}
}

// TestClsact shows the way of kernels before 6.6 on this one.
func TestClsact(t *testing.T) {
	t.Parallel()
	dir := pinDirectory(t)
	w := newWire(t)
	o := mustLoad(t, dir)
	w.Do(func() {
		must(t, o.attachClsact(FromEndpoint, w.ifindex))
		must(t, o.attachClsact(ToUplink, w.ifindex))
	})
	w.send(t)
	testutil.Eventually(t, "a packet dropped by the filter", func() bool { return dropped(t, o) == 1 })
	w.Do(func() {
		for h, want := range map[Hook][]int{FromEndpoint: {w.ifindex}, ToUplink: {w.ifindex}, FromUplink: nil} {
			if linked, err := o.Linked(h); err != nil || !slices.Equal(linked, want) {
				t.Errorf("%s: linked %v, %v; want %v", h, linked, err, want)
			}
		}
	})

	// An upgrade replaces the filters.
	next := mustLoad(t, dir)
	w.Do(func() { must(t, next.attachClsact(FromEndpoint, w.ifindex)) })
	want := []string{"ebpnet_from_endpoint", "ebpnet_to_uplink"}
	if got := w.filters(t); !slices.Equal(got, want) {
		t.Errorf("filters %v, want %v", got, want)
	}
	w.send(t)
	testutil.Eventually(t, "a packet dropped once", func() bool { return dropped(t, next) == 2 })

	// A kernel that has TCX since takes it, and drops the filter.
	w.Do(func() { must(t, next.Attach(FromEndpoint, w.ifindex)) })
	if got := w.filters(t); !slices.Equal(got, want[1:]) {
		t.Errorf("filters %v, want %v", got, want[1:])
	}
	w.send(t)
	testutil.Eventually(t, "a packet dropped once more", func() bool { return dropped(t, next) == 3 })

	w.Do(func() {
		must(t, next.Detach(ToUplink, w.ifindex))
		must(t, next.Detach(FromEndpoint, w.ifindex))
	})
	if got := w.filters(t); len(got) != 0 {
		t.Errorf("filters %v after Detach", got)
	}
	w.awaitAttached(t, 0)
	w.send(t)
	if n := dropped(t, next); n != 3 {
		t.Errorf("%d packets dropped, want no more than 3", n)
	}
}
