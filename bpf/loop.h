/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Loops between trunks: two trunks that are joined elsewhere repeat each
 * other's floods for ever. When a frame is flooded on a network with several
 * trunks, each of them sends a probe, once a second at most. If the probe of an
 * earlier trunk (of a lower id) comes in by a later one, the later one is
 * blocked for a while: its frames are dropped and nothing is flooded to it. A
 * probe blocks only the trunk that it comes in by. So a station that forges
 * probes blocks only its own trunk.
 */
#ifndef EBPNET_LOOP_H
#define EBPNET_LOOP_H

#include "config.h"
#include "maps.h"
#include "scratch.h"

/* IEEE 802 has this type for local use. */
#define LOOP_ETHERTYPE 0x88b5

#define LOOP_INTERVAL SECONDS
#define LOOP_BLOCKED  (60 * SECONDS)

struct loop_probe {
	struct ethhdr eth;
	__be16 pad;
	__u32 endpoint; /* the trunk by which it went out */
	__u32 nonce;
};
_Static_assert(sizeof(struct loop_probe) == LOOP_PROBE, "struct loop_probe");

static __always_inline bool loop_is_blocked(const struct trunk *trunk)
{
	return trunk->blocked > bpf_ktime_get_coarse_ns();
}

static __always_inline struct trunk *loop_trunk(__u32 endpoint)
{
	return bpf_map_lookup_elem(&trunks, &endpoint);
}

/* Whether the endpoint is a trunk that is blocked. */
static __always_inline bool loop_blocks(__u32 endpoint)
{
	const struct trunk *trunk = loop_trunk(endpoint);

	return trunk && loop_is_blocked(trunk);
}

/* Sets the mark of a trunk's device to TRUNK_BLOCKED or 0. */
static __always_inline void loop_mark(__u32 ifindex, __u8 mark)
{
	struct device *device = bpf_map_lookup_elem(&devices, &ifindex);

	if (device && device->trunk && !dry_run)
		device->trunk = TRUNK | mark;
}

/* Whether a trunk that is marked as blocked still is. Clears the mark if not.
 */
static __always_inline bool
loop_still_blocked(const struct device *device, __u32 ifindex)
{
	if (loop_blocks(device->endpoint))
		return true;
	loop_mark(ifindex, 0);
	return false;
}

/* Checks a frame of the probes' type that came in by a trunk. Blocks this trunk
 * if the frame is a probe of an earlier trunk. */
static __noinline enum reason
loop_receive(struct __sk_buff *skb, const struct device *device)
{
	__u32 endpoint = device->endpoint, network = device->network;
	struct trunk *out, *in = loop_trunk(endpoint);
	struct loop_probe probe;

	if (bpf_skb_load_bytes(skb, 0, &probe, sizeof(probe)))
		return REASON_MALFORMED;
	out = loop_trunk(probe.endpoint);
	if (!in || !out || !out->nonce || out->nonce != probe.nonce ||
	    out->network != network)
		return REASON_UNKNOWN_PROTOCOL;
	if (probe.endpoint >= endpoint)
		return REASON_LOOP;
	if (dry_run)
		return REASON_LOOP;
	if (!loop_is_blocked(in))
		__sync_fetch_and_add(&in->loops, 1);
	in->other = probe.endpoint;
	in->blocked = bpf_ktime_get_coarse_ns() + LOOP_BLOCKED;
	loop_mark(skb->ifindex, TRUNK_BLOCKED);
	return REASON_LOOP;
}

/* Sends a probe out by a trunk. It overwrites the first bytes of the frame. */
static __always_inline void
loop_send(struct __sk_buff *skb, __u32 network, const struct station *member)
{
	__u32 ifindex = member->ifindex, endpoint = member->endpoint;
	struct trunk *trunk = loop_trunk(endpoint);
	struct loop_probe probe = {
		.eth.h_proto = bpf_htons(LOOP_ETHERTYPE),
		.endpoint = endpoint,
	};
	struct mac gateway = config_gateway_mac();

	if (!trunk || loop_is_blocked(trunk))
		return;
	__builtin_memset(probe.eth.h_dest, 0xff, sizeof(probe.eth.h_dest));
	__builtin_memcpy(probe.eth.h_source, &gateway,
			 sizeof(probe.eth.h_source));
	probe.nonce = bpf_get_prandom_u32() | 1;
	trunk->probed = bpf_ktime_get_coarse_ns();
	trunk->network = network;
	trunk->nonce = probe.nonce;
	if (!bpf_skb_store_bytes(skb, 0, &probe, sizeof(probe), 0))
		bpf_clone_redirect(skb, ifindex, 0);
}

#endif
