package host

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ethtoolValue is struct ethtool_value of linux/ethtool.h.
type ethtoolValue struct {
	command, data uint32
}

// ifreqData is struct ifreq of linux/if.h with ifr_data, padded to the size of
// its union.
type ifreqData struct {
	name [unix.IFNAMSIZ]byte
	data unsafe.Pointer
	_    [16]byte
}

// completeChecksums switches transmit checksum offload off on a device of the
// calling thread's namespace: what leaves by it has its checksums in it, and as
// they cannot be put off, superframes are cut.
func completeChecksums(device string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a socket: %w", err)
	}
	defer unix.Close(fd)
	request := ifreqData{data: unsafe.Pointer(&ethtoolValue{command: unix.ETHTOOL_STXCSUM})}
	copy(request.name[:unix.IFNAMSIZ-1], device)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
	if errno != 0 {
		return fmt.Errorf("switch checksum offload off on %s: %w", device, errno)
	}
	return nil
}
