package test

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/bits"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// Where a frame of IPv4 has the first two bytes behind the IP header, a source
// port; and where an echo has its identifier.
const (
	sourcePortAt = 14 + 20
	identifierAt = sourcePortAt + 4
)

// sender writes frames to a container's device as fast as that takes them.
type sender struct{ fd int }

func newSender(t *testing.T, c *testutil.Container) *sender {
	t.Helper()
	fd, err := -1, error(nil)
	c.Do(func() {
		var device *net.Interface
		if device, err = net.InterfaceByName(testutil.Device); err != nil {
			return
		}
		// Protocol 0: it receives nothing.
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err == nil {
			err = unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: device.Index, Protocol: bits.ReverseBytes16(0)})
		}
	})
	if fd >= 0 {
		t.Cleanup(func() { _ = unix.Close(fd) }) // nothing is left to lose
	}
	if err != nil {
		t.Fatalf("in %s: %v", c.Name, err)
	}
	return &sender{fd}
}

// each sends the frame once with each number from first to last in its two
// bytes at the offset.
func (s *sender) each(frame []byte, offset, first, last int) error {
	for number := first; number <= last; number++ {
		binary.BigEndian.PutUint16(frame[offset:], uint16(number))
		for {
			_, err := unix.Write(s.fd, frame)
			if err == nil {
				break
			}
			if !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EINTR) {
				return err
			}
		}
	}
	return nil
}

// sentBy gives how many packets a device of the namespace was given to send,
// and how many of these it lost.
func sentBy(t *testing.T, n *testutil.Netns, device string) (packets, lost uint64) {
	t.Helper()
	var links []struct {
		Stats64 struct {
			Tx struct{ Packets, Dropped uint64 }
		}
	}
	out := n.Run(t, "ip", "-j", "-s", "link", "show", device)
	if err := json.Unmarshal([]byte(out), &links); err != nil || len(links) != 1 {
		t.Fatalf("ip link show %s: %v\n%s", device, err, out)
	}
	tx := links[0].Stats64.Tx
	return tx.Packets + tx.Dropped, tx.Dropped
}

// account is what a host has counted of the packets of an endpoint.
type account struct {
	tx      uint64            // that it sent
	drops   map[string]uint64 // of all endpoints, by reason
	dropped uint64            // their sum
	flooded uint64            // sent by the flood's uplink
	own     uint64            // sent in the endpoint's flows over TCP to the outside
}

func accountOf(t *testing.T, h *testutil.Host, endpoint string, outside netip.Addr) (a account) {
	t.Helper()
	stats := h.Stats(t)
	for _, traffic := range stats.Endpoints {
		if traffic.Name == endpoint {
			a.tx = traffic.TxPackets
		}
	}
	a.drops = map[string]uint64{}
	for _, d := range stats.Drops {
		a.drops[d.Reason] = d.Packets
		a.dropped += d.Packets
	}
	a.flooded, _ = sentBy(t, h.Netns, "up1")
	for _, f := range flowsOf(t, h, "--endpoint", endpoint) {
		if f.To.Addr() == outside {
			a.own += f.SentPackets
		}
	}
	return a
}

// established counts the flows of an endpoint to an address, and those among
// them that are answered.
func established(t *testing.T, h *testutil.Host, endpoint string, to netip.Addr) (all, answered int) {
	t.Helper()
	for _, f := range flowsOf(t, h, "--endpoint", endpoint) {
		if f.To.Addr() == to {
			all++
			if f.State == "established" {
				answered++
			}
		}
	}
	return all, answered
}

