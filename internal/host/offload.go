package host

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ifreqData is struct ifreq of linux/if.h with ifr_data, padded to the size of
// its union.
type ifreqData struct {
	name [unix.IFNAMSIZ]byte
	data unsafe.Pointer
	_    [16]byte
}

// ethtool asks something of a device of the calling thread's namespace.
// request is one of the structs of linux/ethtool.h, where the answer is put too.
func ethtool(device string, request unsafe.Pointer) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a socket: %w", err)
	}
	defer unix.Close(fd)
	call := ifreqData{data: request}
	copy(call.name[:unix.IFNAMSIZ-1], device)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&call)))
	if errno != 0 {
		return errno
	}
	return nil
}

// ethtoolValue is struct ethtool_value of linux/ethtool.h.
type ethtoolValue struct {
	command, data uint32
}

// completeChecksums switches transmit checksum offload off on a device of the
// calling thread's namespace: what leaves by it has its checksums in it, and as
// they cannot be put off, superframes are cut.
func completeChecksums(device string) error {
	if err := ethtool(device, unsafe.Pointer(&ethtoolValue{command: unix.ETHTOOL_STXCSUM})); err != nil {
		return fmt.Errorf("switch checksum offload off on %s: %w", device, err)
	}
	return nil
}

// receiveTogether switches GRO on for a device of the calling thread's
// namespace, and tells whether it is on then.
func receiveTogether(device string) (on bool, err error) {
	request := ethtoolValue{command: unix.ETHTOOL_GGRO}
	if err := ethtool(device, unsafe.Pointer(&request)); err != nil {
		return false, fmt.Errorf("ask for GRO of %s: %w", device, err)
	}
	if request.data != 0 {
		return true, nil
	}
	if err := ethtool(device, unsafe.Pointer(&ethtoolValue{command: unix.ETHTOOL_SGRO, data: 1})); err != nil {
		return false, fmt.Errorf("switch GRO on on %s: %w", device, err)
	}
	if err := ethtool(device, unsafe.Pointer(&request)); err != nil {
		return false, fmt.Errorf("ask for GRO of %s: %w", device, err)
	}
	return request.data != 0, nil
}

// Names of offloads, as the kernel and `ethtool -k` call them.
const (
	offloadLRO         = "rx-lro"
	offloadHardwareGRO = "rx-gro-hw"
	offloadVLANTags    = "rx-vlan-hw-parse"
)

// ethFeatures is ETH_SS_FEATURES of linux/ethtool.h: the set of the offloads'
// names.
const ethFeatures = 4

// Room for offloads; Linux 6.18 has 61.
const (
	maxOffloads   = 256
	offloadBlocks = maxOffloads / 32
	nameLength    = 32 // ETH_GSTRING_LEN
)

// offloads tells which offloads of a device are on, by name; none if the kernel
// does not say. The device is of the calling thread's namespace.
func offloads(device string) (map[string]bool, error) {
	names := struct {
		command, set, count uint32
		name                [maxOffloads][nameLength]byte
	}{command: unix.ETHTOOL_GSTRINGS, set: ethFeatures}
	state := struct {
		command, blocks uint32
		block           [offloadBlocks]struct{ available, requested, active, neverChanged uint32 }
	}{command: unix.ETHTOOL_GFEATURES, blocks: offloadBlocks}
	err := ethtool(device, unsafe.Pointer(&names))
	if err == nil {
		err = ethtool(device, unsafe.Pointer(&state))
	}
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("ask for the offloads of %s: %w", device, err)
	}
	on := map[string]bool{}
	for i := range min(names.count, maxOffloads) {
		on[unix.ByteSliceToString(names.name[i][:])] = state.block[i/32].active&(1<<(i%32)) != 0
	}
	return on, nil
}
