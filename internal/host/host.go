// Package host changes the devices of a Linux host: the veth by which the host
// itself takes part, the veths of endpoints, and what is set inside their
// namespaces. It knows nothing of the store, and nothing of the datapath but
// that programs attach to the devices.
package host

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The host's own veth: GatewayDevice holds the gateway addresses and the
// host's routes to the subnets; what the host sends there comes out of
// DatapathDevice, where a program takes it.
const (
	GatewayDevice  = "ebpnet0"
	DatapathDevice = "ebpnet1"
)

// Host changes the devices of one network namespace.
type Host struct {
	handle *netlink.Handle
}

// Open opens the network namespace of the calling thread.
func Open() (*Host, error) {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return &Host{handle}, nil
}

// Close lets go of the netlink socket.
func (h *Host) Close() { h.handle.Close() }

// ErrNoDevice says that a device is not there.
var ErrNoDevice = errors.New("no such device")

func (h *Host) find(name string) (netlink.Link, error) {
	device, err := h.handle.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, fmt.Errorf("%w %q", ErrNoDevice, name)
	}
	if err != nil {
		return nil, fmt.Errorf("find device %q: %w", name, err)
	}
	return device, nil
}

// Gateway is the host's own veth.
type Gateway struct {
	Near, Far int // ifindex of GatewayDevice and DatapathDevice
}

// EnsureGateway makes the host's own veth if it is not there, and sets it up
// with the MAC.
//
// Forwarding is switched on for its near end alone: without it the kernel
// gives the datapath no answer about routes (bpf_fib_lookup). Nothing that
// would be forwarded ever comes in there.
func (h *Host) EnsureGateway(mac [6]byte) (Gateway, error) {
	near, err := h.find(GatewayDevice)
	if errors.Is(err, ErrNoDevice) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = GatewayDevice
		attrs.HardwareAddr = mac[:]
		veth := netlink.NewVeth(attrs)
		veth.PeerName = DatapathDevice
		if err := h.handle.LinkAdd(veth); err != nil {
			return Gateway{}, fmt.Errorf("make device %s: %w", GatewayDevice, err)
		}
		near, err = h.find(GatewayDevice)
	}
	if err != nil {
		return Gateway{}, err
	}
	far, err := h.find(DatapathDevice)
	if err != nil {
		return Gateway{}, fmt.Errorf("%s is there, but not its other end: %w; remove it and load again", GatewayDevice, err)
	}
	for _, s := range []struct{ family, device, name, value string }{
		{"ipv4", GatewayDevice, "forwarding", "1"},
		{"ipv4", GatewayDevice, "send_redirects", "0"},
		{"ipv4", GatewayDevice, "accept_redirects", "0"},
		// The one way by which what a container sends to the host would be
		// forwarded to somebody else; `all` may allow it.
		{"ipv4", GatewayDevice, "accept_source_route", "0"},
		{"ipv6", GatewayDevice, "disable_ipv6", "0"},
		{"ipv6", GatewayDevice, "forwarding", "1"},
		{"ipv6", GatewayDevice, "seg6_enabled", "0"},
		{"ipv6", GatewayDevice, "rpl_seg_enabled", "0"},
		{"ipv6", GatewayDevice, "accept_ra", "0"},
		{"ipv6", GatewayDevice, "accept_redirects", "0"},
		{"ipv6", GatewayDevice, "accept_dad", "0"},
		{"ipv6", DatapathDevice, "disable_ipv6", "1"},
	} {
		if err := setSysctl(s.family, s.device, s.name, s.value); err != nil {
			return Gateway{}, err
		}
	}
	if near.Attrs().HardwareAddr.String() != net.HardwareAddr(mac[:]).String() {
		if err := h.handle.LinkSetHardwareAddr(near, mac[:]); err != nil {
			return Gateway{}, fmt.Errorf("set the MAC of %s: %w", GatewayDevice, err)
		}
	}
	// What goes into a tunnel by way of this veth has no other place where its
	// superframes would be cut and its checksums completed.
	if err := completeChecksums(DatapathDevice); err != nil {
		return Gateway{}, err
	}
	for _, device := range []netlink.Link{far, near} {
		if err := h.handle.LinkSetUp(device); err != nil {
			return Gateway{}, fmt.Errorf("set %s up: %w", device.Attrs().Name, err)
		}
	}
	return Gateway{near.Attrs().Index, far.Attrs().Index}, nil
}

