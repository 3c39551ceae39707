package datapath

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/bpf"
)

// Port is a published port of the host, or a range of ports, at addresses of
// one family. A publication for both families is two Ports with the same ID.
// Put and delete them together.
type Port struct {
	ID          uint32     // of the publication
	Address     netip.Addr // of the host; unspecified: all of its family; Target: routed to it without translation
	Protocol    uint8      // IANA number: TCP, UDP or SCTP
	First, Last uint16
	Target      netip.Addr // address of a local endpoint, of the same family
	TargetFirst uint16     // target port of First; the others follow
	Network     uint32     // of the target
	Endpoint    uint32     // the target's endpoint; 0: unknown
	AllowFrom   []netip.Prefix
	MaxFlows    uint32 // established flows from outside; 0: the default
	// The routes of the target's namespace, with a default route. Empty if all
	// routes lead through the target's interface.
	Routes []PortRoute
}

// PortRoute says whether packets to a prefix leave the target's namespace
// through another interface than the target's.
type PortRoute struct {
	Prefix    netip.Prefix
	Elsewhere bool
}

const portRoutesID = uint32(bpf.EbpnetPortSourceIdPORT_ROUTES_ID)

// The layout of published_ports.
const (
	publishedTCP   = uint32(bpf.EbpnetPublishedPUBLISHED_TCP)
	publishedUDP   = uint32(bpf.EbpnetPublishedPUBLISHED_UDP)
	publishedSCTP  = uint32(bpf.EbpnetPublishedPUBLISHED_SCTP)
	portsPerWord   = uint32(bpf.EbpnetPublishedPORTS_A_WORD)
	publishedWords = uint32(bpf.EbpnetPublishedPUBLISHED_WORDS)
)

// published are the entries of the tables for published ports.
type published struct {
	ports   map[bpf.EbpnetPortKey]bpf.EbpnetPort
	sources map[bpf.EbpnetPortSourceKey]uint32
	words   map[uint32]uint64 // one bit per port
	limits  limitEntries
}

func publish(ports []Port) published {
	entries := published{
		map[bpf.EbpnetPortKey]bpf.EbpnetPort{},
		map[bpf.EbpnetPortSourceKey]uint32{},
		map[uint32]uint64{},
		limitEntries{},
	}
	for _, p := range ports {
		p.addTo(entries)
	}
	return entries
}

func (p Port) addTo(entries published) {
	entries.limits.add(ownerPorts+p.ID, p.limits())
	to := bpf.EbpnetPort{Address: addressOf(p.Target), Network: p.Network, Endpoint: p.Endpoint, Id: p.ID}
	if len(p.AllowFrom) > 0 {
		to.Flags |= bpf.EbpnetPortFlagPORT_RESTRICTED
	}
	if p.Address == p.Target {
		to.Flags |= bpf.EbpnetPortFlagPORT_ROUTED
	}
	for _, r := range p.Routes {
		if r.Prefix.Addr().Is4() != p.Target.Is4() {
			continue
		}
		to.Flags |= bpf.EbpnetPortFlagPORT_ROUTES
		elsewhere := uint32(0)
		if r.Elsewhere {
			elsewhere = 1
		}
		entries.sources[p.routeKey(r.Prefix)] = elsewhere
	}
	for n := range int(p.Last) - int(p.First) + 1 {
		key := bpf.EbpnetPortKey{
			Address:  addressOf(p.Address),
			Port:     networkOrder16(p.First + uint16(n)),
			Protocol: p.Protocol,
		}
		to.Port = networkOrder16(p.TargetFirst + uint16(n))
		entries.ports[key] = to
		entries.mark(key)
	}
	for _, source := range p.AllowFrom {
		for _, prefix := range mappedPrefixes(source) {
			entries.sources[p.sourceKey(prefix)] = 1
		}
	}
}

