/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Flows: what is remembered of a connection, and for how long. A timer sweeps
 * the table, so that flows end without any process outside the kernel.
 *
 * A flow is half-open until it is known that both sides want it, which cannot
 * be had by sending alone: for TCP with the opener's acknowledgment of the
 * answer's number; for others with the answer, or, as a source outside can be
 * made up, with what a stranger sends after it. An answered flow is never ended
 * for another; half-open ones have a bounded share, in which they make room. (A
 * timer for each flow would need memory for each, which the kernel now and then
 * has not got at hand: since 6.18 bpf_timer_init() fails for about one flow in
 * a hundred.)
 */
#ifndef EBPNET_FLOW_H
#define EBPNET_FLOW_H

#include "mapping.h"
#include "verdict.h"

#define CLOCK_MONOTONIC 1

static __always_inline __u64 flow_timeout(const struct flow *flow)
{
	const __u32 closed = FLOW_OPENER_FIN | FLOW_ANSWER_FIN;
	bool answered = flow->state == FLOW_ANSWERED;
	__u32 flags = flow->flags;

	switch (flow->opener.protocol) {
	case IPPROTO_TCP:
		if (answered && flags & FLOW_HANDSHAKEN &&
		    (flags & closed) != closed &&
		    !(flags & (FLOW_OPENER_RST | FLOW_ANSWER_RST)))
			return tcp_established_timeout;
		return tcp_transitory_timeout;
	case IPPROTO_UDP:
	case IPPROTO_SCTP: /* whose ends say a word every 30 seconds */
		return answered ? udp_answered_timeout : udp_unanswered_timeout;
	}
	return icmp_timeout;
}

/* How far an opener's acknowledgment may be beyond the last answer's number:
 * the largest window without scaling (RFC 9293), which one in 65,536 guesses
 * hits. */
#define MAX_ACKNOWLEDGED 65535

/* Whether a packet makes a half-open flow an answered one. */
static __always_inline bool
flow_is_answered(const struct flow *flow, const struct packet *pkt,
		 enum flow_side side)
{
	if (pkt->protocol == IPPROTO_TCP)
		return flow->flags & FLOW_HANDSHAKEN;
	if (flow->opener.network == NETWORK_OUTSIDE)
		return side == FLOW_OPENER && flow->flags & FLOW_REPLIED;
	return side == FLOW_ANSWER;
}

/* Makes the half-open flow in @slot an answered one, which needs no turn any
 * more: who takes that next need not look here. */
static __noinline void flow_settle(struct flow *flow, __u32 slot)
{
	__u32 at = flow->turn, *turn;

	if (__sync_val_compare_and_swap(&flow->state, FLOW_HALF_OPEN,
					FLOW_ANSWERED) != FLOW_HALF_OPEN)
		return;
	turn = bpf_map_lookup_elem(&half_open, &at);
	if (turn)
		__sync_val_compare_and_swap(turn, slot + 1, 0);
}

/* Notes that a packet of the flow in @slot went by. */
static __always_inline void
flow_touch(ctx_t *ctx, struct flow *flow, __u32 slot, const struct packet *pkt,
	   enum flow_side side)
{
	__u64 now = bpf_ktime_get_coarse_ns();
	__u32 set = 0, clear = 0;

