package datapath

import (
	"reflect"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/ebpnet/ebpnet/bpf"
	"github.com/ebpnet/ebpnet/internal/testutil"
)

// newCountedXDP makes a world in which the XDP program counts its calls on maps.
func newCountedXDP(t testing.TB) *countedWorld {
	t.Helper()
	c := &countedWorld{world: newWorld(t, loadPinned), tables: map[string]ebpf.MapType{}}
	spec, err := bpf.LoadXdp()
	must(t, err)
	shared := map[string]*ebpf.Map{}
	loaded := reflect.ValueOf(c.Maps)
	for i := range loaded.NumField() {
		name := loaded.Type().Field(i).Tag.Get("ebpf")
		if table := spec.Maps[name]; table != nil {
			c.tables[name], shared[name] = table.Type, loaded.Field(i).Interface().(*ebpf.Map)
		}
	}
	c.sites, c.counts, err = countCalls(spec)
	must(t, err)
	collection, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: shared})
	must(t, err)
	t.Cleanup(func() {
		collection.Close()
		if err := c.counts.Close(); err != nil {
			t.Error(err)
		}
	})
	c.XDP = collection.Programs[bpf.XdpProgXdpUplink]
	return c
}

// TestLookupsOfXDP does for the XDP program what TestLookups does for the others.
func TestLookupsOfXDP(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	c := newCountedXDP(t)
	withXDP(&c.wanted)
	remember(t, c.world)
	for _, v6 := range []bool{false, true} {
		outer := arriving(false, key(openKey))
		inner := between(remote, alice, v6, udp(1, 2))
		forged, strange, unknown, flow := inner, outer, outer, incoming(v6, udp(53, 40000))
		forged.from, strange.key, unknown.src = bob.mac, key(strangeKey), website.ip4
		c.send(t, sentBy(t, alice, v6, udp(40000, 53)))
		for _, path := range []struct {
			name    string
			frame   []byte
			verdict int
			calls   calls
		}{
			{"unknown tunnel", unknown.around(t, inner.frame(t)), xdpDrop, calls{array: "drops scratches tunnel_buckets*2 uplink_buckets"}},
			{"unknown key", strange.around(t, inner.frame(t)), xdpDrop, calls{hash: "carried", array: "drops scratches tunnel_buckets uplink_buckets"}},
			{"forged sender", outer.around(t, forged.frame(t)), xdpDrop, calls{
				hash: "carried fdb neighbors", array: "drops networks scratches*2 tunnel_buckets tunnel_stats uplink_buckets",
			}},
			{"out of a tunnel", outer.around(t, inner.frame(t)), xdpRedirect, calls{
				hash: "carried fdb neighbors", array: "endpoint_stats networks scratches*3 tunnel_buckets tunnel_stats uplink_buckets",
			}},
			{"UDP of a flow", flow.frame(t), xdpRedirect, calls{
				hash: "flow_index neighbors", array: "endpoint_stats flows networks published_ports scratches*3 uplink_buckets",
			}},
			{"TCP to the host", incoming(v6, tcp(1, 2, "S")).frame(t), xdpPass, calls{array: "published_ports scratches uplink_buckets"}},
			{"malformed", incoming(v6, udp(1, 2)).frame(t)[:atIP+19], xdpDrop, calls{array: "drops scratches uplink_buckets"}},
		} {
			// A flow is established by its first packet.
			o, err := c.tryXDP(path.frame)
			must(t, err)
			passed := c.during(t, bpf.XdpProgXdpUplink, func() { o, err = c.tryXDP(path.frame) })
			must(t, err)
			if o.verdict != path.verdict {
				t.Errorf("IPv6 %t, %s: verdict %d, want %d", v6, path.name, o.verdict, path.verdict)
			}
			if got := c.calls(passed); got != path.calls {
				t.Errorf("IPv6 %t, %s calls %v, want %v", v6, path.name, got, path.calls)
			}
		}
	}
}
