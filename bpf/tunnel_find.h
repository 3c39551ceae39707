/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Finds tunnels by their ends. */
#ifndef EBPNET_TUNNEL_FIND_H
#define EBPNET_TUNNEL_FIND_H

#include "address.h"
#include "maps.h"

/* 2^64 divided by the golden ratio (Knuth's multiplicative hashing). */
enum tunnel_hash {
	TUNNEL_HASH_FACTOR = 0x9e3779b97f4a7c15,
};

/* The bucket for a tunnel's ends. The agent, which writes the table, finds the
 * same bucket: hashEnds() of datapath/bucket.go. Each word has a factor of its
 * own, so that addresses that differ in a similar way do not share a bucket. */
static __always_inline __u32 tunnel_bucket(const struct address *local,
					   const struct address *remote)
{
	__u64 hash = 0, factor = TUNNEL_HASH_FACTOR;

	for (int i = 0; i < 4; i++) {
		hash += local->word[i] * factor;
		factor *= TUNNEL_HASH_FACTOR;
		hash += remote->word[i] * factor;
		factor *= TUNNEL_HASH_FACTOR;
	}
	return hash >> (64 - TUNNEL_BUCKET_BITS);
}

/* Finds the id of the tunnel with these ends. False if there is none. */
static __always_inline bool tunnel_find(const struct address *local,
					const struct address *remote, __u32 *id)
{
	__u32 key = tunnel_bucket(local, remote);
	const struct tunnel_bucket *bucket =
		bpf_map_lookup_elem(&tunnel_buckets, &key);
	__u8 used;

	if (!bucket)
		return false;
	used = bucket->used;
	if (!used)
		return false;
	for (int i = 0; i < BUCKET_SLOTS; i++) {
		const struct tunnel_slot *slot = &bucket->slot[i];

		/* Read the id before the ends: if the slot changes after that,
		 * the ends do not match. */
		*id = *(volatile const __u32 *)&slot->id;
		if (used & 1 << i &&
		    address_equal(&slot->ends.remote, remote) &&
		    address_equal(&slot->ends.local, local))
			return true;
	}
	return false;
}

/* Whether all Ethernet in GRE to the host's address @local belongs to ebpnet. */
static __always_inline bool tunnel_claims(const struct address *local)
{
	const struct address none = {};
	__u32 id;

	return tunnel_find(local, &none, &id);
}

#endif
