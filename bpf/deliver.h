/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* How a packet leaves: into an endpoint's namespace, or out of an uplink. */
#ifndef EBPNET_DELIVER_H
#define EBPNET_DELIVER_H

#include <linux/if_packet.h>

#include "deliver_anew.h"
#include "headers/uapi.h"
#include "verdict.h"

/* Hands the frame straight into the namespace of a local station. */
static __always_inline int
bridge_deliver(struct __sk_buff *skb, const struct station *station)
{
	/* The host's end of a veth takes a frame for the MAC of another
	 * endpoint to be none of its business, and says so in pkt_type. */
	if (skb->pkt_type != PACKET_HOST)
		bpf_skb_change_type(skb, PACKET_HOST);
	count_rx(&endpoint_stats, station->endpoint, skb);
	return bpf_redirect_peer(station->ifindex, 0);
}

/* Put into skb->tc_index of what the datapath itself sends out of an uplink:
 * a packet still names the socket of the container that it came from, which
 * cannot be told there from one of the host. */
#define ROUTE_SENT 0xebb1

/* Sends the packet out of the uplink; the kernel puts the Ethernet header on
 * and keeps its neighbor entry fresh. */
static __always_inline int
route_send(struct __sk_buff *skb, struct route *route)
{
	skb->tc_index = ROUTE_SENT;
	if (!route->next.nh_family)
		return bpf_redirect_neigh(route->ifindex, NULL, 0, 0);
	return bpf_redirect_neigh(route->ifindex, &route->next,
				  sizeof(route->next), 0);
}

#endif
