/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The Internet checksum of a part of a frame, piece by piece. */
#ifndef EBPNET_CTX_SUM_H
#define EBPNET_CTX_SUM_H

#include "csum.h"
#include "ctx.h"
#include "scratch.h"

/* A part of a frame that is summed up. */
struct ctx_sum {
	ctx_t *ctx;
	__u32 offset;
	__u32 left;
	__u32 sum;
};

static int ctx_sum_next(__u32 i, void *context)
{
	struct scratch *scratch = scratch_get();
	struct ctx_sum *sum = context;
	__u32 length = sum->left;

	if (!scratch || !length)
		return 1;
	if (length > PIECE_SIZE)
		length = PIECE_SIZE;
	/* This changes nothing, but shows the verifier that it is not 0. */
	barrier_var(length);
	length = ((length - 1) & (PIECE_SIZE - 1)) + 1;
	__builtin_memset(scratch->piece, 0, sizeof(scratch->piece));
	if (ctx_load(sum->ctx, sum->offset, scratch->piece, length))
		return 1;
	sum->sum = bpf_csum_diff(NULL, 0, (__be32 *)scratch->piece,
				 sizeof(scratch->piece), sum->sum);
	sum->offset += length;
	sum->left -= length;
	return 0;
}

/* Gives the checksum of @length bytes of the frame from @offset on; false if
 * they are not there. */
static __noinline bool
ctx_sum_checksum(ctx_t *ctx, __u32 offset, __u32 length, __sum16 *checksum)
{
	struct ctx_sum sum = { .ctx = ctx, .offset = offset, .left = length };

	bpf_loop(length / PIECE_SIZE + 1, ctx_sum_next, &sum, 0);
	*checksum = csum_fold(sum.sum);
	return !sum.left;
}

#endif
