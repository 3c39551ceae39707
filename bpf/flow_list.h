/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Lists of flows: each endpoint has one of the flows from it and to it. So the
 * flows of one that goes are found without a look at all others.
 *
 * A list is linked both ways, as a flow leaves it from anywhere. Its lock may
 * be held across no lookup. So a change looks up the flows that it writes to
 * first, and then sees under the lock whether they are still the right ones.
 */
#ifndef EBPNET_FLOW_LIST_H
#define EBPNET_FLOW_LIST_H

#include "index.h"
#include "share.h"

/* An attempt to add fails if another CPU adds one in the same moment: after so
 * many the flow is counted as unlisted. An attempt to remove fails only if a
 * flow beside it leaves in the same moment. */
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
	__u32 endpoint = side == FLOW_OPENER ? flow->owner : flow->server;

	return endpoint < OWNER_PORTS ? endpoint : 0;
}

/* NULL if @place is none. */
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

/* Puts the flow in @slot into the list of the endpoint of @side. */
static __always_inline void
flow_list_add_side(struct flow *flow, __u32 slot, enum flow_side side)
{
	__u32 endpoint = flow_list_endpoint(flow, side), first, added = 0;
	struct flow_share *share = endpoint ? share_of(endpoint) : NULL;
	struct flow_link *link = &flow->links[side], *next;

	link->before = link->after = 0;
	if (!share)
		return;
	for (int i = 0; i < FLOW_LIST_ATTEMPTS && !added; i++) {
		first = share->first;
		next = flow_list_link(first);
		bpf_spin_lock(&share->lock);
		if (share->first == first) {
			link->after = first;
			if (next)
				next->before = flow_list_place(slot, side);
			share->first = flow_list_place(slot, side);
			added = 1;
		}
		bpf_spin_unlock(&share->lock);
	}
	if (!added)
		__sync_fetch_and_add(&share->unlisted, 1);
}

/* Puts the flow in @slot, which nobody else knows yet, into the lists of its
 * endpoints. */
__verified_once int flow_list_add(__u32 slot)
{
	struct flow *flow = flow_at(slot);

	if (!flow)
		return 0;
	flow_list_add_side(flow, slot, FLOW_OPENER);
	flow_list_add_side(flow, slot, FLOW_ANSWER);
	return 0;
}

/* Takes the flow in @slot out of the list of the endpoint of @side. */
__verified_once int flow_list_remove_side(__u32 slot, enum flow_side side)
{
	struct flow *flow = flow_at(slot);
	struct flow_link *link, *left, *right;
	__u32 endpoint, before, after, removed = 0;
	struct flow_share *share;

	if (!flow)
		return 0;
	endpoint = flow_list_endpoint(flow, side);
	share = endpoint ? share_of(endpoint) : NULL;
	if (!share)
		return 0;
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
				share->unlisted--;
			if (right)
				right->before = before;
			removed = 1;
		}
		bpf_spin_unlock(&share->lock);
	}
	return 0;
}

/* Takes the flow in @slot out of the lists of its endpoints. */
static __always_inline void flow_list_remove(__u32 slot)
{
	flow_list_remove_side(slot, FLOW_OPENER);
	flow_list_remove_side(slot, FLOW_ANSWER);
}

#endif
