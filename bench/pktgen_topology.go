package main

import (
	"fmt"
	"net/netip"
	"strconv"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/bench/generator"
)

// Addresses of GRE that no tunnel leads to, and over IPv6: RFC 5737 and 3849.
var (
	strangerAddr  = netip.MustParseAddr("203.0.113.9")
	uplinkAddr6   = netip.MustParseAddr("2001:db8::1")
	strangerAddr6 = netip.MustParseAddr("2001:db8::9")
)

// Ethernet addresses of endpoints, where the generator has to know them.
var (
	clientMAC = [6]byte{0x02, 0x00, 0x5e, 0x00, 0x00, 0x02}
	serverMAC = [6]byte{0x02, 0x00, 0x5e, 0x00, 0x00, 0x03}
)

// publishedBeside is how many ports are published, the measured one among them.
const publishedBeside = 10

// way is one in which ebpnet takes what arrives at its uplink.
type way struct {
	kind, about string
	load        []string // arguments of load
}

func ways() []way {
	return []way{
		{kind: viaTC, about: "ebpnet by TC"},
		{kind: viaXDP, about: "ebpnet by XDP in the driver", load: []string{"--xdp", "native"}},
	}
}

func toPktgen() []topology {
	var all []topology
	add := func(family, kind, about string, build func(l *lab) path) {
		all = append(all, topology{name: family + "-" + kind, about: about, family: family, kind: kind, build: build})
	}
	add(pktgenDrop, allDrop, "an XDP program of two instructions that drops everything: the limit", buildAllDrop)
	add(pktgenPort, wire, "routed by a host that translates nothing", func(l *lab) path {
		container, beyond := buildRouted(l, 0)
		return l.aimAtPort(container, "veth-container", beyond, netip.AddrPortFrom(containerAddr, serverPort))
	})
	add(pktgenPort, iptables, "Docker's bridge and iptables rules", func(l *lab) path {
		container, beyond := buildIptables(l, publishedBeside)
		return l.aimAtPort(container, "docker0", beyond, netip.AddrPortFrom(uplinkAddr, publishedPort))
	})
	for _, w := range ways() {
		add(pktgenDrop, w.kind, w.about, func(l *lab) path { return buildDropping(l, w) })
		add(pktgenPort, w.kind, w.about, func(l *lab) path {
			container, beyond := translating(l, publishedBeside, w.load...)
			return l.aimAtPort(container, "", beyond, netip.AddrPortFrom(uplinkAddr, publishedPort))
		})
		add(pktgenGRE, w.kind, w.about, func(l *lab) path { return buildDecapsulating(l, w) })
	}
	return all
}

// hostWithUplink makes a host with an uplink, and gives it and the outside.
func (l *lab) hostWithUplink() (host, beyond string) {
	host = l.netns("host")
	beyond = l.uplink(host)
	l.receiveByNAPI(host, underlayDevice)
	return host, beyond
}

// receiveByNAPI makes one end of a veth take frames that were never packets of
// a socket; without, they are lost.
func (l *lab) receiveByNAPI(ns, device string) { l.in(ns, "ethtool", "-K", device, "gro", "on") }

func buildAllDrop(l *lab) path {
	host, beyond := l.hostWithUplink()
	l.attachDrop(host, underlayDevice)
	return l.aimAtUplink(host, beyond)
}

// buildDropping has a tunnel, but not to where the frames come from.
func buildDropping(l *lab, w way) path {
	host, beyond := l.hostWithUplink()
	l.run("ip", "-n", host, "address", "add", uplinkAddr6.String()+"/64", "dev", underlayDevice, "nodad")
	ebpnet := l.ebpnet(host, append([]string{"--uplink", underlayDevice}, w.load...)...)
	ebpnet("network", "create", "bench", "--subnet", subnet.String(), "--gateway", gatewayAddr.String(),
		"--key", strconv.Itoa(overlayKey))
	ebpnet("tunnel", "add", "known", "--remote", outsideAddr.String())
	ebpnet("tunnel", "add", "known6", "--remote", "2001:db8::2", "--local", uplinkAddr6.String())
	return l.aimAtUplink(host, beyond)
}

// aimAtUplink has GRE dropped and counted at the uplink.
func (l *lab) aimAtUplink(host, beyond string) path {
	a := &aim{outNetns: beyond, outDevice: "eth0", inNetns: host, inDevice: underlayDevice}
	a.stream = l.inGRE(l.mac(host, underlayDevice), strangerAddr, uplinkAddr)
	a.stream6 = l.inGRE(l.mac(host, underlayDevice), strangerAddr6, uplinkAddr6)
	return path{client: beyond, server: host, aim: a}
}

