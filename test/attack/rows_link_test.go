package attack

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
)

// arps are of every operation, for everybody, as everybody, and broken.
func (c *craft) arps() {
	packet := func(operation uint16, sender net.HardwareAddr, senderIP netip.Addr, target net.HardwareAddr, targetIP netip.Addr) []byte {
		b := binary.BigEndian.AppendUint16([]byte{0, 1, 8, 0, 6, 4}, operation)
		return slices.Concat(b, sender, as4(senderIP), target, as4(targetIP), c.tag())
	}
	local := c.few()[0]
	senders := []netip.Addr{c.me.IP4, zero4, local.ip, c.me.network.gateway4(), c.w.members["vault1"].IP4, c.w.a.IP4, broadcast4}
	targets := []netip.Addr{c.me.IP4, zero4, local.ip, c.few()[2].ip, c.me.network.gateway4(), c.w.members["vault1"].IP4, broadcast4}
	for operation := range uint16(11) {
		for _, sender := range senders {
			for _, target := range targets {
				c.send(eth(broadcastMAC, c.me.MAC, typeARP, packet(operation, c.me.MAC, sender, zeroMAC, target)))
			}
			c.send(eth(local.mac, c.me.MAC, typeARP, packet(operation, c.me.MAC, sender, local.mac, local.ip)))
			c.send(eth(c.w.gatewayA, c.me.MAC, typeARP, packet(operation, c.me.MAC, sender, c.w.gatewayA, c.me.network.gateway4())))
		}
	}
	for _, mac := range []net.HardwareAddr{local.mac, c.w.gatewayA, nobodysMAC, broadcastMAC, zeroMAC} {
		for _, operation := range []uint16{1, 2} {
			for _, sender := range senders {
				c.send(eth(broadcastMAC, c.me.MAC, typeARP, packet(operation, mac, sender, zeroMAC, local.ip)))
				c.send(eth(local.mac, c.me.MAC, typeARP, packet(operation, mac, sender, local.mac, local.ip)))
				c.send(eth(local.mac, mac, typeARP, packet(operation, mac, sender, local.mac, local.ip)))
			}
		}
	}
	for _, header := range [][]byte{
		{0, 6, 8, 0, 6, 4}, {0, 1, 0x86, 0xdd, 6, 16}, {0, 1, 8, 0, 8, 4}, {0, 1, 8, 0, 6, 6}, {0, 1, 8, 0, 0, 0}, {0, 1, 8, 0, 255, 255},
	} {
		whole := packet(2, c.me.MAC, local.ip, zeroMAC, local.ip)
		c.send(eth(broadcastMAC, c.me.MAC, typeARP, header, whole[len(header):]))
	}
	for length := 1; length < 28; length += 2 {
		c.send(eth(broadcastMAC, c.me.MAC, typeARP, packet(2, c.me.MAC, c.me.IP4, zeroMAC, local.ip)[:length]))
	}
}

// Types of options of neighbor discovery: RFC 4861, RFC 8106, RFC 4191.
func ndLink(kind byte, mac net.HardwareAddr) []byte { return append([]byte{kind, 1}, mac...) }

func (c *craft) advert(src, dst, target netip.Addr, mac net.HardwareAddr) []byte {
	return icmpMessage(src, dst, 136, 0, 0x60000000, as16(target), ndLink(2, mac), c.tagOption())
}

// tagOption is an option of experiments, RFC 4727, that holds the tag.
func (c *craft) tagOption() []byte {
	return slices.Concat([]byte{253, 3, 0, 0, 0, 0, 0, 0}, c.tag())
}

