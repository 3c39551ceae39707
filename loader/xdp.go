package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/bpf"
)

// XDPMode is how the kernel runs the program of XDP on a device.
type XDPMode string

// The modes.
const (
	XDPNative  XDPMode = "native"  // in the driver, before there is a socket buffer
	XDPGeneric XDPMode = "generic" // after that, on any device
)

// ErrNoXDP says that the program of XDP was left out, or that the kernel did not
// take it; all else works without it.
var ErrNoXDP = errors.New("the XDP program is not loaded")

// ErrForeignXDP says that somebody else's XDP program is on a device.
var ErrForeignXDP = errors.New("another XDP program is on it")

func (m XDPMode) flags() link.XDPAttachFlags {
	if m == XDPNative {
		return link.XDPDriverMode
	}
	return link.XDPGenericMode
}

// loadXDP brings the program of XDP into the kernel, with the maps and constants
// of the others. It may be missing unless it is needed.
func (u *upgrade) loadXDP() error {
	if u.config.WithoutXDP {
		u.objects.NoXDP = ErrNoXDP
		return nil
	}
	program, err := u.newXDP()
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrNoXDP, err)
		if u.config.NeedXDP {
			return err
		}
		u.objects.NoXDP = err
		return nil
	}
	u.objects.XDP = program
	u.programs[bpf.XdpProgXdpUplink] = program
	return nil
}

func (u *upgrade) newXDP() (*ebpf.Program, error) {
	spec, err := specXDP(u.spec, u.config)
	if err != nil {
		return nil, err
	}
	shared := map[string]*ebpf.Map{}
	for name, m := range spec.Maps {
		if isSection(name) {
			continue
		}
		shared[name] = u.maps[name]
		if shared[name] == nil {
			return nil, fmt.Errorf("no other program has its map %s", name)
		}
		m.MaxEntries = shared[name].MaxEntries()
	}
	collection, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: shared})
	if err != nil {
		return nil, err
	}
	defer collection.Close()
	return collection.DetachProgram(bpf.XdpProgXdpUplink), nil
}

// specXDP gives the program of XDP with the constants of the other programs.
func specXDP(others *ebpf.CollectionSpec, c Config) (*ebpf.CollectionSpec, error) {
	spec, err := bpf.LoadXdp()
	if err != nil {
		return nil, err
	}
	for name, constant := range spec.Variables {
		if same := others.Variables[name]; same != nil {
			constant.Value = slices.Clone(same.Value)
		}
	}
	if c.GenericXDP {
		// A program that takes frames in parts is given a copy that has lost the
		// length of its Ethernet header (Linux 6.9 on), so that TC, which comes
		// next, would take what is behind that for the beginning of the frame.
		spec.Programs[bpf.XdpProgXdpUplink].Flags &^= unix.BPF_F_XDP_HAS_FRAGS
	}
	return spec, nil
}

// openXDP opens the pinned program of XDP, if there is one.
func (o *Objects) openXDP() (err error) {
	o.XDP, err = ebpf.LoadPinnedProgram(filepath.Join(o.dir, programsDirectory, bpf.XdpProgXdpUplink), nil)
	if errors.Is(err, os.ErrNotExist) {
		o.NoXDP = ErrNoXDP
		return nil
	}
	if err != nil {
		return fmt.Errorf("open program %s: %w", bpf.XdpProgXdpUplink, err)
	}
	return nil
}

// AttachXDP sees to it that the program of XDP runs on the device in this mode,
// in place of an older one without a gap; a change of mode takes a moment in
// which none runs. ErrNoXDP if there is none, ErrForeignXDP if the device has
// somebody else's.
func (o *Objects) AttachXDP(ifindex int, mode XDPMode) error {
	if o.XDP == nil {
		return o.NoXDP
	}
	ours, current, err := xdpOn(o.dir, ifindex)
	if err != nil {
		return err
	}
	if ours != nil {
		defer ours.Close()
		if current == mode {
			if err := ours.Update(o.XDP); err != nil {
				return fmt.Errorf("replace the XDP program: %w", err)
			}
			return nil
		}
		if err := ours.Detach(); err != nil {
			return fmt.Errorf("detach the %s XDP program: %w", current, err)
		}
	}
	path := xdpPath(o.dir, ifindex)
	// Without a device, or on one that has gone: its number may be another's now.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return pinXDP(o.XDP, ifindex, mode, path)
}