// SetGatewayMTU sees to it that both ends of the host's own veth have the MTU.
func (h *Host) SetGatewayMTU(mtu int) error {
	for _, name := range []string{GatewayDevice, DatapathDevice} {
		device, err := h.find(name)
		if err != nil {
			return err
		}
		if device.Attrs().MTU == mtu {
			continue
		}
		if err := h.handle.LinkSetMTU(device, mtu); err != nil {
			return fmt.Errorf("set the MTU of %s: %w", name, err)
		}
	}
	return nil
}

// FindGateway finds the host's own veth, or gives ErrNoDevice.
func (h *Host) FindGateway() (Gateway, error) {
	near, err := h.find(GatewayDevice)
	if err != nil {
		return Gateway{}, err
	}
	far, err := h.find(DatapathDevice)
	if err != nil {
		return Gateway{}, err
	}
	return Gateway{near.Attrs().Index, far.Attrs().Index}, nil
}

// RemoveGateway removes the host's own veth.
func (h *Host) RemoveGateway() error { return h.removeDevice(GatewayDevice) }

func (h *Host) removeDevice(name string) error {
	device, err := h.find(name)
	if errors.Is(err, ErrNoDevice) {
		return nil
	}
	if err != nil {
		return err
	}
	err = h.handle.LinkDel(device)
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove device %s: %w", name, err)
	}
	return nil
}

// SetGatewayAddresses gives the host's own veth exactly these addresses, and
// the host with them its routes to the subnets.
func (h *Host) SetGatewayAddresses(wanted []netip.Prefix) error {
	device, err := h.find(GatewayDevice)
	if err != nil {
		return err
	}
	has, err := h.addresses(device)
	if err != nil {
		return err
	}
	missing := make(map[netip.Prefix]bool, len(wanted))
	for _, p := range wanted {
		missing[p] = true
	}
	for _, a := range has {
		p, ok := prefixOf(a.IPNet)
		if !ok || p.Addr().IsLinkLocalUnicast() {
			continue
		}
		if missing[p] {
			delete(missing, p)
			continue
		}
		if err := h.handle.AddrDel(device, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("remove %s from %s: %w", p, GatewayDevice, err)
		}
	}
	for p := range missing {
		if err := h.handle.AddrAdd(device, addressFor(p)); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add %s to %s: %w", p, GatewayDevice, err)
		}
	}
	return nil
}

// addressFor makes an address that is used at once: the tables see to it that
// nobody else has it.
func addressFor(p netip.Prefix) *netlink.Addr {
	a := &netlink.Addr{IPNet: &net.IPNet{
		IP:   p.Addr().AsSlice(),
		Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()),
	}}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return a
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	a, ok := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), ones), ok
}

// setSysctl writes a setting of a device in the calling thread's namespace. A
// kernel without the family, or without the setting, needs it not.
func setSysctl(family, device, name, value string) error {
	err := os.WriteFile(settingPath(family, device, name), []byte(value), 0)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("set %s of %s to %s: %w", name, device, value, err)
	}
	return nil
}

func settingPath(family, device, name string) string {
	return filepath.Join("/proc/sys/net", family, "conf", device, name)
}

// BootID tells this run of the kernel from all others: proc(5).
func BootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the boot id: %w", err)
	}
	return strings.TrimSpace(string(id)), nil
}

// Addresses lists the host's addresses with their subnets, but for those of
// its own veth.
func (h *Host) Addresses() ([]netip.Prefix, error) {
	gateway := 0
	if device, err := h.find(GatewayDevice); err == nil {
		gateway = device.Attrs().Index
	} else if !errors.Is(err, ErrNoDevice) {
		return nil, err
	}
	has, err := h.addresses(nil)
	if err != nil {
		return nil, err
	}
	var found []netip.Prefix
	for _, a := range has {
		if p, ok := prefixOf(a.IPNet); ok && a.LinkIndex != gateway {
			found = append(found, p)
		}
	}
	return found, nil
}

// addresses lists a device's addresses, or all for nil.
func (h *Host) addresses(device netlink.Link) ([]netlink.Addr, error) {
	found, err := whole(func() ([]netlink.Addr, error) { return h.handle.AddrList(device, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	return found, nil
}

// dumpAttempts is how often a list is asked for that changes meanwhile.
const dumpAttempts = 8

// whole asks for a list until it did not change while the kernel gave it.
func whole[T any](list func() ([]T, error)) (found []T, err error) {
	for range dumpAttempts {
		if found, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return found, err
		}
	}
	return found, err
}
