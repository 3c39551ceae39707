package attack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// Settings of TestFloods: how long each flood lasts at least (`make
// attack-floods`), and how many established flows the host has room for, so that
// a flood can fill the table.
const (
	floodVariable = "EBPNET_FLOODS"
	floodFlows    = "16384"
	fewestFlooded = 200_000 // frames: more than there are ports, and flows
	floodedPort   = 9000    // of the flooder, published for its accomplice
	established   = 8       // connections of each party
	answerLimit   = 20 * time.Second
	openTries     = 5 // a lost SYN is sent again
)

// flood is one way to use up what others need. It gives one of its frames, by
// number.
type flood struct {
	name    string
	outside bool // the accomplice sends, from outside
	frames  func(*craft) func(n uint32) []byte
}

// number changes 16 bits of a frame of IPv4. The checksum of UDP does not fit
// any more where it is not zero, but nobody drops the packet for it on the way.
func number(frame []byte, at int, n uint16) { binary.BigEndian.PutUint16(frame[at:], n) }

const (
	sourcePortAt = ethLength + ip4Length
	destPortAt   = sourcePortAt + 2
	idAt         = ethLength + 4
)

// unsummed takes the checksum of UDP off a frame of IPv4.
func unsummed(frame []byte) []byte {
	number(frame, sourcePortAt+udpChecksum, 0)
	return frame
}

func floods() []flood {
	return []flood{
		{"new flows to one destination", false, func(c *craft) func(uint32) []byte {
			frame := unsummed(c.frameTo(c.w.gatewayA, c.udpFrom(ports(c.me.IP4, 1), ports(c.w.underlay.IP4, floodedPort))))
			return func(n uint32) []byte {
				number(frame, sourcePortAt, uint16(n))
				return frame
			}
		}},
		{"new flows to an accomplice's ports", false, func(c *craft) func(uint32) []byte {
			frame := unsummed(c.frameTo(c.w.gatewayA, c.udpFrom(ports(c.me.IP4, 1), ports(c.w.underlay.IP4, service))))
			return func(n uint32) []byte {
				number(frame, sourcePortAt, uint16(n))
				number(frame, destPortAt, floodedPort+uint16(n>>14)%accomplicePorts)
				return frame
			}
		}},
		{"half-open SYNs", false, func(c *craft) func(uint32) []byte {
			dst := netip.MustParseAddr("203.0.113.1")
			frame := c.frameTo(c.w.gatewayA, c.tcpFrom(ports(c.me.IP4, 1), ports(dst, 80), tcpSYN))
			return func(n uint32) []byte {
				number(frame, sourcePortAt, uint16(n))
				number(frame, destPortAt, uint16(n>>16)+80)
				return frame
			}
		}},
		{"fragments", false, func(c *craft) func(uint32) []byte {
			message := udpMessage(ports(c.me.IP4, 4000), ports(c.w.underlay.IP4, service), make([]byte, 56))
			first := c.frameTo(c.w.gatewayA, fragmentOf(c.me.IP4, c.w.underlay.IP4, protoUDP, 0, 0, true, message[:32]))
			later := c.frameTo(c.w.gatewayA, fragmentOf(c.me.IP4, c.w.underlay.IP4, protoUDP, 0, 4, true, message[32:]))
			return func(n uint32) []byte {
				frame := first
				if n%4 == 3 {
					frame = later
				}
				number(frame, idAt, uint16(n))
				fixIP4(frame[ethLength:])
				return frame
			}
		}},
		{"broadcast storm", false, func(c *craft) func(uint32) []byte {
			ask := make([]byte, 28)
			copy(ask, []byte{0, 1, 8, 0, 6, 4, 0, 1})
			copy(ask[8:], c.me.MAC)
			copy(ask[14:], as4(c.me.IP4))
			arp := eth(broadcastMAC, c.me.MAC, typeARP, ask)
			datagram := unsummed(c.frameTo(broadcastMAC, c.udpFrom(ports(c.me.IP4, 137), ports(broadcast4, 137))))
			return func(n uint32) []byte {
				if n%2 == 0 {
					copy(arp[ethLength+24:], []byte{10, 30, byte(open.id), byte(100 + n%100)})
					return arp
				}
				return datagram
			}
		}},
		{"first packets to a published port", true, func(c *craft) func(uint32) []byte {
			src := c.w.underlay.IP4.As4()
			packet := udpMessage(ports(c.w.underlay.IP4, 1), ports(c.w.a.IP4, floodedPort), c.tag())
			frame := unsummed(eth(c.w.uplinkA, nobodysMAC, typeIPv4, ipPacket(c.w.underlay.IP4, c.w.a.IP4, protoUDP, packet)))
			return func(n uint32) []byte {
				n /= 2 // twice from each port, as one who has got an answer
				number(frame, sourcePortAt, uint16(n))
				src[3] = byte(100 + n>>16%100)
				copy(frame[ethLength+12:], src[:])
				fixIP4(frame[ethLength:])
				return frame
			}
		}},
		{"ICMP errors", false, func(c *craft) func(uint32) []byte {
			c.icmpErrors()
			var frames [][]byte
			for _, f := range c.out {
				frames = append(frames, f.frame)
			}
			return func(n uint32) []byte { return frames[int(n)%len(frames)] }
		}},
	}
}

