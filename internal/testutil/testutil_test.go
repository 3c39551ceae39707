package testutil

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

func TestUnderlay(t *testing.T) {
	t.Parallel()
	a, b := NewHost(t, "a"), NewHost(t, "b")
	u := NewUnderlay(t, a, b)
	for _, address := range []netip.Addr{b.IP4, b.IP6, u.IP4, u.IP6} {
		a.Run(t, "ping", "-c", "1", "-W", "2", address.String())
	}
	// Nothing but the underlay is known outside.
	if out, err := u.Outside.Try("ip", "route", "get", "172.30.0.2"); err == nil {
		t.Errorf("the outside has a route to a container: %s", out)
	}
}

func TestServeAnswersWithThePeer(t *testing.T) {
	t.Parallel()
	a, b := NewHost(t, "a"), NewHost(t, "b")
	NewUnderlay(t, a, b)
	for _, network := range []string{"tcp", "udp"} {
		b.Serve(t, network, ":7000")
		for _, end := range []struct{ from, to netip.Addr }{{a.IP4, b.IP4}, {a.IP6, b.IP6}} {
			c := a.MustDialFrom(t, network, ":40000", netip.AddrPortFrom(end.to, 7000).String())
			for range 3 {
				if got, want := c.MustAsk(t), netip.AddrPortFrom(end.from, 40000); got != want {
					t.Errorf("%s: the server saw %s, want %s", network, got, want)
				}
			}
		}
	}
	if _, err := a.Dial(t, "tcp", netip.AddrPortFrom(b.IP4, 7001).String()); err == nil {
		t.Error("a port without a server accepts")
	}
}

func TestTap(t *testing.T) {
	t.Parallel()
	a, b := NewNetns(t, "a"), NewNetns(t, "b")
	Wire(t, a, "wa", nil, b, "wb", nil)
	from, to := a.NewTap(t, "wa"), b.NewTap(t, "wb")
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	from.Send(t, Frame(t,
		&layers.Ethernet{SrcMAC: mac, DstMAC: layers.EthernetBroadcast, EthernetType: layers.EthernetTypeIPv4},
		&layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: net.IP{10, 0, 0, 1}, DstIP: net.IP{10, 0, 0, 2}},
		&layers.UDP{SrcPort: 1, DstPort: 2}, gopacket.Payload("hello")))
	ours := func(p gopacket.Packet) bool {
		return strings.Contains(string(p.Data()), "hello")
	}
	to.Await(t, "the frame", ours)
	if p := from.Receive(t, 100*time.Millisecond, ours); p != nil {
		t.Errorf("the sender receives its own frame:\n%s", p)
	}
}

func TestProcess(t *testing.T) {
	t.Parallel()
	n := NewNetns(t, "n")
	p := n.Start(t, "sleep", "1000")
	if out := p.Interrupt(); out != "" {
		t.Errorf("sleep printed %q", out)
	}
	if out := n.Run(t, "ip", "-o", "link"); strings.Count(out, "\n") != 1 {
		t.Errorf("a new namespace has more than lo:\n%s", out)
	}
	if out, err := n.Try("ip", "link", "set", "nothing", "up"); err == nil || !strings.Contains(out, "nothing") {
		t.Errorf("Try hides a failure: %v, %q", err, out)
	}
}

func TestNamespacesGo(t *testing.T) {
	t.Parallel()
	var path string
	t.Run("inner", func(t *testing.T) {
		n := NewNetns(t, "gone")
		path = n.Path()
		if filepath.Dir(path) != netnsDirectory {
			t.Errorf("namespace at %s", path)
		}
	})
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("%s is still there: %v", path, err)
	}
}
