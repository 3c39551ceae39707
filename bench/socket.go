package main

import (
	"fmt"
	"net/netip"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Sockets here block, in system calls that the Go runtime does not see:
// its poller and its scheduler must not be what is measured. No signal
// interrupts them, as peers run without asynchronous preemption.

// backlog of the listener: one client connects, one connection at a time.
const backlog = 16

// listen opens a server's socket of a type on every address.
func listen(kind int) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	// The last round's connections are in TIME_WAIT on this port.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return -1, os.NewSyscallError("setsockopt", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: serverPort}); err != nil {
		return -1, fmt.Errorf("bind port %d: %w", serverPort, err)
	}
	switch kind {
	case unix.SOCK_STREAM:
		if err := unix.Listen(fd, backlog); err != nil {
			return -1, fmt.Errorf("listen on port %d: %w", serverPort, err)
		}
	case unix.SOCK_DGRAM:
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, datagramBuffer); err != nil {
			return -1, fmt.Errorf("set receive buffer: %w", err)
		}
	}
	return fd, nil
}

// receiveTimeout makes reads fail with EAGAIN after a while of nothing.
func receiveTimeout(fd int, after time.Duration) error {
	limit := unix.NsecToTimeval(after.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		return fmt.Errorf("set receive time-out: %w", err)
	}
	return nil
}

// dial opens a client's socket of a type, connected to an IPv4 address.
func dial(kind int, to netip.AddrPort) (int, error) {
	fd, err := socket(kind)
	if err == nil {
		err = connect(fd, to)
	}
	return fd, err
}

// dialBroadcast opens a client's UDP socket, connected to a broadcast address.
func dialBroadcast(to netip.AddrPort) (int, error) {
	fd, err := socket(unix.SOCK_DGRAM)
	if err == nil {
		err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1))
	}
	if err == nil {
		err = connect(fd, to)
	}
	return fd, err
}

func socket(kind int) (int, error) {
	fd, _, errno := unix.RawSyscall(unix.SYS_SOCKET, unix.AF_INET, uintptr(kind), 0)
	return checked("socket", fd, errno)
}

func connect(fd int, to netip.AddrPort) error {
	sa := unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: to.Addr().As4()}
	// The port is in network order whatever the machine's own.
	port := (*[2]byte)(unsafe.Pointer(&sa.Port))
	port[0], port[1] = byte(to.Port()>>8), byte(to.Port())
	_, _, errno := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa)), unix.SizeofSockaddrInet4)
	if errno != 0 {
		return fmt.Errorf("connect to %s: %w", to, errno)
	}
	return nil
}

func accept(listener int) (int, error) {
	fd, _, errno := unix.RawSyscall(unix.SYS_ACCEPT, uintptr(listener), 0, 0)
	return checked("accept", fd, errno)
}

func read(fd int, b []byte) (int, error) {
	n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	return checked("read", n, errno)
}

func write(fd int, b []byte) (int, error) {
	n, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	return checked("write", n, errno)
}

func closeSocket(fd int) error {
	n, _, errno := unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0)
	_, err := checked("close", n, errno)
	return err
}

func checked(call string, n uintptr, errno unix.Errno) (int, error) {
	if errno != 0 {
		return -1, os.NewSyscallError(call, errno)
	}
	return int(n), nil
}
