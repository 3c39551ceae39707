/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The phases of a flow, and the packets that move a flow from one phase to
 * another. The words are those of RFC 5382 and of conntrack: a connection is
 * new, established or closing; a packet has the original or the reply
 * direction.
 *
 * NEW          no reply yet; also after a SYN of the original side, which
 *              starts a new connection on the same ports
 * REFUSED      the reply side sent RST before the end of the handshake
 * REPLIED      the reply side sent another packet
 * ESTABLISHED  the original side acknowledged the reply: end of the handshake
 * CLOSING_x    side x sent FIN, and the other side may still send
 * CLOSED       both sides sent FIN
 * RESET_x      side x sent RST, or both sides did
 *
 * A longer name begins with the phase before the FIN or the RST. If a side that
 * sent RST sends another packet, its RST was forged: the flow returns to the
 * phase before it. Only TCP has other phases than NEW and REPLIED.
 *
 * The order of the phases has a meaning: see flow_phase_is_replied(),
 * flow_phase_is_handshaken() and flow_phase_is_alive().
 *
 *                                    |      original side      | reply side
 *                                    |SYN any ACK FIN FIN+ RST | any FIN RST
 *  1 NEW                             |  .   .   .   2   2   . |   5   7   3
 *  2 NEW_CLOSING_ORIGINAL            |  1   .   .   .   .   . |   6   8   .
 *  3 REFUSED                         |  1   .   .   2   2   . |   5   7   .
 *  4 REFUSED_CLOSING_REPLY           |  1   .   .   8   8   . |   7   7   .
 *  5 REPLIED                         |  1   .   9   6  10   . |   .   7   3
 *  6 REPLIED_CLOSING_ORIGINAL        |  1   .  10   .  10   . |   .   8   2
 *  7 REPLIED_CLOSING_REPLY           |  1   .  11   8  21   . |   .   .   4
 *  8 REPLIED_CLOSED                  |  1   .  21   .  21   . |   .   .   .
 *  9 ESTABLISHED                     |  1   .   .  10  10  12 |   .  11  13
 * 10 CLOSING_ORIGINAL                |  1   .   .   .   .  14 |   .  21  15
 * 11 CLOSING_REPLY                   |  1   .   .  21  21  16 |   .   .  17
 * 12 RESET_ORIGINAL                  |  1   9   9  10  10   . |   .  16  18
 * 13 RESET_REPLY                     |  1   .   .  15  15  18 |   9  11   .
 * 14 CLOSING_ORIGINAL_RESET_ORIGINAL |  1  10  10  10  10   . |   .  21  19
 * 15 CLOSING_ORIGINAL_RESET_REPLY    |  1   .   .   .   .  19 |  10  21   .
 * 16 CLOSING_REPLY_RESET_ORIGINAL    |  1  11  11  21  21   . |   .   .  20
 * 17 CLOSING_REPLY_RESET_REPLY       |  1   .   .  21  21  20 |  11  11   .
 * 18 RESET_BOTH                      |  1  13  13  15  15   . |  12  16   .
 * 19 CLOSING_ORIGINAL_RESET_BOTH     |  1  15  15  15  15   . |  14  21   .
 * 20 CLOSING_REPLY_RESET_BOTH        |  1  17  17  21  21   . |  16  16   .
 * 21 CLOSED                          |  1   .   .   .   .   . |   .   .   .
 *
 * A number is that of the next phase. A dot: the phase stays. ACK: the packet
 * acknowledges the reply. FIN+: FIN and ACK. any: any other packet.
 */
#ifndef EBPNET_FLOW_PHASE_H
#define EBPNET_FLOW_PHASE_H

#include "parse.h"

/* How far the acknowledgment of the original side may be beyond the sequence
 * number of the last reply: the largest window without scaling (RFC 9293). One
 * guess in 65,536 hits it. */
#define MAX_ACKNOWLEDGED 65535

/* The kinds of packets: the columns of the table. */
enum flow_event {
	ORIGINAL_SYN, /* without ACK */
	ORIGINAL_PACKET, /* any other */
	ORIGINAL_ACK, /* it acknowledges the reply */
	ORIGINAL_FIN,
	ORIGINAL_FIN_ACK, /* it acknowledges the reply */
	ORIGINAL_RST,
	REPLY_PACKET, /* any other */
	REPLY_FIN,
	REPLY_RST,
	FLOW_EVENTS,
};

