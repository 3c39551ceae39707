/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The keys of packets: which flow a packet is of. */
#ifndef EBPNET_FLOW_KEY_H
#define EBPNET_FLOW_KEY_H

#include "parse.h"

/* Builds the key of a packet. Keys are written field by field, and into a
 * struct scratch if the stack is nearly full: a copy of a whole key takes its
 * room on the stack twice. */
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

/* Builds the key of packets in the other direction. */
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

/* Turns the key into that of packets in the other direction. The network stays.
 * */
static __always_inline void flow_key_reverse_in_place(struct flow_key *key)
{
	struct address src = key->src;
	__be16 sport = key->sport;

	key->src = key->dst;
	key->dst = src;
	key->sport = key->dport;
	key->dport = sport;
}

/* Whether packets with @key come from the side that is first in order. */
static __always_inline bool flow_key_is_first(const struct flow_key *key)
{
	for (int i = 3; i >= 0; i--) { /* the last words differ most often */
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

#endif
