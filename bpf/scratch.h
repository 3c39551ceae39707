/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Access to the scratch records, which hold data that is too large for the
 * stack. */
#ifndef EBPNET_SCRATCH_H
#define EBPNET_SCRATCH_H

#include "maps.h"

static __always_inline struct scratch *scratch_get(void)
{
	__u32 key = SCRATCH_PACKET;

	return bpf_map_lookup_elem(&scratches, &key);
}

/* The record for the programs that the agent runs. Before Linux 6.3 a packet
 * may come in while one runs, on the same CPU. */
static __always_inline struct scratch *scratch_of_command(void)
{
	__u32 key = SCRATCH_COMMAND;

	return bpf_map_lookup_elem(&scratches, &key);
}

/* An empty record for the packet at hand. It is not on the stack, because the
 * deepest chain of calls has no room for it there. */
static __always_inline struct packet *scratch_new_packet(void)
{
	struct scratch *scratch = scratch_get();

	if (!scratch)
		return NULL;
	__builtin_memset(&scratch->packet, 0, sizeof(scratch->packet));
	return &scratch->packet;
}

#endif