// mark sets the bit of a port.
func (e published) mark(key bpf.EbpnetPortKey) {
	row := publishedTCP
	switch key.Protocol {
	case unix.IPPROTO_UDP:
		row = publishedUDP
	case unix.IPPROTO_SCTP:
		row = publishedSCTP
	}
	port := uint32(networkOrder16(key.Port))
	e.words[row*publishedWords+port/portsPerWord] |= 1 << (port % portsPerWord)
}

func (p Port) sourceKey(prefix netip.Prefix) bpf.EbpnetPortSourceKey {
	const idBits = 32
	return bpf.EbpnetPortSourceKey{
		Length: idBits + uint32(prefix.Bits()),
		Id:     p.ID,
		Prefix: addressOf(prefix.Addr()),
	}
}

// routeKey gives the key of a route. IPv4 addresses match the default route of
// IPv6, but IPv4 has its own default route.
func (p Port) routeKey(prefix netip.Prefix) bpf.EbpnetPortSourceKey {
	if prefix.Addr().Is4() {
		prefix = netip.PrefixFrom(netip.AddrFrom16(prefix.Addr().As16()), mappedBits+prefix.Bits())
	}
	key := p.sourceKey(prefix)
	key.Id |= portRoutesID
	return key
}

// mappedBits is the number of bits in front of the IPv4 address in a mapped
// address.
const mappedBits = 96

// mappedPrefixes gives a prefix as the tables hold it, in 16-byte addresses.
// The result is one prefix, except for a short IPv6 prefix that contains the
// mapped IPv4 addresses. Such a prefix is split so that its parts exclude them.
func mappedPrefixes(p netip.Prefix) []netip.Prefix {
	if p.Addr().Is4() {
		return []netip.Prefix{netip.PrefixFrom(netip.AddrFrom16(p.Addr().As16()), mappedBits+p.Bits())}
	}
	mapped := netip.AddrFrom16(netip.IPv4Unspecified().As16())
	if !p.Contains(mapped) {
		return []netip.Prefix{p}
	}
	var around []netip.Prefix
	for bit := p.Bits(); bit < mappedBits; bit++ {
		sibling := mapped.As16()
		sibling[bit/8] ^= 0x80 >> (bit % 8)
		around = append(around, netip.PrefixFrom(netip.AddrFrom16(sibling), bit+1).Masked())
	}
	return around
}

// PutPorts publishes ports. If it fails, delete the ports: some may be
// published.
func (t *Tables) PutPorts(ports []Port) error { return t.putPublished(publish(ports)) }

// putPublished writes restrictions before permissions.
func (t *Tables) putPublished(entries published) error {
	if err := putAll(t.Maps.Limits, entries.limits); err != nil {
		return err
	}
	if err := putAll(t.Maps.PortSources, entries.sources); err != nil {
		return err
	}
	if err := putAll(t.Maps.Ports, entries.ports); err != nil {
		return err
	}
	return t.changeWords(entries.words, func(word, bits uint64) uint64 { return word | bits })
}

// DeletePorts removes published ports and their flows.
func (t *Tables) DeletePorts(ports []Port) error {
	gone := publish(ports)
	// The same port can be published by another publication at another address.
	kept := publish(nil)
	err := eachBatch(t.Maps.Ports, func(keys []bpf.EbpnetPortKey, _ []bpf.EbpnetPort) {
		for _, key := range keys {
			if _, going := gone.ports[key]; !going {
				kept.mark(key)
			}
		}
	})
	if err != nil {
		return fmt.Errorf("list published ports: %w", err)
	}
	for index := range gone.words {
		gone.words[index] &^= kept.words[index]
	}
	if err := t.changeWords(gone.words, func(word, bits uint64) uint64 { return word &^ bits }); err != nil {
		return err
	}
	if err := removeAll(t.Maps.Ports, slices.Collect(maps.Keys(gone.ports))); err != nil {
		return err
	}
	if err := removeAll(t.Maps.PortSources, slices.Collect(maps.Keys(gone.sources))); err != nil {
		return err
	}
	if err := removeAll(t.Maps.Limits, slices.Collect(maps.Keys(gone.limits))); err != nil {
		return err
	}
	targets := map[uint32]bool{}
	for _, p := range ports {
		targets[p.Endpoint] = true
	}
	return t.endUnbackedFlowsOf(slices.Collect(maps.Keys(targets))...)
}

