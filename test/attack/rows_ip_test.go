package attack

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
)

// class is one kind of attack. It makes frames.
type class struct {
	name  string
	craft func(*craft)
}

func classes() []class {
	return []class{
		{"honest", (*craft).honest},
		{"spoofed source", (*craft).spoofedSources},
		{"group or mapped source", (*craft).oddSources},
		{"mapped destination", (*craft).mappedDestinations},
		{"fragments", (*craft).fragments},
		{"tiny and overlapping fragments", (*craft).tinyFragments},
		{"extension chains", (*craft).extensionChains},
		{"source routes and options", (*craft).options},
		{"hop limits", (*craft).hopLimits},
		{"lengths and versions", (*craft).lengths},
		{"wrong checksums", (*craft).wrongChecksums},
		{"link layer", (*craft).linkLayer},
		{"foreign MAC", (*craft).foreignMACs},
		{"ARP", (*craft).arps},
		{"neighbor discovery", (*craft).neighborDiscovery},
		{"routers' messages", (*craft).routerMessages},
		{"MLD and IGMP", (*craft).groups},
		{"DHCP servers' messages", (*craft).dhcp},
		{"ICMP errors", (*craft).icmpErrors},
		{"nested headers", (*craft).nested},
		{"checksum start and offset", (*craft).checksumOffload},
		{"checksum with a chosen value", (*craft).checksumChosen},
		{"segmentation", (*craft).segmentation},
		{"mutations", (*craft).mutations},
	}
}

// honest uses its own addresses, and sends to all members. The policy forbids
// most of them.
func (c *craft) honest() {
	for _, to := range c.targets() {
		src := c.source(to.ip)
		c.send(c.frameTo(to.mac, c.udpFrom(ports(src, 4000), ports(to.ip, 53))))
		for _, port := range []uint16{service, published, 22} {
			c.send(c.frameTo(to.mac, c.tcpFrom(ports(src, 4001), ports(to.ip, port), tcpSYN)))
			c.send(c.frameTo(to.mac, c.tcpFrom(ports(src, 4002), ports(to.ip, port), tcpACK)))
		}
		c.send(c.frameTo(to.mac, c.echoFrom(src, to.ip)))
	}
}

// others returns the addresses that the attacker does not have.
func (c *craft) others() (all []netip.Addr) {
	for _, name := range memberNames {
		if m := c.w.members[name]; m != c.me {
			all = append(all, m.IP4, m.IP6, linkLocal(m.MAC))
		}
	}
	for _, n := range []network{sealed, open, closed, vault} {
		all = append(all, n.gateway4(), n.gateway6())
	}
	return append(all, c.w.a.IP4, c.w.a.IP6, c.w.b.IP4, c.w.b.IP6, c.w.underlay.IP4, c.w.underlay.IP6,
		linkLocal(c.w.gatewayA), linkLocal(c.w.uplinkA),
		netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("2001:db8:77::7"))
}

func (c *craft) spoofedSources() {
	for _, src := range c.others() {
		for _, to := range c.few() {
			if to.ip.Is4() != src.Is4() {
				continue
			}
			c.send(c.frameTo(to.mac, c.udpFrom(ports(src, service), ports(to.ip, service))))
			c.send(c.frameTo(to.mac, c.tcpFrom(ports(src, service), ports(to.ip, service), tcpSYN)))
		}
	}
}

// oddSources sends from addresses that no host can have.
func (c *craft) oddSources() {
	for _, src := range []netip.Addr{
		broadcast4, allHosts4, routers4, loopback4, zero4, lastOf(c.me.network.subnet4()), c.me.network.subnet4().Addr(),
		netip.MustParseAddr("240.0.0.1"), netip.MustParseAddr("169.254.1.1"),
		allNodes, allRouters, loopback6, zero6, c.me.network.subnet6().Addr(),
		mapped(c.me.IP4), mapped(c.w.members["vault1"].IP4), compatible(c.me.IP4), wellKnown64(c.me.IP4), sixToFour(c.w.a.IP4),
	} {
		for _, to := range c.few() {
			if to.ip.Is4() != src.Is4() {
				continue
			}
			c.send(c.frameTo(to.mac, c.udpFrom(ports(src, service), ports(to.ip, service))))
			c.send(c.frameTo(to.mac, c.udpFrom(ports(src, 68), ports(to.ip, 67))))
			c.send(c.frameTo(to.mac, c.tcpFrom(ports(src, service), ports(to.ip, service), tcpSYN)))
			c.send(c.frameTo(to.mac, c.echoFrom(src, to.ip)))
		}
	}
}

// These are forms of IPv4 addresses in IPv6: RFC 4291 2.5.5, RFC 6052, RFC 3056.
func mapped(a netip.Addr) netip.Addr { return netip.AddrFrom16(a.As16()) }

func compatible(a netip.Addr) netip.Addr {
	b := a.As4()
	return netip.AddrFrom16([16]byte{12: b[0], b[1], b[2], b[3]})
}