// inGRE is a stream from one endpoint to another, between two hosts.
func (l *lab) inGRE(to [6]byte, source, destination netip.Addr) generator.Stream {
	key := uint32(overlayKey)
	return generator.Stream{
		From: clientMAC, To: serverMAC, Flows: someFlows,
		Source: netip.AddrPortFrom(clientAddr, firstFlowPort), Destination: netip.AddrPortFrom(serverAddr, serverPort),
		GRE: &generator.GRE{To: to, Source: source, Destination: destination, Key: &key},
	}
}

// aimAtPort has frames counted and dropped as they enter the container. The
// host knows the container's address on that device by itself, if it is to ask
// for it: the container does not answer any more.
func (l *lab) aimAtPort(container, device, beyond string, to netip.AddrPort) path {
	host := l.prefix + "-host"
	l.receiveByNAPI(host, underlayDevice)
	if device != "" {
		mac := l.mac(container, "eth0")
		l.run("ip", "-n", host, "neighbor", "replace", containerAddr.String(), "lladdr", macText(mac), "dev", device, "nud", "permanent")
	}
	l.dropIngress(container, "eth0")
	return path{client: beyond, server: container, aim: &aim{
		outNetns: beyond, outDevice: "eth0", inNetns: container, inDevice: "eth0",
		stream: generator.Stream{
			To: l.mac(host, underlayDevice), Flows: someFlows,
			Source: netip.AddrPortFrom(outsideAddr, firstFlowPort), Destination: to,
		},
	}}
}

// buildDecapsulating is a host with a tunnel to the outside, from where frames
// come to its endpoint.
func buildDecapsulating(l *lab, w way) path {
	host, beyond := l.hostWithUplink()
	container := l.netns("container")
	ebpnet := l.ebpnet(host, append([]string{"--uplink", underlayDevice}, w.load...)...)
	ebpnet("network", "create", "bench", "--subnet", subnet.String(), "--gateway", gatewayAddr.String(),
		"--key", strconv.Itoa(overlayKey))
	ebpnet("tunnel", "add", "outside", "--remote", outsideAddr.String())
	ebpnet("endpoint", "add", "server", "--network", "bench", "--netns", container,
		"--ip", serverAddr.String(), "--mac", macText(serverMAC))
	ebpnet("endpoint", "add", "client", "--network", "bench", "--tunnel", "outside",
		"--ip", clientAddr.String(), "--mac", macText(clientMAC))
	l.dropIngress(container, "eth0")
	return path{client: beyond, server: container, aim: &aim{
		outNetns: beyond, outDevice: "eth0", inNetns: container, inDevice: "eth0",
		stream: l.inGRE(l.mac(host, underlayDevice), outsideAddr, uplinkAddr),
	}}
}

func macText(mac [6]byte) string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", mac[0], mac[1], mac[2], mac[3], mac[4], mac[5])
}

// attachDrop has XDP drop whatever a device receives.
func (l *lab) attachDrop(ns, device string) {
	l.device(ns, device, func(d netlink.Link) error {
		const drop = 1 // XDP_DROP
		program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Name: "all_drop", Type: ebpf.XDP, License: "MIT",
			Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, drop), asm.Return()},
		})
		if err != nil {
			return err
		}
		defer program.Close()
		return generator.In(netnsPath(ns), func() error {
			attached, err := link.AttachXDP(link.XDPOptions{
				Program: program, Interface: d.Attrs().Index, Flags: link.XDPDriverMode,
			})
			if err == nil {
				l.undo = append(l.undo, attached.Close)
			}
			return err
		})
	})
}

// mac is a device's Ethernet address.
func (l *lab) mac(ns, device string) (mac [6]byte) {
	l.device(ns, device, func(d netlink.Link) error {
		copy(mac[:], d.Attrs().HardwareAddr)
		return nil
	})
	return mac
}

// device does something with a device of a namespace.
func (l *lab) device(ns, name string, do func(netlink.Link) error) {
	l.try(func() error {
		at, err := netns.GetFromPath(netnsPath(ns))
		if err != nil {
			return err
		}
		defer at.Close()
		handle, err := netlink.NewHandleAt(at, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer handle.Close()
		d, err := handle.LinkByName(name)
		if err != nil {
			return fmt.Errorf("device %s of %s: %w", name, ns, err)
		}
		return do(d)
	})
}