// MovePorts replaces ports by ports with the same keys whose targets'
// namespaces have other routes.
func (t *Tables) MovePorts(from, to []Port) error {
	before, now := publish(from), publish(to)
	if err := t.putPublished(now); err != nil {
		return err
	}
	maps.DeleteFunc(before.sources, func(key bpf.EbpnetPortSourceKey, _ uint32) bool {
		_, stays := now.sources[key]
		return stays
	})
	return removeAll(t.Maps.PortSources, slices.Collect(maps.Keys(before.sources)))
}

// HasPorts reports whether any port is published.
func (t *Tables) HasPorts() (bool, error) {
	var key bpf.EbpnetPortKey
	err := t.Maps.Ports.NextKey(nil, &key)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for published ports: %w", err)
	}
	return true, nil
}

// withdraw removes every entry that differs from the wanted one, and returns
// the wanted entries that are then missing. It does not clear bits: a bit
// without a port is harmless.
func (t *Tables) withdraw(wanted published) (missing published, err error) {
	var err2 error
	missing.ports, err = removeOthers(t.Maps.Ports, wanted.ports)
	missing.sources, err2 = removeOthers(t.Maps.PortSources, wanted.sources)
	return missing, errors.Join(err, err2)
}

// changeWords changes the words of published_ports for the given bits.
func (t *Tables) changeWords(words map[uint32]uint64, change func(word, bits uint64) uint64) error {
	for index, bits := range words {
		var word uint64
		if err := t.Maps.PublishedPorts.Lookup(index, &word); err != nil {
			return fmt.Errorf("read %v: %w", t.Maps.PublishedPorts, err)
		}
		if err := put(t.Maps.PublishedPorts, index, change(word, bits)); err != nil {
			return err
		}
	}
	return nil
}

// removeOthers removes the entries that differ from the wanted ones, and
// returns the wanted entries that are then missing.
func removeOthers[K, V comparable](m *ebpf.Map, wanted map[K]V) (missing map[K]V, err error) {
	var gone []K
	missing = maps.Clone(wanted)
	err = eachBatch(m, func(keys []K, values []V) {
		for i, key := range keys {
			if want, ok := wanted[key]; ok && want == values[i] {
				delete(missing, key)
			} else {
				gone = append(gone, key)
			}
		}
	})
	if err != nil {
		return missing, fmt.Errorf("read %v: %w", m, err)
	}
	return missing, removeAll(m, gone)
}

// putAll writes many entries in one call, if the kernel supports that.
func putAll[K comparable, V any](m *ebpf.Map, entries map[K]V) error {
	if len(entries) == 0 {
		return nil
	}
	keys, values := make([]K, 0, len(entries)), make([]V, 0, len(entries))
	for key, value := range entries {
		keys, values = append(keys, key), append(values, value)
	}
	_, err := m.BatchUpdate(keys, values, nil)
	if errors.Is(err, ebpf.ErrNotSupported) {
		err = nil
		for i := 0; i < len(keys) && err == nil; i++ {
			err = m.Put(keys[i], values[i])
		}
	}
	if errors.Is(err, errTooMany) || errors.Is(err, unix.ENOSPC) { // the error of an LPM trie
		err = fmt.Errorf("%w at %d entries", ErrFull, m.MaxEntries())
	}
	if err != nil {
		return fmt.Errorf("write %v: %w", m, err)
	}
	return nil
}

// removeAll deletes keys. It is no error if a key does not exist.
func removeAll[K any](m *ebpf.Map, keys []K) error {
	if len(keys) == 0 {
		return nil
	}
	if _, err := m.BatchDelete(keys, nil); err == nil {
		return nil
	}
	// A key does not exist, or the kernel has no batch operation.
	for _, key := range keys {
		if err := remove(m, key); err != nil {
			return err
		}
	}
	return nil
}
