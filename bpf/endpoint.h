/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Frames that a local endpoint sends: classify and decide of from_endpoint(). */
#ifndef EBPNET_ENDPOINT_H
#define EBPNET_ENDPOINT_H

#include "bridge.h"
#include "gateway.h"
#include "guard.h"
#include "neigh.h"
#include "offload.h"
#include "trunk.h"

/* Checks that a container sends only under its own MAC and addresses. */
static __always_inline enum reason
endpoint_check(struct __sk_buff *skb, const struct device *device,
	       struct packet *pkt)
{
	if (!mac_equal(&pkt->src_mac, &device->mac))
		return REASON_SPOOFED_MAC;
	switch (pkt->ethertype) {
	case bpf_htons(ETH_P_IP):
		return guard_ipv4(skb, device, pkt);
	case bpf_htons(ETH_P_IPV6):
		return guard_ipv6(skb, device, pkt);
	case bpf_htons(ETH_P_ARP):
		return guard_arp(skb, pkt, device, NULL);
	}
	return REASON_UNKNOWN_PROTOCOL;
}

/* Whether the sender may send ICMP errors about packets to others, because it
 * is a router. It may not send them to the gateway. */
static __always_inline bool
endpoint_may_judge(const struct device *device, const struct network *network,
		   const struct packet *pkt)
{
	return device->allow & ALLOW_ROUTER &&
	       mac_equal(&pkt->src_mac, &device->mac) &&
	       !gateway_is_meant(network, pkt);
}

/* Reads the frame, and checks that its sender may send it. */
static __always_inline enum reason
endpoint_classify(struct __sk_buff *skb, struct scratch *scratch,
		  const struct device *device, const struct network *network)
{
	struct packet *pkt = &scratch->packet;
	enum reason reason = parse_l3(skb, pkt, 0);

	if (!reason && skb->vlan_present)
		reason = REASON_UNKNOWN_PROTOCOL;
	if (!reason)
		reason = device->trunk ?
				 trunk_check(skb, device, network, pkt) :
				 endpoint_check(skb, device, pkt);
	if (!reason && pkt->ethertype == bpf_htons(ETH_P_IP) &&
	    !guard_ipv4_is_summed(skb, pkt))
		reason = REASON_MALFORMED;
	if (!reason)
		reason = offload_check(skb, pkt);
	return reason;
}

/* Decides about a frame to a MAC that has no static entry. */
static __always_inline enum action
endpoint_decide_unknown(struct __sk_buff *skb, struct scratch *scratch,
			const struct device *device,
			const struct network *network)
{
	const struct station *station =
		fdb_lookup_learned(device->network, &scratch->packet.dst_mac);

	if (station && bridge_is_behind(skb, station))
		return ACTION_IGNORE;
	if (station)
		return bridge_decide(skb, scratch, device, network, station);
	return bridge_decide_flood(scratch, network,
				   FLOOD_TUNNELS | FLOOD_UNKNOWN,
				   device->endpoint);
}

/* Decides about a frame to the gateway's MAC. */
static __always_inline enum action
endpoint_decide_gateway(struct __sk_buff *skb, struct scratch *scratch,
			const struct device *device,
			const struct network *network)
{
	struct packet *pkt = &scratch->packet;
	enum reason reason = REASON_NONE;
	enum action action;

	if (pkt->ethertype == bpf_htons(ETH_P_ARP))
		reason = REASON_UNKNOWN_DESTINATION;
	else if (device->trunk)
		reason =
			trunk_check_outward(device, network, skb->ifindex, pkt);
	if (reason)
		return decision_drop(scratch, reason);
	action = gateway_decide(skb, device, network);
	if (action != ACTION_BRIDGE)
		return action;
	/* Keep the sender's MAC: the other end of a tunnel takes no frame from
	 * a gateway behind it. */
	decision_readdress(scratch, &scratch->station);
	return bridge_decide(skb, scratch, device, network, &scratch->station);
}

/* Decides about a frame that passed endpoint_classify(). */
static __always_inline enum action
endpoint_decide(struct __sk_buff *skb, struct scratch *scratch,
		const struct device *device, const struct network *network)
{
	struct packet *pkt = &scratch->packet;
	const struct station *station;
	enum action action;
	enum reason reason;

	/* This answers a request to a neighbor's own MAC too (whether the
	 * neighbor is still there), also if no link leads to it. */
	action = neigh_decide(skb, scratch, device->network);
	if (action)
		return action;
	if (packet_is_icmp(pkt) && !endpoint_may_judge(device, network, pkt)) {
		reason = icmp_check_endpoint(skb, pkt);
		if (reason)
			return decision_drop(scratch, reason);
	}
	if (mac_is_multicast(&pkt->dst_mac))
		return bridge_decide_flood(scratch, network, FLOOD_TUNNELS,
					   device->endpoint);
	if (gateway_is_meant(network, pkt))
		return endpoint_decide_gateway(skb, scratch, device, network);
	station = fdb_lookup_static(device->network, &pkt->dst_mac);
	if (!station)
		return endpoint_decide_unknown(skb, scratch, device, network);
	if (bridge_is_behind(skb, station))
		return ACTION_IGNORE;
	return bridge_decide(skb, scratch, device, network, station);
}

#endif
