/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Delivery by the veth of a local station. TC and XDP share it. */
#ifndef EBPNET_DELIVER_VETH_H
#define EBPNET_DELIVER_VETH_H

#include "parse.h"
#include "verdict.h"

/* Writes the MACs of the frame: to @station, from @from. */
static __always_inline enum reason
deliver_veth_readdress(ctx_t *ctx, struct packet *pkt,
		       const struct station *station, struct mac from)
{
	struct mac macs[2] = { station->mac, from };

	pkt->dst_mac = macs[0];
	pkt->src_mac = macs[1];
	if (ctx_store(ctx, 0, macs, sizeof(macs), 0))
		return REASON_KERNEL_ERROR;
	return REASON_NONE;
}

/* Delivers by the veth. Its other end reads the frame again, so it does not
 * matter how the kernel classified the frame before. For a socket buffer this
 * is slower than deliver_peer(). */
static __always_inline int
deliver_veth(ctx_t *ctx, const struct station *station)
{
	count_rx(&endpoint_stats, station->endpoint, ctx);
	return bpf_redirect(station->ifindex, 0);
}

#endif
