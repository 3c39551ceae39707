/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The source guard for several stations behind a trunk or a tunnel. */
#ifndef EBPNET_GUARD_SHARED_H
#define EBPNET_GUARD_SHARED_H

#include "guard_neigh.h"

/* Checks whether the sender may send the packet. */
static __noinline enum reason
guard_shared(ctx_t *ctx, struct packet *pkt, const struct shared_source *source)
{
	enum reason reason;

	if (mac_is_multicast(&pkt->src_mac))
		return REASON_MALFORMED;
	if (pkt->ethertype == bpf_htons(ETH_P_ARP))
		return guard_arp(ctx, pkt, NULL, source);
	if (pkt->ethertype != bpf_htons(ETH_P_IP) &&
	    pkt->ethertype != bpf_htons(ETH_P_IPV6))
		return REASON_UNKNOWN_PROTOCOL;
	if (!address_is_unspecified(&pkt->src) && /* it has none yet */
	    !guard_may_use(NULL, source, &pkt->src_mac, &pkt->src))
		return REASON_SPOOFED_ADDRESS;
	reason = guard_role_check(ctx, pkt, source->allow);
	if (!reason && guard_is_nd(pkt))
		reason = guard_nd(ctx, pkt, NULL, source);
	return reason;
}

#endif
