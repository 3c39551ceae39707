package store

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"iter"
	"slices"
	"strconv"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// Tx is one transaction. It must not be used after the function that it was
// handed to returns.
type Tx struct {
	tx *bolt.Tx // nil: a store without a file
}

// The buckets of the file. Names hold no slash, so that it can part them.
const (
	metaBucket      = "meta"
	hostBucket      = "host"
	networkBucket   = "network"      // NETWORK: spec.Network
	endpointBucket  = "endpoint"     // ENDPOINT: spec.Endpoint
	tunnelBucket    = "tunnel"       // TUNNEL: spec.Tunnel
	linkBucket      = "link"         // CLIENT/SERVER: spec.Link
	portBucket      = "port"         // PortKey: spec.Port
	idBucket        = "id"           // KIND/ID: name
	lastIDBucket    = "last-id"      // KIND: ID
	addressBucket   = "address"      // 16 bytes: endpoint
	macBucket       = "mac"          // NETWORK/6 bytes: endpoint
	memberBucket    = "member"       // NETWORK/ENDPOINT: nothing
	serverBucket    = "server"       // SERVER/CLIENT: nothing
	publisherBucket = "publisher"    // ENDPOINT/PortKey: nothing
	lastAddrBucket  = "last-address" // NETWORK/SUBNET: address
	pendingBucket   = "pending"      // KIND/KEY: nothing
	schemaKey       = "schema"
	schema          = 3 // counts up when an older ebpnet could not read the file
	firstSchema     = 1 // without ports
	secondSchema    = 2 // without endpoints that were handed to an engine
)

func buckets() []string {
	return []string{
		metaBucket, hostBucket, networkBucket, endpointBucket, tunnelBucket, linkBucket, portBucket, idBucket,
		lastIDBucket, addressBucket, macBucket, memberBucket, serverBucket, publisherBucket, lastAddrBucket, pendingBucket,
	}
}

// fresh tells whether the file is new: a command may have died making it.
func (tx *Tx) fresh() bool {
	first, _ := tx.tx.Cursor().First()
	return first == nil
}

// makeSchema begins a new store, or makes one of an older schema current.
func (tx *Tx) makeSchema() error {
	for _, name := range buckets() {
		if _, err := tx.tx.CreateBucketIfNotExists([]byte(name)); err != nil {
			return fmt.Errorf("begin the store: %w", err)
		}
	}
	return tx.put(metaBucket, schemaKey, []byte(strconv.Itoa(schema)))
}

// checkSchema tells whether the store is of the current schema. It need not be
// to be read; the error is ErrVersion if this ebpnet cannot.
func (tx *Tx) checkSchema() (current bool, err error) {
	if tx.bucket(metaBucket) == nil {
		return false, damaged("it is not an ebpnet store")
	}
	absent := func(name string) bool { return tx.bucket(name) == nil }
	expected := buckets()
	switch got := string(tx.get(metaBucket, schemaKey)); got {
	case strconv.Itoa(schema):
		current = true
	case strconv.Itoa(secondSchema):
	case strconv.Itoa(firstSchema):
		expected = slices.DeleteFunc(expected, func(name string) bool { return name == portBucket || name == publisherBucket })
	default:
		return false, fmt.Errorf("store %s %w: its schema is %q, want %d; use that version, or move the file away",
			tx.tx.DB().Path(), ErrVersion, got, schema)
	}
	if i := slices.IndexFunc(expected, absent); i >= 0 {
		return current, damaged("bucket %q is missing", expected[i])
	}
	return current, nil
}

func (tx *Tx) bucket(name string) *bolt.Bucket {
	if tx.tx == nil {
		return nil
	}
	return tx.tx.Bucket([]byte(name))
}

// A stored value is the CRC-32 of key and value, four bytes, and the value.

const sealSize = crc32.Size

func checksum(key, value []byte) uint32 {
	return crc32.Update(crc32.ChecksumIEEE(key), crc32.IEEETable, value)
}

func seal(key, value []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, checksum(key, value)), value...)
}

// checkSeal finds values that are not as they were written.
func checkSeal(key, sealed []byte) error {
	if len(sealed) < sealSize || binary.BigEndian.Uint32(sealed) != checksum(key, sealed[sealSize:]) {
		return damaged("entry %q does not fit its checksum", key)
	}
	return nil
}

// get gives the value of key, nil if it has none.
func (tx *Tx) get(bucket, key string) []byte {
	b := tx.bucket(bucket)
	if b == nil {
		return nil
	}
	sealed := b.Get([]byte(key))
	if sealed == nil {
		return nil
	}
	return sealed[sealSize:] // checked when the file was opened
}

func (tx *Tx) put(bucket, key string, value []byte) error {
	b := tx.bucket(bucket)
	if b == nil {
		return bolterrors.ErrTxNotWritable
	}
	if err := b.Put([]byte(key), seal([]byte(key), value)); err != nil {
		return fmt.Errorf("store %s %q: %w", bucket, key, err)
	}
	return nil
}

func (tx *Tx) remove(bucket, key string) error {
	b := tx.bucket(bucket)
	if b == nil {
		return bolterrors.ErrTxNotWritable
	}
	if err := b.Delete([]byte(key)); err != nil {
		return fmt.Errorf("remove %s %q: %w", bucket, key, err)
	}
	return nil
}

// keys gives what follows prefix in the keys that begin with it, in order.
func (tx *Tx) keys(bucket, prefix string) []string {
	var rests []string
	for key := range tx.each(bucket, prefix) {
		rests = append(rests, key[len(prefix):])
	}
	return rests
}

// each goes through the entries whose keys begin with prefix, in order.
func (tx *Tx) each(bucket, prefix string) iter.Seq2[string, []byte] {
	return func(yield func(string, []byte) bool) {
		b := tx.bucket(bucket)
		if b == nil {
			return
		}
		c := b.Cursor()
		k, v := c.Seek([]byte(prefix))
		for k != nil && bytes.HasPrefix(k, []byte(prefix)) && yield(string(k), v[sealSize:]) {
			k, v = c.Next()
		}
	}
}

// A record is a noun as JSON.

func getRecord[T any](tx *Tx, bucket, key string) (record T, found bool, err error) {
	value := tx.get(bucket, key)
	if value == nil {
		return record, false, nil
	}
	record, err = decode[T](bucket, key, value)
	return record, err == nil, err
}

func putRecord(tx *Tx, bucket, key string, record any) error {
	value, err := json.Marshal(record)
	if err != nil {
		return fmt.Errorf("store %s %q: %w", bucket, key, err)
	}
	return tx.put(bucket, key, value)
}

func listRecords[T any](tx *Tx, bucket, prefix string) ([]T, error) {
	var records []T
	for key, value := range tx.each(bucket, prefix) {
		record, err := decode[T](bucket, key, value)
		if err != nil {
			return nil, err
		}
		records = append(records, record)
	}
	return records, nil
}

func decode[T any](bucket, key string, value []byte) (record T, err error) {
	if err := json.Unmarshal(value, &record); err != nil {
		return record, damaged("%s %q is unreadable: %v", bucket, key, err)
	}
	return record, nil
}
