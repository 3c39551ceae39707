/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Delivery by way of a station's veth, which TC and XDP share. */
#ifndef EBPNET_DELIVER_ANEW_H
#define EBPNET_DELIVER_ANEW_H

#include "parse.h"
#include "verdict.h"

/* Writes the MACs of the receiver and the sender. */
static __always_inline enum reason
bridge_readdress(ctx_t *ctx, struct packet *pkt, struct mac receiver,
		 struct mac sender)
{
	struct mac macs[2] = { receiver, sender };

	pkt->dst_mac = receiver;
	pkt->src_mac = sender;
	if (ctx_store(ctx, 0, macs, sizeof(macs), 0))
		return REASON_KERNEL_ERROR;
	return REASON_NONE;
}

/* Delivers by way of the veth, whose other end reads the frame again: slower
 * for a socket buffer, but what the kernel took it for before does not matter.
 */
static __always_inline int
bridge_deliver_anew(ctx_t *ctx, __u32 endpoint, __u32 ifindex)
{
	count_rx(&endpoint_stats, endpoint, ctx);
	return bpf_redirect(ifindex, 0);
}

#endif
