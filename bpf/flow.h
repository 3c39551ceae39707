/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Flows: the record of a connection, and how long it lives. A timer of the
 * kernel sweeps the table, so flows end without any process.
 *
 * A flow stays half-open until both sides have confirmed it; sending alone does
 * not confirm it. A TCP flow is confirmed when the original side acknowledges
 * the sequence number of the reply. Another flow is confirmed by the reply. If
 * the original side is outside, its address may be forged; then its next packet
 * after the reply confirms the flow.
 *
 * An established flow never ends to make room for another. Half-open flows have
 * places of their own and displace each other. Each owner has a share of both:
 * see share.h.
 *
 * There is one timer for all flows. A timer for each flow needs memory that the
 * kernel sometimes cannot allocate at once: since 6.18 bpf_timer_init() fails
 * for about one flow in a hundred.
 */
#ifndef EBPNET_FLOW_H
#define EBPNET_FLOW_H

#include "count.h"
#include "half_open.h"

static __always_inline __u64 flow_timeout(const struct flow *flow)
{
	bool established = flow->state == FLOW_ESTABLISHED;

	switch (flow->original.protocol) {
	case IPPROTO_TCP:
		if (established && flow_phase_is_alive(flow->phase))
			return tcp_established_timeout;
		return tcp_transitory_timeout;
	case IPPROTO_UDP:
	case IPPROTO_SCTP: /* has heartbeats every 30 seconds */
		return established ? udp_established_timeout : udp_new_timeout;
	}
	return icmp_timeout;
}

/* Whether the packet confirms a half-open flow. @phase is the phase after the
 * packet. */
static __always_inline bool
flow_is_confirmed(const struct flow *flow, enum flow_phase phase,
		  const struct packet *pkt, enum flow_side side)
{
	if (pkt->protocol == IPPROTO_TCP)
		return flow_phase_is_handshaken(phase);
	if (flow->original.network == NETWORK_OUTSIDE)
		return side == FLOW_ORIGINAL && flow_phase_is_replied(phase);
	return side == FLOW_REPLY;
}

/* Marks the half-open flow in @slot as established, and gives back its place in
 * `half_open`. If its owner's share is used up the flow stays half-open, unless
 * it is @restored: it was established in the old tables. */
static __noinline void
flow_establish(struct flow *flow, __u32 slot, bool restored)
{
	__u32 at = flow->half_open_at, owner = flow->owner, *place;

	if (restored)
		share_count(owner, 1);
	else if (!share_reserve(owner))
		return;
	if (__sync_val_compare_and_swap(&flow->state, FLOW_HALF_OPEN,
					FLOW_ESTABLISHED) != FLOW_HALF_OPEN) {
		share_count(owner, -1);
		return;
	}
	share_count_half_open(owner, -1);
	place = bpf_map_lookup_elem(&half_open, &at);
	if (place)
		__sync_val_compare_and_swap(place, slot + 1, 0);
}

/* Changes the phase of the flow in @slot for one of its packets. Establishes
 * the flow if the packet confirms it. */
__verified_once int flow_advance(struct flow *flow, __u32 slot,
				 const struct packet *pkt, enum flow_side side)
{
	enum flow_phase phase;

	if (!flow || !pkt)
		return 0;
	phase = flow_phase_update(flow, pkt, side);
	if (flow->state == FLOW_HALF_OPEN &&
	    flow_is_confirmed(flow, phase, pkt, side))
		flow_establish(flow, slot, false);
	return 0;
}

/* Updates the flow in @slot for one of its packets. */
static __always_inline void
flow_update(ctx_t *ctx, struct flow *flow, __u32 slot, const struct packet *pkt,
	    enum flow_side side)
{
	__u64 now = bpf_ktime_get_coarse_ns();

	if (dry_run)
		return;
	count_add(&flow->sent[side == FLOW_REPLY], ctx);
	if (now - flow->seen > SECONDS)
		flow->seen = now;
	if (flow->state == FLOW_HALF_OPEN ||
	    !flow_phase_stays(flow->phase, pkt))
		flow_advance(flow, slot, pkt, side);
}

/* Whether the packet may open a flow: a reply may not. */
static __always_inline bool flow_may_open(const struct packet *pkt)
{
	if (pkt->protocol == IPPROTO_TCP)
		return !(pkt->tcp_flags & TCP_RST) &&
		       (pkt->tcp_flags & (TCP_SYN | TCP_ACK)) !=
			       (TCP_SYN | TCP_ACK);
	return pkt->echo != ECHO_REPLY;
}

