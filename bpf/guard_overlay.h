/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The source guard for what comes out of a tunnel. */
#ifndef EBPNET_GUARD_OVERLAY_H
#define EBPNET_GUARD_OVERLAY_H

#include "gre.h"
#include "guard_shared.h"
#include "learn.h"

/* Whether the packet is from a known endpoint that is there, which most are:
 * one look at its address tells who sends it. Gives the endpoint. */
static __always_inline bool
guard_is_plain(const struct packet *pkt, const struct gre_origin *origin,
	       __u32 *endpoint)
{
	const struct station *owner;
	struct address src;

	if (pkt->ethertype != bpf_htons(ETH_P_IP) &&
	    (pkt->ethertype != bpf_htons(ETH_P_IPV6) ||
	     (pkt->protocol != IPPROTO_TCP && pkt->protocol != IPPROTO_UDP)))
		return false;
	src = pkt->src; /* before 6.2 no key may be of a caller's memory */
	owner = bpf_map_lookup_elem(&neighbors, &src);
	if (!owner || owner->kind != STATION_REMOTE ||
	    owner->tunnel != origin->tunnel ||
	    owner->network != origin->network ||
	    !mac_equal(&owner->mac, &pkt->src_mac))
		return false;
	*endpoint = owner->endpoint;
	return true;
}

/* Looks at who sends a frame out of a tunnel: a known station that is there, or
 * one that is learned there. Gives its endpoint, if it is known. Roles hold on
 * an endpoint's own host alone: another host may be no ebpnet, and let all its
 * containers say everything. */
static __noinline enum reason
guard_overlay(ctx_t *ctx, struct packet *pkt, const struct gre_origin *origin,
	      const struct network *network, __u32 *endpoint)
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
	/* Without ICC only who is known may speak, by its links. */
	if (!reason && !known && network->flags & NETWORK_ICC)
		learn_station(&learned);
	return reason;
}

#endif
