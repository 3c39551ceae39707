/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* How a flow ends. */
#ifndef EBPNET_FLOW_END_H
#define EBPNET_FLOW_END_H

#include "flow_list.h"
#include "mapping.h"
#include "ports.h"

/* Whether a flow in @state can be ended: no CPU has ended it yet. */
static __always_inline bool flow_can_end(enum flow_state state)
{
	return state == FLOW_HALF_OPEN || state == FLOW_ESTABLISHED ||
	       state == FLOW_REVOKED;
}

/* Takes the keys of the flow in @slot out of the index. */
static __always_inline void flow_unindex(const struct flow *flow, __u32 slot)
{
	barrier_var(flow); /* keeps the keys' addresses off the stack */
	flow_index_remove(&flow->original, slot);
	flow_index_remove(&flow->reply, slot);
}

/* Ends the flow in @slot if it is in @state: the index forgets its packets.
 * False if the flow is in another state, or if @state is that of a flow that
 * another CPU has just ended. */
static __always_inline bool
flow_end(struct flow *flow, __u32 slot, enum flow_state state)
{
	__u32 mapping;
	bool left_lists;

	if (!flow_can_end(state))
		return false;
	if (dry_run)
		return true;
	if (__sync_val_compare_and_swap(&flow->state, state, FLOW_ENDED) !=
	    state)
		return false;
	flow_unindex(flow, slot);
	left_lists = flow_list_remove(slot);
	mapping = flow->mapping;
	share_end(flow->owner, state, mapping == slot);
	if (flow->place_own)
		ports_count(flow->place_own, flow->place_all, -1);
	/* Other flows still link to this slot: it must not be used again. */
	if (!left_lists)
		return true;
	if (mapping != slot)
		flow_slot_retire(flow);
	if (mapping != NO_MAPPING)
		mapping_release(mapping);
	return true;
}

/* Ends the flow in @slot for its original side, because its published port is
 * gone. The key of the reply side stays in the index, so packets that the
 * server still sends open no new flow. */
static __always_inline void
flow_revoke(struct flow *flow, __u32 slot, enum flow_state state)
{
	if (__sync_val_compare_and_swap(&flow->state, state, FLOW_REVOKED) !=
	    state)
		return;
	if (state == FLOW_HALF_OPEN) {
		share_count_half_open(flow->owner, -1);
		share_count(flow->owner, 1);
	}
	flow_index_remove(&flow->original, slot);
}

/* Ends the flow of packets with @key if it is in @state. False if the flow is
 * in another state and keeps @key. */
static __always_inline bool
flow_end_by_key(const struct flow_key *key, enum flow_state state)
{
	const struct flow_ref *ref = bpf_map_lookup_elem(&flow_index, key);
	struct flow *flow;
	__u32 slot;

	if (!ref)
		return true;
	slot = ref->slot;
	flow = flow_at(slot);
	return flow && flow_end(flow, slot, state);
}

#endif
