package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Hook is the place in the kernel where one of the programs runs.
type Hook struct {
	name   string
	egress bool
}

// The hooks, named as their programs.
var (
	FromEndpoint = Hook{name: "from_endpoint"}
	FromHost     = Hook{name: "from_host"}
	FromUplink   = Hook{name: "from_uplink"}
	FromLoopback = Hook{name: "from_loopback"}
	ToGateway    = Hook{name: "to_gateway", egress: true}
	ToTunnel     = Hook{name: "to_tunnel"}
	ToUplink     = Hook{name: "to_uplink", egress: true}
)

func (h Hook) String() string { return h.name }

func (o *Objects) program(h Hook) *ebpf.Program {
	switch h {
	case FromEndpoint:
		return o.Programs.FromEndpoint
	case FromHost:
		return o.Programs.FromHost
	case FromUplink:
		return o.Programs.FromUplink
	case FromLoopback:
		return o.Programs.FromLoopback
	case ToGateway:
		return o.Programs.ToGateway
	case ToTunnel:
		return o.Programs.ToTunnel
	default:
		return o.Programs.ToUplink
	}
}

// Attach makes the hook's program run on the device. It replaces an older one
// without a gap. It uses TCX, or clsact if the kernel has no TCX (before 6.6),
// and removes a program that was attached by the other of the two.
func (o *Objects) Attach(h Hook, ifindex int) error {
	err := o.attachTCX(h, ifindex)
	if errors.Is(err, ebpf.ErrNotSupported) {
		err = o.attachClsact(h, ifindex)
	}
	if err != nil {
		return fmt.Errorf("attach %s to device %d: %w", h, ifindex, err)
	}
	return nil
}

// Detach undoes Attach, also for a device that is gone.
func (o *Objects) Detach(h Hook, ifindex int) error {
	if ifindex <= 0 {
		return nil // no device at all
	}
	err := os.Remove(o.linkPath(h, ifindex))
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, detachClsact(h, ifindex))
}

func (o *Objects) linkPath(h Hook, ifindex int) string {
	return filepath.Join(o.dir, linksDirectory, fmt.Sprintf("%s-%d", h, ifindex))
}

func (o *Objects) attachTCX(h Hook, ifindex int) error {
	path := o.linkPath(h, ifindex)
	pinned, err := link.LoadPinnedLink(path, nil)
	switch {
	case err == nil:
		defer pinned.Close()
		if linkedTo(pinned, ifindex) {
			return pinned.Update(o.program(h))
		}
		// The device is gone, and another one may have its number.
		if err := os.Remove(path); err != nil {
			return err
		}
	case !errors.Is(err, os.ErrNotExist):
		return err
	}

	attach := ebpf.AttachTCXIngress
	if h.egress {
		attach = ebpf.AttachTCXEgress
	}
	fresh, err := link.AttachTCX(link.TCXOptions{Interface: ifindex, Program: o.program(h), Attach: attach})
	if err != nil {
		return err
	}
	defer fresh.Close()
	if err := fresh.Pin(path); err != nil {
		return err
	}
	return detachClsact(h, ifindex)
}

// front is a program that runs before an older one.
type front struct {
	link.Link
	path string // of the older one's pin
}

// AttachInFront makes the hook's program run before the older one on the
// device. The older one gets the packets that the new one does not know. So
// packets find the flows of both tables until PromoteFronts removes the older
// program. It returns false if the kernel has no TCX, or if the device has no
// program. If this process ends first, the older program runs alone as before.
func (o *Objects) AttachInFront(h Hook, ifindex int) (bool, error) {
	path := o.linkPath(h, ifindex)
	older, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open the link of %s to device %d: %w", h, ifindex, err)
	}
	defer older.Close()
	if !linkedTo(older, ifindex) {
		return false, nil
	}
	l, err := link.AttachTCX(link.TCXOptions{
		Interface: ifindex, Program: o.program(h), Attach: ebpf.AttachTCXIngress, Anchor: link.BeforeLink(older),
	})
	if err != nil {
		return false, fmt.Errorf("attach %s to device %d before the older one: %w", h, ifindex, err)
	}
	o.fronts = append(o.fronts, front{l, path})
	return true, nil
}

// PromoteFronts replaces the older programs by those that AttachInFront has
// attached.
func (o *Objects) PromoteFronts() error {
	for len(o.fronts) > 0 {
		f := o.fronts[0]
		fresh := frontPath(f.path)
		if err := f.Pin(fresh); err != nil {
			return fmt.Errorf("pin the link of a program in front: %w", err)
		}
		if err := os.Rename(fresh, f.path); err != nil {
			return fmt.Errorf("replace the link of an older program: %w", err)
		}
		o.fronts = o.fronts[1:]
		if err := f.Close(); err != nil {
			return fmt.Errorf("close the link of a program in front: %w", err)
		}
	}
	return nil
}

// closeFronts removes the programs in front that were not promoted.
func (o *Objects) closeFronts() error {
	var err error
	for _, f := range o.fronts {
		err = errors.Join(err, f.Close())
	}
	o.fronts = nil
	return err
}

// frontPrefix is the prefix of the name of a link that will replace another.
const frontPrefix = "front-"

func frontPath(path string) string {
	return filepath.Join(filepath.Dir(path), frontPrefix+filepath.Base(path))
}

