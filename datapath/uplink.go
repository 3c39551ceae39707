package datapath

import (
	"net/netip"

	"github.com/ebpnet/ebpnet/bpf"
)

// Uplink is a device that leads outside, with its first global address of each
// family. An unset address means none.
type Uplink struct {
	Ifindex    int
	MTU        int     // in bytes
	MAC        [6]byte // zero: XDP ignores its frames
	Native     bool    // the driver runs XDP, which may then send frames to endpoints
	IPv4, IPv6 netip.Addr
	Default    bool // has the default route
}

// defaultUplink is the key of a second entry for the uplink with the default
// route.
const defaultUplink = 0

func (u Uplink) entry() bpf.EbpnetUplink {
	return bpf.EbpnetUplink{
		Ifindex: uint32(u.Ifindex), Mtu: uint32(u.MTU),
		Receiver: bpf.EbpnetReceiver{Mac: bpf.EbpnetMac{Byte: u.MAC}, Native: flag(u.Native)},
		Ipv4:     addressOf(u.IPv4), Ipv6: addressOf(u.IPv6),
	}
}

// ReplaceUplinks makes the given uplinks the host's only ones.
func (t *Tables) ReplaceUplinks(uplinks []Uplink) error {
	return t.uplinks().replace(uplinkEntries(uplinks))
}

func uplinkEntries(uplinks []Uplink) map[uint32]bpf.EbpnetUplink {
	entries := map[uint32]bpf.EbpnetUplink{}
	for _, u := range uplinks {
		entries[uint32(u.Ifindex)] = u.entry()
		if u.Default {
			entries[defaultUplink] = u.entry()
		}
	}
	return entries
}

// MaxBroadcasts is the most addresses in Wanted.Broadcasts.
const MaxBroadcasts = int(bpf.EbpnetTableCapacityMAX_BROADCASTS)

// ReplaceBroadcasts makes the given addresses the only ones that are delivered
// to the host but are not its addresses: see Wanted.
func (t *Tables) ReplaceBroadcasts(addresses []netip.Addr) error {
	return replace(t.Maps.Broadcasts, broadcastEntries(addresses))
}

func broadcastEntries(addresses []netip.Addr) map[bpf.EbpnetAddress]uint32 {
	entries := map[bpf.EbpnetAddress]uint32{}
	for _, a := range addresses {
		entries[addressOf(a)] = 1
	}
	return entries
}
