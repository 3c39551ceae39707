/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Mappings (RFC 4787, 4.1): an endpoint's port has one port outside for all
 * destinations, as long as any of its flows lasts. A mapping lives in the slot
 * of the flow that made it. The index has it under two keys that leave out the
 * other side: one for packets from outside, one for packets from inside.
 */
#ifndef EBPNET_MAPPING_H
#define EBPNET_MAPPING_H

#include "flow_slot.h"

/* Builds the key of the mapping for a packet from outside with @key. */
static __always_inline void
mapping_key(struct flow_key *mapping, const struct flow_key *key)
{
	__builtin_memset(mapping, 0, sizeof(*mapping));
	mapping->dst = key->dst;
	mapping->dport = key->dport;
	mapping->network = NETWORK_OUTSIDE;
	mapping->protocol = key->protocol;
}

/* Builds the outside key of a flow's mapping. If the flow was opened from
 * outside, the endpoint is its reply side. */
static __always_inline void
mapping_outside(struct flow_key *mapping, const struct flow_key *original,
		const struct flow_key *reply)
{
	mapping_key(mapping,
		    reply->network == NETWORK_OUTSIDE ? reply : original);
}

/* Builds the inside key of a flow's mapping. It has the host's address too,
 * because each address of the host has mappings of its own. */
static __always_inline void
mapping_inside(struct flow_key *mapping, const struct flow_key *original,
	       const struct flow_key *reply)
{
	bool out = reply->network == NETWORK_OUTSIDE;
	const struct flow_key *inside = out ? original : reply;

	__builtin_memset(mapping, 0, sizeof(*mapping));
	mapping->src = inside->src;
	mapping->sport = inside->sport;
	mapping->dst = out ? reply->dst : original->dst;
	mapping->network = inside->network;
	mapping->protocol = inside->protocol;
}

/* Adds the inside key of the mapping that the flow being opened holds in its
 * claimed @slot. False if another mapping has that key. */
static __always_inline bool mapping_publish(struct scratch *scratch, __u32 slot)
{
	struct flow *flow = flow_at(slot);

	if (!flow)
		return true; /* flow_open() fails */
	flow->original = scratch->original;
	flow->reply = scratch->reply;
	/* An exchange, so that other CPUs see the keys before the users. */
	__sync_lock_test_and_set(&flow->users, 1);
	mapping_inside(&scratch->mapping, &scratch->original, &scratch->reply);
	return flow_index_add(&scratch->mapping, slot, FLOW_MAPPING) != -EEXIST;
}

/* Withdraws the mapping that the flow being opened holds in its claimed @slot.
 * False if a packet from outside has acquired it already. */
static __always_inline bool mapping_withdraw(__u32 slot)
{
	struct flow *flow = flow_at(slot);

	return !flow || __sync_val_compare_and_swap(&flow->users, 1, 0) == 1;
}

/* Releases the mapping in @slot for one user. The mapping ends with its last
 * user. */
__verified_once int mapping_release(__u32 slot)
{
	struct flow *flow = flow_at(slot);
	struct flow_key key;

	if (dry_run)
		return 0;
	if (!flow || __sync_fetch_and_sub(&flow->users, 1) != 1)
		return 0;
	mapping_outside(&key, &flow->original, &flow->reply);
	flow_index_remove(&key, slot);
	mapping_inside(&key, &flow->original, &flow->reply);
	flow_index_remove(&key, slot);
	if (flow->state == FLOW_ENDED) {
		share_count(flow->owner, -1);
		flow_slot_retire(flow);
	}
	return 0;
}

/* Whether @key is the outside or the inside key of the mapping that @flow
 * holds. */
static __always_inline bool
mapping_has_key(const struct flow *flow, const struct flow_key *key)
{
	bool out = flow->reply.network == NETWORK_OUTSIDE;
	const struct flow_key *inside = out ? &flow->original : &flow->reply;
	const struct flow_key *outside = out ? &flow->reply : &flow->original;

	if (!address_equal(&key->dst, &outside->dst) ||
	    key->protocol != outside->protocol)
		return false;
	if (key->network == NETWORK_OUTSIDE)
		return key->dport == outside->dport;
	return key->network == inside->network && key->sport == inside->sport &&
	       address_equal(&key->src, &inside->src);
}

/* How often another CPU may change the number of users first. */
#define ACQUIRE_ATTEMPTS 8

/* Adds a user to the mapping under @key. Returns the mapping's slot, or
 * NO_MAPPING. A mapping without users has ended and cannot be acquired. */
static __always_inline __u32 mapping_acquire(const struct flow_key *key)
{
	const struct flow_ref *ref = bpf_map_lookup_elem(&flow_index, key);
	__u32 slot, users;
	struct flow *flow;

	if (!ref || ref->side != FLOW_MAPPING)
		return NO_MAPPING;
	slot = ref->slot;
	flow = flow_at(slot);
	if (!flow)
		return NO_MAPPING;
	if (dry_run)
		return flow->users && mapping_has_key(flow, key) ? slot :
								   NO_MAPPING;
	for (int i = 0; i < ACQUIRE_ATTEMPTS; i++) {
		users = flow->users;
		if (!users)
			return NO_MAPPING;
		if (__sync_val_compare_and_swap(&flow->users, users,
						users + 1) != users)
			continue;
		/* From now on the slot cannot be reused. It may have been
		 * before. */
		if (mapping_has_key(flow, key))
			return slot;
		mapping_release(slot);
		return NO_MAPPING;
	}
	return NO_MAPPING;
}

#endif