func (c *craft) neighborDiscovery() {
	local := c.few()[1]
	others := []netip.Addr{
		c.me.IP6, linkLocal(c.me.MAC), local.ip, c.me.network.gateway6(), c.w.members["vault1"].IP6,
		linkLocal(local.mac), linkLocal(c.w.gatewayA), zero6, allNodes,
	}
	type way struct {
		mac net.HardwareAddr
		ip  netip.Addr
	}
	for _, target := range others {
		for _, src := range others {
			for _, to := range []way{{groupMAC(allNodes), allNodes}, {local.mac, local.ip}, {c.w.gatewayA, c.me.network.gateway6()}} {
				for _, mac := range []net.HardwareAddr{c.me.MAC, local.mac} {
					body := c.advert(src, to.ip, target, mac)
					c.send(c.frameTo(to.mac, ip6{src: src, dst: to.ip, next: protoICMPv6, hop: 255}.packet(body)))
				}
			}
			group := solicitedNode(target)
			for _, option := range [][]byte{nil, ndLink(1, c.me.MAC), ndLink(1, local.mac)} {
				body := icmpMessage(src, group, 135, 0, 0, as16(target), option, c.tagOption())
				c.send(c.frameTo(groupMAC(group), ip6{src: src, dst: group, next: protoICMPv6, hop: 255}.packet(body)))
			}
		}
	}
	for _, hop := range []uint8{1, 64, 254} {
		body := c.advert(c.me.IP6, allNodes, local.ip, c.me.MAC)
		c.send(c.frameTo(groupMAC(allNodes), ip6{src: c.me.IP6, dst: allNodes, next: protoICMPv6, hop: hop}.packet(body)))
	}
	// Cut short, and with options of no length.
	body := c.advert(c.me.IP6, allNodes, c.me.IP6, c.me.MAC)
	for length := 4; length < len(body); length += 4 {
		short := transport(c.me.IP6, allNodes, protoICMPv6, slices.Clone(body[:length]))
		c.send(c.frameTo(groupMAC(allNodes), ip6{src: c.me.IP6, dst: allNodes, next: protoICMPv6, hop: 255}.packet(short)))
	}
	// In fragments: RFC 6980.
	for i, target := range others {
		for _, hop := range []uint8{64, 255} {
			body := c.advert(c.me.IP6, allNodes, target, c.me.MAC)
			for _, p := range cut(c.me.IP6, allNodes, protoICMPv6, uint32(30000+i), body, 8) {
				p[7] = hop
				c.send(c.frameTo(groupMAC(allNodes), p))
			}
		}
	}
}

func solicitedNode(a netip.Addr) netip.Addr {
	low := a.As16()
	group := netip.MustParseAddr("ff02::1:ff00:0").As16()
	copy(group[13:], low[13:])
	return netip.AddrFrom16(group)
}

// routerAdvert makes the sender the default router, with a prefix and a server
// for names.
func (c *craft) routerAdvert(src, dst netip.Addr) []byte {
	prefix := slices.Concat([]byte{3, 4, 64, 0xc0}, []byte{0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0}, as16(netip.MustParseAddr("2001:db8:bad::")))
	mtu := []byte{5, 1, 0, 0, 0, 0, 5, 0}
	names := slices.Concat([]byte{25, 3, 0, 0, 0, 0, 2, 0}, as16(c.me.IP6))
	return icmpMessage(src, dst, 134, 0, 0x40000708, make([]byte, 8), ndLink(1, c.me.MAC), prefix, mtu, names, c.tagOption())
}

// routerMessages are those of routers, of both families, whole and in fragments.
func (c *craft) routerMessages() {
	victim := c.w.members["open2"]
	for _, src := range []netip.Addr{linkLocal(c.me.MAC), c.me.IP6, linkLocal(c.w.gatewayA), zero6} {
		for _, to := range []target{{groupMAC(allNodes), allNodes}, c.few()[1], c.few()[3], {c.w.gatewayA, c.me.network.gateway6()}} {
			for _, hop := range []uint8{255, 64, 1} {
				advert := c.routerAdvert(src, to.ip)
				c.send(c.frameTo(to.mac, ip6{src: src, dst: to.ip, next: protoICMPv6, hop: hop}.packet(advert)))
				redirect := icmpMessage(src, to.ip, 137, 0, 0, as16(c.me.IP6), as16(c.w.underlay.IP6), ndLink(2, c.me.MAC), c.tagOption())
				c.send(c.frameTo(to.mac, ip6{src: src, dst: to.ip, next: protoICMPv6, hop: hop}.packet(redirect)))
				for i, p := range [][]byte{advert, redirect} {
					for _, piece := range cut(src, to.ip, protoICMPv6, uint32(40000+i), p, 24) {
						piece[7] = hop
						c.send(c.frameTo(to.mac, piece))
					}
				}
				// From an unprivileged prefix: RFC 4861 wants options of a length.
				c.send(c.frameTo(to.mac, ip6{src: src, dst: to.ip, next: protoICMPv6, hop: hop}.packet(
					icmpMessage(src, to.ip, 134, 0, 0x40000708, make([]byte, 8), []byte{1, 0, 0, 0, 0, 0, 0, 0}, c.tagOption()))))
			}
		}
	}
	for _, to := range []target{c.few()[0], c.few()[2], {c.w.gatewayA, c.me.network.gateway4()}, {c.w.gatewayA, c.w.a.IP4}, {broadcastMAC, allHosts4}} {
		for code := range uint8(4) {
			for _, about := range [][2]netip.Addr{{to.ip, c.w.underlay.IP4}, {victim.IP4, c.w.underlay.IP4}, {to.ip, c.me.IP4}} {
				quote := ipPacket(about[0], about[1], protoUDP, udpMessage(ports(about[0], service), ports(about[1], service), c.tag()))
				redirect := icmpMessage(c.me.IP4, to.ip, 5, code, binary.BigEndian.Uint32(as4(c.me.IP4)), quote)
				c.send(c.frameTo(to.mac, ipPacket(c.me.IP4, to.ip, protoICMP, redirect)))
			}
		}
		advert := icmpMessage(c.me.IP4, to.ip, 9, 0, 0x01020708, as4(c.me.IP4), []byte{0x7f, 0, 0, 0}, c.tag())
		c.send(c.frameTo(to.mac, ipPacket(c.me.IP4, to.ip, protoICMP, advert)))
		for i, piece := range cut(c.me.IP4, to.ip, protoICMP, 40100, advert, 8) {
			piece[4] = byte(i)
			fixIP4(piece)
			c.send(c.frameTo(to.mac, piece))
		}
	}
}

