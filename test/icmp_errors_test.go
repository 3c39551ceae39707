package test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/internal/testutil"
)

// told is an ICMP error, as a program learns of it.
type told struct {
	kind, code uint8
	mtu        uint32     // of the way on, if that is what it is about
	offender   netip.Addr // who sent it
}

// listensToErrors has a socket keep the ICMP errors that it gets, and send with
// so many hops to live, 0 for the default, and never in fragments.
func listensToErrors(t *testing.T, c *testutil.Conn, hops int) {
	t.Helper()
	err := control(c, func(fd int) error {
		var err error
		if remote(c).Addr().Is4() {
			err = errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1),
				unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO))
			if hops > 0 {
				err = errors.Join(err, unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, hops))
			}
			return err
		}
		err = errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1),
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO))
		if hops > 0 {
			err = errors.Join(err, unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, hops))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func remote(c *testutil.Conn) netip.AddrPort { return netip.MustParseAddrPort(c.RemoteAddr().String()) }

// control runs f on the connection's file descriptor.
func control(c *testutil.Conn, f func(fd int) error) error {
	raw, err := c.Conn.(syscall.Conn).SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) { inner = f(int(fd)) })
	return errors.Join(err, inner)
}

// awaitError waits for an ICMP error that came from another host.
func awaitError(t *testing.T, c *testutil.Conn) (e told) {
	t.Helper()
	testutil.Eventually(t, fmt.Sprintf("an ICMP error for %s to %s", c.LocalAddr(), c.RemoteAddr()), func() bool {
		var found bool
		if err := control(c, func(fd int) (err error) {
			e, found, err = readError(fd)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return found
	})
	return e
}

// readError takes an error off a socket's queue, if there is one of ICMP.
func readError(fd int) (e told, found bool, err error) {
	const (
		extendedSize = 16 // struct sock_extended_err, which the offender's address follows
		in4, in6     = 4, 8
	)
	buf, oob := make([]byte, 2048), make([]byte, 512)
	_, n, _, _, err := unix.Recvmsg(fd, buf, oob, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
	if errors.Is(err, unix.EAGAIN) {
		return e, false, nil
	}
	if err != nil {
		return e, false, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return e, false, err
	}
	for _, m := range messages {
		if m.Header.Type != unix.IP_RECVERR && m.Header.Type != unix.IPV6_RECVERR || len(m.Data) < extendedSize+in6 {
			continue
		}
		e = told{kind: m.Data[5], code: m.Data[6], mtu: binary.NativeEndian.Uint32(m.Data[8:])}
		switch address := m.Data[extendedSize:]; m.Data[4] {
		case unix.SO_EE_ORIGIN_ICMP:
			e.offender = netip.AddrFrom4([4]byte(address[in4:]))
			return e, true, nil
		case unix.SO_EE_ORIGIN_ICMP6:
			e.offender = netip.AddrFrom16([16]byte(address[in6:]))
			return e, true, nil
		}
	}
	return e, false, nil
}
