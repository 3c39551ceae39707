package datapath

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/bpf"
	"github.com/ebpnet/ebpnet/internal/testutil"
	"github.com/ebpnet/ebpnet/loader"
)

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// examplePorts are a port at two addresses, a range for both families, and
// ports with allowed sources.
func examplePorts() []Port {
	any4, any6 := netip.IPv4Unspecified(), netip.IPv6Unspecified()
	return []Port{
		{ID: 1, Address: netip.MustParseAddr("127.0.0.1"), Protocol: unix.IPPROTO_TCP, First: 80, Last: 80, Target: alice.ip4, TargetFirst: 8080, Network: openNet, Endpoint: alice.id},
		{ID: 2, Address: uplink.ip4, Protocol: unix.IPPROTO_TCP, First: 80, Last: 81, Target: bob.ip4, TargetFirst: 80, Network: openNet, Endpoint: bob.id, AllowFrom: prefixes("0.0.0.0/0")},
		{ID: 3, Address: any4, Protocol: unix.IPPROTO_UDP, First: 60, Last: 130, Target: bob.ip4, TargetFirst: 1, Network: openNet, Endpoint: bob.id, AllowFrom: prefixes("198.51.100.0/24", "::/0")},
		{ID: 3, Address: any6, Protocol: unix.IPPROTO_UDP, First: 60, Last: 130, Target: bob.ip6, TargetFirst: 1, Network: openNet, Endpoint: bob.id, AllowFrom: prefixes("198.51.100.0/24", "::/0")},
		{ID: 4, Address: any6, Protocol: unix.IPPROTO_SCTP, First: 65535, Last: 65535, Target: plain.ip6, TargetFirst: 65535, Network: plainNet, Endpoint: plain.id},
	}
}

// dumpPorts lists the table entries for ports as text.
func (t *Tables) dumpPorts(tb testing.TB) []string {
	tb.Helper()
	var lines []string
	err := dumpTable(t.Maps.Ports, func(k bpf.EbpnetPortKey, v bpf.EbpnetPort) {
		lines = append(lines, fmt.Sprintf("port %v %d/%d -> %v %d on %d, %d, flags %d", addrOrUnspecified(k.Address), networkOrder16(k.Port), k.Protocol,
			addrOf(v.Address), networkOrder16(v.Port), v.Network, v.Id, v.Flags))
	})
	err = errors.Join(err, dumpTable(t.Maps.PortSources, func(k bpf.EbpnetPortSourceKey, v uint32) {
		lines = append(lines, fmt.Sprintf("source %d %v/%d = %d", k.Id, addrOrUnspecified(k.Prefix), k.Length, v))
	}))
	err = errors.Join(err, dumpTable(t.Maps.PublishedPorts, func(k uint32, v uint64) {
		if v != 0 {
			lines = append(lines, fmt.Sprintf("word %d = %064b", k, v))
		}
	}))
	if err != nil {
		tb.Fatal(err)
	}
	slices.Sort(lines)
	return lines
}

func addrOrUnspecified(a bpf.EbpnetAddress) netip.Addr {
	if found := addrOf(a); found.IsValid() {
		return found
	}
	return netip.IPv6Unspecified()
}

// bit reports whether published_ports has the bit of a port.
func (t *Tables) bit(tb testing.TB, row, port uint32) bool {
	tb.Helper()
	var word uint64
	if err := t.Maps.PublishedPorts.Lookup(row*publishedWords+port/portsPerWord, &word); err != nil {
		tb.Fatal(err)
	}
	return word>>(port%portsPerWord)&1 != 0
}

// allows looks up a source as the datapath does.
func (t *Tables) allows(tb testing.TB, id uint32, source string) bool {
	tb.Helper()
	var value uint32
	key := Port{ID: id}.sourceKey(netip.PrefixFrom(netip.AddrFrom16(netip.MustParseAddr(source).As16()), 128))
	err := t.Maps.PortSources.Lookup(key, &value)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		tb.Fatal(err)
	}
	return err == nil
}