// groups are queries and reports of MLD and IGMP, as a router and as others.
func (c *craft) groups() {
	group6 := netip.MustParseAddr("ff02::1:2")
	for _, src := range []netip.Addr{linkLocal(c.me.MAC), c.me.IP6, zero6, linkLocal(c.w.gatewayA)} {
		for _, kind := range []uint8{130, 131, 132, 143} {
			for _, dst := range []netip.Addr{allNodes, allRouters, netip.MustParseAddr("ff02::16"), c.few()[1].ip} {
				mac := groupMAC(dst)
				if !dst.IsMulticast() {
					mac = c.few()[1].mac
				}
				for _, alert := range []bool{true, false} {
					message := icmpMessage(src, dst, kind, 0, 0x03e80000, as16(group6), []byte{2, 125, 0, 0}, c.tag())
					header := ip6{src: src, dst: dst, next: protoICMPv6, hop: 1}
					if alert {
						header.next = extHopByHop
						message = slices.Concat([]byte{protoICMPv6, 0, 5, 2, 0, 0, 1, 0}, message)
					}
					c.send(c.frameTo(mac, header.packet(message)))
					for _, piece := range cut(src, dst, protoICMPv6, 50000+uint32(kind), message, 16) {
						piece[7] = 1
						c.send(c.frameTo(mac, piece))
					}
				}
			}
		}
	}
	for _, src := range []netip.Addr{c.me.IP4, zero4, c.me.network.gateway4()} {
		for _, kind := range []uint8{0x11, 0x12, 0x16, 0x17, 0x22, 0x13, 0x14, 0x30} {
			for _, dst := range []netip.Addr{allHosts4, routers4, netip.MustParseAddr("224.0.0.22"), c.few()[0].ip} {
				mac := groupMAC(dst)
				if !dst.IsMulticast() {
					mac = c.few()[0].mac
				}
				message := transport(src, dst, protoIGMP, slices.Concat([]byte{kind, 100, 0, 0, 239, 1, 1, 1}, c.tag()))
				for _, options := range [][]byte{nil, {148, 4, 0, 0}} {
					c.send(c.frameTo(mac, ip4{src: src, dst: dst, proto: protoIGMP, ttl: 1, options: options}.packet(message)))
				}
				for _, piece := range cut(src, dst, protoIGMP, 50100, message, 8) {
					c.send(c.frameTo(mac, piece))
				}
			}
		}
	}
}

