/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Verdicts: the only code that drops, and counts drops. */
#ifndef EBPNET_VERDICT_H
#define EBPNET_VERDICT_H

#include "count.h"
#include "ctx.h"
#include "maps.h"

static __always_inline void verdict_count(ctx_t *ctx, enum reason reason)
{
	__u32 key = reason;
	struct counter *counter = bpf_map_lookup_elem(&drops, &key);

	if (counter)
		count_add(counter, ctx);
}

static __always_inline int verdict_drop(ctx_t *ctx, enum reason reason)
{
	verdict_count(ctx, reason);
	return VERDICT_DROP;
}

/* The packet was answered or copied, and is not needed any more. */
static __always_inline int verdict_consume(void)
{
	return VERDICT_DROP;
}

#endif
