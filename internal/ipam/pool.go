package ipam

import (
	"crypto/rand"
	"fmt"
	"net/netip"

	"github.com/ebpnet/ebpnet/internal/spec"
)

// Pool is a range of addresses that is cut into subnets with prefixes of Bits.
type Pool struct {
	Prefix netip.Prefix
	Bits   int
}

// Lengths of the prefixes of subnets that are chosen.
const (
	chosenBits4 = 24
	chosenBits6 = 64
)

// Pools4 gives what an IPv4 subnet is chosen from where nobody asks for one. It
// lies apart from what Docker's bridge driver (172.17.0.0/12, 192.168.0.0/16) and
// Podman's (from 10.88.0.0 on) choose from: a bridge of theirs that is not up
// is not seen to be in use.
func Pools4() []Pool {
	return []Pool{{netip.MustParsePrefix("10.64.0.0/12"), chosenBits4}}
}

// Pools6 gives what an IPv6 subnet is chosen from where nobody asks for one: a
// new range of unique local addresses, with the random global ID that RFC 4193,
// section 3.2, asks for.
func Pools6() []Pool {
	const globalIDBits = 48
	a := [16]byte{0: 0xfd}
	rand.Read(a[1 : globalIDBits/8]) // never fails, see crypto/rand
	return []Pool{{netip.PrefixFrom(netip.AddrFrom16(a), globalIDBits), chosenBits6}}
}

// FreeSubnet gives the first subnet of the pools that shares no address with
// any of those used. The error is ErrExhausted if there is none.
func FreeSubnet(pools []Pool, used []netip.Prefix) (netip.Prefix, error) {
	for _, pool := range pools {
		subnet := netip.PrefixFrom(pool.Prefix.Masked().Addr(), pool.Bits)
		for pool.Prefix.Contains(subnet.Addr()) {
			clash := overlapping(subnet, used)
			if !clash.IsValid() {
				return subnet, nil
			}
			// What is behind the larger of both: nothing before it is free.
			after := spec.LastAddress(clash)
			if clash.Bits() > subnet.Bits() {
				after = spec.LastAddress(subnet)
			}
			subnet = netip.PrefixFrom(after.Next(), pool.Bits)
		}
	}
	return netip.Prefix{}, fmt.Errorf("%w: every subnet to choose from is used by a network or by this host; name one that is not", ErrExhausted)
}

// overlapping gives one of used that shares addresses with p, if there is one.
func overlapping(p netip.Prefix, used []netip.Prefix) netip.Prefix {
	for _, u := range used {
		if u.Overlaps(p) {
			return u
		}
	}
	return netip.Prefix{}
}
