/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Counts the learned entries of each place and of each network. */
#ifndef EBPNET_LEARN_COUNT_H
#define EBPNET_LEARN_COUNT_H

#include "maps.h"

/* The counts of a place; makes them if there are none. If endpoint and tunnel
 * are zero, the counts of the whole network. */
static __noinline struct learned_count *
learn_count(__u32 network, __u32 endpoint, __u32 tunnel)
{
	struct learned_place place = {
		.network = network,
		.endpoint = endpoint,
		.tunnel = tunnel,
	};
	struct learned_count *count =
		bpf_map_lookup_elem(&learned_counts, &place);
	struct learned_count none = {};

	if (count)
		return count;
	bpf_map_update_elem(&learned_counts, &place, &none, BPF_NOEXIST);
	return bpf_map_lookup_elem(&learned_counts, &place);
}

static __always_inline __u32 *
learn_count_of(struct learned_count *count, enum learn_what what)
{
	return what == LEARN_STATIONS ? &count->stations : &count->neighbors;
}

/* Adds an entry to a count, or subtracts it. */
static __always_inline void
learn_count_one(struct learned_count *count, enum learn_what what, bool add)
{
	if (!count)
		return;
	if (add)
		__sync_fetch_and_add(learn_count_of(count, what), 1);
	else if (*learn_count_of(count, what))
		__sync_fetch_and_sub(learn_count_of(count, what), 1);
}

/* Adds an entry of a place to the counts of the place and of its network, or
 * subtracts it from both. */
static __always_inline void
learn_count_entry(__u32 network, __u32 endpoint, __u32 tunnel,
		  enum learn_what what, bool add)
{
	learn_count_one(learn_count(network, endpoint, tunnel), what, add);
	learn_count_one(learn_count(network, 0, 0), what, add);
}

static __always_inline void learn_count_station(const struct station *station,
						enum learn_what what, bool add)
{
	learn_count_entry(station->network, station->endpoint, station->tunnel,
			  what, add);
}

#endif
