/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Flows to the outside: RFC 4787, 5382, 5508. Every flow across an uplink is
 * opened here, also those of networks without masquerade: these are
 * "translated" to their own address, so that only replies come in.
 */
#ifndef EBPNET_MASQUERADE_H
#define EBPNET_MASQUERADE_H

#include "fragment.h"
#include "search.h"

/* Gives the flow the port of an existing mapping; NO_MAPPING if there is none,
 * or if its port is taken towards this destination. */
static __noinline __u32 masquerade_acquire(struct search *search,
					   struct scratch *scratch)
{
	const struct flow *holder;
	__u32 slot;

	mapping_inside(&scratch->mapping, &scratch->original, &scratch->reply);
	slot = mapping_acquire(&scratch->mapping);
	if (slot == NO_MAPPING)
		return NO_MAPPING;
	holder = flow_at(slot);
	if (holder) {
		mapping_outside(&scratch->mapping, &holder->original,
				&holder->reply);
		scratch->reply.dport = scratch->mapping.dport;
		search->kind = SEARCH_SHARED;
		if (search_socket(search->ctx, &scratch->reply) ==
			    SOCKET_NONE &&
		    !search_take(search, scratch))
			return slot;
	}
	mapping_release(slot);
	return NO_MAPPING;
}

/* Gives the flow being opened its port, and the mapping of that port:
 * NO_MAPPING if endpoints share the ports, because there are few. */
static __always_inline enum reason
masquerade_find_port(struct search *search, struct scratch *scratch,
		     __u32 *mapping)
{
	enum reason reason;

	*mapping = masquerade_acquire(search, scratch);
	if (*mapping != NO_MAPPING)
		return REASON_NONE;
	search->kind = SEARCH_MAPPING;
	reason = search_port(search);
	if (!reason)
		*mapping = search->slot;
	if (reason != REASON_PORTS_EXHAUSTED)
		return reason;
	search->kind = SEARCH_SHARED;
	return search_port(search);
}

/* Publishes the mapping that the flow being opened holds. If another CPU
 * published one first, the flow uses that mapping, or none if that has ended:
 * an endpoint's port has only one mapping. */
static __always_inline __u32 masquerade_publish(struct search *search,
						struct scratch *scratch)
{
	__be16 ours = scratch->reply.dport, joined;
	__u32 mapping;

	if (mapping_publish(scratch, search->slot) ||
	    !mapping_withdraw(search->slot))
		return search->slot;
	mapping_key(&scratch->mapping, &scratch->reply);
	flow_index_remove(&scratch->mapping, search->slot);
	mapping = masquerade_acquire(search, scratch);
	joined = scratch->reply.dport;
	scratch->reply.dport = ours;
	if (mapping == NO_MAPPING)
		return NO_MAPPING;
	flow_index_remove(&scratch->reply, search->slot);
	scratch->reply.dport = joined;
	return mapping;
}

/* Opens the flow of packets with scratch->key to the outside with source
 * address @source, for scratch->owner. */
__verified_once enum reason
masquerade_open(struct __sk_buff *skb, const struct address *source)
{
	struct search search = { .ctx = skb, .kind = SEARCH_PEER };
	struct scratch *scratch = scratch_get();
	__u32 mapping = NO_MAPPING;
	enum reason reason;

	if (!scratch || !source)
		return REASON_KERNEL_ERROR;
	scratch->original = scratch->key;
	flow_key_reverse(&scratch->reply, &scratch->original, NETWORK_OUTSIDE);
	scratch->reply.dst = *source;
	if (scratch->original.network == NETWORK_OUTSIDE)
		search.kind = SEARCH_HOST;
	if (address_equal(source, &scratch->original.src))
		return search_open(&search, scratch, NO_MAPPING);
	reason = flow_slot_claim(scratch, &search.slot);
	if (reason)
		return reason;
	reason = ports_check(scratch, first_port, last_port);
	if (!reason)
		reason = masquerade_find_port(&search, scratch, &mapping);
	if (reason) {
		flow_slot_release(search.slot);
		return reason;
	}
	if (mapping == search.slot)
		mapping = masquerade_publish(&search, scratch);
	return flow_open(scratch, search.slot, mapping, FLOW_ORIGINAL);
}

/* Finds the flow of a packet of the host itself with key scratch->key. Opens
 * its flow if there is none. */
static __always_inline enum reason
masquerade_host(struct __sk_buff *skb, struct packet *pkt,
		struct scratch *scratch)
{
	const struct flow_key *key = &scratch->key;
	enum flow_side side = FLOW_ORIGINAL;
	enum reason reason;
	struct flow *flow;
	__u32 slot;

	flow = flow_find_to(scratch, key, &side, &slot);
	if (!flow) {
		scratch->owner = OWNER_HOST;
		scratch->server = 0;
		reason = masquerade_open(skb, &pkt->src);
		if (reason)
			return reason;
		flow = flow_find_opened(scratch, &side, &slot);
		if (!flow)
			return dry_run ? REASON_NONE : REASON_FLOW_TABLE_FULL;
	}
	if (pkt->fragment == FRAGMENT_FIRST)
		fragment_remember(pkt, NETWORK_OUTSIDE,
				  FRAGMENT_OUT | skb->ifindex);
	flow_update(skb, flow, slot, pkt, side);
	return REASON_NONE;
}

/* Whether a packet of the host itself with @key is of a translated flow, or
 * must open one because its replies would match another flow. */
static __always_inline bool
masquerade_is_needed(const struct flow_key *key, struct flow_key *back)
{
	flow_key_reverse(back, key, NETWORK_OUTSIDE);
	return bpf_map_lookup_elem(&flow_index, key) ||
	       bpf_map_lookup_elem(&flow_index, back);
}

#endif
