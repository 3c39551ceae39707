package loader

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/ebpnet/ebpnet/bpf"
)

// xdp tells which XDP program near has, 0 for none.
func (w *wire) xdp(t testing.TB) (id ebpf.ProgramID) {
	t.Helper()
	w.Do(func() {
		device, err := netlink.LinkByIndex(w.ifindex)
		must(t, err)
		if x := device.Attrs().Xdp; x != nil && x.Attached {
			id = ebpf.ProgramID(x.ProgId)
		}
	})
	return id
}

func (w *wire) expectXDP(t testing.TB, o *Objects, want map[int]XDPMode) {
	t.Helper()
	w.Do(func() {
		if got, err := o.XDPAttached(); err != nil || !maps.Equal(got, want) {
			t.Errorf("XDP is attached to %v, %v; want %v", got, err, want)
		}
	})
}

func xdpLinkID(t testing.TB, o *Objects, ifindex int) link.ID {
	t.Helper()
	l, err := link.LoadPinnedLink(xdpPath(o.dir, ifindex), nil)
	must(t, err)
	defer func() { must(t, l.Close()) }()
	info, err := l.Info()
	must(t, err)
	return info.ID
}

func TestXDPIsReplacedInPlace(t *testing.T) {
	t.Parallel()
	dir := pinDirectory(t)
	w := newWire(t)
	first := mustLoad(t, dir)
	w.expectXDP(t, first, map[int]XDPMode{})
	for _, mode := range []XDPMode{XDPGeneric, XDPNative} {
		w.Do(func() { must(t, first.AttachXDP(w.ifindex, mode)) })
		w.expectXDP(t, first, map[int]XDPMode{w.ifindex: mode})
		id := xdpLinkID(t, first, w.ifindex)
		second := mustLoad(t, dir)
		if programID(t, second.XDP) == programID(t, first.XDP) {
			t.Fatal("the program was not loaded anew")
		}
		if got := w.xdp(t); got != programID(t, first.XDP) {
			t.Errorf("%s: program %d runs before it is replaced, want the old one", mode, got)
		}
		w.Do(func() { must(t, second.AttachXDP(w.ifindex, mode)) })
		if got := w.xdp(t); got != programID(t, second.XDP) {
			t.Errorf("%s: program %d runs, want the new one", mode, got)
		}
		if now := xdpLinkID(t, second, w.ifindex); now != id {
			t.Errorf("%s: link %d took the place of %d", mode, now, id)
		}
		opened, err := Open(dir)
		must(t, err)
		if programID(t, opened.XDP) != programID(t, second.XDP) {
			t.Errorf("%s: the pin is not that of the new program", mode)
		}
		must(t, opened.Close())
		first = second
	}
	w.Do(func() { must(t, first.DetachXDP(w.ifindex)) })
	if got := w.xdp(t); got != 0 {
		t.Errorf("program %d runs after DetachXDP", got)
	}
	w.expectXDP(t, first, map[int]XDPMode{})
	w.Do(func() { must(t, first.DetachXDP(w.ifindex)) })
}

func TestXDPOfOthersStays(t *testing.T) {
	t.Parallel()
	dir := pinDirectory(t)
	w := newWire(t)
	o := mustLoad(t, dir)
	foreign, err := passXDP()
	must(t, err)
	defer foreign.Close()
	w.Do(func() {
		device, err := netlink.LinkByIndex(w.ifindex)
		must(t, err)
		must(t, netlink.LinkSetXdpFdWithFlags(device, foreign.FD(), int(link.XDPGenericMode)))
	})
	for _, mode := range []XDPMode{XDPGeneric, XDPNative} {
		w.Do(func() {
			for _, err := range []error{o.AttachXDP(w.ifindex, mode), TryXDP(dir, w.ifindex, mode)} {
				if !errors.Is(err, ErrForeignXDP) {
					t.Errorf("%s: %v, want ErrForeignXDP", mode, err)
				}
			}
			must(t, o.DetachXDP(w.ifindex))
		})
	}
	w.expectXDP(t, o, map[int]XDPMode{})
	w.Do(func() { must(t, Unload(dir)) })
	if got := w.xdp(t); got != programID(t, foreign) {
		t.Errorf("program %d runs, want the foreign one", got)
	}
}

