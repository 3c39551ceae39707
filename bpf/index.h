/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The index: finds a packet's flow by the packet's key. */
#ifndef EBPNET_INDEX_H
#define EBPNET_INDEX_H

#include "config.h"
#include "maps.h"
#include "parse.h"

#define ENOENT	 2
#define E2BIG	 7
#define EBUSY	 16
#define EEXIST	 17
#define EALREADY 114

/* Keys are written field by field, and into a struct scratch where a program is
 * deep down: one copied as a whole takes its room on the stack twice. */
static __always_inline void
flow_key_of(struct flow_key *key, const struct packet *pkt, __u32 network)
{
	key->src = pkt->src;
	key->dst = pkt->dst;
	key->sport = pkt->sport;
	key->dport = pkt->dport;
	key->network = network;
	key->protocol = pkt->protocol;
	__builtin_memset(key->pad, 0, sizeof(key->pad));
}

/* The key of packets that go the other way. */
static __always_inline void
flow_key_reverse(struct flow_key *back, const struct flow_key *key,
		 __u32 network)
{
	back->src = key->dst;
	back->dst = key->src;
	back->sport = key->dport;
	back->dport = key->sport;
	back->network = network;
	back->protocol = key->protocol;
	__builtin_memset(back->pad, 0, sizeof(back->pad));
}

/* Makes the key that of packets that go the other way. */
static __always_inline void flow_key_reverse_in_place(struct flow_key *key)
{
	struct address src = key->src;
	__be16 sport = key->sport;

	key->src = key->dst;
	key->dst = src;
	key->sport = key->dport;
	key->dport = sport;
}

/* Whether packets with @key come from the end that is first in order. */
static __always_inline bool flow_key_is_first(const struct flow_key *key)
{
	for (int i = 3; i >= 0; i--) { /* the last word tells most of them */
		if (key->src.word[i] != key->dst.word[i])
			return key->src.word[i] < key->dst.word[i];
	}
	return key->sport <= key->dport;
}

static __always_inline bool
flow_key_equal(const struct flow_key *a, const struct flow_key *b)
{
	return address_equal(&a->src, &b->src) &&
	       address_equal(&a->dst, &b->dst) && a->sport == b->sport &&
	       a->dport == b->dport && a->network == b->network &&
	       a->protocol == b->protocol;
}

static __always_inline struct scratch *scratch_get(void)
{
	__u32 key = SCRATCH_PACKET;

	return bpf_map_lookup_elem(&scratches, &key);
}

/* The record for the programs that the agent runs. Before Linux 6.3 a packet
 * may come in while one runs, on the same CPU. */
static __always_inline struct scratch *scratch_of_command(void)
{
	__u32 key = SCRATCH_COMMAND;

	return bpf_map_lookup_elem(&scratches, &key);
}

/* An empty record for the packet at hand. It is in the scratch, as the stack of
 * the deepest chain has no room for it. */
static __always_inline struct packet *packet_new(void)
{
	struct scratch *scratch = scratch_get();

	if (!scratch)
		return NULL;
	__builtin_memset(&scratch->packet, 0, sizeof(scratch->packet));
	return &scratch->packet;
}

static __always_inline struct flow *flow_at(__u32 slot)
{
	return bpf_map_lookup_elem(&flows, &slot);
}

/* The key by which the packets that @side gets are sent by the other one. */
static __always_inline const struct flow_key *
flow_other(const struct flow *flow, enum flow_side side)
{
	return side == FLOW_ORIGINAL ? &flow->reply : &flow->original;
}

/* Makes packets with @key known as those of the flow in @slot; -EEXIST if they
 * are another's. An int: before 6.4 the upper half of what an update returns
 * is not defined. */
static __always_inline int
flow_index_add(const struct flow_key *key, __u32 slot, enum flow_side side)
{
	struct flow_ref ref = { .slot = slot, .side = side };

	return bpf_map_update_elem(&flow_index, key, &ref, BPF_NOEXIST);
}

/* Forgets that packets with @key are of the flow in @slot. */
static __always_inline void
flow_index_remove(const struct flow_key *key, __u32 slot)
{
	const struct flow_ref *ref = bpf_map_lookup_elem(&flow_index, key);

	if (ref && ref->slot == slot)
		bpf_map_delete_elem(&flow_index, key);
}

/* What a failure of flow_index_add() means. Where another CPU was faster to
 * open the flow, its flow is as good. */
static __always_inline enum reason flow_index_reason(int err)
{
	if (!err || err == -EEXIST)
		return REASON_NONE;
	return err == -E2BIG ? REASON_FLOW_TABLE_FULL : REASON_KERNEL_ERROR;
}

/* The flow in the slot that `flow_index` has for @key. The slot may have been
 * given to another just now: see flow_has(). */
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
 * the look at state and @key, so that it is of this flow: a CPU that reuses the
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

#endif
