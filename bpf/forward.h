/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Packets that come in from outside or from lo: to an endpoint, or to the host
 * itself. */
#ifndef EBPNET_FORWARD_H
#define EBPNET_FORWARD_H

#include "decision.h"
#include "fragment.h"
#include "icmp.h"
#include "loopback.h"
#include "neighbor.h"
#include "policy.h"
#include "publish.h"

/*
 * Replaces the route to the host itself that a packet on lo has from the host:
 * on 6.1 the endpoint's namespace would follow that route. The new one leads
 * nowhere.
 */
static __noinline enum reason forward_forget_route(struct __sk_buff *skb)
{
	struct bpf_tunnel_key nowhere = {};

	return bpf_skb_set_tunnel_key(skb, &nowhere, sizeof(nowhere), 0) ?
		       REASON_KERNEL_ERROR :
		       REASON_NONE;
}

/* Delivers to the endpoint that has the address to which the packet is
 * translated, as from the gateway. */
static __always_inline enum action forward_to_station(struct scratch *scratch)
{
	const struct station *station = neighbor_lookup(&scratch->to.src);

	if (!station || station->network != scratch->to.network ||
	    station->kind != STATION_LOCAL)
		return decision_drop(scratch, REASON_UNKNOWN_DESTINATION);
	decision_readdress(scratch, station);
	scratch->decision.changes |= CHANGE_SENDER;
	return decision_deliver(scratch, station);
}

/* Whether the packet is to the host itself, and its flow is the host's own. */
static __always_inline bool forward_is_to_host(const struct scratch *scratch)
{
	return scratch->to.network == NETWORK_OUTSIDE;
}

/* Whether a translated packet may go on to an endpoint. */
static __always_inline enum reason
forward_check(struct scratch *scratch, __u32 from)
{
	enum reason reason;

	if (forward_is_to_host(scratch))
		return REASON_NONE;
	reason = policy_check_outside(scratch->to.network);
	if (!reason && from != NETWORK_LOOPBACK && scratch->packet.ttl <= 1)
		reason = REASON_TTL_EXCEEDED;
	return reason;
}

/* Decides where the packet goes after its translation. */
static __always_inline enum action
forward_exit(struct scratch *scratch, __u32 from)
{
	if (forward_is_to_host(scratch))
		return ACTION_PASS;
	scratch->decision.changes |=
		from == NETWORK_LOOPBACK ? CHANGE_ROUTE : CHANGE_HOP;
	return forward_to_station(scratch);
}

/* Opens the flow of a packet for a published port or a mapped port. Gives the
 * @ifindex of the device that gets an answer by lo, or 0 for lo itself: see
 * loopback.h. */
static __always_inline enum action
forward_open(struct __sk_buff *skb, struct scratch *scratch, __u32 from,
	     __u32 *ifindex)
{
	const struct packet *pkt = &scratch->packet;
	enum publish_result result;

	if (from == NETWORK_LOOPBACK && !address_is_ipv4(&pkt->src) &&
	    address_is_link_local(&pkt->src)) {
		*ifindex = loopback_device(skb);
		if (!*ifindex)
			return ACTION_PASS;
	}
	result = publish_open(skb, scratch);
	return result == PUBLISH_NOT_OURS ? ACTION_PASS :
					    publish_action(result);
}

/*
 * Decides about a packet that comes in @from NETWORK_OUTSIDE or
 * NETWORK_LOOPBACK, by its flow. ACTION_PASS if it is the host's own: perhaps
 * after it is translated back to what the host has sent.
 */
__verified_once int forward_decide(struct __sk_buff *skb, __u32 from)
{
	struct scratch *scratch = scratch_get();
	__u32 slot, ifindex = 0;
	enum flow_side side;
	enum action action;
	struct packet *pkt;
	enum reason reason;
	struct flow *flow;

	if (!scratch)
		return ACTION_PASS;
	pkt = &scratch->packet;
	/* The host answers echo requests to its own addresses. With identifier
	 * 0 the key of a request would be that of a reply. */
	if (pkt->echo == ECHO_REQUEST &&
	    (from == NETWORK_LOOPBACK || !pkt->sport))
		return ACTION_PASS;
	flow_key_of(&scratch->key, pkt, from);
	flow = flow_find_to(scratch, &scratch->key, &side, &slot);
	if (!flow) {
		action = forward_open(skb, scratch, from, &ifindex);
		if (action)
			return action;
		flow = flow_find_opened(scratch, &side, &slot);
		if (!flow && !dry_run)
			return decision_drop(scratch, REASON_FLOW_TABLE_FULL);
		if (ifindex && flow)
			flow->uplink = ifindex;
	}
	reason = forward_check(scratch, from);
	if (reason)
		return decision_drop(scratch, reason);
	if (pkt->fragment == FRAGMENT_FIRST)
		fragment_remember(pkt, from, FRAGMENT_IN | skb->ifindex);
	if (flow)
		flow_update(skb, flow, slot, pkt, side);
	scratch->decision.changes |= CHANGE_ADDRESSES;
	return forward_exit(scratch, from);
}

/* Decides about an ICMP error in the same way: it goes where the packets of its
 * flow go. */
__verified_once int forward_decide_error(struct __sk_buff *skb, __u32 from)
{
	struct scratch *scratch = scratch_get();
	enum reason reason;

	if (!scratch)
		return ACTION_PASS;
	if (from == NETWORK_OUTSIDE &&
	    publish_is_spoofed(skb, &scratch->packet.src))
		return ACTION_PASS; /* the host drops it */
	if (icmp_find(skb, &scratch->packet, from))
		return ACTION_PASS;
	reason = forward_check(scratch, from);
	if (reason)
		return decision_drop(scratch, reason);
	scratch->decision.changes |= CHANGE_ERROR;
	return forward_exit(scratch, from);
}

#endif
