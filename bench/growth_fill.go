package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/ebpnet/ebpnet/bench/generator"
	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/store"
)

// crowd is who is on a host besides those who are measured.
type crowd struct {
	local, remote int // endpoints
	links         int // between remote endpoints
	ports         int // published
	flows         int
}

// What the crowd is on and behind.
const (
	crowdNetwork = "bench"
	crowdTunnel  = "far"
)

// The crowd's links are from each of so many remote endpoints to each of as many
// others.
const (
	linkClients = 224
	linkEnds    = 2 * linkClients
)

// linkBetween gives the ends of the nth of the crowd's links.
func linkBetween(n int) (client, server string) {
	return crowdName(n / linkClients), crowdName(linkClients + n%linkClients)
}

func crowdName(n int) string { return fmt.Sprintf("crowd-%d", n) }

// crowdAddress is that of the nth endpoint, local and remote ones counted.
func crowdAddress(n int) netip.Addr { return after(fillerAddr, n) }

// settle brings a crowd into the store of a host, as its commands would one at a
// time; the next load does the rest.
func (l *lab) settle(host string, netns []string, c crowd) {
	l.try(func() (err error) {
		s, err := store.Open(l.ctx, stateDirectory(host))
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.Close()) }()
		return s.Update(func(tx *store.Tx) error {
			return errors.Join(c.putEndpoints(tx, netns), c.putLinks(tx), c.putPorts(tx))
		})
	})
}

// crowdNamespaces share the local ones among them: few enough to be made soon,
// and in none are there as many interfaces as no container has.
const crowdNamespaces = 32

// What the command line gives out: ids of endpoints and publications.
const (
	firstLocalID   = 1
	lastLocalID    = 16383
	lastEndpointID = 131071
	lastPortID     = 65535
)

func (c crowd) putEndpoints(tx *store.Tx, netns []string) (err error) {
	for i := range c.remote + c.local {
		e := spec.Endpoint{
			Name: crowdName(i), Network: crowdNetwork, Addresses: []netip.Addr{crowdAddress(i)},
			MAC: spec.MACFor(crowdAddress(i)),
		}
		first, last := uint32(firstFillerEndpoint), uint32(lastEndpointID)
		if i < c.local {
			e.Netns, e.Ifname = spec.Netns{Path: netnsPath(netns[i%len(netns)])}, fmt.Sprintf("eth%d", i)
			first, last = firstLocalID, lastLocalID
		} else {
			e.Tunnel = crowdTunnel
		}
		if e.ID, err = tx.NextID(store.KindEndpoint, first, last); err != nil {
			return err
		}
		if err := tx.PutEndpoint(e); err != nil {
			return err
		}
	}
	return nil
}

func (c crowd) putLinks(tx *store.Tx) error {
	for i := range c.links {
		from, to := linkBetween(i)
		open := spec.Ports{Protocol: spec.TCP, First: serverPort, Last: serverPort}
		if err := tx.PutLink(spec.Link{Client: from, Server: to, Alias: to, Ports: []spec.Ports{open}}); err != nil {
			return err
		}
	}
	return nil
}

func (c crowd) putPorts(tx *store.Tx) error {
	for i := range c.ports {
		id, err := tx.NextID(store.KindPort, 1, lastPortID)
		if err != nil {
			return err
		}
		at := uint16(fillerPort + i)
		err = tx.PutPort(spec.Port{
			ID: id, Endpoint: "server", Protocol: spec.TCP, First: at, Last: at, TargetFirst: at, TargetLast: at,
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Flows are made of so many of the outside's ports, and as many of the
// container's as it takes. All are below those that kernels choose.
const (
	flowServers         = 50
	flowServerFirstPort = 8000
)

// mayMiss is the share of flows that may be missing, one in so many: a busy
// kernel loses a datagram now and then.
const mayMiss = 1000

// converse has a container send datagrams to the outside, and the outside answer
// each, until so many flows are there.
func (l *lab) converse(container, outside string, flows int) {
	if flows == 0 {
		return
	}
	var servers []*net.UDPConn
	defer func() {
		for _, s := range servers {
			s.Close()
		}
	}()
	l.try(func() error {
		return generator.In(netnsPath(outside), func() error {
			for i := range flowServers {
				s, err := bound(flowServerFirstPort + i)
				if err != nil {
					return err
				}
				servers = append(servers, s)
			}
			return nil
		})
	})
	l.try(func() error {
		return generator.In(netnsPath(container), func() error {
			missing := 0
			for i := range flows / flowServers {
				missed, err := l.talk(fillerPort+i, servers)
				if err != nil {
					return err
				}
				if missing += missed; missing > flows/mayMiss {
					return fmt.Errorf("make flows: %d of %d datagrams were not answered, up to port %d", missing, flows, fillerPort+i)
				}
			}
			return nil
		})
	})
}

// talk exchanges a datagram with each of the servers, from one port, and tells
// how many were not answered.
func (l *lab) talk(port int, servers []*net.UDPConn) (missed int, err error) {
	from, err := bound(port)
	if err != nil {
		return 0, err
	}
	defer from.Close()
	for i, s := range servers {
		err := exchange(from, s, netip.AddrPortFrom(outsideAddr, uint16(flowServerFirstPort+i)))
		if errors.Is(err, os.ErrDeadlineExceeded) {
			missed++
			err = l.ctx.Err()
		}
		if err != nil {
			return missed, fmt.Errorf("make flows: %w", err)
		}
	}
	return missed, nil
}

// exchange has one send the other a datagram, and get one back.
func exchange(from, to *net.UDPConn, at netip.AddrPort) error {
	soon := time.Now().Add(idle)
	if err := errors.Join(from.SetReadDeadline(soon), to.SetReadDeadline(soon)); err != nil {
		return err
	}
	b := make([]byte, transactionSize)
	if _, err := from.WriteToUDPAddrPort(b, at); err != nil {
		return err
	}
	_, sender, err := to.ReadFromUDPAddrPort(b)
	if err != nil {
		return err
	}
	if _, err := to.WriteToUDPAddrPort(b, sender); err != nil {
		return err
	}
	_, _, err = from.ReadFromUDPAddrPort(b)
	return err
}

// bound opens a UDP socket in the calling thread's namespace.
func bound(port int) (*net.UDPConn, error) {
	return net.ListenUDP("udp4", &net.UDPAddr{Port: port})
}
