/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Lookups of stations by MAC: static entries (`fdb`), which the agent writes,
 * and learned ones (`learned_fdb`).
 */
#ifndef EBPNET_FDB_H
#define EBPNET_FDB_H

#include "loop.h"
#include "scratch.h"

/*
 * Copies the station of a learned entry that was seen within @timeout. The
 * kernel may use an entry for another key as soon as it is deleted. So callers
 * must compare the key in the entry after the copy. It comes first in the
 * entry, and the kernel writes an entry from its beginning: if the copy has
 * anything of another key, the entry has that key by then.
 */
static __always_inline const struct station *
fdb_copy_learned(struct scratch *scratch, const struct learned *learned,
		 __u64 timeout)
{
	if (!learned || !scratch ||
	    learned->seen + timeout <= bpf_ktime_get_coarse_ns())
		return NULL;
	scratch->learned = learned->station;
	barrier();
	return &scratch->learned;
}

/* The static station with the MAC. */
static __always_inline const struct station *
fdb_lookup_static(__u32 network, const struct mac *mac)
{
	struct fdb_key key = { .network = network, .mac = *mac };

	return bpf_map_lookup_elem(&fdb, &key);
}

/* The learned station with the MAC. None if it is behind a blocked trunk,
 * because then another trunk leads to it. */
static __noinline const struct station *
fdb_lookup_learned(__u32 network, const struct mac *mac)
{
	struct fdb_key key = { .network = network, .mac = *mac };
	const struct learned *learned = bpf_map_lookup_elem(&learned_fdb, &key);
	const struct station *station =
		fdb_copy_learned(scratch_get(), learned, learned_timeout);

	if (!station || learned->station.network != network ||
	    !mac_equal(&learned->station.mac, mac))
		return NULL;
	if (station->trunk && loop_blocks(station->endpoint))
		return NULL;
	return station;
}

#endif
