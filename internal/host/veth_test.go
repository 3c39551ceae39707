package host

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/internal/spec"
	"github.com/ebpnet/ebpnet/internal/testutil"
)

// in runs f on the host that is the namespace.
func in(t *testing.T, n *testutil.Netns, f func(*Host) error) {
	t.Helper()
	var err error
	n.Do(func() {
		var h *Host
		if h, err = Open(); err == nil {
			err = f(h)
			h.Close()
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestOnlyTheFarEndCompletesChecksums(t *testing.T) {
	t.Parallel()
	n := testutil.NewNetns(t, "host")
	for range 2 { // it is there already the second time
		in(t, n, func(h *Host) error {
			_, err := h.EnsureGateway([6]byte{2, 0, 0, 0, 0, 1})
			return err
		})
	}
	for device, want := range map[string]uint32{GatewayDevice: 1, DatapathDevice: 0} {
		in(t, n, func(*Host) error {
			offload, err := checksumOffload(device)
			if offload != want {
				t.Errorf("checksum offload of %s is %d, want %d", device, offload, want)
			}
			return err
		})
	}
	in(t, n, func(*Host) error {
		if err := completeChecksums("nodev0"); !errors.Is(err, unix.ENODEV) {
			t.Errorf("no device: %v", err)
		}
		return nil
	})
}

// checksumOffload asks for what completeChecksums sets.
func checksumOffload(device string) (uint32, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	value := &ethtoolValue{command: unix.ETHTOOL_GTXCSUM}
	request := ifreqData{data: unsafe.Pointer(value)}
	copy(request.name[:], device)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return 0, errno
	}
	return value.data, nil
}

func TestSetMTU(t *testing.T) {
	t.Parallel()
	host, container, stranger := testutil.NewNetns(t, "host"), testutil.NewNetns(t, "container"), testutil.NewNetns(t, "stranger")
	stranger.Run(t, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
	v := Veth{
		ID: 1, Netns: spec.Netns{Path: container.Path()}, Ifname: "eth0", MAC: [6]byte{2, 0, 0, 0, 0, 2}, MTU: 1500,
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.1.0.2/24")},
	}
	in(t, host, func(h *Host) error {
		ifindex, err := h.CreateVeth(v)
		if err != nil {
			return err
		}
		return h.SetUp(ifindex, v)
	})
	expect := func(n *testutil.Netns, device, want string) {
		t.Helper()
		if link := n.Run(t, "ip", "-o", "link", "show", device); !strings.Contains(link, want+" ") {
			t.Errorf("want %s: %s", want, link)
		}
	}
	// Both ends can send at once.
	expect(host, "ebp-1", "state UP")
	expect(container, "eth0", "state UP")

	container.Run(t, "ip", "link", "set", "eth0", "down")
	container.Run(t, "ip", "link", "set", "eth0", "name", "other0")
	v.MTU = 1300
	in(t, host, func(h *Host) error { return h.SetMTU(v) })
	expect(host, "ebp-1", "mtu 65535")
	expect(container, "other0", "mtu 1300")

	// Another namespace is at the path by now.
	v.Netns.Path, v.MTU = stranger.Path(), 1400
	in(t, host, func(h *Host) error {
		if err := h.SetMTU(v); !errors.Is(err, ErrStrangeInterface) {
			t.Errorf("got %v, want ErrStrangeInterface", err)
		}
		return nil
	})
	expect(container, "other0", "mtu 1300")
	for _, device := range []string{"eth0", "eth1"} {
		expect(stranger, device, "mtu 1500")
	}
}
