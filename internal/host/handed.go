package host

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/vishvananda/netlink"
)

// An engine like Docker takes an interface out of the host's namespace into a
// container's by itself, and gives it back when the container ends.

// handedPrefix begins the names of the inner ends that wait in the host's
// namespace for an engine to take them.
const handedPrefix = "ebc-"

// HandedName names the inner end of an endpoint's veth as long as it is in the
// host's namespace.
func HandedName(id uint32) string { return handedPrefix + strconv.FormatUint(uint64(id), 10) }

// ErrStrangeInterface says that what stands in a namespace is not the
// endpoint's.
var ErrStrangeInterface = errors.New("the endpoint's interface is not there")

// inside runs f in an endpoint's namespace with the inner end of its veth.
func inside(device netlink.Link, v Veth, f func(netlink.Link) error) error {
	ns, err := openNamespace(v.Netns.Path)
	if err != nil {
		return err
	}
	defer ns.Close()
	return inNamespace(ns, func() error {
		inner, err := netlink.LinkByIndex(device.Attrs().ParentIndex)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			return ErrStrangeInterface
		}
		if err != nil {
			return err
		}
		// Another namespace may be at the path by now.
		if inner.Type() != device.Type() || inner.Attrs().ParentIndex != device.Attrs().Index {
			return ErrStrangeInterface
		}
		return f(inner)
	})
}

// Place finds what an endpoint's interface is called in its namespace:
// ErrStrangeInterface if it is not there.
func (h *Host) Place(v Veth) (ifname string, err error) {
	device, err := h.find(VethName(v.ID))
	if err != nil {
		return "", err
	}
	err = inside(device, v, func(inner netlink.Link) error {
		ifname = inner.Attrs().Name
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("find the interface of %s in namespace %s: %w", v.Alias, v.Netns.Path, err)
	}
	return ifname, nil
}

// Waits tells whether the inner end of an endpoint's veth is in the host's
// namespace: no engine has taken it, or one has given it back.
func (h *Host) Waits(id uint32) (bool, error) {
	_, err := h.find(HandedName(id))
	if errors.Is(err, ErrNoDevice) {
		return false, nil
	}
	return err == nil, err
}
