/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Frames that come out of a tunnel: who may send them, and where they go. */
#ifndef EBPNET_OVERLAY_H
#define EBPNET_OVERLAY_H

#include "bridge.h"
#include "ecn.h"
#include "fdb.h"
#include "gre_wrap.h"
#include "guard_overlay.h"
#include "neigh.h"

/* Finds the network of the frame, and notes it in the decision. */
static __always_inline const struct network *
overlay_network(struct scratch *scratch)
{
	__u32 id = scratch->origin.network;

	scratch->decision.network = id;
	return bpf_map_lookup_elem(&networks, &id);
}

/* Reads the inner frame and checks its sender. Gives the sender's @endpoint if
 * it has a static entry. */
static __always_inline enum reason
overlay_classify(struct __sk_buff *skb, struct scratch *scratch,
		 const struct network *network, __u32 *endpoint)
{
	struct tunnel_origin *origin = &scratch->origin;
	struct packet *pkt = &scratch->packet;
	enum reason reason = parse_l3(skb, pkt, origin->inner);

	if (!reason)
		reason = guard_overlay(skb, pkt, origin, network, endpoint);
	if (!reason)
		reason = ecn_check(pkt, origin->tos);
	return reason;
}

/* Decides to flood the frame to the local members of its network. */
static __always_inline enum action
overlay_flood(struct scratch *scratch, const struct network *network,
	      enum flood flood)
{
	return bridge_decide_flood(scratch, network, flood,
				   flood_payer_tunnel(scratch->origin.tunnel,
						      scratch->origin.network));
}

/* Whether the kernel still classifies the inner packet of @origin like the
 * outer one. */
static __always_inline bool
overlay_is_misclassified(const struct packet *pkt,
			 const struct tunnel_origin *origin)
{
	return pkt->ethertype == bpf_htons(ETH_P_ARP) ||
	       (pkt->ethertype != origin->outer && !decap_ipv6_flags);
}

/* Decides about a frame out of a tunnel: it goes to local stations only. */
static __noinline enum action
overlay_decide(struct __sk_buff *skb, struct scratch *scratch,
	       const struct network *network, __u32 endpoint)
{
	const struct tunnel_origin *origin = &scratch->origin;
	struct packet *pkt = &scratch->packet;
	__u32 id = scratch->decision.network;
	const struct station *station;
	enum reason reason;

	scratch->decision.changes = CHANGE_OUTER;
	if (mac_is_multicast(&pkt->dst_mac)) {
		/* A question about a static entry goes to its station alone. */
		station = neigh_find_asked(skb, pkt);
		if (!station || station->network != id)
			return overlay_flood(scratch, network, 0);
		if (station->kind != STATION_LOCAL)
			return ACTION_IGNORE; /* its own host answers */
	} else {
		station = fdb_lookup_static(id, &pkt->dst_mac);
		if (!station)
			station = fdb_lookup_learned(id, &pkt->dst_mac);
		if (!station)
			return overlay_flood(scratch, network, FLOOD_UNKNOWN);
		if (station->kind != STATION_LOCAL)
			return decision_drop(scratch,
					     REASON_UNKNOWN_DESTINATION);
	}
	reason = policy_check(skb, pkt, id, network, endpoint,
			      station->endpoint);
	if (reason)
		return decision_drop(scratch, reason);
	decision_deliver(scratch, station);
	return overlay_is_misclassified(pkt, origin) ? ACTION_DELIVER_BY_VETH :
						       ACTION_DELIVER;
}

#endif
