// clang-format off
//go:build ignore
// clang-format on

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Packets from an uplink before there is a socket buffer: the stages of
 * from_uplink() that drop, and those that take small frames to endpoints. All
 * other frames pass unchanged and uncounted to from_uplink().
 */
#include <stdbool.h>
#include <stddef.h>

#include <linux/bpf.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define CTX_XDP

#include "config.h"
#include "types.h"
#include "maps.h"
#include "ctx.h"
#include "verdict.h"
#include "address.h"
#include "parse.h"
#include "guard.h"
#include "guard_overlay.h"
#include "learn.h"
#include "policy.h"
#include "route.h"
#include "ecn.h"
#include "ctx_sum.h"
#include "gre.h"
#include "nat.h"
#include "publish.h"
#include "deliver_veth.h"

/* The largest frame that XDP delivers to an endpoint. Larger frames are mostly
 * of streams. The kernel makes superframes of these before TC, so from_uplink()
 * handles dozens of them at once. */
#define LARGEST_TAKEN 256
_Static_assert(LARGEST_TAKEN <= MAX_IN_PLACE, "LARGEST_TAKEN");

/* Whether XDP may deliver the frame to an endpoint. Generic XDP may not: it
 * runs too late to save time, and cannot see whether the frame is a superframe.
 */
static __always_inline bool
may_take(const ctx_t *ctx, const struct uplink *uplink)
{
	__u32 length = ctx_length(ctx);

	return uplink->native && length <= LARGEST_TAKEN &&
	       ctx_data(ctx) + length <= ctx_end(ctx);
}

static __always_inline bool takes(const struct station *station, __u32 network)
{
	return station && station->network == network &&
	       station->kind == STATION_LOCAL && station->napi;
}

/*
 * Whether a packet of TCP or UDP has the right checksum. A packet from another
 * namespace of this machine may have an incomplete one. XDP has no way to tell
 * the endpoint so; such a checksum is wrong here.
 */
__verified_once int is_summed(ctx_t *ctx, const struct packet *pkt)
{
	__sum16 check;
	__u32 length;
	__s64 sum;

	if (!pkt)
		return false;
	length = pkt->length - (pkt->l4 - pkt->l3);
	if (pkt->fragment || length > LARGEST_TAKEN)
		return false;
	if (pkt->protocol == IPPROTO_UDP && address_is_ipv4(&pkt->dst)) {
		if (ctx_load(ctx, pkt->l4 + offsetof(struct udphdr, check),
			     &check, sizeof(check)))
			return false;
		if (!check)
			return true;
	} else if (pkt->protocol != IPPROTO_TCP &&
		   pkt->protocol != IPPROTO_UDP) {
		return false;
	}
	if (!ctx_sum_checksum(ctx, pkt->l4, length, &check))
		return false;
	sum = csum_pseudo(&pkt->src, &pkt->dst,
			  bpf_htonl(length + pkt->protocol));
	return !csum_fold((__u16)~csum_fold(sum) + (__u16)~check);
}

/* Handles a frame out of a tunnel. @take: may_take(). */
__verified_once int out_of_tunnel(ctx_t *ctx, struct packet *pkt,
				  const struct gre_origin *origin, bool take)
{
	const struct station *station;
	const struct network *network;
	__u32 endpoint = 0, id;
	enum reason reason;

	if (!pkt || !origin)
		return VERDICT_PASS;
	id = origin->network; /* before 6.2 a key may not be in the memory of a
			       * caller */
	network = bpf_map_lookup_elem(&networks, &id);
	if (!network || parse_l3(ctx, pkt, origin->inner))
		return VERDICT_PASS;
	reason = guard_overlay(ctx, pkt, origin, network, &endpoint);
	if (reason == REASON_SPOOFED_OVERLAY) {
		count_rx(&tunnel_stats, origin->tunnel, ctx);
		return verdict_drop(ctx, reason);
	}
	if (reason || !take || pkt->ethertype == bpf_htons(ETH_P_ARP) ||
	    mac_is_multicast(&pkt->dst_mac))
		return VERDICT_PASS;
	station = fdb_lookup_static(origin->network, &pkt->dst_mac);
	if (!takes(station, origin->network) || parse_l4(ctx, pkt) ||
	    !is_summed(ctx, pkt))
		return VERDICT_PASS;

	count_rx(&tunnel_stats, origin->tunnel, ctx);
	reason = ecn_decapsulate(ctx, pkt, origin->tos);
	if (!reason)
		reason = policy_check(ctx, pkt, origin->network, network,
				      endpoint, station->endpoint);
	if (!reason && bpf_xdp_adjust_head(ctx, origin->inner))
		reason = REASON_KERNEL_ERROR;
	if (reason)
		return verdict_drop(ctx, reason);
	return deliver_veth(ctx, station);
}

/* Handles a packet of GRE. */
static __always_inline int
from_gre(ctx_t *ctx, struct packet *pkt, const struct uplink *uplink)
{
	struct gre_origin origin = {};
	enum reason reason = gre_identify(ctx, pkt, &origin);

	/* Generic XDP may see a superframe, which has no checksum of the whole.
	 */
	if (reason == REASON_BAD_GRE_CHECKSUM && !uplink->native)
		return VERDICT_PASS;
	if (reason)
		return verdict_drop(ctx, reason);
	if (!origin.tunnel)
		return VERDICT_PASS;
	return out_of_tunnel(ctx, pkt, &origin, may_take(ctx, uplink));
}

