package testutil

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// Go has no SCTP. A socket of RFC 6458, section 4 (one-to-one style) works like
// one of TCP, so that Go takes it as such once it is open. It is bound to one
// address: otherwise it would tell all addresses of its namespace to the peer.

// listenSCTP listens on ADDRESS:PORT.
func listenSCTP(address string) (net.Listener, error) {
	var l net.Listener
	err := withSCTP(address, func(fd int, at unix.Sockaddr, f *os.File) (err error) {
		if err = unix.Bind(fd, at); err != nil {
			return fmt.Errorf("bind to %s: %w", address, err)
		}
		if err = unix.Listen(fd, unix.SOMAXCONN); err != nil {
			return err
		}
		l, err = net.FileListener(f)
		return err
	})
	return l, err
}

// dialSCTP connects from one ADDRESS:PORT to another.
func dialSCTP(local, remote string) (net.Conn, error) {
	from, err := sockaddr(local)
	if err != nil {
		return nil, err
	}
	var c net.Conn
	err = withSCTP(remote, func(fd int, to unix.Sockaddr, f *os.File) (err error) {
		limit := unix.NsecToTimeval(dialLimit.Nanoseconds())
		if err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit); err != nil {
			return err
		}
		if err = unix.Bind(fd, from); err != nil {
			return fmt.Errorf("bind to %s: %w", local, err)
		}
		if err = unix.Connect(fd, to); err != nil {
			return fmt.Errorf("connect to %s: %w", remote, err)
		}
		c, err = net.FileConn(f)
		return err
	})
	return c, err
}

// withSCTP calls do with a socket of the address's family, which is closed
// afterwards: what do makes of it has a descriptor of its own.
func withSCTP(address string, do func(fd int, at unix.Sockaddr, f *os.File) error) error {
	at, err := sockaddr(address)
	if err != nil {
		return err
	}
	family := unix.AF_INET
	if _, ok := at.(*unix.SockaddrInet6); ok {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if err != nil {
		return fmt.Errorf("open an SCTP socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), address)
	defer f.Close()
	return do(fd, at, f)
}

func sockaddr(address string) (unix.Sockaddr, error) {
	a, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, err
	}
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}, nil
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}, nil
}
