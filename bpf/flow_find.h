/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Finds a packet's flow by the packet's key. */
#ifndef EBPNET_FLOW_FIND_H
#define EBPNET_FLOW_FIND_H

#include "config.h"
#include "flow_index.h"
#include "flow_key.h"
#include "scratch.h"

static __always_inline struct flow *flow_at(__u32 slot)
{
	return bpf_map_lookup_elem(&flows, &slot);
}

/* The key of packets that the other side sends. */
static __always_inline const struct flow_key *
flow_other(const struct flow *flow, enum flow_side side)
{
	return side == FLOW_ORIGINAL ? &flow->reply : &flow->original;
}

/* The flow in the slot that `flow_index` has for @key. Another CPU may have
 * just reused the slot: see flow_has(). */
static __always_inline struct flow *
flow_find_at(const struct flow_key *key, enum flow_side *side, __u32 *slot)
{
	const struct flow_ref *ref = bpf_map_lookup_elem(&flow_index, key);

	if (!ref || ref->side == FLOW_MAPPING)
		return NULL;
	*side = ref->side;
	*slot = ref->slot;
	return flow_at(*slot);
}

/* Whether packets with @key are those that @side of the flow sends. */
static __always_inline bool
flow_has(const struct flow *flow, const struct flow_key *key,
	 enum flow_side side)
{
	return (flow->state == FLOW_ESTABLISHED ||
		flow->state == FLOW_HALF_OPEN) &&
	       flow_key_equal(key, side == FLOW_ORIGINAL ? &flow->original :
							   &flow->reply);
}

/* The flow of packets with @key, its slot and their side; NULL if there is
 * none. */
static __always_inline struct flow *
flow_find(const struct flow_key *key, enum flow_side *side, __u32 *slot)
{
	struct flow *flow = flow_find_at(key, side, slot);

	return flow && flow_has(flow, key, *side) ? flow : NULL;
}

/* The same, and in scratch->to the key of the other side. It is copied before
 * state and @key are checked, so it belongs to this flow: a CPU that reuses the
 * slot changes state and key first. */
static __always_inline struct flow *
flow_find_to(struct scratch *scratch, const struct flow_key *key,
	     enum flow_side *side, __u32 *slot)
{
	struct flow *flow = flow_find_at(key, side, slot);

	if (!flow)
		return NULL;
	scratch->to = *flow_other(flow, *side);
	barrier();
	return flow_has(flow, key, *side) ? flow : NULL;
}

/* The same for a flow that has just been opened with scratch->original and
 * scratch->reply. A dry run opens none: then scratch->to is the key that its
 * other side would have. */
static __always_inline struct flow *
flow_find_opened(struct scratch *scratch, enum flow_side *side, __u32 *slot)
{
	if (!dry_run)
		return flow_find_to(scratch, &scratch->key, side, slot);
	*side = FLOW_ORIGINAL;
	*slot = NO_MAPPING;
	scratch->to = scratch->reply;
	return NULL;
}

#endif
