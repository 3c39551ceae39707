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

// XDPMode is the mode in which the kernel runs the XDP program on a device.
type XDPMode string

// The modes.
const (
	XDPNative  XDPMode = "native"  // in the driver, before there is a socket buffer
	XDPGeneric XDPMode = "generic" // with a socket buffer, on any device
)

// ErrNoXDP means that the XDP program is not loaded, by configuration or
// because the kernel refused it. Everything else works without it.
var ErrNoXDP = errors.New("the XDP program is not loaded")

// ErrForeignXDP means that a device has an XDP program that is not ebpnet's.
var ErrForeignXDP = errors.New("another XDP program is on it")

func (m XDPMode) flags() link.XDPAttachFlags {
	if m == XDPNative {
		return link.XDPDriverMode
	}
	return link.XDPGenericMode
}

// loadXDP loads the XDP program into the kernel, with the maps and constants of
// the other programs. It is an error if this fails and NeedXDP is set.
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

// specXDP returns the XDP program with the constants of the other programs.
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
		// From Linux 6.9 on, a program that accepts multi-buffer frames
		// gets a copy in which the length of the Ethernet header is
		// lost. TC would then read the bytes after that header as the
		// beginning of the frame.
		spec.Programs[bpf.XdpProgXdpUplink].Flags &^= unix.BPF_F_XDP_HAS_FRAGS
	}
	return spec, nil
}

// openXDP opens the pinned XDP program, if there is one.
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

// AttachXDP makes the XDP program run on the device in this mode. It replaces
// an older one without a gap, but a change of the mode leaves a gap. It returns
// ErrNoXDP if there is no program, and ErrForeignXDP if the device has another
// XDP program.
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
	// The device is gone, and another one may have its number.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return pinXDP(o.XDP, ifindex, mode, path)
}

// DetachXDP undoes AttachXDP, also for a device that is gone.
func (o *Objects) DetachXDP(ifindex int) error { return detachXDP(xdpPath(o.dir, ifindex)) }

// KeepXDP detaches the XDP program from all other devices than these, also from
// devices that are gone.
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

// XDPAttached returns the modes in which the XDP program runs, by the number of
// the device, in this namespace.
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

// CheckXDP returns ErrForeignXDP if a device has an XDP program that is not the
// one pinned under dir.
func CheckXDP(dir string, ifindex int) error {
	ours, _, err := xdpOn(dir, ifindex)
	if err == nil && ours != nil {
		return ours.Close()
	}
	return err
}

// TryXDP checks whether a device accepts an XDP program in this mode. It
// attaches a program that passes all frames, unless the one pinned under dir
// already runs in this mode. If that one runs in another mode, TryXDP detaches
// it for a moment, because the kernel accepts only one at a time.
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

// passXDP is a program that passes all frames. It accepts multi-buffer frames,
// like xdp_uplink.
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
		err = errno // the rest of the error adds nothing
	}
	if err != nil {
		return nil, fmt.Errorf("the driver refuses %s XDP: %w", mode, err)
	}
	return l, nil
}

// xdpName is the name of the pin of the link to the device with this number.
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

// isXDP reports whether a link with that name is one of XDP.
func isXDP(name string) bool { return strings.HasPrefix(name, bpf.XdpProgXdpUplink+"-") }

// How often xdpOn looks at a device that has our program but no pin, and the
// pause between two looks: the kernel releases a link some time after its pin
// is removed.
const (
	releaseAttempts = 20
	releasePause    = 10 * time.Millisecond
)

// xdpOn returns the link of our XDP program on a device, and its mode. The link
// is nil if the device has no XDP program. The error is ErrForeignXDP if it has
// another one.
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
		return errors.Is(err, os.ErrNotExist) // it was just removed
	}
	defer program.Close()
	info, err := program.Info()
	return err == nil && info.Name == bpf.XdpProgXdpUplink
}

// lookXDP is one look of xdpOn. there is the kernel's description of the
// program.
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

// detachXDP detaches the pinned link and removes the pin. If only the pin was
// removed, the kernel would detach the link some time later.
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
