/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* See ctx.h: packets in TC. */
#ifndef EBPNET_CTX_TC_H
#define EBPNET_CTX_TC_H

#include <stdbool.h>

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

typedef struct __sk_buff ctx_t;

/* The VLAN's number in a tag. */
#define VLAN_ID_MASK 0x0fff

/* Not ours: the next program on this hook gets the packet. The value is -1 on
 * TCX and on clsact. */
#define VERDICT_PASS TC_ACT_UNSPEC
#define VERDICT_DROP TC_ACT_SHOT

static __always_inline __u32 ctx_length(const ctx_t *ctx)
{
	return ctx->len;
}

/* Whether the packet has @length bytes. */
static __always_inline bool ctx_has(const ctx_t *ctx, __u32 length)
{
	return length <= ctx->len;
}

static __always_inline __u32 ctx_ifindex(const ctx_t *ctx)
{
	return ctx->ifindex;
}

/* The payload of a superframe's segments; 0 for any other packet. */
static __always_inline __u32 ctx_segment_size(const ctx_t *ctx)
{
	return ctx->gso_size;
}

/* How many packets a superframe stands for. The kernel clears this when headers
 * are added or removed. */
static __always_inline __u32 ctx_segments(const ctx_t *ctx)
{
	__u32 segments = ctx->gso_segs, size = ctx->gso_size;

	if (!segments && size)
		segments = (ctx->len + size - 1) / size;
	return segments ? segments : 1;
}

/* Whether the kernel says that the packet is IPv4. */
static __always_inline bool ctx_is_ipv4(const ctx_t *ctx)
{
	return ctx->protocol == bpf_htons(ETH_P_IP);
}

static __always_inline void *ctx_data(const ctx_t *ctx)
{
	return (void *)(long)ctx->data;
}

static __always_inline void *ctx_end(const ctx_t *ctx)
{
	return (void *)(long)ctx->data_end;
}

/* Makes the first @length bytes of the packet, or all if it has less, readable
 * in place. Usually they are; otherwise the kernel may have to copy the packet.
 * */
static __always_inline bool ctx_reach(ctx_t *ctx, __u32 length)
{
	if (length > ctx->len)
		length = ctx->len;
	return ctx_data(ctx) + length <= ctx_end(ctx) ||
	       !bpf_skb_pull_data(ctx, length);
}

static __always_inline long
ctx_load_bytes(const ctx_t *ctx, __u32 offset, void *to, __u32 length)
{
	return bpf_skb_load_bytes(ctx, offset, to, length);
}

#include "ctx_in_place.h"

/* @flags: BPF_F_RECOMPUTE_CSUM to update the device's checksum of the whole
 * packet too. */
static __always_inline long
ctx_store(ctx_t *ctx, __u32 offset, const void *from, __u32 length, __u64 flags)
{
	return bpf_skb_store_bytes(ctx, offset, from, length, flags);
}

/* Updates the checksum of an IP header at @offset after a change of @size
 * bytes. */
static __always_inline long
ctx_mend_l3(ctx_t *ctx, __u32 offset, __u64 from, __u64 to, __u64 size)
{
	return bpf_l3_csum_replace(ctx, offset, from, to, size);
}

/* The same for a transport checksum. @flags are those of bpf_l4_csum_replace().
 * */
static __always_inline long
ctx_mend_l4(ctx_t *ctx, __u32 offset, __u64 from, __u64 to, __u64 flags)
{
	return bpf_l4_csum_replace(ctx, offset, from, to, flags);
}

/* Adds to the device's checksum of the whole packet, if the packet has one. */
static __always_inline void ctx_add_csum(ctx_t *ctx, __wsum diff)
{
	bpf_csum_update(ctx, diff);
}

#endif
