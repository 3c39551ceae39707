package datapath

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"

	"github.com/ebpnet/ebpnet/bpf"
	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/testutil"
	"github.com/ebpnet/ebpnet/loader"
)

func emptyTables(t testing.TB) *Tables {
	t.Helper()
	testutil.RequireRoot(t)
	return loadPinned(t, loader.Config{GatewayIfindex: 1})
}

// dump lists all entries that the agent writes, as text. It sorts members.
func (t *Tables) dump(tb testing.TB) []string {
	tb.Helper()
	var lines []string
	note := func(table string, key, value any) {
		lines = append(lines, fmt.Sprintf("%s %v = %v", table, key, value))
	}
	var err error
	err = errors.Join(err, dumpTable(t.Maps.Devices, func(k uint32, v bpf.EbpnetDevice) { note("devices", k, v) }))
	err = errors.Join(err, dumpTable(t.Maps.Fdb, func(k bpf.EbpnetFdbKey, v bpf.EbpnetStation) { note("fdb", k, v) }))
	err = errors.Join(err, dumpTable(t.Maps.Neighbors, func(k bpf.EbpnetAddress, v bpf.EbpnetStation) { note("neighbors", k, v) }))
	err = errors.Join(err, dumpTable(t.Maps.Members, func(k bpf.EbpnetMemberKey, v bpf.EbpnetStation) { note("members", k.Network, v) }))
	err = errors.Join(err, dumpTable(t.Maps.Carried, func(k bpf.EbpnetTunnelNetworkKey, v uint32) { note("carried", k, v) }))
	err = errors.Join(err, dumpTable(t.Maps.Links, func(k bpf.EbpnetLinkKey, v uint32) { note("links", k, v) }))
	err = errors.Join(err, dumpBuckets(t.tunnelIDs(), func(k bpf.EbpnetTunnelEnds, v uint32) { note("tunnel_buckets", k, v) }))
	err = errors.Join(err, dumpBuckets(t.uplinks(), func(k uint32, v bpf.EbpnetUplink) { note("uplink_buckets", k, v) }))
	err = errors.Join(err, dumpTable(t.Maps.Networks, func(k uint32, v bpf.EbpnetNetwork) {
		if v != (bpf.EbpnetNetwork{}) {
			note("networks", k, v)
		}
	}))
	err = errors.Join(err, dumpTable(t.Maps.Tunnels, func(k uint32, v bpf.EbpnetTunnel) {
		if v != (bpf.EbpnetTunnel{}) {
			note("tunnels", k, v)
		}
	}))
	if err != nil {
		tb.Fatal(err)
	}
	slices.Sort(lines)
	return lines
}

func dumpTable[K, V any](m *ebpf.Map, f func(K, V)) error {
	var key K
	var value V
	entries := m.Iterate()
	for entries.Next(&key, &value) {
		f(key, value)
	}
	return entries.Err()
}

func dumpBuckets[K, V comparable, B any](b buckets[K, V, B], f func(K, V)) error {
	all, err := b.entries()
	for key, value := range all {
		f(key, value)
	}
	return err
}

// theTrunk is an endpoint of example that is a trunk.
var theTrunk = Endpoint{ID: 7, Network: openNet, MAC: mac{2, 5: 7}, Ifindex: 300, Trunk: true}

// otherTunnel is a tunnel of example over IPv6.
const otherTunnel = 2

// example has at least one of every noun.
func example() Wanted {
	w := &world{ifindex: map[string]uint32{"up0": 100}}
	for i, e := range locals() {
		w.ifindex[e.device] = uint32(200 + i)
	}
	wanted := w.population()
	wanted.Endpoints = append(wanted.Endpoints, theTrunk)
	wanted.Tunnels = append(wanted.Tunnels, Tunnel{
		ID: otherTunnel, Local: uplink.ip6, Remote: peer.ip6, TTL: tunnelTTL,
		Checksums: true, Sequence: true, Fragmentable: true, CopyDSCP: true,
	})
	wanted.TunnelNetworks = append(
		wanted.TunnelNetworks,
		TunnelNetwork{Tunnel: otherTunnel, Network: openNet, Key: key(openKey)},
		TunnelNetwork{Tunnel: otherTunnel, Network: internalNet},
		TunnelNetwork{Tunnel: theTunnel, Network: plainNet},
	)
	return wanted
}