// dhcp are messages that only a server or a relay sends.
func (c *craft) dhcp() {
	server := func(kind byte) []byte {
		b := make([]byte, 240)
		b[0], b[1], b[2] = 2, 1, 6
		copy(b[16:], as4(netip.MustParseAddr("10.99.0.9")))
		copy(b[28:], c.few()[0].mac)
		copy(b[236:], []byte{99, 130, 83, 99})
		return slices.Concat(b, []byte{53, 1, kind, 54, 4}, as4(c.me.IP4), []byte{3, 4}, as4(c.me.IP4), []byte{224, 16}, c.tag(), []byte{255})
	}
	for _, to := range []target{{broadcastMAC, broadcast4}, c.few()[0], c.few()[2], {c.few()[0].mac, broadcast4}, {c.w.gatewayA, c.me.network.gateway4()}} {
		for _, src := range []netip.Addr{c.me.IP4, zero4, c.me.network.gateway4()} {
			for _, kind := range []byte{2, 5, 6, 9} {
				for _, port := range [][2]uint16{{67, 68}, {67, 67}, {68, 67}, {68, 68}} {
					message := udpMessage(ports(src, port[0]), ports(to.ip, port[1]), server(kind))
					c.send(c.frameTo(to.mac, ipPacket(src, to.ip, protoUDP, message)))
				}
			}
			message := udpMessage(ports(src, 67), ports(to.ip, 68), server(2))
			for _, size := range []int{8, 128} {
				for _, piece := range cut(src, to.ip, protoUDP, 60000, message, size)[:2] {
					c.send(c.frameTo(to.mac, piece))
				}
			}
		}
	}
	clients := netip.MustParseAddr("ff02::1:2")
	for _, to := range []target{{groupMAC(allNodes), allNodes}, c.few()[1], c.few()[3], {groupMAC(clients), clients}, {c.w.gatewayA, c.me.network.gateway6()}} {
		for _, src := range []netip.Addr{linkLocal(c.me.MAC), c.me.IP6, zero6} {
			for _, kind := range []byte{2, 7, 10, 13} {
				for _, port := range [][2]uint16{{547, 546}, {547, 547}, {546, 547}} {
					body := slices.Concat([]byte{kind, 1, 2, 3, 0, 23, 0, 16}, as16(c.me.IP6), c.tag())
					message := udpMessage(ports(src, port[0]), ports(to.ip, port[1]), body)
					c.send(c.frameTo(to.mac, ipPacket(src, to.ip, protoUDP, message)))
					first, chained := chain([]uint8{extDestination}, protoUDP, message)
					c.send(c.frameTo(to.mac, ip6{src: src, dst: to.ip, next: first}.packet(chained)))
				}
			}
		}
	}
}

// icmpErrors quote packets that the attacker never got.
func (c *craft) icmpErrors() {
	type error4 struct {
		kind, code uint8
		rest       uint32
	}
	errors4 := []error4{
		{3, 0, 0}, {3, 1, 0}, {3, 2, 0}, {3, 3, 0}, {3, 4, 68}, {3, 4, 552}, {3, 4, 1280}, {3, 4, 0}, {3, 5, 0}, {3, 13, 0}, {4, 0, 0}, {11, 0, 0}, {11, 1, 0}, {12, 0, 0}, {5, 1, 0x0a1e1f0a},
	}
	errors6 := []error4{{1, 0, 0}, {1, 1, 0}, {1, 4, 0}, {2, 0, 68}, {2, 0, 1000}, {2, 0, 1280}, {2, 0, 1300}, {3, 0, 0}, {4, 0, 0}, {4, 1, 6}, {127, 0, 0}}
	type pair struct{ src, dst netip.AddrPort }
	var about []pair
	for _, v := range c.w.victims {
		about = append(about, pair{v.src, v.dst}, pair{v.dst, v.src})
		if v.outside.IsValid() && v.outside != v.src {
			about = append(about, pair{v.outside, v.dst})
		}
	}
	about = append(about, pair{ports(c.w.a.IP4, 0), ports(c.w.b.IP4, 0)}, pair{ports(c.w.b.IP4, 0), ports(c.w.a.IP4, 0)})
	for i, q := range about {
		v6 := q.src.Addr().Is6()
		list, proto := errors4, uint8(protoICMP)
		if v6 {
			list, proto = errors6, protoICMPv6
		}
		quotes := [][]byte{ipPacket(q.src.Addr(), q.dst.Addr(), protoUDP, udpMessage(q.src, q.dst, c.tag()))}
		if i%4 == 0 {
			quotes = append(quotes, ipPacket(q.src.Addr(), q.dst.Addr(), protoTCP, tcpMessage(q.src, q.dst, tcpACK, c.tag())))
			echo := icmpMessage(q.src.Addr(), q.dst.Addr(), 0, 0, 0x10001, c.tag())
			quotes = append(quotes, ipPacket(q.src.Addr(), q.dst.Addr(), proto, echo))
			gre := slices.Concat([]byte{0x20, 0, 0x65, 0x58, 0, 0, 0, byte(open.key)}, eth(c.me.MAC, c.me.MAC, typeARP, c.tag()))
			quotes = append(quotes, ipPacket(q.src.Addr(), q.dst.Addr(), protoGRE, gre))
		}
		for _, quote := range quotes {
			for j, e := range list {
				for _, to := range c.errorTargets(q.src.Addr()) {
					if j%3 != 0 && e.kind != 2 && e.code != 4 && to.ip != q.src.Addr() {
						continue // a few of all are enough
					}
					message := icmpMessage(c.source(to.ip), to.ip, e.kind, e.code, e.rest, quote)
					c.send(c.frameTo(to.mac, ipPacket(c.source(to.ip), to.ip, proto, message)))
				}
			}
		}
	}
	// About a packet to the attacker that another never sent.
	for _, to := range c.few() {
		src, proto, kind, code := c.source(to.ip), uint8(protoICMP), uint8(3), uint8(4)
		if to.ip.Is6() {
			proto, kind, code = protoICMPv6, 2, 0
		}
		for _, mtu := range []uint32{0, 68, 552, 1280} {
			quote := ipPacket(to.ip, src, protoUDP, udpMessage(ports(to.ip, 53), ports(src, 4000), c.tag()))
			c.send(c.frameTo(to.mac, ipPacket(src, to.ip, proto, icmpMessage(src, to.ip, kind, code, mtu, quote))))
		}
	}
}

