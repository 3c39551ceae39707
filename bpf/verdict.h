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

	if (counter && !dry_run)
		count_add(counter, ctx);
}

/* A dry run returns the action, here and below. */
static __always_inline int verdict_drop(ctx_t *ctx, enum reason reason)
{
	verdict_count(ctx, reason);
	return dry_run ? (int)ACTION_DROP : (int)VERDICT_DROP;
}

static __always_inline int verdict_pass(void)
{
	return dry_run ? (int)ACTION_PASS : (int)VERDICT_PASS;
}

/* The packet was answered or copied, and is not needed any more. */
static __always_inline int verdict_consume(void)
{
	return VERDICT_DROP;
}

#endif
