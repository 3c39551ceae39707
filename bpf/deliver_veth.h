/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Delivery by the veth of a local station. TC and XDP share it. */
#ifndef EBPNET_DELIVER_VETH_H
#define EBPNET_DELIVER_VETH_H

#include "count.h"
#include "parse.h"

/* Writes the MACs of the frame. */
static __always_inline enum reason
deliver_veth_readdress(ctx_t *ctx, struct packet *pkt, struct mac receiver,
		       struct mac sender)
{
	struct mac macs[2] = { receiver, sender };

	pkt->dst_mac = receiver;
	pkt->src_mac = sender;
	if (ctx_store(ctx, 0, macs, sizeof(macs), 0))
		return REASON_KERNEL_ERROR;
	return REASON_NONE;
}

/* Delivers by the veth. Its other end reads the frame again, so it does not
 * matter how the kernel classified the frame before. For a socket buffer this
 * is slower than act_deliver(). */
static __always_inline int
deliver_veth(ctx_t *ctx, __u32 endpoint, __u32 ifindex)
{
	count_rx(&endpoint_stats, endpoint, ctx);
	return bpf_redirect(ifindex, 0);
}

#endif
