/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Flows: what is remembered of a connection, and for how long. A timer sweeps
 * the table, so that flows end without any process outside the kernel; a live
 * one is never evicted for another. (A timer for each flow would need memory
 * for each, which the kernel now and then has not got at hand: since 6.18
 * bpf_timer_init() fails for about one flow in a hundred.)
 */
#ifndef EBPNET_FLOW_H
#define EBPNET_FLOW_H

#include "config.h"
#include "maps.h"
#include "parse.h"

#define CLOCK_MONOTONIC 1

#define ENOENT 2
#define E2BIG  7
#define EBUSY  16
#define EEXIST 17

static __always_inline struct flow_key
flow_key_of(const struct packet *pkt, __u32 network)
{
	return (struct flow_key){
		.src = pkt->src,
		.dst = pkt->dst,
		.sport = pkt->sport,
		.dport = pkt->dport,
		.network = network,
		.protocol = pkt->protocol,
	};
}

/* The key of packets that go the other way. */
static __always_inline struct flow_key
flow_key_reverse(const struct flow_key *key, __u32 network)
{
	return (struct flow_key){
		.src = key->dst,
		.dst = key->src,
		.sport = key->dport,
		.dport = key->sport,
		.network = network,
		.protocol = key->protocol,
	};
}

static __always_inline __u64 flow_timeout(__u8 protocol, __u32 flags)
{
	switch (protocol) {
	case IPPROTO_TCP:
		if ((flags & FLOW_ANSWERED) && !(flags & (FLOW_FIN | FLOW_RST)))
			return tcp_established_timeout;
		return tcp_transitory_timeout;
	case IPPROTO_UDP:
		return flags & FLOW_ANSWERED ? udp_answered_timeout :
					       udp_unanswered_timeout;
	}
	return icmp_timeout;
}

/* Forgets that packets with @key are of the flow in @slot. They may be of a
 * younger one, if the agent was killed while it ended that in @slot. */
static __always_inline void
flow_index_remove(const struct flow_key *key, __u32 slot)
{
	const struct flow_ref *ref = bpf_map_lookup_elem(&flow_index, key);

	if (ref && ref->slot == slot)
		bpf_map_delete_elem(&flow_index, key);
}

/* Ends the flow in @slot: its packets are not known any more. */
static __always_inline void flow_end(struct flow *flow, __u32 slot)
{
	flow_index_remove(&flow->opener, slot);
	flow_index_remove(&flow->answer, slot);
	flow->state = FLOW_DEAD;
}

static int flow_sweep_slot(__u32 i, void *context)
{
	__u32 slot = (*(__u32 *)context + i) % MAX_FLOWS;
	struct flow *flow = bpf_map_lookup_elem(&flows, &slot);
	__u64 seen, timeout;

	if (!flow || flow->state == FLOW_FREE || flow->state == FLOW_CLAIMED)
		return 0;
	if (flow->state == FLOW_DEAD) {
		flow->state = FLOW_FREE;
		return 0;
	}
	seen = flow->seen;
	timeout = flow_timeout(flow->opener.protocol, flow->flags);
	/* The clock is read last, so that it is never before what another CPU
	 * has seen. */
	if (bpf_ktime_get_coarse_ns() - seen >= timeout)
		flow_end(flow, slot);
	return 0;
}

/* The sweep goes round the table in SWEEP_PERIOD * MAX_FLOWS / SWEEP_SLOTS,
 * which is 6.4 seconds, in steps too short to hold up packets. */
#define SWEEP_PERIOD (SECONDS / 10)
#define SWEEP_SLOTS  4096

static int flow_sweep(void *map, __u32 *key, struct sweeper *sweeper)
{
	__u32 hand = sweeper->hand;

	bpf_loop(SWEEP_SLOTS, flow_sweep_slot, &hand, 0);
	sweeper->hand = (hand + SWEEP_SLOTS) % MAX_FLOWS;
	bpf_timer_start(&sweeper->timer, SWEEP_PERIOD, 0);
	return 0;
}

/* Starts the sweep, or goes on with it by this version of the program. */
static __always_inline long flow_start_sweep(void)
{
	__u32 key = 0;
	struct sweeper *sweeper = bpf_map_lookup_elem(&sweepers, &key);
	long err;

	if (!sweeper)
		return -ENOENT;
	err = bpf_timer_init(&sweeper->timer, &sweepers, CLOCK_MONOTONIC);
	if (err && err != -EBUSY)
		return err;
	err = bpf_timer_set_callback(&sweeper->timer, flow_sweep);
	if (err)
		return err;
	return bpf_timer_start(&sweeper->timer, SWEEP_PERIOD, 0);
}

/* The flow of packets with @key, and the side they are from; NULL if there is
 * none. */
