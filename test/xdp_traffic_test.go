package test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/gopacket/gopacket"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// passes tells whether a frame with this in it was seen on a device: what XDP
// drops or takes to an endpoint is not.
func passes(t *testing.T, tap *testutil.Tap, mark string) bool {
	t.Helper()
	return tap.Receive(t, 0, func(p gopacket.Packet) bool { return strings.Contains(string(p.Data()), mark) }) != nil
}

func TestXDPDropsWhatHasNoBusinessHere(t *testing.T) {
	for _, mode := range []string{"off", "generic", "native"} {
		t.Run(mode, func(t *testing.T) {
			p := newPair(t, greKey, greKey)
			p.a.Ebpnet(t, "load", "--xdp", mode)
			p.a.Ebpnet(t, "port", "add", "web", fmt.Sprintf("%d:%d/udp", published, service), "--allow-from", "10.0.0.0/8")
			uplink := deviceMAC(t, p.a.Netns, testutil.Uplink)
			seen, web := p.a.NewTap(t, testutil.Uplink), p.web.NewTap(t, testutil.Device)
			peer, stranger := p.b.NewTap(t, testutil.Uplink), p.underlay.Outside.NewTap(t, "bridge")
			inner := func(src netip.Addr, mark string) []byte {
				return udpFrame(t, p.redis1.MAC, p.web.MAC, netip.AddrPortFrom(src, service), netip.AddrPortFrom(p.web.IP4, service), mark)
			}
			for _, c := range []struct {
				reason string
				from   *testutil.Tap
				frame  func(mark string) []byte
			}{
				{"unknown_tunnel", stranger, func(mark string) []byte {
					return inGRE(t, uplink, p.underlay.IP4, p.a.IP4, withKey(greKey), inner(p.redis1.IP4, mark))
				}},
				{"unknown_key", peer, func(mark string) []byte {
					return inGRE(t, uplink, p.b.IP4, p.a.IP4, withKey(greKey+1), inner(p.redis1.IP4, mark))
				}},
				{"spoofed_overlay", peer, func(mark string) []byte {
					return inGRE(t, uplink, p.b.IP4, p.a.IP4, withKey(greKey), inner(p.other.IP4, mark))
				}},
				{"source_not_allowed", stranger, func(mark string) []byte {
					return udpFrame(t, nobodysMAC, uplink, netip.AddrPortFrom(p.underlay.IP4, service), netip.AddrPortFrom(p.a.IP4, published), mark)
				}},
			} {
				mark := "for " + c.reason
				p.a.ExpectDrops(t, c.reason, func() { c.from.Send(t, c.frame(mark)) })
				if got, want := passes(t, seen, mark), mode == "off"; got != want {
					t.Errorf("what is dropped for %s is seen on the uplink: %t, want %t", c.reason, got, want)
				}
				if passes(t, web, mark) {
					t.Errorf("what is dropped for %s gets through", c.reason)
				}
			}
			honest := "an honest frame"
			peer.Send(t, inGRE(t, uplink, p.b.IP4, p.a.IP4, withKey(greKey), inner(p.redis1.IP4, honest)))
			web.Await(t, honest, func(p gopacket.Packet) bool { return strings.Contains(string(p.Data()), honest) })
			pingAll(t, p.web, p.redis1)
		})
	}
}

// fillChecksums has a device of a namespace send with checksums filled in, as
// what comes from a wire has them.
func fillChecksums(t *testing.T, n *testutil.Netns, device string) {
	t.Helper()
	n.Run(t, "ethtool", "-K", device, "tx", "off")
}

// expectTaken sends datagrams of flows in both directions, and expects them to
// arrive at the container a, past the uplink or by TC. Streams arrive always.
func expectTaken(t *testing.T, h *testutil.Host, u *testutil.Underlay, a *testutil.Container, taken bool) {
	t.Helper()
	for _, path := range paths(h, u) {
		tap := h.NewTap(t, testutil.Uplink)
		for _, conn := range []*testutil.Conn{
			connects(t, u.Outside, "udp", at(path.host, published)),
			connects(t, a.Netns, "udp", at(path.outside, service)),
		} {
			takeTurns(t, conn)
			for _, turn := range []string{"first", "second"} {
				mark := fmt.Sprintf("%s turn of %s", turn, conn.LocalAddr())
				if _, err := fmt.Fprintln(conn, mark); err != nil {
					t.Fatal(err)
				}
				conn.MustAsk(t) // the answer comes after that to the mark
				in := func(p gopacket.Packet) bool {
					return strings.Contains(string(p.Data()), mark) && !fromHost(p, path.host)
				}
				if got := tap.Receive(t, 0, in) == nil; got != taken {
					t.Errorf("%s is taken past the uplink: %t, want %t", mark, got, taken)
				}
			}
		}
		connects(t, u.Outside, "tcp", at(path.host, published))
		connects(t, a.Netns, "tcp", at(path.outside, service))
	}
}

