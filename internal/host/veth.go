package host

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/internal/spec"
)

// ErrNoNamespace says that a path leads to no network namespace.
var ErrNoNamespace = errors.New("no network namespace")

// Errors about a namespace that is there.
var (
	ErrOwnNamespace = errors.New("it is the host's own; its processes are on the host already")
	ErrNameInUse    = errors.New("it has an interface of that name already; choose another with --ifname")
)

// vethPrefix begins the names of the host's ends of endpoints' veths; the
// endpoint's id follows.
const vethPrefix = "ebp-"

// hostMTU is the MTU of the host's end of an endpoint's veth: all that the
// kernel allows. It would drop without a word what the container sends that is
// longer than this end has; the datapath answers it.
const hostMTU = 65535

// VethName names the host's end of an endpoint's veth.
func VethName(id uint32) string { return vethPrefix + strconv.FormatUint(uint64(id), 10) }

// Veth is what an endpoint's veth should be.
type Veth struct {
	ID        uint32
	Alias     string     // the endpoint's name, for people who list devices
	Netns     spec.Netns // without a path: the inner end is handed to an engine
	Ifname    string     // inside
	MAC       [6]byte
	MTU       int            // inside
	Addresses []netip.Prefix // with their subnets' lengths
	Gateways  []netip.Addr   // default routes, where there are none yet
	Routes    []spec.Route
}

func (v Veth) handed() bool { return v.Netns.Path == "" }

// Namespace looks a namespace up: ErrNoNamespace if there is none at the path,
// ErrOwnNamespace if it is the host's.
func Namespace(path string) (inode uint64, err error) {
	ns, err := openNamespace(path)
	if err != nil {
		return 0, err
	}
	defer ns.Close()
	var there, here unix.Stat_t
	if err := unix.Fstat(int(ns), &there); err != nil {
		return 0, fmt.Errorf("look at namespace %s: %w", path, err)
	}
	if err := unix.Stat("/proc/thread-self/ns/net", &here); err != nil {
		return 0, fmt.Errorf("look at the host's namespace: %w", err)
	}
	if there.Ino == here.Ino && there.Dev == here.Dev {
		return 0, fmt.Errorf("namespace %s: %w", path, ErrOwnNamespace)
	}
	return there.Ino, nil
}

func openNamespace(path string) (netns.NsHandle, error) {
	ns, err := netns.GetFromPath(path)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return netns.None(), fmt.Errorf("%w at %s: make it first, as with 'ip netns add NAME'", ErrNoNamespace, path)
	}
	if err != nil {
		return netns.None(), fmt.Errorf("open namespace %s: %w", path, err)
	}
	kind, err := unix.IoctlRetInt(int(ns), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		ns.Close()
		return netns.None(), fmt.Errorf("%w at %s: it is something else", ErrNoNamespace, path)
	}
	return ns, nil
}

