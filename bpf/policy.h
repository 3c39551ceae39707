/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Policy inside a network. With ICC all endpoints may talk to each other.
 * Without ICC the client of a link may talk to the ports of its server, and the
 * server may reply in flows that the client opened. A flow stores the revision
 * of `links` at which its link existed. After the next revision the link is
 * looked up again, so removing a link ends its established flows too.
 */
#ifndef EBPNET_POLICY_H
#define EBPNET_POLICY_H

#include "flow.h"
#include "fragment.h"
#include "maps.h"
#include "parse.h"

/* Whether packets may go between endpoints of the network and the outside. */
static __always_inline enum reason policy_check_outside(__u32 id)
{
	const struct network *network = bpf_map_lookup_elem(&networks, &id);

	return !network || network->flags & NETWORK_INTERNAL ? REASON_INTERNAL :
							       REASON_NONE;
}

static __noinline bool
policy_has_link(__u32 client, __u32 server, __be16 port, __u8 protocol)
{
	struct link_key key = {
		.client = client,
		.server = server,
		.port = port,
		.protocol = protocol,
	};

	return bpf_map_lookup_elem(&links, &key);
}

/* The number of changes to `links`, or 0. Read it before the link is looked up:
 * if the link goes meanwhile, the flow stores an old revision and looks the
 * link up again. */
static __always_inline __u32 policy_revision(void)
{
	__u32 key = 0;
	const __u32 *revision = bpf_map_lookup_elem(&links_revision, &key);

	return revision ? *revision : 0;
}

/* Whether a packet of @side is between the endpoints that the flow was opened
 * between. */
static __always_inline bool
policy_is_between(const struct flow *flow, enum flow_side side, __u32 from,
		  __u32 to)
{
	return side == FLOW_ORIGINAL ?
		       flow->owner == from && flow->server == to :
		       flow->owner == to && flow->server == from;
}

/* Checks a packet on a network without ICC, and updates its flow. */
__verified_once enum reason
policy_links(ctx_t *ctx, struct packet *pkt, __u32 id, __u32 from, __u32 to)
{
	struct scratch *scratch = scratch_get();
	enum flow_side side = FLOW_ORIGINAL;
	__u32 slot, revision;
	enum reason reason;
	struct flow *flow;
	bool between;

	if (!pkt)
		return REASON_KERNEL_ERROR;
	if (pkt->ethertype == bpf_htons(ETH_P_ARP))
		return REASON_POLICY; /* the tables answer it */
	reason = parse_l4(ctx, pkt);
	if (reason)
		return reason;
	if (!scratch)
		return REASON_KERNEL_ERROR;
	if (pkt->protocol != IPPROTO_TCP && pkt->protocol != IPPROTO_UDP)
		return REASON_POLICY;
	if (!fragment_find_ports(pkt, id, from))
		return fragment_reason(pkt, from);

	flow = flow_find_inside(scratch, pkt, id, &side, &slot);
	revision = policy_revision();
	between = flow && policy_is_between(flow, side, from, to);
	if (between && revision && flow->revision == revision) {
		flow_update(ctx, flow, slot, pkt, side);
	} else if (policy_has_link(from, to, pkt->dport, pkt->protocol)) {
		if (!flow) {
			scratch->owner = from;
			scratch->server = to;
			reason = flow_open_inside(scratch, pkt, id);
			side = FLOW_ORIGINAL;
			flow = flow_find_inside(scratch, pkt, id, &side, &slot);
		} else if (between && side == FLOW_ORIGINAL && !dry_run) {
			flow->revision = revision;
		}
		if (flow)
			flow_update(ctx, flow, slot, pkt, side);
	} else {
		if (!flow || side != FLOW_REPLY ||
		    !policy_has_link(to, from, pkt->sport, pkt->protocol))
			return REASON_POLICY;
		if (between && !dry_run)
			flow->revision = revision;
		flow_update(ctx, flow, slot, pkt, side);
	}
	if (!reason && pkt->fragment == FRAGMENT_FIRST)
		fragment_remember(pkt, id, from);
	return reason;
}

/* Whether endpoint @from may send @pkt to endpoint @to on network @id. */
static __always_inline enum reason
policy_check(ctx_t *ctx, struct packet *pkt, __u32 id,
	     const struct network *network, __u32 from, __u32 to)
{
	if (network->flags & NETWORK_ICC)
		return REASON_NONE;
	return policy_links(ctx, pkt, id, from, to);
}

#endif