func TestReplaceIsExact(t *testing.T) {
	t.Parallel()
	tables := emptyTables(t)
	nothing := tables.dump(t)
	if len(nothing) != 0 {
		t.Fatalf("new tables hold %s, want nothing", nothing)
	}
	wanted := example()
	less := wanted
	less.Endpoints, less.Links, less.Tunnels = wanted.Endpoints[1:4], wanted.Links[1:], wanted.Tunnels[1:]
	less.TunnelNetworks = wanted.TunnelNetworks[len(wanted.TunnelNetworks)-2 : len(wanted.TunnelNetworks)-1]
	less.Networks = slices.Clone(wanted.Networks[:3])
	less.Networks[1].ICC = true
	less.Networks[0].Key = nil
	dumps := map[string][]string{}
	for _, step := range []struct {
		name   string
		wanted Wanted
	}{{"all", wanted}, {"all", wanted}, {"less", less}, {"all", wanted}, {"less", less}, {"nothing", Wanted{}}} {
		if err := tables.Replace(step.wanted); err != nil {
			t.Fatal(err)
		}
		got := tables.dump(t)
		if before, ok := dumps[step.name]; ok {
			if diff := cmp.Diff(before, got); diff != "" {
				t.Errorf("%s again (-before +now):\n%s", step.name, diff)
			}
		}
		dumps[step.name] = got
		tables.checkDense(t)
	}
	if len(dumps["nothing"]) != 0 {
		t.Errorf("remaining entries: %s", dumps["nothing"])
	}
	if len(dumps["less"]) >= len(dumps["all"]) {
		t.Error("the removal of nouns removes no entry")
	}
}

// putAll writes the nouns one by one.
func (t *Tables) putAll(w Wanted) error {
	var err error
	for _, n := range w.Networks {
		err = errors.Join(err, t.PutNetwork(n))
	}
	for _, tunnel := range w.Tunnels {
		err = errors.Join(err, t.PutTunnel(tunnel))
	}
	for i := range max(len(w.Endpoints), len(w.TunnelNetworks)) {
		if i < len(w.Endpoints) {
			err = errors.Join(err, t.PutEndpoint(w.Endpoints[i]))
		}
		if i < len(w.TunnelNetworks) {
			err = errors.Join(err, t.PutTunnelNetwork(w.TunnelNetworks[i]))
		}
	}
	for _, l := range w.Links {
		err = errors.Join(err, t.PutLink(l))
	}
	return errors.Join(err, t.ReplaceUplinks(w.Uplinks))
}

