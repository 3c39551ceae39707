/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The source guard for frames out of a tunnel. */
#ifndef EBPNET_GUARD_OVERLAY_H
#define EBPNET_GUARD_OVERLAY_H

#include "gre.h"
#include "guard_shared.h"
#include "learn.h"

/* Whether the packet is from a static endpoint behind this tunnel, as most are.
 * One lookup of its address finds the sender. Gives the endpoint. */
static __always_inline bool
guard_is_plain(const struct packet *pkt, const struct tunnel_origin *origin,
	       __u32 *endpoint)
{
	const struct station *owner;
	struct address src;

	if (pkt->ethertype != bpf_htons(ETH_P_IP) &&
	    (pkt->ethertype != bpf_htons(ETH_P_IPV6) ||
	     (pkt->protocol != IPPROTO_TCP && pkt->protocol != IPPROTO_UDP)))
		return false;
	src = pkt->src; /* before 6.2 a key may not be in the memory of a caller
			 */
	owner = bpf_map_lookup_elem(&neighbors, &src);
	if (!owner || owner->kind != STATION_REMOTE ||
	    owner->tunnel != origin->tunnel ||
	    owner->network != origin->network ||
	    !mac_equal(&owner->mac, &pkt->src_mac))
		return false;
	*endpoint = owner->endpoint;
	return true;
}

/* Checks the sender of a frame out of a tunnel: it must be a static station
 * there, or one that is learned there. Gives the endpoint of a static station.
 * Roles hold only on an endpoint's own host: another host may not run ebpnet,
 * and may let its containers send anything. */
static __noinline enum reason
guard_overlay(ctx_t *ctx, struct packet *pkt,
	      const struct tunnel_origin *origin, const struct network *network,
	      __u32 *endpoint)
{
	struct shared_source source = { .network = origin->network };
	const struct station *known;
	struct station learned = {
		.network = origin->network,
		.tunnel = origin->tunnel,
		.kind = STATION_REMOTE,
		.mac = pkt->src_mac,
	};
	enum reason reason;

	if (guard_is_plain(pkt, origin, endpoint)) {
		reason = guard_role_check(ctx, pkt, 0);
		return reason == REASON_ROGUE_ROUTER ? REASON_SPOOFED_OVERLAY :
						       reason;
	}
	known = fdb_lookup_static(origin->network, &pkt->src_mac);
	if (known &&
	    (known->kind != STATION_REMOTE || known->tunnel != origin->tunnel))
		return REASON_SPOOFED_OVERLAY;
	if (known) {
		source.endpoint = *endpoint = known->endpoint;
		source.strict = true;
	}
	reason = guard_shared(ctx, pkt, &source);
	if (reason == REASON_SPOOFED_MAC || reason == REASON_SPOOFED_ADDRESS ||
	    reason == REASON_ROGUE_ROUTER)
		return REASON_SPOOFED_OVERLAY;
	/* Without ICC only static stations may send, by their links. */
	if (!reason && !known && network->flags & NETWORK_ICC)
		learn_station(&learned);
	return reason;
}

#endif
