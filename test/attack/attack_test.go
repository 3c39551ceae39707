package attack

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// seedVariable names the environment variable with another seed.
const (
	seedVariable = "EBPNET_ATTACK_SEED"
	defaultSeed  = 13
	fewestFrames = 4000 // of each attacker
	faultsShown  = 5    // of a class
)

// TestAttacks sends every class of crafted frames from a container that may
// speak to nobody, from one with a link, and from one on a network with ICC. No
// frame arrives where it may not, and none leaves with a source that is not its
// sender's, or the host's.
func TestAttacks(t *testing.T) {
	seed := uint64(defaultSeed)
	if text := os.Getenv(seedVariable); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 0, 64); err != nil {
			t.Fatalf("%s: %v", seedVariable, err)
		}
	}
	t.Logf("seed %d (%s)", seed, seedVariable)
	w := newWorld(t)
	pinToCPU(t)
	sniffers := w.newSniffers(t)
	fences := w.newFences(t)
	batch := filepath.Join(t.TempDir(), "batch")
	if err := os.WriteFile(batch, []byte(stateCommands), 0o600); err != nil {
		t.Fatal(err)
	}
	before := w.states(t, batch)
	round, next := 0, uint32(0)
	settle := func(t *testing.T, each func(*sniffer, seen)) {
		t.Helper()
		round++
		for _, f := range fences {
			f.send(t, round)
		}
		for _, s := range sniffers {
			s.fenced(t, round, fences, func(frame seen) { each(s, frame) })
		}
	}
	settle(t, func(*sniffer, seen) {}) // what the making of the world left behind

	for _, name := range []string{"sealed1", "linked1", "open1"} {
		t.Run(name, func(t *testing.T) {
			attacker := w.members[name]
			socket := newSender(t, attacker.Netns)
			sent := 0
			w.since = next
			for _, class := range classes() {
				t.Run(class.name, func(t *testing.T) {
					c := &craft{w: w, me: attacker, rnd: rand.New(rand.NewPCG(seed, uint64(next))), next: next}
					class.craft(c)
					next = c.next
					taken := 0
					for _, f := range c.out {
						if socket.send(t, f) {
							taken++
						}
					}
					sent += taken
					faults, arrived := map[string]int{}, map[string]bool{}
					settle(t, func(s *sniffer, frame seen) {
						arrived[s.name] = arrived[s.name] || hasTagIn(frame.data)
						what := s.check(attacker, frame, frame.data)
						if what == "" {
							what = s.check(attacker, frame, frame.completed())
						}
						if what == "" {
							return
						}
						faults[what]++
						if faults[what] == 1 && len(faults) <= faultsShown {
							t.Errorf("%s: %s\n%s", s.name, what, c.describe(frame))
						}
					})
					for what, n := range faults {
						if n > 1 {
							t.Logf("%d times %s", n, what)
						}
					}
					t.Logf("%d frames, %d refused by the sender's kernel", taken, len(c.out)-taken)
					w.checkStates(t, attacker, batch, before)
					if class.name == "honest" {
						expectArrived(t, sniffers, name, arrived)
					}
				})
			}
			w.attacked[attacker] = true
			t.Logf("%d frames", sent)
			if sent < fewestFrames {
				t.Errorf("%d frames, want %d", sent, fewestFrames)
			}
		})
	}
	for _, s := range sniffers {
		if n := s.lost(t); n != 0 {
			t.Errorf("%s lost %d frames", s.name, n)
		}
	}
	for _, v := range w.victims {
		if seen := v.conn.MustAsk(t); seen != v.outside {
			t.Errorf("%s is now seen as %s, before as %s", v.what, seen, v.outside)
		}
	}
}

// expectArrived fails unless the sniffers have seen what an honest sender may send:
// those that see nothing prove nothing.
func expectArrived(t *testing.T, sniffers []*sniffer, attacker string, arrived map[string]bool) {
	t.Helper()
	for _, where := range map[string][]string{
		"sealed1": {"-a-*/ebpnet0"},
		"linked1": {"-a-*/ebpnet0", "-server1-*/eth0", "-server3-*/eth0", "-outside-*/port1"},
		"open1":   {"-a-*/ebpnet0", "-open2-*/eth0", "-open3-*/eth0", "-server1-*/eth0", "-outside-*/port1"},
	}[attacker] {
		for _, s := range sniffers {
			if ok, err := path.Match("*"+where, s.name); err != nil || ok && !arrived[s.name] {
				t.Errorf("nothing honest has arrived at %s (%v)", s.name, err)
			}
		}
	}
}

// describe shows a frame at a sniffer, and the crafted one that it comes from.
func (c *craft) describe(frame seen) string {
	text := fmt.Sprintf("seen %+v %x", frame.vnet, frame.data[:min(len(frame.data), 256)])
	if index, ok := indexIn(frame.data); ok {
		for _, f := range c.out {
			if f.index == index {
				return text + fmt.Sprintf("\nsent as number %d %+v %x", index, f.vnet, f.frame[:min(len(f.frame), 256)])
			}
		}
	}
	return text
}

