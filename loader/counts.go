package loader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/ebpnet/ebpnet/bpf"
)

// countTables numbers the tables of counts.
func countTables() map[string]bpf.EbpnetCountTable {
	return map[string]bpf.EbpnetCountTable{
		bpf.EbpnetMapDrops:         bpf.EbpnetCountTableCOUNT_DROPS,
		bpf.EbpnetMapEndpointStats: bpf.EbpnetCountTableCOUNT_ENDPOINTS,
		bpf.EbpnetMapTunnelStats:   bpf.EbpnetCountTableCOUNT_TUNNELS,
		bpf.EbpnetMapRefusals:      bpf.EbpnetCountTableCOUNT_REFUSALS,
		bpf.EbpnetMapFloodBudgets:  bpf.EbpnetCountTableCOUNT_FLOODS,
	}
}

// isCount reports whether a number in a table of counts is a count. The time of
// a flood budget is none.
func isCount(l leaf) bool { return l.name != "due" }

// makeCopied makes and pins a table of the sums with which a new table of
// counts begins.
func (u *upgrade) makeCopied(p pinnedTable) (*ebpf.Map, error) {
	id, err := mapID(p.table)
	if err != nil {
		return nil, err
	}
	spec := &ebpf.MapSpec{
		Name: copiedTable, Type: ebpf.Array, KeySize: p.layout.key.size, ValueSize: p.layout.value.size,
		MaxEntries: p.layout.entries, Key: p.layout.types[0], Value: p.layout.types[1],
	}
	describeKey(spec)
	copied, err := ebpf.NewMap(spec)
	if err != nil {
		return nil, err
	}
	if err := copied.Pin(filepath.Join(oldPath(u.dir, id), copiedTable)); err != nil {
		return nil, errors.Join(err, copied.Close())
	}
	return copied, nil
}

// sum adds up the values of an entry.
func (m mapLayout) sum(value []byte) []byte {
	sum := make([]byte, m.value.size)
	for _, one := range m.perCPU(value) {
		for _, l := range m.value.leaves {
			l.write(sum, l.read(sum)+l.read(one))
		}
	}
	return sum
}

// addCounts adds what the old programs have counted since the first copy.
func (o *Objects) addCounts(t *oldTable, number bpf.EbpnetCountTable) error {
	c, err := newTableCopy(t.layout, o.spec.Maps[t.name], nil)
	if err != nil {
		return err
	}
	return eachEntry(t.table, func(key, value []byte) error {
		total := t.layout.sum(value)
		copied, err := t.copied.LookupBytes(key)
		if err != nil || slices.Equal(total, copied) {
			return err
		}
		counted, whole := c.key.convert(key)
		if !whole {
			return nil
		}
		command := bpf.EbpnetCountCommand{Table: number, Key: binary.NativeEndian.Uint32(counted)}
		now, _ := c.value.convert(total)
		then, _ := c.value.convert(copied)
		for _, l := range c.layout.value.leaves {
			if isCount(l) {
				command.Words[l.offset/8] = l.read(now) - l.read(then)
			}
		}
		data, err := binary.Append(make([]byte, shortestFrame), binary.NativeEndian, command)
		if err != nil {
			return err
		}
		status, err := o.Programs.AddCounts.Run(&ebpf.RunOptions{Data: data})
		if err == nil && status != 0 {
			err = fmt.Errorf("the program gives %d", status)
		}
		if err != nil {
			return err
		}
		return t.copied.Put(key, total)
	})
}
