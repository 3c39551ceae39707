/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Packets that endpoints send to the gateway: for the host, or for others
 * behind it. */
#ifndef EBPNET_GATEWAY_H
#define EBPNET_GATEWAY_H

#include "forward.h"
#include "icmp_reply.h"
#include "packet.h"

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

/* Why there is no flow although gateway_open() did not fail: its published port
 * has gone, or another flow has taken its place in `half_open` already. */
static __always_inline enum reason
gateway_why_not(const struct scratch *scratch)
{
	return bpf_map_lookup_elem(&flow_index, &scratch->key) ?
		       REASON_UNKNOWN_FLOW :
		       REASON_FLOW_TABLE_FULL;
}

/* gateway_open() and gateway_error() return this if the caller must still
 * forward the packet. */
#define GATEWAY_GO_ON -2

/*
 * Forwards a packet without a flow to its network or to the host. If it is for
 * a published port or for the outside, opens its flow and returns
 * GATEWAY_GO_ON.
 */
static __always_inline int
gateway_open(struct __sk_buff *skb, struct packet *pkt,
	     const struct device *device, const struct network *network,
	     struct scratch *scratch, struct route *route, bool has_ports)
{
	const struct station *station =
		bpf_map_lookup_elem(&neighbors, &pkt->dst);
	const struct address *source = &pkt->src;
	enum reason reason;
	int refused;

	scratch->owner = device->endpoint;
	scratch->server = 0;
	if (station && station->kind != STATION_GATEWAY) {
		if (station->network != device->network) {
			if (!has_ports || network->flags & NETWORK_INTERNAL)
				return verdict_drop(skb, REASON_ISOLATED);
			refused = publish_open_routed(skb, pkt, &scratch->key);
			if (!refused)
				return GATEWAY_GO_ON;
			if (refused == PUBLISH_NOT_OURS)
				refused = REASON_ISOLATED;
			return verdict_drop(skb, refused);
		}
		/* Keep the sender's MAC: the other end of a tunnel takes no
		 * frame from a gateway behind it. */
		reason =
			deliver_veth_readdress(skb, pkt, station, pkt->src_mac);
		if (reason)
			return verdict_drop(skb, reason);
		return bridge_forward(skb, pkt, device, network, station);
	}
	if (network->flags & NETWORK_INTERNAL) {
		if (station && station->network == device->network)
			return forward_to_host(skb);
		return verdict_drop(skb, REASON_INTERNAL);
	}
	if (!station) {
		if (route_is_unroutable(&pkt->dst) ||
		    route_is_unroutable(&pkt->src))
			return verdict_drop(skb, REASON_NO_ROUTE);
		reason = route_find(skb, &pkt->src, &pkt->dst,
				    gateway_length(skb, pkt), route);
		if (reason)
			return icmp_refuse(skb, pkt, device, reason,
					   route->mtu);
	}

	if (!route->ifindex) { /* to the host itself */
		if (!has_ports || pkt->echo)
			return forward_to_host(skb);
		refused = publish_open(skb, pkt, &scratch->key);
		if (!refused)
			return GATEWAY_GO_ON;
		if (refused != PUBLISH_NOT_OURS)
			return verdict_drop(skb, refused);
		if (!gateway_is_mapped(scratch) ||
		    search_socket(skb, &scratch->key) != SOCKET_NONE)
			return forward_to_host(skb);
		/* Hairpin: RFC 4787 REQ-9. */
		source = &pkt->dst;
	} else if (pkt->fragment == FRAGMENT_LATER && !has_ports) {
		return verdict_drop(skb,
				    fragment_reason(pkt, device->endpoint));
	} else if (packet_is_icmp_error(pkt)) {
		return verdict_drop(skb, REASON_UNKNOWN_FLOW);
	} else if (!has_ports) {
		return verdict_drop(skb, REASON_UNTRANSLATABLE);
	} else if (network->flags & NETWORK_MASQUERADE) {
		source = &route->source;
		if (address_is_unspecified(source))
			return verdict_drop(skb, REASON_NO_ROUTE);
	}
	if (!flow_may_open(pkt))
		return verdict_drop(skb, REASON_UNKNOWN_FLOW);
	if (pkt->ttl <= 1)
		return icmp_refuse(skb, pkt, device, REASON_TTL_EXCEEDED, 0);
	reason = masquerade_open(skb, source);
	if (reason)
		return verdict_drop(skb, reason);
	return GATEWAY_GO_ON;
}

/* Forwards an ICMP error to the other side of the flow that it is about;
 * GATEWAY_GO_ON if it is about no flow. */
