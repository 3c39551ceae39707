package host

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unicode"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Listener is a socket of the host that takes what is sent to its port by
// anybody: one that listens, or for UDP one that is not connected.
type Listener struct {
	Address   netip.Addr // unspecified: every one of its family
	DualStack bool       // :: that takes IPv4 too
	Port      uint16

	inode uint32
}

// Of include/net/tcp_states.h; an unconnected UDP socket is closed.
const (
	stateClose  = 7
	stateListen = 10
)

// Listeners lists the listeners of a protocol (its IANA number) in the network
// namespace of the calling thread. A protocol that the kernel has not has none.
func Listeners(protocol uint8) ([]Listener, error) {
	state := stateListen
	if protocol == unix.IPPROTO_UDP {
		state = stateClose
	}
	var found []Listener
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		of, err := whole(func() ([]Listener, error) { return listeners(family, protocol, 1<<state) })
		if err != nil {
			return nil, fmt.Errorf("list sockets of protocol %d: %w", protocol, err)
		}
		found = append(found, of...)
	}
	return found, nil
}

func listeners(family, protocol uint8, states uint32) ([]Listener, error) {
	request := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
	request.AddData(diagRequest{family, protocol, states})
	messages, err := request.Execute(unix.NETLINK_INET_DIAG, nl.SOCK_DIAG_BY_FAMILY)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil // no such protocol
	}
	if err != nil {
		return nil, err
	}
	var found []Listener
	for _, m := range messages {
		l, err := parseListener(m)
		if err != nil {
			return nil, err
		}
		if l.Port != 0 { // a UDP socket that is not bound yet
			found = append(found, l)
		}
	}
	return found, nil
}

// diagRequest is struct inet_diag_req_v2 of linux/inet_diag.h, for sockets
// whatever their addresses.
type diagRequest struct {
	family, protocol uint8
	states           uint32
}

const diagRequestSize = 56

func (r diagRequest) Len() int { return diagRequestSize }

func (r diagRequest) Serialize() []byte {
	b := make([]byte, diagRequestSize)
	b[0], b[1] = r.family, r.protocol
	binary.NativeEndian.PutUint32(b[4:], r.states)
	return b
}

// Offsets into struct inet_diag_msg of linux/inet_diag.h, and its size.
const (
	diagFamily   = 0
	diagPort     = 4
	diagAddress  = 8
	diagInode    = 68
	diagSize     = 72
	diagOnlyIPv6 = 11 // INET_DIAG_SKV6ONLY, an attribute that may follow
)

func parseListener(m []byte) (l Listener, err error) {
	if len(m) < diagSize {
		return l, fmt.Errorf("the kernel describes a socket in %d bytes, want %d", len(m), diagSize)
	}
	l.Port = binary.BigEndian.Uint16(m[diagPort:])
	l.inode = binary.NativeEndian.Uint32(m[diagInode:])
	if m[diagFamily] == unix.AF_INET {
		l.Address = netip.AddrFrom4([4]byte(m[diagAddress:]))
		return l, nil
	}
	l.Address = netip.AddrFrom16([16]byte(m[diagAddress:])).Unmap()
	l.DualStack = l.Address == netip.IPv6Unspecified()
	attributes, err := nl.ParseRouteAttr(m[diagSize:])
	if err != nil {
		return l, err
	}
	for _, a := range attributes {
		if a.Attr.Type == diagOnlyIPv6 && len(a.Value) > 0 && a.Value[0] != 0 {
			l.DualStack = false
		}
	}
	return l, nil
}

// Owner names the process that has the socket, as "nginx (pid 123)". One that
// cannot be seen from here is not named.
func (l Listener) Owner() string {
	name, pid := l.process()
	if pid == "" {
		return "the kernel, or a process that cannot be seen from here"
	}
	return fmt.Sprintf("%s (pid %s)", printable(name), pid)
}

// Holds tells whether the socket only holds its port for a container: Podman,
// and after it conmon, listens on every port that Podman publishes, so that
// nobody else takes it.
func (l Listener) Holds() bool {
	name, _ := l.process()
	return name == "podman" || name == "conmon"
}

// process finds the process that has the socket; empty if it cannot be seen.
func (l Listener) process() (name, pid string) {
	want := fmt.Sprintf("socket:[%d]", l.inode)
	descriptors, _ := filepath.Glob("/proc/[0-9]*/fd/*") // the pattern is well formed
	for _, path := range descriptors {
		if target, err := os.Readlink(path); err != nil || target != want {
			continue
		}
		process := filepath.Dir(filepath.Dir(path))
		name, err := os.ReadFile(filepath.Join(process, "comm"))
		if err != nil {
			continue // it has just ended
		}
		return strings.TrimSpace(string(name)), filepath.Base(process)
	}
	return "", ""
}

// printable makes a process's name, which may hold anything, fit for a line.
func printable(name string) string {
	if strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(name)
	}
	return name
}