static __always_inline struct flow *
flow_find(const struct flow_key *key, enum flow_side *side)
{
	const struct flow_ref *ref = bpf_map_lookup_elem(&flow_index, key);
	struct flow *flow;
	__u32 slot;

	if (!ref)
		return NULL;
	*side = ref->side;
	slot = ref->slot;
	flow = bpf_map_lookup_elem(&flows, &slot);
	/* One that is only claimed still says what its slot held before. */
	return flow && flow->state == FLOW_LIVE ? flow : NULL;
}

/* Notes that a packet of the flow went by. Writes only what has changed, so
 * that the two ends of a busy flow do not fight over its cache line. */
static __always_inline void
flow_touch(struct flow *flow, const struct packet *pkt, enum flow_side side)
{
	enum flow_flag flags = side == FLOW_ANSWER ? FLOW_ANSWERED : 0;
	__u64 now = bpf_ktime_get_coarse_ns();

	if (pkt->tcp_flags & TCP_FIN)
		flags |= FLOW_FIN;
	if (pkt->tcp_flags & TCP_RST)
		flags |= FLOW_RST;
	/* The ports are in use anew. */
	if (pkt->tcp_flags & TCP_SYN && flow->flags & (FLOW_FIN | FLOW_RST))
		flow->flags = 0;
	if (flags & ~flow->flags)
		__sync_fetch_and_or(&flow->flags, flags);
	if (now - flow->seen > SECONDS)
		flow->seen = now;
}

/* Slots looked at, at random, for a free one. The chance to miss one in a
 * table that is nine tenths full is one in a million. */
#define SLOT_ATTEMPTS 128

struct flow_claim {
	__u32 slot;
	__u32 found; /* bool */
};

static int flow_try_slot(__u32 i, void *context)
{
	struct flow_claim *claim = context;
	__u32 slot = bpf_get_prandom_u32() % MAX_FLOWS;
	struct flow *flow = bpf_map_lookup_elem(&flows, &slot);

	if (!flow || flow->state != FLOW_FREE ||
	    __sync_val_compare_and_swap(&flow->state, FLOW_FREE,
					FLOW_CLAIMED) != FLOW_FREE)
		return 0;
	claim->slot = slot;
	claim->found = 1;
	return 1;
}

/* Claims a free slot; false if there is none. */
static __always_inline bool flow_claim_slot(__u32 *slot)
{
	struct flow_claim claim = {};

	bpf_loop(SLOT_ATTEMPTS, flow_try_slot, &claim, 0);
	*slot = claim.slot;
	return claim.found;
}

static __always_inline void flow_release_slot(__u32 slot)
{
	struct flow *flow = bpf_map_lookup_elem(&flows, &slot);

	if (flow)
		flow->state = FLOW_FREE;
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

/* What a failure of flow_index_add() means. Where another CPU was faster to
 * open the flow, its flow is as good. */
static __always_inline enum reason flow_index_reason(int err)
{
	if (!err || err == -EEXIST)
		return REASON_NONE;
	return err == -E2BIG ? REASON_FLOW_TABLE_FULL : REASON_KERNEL_ERROR;
}

/* Opens a flow in the claimed @slot, whose @answer is in the index already;
 * takes both back if that fails. */
static __always_inline enum reason
flow_open(__u32 slot, const struct flow_key *opener,
	  const struct flow_key *answer)
{
	struct flow *flow = bpf_map_lookup_elem(&flows, &slot);
	int err;

	if (!flow)
		return REASON_KERNEL_ERROR;
	flow->opener = *opener;
	flow->answer = *answer;
	flow->opened = flow->seen = bpf_ktime_get_coarse_ns();
	flow->flags = 0;
	err = flow_index_add(opener, slot, FLOW_OPENER);
	if (!err) {
		flow->state = FLOW_LIVE;
		return REASON_NONE;
	}
	bpf_map_delete_elem(&flow_index, answer);
	flow->state = FLOW_FREE;
	return flow_index_reason(err);
}

/* Opens a flow inside a network, or notes that a packet of it went by. */
static __always_inline enum reason
flow_track(const struct flow_key *key, const struct packet *pkt)
{
	struct flow_key answer;
	enum flow_side side;
	struct flow *flow;
	__u32 slot;
	int err;

	flow = flow_find(key, &side);
	if (flow) {
		flow_touch(flow, pkt, side);
		return REASON_NONE;
	}
	if (!flow_claim_slot(&slot))
		return REASON_FLOW_TABLE_FULL;
	answer = flow_key_reverse(key, key->network);
	err = flow_index_add(&answer, slot, FLOW_ANSWER);
	if (err) {
		flow_release_slot(slot);
		return flow_index_reason(err);
	}
	return flow_open(slot, key, &answer);
}

#endif