// DetachXDP undoes AttachXDP, also for a device that has gone.
func (o *Objects) DetachXDP(ifindex int) error { return detachXDP(xdpPath(o.dir, ifindex)) }

// KeepXDP detaches the program of XDP from all devices but these, also from
// those that have gone.
func (o *Objects) KeepXDP(devices []int) error {
	paths, err := xdpPaths(o.dir)
	if err != nil {
		return err
	}
	for _, path := range paths {
		if slices.ContainsFunc(devices, func(ifindex int) bool { return path == xdpPath(o.dir, ifindex) }) {
			continue
		}
		if err := detachXDP(path); err != nil {
			return err
		}
	}
	return nil
}

// XDPAttached tells on which devices of this namespace, by number, the program
// of XDP runs, and how.
func (o *Objects) XDPAttached() (map[int]XDPMode, error) {
	attached := map[int]XDPMode{}
	paths, err := xdpPaths(o.dir)
	if err != nil {
		return nil, err
	}
	for _, path := range paths {
		var ifindex int
		if _, err := fmt.Sscanf(filepath.Base(path), xdpName, &ifindex); err != nil {
			continue
		}
		ours, mode, err := xdpOn(o.dir, ifindex)
		if errors.Is(err, ErrForeignXDP) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if ours != nil {
			ours.Close()
			attached[ifindex] = mode
		}
	}
	return attached, nil
}

// CheckXDP gives ErrForeignXDP if a device has an XDP program that is not the one
// pinned under dir.
func CheckXDP(dir string, ifindex int) error {
	ours, _, err := xdpOn(dir, ifindex)
	if err == nil && ours != nil {
		return ours.Close()
	}
	return err
}

// TryXDP finds out whether a device takes an XDP program in this mode, by
// attaching one that lets everything pass, unless the one pinned under dir runs
// there so. In another mode that makes room for a moment, as the kernel takes one
// at a time.
func TryXDP(dir string, ifindex int, mode XDPMode) error {
	ours, current, err := xdpOn(dir, ifindex)
	if err != nil {
		return err
	}
	if ours == nil {
		return tryXDP(ifindex, mode)
	}
	defer ours.Close()
	if current == mode {
		return nil
	}
	info, err := ours.Info()
	if err != nil {
		return fmt.Errorf("find the XDP program: %w", err)
	}
	program, err := ebpf.NewProgramFromID(info.Program)
	if err != nil {
		return fmt.Errorf("open the XDP program: %w", err)
	}
	defer program.Close()
	path := xdpPath(dir, ifindex)
	if err := detachXDP(path); err != nil {
		return err
	}
	return errors.Join(tryXDP(ifindex, mode), pinXDP(program, ifindex, current, path))
}

// pinXDP attaches a program, and pins the link.
func pinXDP(program *ebpf.Program, ifindex int, mode XDPMode, path string) error {
	l, err := attachXDP(program, ifindex, mode)
	if err != nil {
		return err
	}
	defer l.Close()
	if err := l.Pin(path); err != nil {
		return fmt.Errorf("pin the XDP program's link: %w", err)
	}
	return nil
}

func tryXDP(ifindex int, mode XDPMode) error {
	program, err := passXDP()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoXDP, err)
	}
	defer program.Close()
	l, err := attachXDP(program, ifindex, mode)
	if err != nil {
		return err
	}
	return errors.Join(l.Detach(), l.Close())
}

// passXDP is a program that lets everything pass and takes frames of many parts,
// as xdp_uplink does.
func passXDP() (*ebpf.Program, error) {
	const pass = 2 // XDP_PASS
	spec := returning(pass)
	spec.Type, spec.Flags = ebpf.XDP, unix.BPF_F_XDP_HAS_FRAGS
	return ebpf.NewProgram(spec)
}