static __noinline int
gateway_error(struct __sk_buff *skb, struct packet *pkt, __u32 from)
{
	struct scratch *scratch = scratch_get();
	struct route *route;
	enum reason reason;
	__u32 network = 0;
	int verdict;

	if (!scratch)
		return verdict_drop(skb, REASON_KERNEL_ERROR);
	route = &scratch->route;
	reason = icmp_translate(skb, pkt, from, &network);
	if (reason == REASON_UNKNOWN_FLOW || reason == REASON_MALFORMED)
		return GATEWAY_GO_ON;
	if (!reason && network == NETWORK_LOOPBACK)
		return forward_to_loopback(skb, route->ifindex);
	if (!reason && network == NETWORK_OUTSIDE) {
		reason = route_find(skb, &pkt->src, &pkt->dst, 0, route);
		if (!reason && !route->ifindex) {
			verdict = forward_error_in(skb, pkt, NETWORK_OUTSIDE);
			return verdict == VERDICT_PASS ?
				       verdict_drop(skb, REASON_UNKNOWN_FLOW) :
				       verdict;
		}
	}
	if (!reason)
		reason = route_decrement_ttl(skb, pkt);
	if (reason)
		return verdict_drop(skb, reason);
	if (network == NETWORK_OUTSIDE)
		return route_send(skb, route);
	return forward_to_endpoint(skb, pkt, network);
}

/* Forwards a packet by its flow, or by its destination if it has no flow. */
static __noinline int
gateway_route(struct __sk_buff *skb, struct packet *pkt,
	      const struct device *device, const struct network *network)
{
	struct scratch *scratch = scratch_get();
	const struct flow_key *to;
	struct flow *flow = NULL;
	enum reason reason = REASON_NONE;
	struct route *route;
	enum flow_side side;
	bool has_ports;
	int verdict;
	__u32 slot;

	if (!scratch)
		return verdict_drop(skb, REASON_KERNEL_ERROR);
	route = &scratch->route;
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
		verdict = gateway_open(skb, pkt, device, network, scratch,
				       route, has_ports);
		if (verdict != GATEWAY_GO_ON)
			return verdict;
		flow = flow_find_to(scratch, &scratch->key, &side, &slot);
		if (!flow)
			return verdict_drop(skb, gateway_why_not(scratch));
	}

	to = &scratch->to;
	if (network->flags & NETWORK_INTERNAL)
		return verdict_drop(skb, REASON_INTERNAL);
	if (to->network == NETWORK_OUTSIDE) {
		if (!route->ifindex)
			reason = route_find(
				skb,
				side == FLOW_ORIGINAL ? &pkt->src : &to->dst,
				&to->src, gateway_length(skb, pkt), route);
		if (!reason && !route->ifindex &&
		    !address_equal(&to->dst, &to->src)) /* no hairpin */
			reason = REASON_NO_ROUTE;
		if (!reason && route->ifindex &&
		    !address_equal(&to->dst, &route->source) &&
		    (network->flags & NETWORK_MASQUERADE ||
		     !address_equal(&to->dst, &pkt->src)))
			reason = gateway_check_source(
				skb, pkt, to,
				side == FLOW_ORIGINAL ? flow->uplink : 0,
				route);
	}
	if (!reason && to->network != NETWORK_LOOPBACK && pkt->ttl <= 1)
		reason = REASON_TTL_EXCEEDED;
	if (!reason && !flow->uplink && side == FLOW_ORIGINAL)
		flow->uplink = route->ifindex;
	if (reason == REASON_ADDRESS_LOST)
		flow_end(flow, slot, flow->state);
	if (reason)
		return icmp_refuse(skb, pkt, device, reason, route->mtu);

	if (pkt->fragment == FRAGMENT_FIRST)
		fragment_remember(pkt, device->network, device->endpoint);
	flow_update(skb, flow, slot, pkt, side);
	if (to->network != NETWORK_LOOPBACK)
		reason = route_decrement_ttl(skb, pkt);
	if (!reason)
		reason = nat_translate(skb, pkt, to);
	if (reason)
		return verdict_drop(skb, reason);
	if (to->network == NETWORK_LOOPBACK)
		return forward_to_loopback(skb, flow->uplink);
	if (to->network != NETWORK_OUTSIDE)
		return forward_to_endpoint(skb, pkt, to->network);
	if (route->ifindex && pkt->flags & PACKET_FRAGMENTABLE && route->mtu &&
	    packet_length(skb, pkt) > route->mtu)
		return fragment_send_by(skb, pkt, route);
	if (route->ifindex)
		return route_send(skb, route);
	/* Hairpin: the destination is the mapped port of another endpoint. */
	verdict = forward_in(skb, pkt, NETWORK_OUTSIDE);
	return verdict == VERDICT_PASS ? verdict_drop(skb, REASON_UNSOLICITED) :
					 verdict;
}

/* Forwards a packet that @device sent to the gateway's MAC. */
static __always_inline int
gateway_forward(struct __sk_buff *skb, struct packet *pkt,
		const struct device *device, const struct network *network)
{
	enum reason reason = parse_l4(skb, pkt);
	int verdict;

	if (reason)
		return verdict_drop(skb, reason);
	if (packet_is_icmp_error(pkt) && !(network->flags & NETWORK_INTERNAL)) {
		verdict = gateway_error(skb, pkt, device->network);
		if (verdict != GATEWAY_GO_ON)
			return verdict;
	}
	return gateway_route(skb, pkt, device, network);
}

#endif
