package attack

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// bases are packets that may go through, on whose headers the tricks work: to a
// neighbor, into the tunnel, to the host, outside, and to all.
func (c *craft) bases() []func() []byte {
	local4, local6, remote4, remote6 := c.few()[0], c.few()[1], c.few()[2], c.few()[3]
	gw, out4, out6 := c.w.gatewayA, c.w.underlay.IP4, c.w.underlay.IP6
	udp := func(to target) func() []byte {
		return func() []byte {
			src := c.source(to.ip)
			return c.frameTo(to.mac, c.udpFrom(ports(src, 4100), ports(to.ip, service)))
		}
	}
	tcp := func(to target) func() []byte {
		return func() []byte {
			src := c.source(to.ip)
			return c.frameTo(to.mac, c.tcpFrom(ports(src, 4101), ports(to.ip, service), tcpSYN))
		}
	}
	echo := func(to target) func() []byte {
		return func() []byte { return c.frameTo(to.mac, c.echoFrom(c.source(to.ip), to.ip)) }
	}
	return []func() []byte{
		tcp(local4), tcp(remote4), tcp(remote6),
		udp(local4), udp(local6), udp(remote4),
		udp(target{gw, out4}), udp(target{gw, out6}), tcp(target{gw, out4}), echo(target{gw, out4}),
		udp(target{gw, c.me.network.gateway4()}),
		udp(target{broadcastMAC, broadcast4}),
		func() []byte {
			b := slices.Concat([]byte{0, 1, 8, 0, 6, 4, 0, 1}, c.me.MAC, as4(c.me.IP4), zeroMAC,
				as4(netip.MustParseAddr("10.30.31.200")), c.tag())
			return eth(broadcastMAC, c.me.MAC, typeARP, b)
		},
		func() []byte {
			body := c.advert(c.me.IP6, allNodes, c.me.IP6, c.me.MAC)
			return c.frameTo(groupMAC(allNodes), ip6{src: c.me.IP6, dst: allNodes, next: protoICMPv6, hop: 255}.packet(body))
		},
		func() []byte { // GRE of its own to a neighbor
			within := eth(local4.mac, c.me.MAC, typeIPv4, c.udpFrom(ports(c.me.IP4, 1), ports(local4.ip, 2)))
			gre := slices.Concat([]byte{0x20, 0, 0x65, 0x58, 0, 0, 0, byte(vault.key)}, within)
			return c.frameTo(local4.mac, ipPacket(c.me.IP4, local4.ip, protoGRE, gre))
		},
	}
}

// checksumOffload asks for a checksum at every place of the headers.
func (c *craft) checksumOffload() {
	for _, base := range c.bases() {
		length := len(base())
		for at := 0; at+2 <= min(length, 80); at += 2 {
			for _, off := range []int{0, 2, 6, 10, 16} {
				if at < off || (off == 10 || off == 2) && at%4 != 0 {
					continue
				}
				c.sendAs(vnet{flags: needsChecksum, csumStart: uint16(at - off), csumOff: uint16(off)}, base())
			}
			if at%4 == 0 && at > 34 {
				// From the transport header on, at a place that is none of a checksum.
				c.sendAs(vnet{flags: needsChecksum, csumStart: 34, csumOff: uint16(at - 34)}, base())
			}
		}
		c.sendAs(vnet{flags: needsChecksum, csumStart: uint16(length - 2)}, base())
		c.sendAs(vnet{flags: needsChecksum, csumStart: uint16(length), csumOff: 0}, base())
		c.sendAs(vnet{flags: needsChecksum, csumStart: 0xffff, csumOff: 0xffff}, base())
		c.sendAs(vnet{flags: 0xff}, base())
		c.sendAs(vnet{flags: 2, csumStart: 14}, base()) // says that it is verified
	}
}

// choose makes the completed checksum of a frame be value: the last word of the
// frame takes up the difference.
func choose(frame []byte, start int, value uint16) []byte {
	last := len(frame) - 2
	if (last-start)%2 != 0 {
		last--
	}
	binary.BigEndian.PutUint16(frame[last:], 0)
	have := sum(0, frame[start:])
	binary.BigEndian.PutUint16(frame[last:], sum(uint32(^value)+uint32(^have), nil))
	return frame
}

