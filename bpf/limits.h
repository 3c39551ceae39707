/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The limits that the user has set, and the counts of drops for limits. */
#ifndef EBPNET_LIMITS_H
#define EBPNET_LIMITS_H

#include "maps.h"

/* The limits of @owner; NULL if all are the default. */
static __always_inline const struct owner_limits *limits_of(__u32 owner)
{
	return bpf_map_lookup_elem(&limits, &owner);
}

/* The counts of drops of @owner; NULL if it is no local endpoint. */
static __always_inline struct refused *limits_refusals(__u32 owner)
{
	return bpf_map_lookup_elem(&refusals, &owner);
}

#endif
