/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Aging: the sweep removes learned entries of stations that are silent for too
 * long. */
#ifndef EBPNET_LEARN_AGE_H
#define EBPNET_LEARN_AGE_H

#include "learn.h"

/* Looks at the entry of a record, and removes an entry that has not been seen
 * for @timeout. False if the record is not needed any more. */
static __always_inline bool
learn_age_entry(void *map, const struct learned_record *record, __u64 timeout)
{
	struct learned *learned = bpf_map_lookup_elem(map, record->key);
	__u32 number;
	__u64 seen;

	if (!learned)
		return false;
	number = learn_number(learned);
	if (number == LEARN_CLAIMED)
		return true;
	if ((number ^ record->number) & LEARN_NUMBER)
		return false;
	seen = learned->seen;
	if (bpf_ktime_get_coarse_ns() < seen + timeout)
		return true;
	return !learn_remove(map, record->key, learned, record->what);
}

/* The first record that a tick has put back. When it comes again, the tick has
 * seen all records. */
struct learn_age_work {
	__u32 first;
	__u32 pad;
};

/* learn_age_entry() for a record of either kind. @lost: the entry loses its
 * record, so it is removed. */
static __noinline bool
learn_age_record(const struct learned_record *record, bool lost)
{
	if (record->what == LEARN_STATIONS)
		return learn_age_entry(&learned_fdb, record,
				       lost ? 0 : learned_timeout);
	return learn_age_entry(&learned_neigh, record,
			       lost ? 0 : neighbor_learned_timeout());
}

static int learn_age_next(__u32 i, void *context)
{
	struct learn_age_work *tick = context;
	struct learned_record record;

	if ((int)bpf_map_pop_elem(&learned_queue, &record))
		return 1;
	if (!learn_age_record(&record, false))
		return 0;
	/* The queue is full if another CPU has just put a record in. */
	if ((int)bpf_map_push_elem(&learned_queue, &record, BPF_ANY)) {
		learn_age_record(&record, true);
		return 0;
	}
	if (!tick->first)
		tick->first = record.number;
	else if (tick->first == record.number)
		return 1;
	return 0;
}

/* How many learned stations and neighbors a tick of the sweep looks at. */
#define LEARN_TICK 64

/* Removes some of the entries that are too old. */
static __always_inline void learn_age(void)
{
	struct learn_age_work tick = {};

	bpf_loop(LEARN_TICK, learn_age_next, &tick, 0);
}

#endif