func TestPortTables(t *testing.T) {
	t.Parallel()
	tables := emptyTables(t)
	ports := examplePorts()
	if err := tables.PutPorts(ports); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"port 127.0.0.1 80/6 -> 172.30.1.11 8080 on 1, 1, flags 0",
		"port 192.0.2.1 81/6 -> 172.30.1.12 81 on 1, 2, flags 1",
		"port 0.0.0.0 130/17 -> 172.30.1.12 71 on 1, 3, flags 1",
		"port :: 60/17 -> fd00:30:1::c 1 on 1, 3, flags 1",
		"port :: 65535/132 -> fd00:30:4::10 65535 on 4, 4, flags 0",
		"source 2 0.0.0.0/128 = 1",
		"source 3 198.51.100.0/152 = 1",
	} {
		if dump := tables.dumpPorts(t); !slices.Contains(dump, want) {
			t.Errorf("%q is missing in\n%s", want, strings.Join(dump, "\n"))
		}
	}
	for row, published := range [][]uint32{publishedTCP: {80, 81}, publishedUDP: {60, 63, 64, 80, 81, 82, 127, 128, 130}, publishedSCTP: {65535}} {
		for _, port := range []uint32{0, 59, 60, 63, 64, 80, 81, 82, 127, 128, 130, 131, 65535} {
			if want := slices.Contains(published, port); tables.bit(t, uint32(row), port) != want {
				t.Errorf("bit of port %d in row %d: want %v", port, row, want)
			}
		}
	}
	for source, want := range map[string]bool{
		"198.51.100.7": true, "198.51.101.7": false, "10.0.0.1": false, "255.255.255.255": false, "0.0.0.0": false, // ::/0 contains no IPv4 address
		"2001:db8::1": true, "::1": true, "::": true, "ffff::": true, "::fffe:ffff:ffff": true, "::1:0:0:0": true,
	} {
		if tables.allows(t, 3, source) != want {
			t.Errorf("%s: want %v", source, want)
		}
	}
	if tables.allows(t, 2, "2001:db8::1") || !tables.allows(t, 2, "10.0.0.1") || tables.allows(t, 1, "10.0.0.1") {
		t.Error("sources of one publication apply to another one, or to the other family")
	}

	// The bit stays while the port is published at any address.
	if err := tables.DeletePorts(ports[:1]); err != nil {
		t.Fatal(err)
	}
	if !tables.bit(t, publishedTCP, 80) {
		t.Error("the bit was cleared although the port is still published at another address")
	}
	if err := tables.DeletePorts(ports[1:2]); err != nil {
		t.Fatal(err)
	}
	if tables.bit(t, publishedTCP, 80) || tables.bit(t, publishedTCP, 81) || !tables.bit(t, publishedUDP, 80) {
		t.Error("the bits do not match the published ports")
	}
	if has, err := tables.HasPorts(); err != nil || !has {
		t.Errorf("has ports: %v, %v", has, err)
	}
	for range 2 { // a second deletion is no error
		if err := tables.DeletePorts(ports); err != nil {
			t.Fatal(err)
		}
	}
	if dump := tables.dumpPorts(t); len(dump) != 0 {
		t.Errorf("remaining entries: %s", dump)
	}
	if has, err := tables.HasPorts(); err != nil || has {
		t.Errorf("has ports: %v, %v", has, err)
	}
}

func TestReplacedPortsAreExact(t *testing.T) {
	t.Parallel()
	put, replaced := emptyTables(t), emptyTables(t)
	all := examplePorts()
	changed := slices.Clone(all)
	changed[1].AllowFrom = prefixes("192.0.2.128/25") // the id is the same
	changed[2].Target, changed[2].TargetFirst = alice.ip4, 2
	changed[4].ID, changed[0].AllowFrom = 1, prefixes("::1/128")
	changed[0].ID = 4
	var before []Port
	for i, ports := range [][]Port{all, all, all[1:3], changed, nil, changed, all[:1], all} {
		err := errors.Join(put.DeletePorts(before), put.PutPorts(ports), replaced.Replace(Wanted{Ports: ports}))
		if err != nil {
			t.Fatal(err)
		}
		before = ports
		if diff := cmp.Diff(put.dumpPorts(t), replaced.dumpPorts(t)); diff != "" {
			t.Errorf("step %d (-put +replaced):\n%s", i, diff)
		}
	}
}

// TestMappedPrefixes checks that a prefix and its parts contain the same
// addresses, near the ends of each.
func TestMappedPrefixes(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	for _, p := range prefixes("::/0", "::/1", "8000::/1", "::/8", "::/64", "::/80", "::/81", "::fffe:0:0/95", "::/96", "::1/128", "2001:db8::/32", "fe80::/10") {
		parts := mappedPrefixes(p)
		var boundaries []netip.Addr
		for _, part := range append([]netip.Prefix{p, netip.MustParsePrefix("::/95")}, parts...) {
			first := part.Masked().Addr()
			boundaries = append(boundaries, first, first.Prev(), first.Next())
		}
		for range 1000 {
			a := p.Addr().As16()
			for i := random.IntN(len(a)); i < len(a); i++ {
				a[i] = byte(random.Uint32())
			}
			boundaries = append(boundaries, netip.AddrFrom16(a))
		}
		for _, a := range boundaries {
			if !a.IsValid() {
				continue
			}
			in := slices.ContainsFunc(parts, func(part netip.Prefix) bool { return part.Contains(a) })
			if want := p.Contains(a) && !a.Is4In6(); in != want {
				t.Fatalf("%s: address %s in parts %v: %v, want %v", p, a, parts, in, want)
			}
		}
	}
	for in, want := range map[string]int{"0.0.0.0/0": 96, "10.0.0.0/8": 104, "10.1.2.3/32": 128} {
		parts := mappedPrefixes(netip.MustParsePrefix(in))
		if len(parts) != 1 || parts[0].Bits() != want || parts[0].Addr().Unmap() != netip.MustParsePrefix(in).Addr() {
			t.Errorf("%s: %v, want /%d", in, parts, want)
		}
	}
}

