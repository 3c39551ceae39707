package store

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/ebpnet/ebpnet/internal/spec"
)

// Kind says which noun an id or a pending change is of.
type Kind string

// The kinds. Networks, endpoints, tunnels and ports have ids.
const (
	KindHost     Kind = "host"
	KindNetwork  Kind = "network"
	KindEndpoint Kind = "endpoint"
	KindTunnel   Kind = "tunnel"
	KindLink     Kind = "link"
	KindPort     Kind = "port"
)

// missing is an ErrNotFound that says what was not.
type missing string

func (m missing) Error() string        { return string(m) }
func (m missing) Is(target error) bool { return target == ErrNotFound }

// missingNamed is an ErrNotFound about a noun that is found by its name.
type missingNamed struct {
	kind Kind
	name string
}

func (m missingNamed) Error() string {
	return fmt.Sprintf("no %s %q: see 'ebpnet %s ls'", m.kind, m.name, m.kind)
}

func (m missingNamed) Is(target error) bool { return target == ErrNotFound }

// IsMissing tells whether err says that there is no noun of that name.
func IsMissing(err error, kind Kind, name string) bool {
	return errors.Is(err, missingNamed{kind, name})
}

// NotFound gives an ErrNotFound that says what was not found.
func NotFound(format string, args ...any) error { return missing(fmt.Sprintf(format, args...)) }

// named is getRecord for a noun that is found by its name.
func named[T any](tx *Tx, bucket string, kind Kind, name string) (T, error) {
	record, found, err := getRecord[T](tx, bucket, name)
	if err == nil && !found {
		err = missingNamed{kind, name}
	}
	return record, err
}

// Host gives what `load` was told; false if it never was.
func (tx *Tx) Host() (spec.Host, bool, error) {
	return getRecord[spec.Host](tx, hostBucket, hostBucket)
}

// DeleteHost forgets what `load` was told.
func (tx *Tx) DeleteHost() error { return tx.remove(hostBucket, hostBucket) }

// PutHost keeps h in place of what was there.
func (tx *Tx) PutHost(h spec.Host) error { return putRecord(tx, hostBucket, hostBucket, h) }

// Network gives the network of that name, or ErrNotFound.
func (tx *Tx) Network(name string) (spec.Network, error) {
	return named[spec.Network](tx, networkBucket, KindNetwork, name)
}

// Networks gives all networks by name.
func (tx *Tx) Networks() ([]spec.Network, error) {
	return listRecords[spec.Network](tx, networkBucket, "")
}

// PutNetwork keeps n in place of an older network of its name. The error is
// ErrTaken if another network has its id.
func (tx *Tx) PutNetwork(n spec.Network) error {
	return putIndexed(tx, networkBucket, n.Name, n, networkEntries)
}

// DeleteNetwork removes the network of that name, or gives ErrNotFound. Its
// endpoints stay: they are the caller's to remove first.
func (tx *Tx) DeleteNetwork(name string) error {
	old, err := tx.Network(name)
	if err != nil {
		return err
	}
	for _, subnet := range tx.keys(lastAddrBucket, name+"/") {
		if err := tx.remove(lastAddrBucket, name+"/"+subnet); err != nil {
			return err
		}
	}
	return deleteIndexed(tx, networkBucket, name, networkEntries(old))
}

// Endpoint gives the endpoint of that name, or ErrNotFound.
func (tx *Tx) Endpoint(name string) (spec.Endpoint, error) {
	return named[spec.Endpoint](tx, endpointBucket, KindEndpoint, name)
}

// Endpoints gives all endpoints by name.
func (tx *Tx) Endpoints() ([]spec.Endpoint, error) {
	return listRecords[spec.Endpoint](tx, endpointBucket, "")
}

// EndpointsOn gives a network's endpoints by name.
func (tx *Tx) EndpointsOn(network string) ([]spec.Endpoint, error) {
	var endpoints []spec.Endpoint
	for _, name := range tx.keys(memberBucket, network+"/") {
		e, err := tx.Endpoint(name)
		if err != nil {
			return nil, err
		}
		endpoints = append(endpoints, e)
	}
	return endpoints, nil
}

