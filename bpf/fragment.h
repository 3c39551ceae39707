/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Fragments: only the first fragment of a datagram has the ports, so they are
 * stored for the later ones. No fragment is held back or reassembled: a later
 * fragment that comes before the first has no flow.
 */
#ifndef EBPNET_FRAGMENT_H
#define EBPNET_FRAGMENT_H

#include "address.h"
#include "config.h"
#include "limits.h"
#include "packet.h"
#include "parse.h"

/* How long the ports of a datagram are stored: RFC 8200, 4.5 has 60 seconds,
 * Linux 30. */
enum fragment_timeout {
	FRAGMENT_SECONDS = 30,
};

#define FRAGMENT_TIMEOUT (FRAGMENT_SECONDS * SECONDS)

/* The owner whose share of `datagrams` a packet uses: an endpoint, or the
 * device of the host by which the packet comes in or leaves. */
#define FRAGMENT_IN  0x80000000
#define FRAGMENT_OUT 0xc0000000

/* Odd numbers without a pattern in their bits. In a product with one, every bit
 * has an effect on the upper bits: 2^32 divided by the golden ratio (Knuth's
 * multiplicative hashing), and a multiplier of MurmurHash3. */
#define FRAGMENT_MIX	 0x9e3779b1
#define FRAGMENT_MIX_DST 0x85ebca6b

/* The place of a datagram in its owner's share. The datagrams between two
 * addresses use up to 64 places, one after the other; on a device of the host,
 * other addresses use other places, so one sender from outside displaces few.
 * */
static __always_inline struct fragment_place
fragment_place_of(const struct packet *pkt, __u32 owner)
{
	__u32 hash = pkt->protocol, id = pkt->fragment_id;
	__u32 places = ENDPOINT_FRAGMENTS;
	const struct owner_limits *limits;

	if (!(owner & FRAGMENT_IN)) {
		limits = limits_of(owner);
		if (limits && limits->fragments)
			places = limits->fragments;
	}
	for (int i = 0; i < 4; i++)
		hash = hash * FRAGMENT_MIX ^ pkt->src.word[i] ^
		       pkt->dst.word[i] * FRAGMENT_MIX_DST;
	hash = (hash ^ hash >> 15) * FRAGMENT_MIX;
	id ^= id >> 16;
	id ^= id >> 8;
	id = (id + (hash >> 26)) % places;
	if (owner & FRAGMENT_IN)
		id += (hash >> 20) * ENDPOINT_FRAGMENTS % DEVICE_FRAGMENTS;
	return (struct fragment_place){ .owner = owner, .index = id };
}

/* Stores the ports of a first fragment. */
static __noinline void
fragment_remember(const struct packet *pkt, __u32 network, __u32 owner)
{
	struct fragment_place place = fragment_place_of(pkt, owner);
	struct datagram ports = {
		.seen = bpf_ktime_get_coarse_ns(),
		.src = pkt->src,
		.dst = pkt->dst,
		.id = pkt->fragment_id,
		.network = network,
		.protocol = pkt->protocol,
		.sport = pkt->sport,
		.dport = pkt->dport,
	};

	if (!dry_run)
		bpf_map_update_elem(&datagrams, &place, &ports, BPF_ANY);
}

/* Gives a later fragment the ports of its first; false if they are not stored.
 * Sets PACKET_DISPLACED if another datagram of the same owner has its place. */
static __noinline bool
fragment_recall(struct packet *pkt, __u32 network, __u32 owner)
{
	struct fragment_place place = fragment_place_of(pkt, owner);
	const struct datagram *ports = bpf_map_lookup_elem(&datagrams, &place);

	if (!ports ||
	    bpf_ktime_get_coarse_ns() - ports->seen > FRAGMENT_TIMEOUT)
		return false;
	if (!address_equal(&ports->src, &pkt->src) ||
	    !address_equal(&ports->dst, &pkt->dst) ||
	    ports->id != pkt->fragment_id || ports->network != network ||
	    ports->protocol != pkt->protocol) {
		pkt->flags |= PACKET_DISPLACED;
		return false;
	}
	pkt->sport = ports->sport;
	pkt->dport = ports->dport;
	return true;
}

/* The reason to drop a later fragment of @endpoint without ports. */
static __always_inline enum reason
fragment_reason(const struct packet *pkt, __u32 endpoint)
{
	struct refused *refusals;

	if (!(pkt->flags & PACKET_DISPLACED))
		return REASON_FRAGMENT;
	refusals = limits_refusals(endpoint);
	if (refusals && !dry_run)
		__sync_fetch_and_add(&refusals->fragments, 1);
	return REASON_FRAGMENT_LIMIT;
}

/* Whether the packet has the ports of its flow. Finds them for a later
 * fragment. After parse_l4(). */
static __always_inline bool
fragment_find_ports(struct packet *pkt, __u32 network, __u32 owner)
{
	if (pkt->fragment == FRAGMENT_LATER)
		return fragment_recall(pkt, network, owner);
	return packet_has_ports(pkt->protocol) || pkt->echo;
}

/* Offsets of fragments count in units of 8 bytes. */
#define FRAGMENT_UNIT 8

/* A packet that needs more fragments is not sent: each is a copy of the whole
 * packet, so it would take too long. */
#define MAX_FRAGMENTS 64

/* The MTU that every path has at least: RFC 791, 3.2. */
#define FRAGMENT_LEAST_MTU 68

/* The payload of each fragment if a fragment has at most @mtu bytes; 0 if the
 * packet may not be sent in fragments. */
static __always_inline __u32 fragment_room(const struct packet *pkt, __u32 mtu)
{
	__u32 length = pkt->length, room;

	if (!(pkt->flags & PACKET_FRAGMENTABLE) || mtu < FRAGMENT_LEAST_MTU ||
	    mtu > 0xffff)
		return 0;
	room = (mtu - sizeof(struct iphdr)) & ~(FRAGMENT_UNIT - 1);
	return length <= sizeof(struct iphdr) + room * MAX_FRAGMENTS ? room : 0;
}

#endif