// TestFlood has a container open a million flows that nobody answers, half
// of them by UDP and half by TCP, while a thousand connections of another one
// and of its own go on. Its packets are all accounted for: sent, or dropped for
// a reason.
func TestFlood(t *testing.T) {
	const (
		firstPort, lastPort = 1024, 65535
		destinations        = 8 // flooded at every port, by both protocols
		frames              = 2 * destinations * (lastPort - firstPort + 1)
		beside, own         = 900, 100 // connections
		talkers             = 4        // goroutines that use them
	)
	if frames < 1_000_000 {
		t.Fatalf("%d frames are no million", frames)
	}
	h, u := newFlooded(t)
	h.Ebpnet(t, "network", "create", "net", "--subnet", subnet4)
	flooder, worker := h.NewContainer(t, "flooder", "net"), h.NewContainer(t, "worker", "net")
	// No packets but those that are counted here.
	h.SetSysctl(t, "ipv6/conf/ebpnet0/disable_ipv6", "1")
	for _, c := range []*testutil.Container{flooder, worker} {
		c.SetSysctl(t, "ipv6/conf/"+testutil.Device+"/disable_ipv6", "1")
		c.Run(t, "ip", "neigh", "replace", gateway4.String(), "lladdr", gatewayMAC(t, h).String(), "dev", testutil.Device, "nud", "permanent")
	}
	serve(t, u.Outside, service)
	var open []*testutil.Conn
	for i := range beside + own {
		from := worker
		if i < own {
			from = flooder
		}
		open = append(open, connects(t, from.Netns, "tcp", at(u.IP4, service)))
	}
	before := accountOf(t, h, "flooder", u.IP4)
	_, lostBefore := sentBy(t, flooder.Netns, testutil.Device)

	var over atomic.Bool
	var asked atomic.Int64
	var talking sync.WaitGroup
	for first := range talkers {
		talking.Go(func() {
			for last := false; !last; {
				last = over.Load() // a whole round follows the flood
				for i := first; i < len(open); i += talkers {
					if _, err := open[i].Ask(10 * time.Second); err != nil {
						t.Errorf("connection %d of %d: %v", i, len(open), err)
						return
					}
					asked.Add(1)
				}
			}
		})
	}
	start := time.Now()
	s := newSender(t, flooder)
	err := s.flood(t, h, flooder, destinations, firstPort, lastPort)
	if err != nil {
		t.Error(err)
	}
	took := time.Since(start)
	fresh := connects(t, worker.Netns, "tcp", at(u.IP4, service)) // at once
	over.Store(true)
	talking.Wait()
	t.Logf("%d frames in %v, %d questions answered meanwhile", frames, took, asked.Load())
	fresh.MustAsk(t)

	if _, answered := established(t, h, "worker", u.IP4); answered != beside+1 {
		t.Errorf("the other container has %d established flows, want %d", answered, beside+1)
	}
	if _, answered := established(t, h, "flooder", u.IP4); answered != own {
		t.Errorf("the container that floods has %d established flows, want %d", answered, own)
	}
	_, lost := sentBy(t, flooder.Netns, testutil.Device)
	lost -= lostBefore // on the way to the host
	var after account
	accounted := func() bool {
		after = accountOf(t, h, "flooder", u.IP4)
		forwarded, dropped := after.flooded-before.flooded, after.dropped-before.dropped
		return forwarded+dropped+lost == frames && after.tx-before.tx == forwarded+dropped+after.own-before.own
	}
	for deadline := time.Now().Add(5 * time.Second); !accounted(); {
		if time.Now().After(deadline) {
			t.Fatalf("of %d frames %d were forwarded, %d dropped, %d lost on the way; the endpoint's tx is %d, its own flows' %d; %v before, %v after",
				frames, after.flooded-before.flooded, after.dropped-before.dropped, lost, after.tx-before.tx, after.own-before.own,
				before.drops, after.drops)
		}
	}
	t.Logf("%d forwarded, dropped %v", after.flooded-before.flooded, after.drops)
}

// newFlooded makes a loaded host with an uplink to the outside, and another one
// that leads to 203.0.113.0/24, where nobody answers. By the latter the host
// sends nothing of its own.
func newFlooded(t *testing.T) (*testutil.Host, *testutil.Underlay) {
	t.Helper()
	t.Parallel()
	h := testutil.NewHost(t, "host")
	u := testutil.NewUnderlay(t, h)
	sink := testutil.NewNetns(t, "sink")
	for _, n := range []*testutil.Netns{h.Netns, sink} {
		n.SetSysctl(t, "ipv6/conf/default/disable_ipv6", "1")
	}
	testutil.Wire(t, h.Netns, "up1", []string{"198.51.100.1/24"}, sink, "wire", nil)
	h.Run(t, "ip", "neigh", "add", "198.51.100.254", "lladdr", deviceMAC(t, sink, "wire").String(), "dev", "up1", "nud", "permanent")
	h.Run(t, "ip", "route", "add", "203.0.113.0/24", "via", "198.51.100.254")
	h.SetSysctl(t, "ipv6/conf/default/disable_ipv6", "0")
	h.Ebpnet(t, "load", "--uplink", testutil.Uplink, "--uplink", "up1")
	return h, u
}

