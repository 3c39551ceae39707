/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Frames from behind a trunk: their senders are checked and learned. */
#ifndef EBPNET_TRUNK_H
#define EBPNET_TRUNK_H

#include "guard_shared.h"
#include "learn.h"
#include "loop.h"

/* Checks a frame from behind a trunk, and learns its sender. */
static __noinline enum reason
trunk_check(struct __sk_buff *skb, const struct device *device,
	    const struct network *network, struct packet *pkt)
{
	struct shared_source source = {
		.network = device->network,
		.endpoint = device->endpoint,
	};
	const struct station *known =
		fdb_lookup_static(device->network, &pkt->src_mac);
	struct station sender;
	enum reason reason;

	if (pkt->ethertype == bpf_htons(LOOP_ETHERTYPE))
		return loop_receive(skb, device);
	if (device->trunk & TRUNK_BLOCKED &&
	    loop_still_blocked(device, skb->ifindex))
		return REASON_LOOP;
	if (known && known->endpoint != device->endpoint)
		return REASON_SPOOFED_MAC;
	/* The role is that of the trunk's own station, not of others behind it.
	 */
	if (known)
		source.allow = device->allow;
	reason = guard_shared(skb, pkt, &source);
	if (!reason && !known && network->flags & NETWORK_ICC) {
		sender = learn_sender(device, skb->ifindex, pkt);
		learn_station(&sender);
	}
	return reason;
}

/* Checks a packet from behind a trunk to the gateway: its address must be one
 * of the network. Learns the address, so that answers find the sender. */
static __noinline enum reason
trunk_check_outward(const struct device *device, const struct network *network,
		    __u32 ifindex, const struct packet *pkt)
{
	struct station sender = learn_sender(device, ifindex, pkt);

	if (address_is_link_local(&pkt->src))
		return REASON_NONE;
	if (!learn_is_inside(network, &pkt->src))
		return REASON_SPOOFED_ADDRESS;
	learn_neighbor(&sender, &pkt->src);
	return REASON_NONE;
}

#endif