/* Whether the first packet of a flow, with scratch->key, is for a published
 * port that its source may not reach. The cheap checks come first. */
__verified_once int is_refused(ctx_t *ctx, const struct packet *pkt)
{
	struct scratch *scratch = scratch_get();
	const struct network *network;
	const struct flow_key *key;
	const struct port *port;
	__u32 id;

	if (!pkt || !scratch)
		return false;
	key = &scratch->key;
	port = publish_lookup(key);
	if (!port || publish_allows(port, &key->src) || !flow_may_open(pkt))
		return false;
	port = publish_find(ctx, key);
	if (!port)
		return false;
	id = port->network;
	network = bpf_map_lookup_elem(&networks, &id);
	return network && publish_check(ctx, key, port, network) ==
				  REASON_SOURCE_NOT_ALLOWED;
}

/* Delivers a packet of @flow to the endpoint on its other side. */
__verified_once int into_flow(ctx_t *ctx, struct packet *pkt, struct flow *flow,
			      __u32 slot, enum flow_side side)
{
	struct scratch *scratch = scratch_get();
	const struct station *station;
	const struct flow_key *to;
	struct address endpoint;
	enum reason reason;

	if (!pkt || !flow || !scratch)
		return VERDICT_PASS;
	to = &scratch->to;
	if (to->network == NETWORK_OUTSIDE ||
	    policy_check_outside(to->network) || pkt->ttl <= 1)
		return VERDICT_PASS;
	endpoint = to->src; /* before 6.2 a key may not be in the memory of a
			     * caller */
	station = bpf_map_lookup_elem(&neighbors, &endpoint);
	if (!takes(station, to->network) || !is_summed(ctx, pkt))
		return VERDICT_PASS;

	flow_update(ctx, flow, slot, pkt, side);
	reason = route_decrement_ttl(ctx, pkt);
	if (!reason)
		reason = nat_translate(ctx, pkt, to);
	if (!reason)
		reason = deliver_veth_readdress(ctx, pkt, station,
						config_gateway_mac());
	if (reason)
		return verdict_drop(ctx, reason);
	return deliver_veth(ctx, station);
}

/* Handles a packet of TCP or UDP. Only TC opens flows with the outside. */
static __always_inline int
from_outside(ctx_t *ctx, struct packet *pkt, const struct uplink *uplink)
{
	bool published = search_is_published(pkt->protocol, pkt->dport);
	struct scratch *scratch = scratch_get();
	enum flow_side side;
	struct flow *flow;
	__u32 slot;

	if (pkt->fragment || !scratch ||
	    (!published && pkt->protocol == IPPROTO_TCP))
		return VERDICT_PASS;
	flow_key_of(&scratch->key, pkt, NETWORK_OUTSIDE);
	flow = flow_find_to(scratch, &scratch->key, &side, &slot);
	if (flow)
		return pkt->protocol == IPPROTO_UDP && may_take(ctx, uplink) ?
			       into_flow(ctx, pkt, flow, slot, side) :
			       VERDICT_PASS;
	if (published && is_refused(ctx, pkt))
		return verdict_drop(ctx, REASON_SOURCE_NOT_ALLOWED);
	return VERDICT_PASS;
}

/* Drops a frame that parse_l3() finds malformed, as the kernel would. Two kinds
 * of frames pass: IPv6 with a mapped IPv4 address, which the host may
 * translate, and superframes, which generic XDP may see and which may tell no
 * length. */
static __always_inline int
malformed(ctx_t *ctx, const struct packet *pkt, const struct uplink *uplink)
{
	if (!uplink->native || (pkt->ethertype == bpf_htons(ETH_P_IPV6) &&
				address_is_ipv4(&pkt->dst)))
		return VERDICT_PASS;
	return verdict_drop(ctx, REASON_MALFORMED);
}

SEC("xdp.frags")
int xdp_uplink(struct xdp_md *ctx)
{
	__u32 ifindex = ctx_ifindex(ctx);
	const struct uplink *uplink = bpf_map_lookup_elem(&uplinks, &ifindex);
	struct packet *pkt;
	enum reason reason;

	if (!uplink)
		return VERDICT_PASS;
	pkt = scratch_new_packet();
	if (!pkt)
		return VERDICT_PASS;
	reason = parse_l3(ctx, pkt, 0);
	if (!mac_equal(&pkt->dst_mac, &uplink->mac) ||
	    (pkt->ethertype != bpf_htons(ETH_P_IP) &&
	     pkt->ethertype != bpf_htons(ETH_P_IPV6)))
		return VERDICT_PASS;
	if (reason)
		return malformed(ctx, pkt, uplink);
	/* from_uplink() and the host check the headers after the IP header. */
	if (parse_l4(ctx, pkt))
		return VERDICT_PASS;
	switch (pkt->protocol) {
	case IPPROTO_GRE:
		return from_gre(ctx, pkt, uplink);
	case IPPROTO_TCP:
	case IPPROTO_UDP:
		return from_outside(ctx, pkt, uplink);
	}
	return VERDICT_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
