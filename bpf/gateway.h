/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Packets that endpoints send to the gateway: for the host, or for others
 * behind it. */
#ifndef EBPNET_GATEWAY_H
#define EBPNET_GATEWAY_H

#include "forward.h"
#include "masquerade.h"

/* Whether the frame is for the gateway, which has one MAC on every network. */
static __always_inline bool
gateway_is_meant(const struct network *network, const struct packet *pkt)
{
	struct mac mac = config_gateway_mac();

	return mac_equal(&pkt->dst_mac, &mac) &&
	       (!address_is_zero(&network->gateway4) ||
		!address_is_zero(&network->gateway6));
}

/* The length that must fit a packet's route; 0 if the packet may be fragmented.
 */
static __always_inline __u32 gateway_length(const struct __sk_buff *skb,
					    const struct packet *pkt)
{
	return pkt->flags & PACKET_FRAGMENTABLE ? 0 : packet_length(skb, pkt);
}

/*
 * Checks a flow whose packets leave from another address than the host would
 * now choose. @to is the key of the side that gets them. The flow may go on
 * while the host still has its address and, if an endpoint opened it, while the
 * route from that address leads by the same @uplink. Otherwise the answers
 * would not find the flow. For a packet of the reply side, the caller has
 * looked up this route already: @uplink is 0.
 */
static __noinline enum reason
gateway_check_source(struct __sk_buff *skb, const struct packet *pkt,
		     const struct flow_key *to, __u32 uplink,
		     struct route *route)
{
	enum reason reason;

	if (!route_is_local(skb, &to->dst))
		return REASON_ADDRESS_LOST;
	if (!uplink)
		return REASON_NONE;
	reason = route_find(skb, &to->dst, &to->src, gateway_length(skb, pkt),
			    route);
	return !reason && route->ifindex != uplink ? REASON_ADDRESS_LOST :
						     reason;
}

/* Whether the destination of scratch->key is the mapped port of an endpoint. */
static __always_inline bool gateway_is_mapped(struct scratch *scratch)
{
	mapping_key(&scratch->mapping, &scratch->key);
	return bpf_map_lookup_elem(&flow_index, &scratch->mapping);
}

/* Why there is no flow although it was opened: its published port has gone, or
 * another flow has taken its place in `half_open` already. */
static __always_inline enum reason
gateway_why_not(const struct scratch *scratch)
{
	return bpf_map_lookup_elem(&flow_index, &scratch->key) ?
		       REASON_UNKNOWN_FLOW :
		       REASON_FLOW_TABLE_FULL;
}

/* Decides about a packet without a flow to @station, which is an endpoint. */
static __always_inline enum action
gateway_decide_station(struct __sk_buff *skb, struct scratch *scratch,
		       const struct device *device,
		       const struct network *network,
		       const struct station *station, bool has_ports)
{
	enum publish_result result;

	if (station->network == device->network) {
		scratch->station = *station;
		return ACTION_BRIDGE;
	}
	if (!has_ports || network->flags & NETWORK_INTERNAL)
		return decision_drop(scratch, REASON_ISOLATED);
	result = publish_open_routed(skb, scratch);
	return result == PUBLISH_NOT_OURS ?
		       decision_drop(scratch, REASON_ISOLATED) :
		       publish_action(result);
}

/* The reason why no new flow can translate the packet, or REASON_NONE. */
static __always_inline enum reason
gateway_check_translation(const struct device *device, struct scratch *scratch,
			  bool has_ports)
{
	const struct packet *pkt = &scratch->packet;

	if (pkt->fragment == FRAGMENT_LATER && !has_ports)
		return fragment_reason(pkt, device->endpoint);
	if (packet_is_icmp_error(pkt))
		return REASON_UNKNOWN_FLOW;
	return has_ports ? REASON_NONE : REASON_UNTRANSLATABLE;
}

/*
 * Decides about a packet without a flow: it goes to a station of its network or
 * to the host. If it is for a published port, a mapped port or the outside,
 * opens its flow and returns ACTION_UNDECIDED.
 */