/* The next phase by phase and event. 0: the phase stays. */
static const __u8 flow_transitions[][FLOW_EVENTS] = {
	[PHASE_NEW] = {
		[ORIGINAL_FIN] = PHASE_NEW_CLOSING_ORIGINAL,
		[ORIGINAL_FIN_ACK] = PHASE_NEW_CLOSING_ORIGINAL,
		[REPLY_PACKET] = PHASE_REPLIED,
		[REPLY_FIN] = PHASE_REPLIED_CLOSING_REPLY,
		[REPLY_RST] = PHASE_REFUSED,
	},
	[PHASE_NEW_CLOSING_ORIGINAL] = {
		[ORIGINAL_SYN] = PHASE_NEW,
		[REPLY_PACKET] = PHASE_REPLIED_CLOSING_ORIGINAL,
		[REPLY_FIN] = PHASE_REPLIED_CLOSED,
	},
	[PHASE_REFUSED] = {
		[ORIGINAL_SYN] = PHASE_NEW,
		[ORIGINAL_FIN] = PHASE_NEW_CLOSING_ORIGINAL,
		[ORIGINAL_FIN_ACK] = PHASE_NEW_CLOSING_ORIGINAL,
		[REPLY_PACKET] = PHASE_REPLIED,
		[REPLY_FIN] = PHASE_REPLIED_CLOSING_REPLY,
	},
	[PHASE_REFUSED_CLOSING_REPLY] = {
		[ORIGINAL_SYN] = PHASE_NEW,
		[ORIGINAL_FIN] = PHASE_REPLIED_CLOSED,
		[ORIGINAL_FIN_ACK] = PHASE_REPLIED_CLOSED,
		[REPLY_PACKET] = PHASE_REPLIED_CLOSING_REPLY,
		[REPLY_FIN] = PHASE_REPLIED_CLOSING_REPLY,
	},
	[PHASE_REPLIED] = {
		[ORIGINAL_SYN] = PHASE_NEW,
		[ORIGINAL_ACK] = PHASE_ESTABLISHED,
		[ORIGINAL_FIN] = PHASE_REPLIED_CLOSING_ORIGINAL,
		[ORIGINAL_FIN_ACK] = PHASE_CLOSING_ORIGINAL,
		[REPLY_FIN] = PHASE_REPLIED_CLOSING_REPLY,
		[REPLY_RST] = PHASE_REFUSED,
	},
	[PHASE_REPLIED_CLOSING_ORIGINAL] = {
		[ORIGINAL_SYN] = PHASE_NEW,
		[ORIGINAL_ACK] = PHASE_CLOSING_ORIGINAL,
		[ORIGINAL_FIN_ACK] = PHASE_CLOSING_ORIGINAL,
		[REPLY_FIN] = PHASE_REPLIED_CLOSED,
		[REPLY_RST] = PHASE_NEW_CLOSING_ORIGINAL,
	},
	[PHASE_REPLIED_CLOSING_REPLY] = {
		[ORIGINAL_SYN] = PHASE_NEW,
		[ORIGINAL_ACK] = PHASE_CLOSING_REPLY,
		[ORIGINAL_FIN] = PHASE_REPLIED_CLOSED,
		[ORIGINAL_FIN_ACK] = PHASE_CLOSED,
		[REPLY_RST] = PHASE_REFUSED_CLOSING_REPLY,
	},
	[PHASE_REPLIED_CLOSED] = {
		[ORIGINAL_SYN] = PHASE_NEW,
		[ORIGINAL_ACK] = PHASE_CLOSED,
		[ORIGINAL_FIN_ACK] = PHASE_CLOSED,
	},
	[PHASE_ESTABLISHED] = {
		[ORIGINAL_SYN] = PHASE_NEW,
		[ORIGINAL_FIN] = PHASE_CLOSING_ORIGINAL,
		[ORIGINAL_FIN_ACK] = PHASE_CLOSING_ORIGINAL,
		[ORIGINAL_RST] = PHASE_RESET_ORIGINAL,
		[REPLY_FIN] = PHASE_CLOSING_REPLY,
		[REPLY_RST] = PHASE_RESET_REPLY,
	},
	[PHASE_CLOSING_ORIGINAL] = {
		[ORIGINAL_SYN] = PHASE_NEW,
		[ORIGINAL_RST] = PHASE_CLOSING_ORIGINAL_RESET_ORIGINAL,
		[REPLY_FIN] = PHASE_CLOSED,
		[REPLY_RST] = PHASE_CLOSING_ORIGINAL_RESET_REPLY,
	},
	[PHASE_CLOSING_REPLY] = {
		[ORIGINAL_SYN] = PHASE_NEW,
		[ORIGINAL_FIN] = PHASE_CLOSED,
		[ORIGINAL_FIN_ACK] = PHASE_CLOSED,
		[ORIGINAL_RST] = PHASE_CLOSING_REPLY_RESET_ORIGINAL,
		[REPLY_RST] = PHASE_CLOSING_REPLY_RESET_REPLY,
	},
	[PHASE_RESET_ORIGINAL] = {
		[ORIGINAL_SYN] = PHASE_NEW,
		[ORIGINAL_PACKET] = PHASE_ESTABLISHED,
		[ORIGINAL_ACK] = PHASE_ESTABLISHED,
		[ORIGINAL_FIN] = PHASE_CLOSING_ORIGINAL,
		[ORIGINAL_FIN_ACK] = PHASE_CLOSING_ORIGINAL,
		[REPLY_FIN] = PHASE_CLOSING_REPLY_RESET_ORIGINAL,
		[REPLY_RST] = PHASE_RESET_BOTH,
	},
	[PHASE_RESET_REPLY] = {
		[ORIGINAL_SYN] = PHASE_NEW,
		[ORIGINAL_FIN] = PHASE_CLOSING_ORIGINAL_RESET_REPLY,
		[ORIGINAL_FIN_ACK] = PHASE_CLOSING_ORIGINAL_RESET_REPLY,
		[ORIGINAL_RST] = PHASE_RESET_BOTH,
		[REPLY_PACKET] = PHASE_ESTABLISHED,
		[REPLY_FIN] = PHASE_CLOSING_REPLY,
	},
	[PHASE_CLOSING_ORIGINAL_RESET_ORIGINAL] = {
		[ORIGINAL_SYN] = PHASE_NEW,
		[ORIGINAL_PACKET] = PHASE_CLOSING_ORIGINAL,
		[ORIGINAL_ACK] = PHASE_CLOSING_ORIGINAL,
		[ORIGINAL_FIN] = PHASE_CLOSING_ORIGINAL,
		[ORIGINAL_FIN_ACK] = PHASE_CLOSING_ORIGINAL,
		[REPLY_FIN] = PHASE_CLOSED,
		[REPLY_RST] = PHASE_CLOSING_ORIGINAL_RESET_BOTH,
	},
	[PHASE_CLOSING_ORIGINAL_RESET_REPLY] = {
		[ORIGINAL_SYN] = PHASE_NEW,
		[ORIGINAL_RST] = PHASE_CLOSING_ORIGINAL_RESET_BOTH,
		[REPLY_PACKET] = PHASE_CLOSING_ORIGINAL,
		[REPLY_FIN] = PHASE_CLOSED,
	},
	[PHASE_CLOSING_REPLY_RESET_ORIGINAL] = {
		[ORIGINAL_SYN] = PHASE_NEW,
		[ORIGINAL_PACKET] = PHASE_CLOSING_REPLY,
		[ORIGINAL_ACK] = PHASE_CLOSING_REPLY,
		[ORIGINAL_FIN] = PHASE_CLOSED,
		[ORIGINAL_FIN_ACK] = PHASE_CLOSED,
		[REPLY_RST] = PHASE_CLOSING_REPLY_RESET_BOTH,
	},
	[PHASE_CLOSING_REPLY_RESET_REPLY] = {
		[ORIGINAL_SYN] = PHASE_NEW,
		[ORIGINAL_FIN] = PHASE_CLOSED,
		[ORIGINAL_FIN_ACK] = PHASE_CLOSED,
		[ORIGINAL_RST] = PHASE_CLOSING_REPLY_RESET_BOTH,
		[REPLY_PACKET] = PHASE_CLOSING_REPLY,
		[REPLY_FIN] = PHASE_CLOSING_REPLY,
	},
	[PHASE_RESET_BOTH] = {
		[ORIGINAL_SYN] = PHASE_NEW,
		[ORIGINAL_PACKET] = PHASE_RESET_REPLY,
		[ORIGINAL_ACK] = PHASE_RESET_REPLY,
		[ORIGINAL_FIN] = PHASE_CLOSING_ORIGINAL_RESET_REPLY,
		[ORIGINAL_FIN_ACK] = PHASE_CLOSING_ORIGINAL_RESET_REPLY,
		[REPLY_PACKET] = PHASE_RESET_ORIGINAL,
		[REPLY_FIN] = PHASE_CLOSING_REPLY_RESET_ORIGINAL,
	},
	[PHASE_CLOSING_ORIGINAL_RESET_BOTH] = {
		[ORIGINAL_SYN] = PHASE_NEW,
		[ORIGINAL_PACKET] = PHASE_CLOSING_ORIGINAL_RESET_REPLY,
		[ORIGINAL_ACK] = PHASE_CLOSING_ORIGINAL_RESET_REPLY,
		[ORIGINAL_FIN] = PHASE_CLOSING_ORIGINAL_RESET_REPLY,
		[ORIGINAL_FIN_ACK] = PHASE_CLOSING_ORIGINAL_RESET_REPLY,
		[REPLY_PACKET] = PHASE_CLOSING_ORIGINAL_RESET_ORIGINAL,
		[REPLY_FIN] = PHASE_CLOSED,
	},
	[PHASE_CLOSING_REPLY_RESET_BOTH] = {
		[ORIGINAL_SYN] = PHASE_NEW,
		[ORIGINAL_PACKET] = PHASE_CLOSING_REPLY_RESET_REPLY,
		[ORIGINAL_ACK] = PHASE_CLOSING_REPLY_RESET_REPLY,
		[ORIGINAL_FIN] = PHASE_CLOSED,
		[ORIGINAL_FIN_ACK] = PHASE_CLOSED,
		[REPLY_PACKET] = PHASE_CLOSING_REPLY_RESET_ORIGINAL,
		[REPLY_FIN] = PHASE_CLOSING_REPLY_RESET_ORIGINAL,
	},
	[PHASE_CLOSED] = {
		[ORIGINAL_SYN] = PHASE_NEW,
	},
};

