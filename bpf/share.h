/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Shares of the table of flows: each flow counts for its owner, which is an
 * endpoint, a published port, or the host. An owner may have as many
 * established flows as are still free beside a reserve, or as many as `limits`
 * gives it. So one owner cannot take all flows from others, and a few owners
 * together cannot.
 *
 * A slot counts as established while no other flow can have it. That includes
 * slots of revoked flows, and of ended flows whose mapping is in use.
 */
#ifndef EBPNET_SHARE_H
#define EBPNET_SHARE_H

#include "config.h"
#include "limits.h"

enum share_rule {
	/* Every owner may have this many flows, also from the reserve. */
	SHARE_MINIMUM = 16,
	/* The reserve is one sixty-fourth of the established flows. */
	SHARE_RESERVE = 64,
};

static __always_inline struct flow_share *share_of(__u32 owner)
{
	return bpf_map_lookup_elem(&flow_shares, &owner);
}

/* How many established flows there is room for. */
static __always_inline __u32 share_capacity(void)
{
	return flow_slots > half_open_slots ? flow_slots - half_open_slots :
					      flow_slots;
}

/* Whether an owner that has @own established flows and a limit of @limit may
 * have one more while all owners have @all. */
static __always_inline enum reason
share_check(__u32 limit, __u32 own, __u32 all)
{
	__u32 capacity = share_capacity(), reserve = capacity / SHARE_RESERVE;

	if (all >= capacity)
		return REASON_FLOW_TABLE_FULL;
	if (limit && own >= limit)
		return REASON_FLOW_LIMIT;
	if (own < SHARE_MINIMUM)
		return REASON_NONE;
	if (capacity - all <= reserve)
		return REASON_FLOW_LIMIT;
	return limit || own < capacity - all - reserve ? REASON_NONE :
							 REASON_FLOW_LIMIT;
}

/* Whether scratch->owner may open a flow. The host always may. An owner with a
 * limit of half-open flows opens none beyond it. Writes its limit of ports to
 * scratch->max_ports. */
static __always_inline enum reason share_may_open(struct scratch *scratch)
{
	const struct flow_share *own, *all;
	const struct owner_limits *limits;
	__u32 limit = 0;

	scratch->max_ports = 0;
	if (scratch->owner == OWNER_HOST)
		return REASON_NONE;
	own = share_of(scratch->owner);
	all = share_of(OWNER_ALL);
	if (!own || !all)
		return REASON_KERNEL_ERROR;
	limits = limits_of(scratch->owner);
	if (limits) {
		limit = limits->established;
		scratch->max_ports = limits->ports;
		if (limits->half_open && own->half_open >= limits->half_open)
			return REASON_FLOW_LIMIT;
	}
	return share_check(limit, own->established, all->established);
}

/* Counts @change established flows more, or less, for @owner. */
static __always_inline void share_count(__u32 owner, int change)
{
	struct flow_share *own = share_of(owner), *all = share_of(OWNER_ALL);

	if (!own || !all)
		return;
	__sync_fetch_and_add(&own->established, change);
	__sync_fetch_and_add(&all->established, change);
}

/* Counts one established flow more for @owner, if its share has room. */
static __always_inline bool share_reserve(__u32 owner)
{
	struct flow_share *own = share_of(owner), *all = share_of(OWNER_ALL);
	const struct owner_limits *limits;
	__u32 before, before_all;

	if (!own || !all)
		return false;
	before = __sync_fetch_and_add(&own->established, 1);
	before_all = __sync_fetch_and_add(&all->established, 1);
	if (owner == OWNER_HOST)
		return true;
	limits = limits_of(owner);
	if (!share_check(limits ? limits->established : 0, before, before_all))
		return true;
	__sync_fetch_and_add(&own->established, -1);
	__sync_fetch_and_add(&all->established, -1);
	return false;
}

/* Counts @change half-open flows more, or less, for @owner. */
static __always_inline void share_count_half_open(__u32 owner, int change)
{
	struct flow_share *own = share_of(owner);

	if (own)
		__sync_fetch_and_add(&own->half_open, change);
}

/* A flow that was in @state has ended. @holds: its slot is kept for the mapping
 * in it, until mapping_release() finds no user. */
static __always_inline void
share_end(__u32 owner, enum flow_state state, bool holds)
{
	bool counted = state != FLOW_HALF_OPEN;

	if (!counted)
		share_count_half_open(owner, -1);
	if (counted != holds)
		share_count(owner, holds ? 1 : -1);
}

#endif
