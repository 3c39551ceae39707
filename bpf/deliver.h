/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Delivery into the namespace of a local station. */
#ifndef EBPNET_DELIVER_H
#define EBPNET_DELIVER_H

#include <linux/if_packet.h>

#include "deliver_veth.h"
#include "parse.h"
#include "verdict.h"

/* Redirects the frame into the namespace of a local station. */
static __always_inline int
deliver_peer(struct __sk_buff *skb, const struct station *station)
{
	/* The host's end of a veth sets pkt_type to PACKET_OTHERHOST if the
	 * frame is for the MAC of another endpoint. */
	if (skb->pkt_type != PACKET_HOST)
		bpf_skb_change_type(skb, PACKET_HOST);
	count_rx(&endpoint_stats, station->endpoint, skb);
	return bpf_redirect_peer(station->ifindex, 0);
}

#endif
