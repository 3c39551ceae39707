/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Lists of flows: each endpoint has a list of the flows from it and to it. When
 * an endpoint goes, its flows are found without a look at all others.
 *
 * A list is linked both ways, because a flow leaves it from any position. The
 * verifier allows no lookup while the list's lock is held. So a change looks up
 * the flows that it writes to, then takes the lock and checks that they are
 * still the neighbors.
 */
#ifndef EBPNET_FLOW_LIST_H
#define EBPNET_FLOW_LIST_H

#include "flow_find.h"
#include "share.h"

/* An attempt to add fails if another CPU adds a flow at the same moment. After
 * this many attempts the flow is counted as unlisted. An attempt to remove
 * fails only if a neighbor in the list changes at the same moment. */
#define FLOW_LIST_ATTEMPTS 32

static __always_inline __u32 flow_list_place(__u32 slot, enum flow_side side)
{
	return 2 * slot + side + 1;
}

static __always_inline __u32 flow_list_slot(__u32 place)
{
	return (place - 1) / 2;
}

static __always_inline enum flow_side flow_list_side(__u32 place)
{
	return (place - 1) & 1;
}

/* The endpoint in whose list the flow has a place for @side; 0: none. */
static __always_inline __u32 flow_list_endpoint(const struct flow *flow,
						enum flow_side side)
{
	__u32 endpoint = side == FLOW_ORIGINAL ? flow->owner : flow->server;

	return endpoint < OWNER_PORTS ? endpoint : 0;
}

/* The link at @place; NULL if @place is 0. */
static __always_inline struct flow_link *flow_list_link(__u32 place)
{
	struct flow *flow = place ? flow_at(flow_list_slot(place)) : NULL;

	return flow ? &flow->links[flow_list_side(place)] : NULL;
}

/* The first place in the list of the endpoint; 0: it is empty. */
static __always_inline __u32 flow_list_first(__u32 endpoint)
{
	const struct flow_share *share = share_of(endpoint);

	return share ? share->first : 0;
}

/* Adds the flow in @slot to the list of the endpoint of @side. */
static __always_inline void
flow_list_add_side(struct flow *flow, __u32 slot, enum flow_side side)
{
	__u32 endpoint = flow_list_endpoint(flow, side), first, added = 0;
	struct flow_share *share = endpoint ? share_of(endpoint) : NULL;
	struct flow_link *link = &flow->links[side], *next;

	if (!share)
		return;
	for (int i = 0; i < FLOW_LIST_ATTEMPTS && !added; i++) {
		first = share->first;
		next = flow_list_link(first);
		bpf_spin_lock(&share->lock);
		if (share->first == first) {
			link->before = 0;
			link->after = first;
			if (next)
				next->before = flow_list_place(slot, side);
			share->first = flow_list_place(slot, side);
			added = 1;
		}
		bpf_spin_unlock(&share->lock);
	}
	if (added)
		return;
	link->before = link->after = 0;
	__sync_fetch_and_add(&share->unlisted, 1);
}

/* Adds the flow in @slot to the lists of its endpoints. No other CPU knows the
 * flow yet. */
__verified_once int flow_list_add(__u32 slot)
{
	struct flow *flow = flow_at(slot);

	if (!flow)
		return 0;
	flow_list_add_side(flow, slot, FLOW_ORIGINAL);
	flow_list_add_side(flow, slot, FLOW_REPLY);
	return 0;
}

/* Removes the flow in @slot from the list of the endpoint of @side. False if it
 * is still there. */
__verified_once int flow_list_remove_side(__u32 slot, enum flow_side side)
{
	struct flow *flow = flow_at(slot);
	struct flow_link *link, *left, *right;
	__u32 endpoint, before, after, removed = 0;
	struct flow_share *share;

	if (!flow)
		return true;
	endpoint = flow_list_endpoint(flow, side);
	share = endpoint ? share_of(endpoint) : NULL;
	if (!share)
		return true;
	link = &flow->links[side & 1];
	for (int i = 0; i < FLOW_LIST_ATTEMPTS && !removed; i++) {
		before = link->before;
		after = link->after;
		left = flow_list_link(before);
		right = flow_list_link(after);
		bpf_spin_lock(&share->lock);
		if (link->before == before && link->after == after) {
			if (left)
				left->after = after;
			else if (share->first == flow_list_place(slot, side))
				share->first = after;
			else
				__sync_fetch_and_add(&share->unlisted, -1);
			if (right)
				right->before = before;
			removed = 1;
		}
		bpf_spin_unlock(&share->lock);
	}
	return removed;
}

/* Removes the flow in @slot from the lists of its endpoints. False if it is
 * still in one. */
static __always_inline bool flow_list_remove(__u32 slot)
{
	int original = flow_list_remove_side(slot, FLOW_ORIGINAL);
	int reply = flow_list_remove_side(slot, FLOW_REPLY);

	return original && reply;
}

#endif