// errorTargets are those whom an error about a packet of theirs may reach.
func (c *craft) errorTargets(about netip.Addr) []target {
	gw := c.w.gatewayA
	all := []target{{gw, about}}
	for _, m := range c.w.members {
		if m.owns(about) && m != c.me {
			all = append(all, target{m.MAC, about})
		}
	}
	for _, a := range []netip.Addr{c.me.network.gateway4(), c.w.a.IP4, c.w.underlay.IP4, c.w.b.IP4, c.me.network.gateway6(), c.w.underlay.IP6} {
		if a.Is4() == about.Is4() {
			all = append(all, target{gw, a})
		}
	}
	return all
}

// nested has frames and packets of others inside packets of the attacker's.
func (c *craft) nested() {
	gre := func(flags byte, kind uint16, key int) []byte {
		b := binary.BigEndian.AppendUint16([]byte{flags, 0}, kind)
		if flags&0x20 != 0 {
			b = binary.BigEndian.AppendUint32(b, uint32(key))
		}
		return b
	}
	victim := c.w.members["vault3"]
	for _, to := range c.targets() {
		src := c.source(to.ip)
		forged := func() []byte {
			other := c.w.members["vault1"]
			return eth(victim.MAC, other.MAC, typeIPv4, c.udpFrom(ports(other.IP4, service), ports(victim.IP4, service)))
		}
		for _, n := range []network{open, vault} {
			c.send(c.frameTo(to.mac, ipPacket(src, to.ip, protoGRE, slices.Concat(gre(0x20, typeTEB, n.key), forged()))))
		}
		c.send(c.frameTo(to.mac, ipPacket(src, to.ip, protoGRE, slices.Concat(gre(0, typeTEB, 0), forged()))))
		c.send(c.frameTo(to.mac, ipPacket(src, to.ip, protoGRE, slices.Concat(gre(0, typeIPv4, 0), forged()[ethLength:]))))
		for _, port := range []uint16{4789, 8472, 6081} {
			vxlan := []byte{8, 0, 0, 0, 0, 0, byte(vault.key), 0}
			message := udpMessage(ports(src, service), ports(to.ip, port), vxlan, forged())
			c.send(c.frameTo(to.mac, ipPacket(src, to.ip, protoUDP, message)))
		}
		for _, proto := range []uint8{protoIPIP, protoIPv6, protoESP, protoAH, protoSCTP, 89, 103, 112, 115, 136, 255} {
			c.send(c.frameTo(to.mac, ipPacket(src, to.ip, proto, forged()[ethLength:])))
		}
		// GRE from the hosts themselves.
		if to.ip.Is4() {
			packet := ipPacket(c.w.a.IP4, to.ip, protoGRE, slices.Concat(gre(0x20, typeTEB, open.key), forged()))
			c.send(c.frameTo(to.mac, packet))
		}
	}
}
