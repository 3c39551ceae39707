/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Flows: what is remembered of a connection, and for how long. Each entry
 * keyed as the inside sends holds a timer, so that flows end without any
 * process outside the kernel, and a live one is never evicted for another.
 */
#ifndef EBPNET_FLOW_H
#define EBPNET_FLOW_H

#include "config.h"
#include "maps.h"
#include "parse.h"

#define CLOCK_MONOTONIC 1

#define ENOMEM 12
#define EEXIST 17

static __always_inline struct flow_key
flow_key_of(const struct packet *pkt, __u32 network)
{
	return (struct flow_key){
		.src = pkt->src,
		.dst = pkt->dst,
		.sport = pkt->sport,
		.dport = pkt->dport,
		.network = network,
		.protocol = pkt->protocol,
	};
}

/* The key of packets that go the other way. */
static __always_inline struct flow_key
flow_key_reverse(const struct flow_key *key, __u32 network)
{
	return (struct flow_key){
		.src = key->dst,
		.dst = key->src,
		.sport = key->dport,
		.dport = key->sport,
		.network = network,
		.protocol = key->protocol,
	};
}

static __always_inline __u64 flow_timeout(__u8 protocol, __u32 flags)
{
	switch (protocol) {
	case IPPROTO_TCP:
		if ((flags & FLOW_ANSWERED) && !(flags & (FLOW_FIN | FLOW_RST)))
			return tcp_established_timeout;
		return tcp_transitory_timeout;
	case IPPROTO_UDP:
		return flags & FLOW_ANSWERED ? udp_answered_timeout :
					       udp_unanswered_timeout;
	}
	return icmp_timeout;
}

/* The timer of a flow: ends it if it was idle for too long in both
 * directions, else comes back when that may next be so. */
static int flow_expire(void *map, struct flow_key *key, struct flow *flow)
{
	struct flow_key other = flow->other;
	__u32 flags = flow->flags;
	__u64 seen = flow->seen;
	struct flow *partner;
	__u64 timeout, idle, now;

	if (other.protocol) {
		partner = bpf_map_lookup_elem(&flows, &other);
		if (partner) {
			flags |= partner->flags;
			if (partner->seen > seen)
				seen = partner->seen;
		}
	}
	timeout = flow_timeout(key->protocol, flags);
	/* Read last, so that it is never before what another CPU has seen. */
	now = bpf_ktime_get_coarse_ns();
	idle = now - seen;
	if (idle < timeout) {
		bpf_timer_start(&flow->timer, timeout - idle, 0);
		return 0;
	}
	if (other.protocol)
		bpf_map_delete_elem(&flows, &other);
	bpf_map_delete_elem(map, key);
	return 0;
}

/* Notes that a packet of the flow went by. Writes only what has changed, so
 * that the two ends of a busy flow do not fight over its cache line. */
static __always_inline void
flow_touch(struct flow *flow, const struct packet *pkt, __u32 flags)
{
	__u64 now = bpf_ktime_get_coarse_ns();

	if (pkt->tcp_flags & TCP_FIN)
		flags |= FLOW_FIN;
	if (pkt->tcp_flags & TCP_RST)
		flags |= FLOW_RST;
	/* The ports are in use anew. */
	if (pkt->tcp_flags & TCP_SYN && flow->flags & (FLOW_FIN | FLOW_RST))
		flow->flags &= FLOW_OUTSIDE;
	if (flags & ~flow->flags)
		flow->flags |= flags;
	if (now - flow->seen > SECONDS)
		flow->seen = now;
}

/* Adds one entry; -EEXIST if there is one, another error if there is no
 * room. */
static __always_inline long
flow_insert(const struct flow_key *key, const struct flow_key *other,
	    enum flow_flag flags)
{
	__u64 now = bpf_ktime_get_coarse_ns();
	struct flow flow = {
		.opened = now,
		.seen = flags & FLOW_OUTSIDE ? 0 : now,
		.flags = flags,
	};

	if (other)
		flow.other = *other;
	return bpf_map_update_elem(&flows, key, &flow, BPF_NOEXIST);
}

/* Starts the life of the entry just inserted under @key. */
static __always_inline long flow_start(const struct flow_key *key)
{
	struct flow *flow = bpf_map_lookup_elem(&flows, key);

	if (!flow || bpf_timer_init(&flow->timer, &flows, CLOCK_MONOTONIC) ||
	    bpf_timer_set_callback(&flow->timer, flow_expire))
		return -1;
	return bpf_timer_start(&flow->timer, flow_timeout(key->protocol, 0), 0);
}

/* Opens a flow without translation, or notes that a packet of it went by. */
static __always_inline enum reason
flow_track(const struct flow_key *key, const struct packet *pkt)
{
	struct flow *flow = bpf_map_lookup_elem(&flows, key);
	long err;

	if (flow) {
		flow_touch(flow, pkt, 0);
		return REASON_NONE;
	}
	err = flow_insert(key, NULL, 0);
	if (err == -EEXIST) /* another CPU was faster */
		return REASON_NONE;
	if (err)
		return REASON_FLOW_TABLE_FULL;
	if (flow_start(key)) {
		bpf_map_delete_elem(&flows, key);
		return REASON_FLOW_TABLE_FULL;
	}
	return REASON_NONE;
}

#endif
