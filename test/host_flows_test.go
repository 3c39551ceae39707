package test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// echoOn has the host answer UDP by a socket that is bound to its uplink.
func echoOn(t *testing.T, h *testutil.Host, port int) {
	t.Helper()
	var conn net.PacketConn
	h.Do(func() {
		bound := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
			return errors.Join(c.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), testutil.Uplink) }), err)
		}}
		var err error
		if conn, err = bound.ListenPacket(t.Context(), "udp4", fmt.Sprintf(":%d", port)); err != nil {
			t.Error(err)
		}
	})
	if conn == nil {
		t.FailNow()
	}
	t.Cleanup(func() { _ = conn.Close() })
	go func() {
		for buf := make([]byte, 100); ; {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = conn.WriteTo(buf[:n], from)
		}
	}()
}

// TestStrangersOpenNoFlowsOfTheHost: a stranger, with sources that it makes up,
// has the host answer from the number of a published port, at an address or of a
// family where it is not published. What the host remembers of its answers leaves
// containers' room for flows alone.
func TestStrangersOpenNoFlowsOfTheHost(t *testing.T) {
	const flows = 1024
	for _, c := range []struct {
		name    string
		at      string // where the port is published
		v6      bool   // at which family the stranger calls
		listens bool   // the host itself, there
		bound   bool   // UDP instead, to a server of the host's that is bound to its uplink
	}{
		{name: "resets, published at a loopback address", at: "127.0.0.1:"},
		{name: "resets, published for IPv4 alone", at: "0.0.0.0:", v6: true},
		{name: "a server of the host, published at a loopback address", at: "127.0.0.1:", listens: true},
		{name: "a server that is bound to a device", at: "127.0.0.1:", bound: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			h, u := newOutside(t)
			h.Ebpnet(t, "load", "--flows", fmt.Sprint(flows))
			createNet(t, h)
			web := h.NewContainer(t, "web", "net")
			publish(t, h, "web", fmt.Sprintf("%s%d:%d/tcp", c.at, published, service))
			u.Outside.Serve(t, "udp4", fmt.Sprintf(":%d", service))
			target := h.IP4
			if c.v6 {
				target = h.IP6
			}
			if c.listens {
				h.Serve(t, "tcp", at(target, published))
			}
			if c.bound {
				echoOn(t, h, published)
			}
			tap := u.Outside.NewTap(t, "bridge")
			from, err := net.ParseMAC("02:00:00:00:00:01")
			if err != nil {
				t.Fatal(err)
			}
			to := deviceMAC(t, h.Netns, testutil.Uplink)
			web.MustDial(t, "udp", at(u.IP4, service)).MustAsk(t) // host and outside know each other
			for n := range 6 * flows {
				i := n % (2 * flows) // each calls three times
				source := netip.AddrFrom4([4]byte{203, 0, 113, byte(i)})
				if c.v6 {
					source = netip.MustParseAddr(fmt.Sprintf("2001:db8:77::%x", i+1))
				}
				header, next := ip(source, target, layers.IPProtocolTCP)
				if c.bound {
					tap.Send(t, udpFrame(t, from, to, netip.AddrPortFrom(source, uint16(1024+i)), netip.AddrPortFrom(target, published), "call"))
					continue
				}
				syn := testutil.Frame(t, ethernet(from, to, next), header,
					&layers.TCP{SrcPort: layers.TCPPort(1024 + i), DstPort: published, SYN: true, Seq: 7, Window: 1000})
				tap.Send(t, syn)
			}
			conn := web.MustDial(t, "udp", at(u.IP4, service))
			if _, err := conn.Ask(aMoment); err != nil {
				t.Errorf("a container opens no flow any more: %v, drops %d flow_table_full, %d flow_limit",
					err, h.Drops(t, "flow_table_full"), h.Drops(t, "flow_limit"))
			}
		})
	}
}