func TestFullPortTablesReturnErrFull(t *testing.T) {
	t.Parallel()
	testutil.RequireRoot(t)
	tables := loadChanged(func(spec *ebpf.CollectionSpec) error {
		spec.Maps[bpf.EbpnetMapPorts].MaxEntries = 2
		spec.Maps[bpf.EbpnetMapPortSources].MaxEntries = 1
		return nil
	})(t, loader.Config{})
	p := Port{ID: 1, Address: uplink.ip4, Protocol: unix.IPPROTO_TCP, First: 80, Last: 82, Target: alice.ip4, TargetFirst: 80, Network: openNet, Endpoint: alice.id}
	restricted := p
	restricted.Last, restricted.AllowFrom = 80, prefixes("10.0.0.0/8", "11.0.0.0/8")
	for table, wanted := range map[string]struct {
		port Port
		room string
	}{"port_sources": {restricted, "1 entries"}, "ports": {p, "2 entries"}} {
		err := tables.PutPorts([]Port{wanted.port})
		if !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), table) || !strings.Contains(err.Error(), wanted.room) || strings.Contains(err.Error(), "\n") {
			t.Errorf("got %v, want ErrFull with the table's name and size", err)
		}
		if err := tables.DeletePorts([]Port{wanted.port}); err != nil {
			t.Fatal(err)
		}
	}
	p.Last, p.AllowFrom = 81, restricted.AllowFrom[:1]
	if err := tables.PutPorts([]Port{p}); err != nil {
		t.Errorf("ports that fit: %v", err)
	}
}

// TestRoutesOfPorts checks that the routes of a publication change with its
// endpoint's namespace and are deleted with the publication.
func TestRoutesOfPorts(t *testing.T) {
	t.Parallel()
	tables := emptyTables(t)
	p := Port{ID: 7, Address: netip.IPv4Unspecified(), Protocol: unix.IPPROTO_TCP, First: 80, Last: 80, Target: alice.ip4, TargetFirst: 80, Network: openNet, Endpoint: alice.id}
	routed := func(routes ...PortRoute) []Port { q := p; q.Routes = routes; return []Port{q} }
	everywhere, second := netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("10.2.0.0/24")
	here := routed(PortRoute{everywhere, false}, PortRoute{second, true}, PortRoute{netip.MustParsePrefix("::/0"), true})
	away := routed(PortRoute{everywhere, true})
	check := func(want ...string) {
		t.Helper()
		dump := slices.DeleteFunc(tables.dumpPorts(t), func(line string) bool { return strings.HasPrefix(line, "word ") })
		for i, line := range dump {
			dump[i] = strings.ReplaceAll(line, fmt.Sprintf("source %d", portRoutesID|p.ID), "route")
		}
		slices.Sort(dump)
		slices.Sort(want)
		if !slices.Equal(dump, want) {
			t.Errorf("the tables have\n%s\nwant\n%s", strings.Join(dump, "\n"), strings.Join(want, "\n"))
		}
	}
	port := "port 0.0.0.0 80/6 -> 172.30.1.11 80 on 1, 7, flags "
	if err := tables.PutPorts(here); err != nil {
		t.Fatal(err)
	}
	check(port+"4", "route 0.0.0.0/128 = 0", "route 10.2.0.0/152 = 1")
	for _, step := range []struct {
		from, to []Port
		want     []string
	}{
		{here, away, []string{port + "4", "route 0.0.0.0/128 = 1"}},
		{away, routed(), []string{port + "0"}},
		{routed(), here, []string{port + "4", "route 0.0.0.0/128 = 0", "route 10.2.0.0/152 = 1"}},
	} {
		if err := tables.MovePorts(step.from, step.to); err != nil {
			t.Fatal(err)
		}
		check(step.want...)
	}
	if err := tables.DeletePorts(here); err != nil {
		t.Fatal(err)
	}
	check()
}

func TestManyPortsAtOnce(t *testing.T) {
	t.Parallel()
	tables := emptyTables(t)
	p := Port{ID: 1, Address: netip.IPv4Unspecified(), Protocol: unix.IPPROTO_TCP, First: 1, Last: 65535, Target: alice.ip4, TargetFirst: 1, Network: openNet, Endpoint: alice.id}
	start := time.Now()
	if err := tables.PutPorts([]Port{p}); err != nil {
		t.Fatal(err)
	}
	took := time.Since(start)
	if n, err := countEntries[bpf.EbpnetPortKey, bpf.EbpnetPort](tables.Maps.Ports); err != nil || n != 65535 {
		t.Errorf("%d ports (%v)", n, err)
	}
	start = time.Now()
	if err := tables.DeletePorts([]Port{p}); err != nil {
		t.Fatal(err)
	}
	t.Logf("put of 65,535 ports took %v, deletion %v", took, time.Since(start))
	if dump := tables.dumpPorts(t); len(dump) != 0 {
		t.Errorf("%d remaining entries", len(dump))
	}
}