// checksumChosen writes what an attacker would: another's address, a port,
// another protocol, with the IPv4 header's checksum right for what it becomes.
func (c *craft) checksumChosen() {
	other := c.w.members["vault1"]
	out := target{c.w.gatewayA, c.w.underlay.IP4}
	peer := target{c.w.gatewayA, c.w.b.IP4}
	victim := c.w.members["vault3"]
	forgedGRE := func() []byte {
		within := eth(victim.MAC, other.MAC, typeIPv4, c.udpFrom(ports(other.IP4, service), ports(victim.IP4, service)))
		return slices.Concat([]byte{0x20, 0, 0x65, 0x58, 0, 0, 0, byte(vault.key)}, within)
	}
	const header = ethLength + ip4Length
	for _, to := range []target{out, peer, c.few()[0], c.few()[2], {broadcastMAC, broadcast4}} {
		for _, start := range []int{0, 6, 12, ethLength, 20, 24, 26, 28, 30, 34} {
			// The last two bytes of source and destination; the ports.
			for at, value := range map[int]uint16{
				28: binary.BigEndian.Uint16(as4(other.IP4)[2:]), 32: binary.BigEndian.Uint16(as4(other.IP4)[2:]),
				header: 22, header + 2: 22, 22: 64<<8 | protoGRE, 20: moreFragments, 16: 20, 6: 0x02eb, 10: binary.BigEndian.Uint16(other.MAC[4:]), 12: typeVLAN,
			} {
				if at < start {
					continue
				}
				frame := c.frameTo(to.mac, c.udpFrom(ports(c.me.IP4, 4200), ports(to.ip, service)))
				wrong := slices.Clone(frame)
				binary.BigEndian.PutUint16(wrong[at:], value)
				fixIP4(wrong[ethLength:])
				copy(frame[ethLength+ip4Checksum:], wrong[ethLength+ip4Checksum:ethLength+ip4Checksum+2])
				frame = append(frame, 0, 0)
				v := vnet{flags: needsChecksum, csumStart: uint16(start), csumOff: uint16(at - start)}
				c.sendAs(v, choose(slices.Clone(frame), start, value))
				// And with the right header checksum of what it is now.
				fixIP4(frame[ethLength:])
				c.sendAs(v, choose(frame, start, value))
			}
		}
	}
	// UDP that turns into GRE from the host: the ports are its flags and type.
	for start := 0; start <= 22; start += 2 {
		gre := forgedGRE()
		for _, dst := range []netip.Addr{c.w.b.IP4, c.w.underlay.IP4} {
			packet := ipPacket(c.me.IP4, dst, protoUDP, slices.Concat(gre, make([]byte, 2)))
			frame := c.frameTo(c.w.gatewayA, packet)
			wrong := slices.Clone(frame)
			wrong[ethLength+9] = protoGRE
			fixIP4(wrong[ethLength:])
			copy(frame[ethLength+ip4Checksum:], wrong[ethLength+ip4Checksum:ethLength+ip4Checksum+2])
			c.sendAs(vnet{flags: needsChecksum, csumStart: uint16(start), csumOff: uint16(22 - start)},
				choose(frame, start, 64<<8|protoGRE))
		}
	}
	// The sender's address in a flooded ARP.
	for _, start := range []int{0, 14, 22, 28, 30} {
		for _, value := range []uint16{binary.BigEndian.Uint16(as4(c.few()[0].ip)[2:]), 0x1f01} {
			b := slices.Concat([]byte{0, 1, 8, 0, 6, 4, 0, 2}, c.me.MAC, as4(c.me.IP4), zeroMAC, as4(c.few()[0].ip), c.tag(), []byte{0, 0})
			frame := eth(broadcastMAC, c.me.MAC, typeARP, b)
			c.sendAs(vnet{flags: needsChecksum, csumStart: uint16(start), csumOff: uint16(30 - start)}, choose(frame, start, value))
		}
	}
}

