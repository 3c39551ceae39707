package testutil

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// dialLimit is how long a connection may take to open: longer than one lost
// SYN (a second), so that what fails is shut and not slow.
const dialLimit = 1500 * time.Millisecond

// maxDatagram holds any message of this package.
const maxDatagram = 2048

// Serve starts an echo server inside the namespace, until the test ends. It
// answers each line (tcp, sctp) or datagram (udp) with the address it came from
// and the message.
func (n *Netns) Serve(t testing.TB, network, address string) {
	t.Helper()
	var closer io.Closer
	var err error
	if !strings.HasPrefix(network, "udp") {
		var l net.Listener
		listen := func() (net.Listener, error) { return net.Listen(network, address) }
		if network == "sctp" {
			listen = func() (net.Listener, error) { return listenSCTP(address) }
		}
		n.Do(func() { l, err = listen() })
		if closer = l; err == nil {
			go serveStreams(l)
		}
	} else {
		var c net.PacketConn
		n.Do(func() { c, err = net.ListenPacket(network, address) })
		if closer = c; err == nil {
			go serveDatagrams(c)
		}
	}
	if err != nil {
		t.Fatalf("in %s: %v", n.Name, err)
	}
	t.Cleanup(func() { _ = closer.Close() }) // nothing is left to lose
}

func answer(from net.Addr, message string) []byte {
	return fmt.Appendf(nil, "%s %s", from, message)
}

func serveStreams(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			for r := bufio.NewReader(c); ; {
				line, err := r.ReadString('\n')
				if err != nil {
					return
				}
				if _, err := c.Write(answer(c.RemoteAddr(), line)); err != nil {
					return
				}
			}
		}()
	}
}

func serveDatagrams(c net.PacketConn) {
	for buf := make([]byte, maxDatagram); ; {
		n, from, err := c.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = c.WriteTo(answer(from, string(buf[:n])), from) // a lost datagram is the client's to notice
		}
	}
}

// Conn is a connection from inside a namespace.
type Conn struct {
	net.Conn
	r       *bufio.Reader
	pending string // the part of a line read before a deadline cut it
}

// Dial opens a connection from inside the namespace, or gives up after a
// moment. A udp "connection" is a connected socket. It is closed when the test
// ends.
func (n *Netns) Dial(t testing.TB, network, address string) (*Conn, error) {
	t.Helper()
	return n.DialFrom(t, network, "", address)
}

// DialFrom is Dial from a given local ADDRESS:PORT; "" leaves it to the kernel,
// an empty ADDRESS leaves that to the kernel. For sctp, ADDRESS is needed.
func (n *Netns) DialFrom(t testing.TB, network, local, address string) (*Conn, error) {
	t.Helper()
	// A second attempt at once would run in another thread, outside n.
	d := net.Dialer{Timeout: dialLimit, FallbackDelay: -1, Control: reuseAddress}
	if local != "" && network != "sctp" {
		from, err := localAddress(network, local)
		if err != nil {
			return nil, err
		}
		d.LocalAddr = from
	}
	var c net.Conn
	var err error
	n.Do(func() {
		if network == "sctp" {
			c, err = dialSCTP(local, address)
			return
		}
		c, err = d.DialContext(context.Background(), network, address)
	})
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = c.Close() }) // it may be closed by the test already
	return &Conn{Conn: c, r: bufio.NewReader(c)}, nil
}

// reuseAddress lets a test take a source port again that it has just closed.
func reuseAddress(_, _ string, raw syscall.RawConn) error {
	var set error
	err := raw.Control(func(fd uintptr) {
		set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	})
	return errors.Join(err, set)
}

func localAddress(network, local string) (net.Addr, error) {
	if strings.HasPrefix(network, "tcp") {
		return net.ResolveTCPAddr(network, local)
	}
	return net.ResolveUDPAddr(network, local)
}

// MustDial is Dial for a connection that has to open.
func (n *Netns) MustDial(t testing.TB, network, address string) *Conn {
	t.Helper()
	return n.MustDialFrom(t, network, "", address)
}

// MustDialFrom is DialFrom for a connection that has to open.
func (n *Netns) MustDialFrom(t testing.TB, network, local, address string) *Conn {
	t.Helper()
	c, err := n.DialFrom(t, network, local, address)
	if err != nil {
		t.Fatalf("from %s: %v", n.Name, err)
	}
	return c
}

// Ask sends a message to a server of Serve and gives the address that the
// server saw it come from. Answers to earlier messages are passed over.
func (c *Conn) Ask(limit time.Duration) (netip.AddrPort, error) {
	nonce := rand.Text()
	if err := c.SetDeadline(time.Now().Add(limit)); err != nil {
		return netip.AddrPort{}, err
	}
	if _, err := fmt.Fprintln(c.Conn, nonce); err != nil {
		return netip.AddrPort{}, err
	}
	for {
		line, err := c.r.ReadString('\n')
		c.pending += line
		if err != nil {
			return netip.AddrPort{}, err
		}
		from, message, _ := strings.Cut(strings.TrimSpace(c.pending), " ")
		c.pending = ""
		if message == nonce {
			return netip.ParseAddrPort(from)
		}
	}
}

// MustAsk is Ask of a server that has to answer, be it after a few
// retransmissions.
func (c *Conn) MustAsk(t testing.TB) netip.AddrPort {
	t.Helper()
	from, err := c.Ask(patience)
	if err != nil {
		t.Fatalf("from %s to %s: %v", c.LocalAddr(), c.RemoteAddr(), err)
	}
	return netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
}