/* Whether the reply side has sent a packet. A RST of that side takes this back
 * until the handshake is over. */
static __always_inline bool flow_phase_is_replied(enum flow_phase phase)
{
	return phase >= PHASE_REPLIED;
}

/* Whether TCP's handshake is over. */
static __always_inline bool flow_phase_is_handshaken(enum flow_phase phase)
{
	return phase >= PHASE_ESTABLISHED;
}

/* Whether the handshake is over and at least one side may still send. */
static __always_inline bool flow_phase_is_alive(enum flow_phase phase)
{
	return phase >= PHASE_ESTABLISHED && phase <= PHASE_CLOSING_REPLY;
}

/* What the packet is to a flow in @phase. Before a reply, no packet
 * acknowledges one: flow->sequence is not of this connection then. */
static __always_inline enum flow_event
flow_event_of(const struct flow *flow, enum flow_phase phase,
	      const struct packet *pkt, enum flow_side side)
{
	bool fin = pkt->tcp_flags & TCP_FIN, ack;

	if (side == FLOW_REPLY) {
		if (pkt->tcp_flags & TCP_RST)
			return REPLY_RST;
		return fin ? REPLY_FIN : REPLY_PACKET;
	}
	if (pkt->tcp_flags & TCP_RST)
		return ORIGINAL_RST;
	if ((pkt->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN)
		return ORIGINAL_SYN;
	ack = flow_phase_is_replied(phase) && pkt->tcp_flags & TCP_ACK &&
	      pkt->acknowledged - flow->sequence <= MAX_ACKNOWLEDGED;
	if (fin)
		return ack ? ORIGINAL_FIN_ACK : ORIGINAL_FIN;
	return ack ? ORIGINAL_ACK : ORIGINAL_PACKET;
}

static __always_inline enum flow_phase
flow_phase_next(enum flow_phase phase, enum flow_event event)
{
	__u32 row = phase, next;

	barrier_var(row);
	if (row >= sizeof(flow_transitions) / sizeof(flow_transitions[0]))
		return phase;
	next = flow_transitions[row][event];
	return next ? next : phase;
}

/* How often a change of phase is tried. A try fails if another CPU has changed
 * the phase. */
#define PHASE_ATTEMPTS 3

/* Changes the phase of the flow for one of its packets. Returns the phase after
 * that. */
static __always_inline enum flow_phase
flow_phase_update(struct flow *flow, const struct packet *pkt,
		  enum flow_side side)
{
	enum flow_phase phase = flow->phase, next, found;
	enum flow_event event;

	barrier_var(phase); /* read once: other CPUs change it */
	if (pkt->fragment == FRAGMENT_LATER)
		return phase; /* its first fragment has changed the phase */
	/* The original side can choose the sequence number of a RST: it is that
	 * of the acknowledgment to which the RST replies. */
	if (pkt->protocol == IPPROTO_TCP && side == FLOW_REPLY &&
	    !(pkt->tcp_flags & TCP_RST) && !flow_phase_is_handshaken(phase))
		flow->sequence = pkt->sequence + !!(pkt->tcp_flags & TCP_SYN);
	event = flow_event_of(flow, phase, pkt, side);
	for (int i = 0; i < PHASE_ATTEMPTS; i++) {
		next = flow_phase_next(phase, event);
		if (next == phase)
			break;
		found = __sync_val_compare_and_swap(&flow->phase, phase, next);
		if (found == phase)
			return next;
		phase = found;
	}
	return phase;
}

/* Whether the packet surely leaves a flow in @phase. This quick check holds for
 * most packets. */
static __always_inline bool
flow_phase_stays(enum flow_phase phase, const struct packet *pkt)
{
	if (pkt->protocol != IPPROTO_TCP)
		return phase == PHASE_REPLIED;
	return phase == PHASE_ESTABLISHED &&
	       !(pkt->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST));
}

#endif
