package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/ebpnet/ebpnet/bpf"
	"github.com/ebpnet/ebpnet/internal/testutil"
)

// putTunnelTo adds a tunnel to a remote address, which carries openNet.
func (w *world) putTunnelTo(id uint32, remote netip.Addr) error {
	tunnel := Tunnel{ID: id, Local: uplink.ip(remote.Is6()), Remote: remote, TTL: tunnelTTL}
	carries := TunnelNetwork{Tunnel: id, Network: openNet, Key: key(openKey)}
	return errors.Join(put(w.Maps.Carried, carries.key(), uint32(openNet)), w.PutTunnel(tunnel))
}

// fromRemote is a frame from a tunnel's remote address. Its inner sender is
// forged, so it is dropped as spoofed_overlay and counted for its tunnel.
func fromRemote(t testing.TB, remote netip.Addr) []byte {
	t.Helper()
	outer := arriving(remote.Is6(), key(openKey))
	outer.src = remote
	inner := between(remoteBehind(theTunnel, openNet), alice, false, udp(1, 2))
	inner.from = bob.mac
	return outer.around(t, inner.frame(t))
}

// received is how many packets a tunnel has received.
func (w *world) received(t testing.TB, id uint32) uint64 {
	t.Helper()
	traffic, err := w.TunnelTraffic(id)
	must(t, err)
	return traffic.Rx.Packets
}

// uplinkFrame sends a frame in by the uplink.
func (w *world) uplinkFrame(t testing.TB, frame []byte) {
	t.Helper()
	w.run(t, w.Programs.FromUplink, "up0", frame, skbContext{})
}

// TestEachOfManyTunnelsIsFound has as many tunnels as a host can have. All
// tunnels of a family have the same local address. The IPv6 remotes differ from
// each other by the same number in two words, to provoke collisions.
func TestEachOfManyTunnelsIsFound(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	w := newWorld(t, loadPinned)
	remotes := map[uint32]netip.Addr{}
	for id := uint32(theTunnel + 1); id < w.Maps.Tunnels.MaxEntries(); id++ {
		a := netip.AddrFrom4([4]byte{10, 0, byte(id >> 8), byte(id)})
		if id%2 == 0 {
			a = netip.AddrFrom16([16]byte{0: 0x20, 1: 0x01, 6: byte(id >> 8), 7: byte(id), 14: byte(id >> 8), 15: byte(id)})
		}
		remotes[id] = a
		must(t, w.putTunnelTo(id, a))
	}
	stranger := fromRemote(t, website.ip4)
	before := w.counters(t)
	for id, a := range remotes {
		w.uplinkFrame(t, fromRemote(t, a))
		if n := w.received(t, id); n != 1 {
			t.Errorf("tunnel %d to %v has received %d packets, want 1", id, a, n)
		}
	}
	w.uplinkFrame(t, stranger)
	drops := w.counters(t).since(before).Drops
	if n := drops["spoofed_overlay"].Packets; n != uint64(len(remotes)) {
		t.Errorf("%d packets of tunnels, want %d: %v", n, len(remotes), drops)
	}
	if n := drops["unknown_tunnel"].Packets; n != 1 {
		t.Errorf("%d packets of no tunnel, want 1", n)
	}
}

// sharing finds n IPv4 addresses whose tunnels share a bucket.
func (w *world) sharing(n int) (remotes []netip.Addr) {
	var bucket uint32
	for i := uint32(0); len(remotes) < n; i++ {
		a := netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, 10<<24+i)))
		at := w.tunnelIDs().index(Tunnel{Local: uplink.ip4, Remote: a}.ends())
		if i == 0 {
			bucket = at
		}
		if at == bucket {
			remotes = append(remotes, a)
		}
	}
	return remotes
}

