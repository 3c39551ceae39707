/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Where a translated packet goes: to a local endpoint, or to the host itself. */
#ifndef EBPNET_FORWARD_H
#define EBPNET_FORWARD_H

#include "bridge.h"
#include "detour.h"
#include "fragment.h"
#include "icmp.h"
#include "loopback.h"
#include "masquerade.h"
#include "publish.h"

/* lo has this number in every network namespace. */
#define LOOPBACK_IFINDEX 1

static __always_inline int forward_to_host(struct __sk_buff *skb)
{
	detour_unmark(skb);
	return bpf_redirect(gateway_ifindex, BPF_F_INGRESS);
}

/* Passes a packet to a socket of the host that talks to one of a flow of the
 * host itself addresses: by lo, or by the device @ifindex if the address is
 * link-local. */
static __always_inline int
forward_to_loopback(struct __sk_buff *skb, __u32 ifindex)
{
	struct mac macs[2] = {}; /* lo's */

	if (!ifindex || !loopback_find_mac(ifindex, &macs[0]))
		ifindex = LOOPBACK_IFINDEX;
	if (bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), 0))
		return verdict_drop(skb, REASON_KERNEL_ERROR);
	return bpf_redirect(ifindex, BPF_F_INGRESS);
}

/*
 * Replaces the route of a packet on lo that the host gave it, because on 6.1
 * the endpoint's namespace would use that route too. Any other route does, also
 * one that leads nowhere.
 */
static __noinline enum reason forward_forget_route(struct __sk_buff *skb)
{
	struct bpf_tunnel_key nowhere = {};

	return bpf_skb_set_tunnel_key(skb, &nowhere, sizeof(nowhere), 0) ?
		       REASON_KERNEL_ERROR :
		       REASON_NONE;
}

/* Delivers to the endpoint of @network that has the destination address, with
 * the MAC of the gateway. */
__verified_once int
forward_to_endpoint(struct __sk_buff *skb, struct packet *pkt, __u32 network)
{
	const struct station *station;
	struct address dst;
	enum reason reason;

	if (!pkt)
		return verdict_drop(skb, REASON_KERNEL_ERROR);
	dst = pkt->dst; /* before 6.2 a key may not be in the memory of a caller
			 */
	station = neighbor_lookup(&dst);

	if (!station || station->network != network ||
	    station->kind != STATION_LOCAL)
		return verdict_drop(skb, REASON_UNKNOWN_DESTINATION);
	reason =
		deliver_veth_readdress(skb, pkt, station, config_gateway_mac());
	if (reason)
		return verdict_drop(skb, reason);
	return deliver_peer(skb, station);
}

/*
 * Delivers a packet @from the outside or from lo to its endpoint. VERDICT_PASS
 * if it is for the host; it may then be translated back to the addresses that
 * the host uses.
 */
__verified_once int
forward_in(struct __sk_buff *skb, struct packet *pkt, __u32 from)
{
	struct scratch *scratch = scratch_get();
	const struct flow_key *to;
	enum flow_side side;
	enum reason reason;
	struct flow *flow;
	__u32 slot, device = 0;
	int refused;

	if (!pkt || !scratch)
		return VERDICT_PASS;
	/* The host answers echo requests to its own addresses. With identifier
	 * 0 the key of a request would be that of a reply. */
	if (pkt->echo == ECHO_REQUEST &&
	    (from == NETWORK_LOOPBACK || !pkt->sport))
		return VERDICT_PASS;
	flow_key_of(&scratch->key, pkt, from);
	flow = flow_find_to(scratch, &scratch->key, &side, &slot);
	if (!flow) {
		if (from == NETWORK_LOOPBACK && !address_is_ipv4(&pkt->src) &&
		    address_is_link_local(&pkt->src)) {
			device = loopback_device(skb);
			if (!device)
				return VERDICT_PASS;
		}
		refused = publish_open(skb, pkt, &scratch->key);
		if (refused == PUBLISH_NOT_OURS)
			return VERDICT_PASS;
		if (refused)
			return verdict_drop(skb, refused);
		flow = flow_find_to(scratch, &scratch->key, &side, &slot);
		if (!flow)
			return verdict_drop(skb, REASON_FLOW_TABLE_FULL);
		if (device)
			flow->uplink = device;
	}
	to = &scratch->to;
	if (to->network == NETWORK_OUTSIDE) { /* a flow of the host itself */
		reason = REASON_NONE;
	} else {
		reason = policy_check_outside(to->network);
		if (!reason)
			reason = from == NETWORK_LOOPBACK ?
					 forward_forget_route(skb) :
					 route_decrement_ttl(skb, pkt);
	}
	if (reason)
		return verdict_drop(skb, reason);
	if (pkt->fragment == FRAGMENT_FIRST)
		fragment_remember(pkt, from, FRAGMENT_IN | skb->ifindex);
	flow_update(skb, flow, slot, pkt, side);
	reason = nat_translate(skb, pkt, to);
	if (reason)
		return verdict_drop(skb, reason);
	if (to->network == NETWORK_OUTSIDE)
		return VERDICT_PASS;
	return forward_to_endpoint(skb, pkt, to->network);
}

/* Delivers an ICMP error from outside or lo to the endpoint whose flow it is
 * about; VERDICT_PASS if it is about no such flow. */
__verified_once int
forward_error_in(struct __sk_buff *skb, struct packet *pkt, __u32 from)
{
	enum reason reason;
	__u32 network = 0;

	if (!pkt)
		return verdict_drop(skb, REASON_KERNEL_ERROR);
	if (from == NETWORK_OUTSIDE && publish_is_spoofed(skb, &pkt->src))
		return VERDICT_PASS; /* the host handles it */
	reason = icmp_translate(skb, pkt, from, &network);
	if (reason == REASON_UNKNOWN_FLOW || reason == REASON_MALFORMED)
		return VERDICT_PASS;
	if (!reason &&
	    network == NETWORK_OUTSIDE) /* a flow of the host itself */
		return VERDICT_PASS;
	if (!reason)
		reason = policy_check_outside(network);
	if (!reason)
		reason = from == NETWORK_LOOPBACK ?
				 forward_forget_route(skb) :
				 route_decrement_ttl(skb, pkt);
	if (reason)
		return verdict_drop(skb, reason);
	return forward_to_endpoint(skb, pkt, network);
}

#endif