/* Whether the flow is open: neither ended nor revoked. The atomic operation
 * puts this CPU's earlier writes to the index first: a CPU that ends the flow
 * later sees them. */
static __always_inline bool flow_is_open(struct flow *flow)
{
	__u32 state = __sync_fetch_and_or(&flow->state, 0);

	return state == FLOW_HALF_OPEN || state == FLOW_ESTABLISHED;
}

/*
 * Opens a flow of scratch's keys and owner in the claimed @slot. If the slot
 * holds a mapping, the index has the mapping's keys already. Adds the key of
 * @side to the index; the other key is there already, or is not needed. If this
 * fails, or another CPU opened the flow first, releases slot, keys and mapping.
 */
static __noinline enum reason flow_open(struct scratch *scratch, __u32 slot,
					__u32 mapping, enum flow_side side)
{
	const struct flow_key *original = &scratch->original,
			      *reply = &scratch->reply;
	struct flow *flow = flow_at(slot);
	int err;

	if (dry_run)
		return REASON_NONE;
	if (!flow)
		return REASON_KERNEL_ERROR;
	flow->original = *original;
	flow->reply = *reply;
	flow->opened = flow->seen = bpf_ktime_get_coarse_ns();
	__builtin_memset(flow->sent, 0, sizeof(flow->sent));
	flow->mapping = mapping;
	flow->half_open_at = MAX_HALF_OPEN; /* none yet */
	flow->phase = PHASE_NEW;
	flow->uplink = 0;
	flow->revision = 0;
	flow->owner = scratch->owner;
	flow->server = scratch->server;
	flow->place_own = scratch->place_own;
	flow->place_all = scratch->place_all;
	if (flow->place_own)
		ports_count(flow->place_own, flow->place_all, 1);
	share_count_half_open(flow->owner, 1);
	flow_list_add(slot);
	/* An exchange, so that other CPUs see these fields before the state. */
	__sync_lock_test_and_set(&flow->state, FLOW_HALF_OPEN);
	err = flow_index_add(side == FLOW_ORIGINAL ? original : reply, slot,
			     side);
	if (err) {
		flow_end(flow, slot, FLOW_HALF_OPEN);
		return flow_index_reason(err);
	}
	if (flow_is_open(flow))
		half_open_reserve(flow, slot);
	else /* another CPU ended it before its key was in the index */
		flow_unindex(flow, slot);
	return REASON_NONE;
}

/* Whether the flow is between two endpoints of one network. Then both sides
 * share one entry in the index, under the key of the side that is first in
 * order. */
static __always_inline bool
flow_is_inside(const struct flow_key *original, const struct flow_key *reply)
{
	return original->network == reply->network &&
	       original->network != NETWORK_OUTSIDE &&
	       original->dport == reply->sport &&
	       address_equal(&original->dst, &reply->src);
}

/* The side whose key is in the index, of a flow inside a network. */
static __always_inline enum flow_side
flow_first_side(const struct flow_key *original)
{
	return flow_key_is_first(original) ? FLOW_ORIGINAL : FLOW_REPLY;
}

static __always_inline enum flow_side flow_other_side(enum flow_side side)
{
	return side == FLOW_ORIGINAL ? FLOW_REPLY : FLOW_ORIGINAL;
}

/* Finds the packet's flow inside network @id, and the packet's side. */
static __always_inline struct flow *
flow_find_inside(struct scratch *scratch, const struct packet *pkt, __u32 id,
		 enum flow_side *side, __u32 *slot)
{
	struct flow_key *key = &scratch->key;
	struct flow *flow;

	flow_key_of(key, pkt, id);
	if (flow_key_is_first(key))
		return flow_find(key, side, slot);
	flow_key_reverse_in_place(key);
	flow = flow_find(key, side, slot);
	if (flow)
		*side = flow_other_side(*side);
	return flow;
}

/* Opens the flow of the packet inside the network @id. */
static __always_inline enum reason
flow_open_inside(struct scratch *scratch, const struct packet *pkt, __u32 id)
{
	enum reason reason;
	__u32 slot;

	reason = flow_slot_claim(scratch, &slot);
	if (reason)
		return reason;
	flow_key_of(&scratch->original, pkt, id);
	flow_key_reverse(&scratch->reply, &scratch->original, id);
	return flow_open(scratch, slot, NO_MAPPING,
			 flow_first_side(&scratch->original));
}

#endif