// TestTunnelsOfOneBucket fills a bucket: one more tunnel is refused, and the
// others stay. A removed tunnel makes room for another one.
func TestTunnelsOfOneBucket(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	w := newWorld(t, loadPinned)
	const first = 100
	remotes := w.sharing(bucketSlots + 1)
	add := func(i int) error { return w.putTunnelTo(uint32(first+i), remotes[i]) }
	for i := range bucketSlots {
		must(t, add(i))
	}
	err := add(bucketSlots)
	if !errors.Is(err, ErrFull) || strings.Contains(fmt.Sprint(err), "\n") {
		t.Fatalf("one tunnel too many in a bucket: %v, want one line of ErrFull", err)
	}
	check := func(what string, there func(i int) bool) {
		t.Helper()
		for i, a := range remotes {
			before, had := w.counters(t), w.received(t, uint32(first+i))
			w.uplinkFrame(t, fromRemote(t, a))
			want := map[bool]string{true: "spoofed_overlay", false: "unknown_tunnel"}[there(i)]
			if drops := w.counters(t).since(before).Drops; drops[want].Packets != 1 {
				t.Errorf("%s: tunnel %d drops %v, want %s", what, i, drops, want)
			}
			if got := w.received(t, uint32(first+i)) - had; (got == 1) != there(i) {
				t.Errorf("%s: tunnel %d has received %d packets more", what, i, got)
			}
		}
	}
	check("full", func(i int) bool { return i < bucketSlots })
	const gone = 3
	must(t, w.DeleteTunnel(Tunnel{ID: first + gone, Local: uplink.ip4, Remote: remotes[gone]}, true))
	check("one gone", func(i int) bool { return i < bucketSlots && i != gone })
	must(t, add(bucketSlots))
	check("another in its slot", func(i int) bool { return i != gone })
	for i, a := range remotes {
		must(t, w.DeleteTunnel(Tunnel{ID: uint32(first + i), Local: uplink.ip4, Remote: a}, true))
	}
	check("all gone", func(int) bool { return false })
}

// TestTunnelsStayWhileOthersChange adds and removes tunnels of a bucket while
// packets arrive from another tunnel of that bucket. All of these are known.
func TestTunnelsStayWhileOthersChange(t *testing.T) {
	testutil.RequireRoot(t)
	w := newWorld(t, loadPinned)
	const first, rounds = 100, 500
	remotes := w.sharing(bucketSlots)
	must(t, w.putTunnelTo(first, remotes[0]))
	stays, comesAndGoes := fromRemote(t, remotes[0]), fromRemote(t, remotes[1])
	before := w.counters(t)
	changed := map[int]bool{}
	w.race(t, rounds, func(cpu, _ int) error {
		if cpu == 0 {
			for _, frame := range [][]byte{stays, comesAndGoes} {
				if _, err := w.Programs.FromUplink.Run(w.options("up0", frame, skbContext{})); err != nil {
					return err
				}
			}
			return nil
		}
		i := 1 + rand.IntN(len(remotes)-1)
		changed[i] = !changed[i]
		if changed[i] {
			return w.putTunnelTo(uint32(first+i), remotes[i])
		}
		return w.DeleteTunnel(Tunnel{ID: uint32(first + i), Local: uplink.ip4, Remote: remotes[i]}, true)
	})
	if n := w.received(t, first); n != rounds {
		t.Errorf("%d of %d packets are known for those of the tunnel that stays", n, rounds)
	}
	drops := w.counters(t).since(before).Drops
	known, unknown := drops["spoofed_overlay"].Packets, drops["unknown_tunnel"].Packets
	if known < rounds || known+unknown != 2*rounds {
		t.Errorf("of %d packets, %d are of a tunnel and %d of none", 2*rounds, known, unknown)
	}
	if n := w.received(t, first+1); n > known-rounds {
		t.Errorf("the other tunnel has received %d packets, of which %d were known", n, known-rounds)
	}
}

// uplinksBeside gives n uplinks that share the bucket of up0.
func (w *world) uplinksBeside(n int) (uplinks []Uplink) {
	index := w.uplinks().index
	for i := uint32(1 << 20); len(uplinks) < n; i++ {
		if index(i) == index(w.ifindex["up0"]) {
			uplinks = append(uplinks, Uplink{Ifindex: int(i), MTU: 1500})
		}
	}
	return uplinks
}

