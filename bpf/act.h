/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The last stage in TC: applies a decision. Only this stage changes a packet,
 * counts, drops and redirects. It has one function for each action.
 */
#ifndef EBPNET_ACT_H
#define EBPNET_ACT_H

#include <linux/if_packet.h>

#include "bridge_flood.h"
#include "deliver_veth.h"
#include "detour.h"
#include "ecn.h"
#include "forward.h"
#include "fragment_send.h"
#include "gre_wrap.h"
#include "icmp.h"
#include "icmp_reply.h"
#include "loopback.h"
#include "nat.h"
#include "neigh.h"
#include "route.h"
#include "route_send.h"
#include "tunnel_send.h"

/* lo has this number in every network namespace. */
#define LOOPBACK_IFINDEX 1

/* Drops the packet for decision.reason. */
static __always_inline int
act_drop(struct __sk_buff *skb, const struct scratch *scratch)
{
	return verdict_drop(skb, scratch->decision.reason);
}

/* Drops the packet, and tells its sender the reason if ICMP has an error for
 * it. */
static __noinline int act_refuse(struct __sk_buff *skb, struct scratch *scratch,
				 const struct network *network)
{
	const struct decision *decision = &scratch->decision;
	const struct packet *pkt = &scratch->packet;
	bool ipv4 = address_is_ipv4(&pkt->src);
	struct icmp_error error;

	verdict_count(skb, decision->reason);
	if (!icmp_error_of(ipv4, decision->reason, decision->mtu, &error) ||
	    !icmp_reply(skb, pkt, decision->sender,
			ipv4 ? &network->gateway4 : &network->gateway6, &error))
		return verdict_consume();
	return bpf_redirect(skb->ifindex, 0);
}

/* Sends the answer to an ARP or ND request back to its device. */
static __always_inline int
act_answer(struct __sk_buff *skb, const struct scratch *scratch)
{
	if (neigh_answer(skb, &scratch->packet, &scratch->decision.mac))
		return verdict_drop(skb, REASON_KERNEL_ERROR);
	return bpf_redirect(skb->ifindex, 0);
}

/* Hands the frame straight into the namespace of the endpoint. */
static __always_inline int
act_deliver(struct __sk_buff *skb, const struct scratch *scratch)
{
	/* The kernel takes a frame with the MAC of another endpoint for one
	 * that is not for the host, and notes that in pkt_type. */
	if (skb->pkt_type != PACKET_HOST)
		bpf_skb_change_type(skb, PACKET_HOST);
	count_rx(&endpoint_stats, scratch->decision.endpoint, skb);
	return bpf_redirect_peer(scratch->decision.ifindex, 0);
}

/* Gives the packet to the host itself. */
static __always_inline int act_host(struct __sk_buff *skb)
{
	detour_unmark(skb);
	return bpf_redirect(gateway_ifindex, BPF_F_INGRESS);
}

/* Gives the packet to a socket of the host that speaks to one of its own
 * addresses: by lo, or, if the address is link-local, by its device. */
static __always_inline int
act_loopback(struct __sk_buff *skb, const struct scratch *scratch)
{
	__u32 ifindex = scratch->decision.ifindex;
	struct mac macs[2] = {}; /* lo's */

	if (!ifindex || !loopback_find_mac(ifindex, &macs[0]))
		ifindex = LOOPBACK_IFINDEX;
	if (bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), 0))
		return verdict_drop(skb, REASON_KERNEL_ERROR);
	return bpf_redirect(ifindex, BPF_F_INGRESS);
}

/* Writes the receiver's MAC and, with CHANGE_SENDER, the gateway's as the
 * sender's. */
static __always_inline enum reason
act_readdress(struct __sk_buff *skb, struct scratch *scratch)
{
	struct packet *pkt = &scratch->packet;

	return deliver_veth_readdress(skb, pkt, scratch->decision.mac,
				      scratch->decision.changes &
						      CHANGE_SENDER ?
					      config_gateway_mac() :
					      pkt->src_mac);
}

/* Makes the changes of the decision. The outer headers go first, because the
 * other changes are those of the inner packet. */
static __noinline enum reason
act_change(struct __sk_buff *skb, struct scratch *scratch)
{
	const struct tunnel_origin *origin = &scratch->origin;
	struct packet *pkt = &scratch->packet;
	__u32 changes = scratch->decision.changes;
	enum reason reason = REASON_NONE;

	if (changes & CHANGE_OUTER) {
		reason = ecn_decapsulate(skb, pkt, origin->tos);
		if (!reason)
			reason = gre_decap(skb, pkt, origin);
	}
	if (!reason && changes & CHANGE_ROUTE)
		reason = forward_forget_route(skb);
	if (!reason && changes & CHANGE_HOP)
		reason = route_decrement_ttl(skb, pkt);
	if (!reason && changes & CHANGE_ERROR)
		reason = icmp_translate(skb, pkt, scratch);
	if (!reason && changes & CHANGE_ADDRESSES)
		reason = nat_translate(skb, pkt, &scratch->to);
	if (!reason && changes & CHANGE_RECEIVER)
		reason = act_readdress(skb, scratch);
	scratch->decision.changes = 0;
	return reason;
}

/* Applies the decision. @network is that of a frame from an endpoint or out of
 * a tunnel, and NULL for all other packets: they are never flooded or
 * encapsulated here. A dry run returns the action. */
static __always_inline int
act(struct __sk_buff *skb, struct scratch *scratch,
    const struct network *network, enum action action)
{
	const struct decision *decision = &scratch->decision;
	const struct packet *pkt = &scratch->packet;
	enum reason reason = REASON_NONE;

	if (dry_run)
		return action;
	if (action == ACTION_DROP)
		return act_drop(skb, scratch);
	if (action == ACTION_IGNORE)
		return verdict_consume();
	if (action == ACTION_REFUSE)
		return network ? act_refuse(skb, scratch, network) :
				 act_drop(skb, scratch);
	if (decision->changes)
		reason = act_change(skb, scratch);
	if (reason)
		return verdict_drop(skb, reason);
	switch (action) {
	case ACTION_PASS:
		return verdict_pass();
	case ACTION_ANSWER:
		return act_answer(skb, scratch);
	case ACTION_DELIVER:
		return act_deliver(skb, scratch);
	case ACTION_DELIVER_BY_VETH:
		return deliver_veth(skb, decision->endpoint, decision->ifindex);
	case ACTION_HOST:
		return act_host(skb);
	case ACTION_LOOPBACK:
		return act_loopback(skb, scratch);
	case ACTION_SEND:
		return route_send(skb, &scratch->route);
	case ACTION_SEND_FRAGMENTS:
		return fragment_send_by(skb, pkt, &scratch->route);
	case ACTION_FLOOD:
		if (network)
			return bridge_flood(skb, scratch, network);
		break;
	case ACTION_ENCAPSULATE:
		if (network)
			return tunnel_encapsulate(skb, scratch, network, false);
		break;
	case ACTION_ENCAPSULATE_FRAGMENTS:
		return fragment_send_into(skb, pkt, decision->network,
					  decision->tunnel, decision->room);
	case ACTION_DETOUR:
		return tunnel_detour(skb, tunnel_mark(decision->network,
						      decision->tunnel));
	default:
		break;
	}
	return verdict_drop(skb, REASON_KERNEL_ERROR);
}

#endif