static __always_inline enum action
gateway_open(struct __sk_buff *skb, const struct device *device,
	     const struct network *network, struct scratch *scratch,
	     bool has_ports)
{
	struct packet *pkt = &scratch->packet;
	const struct station *station =
		bpf_map_lookup_elem(&neighbors, &pkt->dst);
	const struct address *source = &pkt->src;
	struct route *route = &scratch->route;
	enum publish_result result;
	enum reason reason;

	scratch->owner = device->endpoint;
	scratch->server = 0;
	if (station && station->kind != STATION_GATEWAY)
		return gateway_decide_station(skb, scratch, device, network,
					      station, has_ports);
	if (network->flags & NETWORK_INTERNAL)
		return station && station->network == device->network ?
			       ACTION_HOST :
			       decision_drop(scratch, REASON_INTERNAL);
	if (!station) {
		if (route_is_unroutable(&pkt->dst) ||
		    route_is_unroutable(&pkt->src))
			return decision_drop(scratch, REASON_NO_ROUTE);
		reason = route_find(skb, &pkt->src, &pkt->dst,
				    gateway_length(skb, pkt), route);
		if (reason)
			return decision_refuse(scratch, reason, route->mtu);
	}

	if (!route->ifindex) { /* to the host itself */
		if (!has_ports || pkt->echo)
			return ACTION_HOST;
		result = publish_open(skb, scratch);
		if (result != PUBLISH_NOT_OURS)
			return publish_action(result);
		if (!gateway_is_mapped(scratch) ||
		    search_socket(skb, &scratch->key) != SOCKET_NONE)
			return ACTION_HOST;
		source = &pkt->dst; /* hairpin: RFC 4787 REQ-9 */
	} else {
		reason = gateway_check_translation(device, scratch, has_ports);
		if (reason)
			return decision_drop(scratch, reason);
		if (network->flags & NETWORK_MASQUERADE) {
			source = &route->source;
			if (address_is_unspecified(source))
				return decision_drop(scratch, REASON_NO_ROUTE);
		}
	}
	if (!flow_may_open(pkt))
		return decision_drop(scratch, REASON_UNKNOWN_FLOW);
	if (pkt->ttl <= 1)
		return decision_refuse(scratch, REASON_TTL_EXCEEDED, 0);
	reason = masquerade_open(skb, source);
	return reason ? decision_drop(scratch, reason) : ACTION_UNDECIDED;
}

/* Decides about an ICMP error about a packet of a known flow; ACTION_UNDECIDED
 * if it is about none. */
static __noinline enum action
gateway_decide_error(struct __sk_buff *skb, struct scratch *scratch,
		     __u32 network)
{
	const struct flow_key *to = &scratch->to;
	struct route *route = &scratch->route;
	struct packet *pkt = &scratch->packet;
	enum reason reason = icmp_find(skb, pkt, network);

	if (reason)
		return ACTION_UNDECIDED;
	scratch->decision.changes |= CHANGE_ERROR;
	if (to->network == NETWORK_LOOPBACK)
		return ACTION_LOOPBACK;
	if (to->network == NETWORK_OUTSIDE) {
		reason = route_find(skb, &to->dst, &to->src, 0, route);
		if (!reason && !route->ifindex)
			return ACTION_HAIRPIN;
		if (reason)
			return decision_drop(scratch, reason);
	}
	if (pkt->ttl <= 1)
		return decision_drop(scratch, REASON_TTL_EXCEEDED);
	scratch->decision.changes |= CHANGE_HOP;
	return to->network == NETWORK_OUTSIDE ? ACTION_SEND :
						forward_to_station(scratch);
}

/* Checks whether the packet may leave by its flow to the outside, and finds its
 * route. */
static __always_inline enum reason
gateway_check_route(struct __sk_buff *skb, const struct network *network,
		    struct scratch *scratch, __u32 uplink, enum flow_side side)
{
	const struct flow_key *to = &scratch->to;
	struct route *route = &scratch->route;
	struct packet *pkt = &scratch->packet;
	enum reason reason = REASON_NONE;

	if (!route->ifindex)
		reason =
			route_find(skb,
				   side == FLOW_ORIGINAL ? &pkt->src : &to->dst,
				   &to->src, gateway_length(skb, pkt), route);
	if (reason)
		return reason;
	if (!route->ifindex) /* only a hairpin leads to the host */
		return address_equal(&to->dst, &to->src) ? REASON_NONE :
							   REASON_NO_ROUTE;
	if (address_equal(&to->dst, &route->source) ||
	    (!(network->flags & NETWORK_MASQUERADE) &&
	     address_equal(&to->dst, &pkt->src)))
		return REASON_NONE;
	return gateway_check_source(skb, pkt, to,
				    side == FLOW_ORIGINAL ? uplink : 0, route);
}

