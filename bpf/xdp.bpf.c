// clang-format off
//go:build ignore
// clang-format on

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Packets from an uplink before there is a socket buffer. The stages are those
 * of from_uplink(). XDP only drops frames, and delivers small ones to
 * endpoints. All others pass to from_uplink(), unchanged and uncounted.
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
#include "ctx_sum.h"
#include "decision.h"
#include "deliver_veth.h"
#include "ecn.h"
#include "fdb.h"
#include "gre.h"
#include "guard_overlay.h"
#include "nat.h"
#include "parse.h"
#include "policy.h"
#include "publish.h"
#include "route.h"
#include "uplink_find.h"
#include "verdict.h"

/* The largest frame that XDP delivers to an endpoint. Larger frames are mostly
 * of streams. The kernel makes superframes of these before TC, so from_uplink()
 * handles dozens of them at once. */
#define LARGEST_TAKEN 256
_Static_assert(LARGEST_TAKEN <= MAX_IN_PLACE, "LARGEST_TAKEN");

/* Whether XDP may deliver the frame to an endpoint. Generic XDP may not: it
 * runs too late to save time, and cannot see whether the frame is a superframe.
 */
static __always_inline bool
may_take(const ctx_t *ctx, const struct receiver *receiver)
{
	__u32 length = ctx_length(ctx);

	return receiver->native && length <= LARGEST_TAKEN &&
	       ctx_data(ctx) + length <= ctx_end(ctx);
}

/* Whether XDP can deliver frames of the network to @station. */
static __always_inline bool
station_takes(const struct station *station, __u32 network)
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

/* Decides about a frame out of a tunnel. @take: may_take(). A frame that passes
 * is counted by from_uplink(). */
__verified_once int decide_tunnel(ctx_t *ctx, bool take)
{
	struct scratch *scratch = scratch_get();
	const struct station *station;
	const struct network *network;
	struct tunnel_origin *origin;
	__u32 endpoint = 0, id;
	struct packet *pkt;
	enum reason reason;

	if (!scratch)
		return ACTION_PASS;
	pkt = &scratch->packet;
	origin = &scratch->origin;
	id = origin->network;
	network = bpf_map_lookup_elem(&networks, &id);
	if (!network || parse_l3(ctx, pkt, origin->inner))
		return ACTION_PASS;
	reason = guard_overlay(ctx, pkt, origin, network, &endpoint);
	if (reason == REASON_SPOOFED_OVERLAY)
		return decision_drop(scratch, reason);
	if (reason || !take || pkt->ethertype == bpf_htons(ETH_P_ARP) ||
	    mac_is_multicast(&pkt->dst_mac))
		return ACTION_PASS;
	station = fdb_lookup_static(id, &pkt->dst_mac);
	if (!station_takes(station, id) || parse_l4(ctx, pkt) ||
	    !is_summed(ctx, pkt))
		return ACTION_PASS;
	reason = ecn_check(pkt, origin->tos);
	if (!reason)
		reason = policy_check(ctx, pkt, id, network, endpoint,
				      station->endpoint);
	if (reason)
		return decision_drop(scratch, reason);
	scratch->decision.changes = CHANGE_OUTER;
	return decision_deliver(scratch, station);
}

/* Decides about a packet of GRE. */
static __always_inline enum action
decide_gre(ctx_t *ctx, struct scratch *scratch, const struct receiver *receiver)
{
	struct tunnel_origin *origin = &scratch->origin;
	enum reason reason = gre_identify(ctx, &scratch->packet, origin);

	if (reason)
		origin->tunnel = 0; /* not counted: its sender is not known */
	/* Generic XDP may see a superframe, which has no checksum of the whole.
	 */
	if (reason == REASON_BAD_GRE_CHECKSUM && !receiver->native)
		return ACTION_PASS;
	if (reason)
		return decision_drop(scratch, reason);
	if (!origin->tunnel)
		return ACTION_PASS;
	return decide_tunnel(ctx, may_take(ctx, receiver));
}

/* Decides about a packet of @flow, for the endpoint on its other side. */
__verified_once int
decide_flow(ctx_t *ctx, struct flow *flow, __u32 slot, enum flow_side side)
{
	struct scratch *scratch = scratch_get();
	const struct station *station;
	const struct flow_key *to;
	struct packet *pkt;

	if (!flow || !scratch)
		return ACTION_PASS;
	pkt = &scratch->packet;
	to = &scratch->to;
	if (to->network == NETWORK_OUTSIDE ||
	    policy_check_outside(to->network) || pkt->ttl <= 1)
		return ACTION_PASS;
	station = bpf_map_lookup_elem(&neighbors, &to->src);
	if (!station_takes(station, to->network) || !is_summed(ctx, pkt))
		return ACTION_PASS;
	flow_update(ctx, flow, slot, pkt, side);
	decision_readdress(scratch, station);
	scratch->decision.changes |=
		CHANGE_SENDER | CHANGE_HOP | CHANGE_ADDRESSES;
	return decision_deliver(scratch, station);
}

