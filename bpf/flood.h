/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Storm control: how many copies of frames are flooded for an endpoint, or for
 * what comes out of a tunnel. Copies are counted and not frames, as each takes
 * its time. RFC-conformant ARP, ND, mDNS and DHCP of an endpoint is a few
 * frames a second, and a few dozen when it starts; to a network of 1,000
 * members the default lets pass 50 frames a second, and 100 at once.
 */
#ifndef EBPNET_FLOOD_H
#define EBPNET_FLOOD_H

#include "config.h"
#include "limits.h"

/* A payer may have the copies of this time made at once. */
#define FLOOD_BURST (2 * SECONDS)

/* Who pays for what comes out of a tunnel: each network there has a budget, so
 * that a flood in one keeps nothing from others. With more than TUNNEL_FLOODERS
 * networks some share one. */
static __always_inline __u32 flood_payer_tunnel(__u32 tunnel, __u32 network)
{
	return MAX_LOCAL_ENDPOINTS + tunnel * TUNNEL_FLOODERS +
	       network % TUNNEL_FLOODERS;
}

/* The time that a copy costs a payer. */
static __always_inline __u64 flood_interval(__u32 payer)
{
	bool local = payer < MAX_LOCAL_ENDPOINTS;
	const struct owner_limits *limits = limits_of(
		local ? payer :
			(payer - MAX_LOCAL_ENDPOINTS) / TUNNEL_FLOODERS +
				OWNER_TUNNELS);

	if (limits && limits->flood)
		return SECONDS / limits->flood;
	return SECONDS / (local ? FLOODS_OF_ENDPOINT : FLOODS_OF_TUNNEL);
}

/* Whether the payer may have a frame flooded now. */
static __always_inline bool flood_is_due(struct flood_budget *budget)
{
	if (budget->due <= bpf_ktime_get_coarse_ns() + FLOOD_BURST)
		return true;
	__sync_fetch_and_add(&budget->limited, 1);
	return false;
}

/* Charges the payer for copies that were made. */
static __always_inline void
flood_pay(struct flood_budget *budget, __u32 payer, __u32 copies)
{
	__u64 now = bpf_ktime_get_coarse_ns(), due = budget->due;

	if (due < now)
		__sync_val_compare_and_swap(&budget->due, due, now);
	__sync_fetch_and_add(&budget->due, copies * flood_interval(payer));
}

#endif
