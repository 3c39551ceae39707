/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Bridging: frames to a station of the same network, and copies to all its
 * members. */
#ifndef EBPNET_BRIDGE_H
#define EBPNET_BRIDGE_H

#include "decision.h"
#include "flood.h"
#include "fragment_send.h"
#include "learn.h"
#include "loop.h"
#include "maps.h"
#include "policy.h"
#include "tunnel.h"
#include "verdict.h"

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
	scratch->decision.room = fragment_room(skb, pkt, scratch->decision.mtu);
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

struct bridge_flood {
	struct __sk_buff *skb;
	__u32 network;
	enum flood flags;
	__u32 trunks; /* how many there are */
	__u32 due; /* bool: it is time for probes */
};

/* Whether a copy goes out by a trunk. */
static __always_inline bool
bridge_floods_trunk(struct bridge_flood *flood, const struct station *member)
{
	const struct trunk *trunk = loop_trunk(member->endpoint);

	if (!trunk)
		return true;
	flood->trunks++;
	if (bpf_ktime_get_coarse_ns() >= trunk->probed + LOOP_INTERVAL)
		flood->due = true;
	if (!loop_is_blocked(trunk))
		return true;
	/* The agent writes `devices` without the mark. */
	loop_mark(member->ifindex, TRUNK_BLOCKED);
	return false;
}

static int bridge_flood_one(__u32 index, void *context)
{
	struct bridge_flood *flood = context;
	struct member_key key = { .network = flood->network, .index = index };
	const struct station *member = bpf_map_lookup_elem(&members, &key);
	struct scratch *scratch = scratch_get();
	struct __sk_buff *skb = flood->skb;

	if (!member || !scratch)
		return 0;
	if (member->kind == STATION_REMOTE) {
		if (!(flood->flags & FLOOD_TUNNELS))
			return 0;
		skb->mark = tunnel_mark(flood->network, member->tunnel);
		if (bpf_clone_redirect(skb, datapath_ifindex, 0))
			verdict_count(skb, REASON_COPY_FAILED);
		scratch->copies++;
		return 0;
	}
	if (member->trunk) {
		if (!bridge_floods_trunk(flood, member))
			return 0;
	} else if (flood->flags & FLOOD_UNKNOWN) {
		return 0;
	}
	if (member->ifindex == skb->ifindex)
		return 0;
	if (bpf_clone_redirect(skb, member->ifindex, 0)) {
		verdict_count(skb, REASON_COPY_FAILED);
	} else {
		count_rx(&endpoint_stats, member->endpoint, skb);
	}
	scratch->copies++;
	return 0;
}

static int bridge_probe_one(__u32 index, void *context)
{
	struct bridge_flood *flood = context;
	struct member_key key = { .network = flood->network, .index = index };
	const struct station *member = bpf_map_lookup_elem(&members, &key);

	if (member && member->trunk)
		loop_send(flood->skb, flood->network, member);
	return 0;
}

/* Sends a probe out by each trunk of the network. */
static __always_inline void
bridge_probe(struct bridge_flood *flood, struct scratch *scratch, __u32 members)
{
	if (flood->trunks < 2 || !flood->due || flood->skb->gso_size ||
	    bpf_skb_load_bytes(flood->skb, 0, scratch->flooded, LOOP_PROBE))
		return;
	bpf_loop(members, bridge_probe_one, flood, 0);
	bpf_skb_store_bytes(flood->skb, 0, scratch->flooded, LOOP_PROBE, 0);
}

/* Copies the frame to all members of its network except its sender. */
static __noinline int
bridge_flood(struct __sk_buff *skb, struct scratch *scratch,
	     const struct network *network)
{
	struct bridge_flood flood = {
		.skb = skb,
		.network = scratch->decision.network,
		.flags = scratch->decision.flood,
	};
	__u32 payer = scratch->decision.payer;
	struct flood_budget *budget;

	budget = bpf_map_lookup_elem(&flood_budgets, &payer);
	if (!budget)
		return verdict_drop(skb, REASON_KERNEL_ERROR);
	if (!flood_is_due(budget))
		return verdict_drop(skb, REASON_FLOOD_LIMIT);
	scratch->copies = 0;
	bpf_loop(network->members, bridge_flood_one, &flood, 0);
	flood_pay(budget, payer, scratch->copies);
	bridge_probe(&flood, scratch, network->members);
	if (flood.flags & FLOOD_UNKNOWN && !scratch->copies)
		return verdict_drop(skb, REASON_UNKNOWN_DESTINATION);
	return verdict_consume();
}

#endif