/* Decides about a packet of TCP or UDP. Only TC opens flows with the outside. */
static __always_inline enum action
decide_packet(ctx_t *ctx, struct scratch *scratch,
	      const struct receiver *receiver)
{
	struct packet *pkt = &scratch->packet;
	bool published = search_is_published(pkt->protocol, pkt->dport);
	enum flow_side side;
	struct flow *flow;
	__u32 slot;

	if (pkt->fragment || (!published && pkt->protocol == IPPROTO_TCP))
		return ACTION_PASS;
	flow_key_of(&scratch->key, pkt, NETWORK_OUTSIDE);
	flow = flow_find_to(scratch, &scratch->key, &side, &slot);
	if (flow)
		return pkt->protocol == IPPROTO_UDP && may_take(ctx, receiver) ?
			       decide_flow(ctx, flow, slot, side) :
			       ACTION_PASS;
	if (published && is_refused(ctx, pkt))
		return decision_drop(scratch, REASON_SOURCE_NOT_ALLOWED);
	return ACTION_PASS;
}

/* Reads the packet, and drops it if parse_l3() finds it malformed, as the
 * kernel would. Two kinds of malformed frames pass: IPv6 with a mapped IPv4
 * address, which the host may translate, and superframes, which generic XDP may
 * see and which may have no length. */
static __always_inline enum action
classify(ctx_t *ctx, struct scratch *scratch, const struct receiver *receiver)
{
	struct packet *pkt = &scratch->packet;
	enum reason reason = parse_l3(ctx, pkt, 0);
	bool ipv6 = pkt->ethertype == bpf_htons(ETH_P_IPV6);

	if (!mac_equal(&pkt->dst_mac, &receiver->mac) ||
	    (pkt->ethertype != bpf_htons(ETH_P_IP) && !ipv6))
		return ACTION_PASS;
	if (reason)
		return !receiver->native ||
				       (ipv6 && address_is_ipv4(&pkt->dst)) ?
			       ACTION_PASS :
			       decision_drop(scratch, REASON_MALFORMED);
	/* from_uplink() and the host check the headers after the IP header. */
	return parse_l4(ctx, pkt) ? ACTION_PASS : ACTION_UNDECIDED;
}

static __always_inline enum action
decide(ctx_t *ctx, struct scratch *scratch, const struct receiver *receiver)
{
	switch (scratch->packet.protocol) {
	case IPPROTO_GRE:
		return decide_gre(ctx, scratch, receiver);
	case IPPROTO_TCP:
	case IPPROTO_UDP:
		return decide_packet(ctx, scratch, receiver);
	}
	return ACTION_PASS;
}

/* Makes the changes of the decision. A frame that is readdressed always comes
 * from the gateway here. */
static __always_inline enum reason
act_change(ctx_t *ctx, struct scratch *scratch)
{
	struct packet *pkt = &scratch->packet;
	__u32 changes = scratch->decision.changes;
	enum reason reason = REASON_NONE;

	if (changes & CHANGE_OUTER) {
		reason = ecn_decapsulate(ctx, pkt, scratch->origin.tos);
		if (!reason && bpf_xdp_adjust_head(ctx, scratch->origin.inner))
			reason = REASON_KERNEL_ERROR;
	}
	if (!reason && changes & CHANGE_HOP)
		reason = route_decrement_ttl(ctx, pkt);
	if (!reason && changes & CHANGE_ADDRESSES)
		reason = nat_translate(ctx, pkt, &scratch->to);
	if (!reason && changes & CHANGE_RECEIVER)
		reason = deliver_veth_readdress(ctx, pkt, scratch->decision.mac,
						config_gateway_mac());
	return reason;
}

/* Applies the decision: the act.h of XDP. */
static __always_inline int
act(ctx_t *ctx, struct scratch *scratch, enum action action)
{
	enum reason reason;

	if (dry_run)
		return action;
	if (action == ACTION_PASS)
		return verdict_pass();
	if (scratch->origin.tunnel)
		count_rx(&tunnel_stats, scratch->origin.tunnel, ctx);
	if (action != ACTION_DELIVER)
		return verdict_drop(ctx, scratch->decision.reason);
	reason = act_change(ctx, scratch);
	if (reason)
		return verdict_drop(ctx, reason);
	return deliver_veth(ctx, scratch->decision.endpoint,
			    scratch->decision.ifindex);
}

SEC("xdp.frags")
int xdp_uplink(struct xdp_md *ctx)
{
	__u32 ifindex = ctx_ifindex(ctx);
	const struct uplink *uplink = uplink_find(ifindex);
	struct receiver receiver;
	struct scratch *scratch;
	enum action action;

	if (!uplink)
		return verdict_pass();
	/* Without a copy, the verifier would check the rest once for each slot
	 * that @uplink may point to. */
	receiver = uplink->receiver;
	scratch = scratch_new();
	if (!scratch)
		return verdict_pass();
	action = classify(ctx, scratch, &receiver);
	if (!action)
		action = decide(ctx, scratch, &receiver);
	return act(ctx, scratch, action);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
