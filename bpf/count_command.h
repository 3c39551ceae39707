/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Counts that the loader adds at an upgrade. */
#ifndef EBPNET_COUNT_COMMAND_H
#define EBPNET_COUNT_COMMAND_H

#include "maps.h"

/* A table of counts: each value has only __u64. */
enum count_table {
	COUNT_DROPS,
	COUNT_ENDPOINTS,
	COUNT_TUNNELS,
	COUNT_REFUSALS,
	COUNT_FLOODS,
};

/* What to add to an entry: one word for each __u64 of its value. */
struct count_command {
	enum count_table table;
	__u32 key;
	__u64 words[4];
};

/* Atomic: on 6.1 a packet may interrupt the command. A packet on another CPU
 * has its own entry, or counts by atomic additions too. */
static __always_inline enum reason
count_command_add(void *map, const struct count_command *command, int words)
{
	__u64 *value = bpf_map_lookup_elem(map, &command->key);

	if (!value)
		return REASON_MALFORMED;
	for (int i = 0; i < words; i++)
		__sync_fetch_and_add(value + i, command->words[i]);
	return REASON_NONE;
}

static __always_inline enum reason
count_command_run(const struct count_command *command)
{
	switch (command->table) {
	case COUNT_DROPS:
		return count_command_add(&drops, command, 2);
	case COUNT_ENDPOINTS:
		return count_command_add(&endpoint_stats, command, 4);
	case COUNT_TUNNELS:
		return count_command_add(&tunnel_stats, command, 4);
	case COUNT_REFUSALS:
		return count_command_add(&refusals, command, 3);
	case COUNT_FLOODS:
		return count_command_add(&flood_budgets, command, 2);
	default:
		return REASON_MALFORMED;
	}
}

#endif