// pinToCPU keeps the test's goroutine on one CPU: what it sends is received
// there, in order.
func pinToCPU(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	var before, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		t.Fatal(err)
	}
	for cpu := range 8 * len(before) * 8 {
		if before.IsSet(cpu) {
			one.Set(cpu)
			break
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.SchedSetaffinity(0, &before); err != nil {
			t.Error(err)
		}
		runtime.UnlockOSThread()
	})
}

// newSniffers opens a sniffer in every container, at both hosts' stacks, and on
// the wire of each host.
func (w *world) newSniffers(t *testing.T) (all []*sniffer) {
	t.Helper()
	add := func(n *testutil.Netns, device string, unmarked bool, check func(*member, seen, []byte) string, fences ...string) {
		s := newSniffer(t, n, device, unmarked)
		s.check, s.fences = check, fences
		all = append(all, s)
	}
	for _, name := range memberNames {
		m := w.members[name]
		add(m.Netns, testutil.Device, false, w.ifNotItself(m, w.container(m)), w.fencesOf(name)...)
	}
	add(w.a.Netns, "ebpnet0", true, w.stack(), "open2-host")
	add(w.b.Netns, "ebpnet0", true, w.nothing(), "open3-host")
	add(w.a.Netns, "lo", false, w.nothing(), "a-lo")
	add(w.b.Netns, "lo", false, w.nothing(), "b-lo")
	add(w.underlay.Outside, "port1", false, w.wire(true), "a-outside")
	add(w.underlay.Outside, "port2", false, w.wire(false), "b-outside")
	return all
}

// ifNotItself leaves the attacker's own sniffer out: it may hear what it wants.
// Who attacked before may still get answers.
func (w *world) ifNotItself(m *member, check func(*member, seen, []byte) string) func(*member, seen, []byte) string {
	return func(attacker *member, s seen, frame []byte) string {
		index, tagged := indexIn(frame)
		late := w.attacked[m] && (!tagged || index < w.since) && !bytes.Equal(frame[6:12], attacker.MAC)
		if attacker == m || late {
			return ""
		}
		return check(attacker, s, frame)
	}
}

// fencesOf are those that arrive at a container.
func (w *world) fencesOf(name string) []string {
	fences := []string{"host-" + name}
	switch name {
	case "open3":
		fences = append(fences, "open2-open3")
	case "open2":
		fences = append(fences, "open3-open2")
	case "vault3":
		fences = append(fences, "vault1-vault3")
	}
	return fences
}

func (w *world) newFences(t *testing.T) map[string]fence {
	t.Helper()
	all := map[string]fence{}
	add := func(name string, from *testutil.Netns, to netip.Addr) {
		conn := from.MustDial(t, "udp", netip.AddrPortFrom(to, fencePort).String())
		all[name] = fence{name, conn.Conn}
	}
	for _, name := range memberNames {
		m := w.members[name]
		add("host-"+name, m.Host.Netns, m.IP4)
	}
	member := func(name string) *member { return w.members[name] }
	add("open2-open3", member("open2").Netns, member("open3").IP4)
	add("open3-open2", member("open3").Netns, member("open2").IP4)
	add("vault1-vault3", member("vault1").Netns, member("vault3").IP4)
	add("open2-host", member("open2").Netns, open.gateway4())
	add("open3-host", member("open3").Netns, open.gateway4())
	add("a-lo", w.a.Netns, loopback4)
	add("b-lo", w.b.Netns, loopback4)
	add("a-outside", w.a.Netns, w.underlay.IP4)
	add("b-outside", w.b.Netns, w.underlay.IP4)
	return all
}

// kernels are the namespaces whose kernels an attack must not change.
func (w *world) kernels() map[string]*testutil.Netns {
	all := map[string]*testutil.Netns{"a": w.a.Netns, "b": w.b.Netns, "outside": w.underlay.Outside}
	for _, name := range memberNames {
		all[name] = w.members[name].Netns
	}
	return all
}

// states are those of all kernels, by name.
func (w *world) states(t *testing.T, batch string) map[string]kernel {
	t.Helper()
	all := map[string]kernel{}
	for name, n := range w.kernels() {
		all[name] = state(t, n, batch)
	}
	return all
}

// checkStates fails if a class has changed a kernel's routes, addresses or
// neighbors, and takes the state as it is now for the next class.
func (w *world) checkStates(t *testing.T, attacker *member, batch string, before map[string]kernel) {
	t.Helper()
	for name, now := range w.states(t, batch) {
		if name == attacker.Endpoint {
			continue
		}
		if now.settings != before[name].settings {
			t.Errorf("%s has changed (-before +now):\n%s", name, cmp.Diff(
				strings.Split(before[name].settings, "\n"), strings.Split(now.settings, "\n")))
		}
		w.checkNeighbors(t, name, before[name], now)
		before[name] = now
	}
}
