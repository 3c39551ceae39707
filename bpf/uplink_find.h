/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Finds uplinks by their ifindex. */
#ifndef EBPNET_UPLINK_FIND_H
#define EBPNET_UPLINK_FIND_H

#include "maps.h"

/* 2^32 divided by the golden ratio (Knuth's multiplicative hashing). */
enum uplink_hash {
	UPLINK_HASH_FACTOR = 0x9e3779b1,
};

/* Finds the uplink with the ifindex, or that of the default route for 0. The
 * agent, which writes the table, finds the same bucket: Tables.uplinks() of
 * datapath/bucket.go. */
static __always_inline const struct uplink *uplink_find(__u32 ifindex)
{
	__u32 key = ifindex * UPLINK_HASH_FACTOR >> (32 - UPLINK_BUCKET_BITS);
	const struct uplink_bucket *bucket =
		bpf_map_lookup_elem(&uplink_buckets, &key);

	if (!bucket)
		return NULL;
	for (int i = 0; i < BUCKET_SLOTS; i++) {
		if (bucket->used & 1 << i && bucket->slot[i].key == ifindex)
			return &bucket->slot[i].uplink;
	}
	return NULL;
}

#endif