// Datagrams of a flow go straight to the endpoint, past the uplink, by native XDP
// and with their checksums filled in; else they go by TC. They arrive always.
func TestXDPTakesDatagramsToEndpoints(t *testing.T) {
	for _, c := range []struct {
		mode  string
		wired bool
		taken bool
	}{{"native", true, true}, {"native", false, false}, {"generic", true, false}, {"off", true, false}} {
		t.Run(fmt.Sprintf("%s, wired %t", c.mode, c.wired), func(t *testing.T) {
			h, u := newOutside(t)
			h.Ebpnet(t, "load", "--xdp", c.mode)
			createNet(t, h)
			a := h.NewContainer(t, "a", "net", bothPublished()...)
			serve(t, a.Netns, service)
			serve(t, u.Outside, service)
			if c.wired {
				fillChecksums(t, u.Outside, "bridge")
			}
			expectTaken(t, h, u, a, c.taken)
		})
	}
}

func fromHost(p gopacket.Packet, host netip.Addr) bool {
	return p.NetworkLayer() != nil && p.NetworkLayer().NetworkFlow().Src().String() == host.String()
}

func TestXDPAcrossHosts(t *testing.T) {
	for _, wired := range []bool{false, true} {
		t.Run(fmt.Sprintf("wired %t", wired), func(t *testing.T) {
			p := newPair(t, greKey, greKey)
			p.on(t, "load", "--xdp", "native")
			serve(t, p.redis1.Netns, service)
			if wired {
				fillChecksums(t, p.web.Netns, testutil.Device)
				fillChecksums(t, p.redis1.Netns, testutil.Device)
			}
			pingAll(t, p.web, p.redis1)
			pingAll(t, p.redis1, p.web)
			for _, address := range p.redis1.Addresses() {
				tap := p.b.NewTap(t, testutil.Uplink)
				datagrams := connects(t, p.web.Netns, "udp", at(address, service))
				takeTurns(t, connects(t, p.web.Netns, "tcp", at(address, service)), datagrams)
				mark := "to " + address.String()
				if _, err := fmt.Fprintln(datagrams, mark); err != nil {
					t.Fatal(err)
				}
				datagrams.MustAsk(t)
				in := func(f gopacket.Packet) bool {
					return strings.Contains(string(f.Data()), mark) && !fromHost(f, p.b.IP4)
				}
				if got := tap.Receive(t, 0, in) == nil; got != wired {
					t.Errorf("a datagram %s is taken past the uplink: %t, want %t", mark, got, wired)
				}
				ping(t, p.web.Netns, address, "-s", "1400")
				iperf(t, p.web.Netns, p.redis1.Netns, address)
				iperf(t, p.web.Netns, p.redis1.Netns, address, "--reverse")
				iperf(t, p.web.Netns, p.redis1.Netns, address, "--udp", "--bitrate", "50M", "--length", "100")
			}
		})
	}
}

// Loading again under traffic loses nothing, with more flows neither.
func TestXDPUpgradeLosesNothing(t *testing.T) {
	p := newPair(t, greKey, greKey)
	p.on(t, "load", "--xdp", "native")
	p.a.Ebpnet(t, "port", "add", "web", fmt.Sprintf("%d:%d/udp", published, service))
	serve(t, p.web.Netns, service)
	serve(t, p.underlay.Outside, service)
	for _, wire := range []struct {
		in     *testutil.Netns
		device string
	}{{p.underlay.Outside, "bridge"}, {p.web.Netns, testutil.Device}, {p.redis1.Netns, testutil.Device}} {
		fillChecksums(t, wire.in, wire.device)
	}
	flows := []*testutil.Conn{
		connects(t, p.underlay.Outside, "udp", at(p.a.IP4, published)),
		connects(t, p.web.Netns, "udp", at(p.underlay.IP6, service)),
		connects(t, p.redis1.Netns, "udp", at(p.web.IP4, service)),
		connects(t, p.redis1.Netns, "tcp", at(p.web.IP6, service)),
	}
	var pings []*testutil.Process
	for _, ping := range []struct {
		from *testutil.Netns
		to   netip.Addr
	}{{p.web.Netns, p.underlay.IP4}, {p.web.Netns, p.redis1.IP6}, {p.redis1.Netns, p.web.IP4}} {
		pings = append(pings, ping.from.Start(t, "ping", "-n", "-q", "-i", "0.01", "-c", "600", ping.to.String()))
	}
	loads := 0
	for ; pings[0].Running(); loads++ {
		p.on(t, "load", "--flows", fmt.Sprint(4096*(1+loads%2)))
		for _, c := range flows {
			if _, err := c.Ask(aMoment); err != nil {
				t.Errorf("after %d upgrades, from %s to %s: %v", loads, c.LocalAddr(), c.RemoteAddr(), err)
			}
		}
	}
	for _, ping := range pings {
		if out := ping.Wait(t); !strings.Contains(out, " 0% packet loss") {
			t.Errorf("packets are lost over %d upgrades:\n%s", loads, out)
		}
	}
	if loads < 2 {
		t.Errorf("only %d upgrades while there was traffic", loads)
	}
	expectXDP(t, p.a, testutil.Uplink, "native", "native")
}
