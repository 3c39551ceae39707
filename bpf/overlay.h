/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Frames out of a tunnel: checks their senders and delivers them. */
#ifndef EBPNET_OVERLAY_H
#define EBPNET_OVERLAY_H

#include "bridge.h"
#include "ecn.h"
#include "gre_wrap.h"
#include "guard_overlay.h"
#include "learn.h"
#include "neigh.h"

/* Floods a frame out of a tunnel to the stations on this host. */
static __noinline int
overlay_flood(struct __sk_buff *skb, struct packet *pkt,
	      const struct gre_origin *origin, const struct network *network,
	      enum flood flags)
{
	enum reason reason;

	if (!(network->flags & NETWORK_ICC))
		return verdict_drop(skb, REASON_POLICY);
	reason = gre_decap(skb, pkt, origin);
	if (reason)
		return verdict_drop(skb, reason);
	return bridge_flood(skb, origin->network, network, flags,
			    flood_payer_tunnel(origin->tunnel,
					       origin->network));
}

/* Delivers a frame out of a tunnel to local stations only. */
static __noinline int overlay_deliver(struct __sk_buff *skb, struct packet *pkt,
				      const struct gre_origin *origin)
{
	const struct station *station, *asked;
	const struct network *network;
	__u32 endpoint = 0;
	enum reason reason;

	count_rx(&tunnel_stats, origin->tunnel, skb);
	network = bpf_map_lookup_elem(&networks, &origin->network);
	if (!network)
		return verdict_drop(skb, REASON_UNKNOWN_KEY);
	reason = parse_l3(skb, pkt, origin->inner);
	if (!reason)
		reason = guard_overlay(skb, pkt, origin, network, &endpoint);
	if (!reason)
		reason = ecn_decapsulate(skb, pkt, origin->tos);
	if (reason)
		return verdict_drop(skb, reason);

	if (mac_is_multicast(&pkt->dst_mac)) {
		/* A static station needs no flood. */
		asked = neigh_find_asked(skb, pkt);
		if (!asked || asked->network != origin->network)
			return overlay_flood(skb, pkt, origin, network, 0);
		if (asked->kind != STATION_LOCAL)
			return verdict_consume(); /* its own host answers */
		station = asked;
	} else {
		station = fdb_lookup_static(origin->network, &pkt->dst_mac);
		if (!station)
			station = fdb_lookup_learned(origin->network,
						     &pkt->dst_mac);
		if (!station)
			return overlay_flood(skb, pkt, origin, network,
					     FLOOD_UNKNOWN);
		if (station->kind != STATION_LOCAL)
			return verdict_drop(skb, REASON_UNKNOWN_DESTINATION);
	}
	reason = policy_check(skb, pkt, origin->network, network, endpoint,
			      station->endpoint);
	if (!reason)
		reason = gre_decap(skb, pkt, origin);
	if (reason)
		return verdict_drop(skb, reason);
	return gre_is_mistaken(pkt, origin) ? deliver_veth(skb, station) :
					      deliver_peer(skb, station);
}

#endif
