/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Counters of packets and bytes. */
#ifndef EBPNET_COUNT_H
#define EBPNET_COUNT_H

#include "config.h"
#include "ctx.h"
#include "maps.h"

/* A superframe counts as the packets it stands for. */
static __always_inline void count_add(struct counter *counter, const ctx_t *ctx)
{
	counter->packets += ctx_segments(ctx);
	counter->bytes += ctx_length(ctx);
}

static __always_inline void count_tx(void *map, __u32 id, ctx_t *ctx)
{
	struct traffic *traffic = bpf_map_lookup_elem(map, &id);

	if (traffic && !dry_run)
		count_add(&traffic->tx, ctx);
}

static __always_inline void count_rx(void *map, __u32 id, ctx_t *ctx)
{
	struct traffic *traffic = bpf_map_lookup_elem(map, &id);

	if (traffic && !dry_run)
		count_add(&traffic->rx, ctx);
}

#endif
