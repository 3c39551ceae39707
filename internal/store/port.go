package store

import (
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"strconv"
	"strings"

	"github.com/ebpnet/ebpnet/internal/spec"
)

// PortKey is where on the host something is published. No two publications
// have the same.
type PortKey struct {
	Protocol    spec.Protocol
	First, Last uint16
	Address     netip.Addr // as in spec.Port
}

// everyAddress stands in a key for an address that is unset.
const everyAddress = "*"

// PortKeyOf gives the key of a publication.
func PortKeyOf(p spec.Port) PortKey { return PortKey{p.Protocol, p.First, p.Last, p.Address} }

// String gives the key as it is in the file: those of a protocol are together,
// in the order of the ports.
func (k PortKey) String() string {
	address := everyAddress
	if k.Address.IsValid() {
		address = k.Address.String()
	}
	return fmt.Sprintf("%s/%05d-%05d/%s", k.Protocol, k.First, k.Last, address)
}

func parsePortKey(s string) (PortKey, error) {
	protocol, rest, _ := strings.Cut(s, "/")
	ports, address, _ := strings.Cut(rest, "/")
	first, last, _ := strings.Cut(ports, "-")
	var k PortKey
	var err, err2, err3, err4 error
	k.Protocol, err = spec.ParseProtocol(protocol)
	k.First, err2 = parsePort(first)
	k.Last, err3 = parsePort(last)
	if address != everyAddress {
		k.Address, err4 = netip.ParseAddr(address)
	}
	if err := errors.Join(err, err2, err3, err4); err != nil {
		return k, damaged("published port %q is none", s)
	}
	return k, nil
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	return uint16(n), err
}

func portEntries(p spec.Port) []entry {
	key := PortKeyOf(p).String()
	return append(idEntries(KindPort, p.ID, key), entry{bucket: publisherBucket, key: p.Endpoint + "/" + key})
}

// Port gives what is published there, or ErrNotFound.
func (tx *Tx) Port(key PortKey) (spec.Port, error) {
	p, found, err := getRecord[spec.Port](tx, portBucket, key.String())
	if err == nil && !found {
		err = NotFound("no published port %s: see 'ebpnet port ls'", key)
	}
	return p, err
}

// Ports gives everything published, by protocol and then by the host's port.
func (tx *Tx) Ports() ([]spec.Port, error) { return listRecords[spec.Port](tx, portBucket, "") }

// PortsOf gives what an endpoint publishes, in the same order.
func (tx *Tx) PortsOf(endpoint string) ([]spec.Port, error) {
	var ports []spec.Port
	for _, key := range tx.keys(publisherBucket, endpoint+"/") {
		p, found, err := getRecord[spec.Port](tx, portBucket, key)
		if err != nil {
			return nil, err
		}
		if !found {
			return nil, damaged("port %q of endpoint %q is missing", key, endpoint)
		}
		ports = append(ports, p)
	}
	return ports, nil
}

// PortKeys goes through what is published of a protocol, in the order of the
// host's ports, and reads nothing but the keys.
func (tx *Tx) PortKeys(protocol spec.Protocol) iter.Seq2[PortKey, error] {
	return func(yield func(PortKey, error) bool) {
		for key := range tx.each(portBucket, protocol.String()+"/") {
			k, err := parsePortKey(key)
			if !yield(k, err) || err != nil {
				return
			}
		}
	}
}

// PutPort keeps p in place of what was published there. The error is ErrTaken
// if another publication has its id.
func (tx *Tx) PutPort(p spec.Port) error {
	return putIndexed(tx, portBucket, PortKeyOf(p).String(), p, portEntries)
}

// DeletePort removes what is published there, or gives ErrNotFound.
func (tx *Tx) DeletePort(key PortKey) error {
	old, err := tx.Port(key)
	if err != nil {
		return err
	}
	return deleteIndexed(tx, portBucket, key.String(), portEntries(old))
}
