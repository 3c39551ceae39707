/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Congestion marks across a tunnel: RFC 6040, normal mode. */
#ifndef EBPNET_ECN_H
#define EBPNET_ECN_H

#include "parse.h"

#define ECN_MASK 0x03 /* of a type of service or a traffic class */

enum ecn {
	ECN_NONE = 0, /* not capable */
	ECN_ECT1 = 1,
	ECN_ECT0 = 2,
	ECN_CE = 3, /* congestion experienced */
};

/* The outer type of service for an inner one: RFC 6040, 4.1. */
static __always_inline __u8 ecn_encapsulate(__u8 tos)
{
	return tos & ECN_MASK;
}

/* Writes the mark into the packet's IP header. */
static __always_inline enum reason
ecn_set(ctx_t *ctx, struct packet *pkt, enum ecn ecn)
{
	__u8 tos = (pkt->tos & ~ECN_MASK) | ecn, byte;
	__u32 at = pkt->l3 + 1;

	if (pkt->ethertype == bpf_htons(ETH_P_IP)) {
		if (ctx_mend_l3(ctx, pkt->l3 + offsetof(struct iphdr, check),
				bpf_htons(pkt->tos), bpf_htons(tos),
				sizeof(__be16)) ||
		    ctx_store(ctx, at, &tos, sizeof(tos), 0))
			return REASON_KERNEL_ERROR;
	} else {
		/* The lower half of the traffic class is the upper one of
		 * this byte. */
		if (ctx_load(ctx, at, &byte, sizeof(byte)))
			return REASON_KERNEL_ERROR;
		byte = (byte & 0x0f) | tos << 4;
		if (ctx_store(ctx, at, &byte, sizeof(byte),
			      BPF_F_RECOMPUTE_CSUM))
			return REASON_KERNEL_ERROR;
	}
	pkt->tos = tos;
	return REASON_NONE;
}

/* Copies the mark of an outer packet with type of service @outer to the inner
 * packet: RFC 6040, 4.2, figure 4. */
static __always_inline enum reason
ecn_decapsulate(ctx_t *ctx, struct packet *pkt, __u8 outer)
{
	__u8 inner = pkt->tos & ECN_MASK;

	outer &= ECN_MASK;
	if (outer == ECN_CE && inner != ECN_CE) {
		/* A sender without ECN notices congestion only by the loss of
		 * the packet. */
		if (inner == ECN_NONE)
			return pkt->ethertype == bpf_htons(ETH_P_ARP) ?
				       REASON_NONE :
				       REASON_CONGESTION;
		return ecn_set(ctx, pkt, ECN_CE);
	}
	if (outer == ECN_ECT1 && inner == ECN_ECT0)
		return ecn_set(ctx, pkt, ECN_ECT1);
	return REASON_NONE;
}

#endif
