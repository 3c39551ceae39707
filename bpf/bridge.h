/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Bridging: from a MAC to a station, and from a station to its device. */
#ifndef EBPNET_BRIDGE_H
#define EBPNET_BRIDGE_H

#include <linux/if_packet.h>

#include "gre.h"
#include "maps.h"
#include "policy.h"
#include "verdict.h"

static __always_inline const struct station *
bridge_lookup(__u32 network, const struct mac *mac)
{
	struct fdb_key key = { .network = network, .mac = *mac };

	return bpf_map_lookup_elem(&fdb, &key);
}

/* Byte by byte, as copying the whole lets the compiler forget that it is
 * volatile, and take it for the zeros that it is compiled with. */
static __always_inline struct mac bridge_gateway(void)
{
	struct mac mac;

	for (int i = 0; i < ETH_ALEN; i++)
		mac.byte[i] = gateway_mac.byte[i];
	return mac;
}

/* Addresses the frame to @station, as from @from. */
static __always_inline enum reason
bridge_readdress(struct __sk_buff *skb, struct packet *pkt,
		 const struct station *station, struct mac from)
{
	struct mac macs[2] = { station->mac, from };

	pkt->dst_mac = macs[0];
	pkt->src_mac = macs[1];
	if (bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), 0))
		return REASON_KERNEL_ERROR;
	return REASON_NONE;
}

/* Hands the frame straight into the namespace of a local station. */
static __always_inline int
bridge_deliver(struct __sk_buff *skb, const struct station *station)
{
	/* The host's end of a veth takes a frame for the MAC of another
	 * endpoint to be none of its business, and says so in pkt_type. */
	if (skb->pkt_type != PACKET_HOST)
		bpf_skb_change_type(skb, PACKET_HOST);
	count_rx(&endpoint_stats, station->endpoint, skb);
	count_rx(&network_stats, station->network, skb);
	return bpf_redirect_peer(station->ifindex, 0);
}

/* Delivers by way of the veth, whose other end looks at the frame anew: slower,
 * but it does not matter what the kernel took it for before. */
static __always_inline int
bridge_deliver_anew(struct __sk_buff *skb, const struct station *station)
{
	count_rx(&endpoint_stats, station->endpoint, skb);
	count_rx(&network_stats, station->network, skb);
	return bpf_redirect(station->ifindex, 0);
}

/* Sends the frame into the tunnel behind which @station is. */
static __noinline int
bridge_tunnel(struct __sk_buff *skb, struct packet *pkt,
	      const struct station *station, const struct network *network)
{
	__u32 id = station->tunnel, length = 0;
	const struct tunnel *tunnel = bpf_map_lookup_elem(&tunnels, &id);
	struct route route = {};
	enum reason reason;

	if (!tunnel || address_is_zero(&tunnel->remote))
		return verdict_drop(skb, REASON_UNKNOWN_TUNNEL);
	if (!skb->gso_size)
		length = skb->len + sizeof(struct gre_headers);
	reason = route_find(skb, &tunnel->local, &tunnel->remote, length,
			    &route);
	if (!reason && !route.ifindex)
		reason = REASON_NO_ROUTE;
	if (!reason)
		reason = gre_encap(skb, pkt, tunnel, network->key);
	if (reason)
		return verdict_drop(skb, reason);
	count_tx(&tunnel_stats, id, skb);
	return route_send(skb, &route);
}

/* Takes a frame of endpoint @from to @station, if it may go there. */
static __always_inline int
bridge_forward(struct __sk_buff *skb, struct packet *pkt, __u32 id,
	       const struct network *network, __u32 from,
	       const struct station *station)
{
	enum reason reason =
		policy_check(skb, pkt, id, network, from, station->endpoint);

	if (reason)
		return verdict_drop(skb, reason);
	if (station->kind == STATION_REMOTE)
		return bridge_tunnel(skb, pkt, station, network);
	return bridge_deliver(skb, station);
}

struct bridge_flood {
	struct __sk_buff *skb;
	__u32 network;
	__u32 from; /* ifindex */
};

static int bridge_flood_one(__u32 index, void *context)
{
	struct bridge_flood *flood = context;
	struct member_key key = { .network = flood->network, .index = index };
	const struct station *member = bpf_map_lookup_elem(&members, &key);

	if (!member || member->ifindex == flood->from)
		return 0;
	count_rx(&endpoint_stats, member->endpoint, flood->skb);
	count_rx(&network_stats, member->network, flood->skb);
	bpf_clone_redirect(flood->skb, member->ifindex, 0);
	return 0;
}

/* Copies the frame to every other local endpoint of its network. */
static __noinline int
bridge_flood(struct __sk_buff *skb, __u32 id, const struct network *network)
{
	struct bridge_flood flood = {
		.skb = skb,
		.network = id,
		.from = skb->ifindex,
	};

	if (!(network->flags & NETWORK_ICC))
		return verdict_drop(skb, REASON_POLICY);
	bpf_loop(network->members, bridge_flood_one, &flood, 0);
	return verdict_consume();
}

#endif
