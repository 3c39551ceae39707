/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Slots of `flows`: how they are claimed, released and retired. */
#ifndef EBPNET_FLOW_SLOT_H
#define EBPNET_FLOW_SLOT_H

#include "flow_find.h"
#include "share.h"

static __always_inline void flow_slot_retire(struct flow *flow)
{
	flow->seen = bpf_ktime_get_coarse_ns();
	flow->state = FLOW_DEAD;
}

/* How many slots a search tries. It starts behind the slot that this CPU
 * claimed last: so flows opened at the same time share pages and cache lines.
 * The other slots are random. In a table that is nine tenths full, one search
 * in a million finds no free slot. */
#define SLOT_ATTEMPTS 128

struct flow_claim {
	__u32 slot;
	__u32 found; /* bool */
};

static int flow_slot_try(__u32 i, void *context)
{
	struct flow_claim *claim = context;
	__u32 start = i ? bpf_get_prandom_u32() : claim->slot + 1;
	__u32 slot = start % flow_slots, state;
	struct flow *flow = flow_at(slot);

	if (!flow)
		return 0;
	state = flow->state;
	if (state != FLOW_FREE &&
	    (state != FLOW_DEAD ||
	     bpf_ktime_get_coarse_ns() - flow->seen < flow_grace))
		return 0;
	if (__sync_val_compare_and_swap(&flow->state, state, FLOW_CLAIMED) !=
	    state)
		return 0;
	claim->slot = slot;
	claim->found = 1;
	return 1;
}

/* Claims a free slot; false if none was found. */
static __always_inline bool flow_slot_find(struct scratch *scratch, __u32 *slot)
{
	struct flow_claim claim = { .slot = scratch->claimed };

	bpf_loop(SLOT_ATTEMPTS, flow_slot_try, &claim, 0);
	*slot = scratch->claimed = claim.slot;
	return claim.found;
}

/* Claims a free slot for a flow of scratch->owner, if the owner may have one
 * more. The flow's port is not counted, unless ports_check() notes later where
 * it is. */
static __noinline enum reason
flow_slot_claim(struct scratch *scratch, __u32 *slot)
{
	enum reason reason = share_may_open(scratch);
	struct refused *refusals;

	if (reason == REASON_FLOW_LIMIT && !dry_run) {
		refusals = limits_refusals(scratch->owner);
		if (refusals)
			__sync_fetch_and_add(&refusals->flows, 1);
	}
	if (reason)
		return reason;
	scratch->place_own = scratch->place_all = 0;
	*slot = NO_MAPPING; /* no slot either */
	if (dry_run)
		return REASON_NONE;
	return flow_slot_find(scratch, slot) ? REASON_NONE :
					       REASON_FLOW_TABLE_FULL;
}

static __always_inline void flow_slot_release(__u32 slot)
{
	struct flow *flow = flow_at(slot);

	if (flow)
		flow->state = FLOW_FREE;
}

#endif
