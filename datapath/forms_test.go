package datapath

import (
	"fmt"
	"net/netip"
)

// Tunnels of withForms. From firstForm on, there is one for each combination of
// options: firstForm plus any of the three bits below.
const (
	firstForm      = 10
	formChecksum   = 1
	formSequence   = 2
	formOverIPv6   = 4
	forms          = 8
	plainForm4     = firstForm
	plainForm6     = firstForm + formOverIPv6
	fragmentable4  = 20
	fragmentable6  = 21
	lowTTL4        = 22
	lowTTL6        = 23
	copyDSCP4      = 24
	copyDSCP6      = 25
	keyedTunnel4   = 26 // carries only openNet
	keyedTunnel6   = 27
	keylessTunnel4 = 28 // carries only plainNet, which has no key
	keylessTunnel6 = 29
	zeroTunnel     = 30 // carries internalNet, with key zero, and plainNet
	lowTTL         = 3
)

func isForm(tunnel uint32) bool { return tunnel >= firstForm && tunnel < firstForm+forms }

// overIPv6 reports whether a tunnel's underlay is IPv6.
func overIPv6(tunnel uint32) bool {
	if isForm(tunnel) {
		return (tunnel-firstForm)&formOverIPv6 != 0
	}
	switch tunnel {
	case fragmentable6, lowTTL6, copyDSCP6, keyedTunnel6, keylessTunnel6:
		return true
	}
	return false
}

// detours reports whether frames into a tunnel take the detour.
func detours(tunnel uint32) bool {
	return isForm(tunnel) && (tunnel-firstForm)&(formChecksum|formSequence) != 0
}

func tunnelPeer(tunnel uint32) netip.Addr {
	if overIPv6(tunnel) {
		return netip.MustParseAddr(fmt.Sprintf("2001:db8:1::%x", tunnel))
	}
	return netip.AddrFrom4([4]byte{192, 0, 2, byte(tunnel)})
}

func formTunnels() []Tunnel {
	var tunnels []Tunnel
	for id := uint32(firstForm); id <= zeroTunnel; id++ {
		if !isForm(id) && id < fragmentable4 {
			continue
		}
		t := Tunnel{ID: id, Local: uplink.ip(overIPv6(id)), Remote: tunnelPeer(id), TTL: tunnelTTL}
		if isForm(id) {
			t.Checksums = (id-firstForm)&formChecksum != 0
			t.Sequence = (id-firstForm)&formSequence != 0
		}
		switch id {
		case fragmentable4, fragmentable6:
			t.Fragmentable = true
		case lowTTL4, lowTTL6:
			t.TTL = lowTTL
		case copyDSCP4, copyDSCP6:
			t.CopyDSCP = true
		}
		tunnels = append(tunnels, t)
	}
	return tunnels
}

// networkKey returns the key of a network of withForms.
func networkKey(network uint32) *uint32 {
	switch network {
	case openNet:
		return key(openKey)
	case internalNet:
		return key(0)
	}
	return nil
}

// carries returns the networks that a tunnel of withForms carries.
func carries(tunnel uint32) []uint32 {
	switch tunnel {
	case keyedTunnel4, keyedTunnel6:
		return []uint32{openNet}
	case keylessTunnel4, keylessTunnel6:
		return []uint32{plainNet}
	case zeroTunnel:
		return []uint32{internalNet, plainNet}
	}
	return []uint32{openNet, plainNet}
}

// remoteBehind returns the endpoint of a network behind a tunnel of withForms.
func remoteBehind(tunnel, network uint32) host { return remoteEndpoint(network, 40*network+20+tunnel) }

// localOn returns a local endpoint on the network.
func localOn(network uint32) host {
	return map[uint32]host{openNet: alice, internalNet: insider, plainNet: plain}[network]
}

// withForms adds a tunnel for each combination of options, with an endpoint of
// each network that it carries.
func withForms(w *Wanted) {
	w.Networks[internalNet-1].Key = networkKey(internalNet)
	for _, tunnel := range formTunnels() {
		w.Tunnels = append(w.Tunnels, tunnel)
		for _, network := range carries(tunnel.ID) {
			far := remoteBehind(tunnel.ID, network)
			w.TunnelNetworks = append(w.TunnelNetworks, TunnelNetwork{Tunnel: tunnel.ID, Network: network, Key: networkKey(network)})
			w.Endpoints = append(w.Endpoints, Endpoint{
				ID: far.id, Network: network, MAC: far.mac, Addresses: []netip.Addr{far.ip4, far.ip6}, Tunnel: tunnel.ID,
			})
		}
	}
}

// sentInto is the wrapping of the first frame of a network that this host sends
// into a tunnel of withForms. cameOut is that of the peer.
func sentInto(tunnel, network uint32) wrapping {
	w := leaving(overIPv6(tunnel), networkKey(network))
	w.dst = tunnelPeer(tunnel)
	if isForm(tunnel) {
		w.checksum = (tunnel-firstForm)&formChecksum != 0
		if (tunnel-firstForm)&formSequence != 0 {
			w.sequence = key(0)
		}
	}
	return w
}

func cameOut(tunnel, network uint32) wrapping {
	w := arriving(overIPv6(tunnel), networkKey(network))
	w.src = tunnelPeer(tunnel)
	return w
}