func haveXDP() error {
	program, err := passXDP()
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("%w: %w", ebpf.ErrNotSupported, err)
	}
	if err != nil {
		return err
	}
	return program.Close()
}

func attachXDP(program *ebpf.Program, ifindex int, mode XDPMode) (link.Link, error) {
	l, err := link.AttachXDP(link.XDPOptions{Program: program, Interface: ifindex, Flags: mode.flags()})
	if errno := unix.Errno(0); errors.As(err, &errno) {
		err = errno // the rest says no more
	}
	if err != nil {
		return nil, fmt.Errorf("the driver refuses %s XDP: %w", mode, err)
	}
	return l, nil
}

// xdpName is what the link to a device of this number is pinned as.
var xdpName = bpf.XdpProgXdpUplink + "-%d"

func xdpPath(dir string, ifindex int) string {
	return filepath.Join(dir, linksDirectory, fmt.Sprintf(xdpName, ifindex))
}

// xdpPaths lists the pinned links of XDP.
func xdpPaths(dir string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(dir, linksDirectory))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var paths []string
	for _, e := range entries {
		if isXDP(e.Name()) {
			paths = append(paths, filepath.Join(dir, linksDirectory, e.Name()))
		}
	}
	return paths, nil
}

// isXDP tells whether a link of that name is one of XDP.
func isXDP(name string) bool { return strings.HasPrefix(name, bpf.XdpProgXdpUplink+"-") }

// How often a device is looked at that has a program of ours without a pin, and
// how long to wait in between: the kernel lets go of a link some time after its
// pin is removed.
const (
	releaseAttempts = 20
	releasePause    = 10 * time.Millisecond
)

// xdpOn looks at the XDP program on a device: ours with its mode, none, or
// ErrForeignXDP.
func xdpOn(dir string, ifindex int) (ours link.Link, mode XDPMode, err error) {
	for range releaseAttempts {
		var there *netlink.LinkXdp
		ours, mode, there, err = lookXDP(dir, ifindex)
		if !errors.Is(err, ErrForeignXDP) || !hasOurName(there.ProgId) {
			break
		}
		time.Sleep(releasePause)
	}
	return ours, mode, err
}

func hasOurName(id uint32) bool {
	program, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
	if err != nil {
		return errors.Is(err, os.ErrNotExist) // it has gone just now
	}
	defer program.Close()
	info, err := program.Info()
	return err == nil && info.Name == bpf.XdpProgXdpUplink
}

// lookXDP is xdpOn at this moment. there is what the kernel says.
func lookXDP(dir string, ifindex int) (ours link.Link, mode XDPMode, there *netlink.LinkXdp, err error) {
	device, err := netlink.LinkByIndex(ifindex)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, "", nil, nil
	}
	if err != nil {
		return nil, "", nil, fmt.Errorf("find device %d: %w", ifindex, err)
	}
	there = device.Attrs().Xdp
	if there == nil || !there.Attached {
		return nil, "", there, nil
	}
	mode = XDPGeneric
	if there.AttachMode != nl.XDP_ATTACHED_SKB {
		mode = XDPNative
	}
	ours, err = link.LoadPinnedLink(xdpPath(dir, ifindex), nil)
	if err == nil {
		info, err := ours.Info()
		if err == nil && info.XDP() != nil && info.XDP().Ifindex == uint32(ifindex) {
			return ours, mode, there, nil
		}
		ours.Close()
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, "", nil, fmt.Errorf("open the XDP program's link: %w", err)
	}
	return nil, "", there, fmt.Errorf("%w: program %d, %s", ErrForeignXDP, there.ProgId, mode)
}

// detachXDP detaches what is linked by the pin at once, where removing the pin
// alone would take the kernel a while.
func detachXDP(path string) error {
	pinned, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open the XDP program's link: %w", err)
	}
	defer pinned.Close()
	if err := pinned.Detach(); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("detach the XDP program: %w", err)
	}
	return os.Remove(path)
}