// segmentation claims segments that do not fit the packet.
func (c *craft) segmentation() {
	bases := c.bases()
	for _, base := range bases {
		header := uint16(ethLength + ip4Length)
		if f := base(); binary.BigEndian.Uint16(f[12:]) == typeIPv6 {
			header = ethLength + ip6Length
		}
		for _, kind := range []uint8{gsoTCP4, gsoTCP6, gsoUDP, gsoUDPL4, gsoTCP4 | gsoECN, gsoUDP | gsoECN, 2, 6, 7, 0x7f} {
			for _, size := range []uint16{0, 1, 8, 100, 1400, 65535} {
				if size == 8 && kind > gsoUDPL4 {
					continue
				}
				for i, off := range []uint16{tcpChecksum, udpChecksum, 2} {
					if i > 0 && size != 8 && size != 100 {
						continue
					}
					v := vnet{flags: needsChecksum, gso: kind, gsoSize: size, csumStart: header, csumOff: off, hdrLength: header + tcpLength}
					c.sendAs(v, base())
				}
			}
			c.sendAs(vnet{gso: kind, gsoSize: 100, hdrLength: header + tcpLength}, base())
			c.sendAs(vnet{flags: needsChecksum, gso: kind, gsoSize: 100, csumStart: 14, csumOff: 10, hdrLength: 0xffff}, base())
		}
	}
	// Whole superframes, as an honest sender makes them, and with another type.
	for _, to := range c.few() {
		src := c.source(to.ip)
		header, right, other := uint16(ethLength+ip4Length), uint8(gsoTCP4), uint8(gsoTCP6)
		if to.ip.Is6() {
			header, right, other = ethLength+ip6Length, gsoTCP6, gsoTCP4
		}
		super := slices.Repeat(c.tag(), 500)
		tcp := ipPacket(src, to.ip, protoTCP, tcpMessage(ports(src, 4300), ports(to.ip, service), tcpACK, super))
		udp := ipPacket(src, to.ip, protoUDP, udpMessage(ports(src, 4301), ports(to.ip, service), super))
		for _, kind := range []uint8{right, other, gsoUDP, gsoUDPL4} {
			for _, size := range []uint16{1, 100, 1400, 8000, 65535} {
				c.sendAs(vnet{flags: needsChecksum, gso: kind, gsoSize: size, csumStart: header, csumOff: tcpChecksum, hdrLength: header + tcpLength},
					c.frameTo(to.mac, tcp))
				c.sendAs(vnet{flags: needsChecksum, gso: kind, gsoSize: size, csumStart: header, csumOff: udpChecksum, hdrLength: header + udpLength},
					c.frameTo(to.mac, udp))
				c.sendAs(vnet{flags: needsChecksum, gso: kind, gsoSize: size, csumStart: 14, csumOff: 12, hdrLength: header + tcpLength},
					c.frameTo(to.mac, tcp))
			}
		}
	}
}

// mutations change a few bytes of frames that may go through.
func (c *craft) mutations() {
	const rounds, deepest = 60, 90
	for _, base := range c.bases() {
		for range rounds {
			frame := base()
			for range 1 + c.rnd.IntN(4) {
				at := c.rnd.IntN(min(len(frame), deepest))
				if at >= 6 && at < 12 {
					continue // another MAC is the guard's first question
				}
				frame[at] = byte(c.rnd.Uint32())
			}
			if frame[12] == 8 && frame[13] == 0 && c.rnd.IntN(4) > 0 {
				fixIP4(frame[ethLength:])
			}
			var v vnet
			if c.rnd.IntN(4) == 0 {
				v = vnet{needsChecksum, uint8(c.rnd.IntN(6)), uint16(c.rnd.IntN(64)), uint16(c.rnd.IntN(200)), uint16(c.rnd.IntN(len(frame))), uint16(c.rnd.IntN(32))}
			}
			c.sendAs(v, frame)
		}
	}
}
