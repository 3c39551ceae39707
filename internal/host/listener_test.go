package host

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// find gives the listener on a port, which the test has opened.
func findListener(t *testing.T, protocol uint8, port int) (Listener, bool) {
	t.Helper()
	all, err := Listeners(protocol)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range all {
		if int(l.Port) == port {
			return l, true
		}
	}
	return Listener{}, false
}

func portOf(t *testing.T, a net.Addr) int {
	t.Helper()
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		t.Fatal(err)
	}
	return int(ap.Port())
}

func TestListeners(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		network, listen string
		want            Listener
	}{
		{"tcp4", "127.0.0.1:0", Listener{Address: netip.MustParseAddr("127.0.0.1")}},
		{"tcp4", "0.0.0.0:0", Listener{Address: netip.IPv4Unspecified()}},
		{"tcp", ":0", Listener{Address: netip.IPv6Unspecified(), DualStack: true}},
		{"tcp6", "[::]:0", Listener{Address: netip.IPv6Unspecified()}},
		{"udp4", "127.0.0.1:0", Listener{Address: netip.MustParseAddr("127.0.0.1")}},
		{"udp", ":0", Listener{Address: netip.IPv6Unspecified(), DualStack: true}},
		{"udp6", "[::1]:0", Listener{Address: netip.MustParseAddr("::1")}},
	} {
		var (
			address  net.Addr
			closing  func() error
			protocol uint8 = unix.IPPROTO_TCP
		)
		if strings.HasPrefix(test.network, "tcp") {
			l, err := net.Listen(test.network, test.listen)
			if err != nil {
				t.Fatal(err)
			}
			address, closing = l.Addr(), l.Close
		} else {
			protocol = unix.IPPROTO_UDP
			l, err := net.ListenPacket(test.network, test.listen)
			if err != nil {
				t.Fatal(err)
			}
			address, closing = l.LocalAddr(), l.Close
		}
		port := portOf(t, address)
		got, there := findListener(t, protocol, port)
		if !there || got.Address != test.want.Address || got.DualStack != test.want.DualStack {
			t.Errorf("%s %s: %v, %+v", test.network, test.listen, there, got)
		}
		if owner := got.Owner(); !strings.HasSuffix(owner, fmt.Sprintf(" (pid %d)", os.Getpid())) {
			t.Errorf("%s %s: owner %q is not this process, %d", test.network, test.listen, owner, os.Getpid())
		}
		if err := closing(); err != nil {
			t.Fatal(err)
		}
		if owner := got.Owner(); !strings.Contains(owner, "cannot be seen") {
			t.Errorf("a closed socket's owner: %q", owner)
		}
	}
	if found, err := Listeners(unix.IPPROTO_SCTP); err != nil {
		t.Errorf("SCTP, which the kernel may not have: %v, %v", found, err)
	}
}

func TestConnectedSocketsAreNoListeners(t *testing.T) {
	t.Parallel()
	server, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	client, err := net.Dial("udp4", server.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if l, there := findListener(t, unix.IPPROTO_UDP, portOf(t, client.LocalAddr())); there {
		t.Errorf("a connected socket is a listener: %+v", l)
	}
}

func TestPrintable(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{"nginx": "nginx", "my app": "my app", "a\nb": `"a\nb"`, "\x1b[2J": `"\x1b[2J"`} {
		if got := printable(name); got != want {
			t.Errorf("%q: %s, want %s", name, got, want)
		}
	}
}
