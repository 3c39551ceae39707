/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The sweep: a timer of the kernel ends idle flows, and removes learned
 * stations that are silent for too long. */
#ifndef EBPNET_SWEEP_H
#define EBPNET_SWEEP_H

#include <linux/errno.h>

#include "flow.h"
#include "learn_age.h"
#include "learn_start.h"

/*
 * A tick of the sweep does a bounded amount of work, however large the tables
 * are: it looks at SWEEP_SLOTS flows at most, ends SWEEP_ENDS of them, and
 * looks at LEARN_TICK learned stations. Ticks follow each other so that a round
 * of all flows takes SWEEP_ROUND, but no faster than every SWEEP_SHORTEST;
 * after a tick that has ended SWEEP_ENDS flows, the next one follows in
 * SWEEP_BACKLOG.
 */
#define SWEEP_SLOTS    1024
#define SWEEP_ENDS     32
#define MILLISECONDS   (SECONDS / 1000)
#define SWEEP_ROUND    (6400 * MILLISECONDS)
#define SWEEP_LONGEST  (100 * MILLISECONDS)
#define SWEEP_SHORTEST (4 * MILLISECONDS)
#define SWEEP_BACKLOG  MILLISECONDS

#define CLOCK_MONOTONIC 1

/* The work of a tick of the sweep. */
struct sweep_work {
	__u32 cursor; /* the first slot to look at */
	__u32 ends; /* how many flows it may end */
};

static int sweep_slot(__u32 i, void *context)
{
	struct sweep_work *tick = context;
	__u32 slot = tick->cursor + i;
	struct flow *flow;
	__u64 seen, timeout;
	__u32 state;

	if (slot >= flow_slots)
		slot -= flow_slots;
	flow = flow_at(slot);
	if (!flow)
		return 0;
	state = flow->state;
	if (!flow_can_end(state))
		return 0;
	seen = flow->seen;
	timeout = flow_timeout(flow);
	/* Read the clock after `seen`, so that the difference is never
	 * negative. */
	if (bpf_ktime_get_coarse_ns() - seen < timeout)
		return 0;
	flow_end(flow, slot, state);
	return !--tick->ends;
}

static __always_inline __u64 sweep_period(void)
{
	__u64 period = SWEEP_ROUND / (flow_slots / SWEEP_SLOTS + 1);

	if (period > SWEEP_LONGEST)
		return SWEEP_LONGEST;
	return period < SWEEP_SHORTEST ? SWEEP_SHORTEST : period;
}

/* One tick; returns the time until the next one. */
static __always_inline __u64 sweep_tick(struct sweeper *sweeper)
{
	__u32 most = flow_slots < SWEEP_SLOTS ? flow_slots : SWEEP_SLOTS;
	struct sweep_work tick = { .cursor = sweeper->cursor,
				   .ends = SWEEP_ENDS };

	if (tick.cursor >= flow_slots)
		tick.cursor = 0;
	tick.cursor += bpf_loop(most, sweep_slot, &tick, 0);
	sweeper->cursor = tick.cursor >= flow_slots ? tick.cursor - flow_slots :
						      tick.cursor;
	learn_age();
	return tick.ends ? sweep_period() : SWEEP_BACKLOG;
}

static int sweep(void *map, __u32 *key, struct sweeper *sweeper)
{
	bpf_timer_start(&sweeper->timer, sweep_tick(sweeper), 0);
	return 0;
}

/* Starts the sweep, or has its timer run this version of the program. */
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
	learn_start();
	return bpf_timer_start(&sweeper->timer, sweep_period(), 0);
}

#endif