	counter_add(&flow->sent[side == FLOW_ANSWER], ctx);
	if (now - flow->seen > SECONDS)
		flow->seen = now;
	if (side == FLOW_ANSWER && !(pkt->tcp_flags & TCP_RST))
		set |= FLOW_REPLIED;
	if (pkt->protocol == IPPROTO_TCP && pkt->fragment != FRAGMENT_LATER) {
		if (pkt->tcp_flags & TCP_FIN)
			set |= FLOW_OPENER_FIN << side;
		if (pkt->tcp_flags & TCP_RST)
			set |= FLOW_OPENER_RST << side;
		else /* an earlier reset was not this side's */
			clear |= FLOW_OPENER_RST << side;
		/* The ports are in use anew. */
		if ((pkt->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN &&
		    side == FLOW_OPENER)
			clear = ~set;
		else if (side == FLOW_OPENER && pkt->tcp_flags & TCP_ACK &&
			 flow->flags & FLOW_REPLIED &&
			 pkt->acknowledged - flow->sequence <= MAX_ACKNOWLEDGED)
			set |= FLOW_HANDSHAKEN;
		if (side == FLOW_ANSWER && !(flow->flags & FLOW_HANDSHAKEN))
			flow->sequence =
				pkt->sequence + !!(pkt->tcp_flags & TCP_SYN);
	}
	if (flow->flags & clear)
		__sync_fetch_and_and(&flow->flags, ~clear);
	if (set & ~flow->flags)
		__sync_fetch_and_or(&flow->flags, set);
	if (flow->state == FLOW_HALF_OPEN && flow_is_answered(flow, pkt, side))
		flow_settle(flow, slot);
}

/* Ends the flow in @slot if it is in @state: its packets are not known any
 * more. False if it is not, or somebody else has just ended it. */
static __always_inline bool
flow_end(struct flow *flow, __u32 slot, enum flow_state state)
{
	__u32 mapping;

	if (__sync_val_compare_and_swap(&flow->state, state, FLOW_ENDED) !=
	    state)
		return false;
	flow_index_remove(&flow->opener, slot);
	flow_index_remove(&flow->answer, slot);
	mapping = flow->mapping;
	if (mapping != slot)
		flow_bury(flow);
	if (mapping != NO_MAPPING)
		mapping_leave(mapping);
	return true;
}

/* Ends the flow in @slot for its opener, as its port has gone. What the other
 * side still sends is not let out as something new: its key stays taken. */
static __always_inline void
flow_revoke(struct flow *flow, __u32 slot, enum flow_state state)
{
	if (__sync_val_compare_and_swap(&flow->state, state, FLOW_REVOKED) ==
	    state)
		flow_index_remove(&flow->opener, slot);
}

/* What a tick of the sweep has still to do. */
struct flow_tick {
	__u32 hand; /* the first slot to look at */
	__u32 ends; /* how many flows it may end */
};

static int flow_sweep_slot(__u32 i, void *context)
{
	struct flow_tick *tick = context;
	__u32 slot = tick->hand + i;
	struct flow *flow;
	__u64 seen, timeout;
	__u32 state;

	if (slot >= flow_slots)
		slot -= flow_slots;
	flow = flow_at(slot);
	if (!flow)
		return 0;
	state = flow->state;
	if (state != FLOW_HALF_OPEN && state != FLOW_ANSWERED &&
	    state != FLOW_REVOKED)
		return 0;
	seen = flow->seen;
	timeout = flow_timeout(flow);
	/* The clock is read last, so that it is never before what another CPU
	 * has seen. */
	if (bpf_ktime_get_coarse_ns() - seen < timeout)
		return 0;
	flow_end(flow, slot, state);
	return !--tick->ends;
}

/* Slots looked at for a free one: first the one after that which this CPU has
 * claimed before, so that flows of a time lie side by side and share pages and
 * cache lines; then others at random. The chance to miss one in a table that is
 * nine tenths full is one in a million. */
#define SLOT_ATTEMPTS 128

struct flow_claim {
	__u32 slot;
	__u32 found; /* bool */
};

static int flow_try_slot(__u32 i, void *context)
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
	     bpf_ktime_get_coarse_ns() - flow->seen < FLOW_GRACE))
		return 0;
	if (__sync_val_compare_and_swap(&flow->state, state, FLOW_CLAIMED) !=
	    state)
		return 0;
	claim->slot = slot;
	claim->found = 1;
	return 1;
}

/* Claims a free slot; false if there is none. */
static __always_inline bool flow_claim_slot(__u32 *slot)
{
	struct scratch *scratch = scratch_get();
	struct flow_claim claim = {};

	if (!scratch)
		return false;
	claim.slot = scratch->claimed;
	bpf_loop(SLOT_ATTEMPTS, flow_try_slot, &claim, 0);
	*slot = scratch->claimed = claim.slot;
	return claim.found;
}

static __always_inline void flow_release_slot(__u32 slot)
{
	struct flow *flow = flow_at(slot);

	if (flow)
		flow->state = FLOW_FREE;
}

/* Turns in a row that are looked at for one that need not be taken from a flow
 * which still waits for its first answer. */
#define TURN_ATTEMPTS 16

/* Whether the flow in the slot that @turn names, plus one, waits there. */
static __always_inline bool flow_waits(__u32 turn, __u32 at)
{
	const struct flow *flow = turn ? flow_at(turn - 1) : NULL;

	return flow && flow->turn == at && flow->state == FLOW_HALF_OPEN &&
	       !(flow->flags & FLOW_REPLIED);
}

/* Lets the flow in @slot be half-open in place of one that has no need of its
 * turn any more, or else of an old one of its part. The part follows from the
 * source inside, or from whom it is for there. */
