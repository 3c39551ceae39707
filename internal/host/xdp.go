package host

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// XDP is what is known of XDP on a device before anything is attached to it. An
// unset reason is none; what only the driver knows comes to light when it is
// asked to take a program.
type XDP struct {
	NotNative  error // why native XDP cannot be, or would let wrong frames in
	NotGeneric error // the same of generic XDP
	Costly     error // why native XDP, though it can be, costs more than it gains
}

// The generic netlink family that tells what drivers can do about XDP (Linux
// 6.3), from linux/netdev.h.
const (
	netdevFamily  = "netdev"
	netdevVersion = 1
	netdevGet     = 1 // NETDEV_CMD_DEV_GET
	netdevIfindex = 1 // NETDEV_A_DEV_IFINDEX
	netdevXDP     = 3 // NETDEV_A_DEV_XDP_FEATURES
)

// What a driver can do, as that family says: enum netdev_xdp_act.
const (
	xdpBasic     = 1 << 0
	xdpRedirects = 1 << 1
	xdpParts     = 1 << 5 // frames of more than one page
)

// What XDP needs of the page that a frame is in: XDP_PACKET_HEADROOM before it,
// struct skb_shared_info after it, and the headers of Ethernet and two VLANs.
const xdpOverhead = 256 + 320 + 14 + 2*4

// XDP finds out what is known of XDP on a device: ErrNoDevice if there is none
// of the name.
func (h *Host) XDP(name string) (x XDP, err error) {
	device, err := h.find(name)
	if err != nil {
		return x, err
	}
	defer func() {
		if errors.Is(err, unix.ENODEV) { // it has gone since
			err = fmt.Errorf("%w %q", ErrNoDevice, name)
		}
	}()
	on, err := offloads(name)
	if err != nil {
		return x, err
	}
	if on[offloadVLANTags] {
		vlans, err := h.hasVLANs(device)
		if err != nil {
			return x, err
		}
		if vlans {
			x.NotNative = fmt.Errorf("it has VLANs, whose tags the device takes off before XDP sees them: 'ethtool -K %s rxvlan off'", name)
			x.NotGeneric = x.NotNative
		}
	}
	features, known, err := xdpFeatures(device.Attrs().Index)
	if err != nil {
		return x, err
	}
	limit := os.Getpagesize() - xdpOverhead
	switch {
	case known && features&xdpBasic == 0:
		x.NotNative = errors.New("its driver has no native XDP")
	case known && features&xdpRedirects == 0:
		x.NotNative = errors.New("its driver does not redirect by XDP")
	case on[offloadLRO]:
		x.NotNative = fmt.Errorf("large receive offload is on: 'ethtool -K %s lro off'", name)
	case on[offloadHardwareGRO]:
		x.NotNative = fmt.Errorf("hardware GRO is on: 'ethtool -K %s rx-gro-hw off'", name)
	case known && features&xdpParts == 0 && device.Attrs().MTU > limit:
		x.NotNative = fmt.Errorf("its MTU of %d is too large for its driver's native XDP, which takes at most %d", device.Attrs().MTU, limit)
	}
	if device.Type() == "veth" {
		x.Costly = errors.New("native XDP on a veth takes its peer's segmentation offload")
	}
	return x, nil
}

// hasVLANs tells whether the device has VLAN devices on it.
func (h *Host) hasVLANs(device netlink.Link) (bool, error) {
	devices, err := whole(h.handle.LinkList)
	if err != nil {
		return false, fmt.Errorf("list devices: %w", err)
	}
	for _, d := range devices {
		if d.Type() == "vlan" && d.Attrs().ParentIndex == device.Attrs().Index {
			return true, nil
		}
	}
	return false, nil
}

// xdpFeatures asks what a device of the calling thread's namespace can do about
// XDP. Kernels before 6.3 do not know.
func xdpFeatures(ifindex int) (features uint64, known bool, err error) {
	family, err := netlink.GenlFamilyGet(netdevFamily)
	if errors.Is(err, unix.ENOENT) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("ask for the features of XDP: %w", err)
	}
	request := nl.NewNetlinkRequest(int(family.ID), 0)
	// nl.Genlmsg leaves its reserved bytes to chance, which this family refuses.
	request.AddRawData([]byte{netdevGet, netdevVersion, 0, 0})
	request.AddRawData(nl.NewRtAttr(netdevIfindex, nl.Uint32Attr(uint32(ifindex))).Serialize())
	answers, err := request.Execute(unix.NETLINK_GENERIC, 0)
	if err != nil {
		return 0, false, fmt.Errorf("ask for the features of XDP of device %d: %w", ifindex, err)
	}
	for _, answer := range answers {
		attributes, err := nl.ParseRouteAttr(answer[nl.SizeofGenlmsg:])
		if err != nil {
			return 0, false, fmt.Errorf("read the features of XDP of device %d: %w", ifindex, err)
		}
		for _, a := range attributes {
			if a.Attr.Type == netdevXDP && len(a.Value) >= 8 {
				return binary.NativeEndian.Uint64(a.Value), true, nil
			}
		}
	}
	return 0, false, nil
}

// Physical names the Ethernet devices of the host that are hardware, or a
// virtual machine's.
func (h *Host) Physical() ([]string, error) {
	devices, err := whole(h.handle.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	var names []string
	for _, d := range devices {
		if d.Attrs().ParentDev != "" && d.Attrs().EncapType == "ether" {
			names = append(names, d.Attrs().Name)
		}
	}
	return names, nil
}

// EnsureNAPI sees to it that the inner end of an endpoint's veth takes packets
// by NAPI, as it does with GRO, and tells whether it does: frames that XDP
// redirects there vanish otherwise. Of an end that an engine has taken, nobody
// knows where to, it is not known.
func (h *Host) EnsureNAPI(v Veth) (on bool, err error) {
	device, err := h.find(VethName(v.ID))
	if err != nil {
		return false, err
	}
	if !v.handed() {
		err = inside(device, v, func(inner netlink.Link) error {
			on, err = receiveTogether(inner.Attrs().Name)
			return err
		})
		if err != nil {
			return false, fmt.Errorf("have %s in namespace %s take packets by NAPI: %w", v.Ifname, v.Netns.Path, err)
		}
		return on, nil
	}
	waits, err := h.Waits(v.ID)
	if err != nil || !waits {
		return false, err
	}
	return receiveTogether(HandedName(v.ID))
}
