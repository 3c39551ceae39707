package datapath

import (
	"fmt"
	"maps"
	"math/bits"

	"github.com/cilium/ebpf"

	"github.com/ebpnet/ebpnet/bpf"
)

// buckets is a hash table in an array of buckets. Programs read a bucket while
// the agent changes it: see struct tunnel_bucket in bpf/types_tables.h.
type buckets[K, V comparable, B any] struct {
	table *ebpf.Map
	index func(key K) uint32 // of the key's bucket
	used  func(b *B) *uint8  // a bit for each slot in use
	slot  func(b *B, i int) (*K, *V)
}

// bucketSlots is the number of slots of a bucket.
const bucketSlots = int(bpf.EbpnetBucketSizeBUCKET_SLOTS)

type (
	tunnelBuckets = buckets[bpf.EbpnetTunnelEnds, uint32, bpf.EbpnetTunnelBucket]
	uplinkBuckets = buckets[uint32, bpf.EbpnetUplink, bpf.EbpnetUplinkBucket]
)

// tunnelIDs are the ids of tunnels by their ends.
func (t *Tables) tunnelIDs() tunnelBuckets {
	shift := 64 - indexBits(t.Maps.TunnelBuckets)
	return tunnelBuckets{
		table: t.Maps.TunnelBuckets,
		index: func(ends bpf.EbpnetTunnelEnds) uint32 { return uint32(hashEnds(ends) >> shift) },
		used:  func(b *bpf.EbpnetTunnelBucket) *uint8 { return &b.Used },
		slot: func(b *bpf.EbpnetTunnelBucket, i int) (*bpf.EbpnetTunnelEnds, *uint32) {
			return &b.Slot[i].Ends, &b.Slot[i].Id
		},
	}
}

// uplinks are the uplinks by ifindex. Their index is that of uplink_find() of
// bpf/uplink_find.h.
func (t *Tables) uplinks() uplinkBuckets {
	const factor = uint32(bpf.EbpnetUplinkHashUPLINK_HASH_FACTOR)
	shift := 32 - indexBits(t.Maps.UplinkBuckets)
	return uplinkBuckets{
		table: t.Maps.UplinkBuckets,
		index: func(ifindex uint32) uint32 { return ifindex * factor >> shift },
		used:  func(b *bpf.EbpnetUplinkBucket) *uint8 { return &b.Used },
		slot: func(b *bpf.EbpnetUplinkBucket, i int) (*uint32, *bpf.EbpnetUplink) {
			return &b.Slot[i].Key, &b.Slot[i].Uplink
		},
	}
}

// indexBits is the number of bits of an index into an array. The size of the
// array is a power of two.
func indexBits(m *ebpf.Map) int { return bits.Len32(m.MaxEntries()) - 1 }

// hashEnds does what tunnel_bucket() of bpf/tunnel_find.h does before its shift.
func hashEnds(ends bpf.EbpnetTunnelEnds) (hash uint64) {
	const first = uint64(bpf.EbpnetTunnelHashTUNNEL_HASH_FACTOR)
	factor := first
	for i := range ends.Local.Word {
		for _, word := range []uint32{ends.Local.Word[i], ends.Remote.Word[i]} {
			hash += uint64(word) * factor
			factor *= first
		}
	}
	return hash
}

// entries reads the whole table.
func (t buckets[K, V, B]) entries() (map[K]V, error) {
	all := map[K]V{}
	err := eachBatch(t.table, func(_ []uint32, read []B) {
		for i := range read {
			for s := range bucketSlots {
				if *t.used(&read[i])&(1<<s) != 0 {
					key, value := t.slot(&read[i], s)
					all[*key] = *value
				}
			}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("read %v: %w", t.table, err)
	}
	return all, nil
}

// find reads the key's bucket and finds the key's slot: -1 if the key does not
// exist.
func (t buckets[K, V, B]) find(key K) (b B, slot int, err error) {
	if err := t.table.Lookup(t.index(key), &b); err != nil {
		return b, -1, fmt.Errorf("read %v: %w", t.table, err)
	}
	for i := range bucketSlots {
		if k, _ := t.slot(&b, i); *t.used(&b)&(1<<i) != 0 && *k == key {
			return b, i, nil
		}
	}
	return b, -1, nil
}

// put writes an entry into a free slot, and then sets the slot's bit in used. If
// the key exists with another value, the same write of used clears the old
// entry's bit. In a full bucket, a key that changes is not found for a moment.
func (t buckets[K, V, B]) put(key K, value V) error {
	b, old, err := t.find(key)
	if err != nil {
		return err
	}
	used := t.used(&b)
	var others uint8 = 0xff
	if old >= 0 {
		if _, v := t.slot(&b, old); *v == value {
			return nil
		}
		others = ^uint8(1 << old)
	}
	free := t.freeSlot(&b)
	if free == bucketSlots && old >= 0 {
		*used &= others
		if err := put(t.table, t.index(key), &b); err != nil {
			return err
		}
		free = old
	}
	if free == bucketSlots {
		return fmt.Errorf("write %v: %w: all %d slots for this key are in use", t.table, ErrFull, bucketSlots)
	}
	k, v := t.slot(&b, free)
	*k, *v = key, value
	if err := put(t.table, t.index(key), &b); err != nil {
		return err
	}
	*used = *used&others | 1<<free
	return put(t.table, t.index(key), &b)
}

// freeSlot finds a free slot; bucketSlots if there is none. It prefers a slot that
// was never used, because a program may still read a slot that was in use.
func (t buckets[K, V, B]) freeSlot(b *B) int {
	free := bucketSlots
	for i := range bucketSlots {
		if *t.used(b)&(1<<i) != 0 {
			continue
		}
		if k, v := t.slot(b, i); *k == *new(K) && *v == *new(V) {
			return i
		}
		free = min(free, i)
	}
	return free
}

// remove removes a key. It is no error if the key does not exist.
func (t buckets[K, V, B]) remove(key K) error {
	b, slot, err := t.find(key)
	if err != nil || slot < 0 {
		return err
	}
	*t.used(&b) &^= 1 << slot
	return put(t.table, t.index(key), &b)
}

// removeOthers removes the entries that differ from the wanted ones, and
// returns the wanted entries that are then missing.
func (t buckets[K, V, B]) removeOthers(wanted map[K]V) (missing map[K]V, err error) {
	missing = maps.Clone(wanted)
	there, err := t.entries()
	if err != nil {
		return missing, err
	}
	for key, value := range there {
		if want, ok := wanted[key]; ok && want == value {
			delete(missing, key)
		} else if err := t.remove(key); err != nil {
			return missing, err
		}
	}
	return missing, nil
}

func (t buckets[K, V, B]) putAll(entries map[K]V) error {
	for key, value := range entries {
		if err := t.put(key, value); err != nil {
			return err
		}
	}
	return nil
}

// replace makes the table hold exactly the wanted entries. It writes only
// differences. An entry whose value changes exists at every moment.
func (t buckets[K, V, B]) replace(wanted map[K]V) error {
	there, err := t.entries()
	if err != nil {
		return err
	}
	for key := range there {
		if _, ok := wanted[key]; ok {
			continue
		}
		if err := t.remove(key); err != nil {
			return err
		}
	}
	return t.putAll(wanted)
}

// count counts the entries. It ignores the map: the type is that of the other
// functions of Usage.
func (t buckets[K, V, B]) count(*ebpf.Map) (int, error) {
	all, err := t.entries()
	return len(all), err
}