static __noinline void flow_take_turn(struct flow *flow, __u32 slot)
{
	bool out = flow->opener.network != NETWORK_OUTSIDE;
	const struct address *inside =
		out ? &flow->opener.src : &flow->answer.src;
	__u32 part =
		bpf_ntohl(inside->word[3]) % (HALF_OPEN_PARTS / 2) * 2 + out;
	__u32 *turns, *turn = NULL, at = 0, before;
	struct flow *oldest;

	turns = bpf_map_lookup_elem(&half_open_turns, &part);
	if (!turns)
		return;
	for (int i = 0; i < TURN_ATTEMPTS; i++) {
		at = part * HALF_OPEN_TURNS +
		     __sync_fetch_and_add(turns, 1) % HALF_OPEN_TURNS;
		turn = bpf_map_lookup_elem(&half_open, &at);
		if (!turn)
			return;
		if (!flow_waits(*turn, at))
			break;
	}
	if (!turn)
		return;
	flow->turn = at;
	before = __sync_lock_test_and_set(turn, slot + 1);
	if (!before || before == slot + 1)
		return;
	before--;
	oldest = flow_at(before);
	if (oldest && oldest->turn == at)
		flow_end(oldest, before, FLOW_HALF_OPEN);
}

/* Whether the packet may be the first of a flow: an answer is not. */
static __always_inline bool flow_may_open(const struct packet *pkt)
{
	if (pkt->protocol == IPPROTO_TCP)
		return !(pkt->tcp_flags & TCP_RST) &&
		       (pkt->tcp_flags & (TCP_SYN | TCP_ACK)) !=
			       (TCP_SYN | TCP_ACK);
	return pkt->echo != ECHO_REPLY;
}

/* Opens a flow in the claimed @slot, and puts the key of @side into the index;
 * the other one is there already, or is not needed. If that fails, or another
 * CPU was faster, slot, keys and mapping are given up. */
static __noinline enum reason
flow_open(__u32 slot, const struct flow_key *opener,
	  const struct flow_key *answer, __u32 mapping, enum flow_side side)
{
	struct scratch *scratch = scratch_get();
	struct flow *flow = flow_at(slot);
	int err;

	if (!flow || !scratch)
		return REASON_KERNEL_ERROR;
	flow->opener = *opener;
	flow->answer = *answer;
	flow->opened = flow->seen = bpf_ktime_get_coarse_ns();
	__builtin_memset(flow->sent, 0, sizeof(flow->sent));
	flow->mapping = mapping;
	flow->turn = MAX_HALF_OPEN; /* none yet */
	flow->flags = 0;
	flow->uplink = 0;
	flow->revision = 0;
	flow->client = scratch->client;
	flow->server = scratch->server;
	if (mapping == slot) {
		mapping_inside(&scratch->mapping, opener, answer);
		flow_index_add(&scratch->mapping, slot, FLOW_MAPPING);
		flow->users = 1;
	}
	/* An exchange, so that all of this is seen before. */
	__sync_lock_test_and_set(&flow->state, FLOW_HALF_OPEN);
	err = flow_index_add(side == FLOW_OPENER ? opener : answer, slot, side);
	if (err)
		flow_end(flow, slot, FLOW_HALF_OPEN);
	else
		flow_take_turn(flow, slot);
	return flow_index_reason(err);
}

/* Whether the flow is between endpoints of a network. Both sides' packets have
 * one entry in the index then: with the key of the side that is first. */
static __always_inline bool
flow_is_inside(const struct flow_key *opener, const struct flow_key *answer)
{
	return opener->network == answer->network &&
	       opener->network != NETWORK_OUTSIDE &&
	       opener->dport == answer->sport &&
	       address_equal(&opener->dst, &answer->src);
}

/* The side of a flow inside a network whose key is in the index. */
static __always_inline enum flow_side
flow_first_side(const struct flow_key *opener)
{
	return flow_key_is_first(opener) ? FLOW_OPENER : FLOW_ANSWER;
}

static __always_inline enum flow_side flow_other_side(enum flow_side side)
{
	return side == FLOW_OPENER ? FLOW_ANSWER : FLOW_OPENER;
}

/* The flow inside the network @id that the packet is of, and its side. */
static __always_inline struct flow *
flow_find_inside(struct scratch *scratch, const struct packet *pkt, __u32 id,
		 enum flow_side *side, __u32 *slot)
{
	struct flow_key *key = &scratch->key;
	struct flow *flow;

	flow_key_of(key, pkt, id);
	if (flow_key_is_first(key))
		return flow_find(key, side, slot);
	flow_key_turn(key);
	flow = flow_find(key, side, slot);
	if (flow)
		*side = flow_other_side(*side);
	return flow;
}

/* Opens the flow of the packet inside the network @id. */
static __always_inline enum reason
flow_open_inside(struct scratch *scratch, const struct packet *pkt, __u32 id)
{
	__u32 slot;

	if (!flow_claim_slot(&slot))
		return REASON_FLOW_TABLE_FULL;
	flow_key_of(&scratch->opener, pkt, id);
	flow_key_reverse(&scratch->answer, &scratch->opener, id);
	return flow_open(slot, &scratch->opener, &scratch->answer, NO_MAPPING,
			 flow_first_side(&scratch->opener));
}

#endif
