/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Adopts the learned entries of an older version at load. */
#ifndef EBPNET_LEARN_START_H
#define EBPNET_LEARN_START_H

#include "learn.h"

/* A version without a queue has written entries without records, and has
 * counted places in rounds. */
static long learn_start_find(void *map, const void *key,
			     const struct learned *learned, __u32 *found)
{
	*found += !learned->number;
	return 0;
}

static long learn_start_uncount(void *map, struct learned_place *place,
				struct learned_count *count, void *context)
{
	__builtin_memset(count, 0, sizeof(*count));
	return 0;
}

static __always_inline void
learn_start_adopt(const void *key, __u32 size, struct learned *learned,
		  enum learn_what what)
{
	const struct station *station = &learned->station;
	__u32 number = learn_new_number();

	learn_count_station(station, what, true);
	if (!learned->number && learn_enqueue(key, size, number, what))
		__sync_val_compare_and_swap(&learned->number, 0, number);
}

static long learn_start_station(void *map, struct fdb_key *key,
				struct learned *learned, void *context)
{
	learn_start_adopt(key, sizeof(*key), learned, LEARN_STATIONS);
	return 0;
}

static long learn_start_neighbor(void *map, struct address *key,
				 struct learned *learned, void *context)
{
	learned->address = *key; /* older versions have not written it */
	learn_start_adopt(key, sizeof(*key), learned, LEARN_NEIGHBORS);
	return 0;
}

/* Gives every entry a record, and counts all of them again if one had none.
 * Only at load, because it looks at all entries. */
static __always_inline void learn_start(void)
{
	__u32 found = 0;

	bpf_for_each_map_elem(&learned_fdb, learn_start_find, &found, 0);
	bpf_for_each_map_elem(&learned_neigh, learn_start_find, &found, 0);
	if (!found)
		return;
	bpf_for_each_map_elem(&learned_counts, learn_start_uncount, NULL, 0);
	bpf_for_each_map_elem(&learned_fdb, learn_start_station, NULL, 0);
	bpf_for_each_map_elem(&learned_neigh, learn_start_neighbor, NULL, 0);
}

#endif
