package main

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"github.com/ebpnet/ebpnet/datapath"
)

// Of the hosts' tables, where they are large. RFC 2544's addresses are there
// for what is only measured.
var (
	scaleSubnet  = netip.MustParsePrefix("198.18.0.0/16")
	scaleGateway = netip.MustParseAddr("198.18.0.1")
	scaleClient  = netip.MustParseAddr("198.18.0.2")
	scaleServer  = netip.MustParseAddr("198.18.0.3")
	fillerAddr   = netip.MustParseAddr("198.18.1.0") // and those after it
	fillerHosts  = netip.MustParsePrefix("198.19.0.0/16")
)

// size is how much is in a host's tables.
type size struct {
	tunnels, endpoints int // remote ones
}

// toScale is one measured tunnel and remote endpoint among so many.
func toScale() []topology {
	var all []topology
	for _, c := range []struct {
		name, about, kind string
		size              size
	}{
		{"scale-2", "ebpnet with 2 tunnels and 2 remote endpoints", few, size{2, 2}},
		{"scale-256", "256 tunnels, 2 remote endpoints", ebpnet, size{256, 2}},
		{"scale-50000", "256 tunnels, 50,000 remote endpoints", ebpnet, size{256, 50_000}},
	} {
		all = append(all, topology{
			name: c.name, about: c.about, family: scale, kind: c.kind,
			build: func(l *lab) path { return buildScale(l, c.size) },
		})
	}
	return all
}

func buildScale(l *lab, n size) path {
	s := l.sides()
	s[0].addr, s[1].addr = scaleClient, scaleServer
	s.each(func(here, there side) {
		ebpnet := l.tunnelled(here, there, scaleSubnet, scaleGateway)
		tellOf(ebpnet, there)
		l.fill(here, n)
	})
	return s.path()
}

// The first network and the first tunnel of a host: ids count from there.
const firstID = 1

// firstFillerEndpoint is far above what the command line gives out here.
const firstFillerEndpoint = 65536

// fillerTTL is what tunnels have unless told otherwise.
const fillerTTL = 64

// fill brings a host's tables up to a size, beside the one tunnel and the one
// remote endpoint that are there. It writes into the loaded tables at once, as
// thousands of commands would take long.
func (l *lab) fill(here side, n size) {
	l.try(func() (err error) {
		tables, err := datapath.Open(pinDirectory(here.host))
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, tables.Close()) }()
		key := uint32(overlayKey)
		for i := 1; i < n.tunnels; i++ {
			tunnel := datapath.Tunnel{
				ID: uint32(firstID + i), Local: here.underlay, Remote: after(fillerHosts.Addr(), i), TTL: fillerTTL,
			}
			if err := tables.PutTunnel(tunnel); err != nil {
				return err
			}
			if err := tables.PutTunnelNetwork(datapath.TunnelNetwork{Tunnel: tunnel.ID, Network: firstID, Key: &key}); err != nil {
				return err
			}
		}
		for i := 1; i < n.endpoints; i++ {
			addr := after(fillerAddr, i)
			mac := [6]byte{0x02, 0x01}
			*(*[4]byte)(mac[2:]) = addr.As4()
			err := tables.PutEndpoint(datapath.Endpoint{
				ID: uint32(firstFillerEndpoint + i), Network: firstID, MAC: mac,
				Addresses: []netip.Addr{addr}, Tunnel: uint32(firstID + i%n.tunnels),
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// after gives the IPv4 address n further on.
func after(addr netip.Addr, n int) netip.Addr {
	b := addr.As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(n))
	return netip.AddrFrom4(b)
}
