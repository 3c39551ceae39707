package datapath

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/ebpnet/ebpnet/bpf"
)

// checkDense fails unless the members of every network have the indexes from 0
// on without a gap, and the counts of members, trunks and tunnels are right.
func (t *Tables) checkDense(tb testing.TB) {
	tb.Helper()
	places, shared := map[uint32]map[uint32]bool{}, map[uint32]uint32{}
	err := dumpTable(t.Maps.Members, func(k bpf.EbpnetMemberKey, s bpf.EbpnetStation) {
		if places[k.Network] == nil {
			places[k.Network] = map[uint32]bool{}
		}
		places[k.Network][k.Index] = true
		if s.Trunk == 1 || s.Tunnel > 0 {
			shared[k.Network]++
		}
		if s.Network != k.Network {
			tb.Errorf("unexpected member %+v of network %d", s, k.Network)
		}
	})
	err = errors.Join(err, dumpTable(t.Maps.Networks, func(id uint32, n bpf.EbpnetNetwork) {
		if len(places[id]) != int(n.Members) {
			tb.Errorf("network %d counts %d members, but has %d", id, n.Members, len(places[id]))
		}
		if n.Shared != shared[id] {
			tb.Errorf("network %d counts %d trunks and tunnels, but has %d", id, n.Shared, shared[id])
		}
		for i := range n.Members {
			if !places[id][i] {
				tb.Errorf("network %d has no member %d", id, i)
			}
		}
	}))
	if err != nil {
		tb.Fatal(err)
	}
}

func TestMembersStayDense(t *testing.T) {
	t.Parallel()
	tables := emptyTables(t)
	for id := range uint32(2) {
		if err := tables.PutNetwork(Network{ID: id + 1, ICC: true}); err != nil {
			t.Fatal(err)
		}
	}
	// Members by number: endpoints first, every third one a trunk; then
	// tunnels.
	const endpoints, tunnels = 40, 20
	endpoint := func(n uint32) Endpoint {
		return Endpoint{
			ID: n, Network: 1 + n%2, MAC: mac{2, 5: byte(n)}, Ifindex: int(1000 + n),
			Addresses: []netip.Addr{address4(1+n%2, n)}, Trunk: n%3 == 0,
		}
	}
	tunnelNetwork := func(n uint32) TunnelNetwork {
		c := TunnelNetwork{Tunnel: 1 + (n-endpoints)/2, Network: 1 + n%2}
		if c.Network == 2 {
			c.Key = key(0) // key 0 differs from no key
		}
		return c
	}
	putMember := func(n uint32) error {
		if n < endpoints {
			return tables.PutEndpoint(endpoint(n))
		}
		return tables.PutTunnelNetwork(tunnelNetwork(n))
	}
	deleteMember := func(n uint32) error {
		if n < endpoints {
			return tables.DeleteEndpoint(endpoint(n))
		}
		return tables.DeleteTunnelNetwork(tunnelNetwork(n))
	}
	random := rand.New(rand.NewPCG(1, 2))
	in := map[uint32]bool{}
	for range 600 {
		n := 1 + random.Uint32N(endpoints+tunnels-1)
		change := putMember
		if in[n] {
			change = deleteMember
		}
		in[n] = !in[n]
		// The second call changes nothing.
		if err := errors.Join(change(n), change(n)); err != nil {
			t.Fatal(err)
		}
		tables.checkDense(t)
	}
	var want, got []bpf.EbpnetStation
	tunnelled := 0
	for n, there := range in {
		switch {
		case there && n < endpoints:
			want = append(want, endpoint(n).station())
		case there:
			want = append(want, tunnelNetwork(n).member())
			tunnelled++
		}
	}
	if err := dumpTable(tables.Maps.Members, func(_ bpf.EbpnetMemberKey, s bpf.EbpnetStation) { got = append(got, s) }); err != nil {
		t.Fatal(err)
	}
	if carries, err := countEntries[bpf.EbpnetTunnelNetworkKey, uint32](tables.Maps.Carried); err != nil || carries != tunnelled {
		t.Errorf("tunnels carry %d networks, %v, want %d", carries, err, tunnelled)
	}
	byPlace := cmpopts.SortSlices(func(a, b bpf.EbpnetStation) bool {
		return a.Endpoint < b.Endpoint || a.Endpoint == b.Endpoint && (a.Tunnel < b.Tunnel || a.Tunnel == b.Tunnel && a.Network < b.Network)
	})
	if diff := cmp.Diff(want, got, byPlace, cmpopts.IgnoreFields(bpf.EbpnetStation{}, "_")); diff != "" {
		t.Errorf("members (-want +got):\n%s", diff)
	}
}
