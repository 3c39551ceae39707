/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The source guard for what comes out of a tunnel. */
#ifndef EBPNET_GUARD_OVERLAY_H
#define EBPNET_GUARD_OVERLAY_H

#include "gre.h"
#include "guard_shared.h"
#include "learn.h"

/* Looks at who sends a frame out of a tunnel: a known station that is there, or
 * one that is learned there. Gives its endpoint, if it is known. */
static __noinline enum reason
guard_overlay(ctx_t *ctx, struct packet *pkt, const struct gre_origin *origin,
	      const struct network *network, __u32 *endpoint)
{
	struct shared_source source = { .network = origin->network };
	const struct station *known =
		learn_find_told(origin->network, &pkt->src_mac);
	struct station learned = {
		.network = origin->network,
		.tunnel = origin->tunnel,
		.kind = STATION_REMOTE,
		.mac = pkt->src_mac,
	};
	enum reason reason;

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
