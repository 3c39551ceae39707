/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The source guard for several stations behind a trunk or a tunnel. An unknown
 * station may use any MAC and any address that no static entry elsewhere owns.
 * It has no role.
 */
#ifndef EBPNET_GUARD_SHARED_H
#define EBPNET_GUARD_SHARED_H

#include "guard.h"
#include "maps.h"

/* The sender of a frame from behind a trunk or a tunnel. */
struct shared_source {
	__u32 network;
	__u32 endpoint; /* 0: no static station */
	enum allow allow; /* roles of a static station */
	bool strict; /* all its addresses have static entries */
};

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

/* Whether the sender may use @address as its own. */
static __noinline bool
guard_shared_address(const struct shared_source *source,
		     const struct mac *sender, const struct address *address)
{
	struct fdb_key key = { .network = source->network };
	const struct station *owner;
	struct address own;

	if (address_is_unspecified(address))
		return true; /* it has none yet */
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

static __always_inline enum reason
guard_shared_arp(ctx_t *ctx, const struct packet *pkt,
		 const struct shared_source *source)
{
	struct address sender;
	struct arp arp;

	if (ctx_load(ctx, pkt->l3, &arp, sizeof(arp)) || !arp_is_valid(&arp))
		return REASON_MALFORMED;
	if (!mac_equal(&arp.sender_mac, &pkt->src_mac))
		return REASON_SPOOFED_MAC;
	sender = address_from_ipv4(arp_address(arp.sender));
	return guard_shared_address(source, &pkt->src_mac, &sender) ?
		       REASON_NONE :
		       REASON_SPOOFED_ADDRESS;
}

static __always_inline enum reason
guard_shared_nd(ctx_t *ctx, const struct packet *pkt,
		const struct shared_source *source)
{
	struct address target;

	if (ctx_load(ctx, pkt->l4 + ND_TARGET_AT, &target, sizeof(target)))
		return REASON_MALFORMED;
	return guard_shared_address(source, &pkt->src_mac, &target) ?
		       REASON_NONE :
		       REASON_SPOOFED_ADDRESS;
}

/* Checks whether the sender may send the packet. */
static __noinline enum reason
guard_shared(ctx_t *ctx, struct packet *pkt, const struct shared_source *source)
{
	enum reason reason;

	if (mac_is_multicast(&pkt->src_mac))
		return REASON_MALFORMED;
	if (pkt->ethertype == bpf_htons(ETH_P_ARP))
		return guard_shared_arp(ctx, pkt, source);
	if (pkt->ethertype != bpf_htons(ETH_P_IP) &&
	    pkt->ethertype != bpf_htons(ETH_P_IPV6))
		return REASON_UNKNOWN_PROTOCOL;
	if (!guard_shared_address(source, &pkt->src_mac, &pkt->src))
		return REASON_SPOOFED_ADDRESS;
	reason = guard_role_check(ctx, pkt, source->allow);
	if (!reason && pkt->ethertype == bpf_htons(ETH_P_IPV6) &&
	    guard_has_options(pkt))
		reason = guard_nd_options(ctx, pkt);
	if (!reason && pkt->ethertype == bpf_htons(ETH_P_IPV6) &&
	    guard_is_advert(pkt))
		reason = guard_shared_nd(ctx, pkt, source);
	return reason;
}

#endif