// inNamespace runs f on a thread of its own in the namespace. The thread ends
// with f, so that nothing else ever runs there by mistake.
func inNamespace(ns netns.NsHandle, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(ns); err != nil {
			done <- fmt.Errorf("enter the namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

// CreateVeth makes an endpoint's veth with one end in its namespace, ready for
// use but for the host's end, which is left down until SetUp. An end that is
// handed to an engine stays in the host's namespace, down and without
// addresses. Nothing is left behind on failure.
func (h *Host) CreateVeth(v Veth) (ifindex int, err error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = VethName(v.ID)
	attrs.MTU = hostMTU
	attrs.Alias = v.Alias
	veth := netlink.NewVeth(attrs)
	veth.PeerHardwareAddr = v.MAC[:]
	veth.PeerMTU = uint32(v.MTU)
	if v.handed() {
		veth.PeerName = HandedName(v.ID)
		if err := h.handle.LinkAdd(veth); err != nil {
			return 0, fmt.Errorf("make interface %s: %w", veth.PeerName, err)
		}
		return h.silence(v.ID)
	}

	ns, err := openNamespace(v.Netns.Path)
	if err != nil {
		return 0, err
	}
	defer ns.Close()
	veth.PeerName = v.Ifname
	veth.PeerNamespace = netlink.NsFd(ns)
	if err := h.handle.LinkAdd(veth); err != nil {
		if errors.Is(err, unix.EEXIST) {
			return 0, fmt.Errorf("interface %s in namespace %s: %w", v.Ifname, v.Netns.Path, ErrNameInUse)
		}
		return 0, fmt.Errorf("make interface %s in namespace %s: %w", v.Ifname, v.Netns.Path, err)
	}
	if ifindex, err = h.silence(v.ID); err != nil {
		return 0, err
	}
	if err := inNamespace(ns, v.configure); err != nil {
		err = fmt.Errorf("set up %s in namespace %s: %w", v.Ifname, v.Netns.Path, err)
		return 0, errors.Join(err, h.RemoveVeth(v.ID))
	}
	return ifindex, nil
}

// silence keeps the host from saying anything on its end of a new veth, which
// is removed if that fails: the host has no address there, and without a
// program it must not answer for the gateway, and forward what it then gets.
func (h *Host) silence(id uint32) (ifindex int, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, h.RemoveVeth(id))
		}
	}()
	device, err := h.find(VethName(id))
	if err != nil {
		return 0, err
	}
	name := device.Attrs().Name
	if err := setSysctl("ipv6", name, "disable_ipv6", "1"); err != nil {
		return 0, err
	}
	if err := h.handle.LinkSetARPOff(device); err != nil {
		return 0, fmt.Errorf("switch ARP off on %s: %w", name, err)
	}
	return device.Attrs().Index, nil
}

// configure sets the end of the veth inside its namespace up, and the loopback
// device. It runs there.
func (v Veth) configure() error {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer handle.Close()
	loopback, err := handle.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := handle.LinkSetUp(loopback); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	device, err := handle.LinkByName(v.Ifname)
	if err != nil {
		return err
	}
	// The source guard knows the link-local address that follows from the MAC.
	settings := map[string]string{"addr_gen_mode": "0"}
	for _, p := range v.Addresses {
		if p.Addr().Is6() {
			settings["disable_ipv6"] = "0"
		}
	}
	for name, value := range settings {
		if err := setSysctl("ipv6", v.Ifname, name, value); err != nil {
			return err
		}
	}
	for _, p := range v.Addresses {
		if err := handle.AddrAdd(device, addressFor(p)); err != nil {
			return fmt.Errorf("add address %s: %w", p, err)
		}
	}
	if err := handle.LinkSetUp(device); err != nil {
		return err
	}
	for _, g := range v.Gateways {
		err := handle.RouteAdd(&netlink.Route{
			LinkIndex: device.Attrs().Index,
			Dst:       defaultRoute(g),
			Gw:        g.AsSlice(),
		})
		// A namespace on several networks keeps the first one's route.
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add the default route by %s: %w", g, err)
		}
	}
	for _, r := range v.Routes {
		route := netlink.Route{
			LinkIndex: device.Attrs().Index,
			Dst:       &net.IPNet{IP: r.Destination.Addr().AsSlice(), Mask: net.CIDRMask(r.Destination.Bits(), r.Destination.Addr().BitLen())},
		}
		if r.Gateway.IsValid() {
			route.Gw = r.Gateway.AsSlice()
		} else {
			route.Scope = netlink.SCOPE_LINK
		}
		if err := handle.RouteReplace(&route); err != nil {
			return fmt.Errorf("add the route to %s: %w", r.Destination, err)
		}
	}
	return nil
}

func defaultRoute(family netip.Addr) *net.IPNet {
	if family.Is4() {
		return &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
	}
	return &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
}

// How long SetUp waits for a new veth, and how often it looks.
const (
	carrierTimeout = 5 * time.Second
	carrierPoll    = time.Millisecond
)

