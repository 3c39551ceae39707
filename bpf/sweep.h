/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What is done now and then, by a timer of the kernel: ending idle flows, and
 * forgetting stations that are seen no more. */
#ifndef EBPNET_SWEEP_H
#define EBPNET_SWEEP_H

#include "flow.h"
#include "learn.h"

/* The sweep goes round the flows in SWEEP_PERIOD * SWEEP_STEPS, which is 6.4
 * seconds, in steps short enough not to hold up packets. The learned stations
 * are all looked at once a round, which takes less than a millisecond while
 * there are few. */
#define SWEEP_PERIOD (SECONDS / 10)
#define SWEEP_STEPS  64

static int sweep(void *map, __u32 *key, struct sweeper *sweeper)
{
	__u32 hand = sweeper->hand, step = flow_slots / SWEEP_STEPS + 1;

	bpf_loop(step, flow_sweep_slot, &hand, 0);
	hand += step;
	if (hand >= flow_slots) { /* once round */
		hand -= flow_slots;
		learn_age();
	}
	sweeper->hand = hand;
	bpf_timer_start(&sweeper->timer, SWEEP_PERIOD, 0);
	return 0;
}

/* Starts the sweep, or goes on with it by this version of the program. */
static __always_inline long sweep_start(void)
{
	__u32 key = 0;
	struct sweeper *sweeper = bpf_map_lookup_elem(&sweepers, &key);
	long err;

	if (!sweeper)
		return -ENOENT;
	err = bpf_timer_init(&sweeper->timer, &sweepers, CLOCK_MONOTONIC);
	if (err && err != -EBUSY)
		return err;
	err = bpf_timer_set_callback(&sweeper->timer, sweep);
	if (err)
		return err;
	return bpf_timer_start(&sweeper->timer, SWEEP_PERIOD, 0);
}

#endif