func TestTryXDPLeavesNothing(t *testing.T) {
	t.Parallel()
	dir := pinDirectory(t)
	w := newWire(t)
	bridge := 0
	w.Run(t, "ip", "link", "add", "bridge", "up", "type", "bridge")
	w.Do(func() {
		device, err := netlink.LinkByName("bridge")
		must(t, err)
		bridge = device.Attrs().Index
		must(t, TryXDP(dir, w.ifindex, XDPNative))
		must(t, TryXDP(dir, w.ifindex, XDPGeneric))
		must(t, TryXDP(dir, bridge, XDPGeneric))
		err = TryXDP(dir, bridge, XDPNative)
		if err == nil || !strings.Contains(err.Error(), "native") || strings.Contains(err.Error(), "\n") {
			t.Errorf("native XDP on a bridge: %v", err)
		}
	})
	if got := w.xdp(t); got != 0 {
		t.Errorf("program %d is left", got)
	}

	// What cannot be attached leaves nothing that is in the way.
	o := mustLoad(t, dir)
	w.Do(func() {
		if err := o.AttachXDP(bridge, XDPNative); err == nil {
			t.Error("attached natively to a bridge")
		}
		must(t, o.AttachXDP(bridge, XDPGeneric))
		if err := o.AttachXDP(bridge, XDPNative); err == nil {
			t.Error("changed to native on a bridge")
		}
		must(t, o.AttachXDP(bridge, XDPGeneric))
		must(t, TryXDP(dir, bridge, XDPGeneric))
	})
	w.expectXDP(t, o, map[int]XDPMode{bridge: XDPGeneric})
	w.Do(func() { must(t, Unload(dir)) })
	w.Do(func() {
		device, err := netlink.LinkByIndex(bridge)
		must(t, err)
		if x := device.Attrs().Xdp; x != nil && x.Attached {
			t.Errorf("program %d is left after Unload", x.ProgId)
		}
	})
}

func TestXDPOnADeviceThatHasGone(t *testing.T) {
	t.Parallel()
	dir := pinDirectory(t)
	w := newWire(t)
	o := mustLoad(t, dir)
	w.Do(func() { must(t, o.AttachXDP(w.ifindex, XDPGeneric)) })
	old := w.ifindex
	w.unplug(t)
	w.expectXDP(t, o, map[int]XDPMode{})
	w.plug(t)
	// As if the new device had the old one's number.
	must(t, os.Rename(xdpPath(dir, old), xdpPath(dir, w.ifindex)))
	w.Do(func() { must(t, o.AttachXDP(w.ifindex, XDPGeneric)) })
	w.expectXDP(t, o, map[int]XDPMode{w.ifindex: XDPGeneric})
	ifindex := w.ifindex
	w.unplug(t)
	w.Do(func() { must(t, o.DetachXDP(ifindex)) })
	if paths, err := xdpPaths(dir); err != nil || len(paths) != 0 {
		t.Errorf("links %v are left, %v", paths, err)
	}
}

// Links of XDP do not hide the filters of a kernel without TCX.
func TestXDPBesideFilters(t *testing.T) {
	t.Parallel()
	dir := pinDirectory(t)
	w := newWire(t)
	o := mustLoad(t, dir)
	w.Do(func() {
		must(t, o.attachClsact(FromUplink, w.ifindex))
		must(t, o.AttachXDP(w.ifindex, XDPGeneric))
		if linked, err := o.Linked(FromUplink); err != nil || len(linked) != 1 {
			t.Errorf("linked %v, %v; want the filter's device", linked, err)
		}
	})
}

// A datapath without the program of XDP, as one that has no use for it or whose
// kernel refused it, is whole but for that.
func TestWithoutXDP(t *testing.T) {
	t.Parallel()
	dir := pinDirectory(t)
	w := newWire(t)
	left, err := Load(dir, Config{GatewayIfindex: 1, WithoutXDP: true})
	must(t, err)
	must(t, left.Close())
	if _, err := os.Stat(filepath.Join(dir, programsDirectory, bpf.XdpProgXdpUplink)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the program of XDP is pinned: %v", err)
	}
	o, err := Open(dir)
	must(t, err)
	defer func() { must(t, o.Close()) }()
	w.Do(func() {
		if err := o.AttachXDP(w.ifindex, XDPGeneric); !errors.Is(err, ErrNoXDP) {
			t.Errorf("%v, want ErrNoXDP", err)
		}
	})
	next := mustLoad(t, dir)
	w.Do(func() { must(t, next.AttachXDP(w.ifindex, XDPGeneric)) })
}