func wellKnown64(a netip.Addr) netip.Addr {
	b := a.As4()
	return netip.AddrFrom16([16]byte{0, 0x64, 0xff, 0x9b, 12: b[0], b[1], b[2], b[3]})
}

func sixToFour(a netip.Addr) netip.Addr {
	b := a.As4()
	return netip.AddrFrom16([16]byte{0x20, 0x02, b[0], b[1], b[2], b[3], 15: 1})
}

func (c *craft) mappedDestinations() {
	for _, to := range c.targets() {
		if !to.ip.Is4() {
			continue
		}
		for _, form := range []func(netip.Addr) netip.Addr{mapped, compatible, wellKnown64, sixToFour} {
			dst := form(to.ip)
			for _, src := range []netip.Addr{c.me.IP6, form(c.me.IP4)} {
				c.send(c.frameTo(to.mac, c.udpFrom(ports(src, service), ports(dst, service))))
			}
		}
	}
}

// options sends IPv4 options: source routes to others, records, and malformed
// options.
func (c *craft) options() {
	route := func(kind byte, hops ...netip.Addr) []byte {
		b := []byte{kind, byte(3 + 4*len(hops)), 4}
		for _, h := range hops {
			b = append(b, h.AsSlice()...)
		}
		return b
	}
	const loose, strict, record, timestamp, alert, security = 131, 137, 7, 68, 148, 130
	other, gateway := c.w.members["vault1"].IP4, c.me.network.gateway4()
	all := [][]byte{
		route(loose, other),
		route(strict, other),
		route(loose, gateway, other, c.w.underlay.IP4),
		route(strict, gateway, other, c.w.b.IP4),
		route(loose, c.w.members["sealed2"].IP4),
		route(record, zero4, zero4),
		{timestamp, 12, 5, 1, 0, 0, 0, 0, 0, 0, 0, 0},
		{alert, 4, 0, 0},
		{security, 11, 0, 0, 0, 0, 0, 0, 0, 0, 0},
		{loose, 3, 4},
		{loose, 40, 4},
		{loose, 1},
		{loose, 0},
		{loose},
		{1, 1, 1, 1},
		{0, loose, 7, 4},
		slices.Repeat([]byte{1}, 40),
		{255, 255, 255, 255},
	}
	for _, to := range c.few() {
		if !to.ip.Is4() {
			continue
		}
		for _, o := range all {
			for _, src := range []netip.Addr{c.me.IP4, other} {
				message := udpMessage(ports(src, service), ports(to.ip, service), c.tag())
				c.send(c.frameTo(to.mac, ip4{src: src, dst: to.ip, proto: protoUDP, options: o}.packet(message)))
			}
			message := tcpMessage(ports(c.me.IP4, service), ports(to.ip, service), tcpSYN, c.tag())
			c.send(c.frameTo(to.mac, ip4{src: c.me.IP4, dst: to.ip, proto: protoTCP, options: o}.packet(message)))
		}
	}
}

func (c *craft) hopLimits() {
	for _, to := range c.targets() {
		for _, ttl := range []uint8{0, 1, 2, 255} {
			p := c.udpFrom(ports(c.source(to.ip), service), ports(to.ip, service))
			if to.ip.Is4() {
				p[8] = ttl
				fixIP4(p)
			} else {
				p[7] = ttl
			}
			c.send(c.frameTo(to.mac, p))
		}
	}
}

// lengths sends packets with wrong length fields, and truncated frames.
func (c *craft) lengths() {
	for _, to := range c.few() {
		src := c.source(to.ip)
		packet := func() []byte { return c.udpFrom(ports(src, service), ports(to.ip, service)) }
		fixed := func(p []byte) []byte {
			if to.ip.Is4() {
				fixIP4(p)
			}
			return p
		}
		for _, length := range []uint16{0, 1, 19, 20, 21, 27, 28, 29, 39, 40, 60, 1500, 65535} {
			p := packet()
			at := 2
			if to.ip.Is6() {
				at = 4
			}
			binary.BigEndian.PutUint16(p[at:], length)
			c.send(c.frameTo(to.mac, fixed(p)))
			p = packet()
			binary.BigEndian.PutUint16(p[len(p)-len(c.tag())-4:], length) // of UDP
			c.send(c.frameTo(to.mac, p))
		}
		for version := range byte(16) {
			p := packet()
			p[0] = version<<4 | p[0]&0xf
			c.send(eth(to.mac, c.me.MAC, ethertypeOf(to.ip), fixed(p)))
			if to.ip.Is4() {
				p = packet()
				p[0] = 0x40 | version // as the header length
				c.send(eth(to.mac, c.me.MAC, typeIPv4, fixed(p)))
			}
			t := c.tcpFrom(ports(src, service), ports(to.ip, service), tcpSYN)
			t[len(t)-len(c.tag())-8] = version << 4 // TCP's data offset
			c.send(c.frameTo(to.mac, t))
		}
		for length := 1; length < 40; length += 3 {
			p := packet()
			c.send(eth(to.mac, c.me.MAC, ethertypeOf(to.ip), p[:min(length, len(p))]))
		}
	}
}