// accomplicePorts are those of UDP on which the outside answers.
const accomplicePorts = 8

// party is one whose connections go on while another floods.
type party struct {
	name    string
	from    *testutil.Netns
	address string
	network string // of the new connections
}

// tally is what became of a party's connections.
type tally struct{ asked, opened, lost, refused atomic.Int64 }

// TestFloods floods from one container in each of the ways of issue 13, while
// connections of another container, of the host, of a tunnel and to a published
// port go on. They lose nothing, and new ones open.
func TestFloods(t *testing.T) {
	text := os.Getenv(floodVariable)
	if text == "" {
		t.Skipf("left out: `make attack-floods` runs it (%s)", floodVariable)
	}
	lasts, err := time.ParseDuration(text)
	if err != nil {
		t.Fatalf("%s: %v", floodVariable, err)
	}
	w := newWorld(t, "--flows", floodFlows)
	outside := w.underlay.Outside
	outside.Serve(t, "tcp", fmt.Sprintf(":%d", service))
	for i := range accomplicePorts {
		reflects(t, outside, floodedPort+i)
	}
	flooder := w.members["open1"]
	reflects(t, flooder.Netns, floodedPort)
	w.a.Ebpnet(t, "port", "add", "open1", fmt.Sprintf("%d:%d/udp", floodedPort, floodedPort))
	for _, n := range []*testutil.Netns{w.a.Netns, w.b.Netns, w.members["open3"].Netns, w.members["vault3"].Netns} {
		n.Serve(t, "tcp", fmt.Sprintf(":%d", service))
	}
	at := func(a netip.Addr, port uint16) string { return ports(a, port).String() }
	parties := []party{
		{"container, outside", w.members["bystander1"].Netns, at(w.underlay.IP4, service), "tcp"},
		{"container, flooded port", w.members["open2"].Netns, at(w.underlay.IP4, floodedPort), "udp"},
		{"host, outside", w.a.Netns, at(w.underlay.IP4, service), "tcp"},
		{"host, flooded port", w.a.Netns, at(w.underlay.IP4, floodedPort), "udp"},
		{"container, host", w.members["open2"].Netns, at(open.gateway4(), service), "tcp"},
		{"tunnel, other network", w.members["vault1"].Netns, at(w.members["vault3"].IP4, service), "tcp"},
		{"tunnel, same network", w.members["open2"].Netns, at(w.members["open3"].IP4, service), "tcp"},
		{"hosts of the tunnel", w.b.Netns, at(w.a.IP4, service), "tcp"},
		{"published port", outside, at(w.a.IP4, published), "tcp"},
	}
	var table strings.Builder
	out := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(out, "flood\tframes/s\tparty\tanswers\tlost\topened\tnot opened")
	for _, f := range floods() {
		t.Run(f.name, func(t *testing.T) {
			dropped := map[string]uint64{}
			for _, d := range w.a.Stats(t).Drops {
				dropped[d.Reason] = d.Packets
			}
			tallies := make([]tally, len(parties))
			var over atomic.Bool
			var talking sync.WaitGroup
			for i, p := range parties {
				var conns []*testutil.Conn
				for range established {
					conns = append(conns, p.mustOpen(t))
				}
				talking.Go(func() { p.talk(t, conns, &tallies[i], &over) })
			}
			c := &craft{w: w, me: flooder, rnd: rand.New(rand.NewPCG(defaultSeed, 0))}
			source, device := flooder.Netns, testutil.Device
			if f.outside {
				source, device = outside, "bridge"
			}
			start := time.Now()
			sent := flooding(t, source, device, f.frames(c), lasts)
			rate := float64(sent) / time.Since(start).Seconds()
			over.Store(true)
			talking.Wait()
			for i, p := range parties {
				n := &tallies[i]
				fmt.Fprintf(out, "%s\t%.0f\t%s\t%d\t%d\t%d\t%d\n", f.name, rate, p.name,
					n.asked.Load(), n.lost.Load(), n.opened.Load(), n.refused.Load())
				if n.lost.Load() != 0 || n.refused.Load() != 0 {
					t.Errorf("%s: %d of %d answers are lost, %d of %d connections did not open",
						p.name, n.lost.Load(), n.asked.Load(), n.refused.Load(), n.opened.Load()+n.refused.Load())
				}
			}
			for _, d := range w.a.Stats(t).Drops {
				if n := d.Packets - dropped[d.Reason]; n > 0 {
					t.Logf("dropped for %s: %d", d.Reason, n)
				}
			}
			// The next flood starts with the room that this one found: closed
			// connections count for a while too.
			for _, name := range []string{"open1", "open2", "bystander1", "server1", "vault1"} {
				w.a.Ebpnet(t, "flow", "flush", "--endpoint", name)
			}
		})
	}
	if err := out.Flush(); err != nil {
		t.Fatal(err)
	}
	t.Logf("each for %v or longer, with room for %s established flows:\n%s", lasts, floodFlows, &table)
}

