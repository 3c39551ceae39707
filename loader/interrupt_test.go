package loader

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/ebpnet/ebpnet/bpf"
)

// TestKilledWhileResizing stops a load after one of its steps, and looks at
// what a next one makes of that: of the same size, of that of before, or of a
// third.
func TestKilledWhileResizing(t *testing.T) {
	t.Parallel()
	const third = fewFlows + manyFlows
	var (
		// The steps after which something else is pinned than before.
		all     = len((&upgrade{objects: &Objects{}}).steps())
		maps    = all - 1
		retired = 1

		dir      = pinDirectory(t)
		old      = loadFor(t, dir, fewFlows)
		pins     = listPins(t, dir)
		expected []bpf.EbpnetFlow
	)
	put := func() {
		n := uint32(len(expected))
		flow := testFlow(t, n, bpf.EbpnetFlowStateFLOW_ESTABLISHED, 0)
		old.putFlows(t, flow)
		expected = append(expected, flow)
	}
	for _, c := range []struct {
		steps        int
		killed, next uint32 // sizes
		mended       bool   // by another command, before the next load
	}{
		{retired, manyFlows, manyFlows, false},
		{maps, third, third, false},
		{all, manyFlows, manyFlows, false},
		{maps, third, manyFlows, false},
		{all, third, manyFlows, false},
		{maps, third, fewFlows, false},
		{all, third, manyFlows, true},
		{retired, third, manyFlows, false},
	} {
		put()
		killAfter(t, dir, Config{GatewayIfindex: 1, Flows: c.killed, WithoutXDP: true}, c.steps)
		put() // by the old programs, which go on where they are attached

		// A command that attaches the programs that are pinned comes to the
		// end of a change of size, if those are the new ones.
		if c.mended || c.steps == maps {
			opened, err := Open(dir)
			must(t, err)
			opened.finish(t)
			if c.mended {
				opened.check(t, expected...)
			} else {
				put()
			}
			must(t, opened.Close())
		}

		old = loadFor(t, dir, c.next)
		old.checkSizes(t, c.next)
		old.finish(t)
		old.check(t, expected...)
		if now := listPins(t, dir); !slices.Equal(now, pins) {
			t.Errorf("after %+v: pins are %v, were %v", c, now, pins)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 4 {
			t.Errorf("after %+v: %v, %v", c, entries, err)
		}
	}
}

// killAfter does the first steps of a load, and leaves all where it is then.
func killAfter(t testing.TB, dir string, c Config, steps int) {
	t.Helper()
	spec, err := bpf.LoadEbpnet()
	must(t, err)
	killSpecAfter(t, dir, spec, c, steps)
}

func killSpecAfter(t testing.TB, dir string, spec *ebpf.CollectionSpec, c Config, steps int) {
	t.Helper()
	u, err := prepare(dir, spec, c)
	must(t, err)
	for _, step := range u.steps()[:steps] {
		must(t, step())
	}
	u.close()
	must(t, u.objects.Close())
}

// A load may also die while it pins, and when nothing was loaded before.
func TestKilledAtFirst(t *testing.T) {
	t.Parallel()
	dir := pinDirectory(t)
	all := len((&upgrade{objects: &Objects{}}).steps())
	for _, done := range []int{1, all - 1, all} {
		killAfter(t, dir, Config{GatewayIfindex: 1, Flows: fewFlows}, done)
		o, err := Open(dir)
		if done < all && !errors.Is(err, ErrNotLoaded) {
			t.Errorf("after %d of %d steps: %v, want ErrNotLoaded", done, all, err)
		}
		if err == nil {
			must(t, o.Close())
		}
	}
	pins := listPins(t, dir)
	for _, half := range []string{mapsDirectory, programsDirectory} {
		must(t, os.Mkdir(filepath.Join(dir, half+freshSuffix), 0o700))
	}
	o, err := Load(dir, Config{GatewayIfindex: 1, Flows: fewFlows})
	must(t, err)
	o.checkSizes(t, fewFlows)
	must(t, o.Close())
	if now := listPins(t, dir); !slices.Equal(now, pins) {
		t.Errorf("pins are %v, were %v", now, pins)
	}
}

// TestKilledUnload stops an unload after one of its steps: nothing is loaded
// then, and a load or another unload goes on from there.
func TestKilledUnload(t *testing.T) {
	t.Parallel()
	dir := pinDirectory(t)
	w := newWire(t)
	load := func() {
		t.Helper()
		w.Do(func() {
			o, err := Load(dir, Config{GatewayIfindex: 1, Flows: fewFlows, WithoutXDP: true})
			must(t, err)
			must(t, o.Attach(ToUplink, w.ifindex))
			must(t, o.attachClsact(FromEndpoint, w.ifindex))
			must(t, o.Close())
		})
		w.awaitAttached(t, 1)
	}
	load()
	pins := listPins(t, dir)
	all := len(unloadSteps(dir))
	for _, c := range []struct {
		done     int
		unloaded bool // by another unload, before the next load
	}{
		{1, false},
		{2, true},
		{4, false}, // the links have gone
		{all - 2, true},
	} {
		w.Do(func() {
			for _, step := range unloadSteps(dir)[:c.done] {
				must(t, step())
			}
		})
		if o, err := Open(dir); !errors.Is(err, ErrNotLoaded) {
			t.Errorf("after %d of %d steps: %v, want ErrNotLoaded", c.done, all, err)
			if err == nil {
				must(t, o.Close())
			}
		}
		if c.unloaded {
			w.Do(func() { must(t, Unload(dir)) })
			w.awaitAttached(t, 0)
			if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) || len(w.filters(t)) != 0 {
				t.Errorf("after %d of %d steps and an unload: %v, filters %v", c.done, all, err, w.filters(t))
			}
		}
		load()
		if now := listPins(t, dir); !slices.Equal(now, pins) || len(w.filters(t)) != 1 {
			t.Errorf("after %d of %d steps and a load: pins are %v, were %v; filters %v", c.done, all, now, pins, w.filters(t))
		}
	}
}
