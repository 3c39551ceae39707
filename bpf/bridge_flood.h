/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Floods a frame: copies to the members of its network. Part of act.h. */
#ifndef EBPNET_BRIDGE_FLOOD_H
#define EBPNET_BRIDGE_FLOOD_H

#include "bridge.h"
#include "flood.h"
#include "loop.h"
#include "tunnel.h"
#include "verdict.h"

struct bridge_flood_run {
	struct __sk_buff *skb;
	__u32 network;
	enum flood flags;
	__u32 trunks; /* how many there are */
	__u32 due; /* bool: it is time for probes */
};

/* Whether a copy goes out by a trunk. */
static __always_inline bool bridge_floods_trunk(struct bridge_flood_run *flood,
						const struct station *member)
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
	struct bridge_flood_run *flood = context;
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
	struct bridge_flood_run *flood = context;
	struct member_key key = { .network = flood->network, .index = index };
	const struct station *member = bpf_map_lookup_elem(&members, &key);

	if (member && member->trunk)
		loop_send(flood->skb, flood->network, member);
	return 0;
}

/* Sends a probe out by each trunk of the network. */
static __always_inline void bridge_probe(struct bridge_flood_run *flood,
					 struct scratch *scratch, __u32 members)
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
	struct bridge_flood_run flood = {
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
