package datapath

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/ebpnet/ebpnet/bpf"
)

// errTooMany is the kernel's error for an insertion into a full hash.
const errTooMany = unix.E2BIG

// addressOf gives an address as the tables hold it: 16 bytes in network order,
// IPv4 mapped into IPv6. The zero Addr gives zeros.
func addressOf(a netip.Addr) (out bpf.EbpnetAddress) {
	if !a.IsValid() {
		return out
	}
	bytes := a.As16()
	for i := range out.Word {
		out.Word[i] = binary.NativeEndian.Uint32(bytes[4*i:])
	}
	return out
}

// addrOf is the inverse of addressOf.
func addrOf(a bpf.EbpnetAddress) netip.Addr {
	if a == (bpf.EbpnetAddress{}) {
		return netip.Addr{}
	}
	var bytes [16]byte
	for i, word := range a.Word {
		binary.NativeEndian.PutUint32(bytes[4*i:], word)
	}
	return netip.AddrFrom16(bytes).Unmap()
}

// networkOrder16 gives the number whose bytes in memory are those of n in
// network order. It is its own inverse.
func networkOrder16(n uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, n))
}

// networkOrder32 does the same for 32 bits.
func networkOrder32(n uint32) uint32 {
	return binary.NativeEndian.Uint32(binary.BigEndian.AppendUint32(nil, n))
}
