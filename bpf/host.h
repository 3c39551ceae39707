/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Packets that the host sends: to containers, and by an uplink. */
#ifndef EBPNET_HOST_H
#define EBPNET_HOST_H

#include "decision.h"
#include "masquerade.h"
#include "neigh.h"

/* Reads a packet from the host to a container. */
static __always_inline enum reason
host_classify(struct __sk_buff *skb, struct packet *pkt)
{
	enum reason reason = parse_l3(skb, pkt, 0);

	if (!reason && pkt->ethertype == bpf_htons(ETH_P_IPV6) &&
	    pkt->protocol == IPPROTO_ICMPV6)
		reason = parse_l4(skb, pkt);
	return reason;
}

/* Decides about a packet from the host to a container. */
static __always_inline enum action
host_decide(struct __sk_buff *skb, struct scratch *scratch)
{
	struct packet *pkt = &scratch->packet;
	const struct station *station;
	enum action action = neigh_decide(skb, scratch, NETWORK_OUTSIDE);

	if (action)
		return action;
	switch (pkt->ethertype) {
	case bpf_htons(ETH_P_IP):
	case bpf_htons(ETH_P_IPV6):
		break;
	case bpf_htons(ETH_P_ARP):
		return decision_drop(scratch, REASON_UNKNOWN_DESTINATION);
	default:
		return decision_drop(scratch, REASON_UNKNOWN_PROTOCOL);
	}
	station = neighbor_lookup(&pkt->dst);
	if (!station || station->kind != STATION_LOCAL)
		return decision_drop(scratch, REASON_UNKNOWN_DESTINATION);
	if (!mac_equal(&pkt->dst_mac, &station->mac)) {
		decision_readdress(scratch, station);
		scratch->decision.changes |= CHANGE_SENDER;
	}
	return decision_deliver(scratch, station);
}

/* Whether a packet of the host needs a flow, so that no endpoint gets its port.
 * Most packets need none, because search_socket() finds their socket. It finds
 * none for echoes, forwarded packets and sockets bound to a device. Packets
 * from a port whose number is published need a flow too. */
static __always_inline bool
host_needs_flow(struct __sk_buff *skb, const struct packet *pkt)
{
	struct bpf_sock *sk = skb->sk;

	return pkt->echo != ECHO_NONE || skb->ingress_ifindex ||
	       (sk && sk->bound_dev_if) ||
	       search_is_published(pkt->protocol, pkt->sport);
}

/* Whether the host may have one more flow for host_needs_flow(). A
 * reply opens none. Half-open flows count as established ones here, so that the
 * host's flows leave others their share even if all of them get established:
 * strangers with any source address can make the host send from a published
 * port's number, and can acknowledge its packets. */
static __always_inline bool host_may_open(const struct packet *pkt)
{
	const struct flow_share *own = share_of(OWNER_HOST),
				*all = share_of(OWNER_ALL);

	return flow_may_open(pkt) && own && all &&
	       !share_check(0, own->established + own->half_open,
			    all->established);
}

/*
 * Decides about a packet of the host that leaves by an uplink. A packet that
 * has the ports and the destination of an endpoint's flow gets another port.
 */
static __always_inline enum action
host_decide_out(struct __sk_buff *skb, struct scratch *scratch)
{
	struct packet *pkt = &scratch->packet;
	enum reason reason;
	bool needed;

	if (!fragment_find_ports(pkt, NETWORK_OUTSIDE,
				 FRAGMENT_OUT | skb->ifindex) ||
	    pkt->echo == ECHO_REPLY)
		return ACTION_PASS;
	flow_key_of(&scratch->key, pkt, NETWORK_OUTSIDE);
	needed = masquerade_is_needed(&scratch->key, &scratch->mapping);
	if (!needed && (!host_needs_flow(skb, pkt) || !host_may_open(pkt)))
		return ACTION_PASS;
	reason = masquerade_host(skb, pkt, scratch);
	/* Without room for its flow it leaves as it is, unless it needs a
	 * translation. */
	if (reason)
		return needed ? decision_drop(scratch, reason) : ACTION_PASS;
	scratch->decision.changes = CHANGE_ADDRESSES;
	return ACTION_PASS;
}

#endif
