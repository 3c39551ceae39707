/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The only code that counts, and the only code that drops. */
#ifndef EBPNET_VERDICT_H
#define EBPNET_VERDICT_H

#include <linux/pkt_cls.h>

#include "maps.h"

/* Not ours: to whatever comes after us on this hook. On TCX as on clsact the
 * value -1 hands a packet on. */
#define VERDICT_PASS TC_ACT_UNSPEC

/* A superframe counts as the packets it stands for; the kernel forgets how many
 * these are when its headers change in number. */
static __always_inline void
counter_add(struct counter *counter, struct __sk_buff *skb)
{
	__u32 segments = skb->gso_segs, size = skb->gso_size;

	if (!segments && size)
		segments = (skb->len + size - 1) / size;
	counter->packets += segments ? segments : 1;
	counter->bytes += skb->len;
}

static __always_inline void count_tx(void *map, __u32 id, struct __sk_buff *skb)
{
	struct traffic *traffic = bpf_map_lookup_elem(map, &id);

	if (traffic)
		counter_add(&traffic->tx, skb);
}

static __always_inline void count_rx(void *map, __u32 id, struct __sk_buff *skb)
{
	struct traffic *traffic = bpf_map_lookup_elem(map, &id);

	if (traffic)
		counter_add(&traffic->rx, skb);
}

static __always_inline void
verdict_count(struct __sk_buff *skb, enum reason reason)
{
	__u32 key = reason;
	struct counter *counter = bpf_map_lookup_elem(&drops, &key);

	if (counter)
		counter_add(counter, skb);
}

static __always_inline int
verdict_drop(struct __sk_buff *skb, enum reason reason)
{
	verdict_count(skb, reason);
	return TC_ACT_SHOT;
}

/* The packet has been answered or copied, and its original is done with. */
static __always_inline int verdict_consume(void)
{
	return TC_ACT_SHOT;
}

#endif