/* Decides where the packet goes after its translation. */
static __always_inline enum action
gateway_exit(struct __sk_buff *skb, struct scratch *scratch, __u32 uplink)
{
	const struct route *route = &scratch->route;
	const struct packet *pkt = &scratch->packet;

	scratch->decision.changes |= CHANGE_ADDRESSES;
	if (scratch->to.network == NETWORK_LOOPBACK) {
		scratch->decision.ifindex = uplink;
		return ACTION_LOOPBACK;
	}
	scratch->decision.changes |= CHANGE_HOP;
	if (scratch->to.network != NETWORK_OUTSIDE)
		return forward_to_station(scratch);
	if (!route->ifindex)
		return ACTION_HAIRPIN;
	return pkt->flags & PACKET_FRAGMENTABLE && route->mtu &&
			       packet_length(skb, pkt) > route->mtu ?
		       ACTION_SEND_FRAGMENTS :
		       ACTION_SEND;
}

/* Decides about a packet by its flow, or by its destination if it has no flow.
 */
static __always_inline enum action
gateway_decide_packet(struct __sk_buff *skb, const struct device *device,
		      const struct network *network, struct scratch *scratch)
{
	struct packet *pkt = &scratch->packet;
	struct route *route = &scratch->route;
	enum reason reason = REASON_NONE;
	struct flow *flow = NULL;
	enum flow_side side;
	enum action action;
	__u32 slot, uplink;
	bool has_ports;

	route->ifindex = 0;
	has_ports = fragment_find_ports(pkt, device->network, device->endpoint);
	flow_key_of(&scratch->key, pkt, device->network);
	if (has_ports)
		flow = flow_find_to(scratch, &scratch->key, &side, &slot);
	/* Packets between endpoints of one network are not routed. */
	if (flow && address_equal(&scratch->to.src, &pkt->dst) &&
	    scratch->to.network == device->network)
		flow = NULL;
	if (!flow) {
		action = gateway_open(skb, device, network, scratch, has_ports);
		if (action)
			return action;
		flow = flow_find_opened(scratch, &side, &slot);
		if (!flow && !dry_run)
			return decision_drop(scratch, gateway_why_not(scratch));
	}
	uplink = flow ? flow->uplink : 0;

	if (network->flags & NETWORK_INTERNAL)
		return decision_drop(scratch, REASON_INTERNAL);
	if (scratch->to.network == NETWORK_OUTSIDE)
		reason = gateway_check_route(skb, network, scratch, uplink,
					     side);
	if (!reason && scratch->to.network != NETWORK_LOOPBACK && pkt->ttl <= 1)
		reason = REASON_TTL_EXCEEDED;
	if (!reason && !uplink && side == FLOW_ORIGINAL && flow && !dry_run)
		flow->uplink = route->ifindex;
	if (reason == REASON_ADDRESS_LOST && flow)
		flow_end(flow, slot, flow->state);
	if (reason)
		return decision_refuse(scratch, reason, route->mtu);

	if (pkt->fragment == FRAGMENT_FIRST)
		fragment_remember(pkt, device->network, device->endpoint);
	if (flow)
		flow_update(skb, flow, slot, pkt, side);
	return gateway_exit(skb, scratch, uplink);
}

/* Decides about a packet that @device sent to the gateway's MAC. */
__verified_once int
gateway_decide(struct __sk_buff *skb, const struct device *device,
	       const struct network *network)
{
	struct scratch *scratch = scratch_get();
	enum action action;
	enum reason reason;

	if (!scratch || !device || !network)
		return ACTION_DROP;
	reason = parse_l4(skb, &scratch->packet);
	if (reason)
		return decision_drop(scratch, reason);
	if (packet_is_icmp_error(&scratch->packet) &&
	    !(network->flags & NETWORK_INTERNAL)) {
		action = gateway_decide_error(skb, scratch, device->network);
		if (action)
			return action;
	}
	return gateway_decide_packet(skb, device, network, scratch);
}

#endif