// SetUp lets traffic through an endpoint's veth, and waits until the kernel has
// found that both its ends are up: what is sent before that is lost. ifindex is
// the host's end.
func (h *Host) SetUp(ifindex int, v Veth) error {
	device, err := h.handle.LinkByIndex(ifindex)
	if err != nil {
		return fmt.Errorf("find device %d: %w", ifindex, err)
	}
	if device.Attrs().Flags&net.FlagUp != 0 {
		return nil
	}
	if err := h.handle.LinkSetUp(device); err != nil {
		return fmt.Errorf("set %s up: %w", device.Attrs().Name, err)
	}
	if v.handed() {
		return nil // the engine sets the other end up
	}
	if err := awaitCarrier(func() (netlink.Link, error) { return h.handle.LinkByIndex(ifindex) }); err != nil {
		return fmt.Errorf("find device %d: %w", ifindex, err)
	}
	ns, err := openNamespace(v.Netns.Path)
	if err != nil {
		return err
	}
	defer ns.Close()
	err = inNamespace(ns, func() error {
		return awaitCarrier(func() (netlink.Link, error) { return netlink.LinkByName(v.Ifname) })
	})
	if err != nil {
		return fmt.Errorf("find %s in namespace %s: %w", v.Ifname, v.Netns.Path, err)
	}
	return nil
}

// awaitCarrier asks for a device until its carrier is on, as far as the kernel
// has told the device itself: it may be late for one end of a veth alone.
func awaitCarrier(find func() (netlink.Link, error)) error {
	for deadline := time.Now().Add(carrierTimeout); time.Now().Before(deadline); time.Sleep(carrierPoll) {
		device, err := find()
		if err != nil {
			return err
		}
		if device.Attrs().OperState == netlink.OperUp {
			break
		}
	}
	return nil
}

// Device is the host's end of an endpoint's veth.
type Device struct {
	Ifindex int
	Up      bool // one that is not was never finished
}

// FindVeth finds an endpoint's veth, or gives ErrNoDevice.
func (h *Host) FindVeth(id uint32) (Device, error) {
	device, err := h.find(VethName(id))
	if err != nil {
		return Device{}, err
	}
	attrs := device.Attrs()
	return Device{attrs.Index, attrs.Flags&net.FlagUp != 0}, nil
}

// SetMTU sees to it that an endpoint has its MTU, whatever its interface is
// called by now. One that an engine has taken, nobody knows where to, keeps
// what it has.
func (h *Host) SetMTU(v Veth) error {
	device, err := h.find(VethName(v.ID))
	if err != nil {
		return err
	}
	if v.handed() {
		inner, err := h.find(HandedName(v.ID))
		if errors.Is(err, ErrNoDevice) {
			return nil
		}
		if err == nil {
			err = h.handle.LinkSetMTU(inner, v.MTU)
		}
		return err
	}
	err = inside(device, v, func(inner netlink.Link) error {
		if inner.Attrs().MTU == v.MTU {
			return nil
		}
		return netlink.LinkSetMTU(inner, v.MTU)
	})
	if err != nil {
		return fmt.Errorf("set the MTU of %s in namespace %s: %w", v.Ifname, v.Netns.Path, err)
	}
	if device.Attrs().MTU == hostMTU {
		return nil
	}
	if err := h.handle.LinkSetMTU(device, hostMTU); err != nil {
		return fmt.Errorf("set the MTU of %s: %w", VethName(v.ID), err)
	}
	return nil
}

// RemoveVeth removes an endpoint's veth, both ends.
func (h *Host) RemoveVeth(id uint32) error { return h.removeDevice(VethName(id)) }

// procNetDev lists the devices of the reading thread's namespace. It is much
// cheaper than netlink's list, and unlike sysfs does not depend on a mount.
const procNetDev = "/proc/thread-self/net/dev"

// Veths lists the ids of the endpoints whose veths are there.
func (h *Host) Veths() (map[uint32]bool, error) {
	list, err := os.ReadFile(procNetDev)
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	ids := map[uint32]bool{}
	for line := range strings.Lines(string(list)) {
		name, _, _ := strings.Cut(strings.TrimSpace(line), ":")
		digits, ours := strings.CutPrefix(name, vethPrefix)
		if id, err := strconv.ParseUint(digits, 10, 32); ours && err == nil {
			ids[uint32(id)] = true
		}
	}
	return ids, nil
}
