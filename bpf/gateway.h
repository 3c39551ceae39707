/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What endpoints send to the gateway: to the host, or by it to the outside. */
#ifndef EBPNET_GATEWAY_H
#define EBPNET_GATEWAY_H

#include "bridge.h"
#include "nat.h"

/* RFC 1122, 3.2.1.3; RFC 4291, 2.4: addresses that no router forwards. */
static __always_inline bool gateway_is_unroutable(const struct address *a)
{
	if (address_is_ipv4(a)) {
		__u32 ipv4 = bpf_ntohl(a->word[3]);

		return ipv4 >> 24 == 127 || ipv4 >> 28 >= 14 || !ipv4;
	}
	return (!(a->word[0] | a->word[1] | a->word[2]) &&
		bpf_ntohl(a->word[3]) <= 1) ||
	       bpf_ntohl(a->word[0]) >> 24 == 0xff ||
	       bpf_ntohl(a->word[0]) >> 22 == LINK_LOCAL_PREFIX >> 6;
}

static __always_inline int gateway_to_host(void)
{
	return bpf_redirect(gateway_ifindex, BPF_F_INGRESS);
}

/* Out of an uplink, masqueraded where the network is. */
static __always_inline int
gateway_to_outside(struct __sk_buff *skb, struct packet *pkt, __u32 id,
		   const struct network *network, struct route *route)
{
	const struct address *source = &pkt->src;
	enum reason reason;

	if (network->flags & NETWORK_MASQUERADE) {
		source = &route->source;
		/* Zero, or ::ffff:0.0.0.0. */
		if (!(source->word[0] | source->word[1] | source->word[3]))
			return verdict_drop(skb, REASON_NO_ROUTE);
	}
	reason = route_decrement_ttl(skb, pkt);
	if (!reason)
		reason = nat_leave(skb, pkt, id, source);
	if (reason)
		return verdict_drop(skb, reason);
	return route_send(skb, route);
}

/* Takes a packet that @device sent to the gateway's MAC. */
static __always_inline int
gateway_forward(struct __sk_buff *skb, struct packet *pkt,
		const struct device *device, const struct network *network)
{
	bool internal = network->flags & NETWORK_INTERNAL;
	const struct station *station;
	struct route route = {};
	enum reason reason;

	station = bpf_map_lookup_elem(&neighbors, &pkt->dst);
	if (station && station->network == device->network) {
		if (station->kind == STATION_GATEWAY)
			return gateway_to_host();
		/* Still from the sender: a tunnel's other end knows no
		 * gateway behind it. */
		reason = bridge_readdress(skb, pkt, station, pkt->src_mac);
		if (reason)
			return verdict_drop(skb, reason);
		return bridge_forward(skb, pkt, device->network, network,
				      device->endpoint, station);
	}
	if (station && station->kind != STATION_GATEWAY)
		return verdict_drop(skb, REASON_ISOLATED);
	if (internal)
		return verdict_drop(skb, REASON_INTERNAL);
	if (station) /* the host, as another network's gateway */
		return gateway_to_host();
	if (gateway_is_unroutable(&pkt->dst) ||
	    gateway_is_unroutable(&pkt->src))
		return verdict_drop(skb, REASON_NO_ROUTE);

	reason = route_find(skb, &pkt->src, &pkt->dst,
			    skb->gso_size ? 0 : skb->len - pkt->l3, &route);
	if (reason)
		return verdict_drop(skb, reason);
	if (!route.ifindex)
		return gateway_to_host();
	return gateway_to_outside(skb, pkt, device->network, network, &route);
}

#endif
