/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* How a packet leaves by an uplink. */
#ifndef EBPNET_ROUTE_SEND_H
#define EBPNET_ROUTE_SEND_H

#include "config.h"
#include "ctx.h"
#include "headers/uapi.h"
#include "parse.h"

/*
 * The mark, in skb->tc_index, of packets that the datapath sends by an uplink,
 * and of packets that to_uplink() has checked. Such a packet still refers to
 * the socket of its container, and to_uplink() cannot tell this socket from one
 * of the host. The mark stays, because an uplink may be on top of another
 * uplink. It differs between hosts, because the packet may come into the
 * namespace of another host. It depends on the addresses, because a tunnel
 * device of the host makes another packet of it.
 */
static __always_inline __u16 route_send_mark(const struct __sk_buff *skb)
{
	struct mac mac = config_gateway_mac(); /* random: see the agent */
	void *end = ctx_end(skb);
	struct frame *frame = ctx_data(skb);
	struct ipv6hdr *ip6 = (void *)(frame + 1);
	struct iphdr *ip = (void *)(frame + 1);
	__u32 mark = mac.byte[4] << 8 | mac.byte[5];

	if ((void *)(ip + 1) > end)
		return 1;
	if (frame->ethertype == bpf_htons(ETH_P_IP))
		mark ^= ip->saddr ^ ip->daddr;
	else if ((void *)(ip6 + 1) <= end)
		mark ^= ip6->saddr.s6_addr32[3] ^ ip6->daddr.s6_addr32[3];
	mark = (mark ^ mark >> 16) & 0xffff;
	return mark ? mark : 1; /* 0: no mark */
}

/* Sends the packet out of the uplink; the kernel writes the Ethernet header and
 * refreshes its neighbor entry. */
static __always_inline int
route_send(struct __sk_buff *skb, struct route *route)
{
	skb->tc_index = route_send_mark(skb);
	if (!route->next.nh_family)
		return bpf_redirect_neigh(route->ifindex, NULL, 0, 0);
	return bpf_redirect_neigh(route->ifindex, &route->next,
				  sizeof(route->next), 0);
}

#endif
