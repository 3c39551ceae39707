package host

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// maxLocalRoutesRead is how many routes of the host's local table are read.
const maxLocalRoutesRead = 65536

// Broadcasts gives the addresses that lead to the host but are not its own: the
// broadcast addresses of its subnets and, while the host forwards IPv6, their
// anycast addresses (RFC 4291, 2.6.1). It gives at most so many; whole tells
// whether these are all.
func (h *Host) Broadcasts(most int) (addresses []netip.Addr, whole bool, err error) {
	routes, err := readRoutes(unix.RT_TABLE_LOCAL, maxLocalRoutesRead, routesTimeout, unix.RTN_BROADCAST, unix.RTN_ANYCAST)
	if err != nil && !errors.Is(err, errTooManyRoutes) {
		return nil, false, fmt.Errorf("read the broadcast addresses of the host: %w", err)
	}
	for _, r := range routes {
		if p := destinationOf(r); p.IsSingleIP() {
			addresses = append(addresses, p.Addr())
		}
	}
	slices.SortFunc(addresses, netip.Addr.Compare)
	addresses = slices.Compact(addresses)
	whole = err == nil && len(addresses) <= most
	return addresses[:min(len(addresses), most)], whole, nil
}
