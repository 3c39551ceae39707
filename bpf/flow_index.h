/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The index of flows: from keys to slots. */
#ifndef EBPNET_FLOW_INDEX_H
#define EBPNET_FLOW_INDEX_H

#include <linux/errno.h>

#include "config.h"
#include "maps.h"

/* Adds @key for the flow in @slot; -EEXIST if another flow has the key. The
 * result is an int, because before 6.4 the upper half of the value that an
 * update returns is undefined. */
static __always_inline int
flow_index_add(const struct flow_key *key, __u32 slot, enum flow_side side)
{
	struct flow_ref ref = { .slot = slot, .side = side };

	if (dry_run)
		return bpf_map_lookup_elem(&flow_index, key) ? -EEXIST : 0;
	return bpf_map_update_elem(&flow_index, key, &ref, BPF_NOEXIST);
}

/* Removes @key if it belongs to the flow in @slot. */
static __always_inline void
flow_index_remove(const struct flow_key *key, __u32 slot)
{
	const struct flow_ref *ref;

	if (dry_run)
		return;
	ref = bpf_map_lookup_elem(&flow_index, key);
	if (ref && ref->slot == slot)
		bpf_map_delete_elem(&flow_index, key);
}

/* The reason for a failure of flow_index_add(). If another CPU opened the flow
 * first, that flow serves as well. */
static __always_inline enum reason flow_index_reason(int err)
{
	if (!err || err == -EEXIST)
		return REASON_NONE;
	return err == -E2BIG ? REASON_FLOW_TABLE_FULL : REASON_KERNEL_ERROR;
}

#endif
