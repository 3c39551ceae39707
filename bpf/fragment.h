/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Fragments: only the first of a datagram says its ports, so these are kept
 * for those that follow. Nothing is held back or put together: a later fragment
 * that comes before the first is not known.
 */
#ifndef EBPNET_FRAGMENT_H
#define EBPNET_FRAGMENT_H

#include "config.h"
#include "maps.h"
#include "parse.h"

/* How long fragments of one datagram may be on their way: RFC 8200, 4.5 has 60
 * seconds, Linux 30. */
#define FRAGMENT_TIMEOUT (30 * SECONDS)

static __always_inline struct fragment_key
fragment_key_of(const struct packet *pkt, __u32 network)
{
	return (struct fragment_key){
		.src = pkt->src,
		.dst = pkt->dst,
		.id = pkt->fragment_id,
		.network = network,
		.protocol = pkt->protocol,
	};
}

/* Keeps the ports of a first fragment. */
static __noinline void
fragment_remember(const struct packet *pkt, __u32 network)
{
	struct fragment_key key = fragment_key_of(pkt, network);
	struct datagram ports = {
		.seen = bpf_ktime_get_coarse_ns(),
		.sport = pkt->sport,
		.dport = pkt->dport,
	};

	bpf_map_update_elem(&fragmented, &key, &ports, BPF_ANY);
}

/* Gives a later fragment the ports of its first; false if that is not known. */
static __noinline bool fragment_recall(struct packet *pkt, __u32 network)
{
	struct fragment_key key = fragment_key_of(pkt, network);
	const struct datagram *ports = bpf_map_lookup_elem(&fragmented, &key);

	if (!ports ||
	    bpf_ktime_get_coarse_ns() - ports->seen > FRAGMENT_TIMEOUT)
		return false;
	pkt->sport = ports->sport;
	pkt->dport = ports->dport;
	return true;
}

/* Whether the packet has what its flow is told by; finds it for a later
 * fragment. After parse_l4(). */
static __always_inline bool
fragment_find_ports(struct packet *pkt, __u32 network)
{
	if (pkt->fragment == FRAGMENT_LATER)
		return fragment_recall(pkt, network);
	return protocol_has_ports(pkt->protocol) || pkt->echo;
}

#endif
