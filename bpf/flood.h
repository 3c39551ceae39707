/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Storm control: limits the copies of flooded frames from an endpoint or out of
 * a tunnel. It counts copies, not frames, because each copy costs time. ARP,
 * ND, mDNS and DHCP of an endpoint send a few frames a second, and a few dozen
 * at its start. On a network of 1,000 members the default passes 50 frames a
 * second, and 100 at once.
 */
#ifndef EBPNET_FLOOD_H
#define EBPNET_FLOOD_H

#include "config.h"
#include "limits.h"

/* A payer may send the copies of this time at once. */
#define FLOOD_BURST (2 * SECONDS)

/* The payer for frames out of a tunnel. Each network there has its own budget,
 * so a flood in one does not stop others. With more than TUNNEL_FLOODERS
 * networks, some share a budget. */
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

/* Whether the payer may flood a frame now. */
static __always_inline bool flood_is_due(struct flood_budget *budget)
{
	if (budget->due <= bpf_ktime_get_coarse_ns() + FLOOD_BURST)
		return true;
	__sync_fetch_and_add(&budget->limited, 1);
	return false;
}

/* Charges the payer for copies. */
static __always_inline void
flood_pay(struct flood_budget *budget, __u32 payer, __u32 copies)
{
	__u64 now = bpf_ktime_get_coarse_ns(), due = budget->due;

	if (due < now)
		__sync_val_compare_and_swap(&budget->due, due, now);
	__sync_fetch_and_add(&budget->due, copies * flood_interval(payer));
}

#endif