func TestPutAndDeleteEqualReplace(t *testing.T) {
	t.Parallel()
	put, replaced := emptyTables(t), emptyTables(t)
	wanted := example()
	wanted.Tunnels = append(wanted.Tunnels, Tunnel{ID: 3, Local: uplink.ip4, Remote: netip.MustParseAddr("192.0.2.3")})
	same := func(what string, w Wanted) {
		t.Helper()
		if err := replaced.Replace(w); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(replaced.dump(t), put.dump(t)); diff != "" {
			t.Errorf("%s (-replaced +put):\n%s", what, diff)
		}
		put.checkDense(t)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(put.putAll(wanted))
	same("put", wanted)
	must(put.putAll(wanted))
	same("put twice", wanted)

	link := wanted.Links[0]
	must(put.DeleteLink(link))
	must(put.DeleteLink(link))
	wanted.Links = wanted.Links[1:]
	same("link deleted", wanted)
	must(put.DeleteTunnel(wanted.Tunnels[2], true))
	wanted.Tunnels = wanted.Tunnels[:2]
	same("one of two tunnels of an address deleted", wanted)
	for len(wanted.TunnelNetworks) > 1 {
		must(put.DeleteTunnelNetwork(wanted.TunnelNetworks[0]))
		must(put.DeleteTunnelNetwork(wanted.TunnelNetworks[0]))
		wanted.TunnelNetworks = wanted.TunnelNetworks[1:]
		same("a tunnel stops carrying a network", wanted)
	}

	wanted.Networks[closedNet-1].ICC = true
	must(put.PutNetwork(wanted.Networks[closedNet-1]))
	same("ICC switched on", wanted)

	trunk := &wanted.Endpoints[len(wanted.Endpoints)-1]
	for _, on := range []bool{false, true} {
		trunk.Trunk = on
		must(put.PutEndpoint(*trunk))
		same(fmt.Sprintf("trunk: %t", on), wanted)
	}

	must(put.DeleteLink(wanted.Links[0]))
	must(put.DeleteLink(wanted.Links[1]))
	wanted.Links = nil
	for len(wanted.Endpoints) > 0 {
		e := wanted.Endpoints[0]
		must(put.DeleteEndpoint(e))
		must(put.DeleteEndpoint(e))
		wanted.Endpoints = wanted.Endpoints[1:]
		same("endpoint deleted", wanted)
	}
	must(put.DeleteTunnelNetwork(wanted.TunnelNetworks[0]))
	wanted.TunnelNetworks = nil
	for _, tunnel := range wanted.Tunnels {
		must(put.DeleteTunnel(tunnel, false))
	}
	wanted.Tunnels = nil
	for len(wanted.Networks) > 0 {
		must(put.DeleteNetwork(wanted.Networks[0]))
		wanted.Networks = wanted.Networks[1:]
		same("network deleted", wanted)
	}
	must(put.ReplaceUplinks(nil))
	same("nothing", Wanted{})
}

// TestLimits compares the limits of the nouns with the sizes of the tables.
func TestLimits(t *testing.T) {
	t.Parallel()
	collection, err := bpf.LoadEbpnet()
	if err != nil {
		t.Fatal(err)
	}
	size := func(name string) int { return int(collection.Maps[name].MaxEntries) }
	// Id 0 is not used.
	if got, want := spec.MaxNetworks, size(bpf.EbpnetMapNetworks)-1; got != want {
		t.Errorf("spec.MaxNetworks is %d, the table has room for %d", got, want)
	}
	for _, pair := range [][2]string{
		{bpf.EbpnetMapNetworks, bpf.EbpnetMapPastTraffic},
		{bpf.EbpnetMapTunnels, bpf.EbpnetMapTunnelStats},
		{bpf.EbpnetMapTunnels, bpf.EbpnetMapTunnelPaths},
		{bpf.EbpnetMapDevices, bpf.EbpnetMapEndpointStats},
	} {
		if of, room := pair[0], pair[1]; size(of) > size(room) {
			t.Errorf("%s has room for %d entries, but %s only for %d", of, size(of), room, size(room))
		}
	}
	if size(bpf.EbpnetMapMembers) != size(bpf.EbpnetMapDevices)+size(bpf.EbpnetMapCarried) {
		t.Error("the size of members is not the sum of devices and carried")
	}
	if size(bpf.EbpnetMapFlowIndex) != 4*size(bpf.EbpnetMapFlows) {
		t.Error("the index has no room for two entries per flow and two per mapping")
	}
	if firstRemote != size(bpf.EbpnetMapEndpointStats) {
		t.Errorf("remote endpoints have ids from %d on, but %d ids have counters", firstRemote, size(bpf.EbpnetMapEndpointStats))
	}
}

func TestFullTableReturnsErrFull(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	tables := loadChanged(func(spec *ebpf.CollectionSpec) error {
		spec.Maps[bpf.EbpnetMapLinks].MaxEntries = 2
		return nil
	})(t, loader.Config{})
	link := Link{Client: 1, Server: 2, Protocol: protocolTCP, First: 1, Last: 3}
	err := tables.PutLink(link)
	if !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), "links") || !strings.Contains(err.Error(), "2 entries") {
		t.Errorf("got %v, want ErrFull with the table's name and size", err)
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("more than one line: %q", err)
	}
	if err := tables.DeleteLink(link); err != nil {
		t.Fatal(err)
	}
	link.Last = 2
	if err := tables.PutLink(link); err != nil {
		t.Errorf("a link that fits: %v", err)
	}
}