// dropsMalformed reports whether XDP knows the uplink: it drops malformed
// packets only of uplinks.
func (w *world) dropsMalformed(t testing.TB) bool {
	t.Helper()
	o, err := w.tryXDP(patch(incoming(false, udp(1, 2)).frame(t), atIP, 0x65))
	must(t, err)
	return o.verdict == xdpDrop
}

// TestUplinksOfOneBucket fills a bucket of uplinks: each is found, and one more
// is refused.
func TestUplinksOfOneBucket(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	w := newWorld(t, loadPinned)
	withXDP(&w.wanted)
	own, others := w.wanted.Uplinks[0], w.uplinksBeside(bucketSlots)
	own.Default = false
	for n := range bucketSlots {
		must(t, w.ReplaceUplinks(others[:n]))
		if w.dropsMalformed(t) {
			t.Errorf("an uplink that is not there is found among %d others", n)
		}
		must(t, w.ReplaceUplinks(append([]Uplink{own}, others[:n]...)))
		if !w.dropsMalformed(t) {
			t.Errorf("the uplink is not found among %d others", n)
		}
	}
	own.MTU++ // in the full bucket
	must(t, w.ReplaceUplinks(append([]Uplink{own}, others[:bucketSlots-1]...)))
	if !w.dropsMalformed(t) {
		t.Error("an uplink that changed in a full bucket is not found")
	}
	err := w.ReplaceUplinks(append([]Uplink{own}, others...))
	if !errors.Is(err, ErrFull) || strings.Contains(fmt.Sprint(err), "\n") {
		t.Errorf("one uplink too many in a bucket: %v, want one line of ErrFull", err)
	}
	must(t, w.ReplaceUplinks(nil))
	if all, err := w.uplinks().entries(); err != nil || len(all) != 0 {
		t.Errorf("left behind: %v, %v", all, err)
	}
}

// TestUplinkStaysWhileItChanges changes an uplink and others of its bucket while
// packets arrive by it. All packets find the uplink.
func TestUplinkStaysWhileItChanges(t *testing.T) {
	testutil.RequireRoot(t)
	w := newWorld(t, loadPinned)
	withXDP(&w.wanted)
	own, others := w.wanted.Uplinks[0], w.uplinksBeside(bucketSlots-2)
	const rounds = 500
	must(t, w.ReplaceUplinks([]Uplink{own}))
	malformed := patch(incoming(false, udp(1, 2)).frame(t), atIP, 0x65)
	missed := 0
	w.race(t, rounds, func(cpu, round int) error {
		if cpu == 0 {
			o, err := w.tryXDP(malformed)
			if o.verdict != xdpDrop {
				missed++
			}
			return err
		}
		own.MTU = 1400 + round%2
		return w.ReplaceUplinks(append([]Uplink{own}, others[:rand.IntN(len(others))]...))
	})
	if missed > 0 {
		t.Errorf("%d of %d packets found no uplink", missed, rounds)
	}
	all, err := w.uplinks().entries()
	must(t, err)
	if got := all[w.ifindex["up0"]].Mtu; got != 1400+(rounds-1)%2 {
		t.Errorf("the uplink has an MTU of %d in the end", got)
	}
}

// TestBucketSizes checks what indexBits relies on.
func TestBucketSizes(t *testing.T) {
	t.Parallel()
	spec, err := bpf.LoadEbpnet()
	must(t, err)
	for _, name := range []string{bpf.EbpnetMapTunnelBuckets, bpf.EbpnetMapUplinkBuckets} {
		m := spec.Maps[name]
		if m.Type != ebpf.Array || m.MaxEntries&(m.MaxEntries-1) != 0 {
			t.Errorf("%v is no array whose size is a power of two", m)
		}
	}
}
