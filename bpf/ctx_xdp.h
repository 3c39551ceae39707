/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* See ctx.h: frames in XDP, in one piece or several. */
#ifndef EBPNET_CTX_XDP_H
#define EBPNET_CTX_XDP_H

#include <stdbool.h>

#include <linux/bpf.h>
#include <linux/if_ether.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "csum.h"

typedef struct xdp_md ctx_t;

/* Not ours: the kernel gets the packet, and then the programs in TC. */
#define VERDICT_PASS XDP_PASS
#define VERDICT_DROP XDP_DROP

static __always_inline __u32 ctx_length(const ctx_t *ctx)
{
	return bpf_xdp_get_buff_len((ctx_t *)ctx);
}

static __always_inline __u32 ctx_ifindex(const ctx_t *ctx)
{
	return ctx->ingress_ifindex;
}

/* A driver passes frames as they were on the wire. Generic XDP also passes
 * superframes, and does not mark them. */
static __always_inline __u32 ctx_segment_size(const ctx_t *ctx)
{
	return 0;
}

static __always_inline __u32 ctx_segments(const ctx_t *ctx)
{
	return 1;
}

/* The kernel has not looked at the frame yet. */
static __always_inline bool ctx_is_ipv4(const ctx_t *ctx)
{
	return false;
}

static __always_inline void *ctx_data(const ctx_t *ctx)
{
	return (void *)(long)ctx->data;
}

/* Of the first piece. */
static __always_inline void *ctx_end(const ctx_t *ctx)
{
	return (void *)(long)ctx->data_end;
}

/* Whether the frame has @length bytes; most have them in the first piece, which
 * needs no call. */
static __always_inline bool ctx_has(const ctx_t *ctx, __u32 length)
{
	return (__u64)(ctx_end(ctx) - ctx_data(ctx)) >= length ||
	       length <= ctx_length(ctx);
}

static __always_inline long
ctx_load_bytes(const ctx_t *ctx, __u32 offset, void *to, __u32 length)
{
	return bpf_xdp_load_bytes((ctx_t *)ctx, offset, to, length);
}

#include "ctx_in_place.h"

/* Whether the first @length bytes of the frame, or all if it has less, are
 * readable in place. */
static __always_inline bool ctx_reach(ctx_t *ctx, __u32 length)
{
	void *data = ctx_data(ctx), *end = ctx_end(ctx);
	__u32 all;

	if (data + length <= end)
		return true;
	all = ctx_length(ctx);
	return all < length && all <= MAX_IN_PLACE && data + all <= end;
}

/* Only small frames are written to, and they are in one piece. The flags matter
 * only for a socket buffer. */
static __always_inline long
ctx_store(ctx_t *ctx, __u32 offset, const void *from, __u32 length, __u64 flags)
{
	void *at = ctx_at(ctx, offset, length);

	if (!at)
		return -1;
	__builtin_memcpy(at, from, length);
	return 0;
}

/* Updates the checksum at @offset. @size is the size of @from and @to, or 0 if
 * @to is the difference already. */
static __always_inline long ctx_mend(ctx_t *ctx, __u32 offset, __u64 from,
				     __u64 to, __u64 size, bool optional)
{
	__u64 sum = (__u32)to;
	__sum16 *check = ctx_at(ctx, offset, sizeof(*check));

	if (!check)
		return -1;
	if (optional && !*check)
		return 0;
	if (size == sizeof(__be16))
		sum += (__u16)~from;
	else if (size == sizeof(__be32))
		sum += (__u32)~from;
	*check = csum_update(*check, sum);
	if (optional && !*check)
		*check = (__sum16)~0; /* zero means: no checksum */
	return 0;
}

static __always_inline long
ctx_mend_l3(ctx_t *ctx, __u32 offset, __u64 from, __u64 to, __u64 size)
{
	return ctx_mend(ctx, offset, from, to, size, false);
}

static __always_inline long
ctx_mend_l4(ctx_t *ctx, __u32 offset, __u64 from, __u64 to, __u64 flags)
{
	return ctx_mend(ctx, offset, from, to, flags & BPF_F_HDR_FIELD_MASK,
			flags & BPF_F_MARK_MANGLED_0);
}

static __always_inline void ctx_add_csum(ctx_t *ctx, __wsum diff)
{
}

#endif