// talk asks on all connections in turn, and opens a new one after each round,
// until the flood is over and one round more.
func (p party) talk(t *testing.T, conns []*testutil.Conn, n *tally, over *atomic.Bool) {
	for last := false; !last; {
		last = over.Load()
		for i, c := range conns {
			if c == nil {
				continue
			}
			if err := p.ask(c); err != nil {
				n.lost.Add(1)
				conns[i] = nil
				continue
			}
			n.asked.Add(1)
		}
		if p.opens(t) {
			n.opened.Add(1)
		} else {
			n.refused.Add(1)
		}
	}
}

// mustOpen opens a connection that has to last.
func (p party) mustOpen(t *testing.T) *testutil.Conn {
	t.Helper()
	c := p.from.MustDial(t, p.network, p.address)
	if p.network == "tcp" {
		c.MustAsk(t)
	} else if err := echoed(c.Conn, answerLimit); err != nil {
		t.Fatal(err)
	}
	return c
}

// ask has a connection go on; a datagram may be lost on a busy machine, and is
// sent again.
func (p party) ask(c *testutil.Conn) error {
	if p.network == "tcp" {
		_, err := c.Ask(answerLimit)
		return err
	}
	var err error
	for range openTries {
		if err = echoed(c.Conn, time.Second); err == nil {
			return nil
		}
	}
	return err
}

// echoed sends a datagram to a server of reflects and waits for the answer.
func echoed(c net.Conn, limit time.Duration) error {
	if err := c.SetDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	message := []byte(time.Now().String())
	if _, err := c.Write(message); err != nil {
		return err
	}
	for buf := make([]byte, 128); ; {
		n, err := c.Read(buf)
		if err != nil || bytes.Equal(buf[:n], message) {
			return err
		}
	}
}

// reflects starts a server of UDP over IPv4 that sends everything back. Its queue
// is short: a late answer finds no half-open flow.
func reflects(t *testing.T, n *testutil.Netns, port int) {
	t.Helper()
	fd, err := -1, error(nil)
	n.Do(func() {
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return
		}
		err = unix.Bind(fd, &unix.SockaddrInet4{Port: port})
	})
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for buf := make([]byte, 2048); ; {
			n, from, err := unix.Recvfrom(fd, buf, 0)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil || n == 0 {
				return
			}
			_ = unix.Sendto(fd, buf[:n], 0, from) // a lost datagram is the client's to notice
		}
	})
	t.Cleanup(func() {
		_ = unix.Shutdown(fd, unix.SHUT_RDWR) // not connected: but it wakes the receiver
		serving.Wait()
		_ = unix.Close(fd) // nothing is left to lose
	})
}

// opens tells whether a new connection opens and is answered; on a busy machine
// perhaps at a later try.
func (p party) opens(t *testing.T) bool {
	for range openTries {
		c, err := p.from.Dial(t, p.network, p.address)
		if err != nil {
			continue
		}
		if p.network == "tcp" {
			_, err = c.Ask(time.Second)
		} else {
			err = echoed(c, time.Second)
		}
		_ = c.Close() // nothing is left to lose
		if err == nil {
			return true
		}
	}
	return false
}

// flooding sends frames as fast as it can, so long and so many, and tells how many.
func flooding(t *testing.T, n *testutil.Netns, device string, frame func(uint32) []byte, lasts time.Duration) (sent uint32) {
	t.Helper()
	fd, err := -1, error(nil)
	n.Do(func() {
		var dev *net.Interface
		if dev, err = net.InterfaceByName(device); err != nil {
			return
		}
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err == nil {
			err = unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: dev.Index, Protocol: bits.ReverseBytes16(0)})
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for end := time.Now().Add(lasts); time.Now().Before(end) || sent < fewestFlooded; {
		for range 64 {
			_, err := unix.Write(fd, frame(sent))
			switch {
			case err == nil:
				sent++
			case !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINTR):
				t.Errorf("flood: %v", err)
				return sent
			}
		}
	}
	return sent
}
