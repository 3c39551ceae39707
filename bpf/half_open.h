/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The half-open flows: each has a place in `half_open`. If no place is free, a
 * new half-open flow displaces another.
 */
#ifndef EBPNET_HALF_OPEN_H
#define EBPNET_HALF_OPEN_H

#include "flow_end.h"
#include "flow_phase.h"

/* How many random places of `half_open` are tried. */
#define HALF_OPEN_ATTEMPTS 16

/* After this many attempts on used places, few places are free. */
#define HALF_OPEN_LOOKS 8

/* The weight of a free place. */
#define HALF_OPEN_FREE 0xffffffff

/* The weight of the flow at place @at of `half_open`: the heaviest flow makes
 * room for a new one. A flow weighs more the more half-open flows its owner
 * has. Among flows of one owner, those with a reply weigh more. */
static __always_inline __u32 half_open_weigh(__u32 at)
{
	const __u32 *place = bpf_map_lookup_elem(&half_open, &at);
	const struct flow *flow = place && *place ? flow_at(*place - 1) : NULL;
	const struct flow_share *share;

	if (!flow || flow->half_open_at != at || flow->state != FLOW_HALF_OPEN)
		return HALF_OPEN_FREE;
	share = share_of(flow->owner);
	return share ? 2 * share->half_open +
			       flow_phase_is_replied(flow->phase) :
		       0;
}

/* Gives the flow in @slot a place in `half_open`. If no tried place is free,
 * the heaviest flow found ends and leaves its place. Its owner has more
 * half-open flows than others, so a flood displaces its own flows. */
static __noinline void half_open_reserve(struct flow *flow, __u32 slot)
{
	const struct flow_share *share = share_of(flow->owner);
	__u32 own = share ? 2 * share->half_open : 0;
	__u32 at = 0, heaviest = 0, before, *place;
	struct flow *oldest;

	for (int i = 0; i < HALF_OPEN_ATTEMPTS; i++) {
		__u32 candidate = bpf_get_prandom_u32() % half_open_slots;
		__u32 weight = half_open_weigh(candidate);

		if (weight >= heaviest) {
			heaviest = weight;
			at = candidate;
		}
		if (heaviest == HALF_OPEN_FREE)
			break;
		/* Where few places are free, stop at an owner that has far more
		 * half-open flows than this one, or more than half of all. */
		if (i >= HALF_OPEN_LOOKS &&
		    (heaviest > 4 * own + 256 || heaviest > half_open_slots))
			break;
	}
	place = bpf_map_lookup_elem(&half_open, &at);
	if (!place)
		return;
	flow->half_open_at = at;
	before = __sync_lock_test_and_set(place, slot + 1);
	if (!before || before == slot + 1)
		return;
	before--;
	oldest = flow_at(before);
	if (oldest && oldest->half_open_at == at)
		flow_end(oldest, before, FLOW_HALF_OPEN);
}

#endif