func (c *craft) wrongChecksums() {
	for _, to := range c.targets() {
		src := c.source(to.ip)
		for _, wrong := range []uint16{1, 0x8000, 0xffff} {
			if to.ip.Is4() {
				p := c.udpFrom(ports(src, service), ports(to.ip, service))
				at := p[ip4Checksum:]
				binary.BigEndian.PutUint16(at, binary.BigEndian.Uint16(at)+wrong)
				c.send(c.frameTo(to.mac, p))
			}
			p := c.tcpFrom(ports(src, service), ports(to.ip, service), tcpSYN)
			at := p[len(p)-len(c.tag())-4:]
			binary.BigEndian.PutUint16(at, binary.BigEndian.Uint16(at)+wrong)
			c.send(c.frameTo(to.mac, p))
		}
	}
}

// linkLayer sends honest packets with other ethertypes, VLAN tags and LLC.
func (c *craft) linkLayer() {
	tag := func(tci uint16, kind uint16) []byte {
		b := binary.BigEndian.AppendUint16(nil, tci)
		return binary.BigEndian.AppendUint16(b, kind)
	}
	for _, to := range c.few() {
		for _, src := range []netip.Addr{c.source(to.ip), c.w.members["vault1"].source(to.ip)} {
			kind := ethertypeOf(to.ip)
			packet := func() []byte { return c.udpFrom(ports(src, service), ports(to.ip, service)) }
			for _, outer := range []uint16{typeVLAN, typeQinQ, 0x9100} {
				for _, tci := range []uint16{0, 0xe000, 1, 100, 4095} {
					c.send(eth(to.mac, c.me.MAC, outer, tag(tci, kind), packet()))
				}
				c.send(eth(to.mac, c.me.MAC, outer, tag(1, typeVLAN), tag(2, kind), packet()))
				c.send(eth(to.mac, c.me.MAC, outer, tag(0, typeVLAN), tag(0, kind), packet()))
				c.send(eth(to.mac, c.me.MAC, outer, tag(1, outer)))
			}
			snap := []byte{0xaa, 0xaa, 3, 0, 0, 0}
			for _, length := range []uint16{uint16(8 + len(packet())), 3, 46, 1500, 0x5ff} {
				c.send(eth(to.mac, c.me.MAC, length, snap, binary.BigEndian.AppendUint16(nil, kind), packet()))
				c.send(eth(to.mac, c.me.MAC, length, []byte{0x42, 0x42, 3}, packet()))
				c.send(eth(to.mac, c.me.MAC, length, []byte{0xff, 0xff}, packet()))
			}
			for _, other := range []uint16{0, 0x600, 0x8035, 0x8137, 0x8847, 0x8863, 0x8864, 0x888e, 0x8808, 0x88cc, 0x88f7, 0x8906, typeTEB, 0x22f3, 0xffff, typeARP} {
				c.send(eth(to.mac, c.me.MAC, other, packet()))
			}
			// The ethertype of the other family.
			c.send(eth(to.mac, c.me.MAC, typeIPv4^typeIPv6^kind, packet()))
		}
	}
	for _, group := range []string{"01:80:c2:00:00:00", "01:80:c2:00:00:0e", "01:00:0c:cc:cc:cc", "01:1b:19:00:00:00"} {
		mac, err := net.ParseMAC(group)
		if err != nil {
			panic(err) // an entry of the table above is wrong
		}
		for _, kind := range []uint16{38, 0x88cc, 0x2000, typeIPv4} {
			c.send(eth(mac, c.me.MAC, kind, c.udpFrom(ports(c.me.IP4, 1), ports(allHosts4, 1))))
		}
	}
}

// source returns the member's address in the family of another address.
func (m *member) source(of netip.Addr) netip.Addr {
	if of.Is4() {
		return m.IP4
	}
	return m.IP6
}

// foreignMACs sends from the MACs of others, and sends packets for one member to
// the MACs of others.
func (c *craft) foreignMACs() {
	var all []net.HardwareAddr
	for _, name := range memberNames {
		if m := c.w.members[name]; m != c.me {
			all = append(all, m.MAC)
		}
	}
	all = append(all, c.w.gatewayA, c.w.uplinkA, c.w.uplinkB, nobodysMAC, zeroMAC, broadcastMAC, groupMAC(allNodes))
	for _, mac := range all {
		for _, to := range c.few() {
			src := c.source(to.ip)
			c.send(eth(to.mac, mac, ethertypeOf(to.ip), c.udpFrom(ports(src, service), ports(to.ip, service))))
			c.send(c.frameTo(mac, c.udpFrom(ports(src, service), ports(to.ip, service))))
			c.send(c.frameTo(mac, c.tcpFrom(ports(src, service), ports(to.ip, service), tcpSYN)))
			if who := c.w.byMAC(mac); who != nil {
				c.send(eth(to.mac, mac, ethertypeOf(to.ip), c.udpFrom(ports(who.source(to.ip), service), ports(to.ip, service))))
			}
		}
	}
}