// flood sends to each of so many destinations from each port, by UDP and by
// TCP. The checksums do not fit the ports, but nobody looks at them.
func (s *sender) flood(t *testing.T, h *testutil.Host, c *testutil.Container, destinations, first, last int) error {
	t.Helper()
	gateway := gatewayMAC(t, h)
	for i := range destinations {
		dst := netip.AddrFrom4([4]byte{203, 0, 113, byte(1 + i)})
		header, next := ip(c.IP4, dst, layers.IPProtocolTCP)
		for _, frame := range [][]byte{
			udpFrame(t, c.MAC, gateway, netip.AddrPortFrom(c.IP4, 1), netip.AddrPortFrom(dst, service), ""),
			testutil.Frame(t, ethernet(c.MAC, gateway, next), header, &layers.TCP{SrcPort: 1, DstPort: service, SYN: true, Window: 1024}),
		} {
			if err := s.each(frame, sourcePortAt, first, last); err != nil {
				return fmt.Errorf("to %s: %w", dst, err)
			}
		}
	}
	return nil
}

// A container that has as many established flows as it gets leaves others theirs, and
// none of the old ones goes for them.
func TestOneContainerLeavesFlowsForOthers(t *testing.T) {
	const flows = 1024
	t.Parallel()
	h := testutil.NewHost(t, "host")
	u := testutil.NewUnderlay(t, h)
	h.Ebpnet(t, "load", "--flows", fmt.Sprint(flows))
	createNet(t, h)
	a, b := h.NewContainer(t, "a", "net"), h.NewContainer(t, "b", "net")
	serve(t, u.Outside, service)
	old := []*testutil.Conn{connects(t, a.Netns, "tcp", at(u.IP4, service)), connects(t, b.Netns, "tcp", at(u.IP6, service))}

	s := newSender(t, a)
	header, next := ip(a.IP4, u.IP4, layers.IPProtocolICMPv4)
	frame := testutil.Frame(t, ethernet(a.MAC, gatewayMAC(t, h), next), header,
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(layers.ICMPv4TypeEchoRequest, 0)})
	if err := s.echoes(frame, 1, 2*flows); err != nil {
		t.Fatal(err)
	}
	if n := h.Drops(t, "flow_limit"); n == 0 {
		t.Error("nothing was dropped for the container's share")
	}
	if share := flowShare(t, h, "a"); share.Established < share.Limit-1 || share.Established > flows/2 {
		t.Errorf("%+v, want all that it may have, and no more than half of %d", share, flows)
	}
	for _, network := range protocols {
		connectsNot(t, h, "flow_limit", a.Netns, network, at(u.IP4, service))
		connects(t, b.Netns, network, at(u.IP4, service))
	}
	if n := h.Drops(t, "flow_table_full"); n != 0 {
		t.Errorf("%d packets dropped for a full table", n)
	}
	takeTurns(t, old...)

	h.Ebpnet(t, "flow", "flush", "--endpoint", "a")
	for _, network := range protocols {
		connects(t, b.Netns, network, at(u.IP4, service))
		connects(t, a.Netns, network, at(u.IP4, service))
	}
	takeTurns(t, old[1]) // the other was flushed, perhaps with a packet on its way
}

// echoes sends the echo request with each identifier from first to last, whose
// checksum it mends.
func (s *sender) echoes(frame []byte, first, last int) error {
	for id := first; id <= last; id++ {
		binary.BigEndian.PutUint16(frame[identifierAt-2:], ^uint16((8<<8+id)%65535)) // type 8; the sequence is 0
		if err := s.each(frame, identifierAt, id, id); err != nil {
			return err
		}
	}
	return nil
}
