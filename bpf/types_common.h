/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Common types: addresses, counters, and the reasons for drops. */
#ifndef EBPNET_TYPES_COMMON_H
#define EBPNET_TYPES_COMMON_H

#include <linux/bpf.h>
#include <linux/types.h>

/*
 * A function that the verifier checks once, by itself, and not again at each
 * call. It must check its pointers for NULL, and callers know nothing of its
 * result.
 */
#define __verified_once __attribute__((noinline))

/*
 * Why a packet was dropped. The names, in lower case and without the prefix,
 * are those of `stats` and of the metrics.
 */
enum reason {
	REASON_NONE,
	REASON_MALFORMED,
	REASON_UNKNOWN_PROTOCOL,
	REASON_UNKNOWN_SOURCE,
	REASON_SPOOFED_MAC,
	REASON_SPOOFED_ADDRESS,
	REASON_ROGUE_ROUTER,
	REASON_UNKNOWN_DESTINATION,
	REASON_ISOLATED,
	REASON_POLICY,
	REASON_INTERNAL,
	REASON_NOT_FROM_HOST,
	REASON_NO_ROUTE,
	REASON_NOT_UPLINK,
	REASON_TTL_EXCEEDED,
	REASON_TOO_BIG,
	REASON_FRAGMENT,
	REASON_UNTRANSLATABLE,
	REASON_PORTS_EXHAUSTED,
	REASON_FLOW_TABLE_FULL,
	REASON_UNKNOWN_TUNNEL,
	REASON_UNKNOWN_KEY,
	REASON_BAD_GRE,
	REASON_SPOOFED_OVERLAY,
	REASON_KERNEL_ERROR,
	REASON_UNKNOWN_FLOW,
	REASON_UNSOLICITED,
	REASON_SOURCE_NOT_ALLOWED,
	REASON_LOOPBACK_ONLY,
	REASON_ADDRESS_LOST,
	REASON_BAD_GRE_CHECKSUM,
	REASON_CONGESTION,
	REASON_COPY_FAILED,
	REASON_BAD_OFFLOAD,
	REASON_ROGUE_SERVER,
	REASON_FLOW_LIMIT,
	REASON_PORT_LIMIT,
	REASON_FRAGMENT_LIMIT,
	REASON_FLOOD_LIMIT,
	REASON_LOOP,
	REASON_COUNT,
};

/* Room for new reasons, so that they do not change the size of a map. */
enum {
	MAX_REASONS = 64,
};
_Static_assert((int)REASON_COUNT <= (int)MAX_REASONS, "enum reason");

/* An IPv6 address, or an IPv4 address as ::ffff:a.b.c.d. */
struct address {
	__be32 word[4];
};
_Static_assert(sizeof(struct address) == 16, "struct address");

struct mac {
	__u8 byte[6];
};
_Static_assert(sizeof(struct mac) == 6, "struct mac");

struct counter {
	__u64 packets;
	__u64 bytes;
};

/* From the view of the endpoint, network or tunnel: tx counts the packets that
 * it sent. */
struct traffic {
	struct counter tx;
	struct counter rx;
};
_Static_assert(sizeof(struct traffic) == 32, "struct traffic");

#endif