// clearFronts removes the links that an interrupted Load has not promoted.
func clearFronts(dir string) error {
	left, err := filepath.Glob(filepath.Join(dir, linksDirectory, frontPrefix+"*"))
	for _, path := range left {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}

// linkedTo reports whether a link is still attached to the device.
func linkedTo(l link.Link, ifindex int) bool {
	info, err := l.Info()
	if err != nil {
		return false
	}
	tcx := info.TCX()
	return tcx != nil && tcx.Ifindex == uint32(ifindex)
}

// Linked lists the numbers of the devices to which the hook's program is
// attached; with TCX also those of devices that are gone.
func (o *Objects) Linked(h Hook) ([]int, error) {
	entries, err := os.ReadDir(filepath.Join(o.dir, linksDirectory))
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	entries = slices.DeleteFunc(entries, func(e os.DirEntry) bool { return isXDP(e.Name()) })
	if len(entries) == 0 {
		return filtered(h) // older kernels have links only for XDP
	}
	var found []int
	for _, e := range entries {
		var ifindex int
		if _, err := fmt.Sscanf(e.Name(), h.name+"-%d", &ifindex); err == nil {
			found = append(found, ifindex)
		}
	}
	return found, nil
}

// filtered lists the devices with the hook's filter.
func filtered(h Hook) ([]int, error) {
	devices, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	var found []int
	for _, device := range devices {
		ours, err := filtersOf(h, device)
		if err != nil {
			return nil, err
		}
		if len(ours) > 0 {
			found = append(found, device.Attrs().Index)
		}
	}
	return found, nil
}

// These tell our filters from those of others on a clsact hook.
const (
	filterPriority = 235
	filterHandle   = 1
)

func (h Hook) filter(ifindex int) *netlink.BpfFilter {
	parent := uint32(netlink.HANDLE_MIN_INGRESS)
	if h.egress {
		parent = netlink.HANDLE_MIN_EGRESS
	}
	return &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: ifindex,
			Parent:    parent,
			Handle:    filterHandle,
			Priority:  filterPriority,
			Protocol:  unix.ETH_P_ALL,
		},
		Name:         "ebpnet_" + h.name,
		DirectAction: true,
	}
}

func (o *Objects) attachClsact(h Hook, ifindex int) error {
	err := netlink.QdiscAdd(&netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: ifindex,
			Handle:    netlink.MakeHandle(0xffff, 0),
			Parent:    netlink.HANDLE_CLSACT,
		},
		QdiscType: "clsact",
	})
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add clsact: %w", err)
	}
	filter := h.filter(ifindex)
	filter.Fd = o.program(h).FD()
	if err := netlink.FilterReplace(filter); err != nil {
		return fmt.Errorf("add filter: %w", err)
	}
	return nil
}

// detachClsact removes our filter; the qdisc may be in use by others.
func detachClsact(h Hook, ifindex int) error {
	device, err := netlink.LinkByIndex(ifindex)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find device %d: %w", ifindex, err)
	}
	ours, err := filtersOf(h, device)
	if err != nil {
		return err
	}
	for _, f := range ours {
		if err := netlink.FilterDel(f); err != nil {
			return fmt.Errorf("remove filter of %s: %w", device.Attrs().Name, err)
		}
	}
	return nil
}

// filtersOf lists the hook's filters on a device.
func filtersOf(h Hook, device netlink.Link) ([]netlink.Filter, error) {
	want := h.filter(device.Attrs().Index)
	filters, err := netlink.FilterList(device, want.Parent)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENODEV) {
		return nil, nil // no clsact, or the device is gone
	}
	if err != nil {
		return nil, fmt.Errorf("list filters of %s: %w", device.Attrs().Name, err)
	}
	return slices.DeleteFunc(filters, func(f netlink.Filter) bool {
		b, ok := f.(*netlink.BpfFilter)
		return !ok || b.Name != want.Name
	}), nil
}

// Unload detaches the programs pinned under dir from all devices of this
// network namespace, and removes the pins. After its first step, Open returns
// ErrNotLoaded. If it is killed, Load or another Unload continues.
func Unload(dir string) error {
	for _, step := range unloadSteps(dir) {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// unloadSteps are the steps of Unload. It removes the pins of programs first,
// so that no process opens a datapath that is attached nowhere.
func unloadSteps(dir string) []func() error {
	steps := []func() error{
		func() error { return removePins(dir, programsDirectory) },
		detachAllClsact,
		func() error { return detachAllXDP(dir) },
	}
	for _, sub := range []string{
		linksDirectory, programsDirectory + freshSuffix, mapsDirectory, mapsDirectory + freshSuffix, oldDirectory, formerDirectory, formatDirectory,
	} {
		steps = append(steps, func() error { return removePins(dir, sub) })
	}
	return append(steps, func() error {
		if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("remove the pin directory: %w", err)
		}
		return nil
	})
}

func removePins(dir, sub string) error {
	if err := os.RemoveAll(filepath.Join(dir, sub)); err != nil {
		return fmt.Errorf("remove the pins: %w", err)
	}
	return nil
}

func detachAllClsact() error {
	devices, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list devices: %w", err)
	}
	for _, device := range devices {
		for _, h := range []Hook{FromEndpoint, FromHost, FromUplink, FromLoopback, ToGateway, ToTunnel, ToUplink} {
			if err := detachClsact(h, device.Attrs().Index); err != nil {
				return err
			}
		}
	}
	return nil
}

func detachAllXDP(dir string) error {
	linked, err := xdpPaths(dir)
	if err != nil {
		return err
	}
	for _, path := range linked {
		if err := detachXDP(path); err != nil {
			return err
		}
	}
	return nil
}
