/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Bridging: frames to a station of the same network, and copies to all its
 * members. */
#ifndef EBPNET_BRIDGE_H
#define EBPNET_BRIDGE_H

#include "decision.h"
#include "fragment.h"
#include "policy.h"
#include "tunnel.h"

/* Whether the station has the frame already, because it is behind the trunk
 * that the frame came in by. */
static __always_inline bool
bridge_is_behind(const struct __sk_buff *skb, const struct station *station)
{
	return station->trunk && station->ifindex == skb->ifindex;
}

/* Decides about a frame of @device to @station, which is on its network. */
static __always_inline enum action
bridge_decide(struct __sk_buff *skb, struct scratch *scratch,
	      const struct device *device, const struct network *network,
	      const struct station *station)
{
	struct packet *pkt = &scratch->packet;
	enum reason reason = policy_check(skb, pkt, device->network, network,
					  device->endpoint, station->endpoint);
	enum action action;

	if (reason)
		return decision_drop(scratch, reason);
	if (station->kind == STATION_LOCAL)
		return decision_deliver(scratch, station);
	action = tunnel_decide(skb, network, station->tunnel, false);
	if (action != ACTION_REFUSE)
		return action;
	if (pkt->ethertype == bpf_htons(ETH_P_ARP))
		return ACTION_DROP;
	reason = parse_l4(skb, pkt);
	if (reason)
		return decision_drop(scratch, reason);
	scratch->decision.room = fragment_room(pkt, scratch->decision.mtu);
	return scratch->decision.room ? ACTION_ENCAPSULATE_FRAGMENTS : action;
}

/* Where copies of a frame go. */
enum flood {
	FLOOD_TUNNELS = 1, /* never for frames out of a tunnel: no loops */
	FLOOD_UNKNOWN = 2, /* unknown MAC: only to trunks and tunnels */
};

/* Decides about a frame to all members of its network. The copies count for
 * @payer. */
static __always_inline enum action
bridge_decide_flood(struct scratch *scratch, const struct network *network,
		    enum flood flood, __u32 payer)
{
	if (!(network->flags & NETWORK_ICC))
		return decision_drop(scratch, REASON_POLICY);
	if (flood & FLOOD_UNKNOWN && !network->shared)
		return decision_drop(scratch, REASON_UNKNOWN_DESTINATION);
	scratch->decision.flood = flood;
	scratch->decision.payer = payer;
	return ACTION_FLOOD;
}

#endif
