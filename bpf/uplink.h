/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Packets of an uplink or of lo: classify and decide of their programs. */
#ifndef EBPNET_UPLINK_H
#define EBPNET_UPLINK_H

#include "forward.h"
#include "tunnel.h"

/* Whether the packet is for a VLAN on the device, and not for the device. A tag
 * of VLAN 0 only tells a priority: IEEE 802.1Q, 9.6. */
static __always_inline bool uplink_is_tagged(const struct __sk_buff *skb)
{
	return skb->vlan_present && (skb->vlan_tci & VLAN_ID_MASK ||
				     skb->vlan_proto != bpf_htons(ETH_P_8021Q));
}

/* Reads the packet. False if it is no valid IP packet. */
static __always_inline bool
uplink_classify(struct __sk_buff *skb, struct scratch *scratch)
{
	struct packet *pkt = &scratch->packet;

	return !parse_l3(skb, pkt, 0) &&
	       (pkt->ethertype == bpf_htons(ETH_P_IP) ||
		pkt->ethertype == bpf_htons(ETH_P_IPV6)) &&
	       !parse_l4(skb, pkt);
}

/* Decides about a packet that comes in @from NETWORK_OUTSIDE or
 * NETWORK_LOOPBACK. */
static __always_inline enum action
uplink_decide(struct __sk_buff *skb, struct scratch *scratch, __u32 from)
{
	struct packet *pkt = &scratch->packet;

	if (packet_is_icmp_error(pkt)) {
		if (from == NETWORK_OUTSIDE)
			tunnel_note_mtu(skb, pkt);
		return forward_decide_error(skb, from);
	}
	if (!fragment_find_ports(pkt, from, FRAGMENT_IN | skb->ifindex))
		return ACTION_PASS;
	return forward_decide(skb, from);
}

#endif
