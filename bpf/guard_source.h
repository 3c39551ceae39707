/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The senders of frames, and which addresses they may use. A sender is the
 * endpoint of a device that has addresses of its own, or one of several
 * stations behind a trunk or a tunnel.
 */
#ifndef EBPNET_GUARD_SOURCE_H
#define EBPNET_GUARD_SOURCE_H

#include "address.h"
#include "maps.h"

/* A station behind a trunk or a tunnel. An unknown station may use any MAC, and
 * any address that no static entry elsewhere owns. It has no role. */
struct shared_source {
	__u32 network;
	__u32 endpoint; /* 0: no static station */
	enum allow allow; /* roles of a static station */
	bool strict; /* all its addresses have static entries */
};

static __always_inline bool
guard_is_own_ipv6(const struct device *device, const struct address *address)
{
	struct address link_local;

	if (address_equal(address, &device->ipv6))
		return !address_is_zero(address);
	link_local = address_link_local(&device->mac);
	return address_equal(address, &link_local);
}

/* Finds the MAC that a link-local address is derived from; false if it is
 * derived from none. RFC 4291, appendix A. */
static __always_inline bool
guard_mac_of_link_local(const struct address *address, struct mac *mac)
{
	__u32 high = bpf_ntohl(address->word[2]);
	__u32 low = bpf_ntohl(address->word[3]);

	*mac = (struct mac){ {
		high >> 24 ^ 0x02,
		high >> 16,
		high >> 8,
		low >> 16,
		low >> 8,
		low,
	} };
	return (high & 0xff) == 0xff && low >> 24 == 0xfe;
}

/* Whether the station with the MAC @sender may use @address as its own. */
static __always_inline bool
guard_station_may_use(const struct shared_source *source,
		      const struct mac *sender, const struct address *address)
{
	struct fdb_key key = { .network = source->network };
	const struct station *owner;
	struct address own;

	if (address_is_group(address) || address_is_loopback(address))
		return false;
	if (address_is_link_local(address)) {
		own = address_link_local(sender);
		if (address_equal(&own, address))
			return true;
		if (source->strict)
			return false;
		if (!guard_mac_of_link_local(address, &key.mac))
			return true;
		owner = bpf_map_lookup_elem(&fdb, &key);
	} else {
		own = *address; /* before 6.2 a key may not be in the memory of
				 * a caller */
		owner = bpf_map_lookup_elem(&neighbors, &own);
	}
	if (!owner)
		return !source->strict;
	return source->endpoint && owner->endpoint == source->endpoint;
}

/* Whether the sender may use @address as its own. The sender is the endpoint of
 * @device or, if @device is NULL, the station of @source with the MAC @mac. */
__verified_once bool
guard_may_use(const struct device *device, const struct shared_source *source,
	      const struct mac *mac, const struct address *address)
{
	if (!mac || !address || address_is_unspecified(address))
		return false;
	if (device)
		return address_equal(address, &device->ipv4) ||
		       guard_is_own_ipv6(device, address);
	return source && guard_station_may_use(source, mac, address);
}

#endif