// PutEndpoint keeps e in place of an older endpoint of its name. The error is
// ErrTaken if another has its id, one of its addresses, or its MAC on its
// network.
func (tx *Tx) PutEndpoint(e spec.Endpoint) error {
	return putIndexed(tx, endpointBucket, e.Name, e, endpointEntries)
}

// DeleteEndpoint removes the endpoint of that name, or gives ErrNotFound. Its
// links and ports stay: they are the caller's to remove first.
func (tx *Tx) DeleteEndpoint(name string) error {
	old, err := tx.Endpoint(name)
	if err != nil {
		return err
	}
	return deleteIndexed(tx, endpointBucket, name, endpointEntries(old))
}

// Tunnel gives the tunnel of that name, or ErrNotFound.
func (tx *Tx) Tunnel(name string) (spec.Tunnel, error) {
	return named[spec.Tunnel](tx, tunnelBucket, KindTunnel, name)
}

// Tunnels gives all tunnels by name.
func (tx *Tx) Tunnels() ([]spec.Tunnel, error) {
	return listRecords[spec.Tunnel](tx, tunnelBucket, "")
}

// PutTunnel keeps t in place of an older tunnel of its name. The error is
// ErrTaken if another tunnel has its id.
func (tx *Tx) PutTunnel(t spec.Tunnel) error {
	return putIndexed(tx, tunnelBucket, t.Name, t, tunnelEntries)
}

// DeleteTunnel removes the tunnel of that name, or gives ErrNotFound.
func (tx *Tx) DeleteTunnel(name string) error {
	old, err := tx.Tunnel(name)
	if err != nil {
		return err
	}
	return deleteIndexed(tx, tunnelBucket, name, tunnelEntries(old))
}

// Link gives the link from client to server, or ErrNotFound.
func (tx *Tx) Link(client, server string) (spec.Link, error) {
	l, found, err := getRecord[spec.Link](tx, linkBucket, LinkKey(client, server))
	if err == nil && !found {
		err = NotFound("no link from %q to %q", client, server)
	}
	return l, err
}

// LinkKey is the key of a KindLink Change.
func LinkKey(client, server string) string { return client + "/" + server }

// Links gives all links, by client and then by server.
func (tx *Tx) Links() ([]spec.Link, error) { return listRecords[spec.Link](tx, linkBucket, "") }

// LinksOf gives the links that the endpoint is client of, by server, and then
// those that it is server of, by client.
func (tx *Tx) LinksOf(endpoint string) ([]spec.Link, error) {
	links, err := listRecords[spec.Link](tx, linkBucket, endpoint+"/")
	if err != nil {
		return nil, err
	}
	for _, client := range tx.keys(serverBucket, endpoint+"/") {
		l, err := tx.Link(client, endpoint)
		if err != nil {
			return nil, err
		}
		links = append(links, l)
	}
	return links, nil
}

// PutLink keeps l in place of an older link between its endpoints.
func (tx *Tx) PutLink(l spec.Link) error {
	return putIndexed(tx, linkBucket, LinkKey(l.Client, l.Server), l, linkEntries)
}

// DeleteLink removes the link from client to server, or gives ErrNotFound.
func (tx *Tx) DeleteLink(client, server string) error {
	old, err := tx.Link(client, server)
	if err != nil {
		return err
	}
	return deleteIndexed(tx, linkBucket, LinkKey(client, server), linkEntries(old))
}

// LastAddress gives the address last given out of a network's subnet; the
// zero Addr if none was.
func (tx *Tx) LastAddress(network string, subnet netip.Prefix) netip.Addr {
	a, _ := netip.AddrFromSlice(tx.get(lastAddrBucket, network+"/"+subnet.String()))
	return a
}

// SetLastAddress keeps what LastAddress gives.
func (tx *Tx) SetLastAddress(network string, subnet netip.Prefix, a netip.Addr) error {
	return tx.put(lastAddrBucket, network+"/"+subnet.String(), a.AsSlice())
}
