package store

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/ebpnet/ebpnet/internal/spec"
)

// entry is what a record has in an index: no other record may have that key.
type entry struct {
	bucket, key string
	owner       string
	what        string // for the message, if another owns it
}

func idEntries(kind Kind, id uint32, name string) []entry {
	if id == 0 { // not numbered
		return nil
	}
	return []entry{{idBucket, idKey(kind, id), name, fmt.Sprintf("%s id %d", kind, id)}}
}

func networkEntries(n spec.Network) []entry { return idEntries(KindNetwork, n.ID, n.Name) }

func tunnelEntries(t spec.Tunnel) []entry { return idEntries(KindTunnel, t.ID, t.Name) }

func endpointEntries(e spec.Endpoint) []entry {
	entries := append(idEntries(KindEndpoint, e.ID, e.Name), entry{bucket: memberBucket, key: e.Network + "/" + e.Name})
	for _, a := range e.Addresses {
		entries = append(entries, entry{addressBucket, addressKey(a), e.Name, "address " + a.String()})
	}
	if !e.MAC.IsZero() {
		entries = append(entries, entry{
			macBucket, macKey(e.Network, e.MAC), e.Name,
			fmt.Sprintf("MAC %s on network %q", e.MAC, e.Network),
		})
	}
	return entries
}

func linkEntries(l spec.Link) []entry {
	return []entry{{bucket: serverBucket, key: l.Server + "/" + l.Client}}
}

func addressKey(a netip.Addr) string {
	b := a.As16()
	return string(b[:])
}

func macKey(network string, mac spec.MAC) string { return network + "/" + string(mac[:]) }

func idKey(kind Kind, id uint32) string {
	return string(binary.BigEndian.AppendUint32([]byte(kind+"/"), id))
}

// reindex replaces a record's old entries by its new ones. It changes nothing
// if another record has one of them.
func (tx *Tx) reindex(before, after []entry) error {
	for _, e := range after {
		if owner := tx.get(e.bucket, e.key); owner != nil && string(owner) != e.owner {
			return fmt.Errorf("%s is %w by %q", e.what, ErrTaken, owner)
		}
	}
	for _, e := range before {
		if slices.Contains(after, e) {
			continue
		}
		if err := tx.remove(e.bucket, e.key); err != nil {
			return err
		}
	}
	for _, e := range after {
		if slices.Contains(before, e) {
			continue
		}
		if err := tx.put(e.bucket, e.key, []byte(e.owner)); err != nil {
			return err
		}
	}
	return nil
}

// putIndexed is putRecord with the record's entries, an older one's removed.
func putIndexed[T any](tx *Tx, bucket, key string, record T, entries func(T) []entry) error {
	old, found, err := getRecord[T](tx, bucket, key)
	if err != nil {
		return err
	}
	var before []entry
	if found {
		before = entries(old)
	}
	if err := tx.reindex(before, entries(record)); err != nil {
		return err
	}
	return putRecord(tx, bucket, key, record)
}

// deleteIndexed removes a record and its entries.
func deleteIndexed(tx *Tx, bucket, key string, entries []entry) error {
	if err := tx.reindex(entries, nil); err != nil {
		return err
	}
	return tx.remove(bucket, key)
}

// AddressOwner gives the name of the endpoint that has the address.
func (tx *Tx) AddressOwner(a netip.Addr) (endpoint string, ok bool) {
	owner := tx.get(addressBucket, addressKey(a))
	return string(owner), owner != nil
}

// MACOwner gives the name of the endpoint that has the MAC on the network.
func (tx *Tx) MACOwner(network string, mac spec.MAC) (endpoint string, ok bool) {
	owner := tx.get(macBucket, macKey(network, mac))
	return string(owner), owner != nil
}

// NextID gives an id from first to last that no record of the kind has: the
// first free one after that given last, so that an id is not used again at
// once. It is the record's when the record is put. The error is ErrExhausted
// if there is none. first is at least 1: a record with id 0 is not numbered.
func (tx *Tx) NextID(kind Kind, first, last uint32) (uint32, error) {
	start := first
	lastKey := fmt.Sprintf("%s/%d", kind, first)
	if given := tx.get(lastIDBucket, lastKey); given != nil {
		if g := binary.BigEndian.Uint32(given); g >= first && g < last {
			start = g + 1
		}
	}
	id, ok := tx.freeID(kind, start, last)
	if !ok && start > first {
		id, ok = tx.freeID(kind, first, start-1)
	}
	if !ok {
		return 0, fmt.Errorf("%s ids %d to %d: %w, remove one first", kind, first, last, ErrExhausted)
	}
	return id, tx.put(lastIDBucket, lastKey, binary.BigEndian.AppendUint32(nil, id))
}

// freeID finds the first gap in the ids in use. It goes through a run of used
// ids only, which is short but for the first time round.
func (tx *Tx) freeID(kind Kind, first, last uint32) (uint32, bool) {
	b := tx.bucket(idBucket)
	if b == nil || first > last {
		return first, first <= last
	}
	c := b.Cursor()
	id := first
	for k, _ := c.Seek([]byte(idKey(kind, id))); string(k) == idKey(kind, id); k, _ = c.Next() {
		if id == last {
			return 0, false
		}
		id++
	}
	return id, true
}

// Change is a noun that a command was about to change in the kernel: if it
// died before ClearPending, the next one mends what it left.
type Change struct {
	Kind Kind
	Key  string // the name; for a link its LinkKey, for a port its endpoint
}

// MarkPending notes that the noun is about to change. It may be so noted
// already.
func (tx *Tx) MarkPending(kind Kind, key string) error {
	return tx.put(pendingBucket, string(kind)+"/"+key, nil)
}

// Pending gives the changes that were begun and not yet cleared.
func (tx *Tx) Pending() ([]Change, error) {
	var changes []Change
	for _, k := range tx.keys(pendingBucket, "") {
		kind, key, parted := strings.Cut(k, "/")
		if !parted {
			return nil, damaged("pending change %q has no kind", k)
		}
		changes = append(changes, Change{Kind(kind), key})
	}
	return changes, nil
}

// ClearPending forgets c, which may be forgotten already.
func (tx *Tx) ClearPending(c Change) error {
	return tx.remove(pendingBucket, string(c.Kind)+"/"+c.Key)
}
