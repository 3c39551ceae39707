/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Every struct and enum that the programs share with each other and with Go.
 * bpf2go makes the Go types from these. Addresses, ports and GRE keys are in
 * network order; padding is explicit and zero, as it is part of map keys.
 */
#ifndef EBPNET_TYPES_H
#define EBPNET_TYPES_H

#include <linux/bpf.h>
#include <linux/types.h>

/* Capacities of the tables; Go reads them off the maps. */
enum {
	MAX_NETWORKS = 1024,
	MAX_LOCAL_ENDPOINTS = 16384,
	MAX_STATIONS = 131072,
	MAX_NEIGHBORS = 2 * MAX_STATIONS,
	MAX_LINKS = 131072,
	MAX_TUNNELS = 1024,
	MAX_UPLINKS = 64,
	MAX_FLOWS = 262144, /* a power of two */
};

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
	REASON_COUNT,
};

/* Room for reasons to come, so that they do not change the shape of a map. */
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

/* Seen from the endpoint, network or tunnel: tx is what it sent. */
struct traffic {
	struct counter tx;
	struct counter rx;
};
_Static_assert(sizeof(struct traffic) == 32, "struct traffic");

/* Who may send from a device: the value of `devices`, keyed by ifindex. */
struct device {
	__u32 network;
	__u32 endpoint;
	struct address ipv4; /* zero: none */
	struct address ipv6; /* zero: none */
	struct mac mac;
	__u8 pad[2];
};
_Static_assert(sizeof(struct device) == 48, "struct device");

enum station_kind {
	STATION_LOCAL, /* behind the veth `ifindex` */
	STATION_REMOTE, /* behind the tunnel `tunnel` */
	STATION_GATEWAY, /* the host itself */
};

/* Where packets for a MAC or an address go. */
struct station {
	__u32 network;
	__u32 endpoint;
	__u32 ifindex;
	__u32 tunnel;
	enum station_kind kind;
	struct mac mac;
	__u8 pad[2];
};
_Static_assert(sizeof(struct station) == 28, "struct station");

struct fdb_key {
	__u32 network;
	struct mac mac;
	__u8 pad[2];
};
_Static_assert(sizeof(struct fdb_key) == 12, "struct fdb_key");

enum network_flag {
	NETWORK_ICC = 1,
	NETWORK_MASQUERADE = 2,
	NETWORK_INTERNAL = 4,
};

struct network {
	enum network_flag flags;
	__be32 key; /* GRE key; only networks with one have remote stations */
	__u32 members; /* how many entries `members` holds for it */
	__u32 pad;
};
_Static_assert(sizeof(struct network) == 16, "struct network");

struct member_key {
	__u32 network;
	__u32 index;
};
_Static_assert(sizeof(struct member_key) == 8, "struct member_key");

struct link_key {
	__u32 client;
	__u32 server;
	__be16 port;
	__u8 protocol;
	__u8 pad;
};
_Static_assert(sizeof(struct link_key) == 12, "struct link_key");

/* The two ends of a tunnel. A zero `remote` marks `local` as an address at
 * which all Ethernet in GRE belongs to ebpnet. */
struct tunnel {
	struct address local;
	struct address remote;
};
_Static_assert(sizeof(struct tunnel) == 32, "struct tunnel");

struct uplink {
	__u32 ifindex;
	__u32 pad[3];
	struct address ipv4; /* zero: none */
	struct address ipv6; /* zero: none */
};
_Static_assert(sizeof(struct uplink) == 48, "struct uplink");

/*
 * What a packet says of its flow, where it comes in. `network` is that of the
 * endpoint that sends it, or NETWORK_OUTSIDE. For an ICMP
 * echo the identifier stands for the port of the one who asks.
 */
enum {
	NETWORK_OUTSIDE = 0,
};

struct flow_key {
	struct address src;
	struct address dst;
	__be16 sport;
	__be16 dport;
	__u32 network;
	__u8 protocol;
	__u8 pad[3];
};
_Static_assert(sizeof(struct flow_key) == 44, "struct flow_key");

enum flow_flag {
	FLOW_ANSWERED = 1,
	FLOW_FIN = 2,
	FLOW_RST = 4,
};

/* How far a place in `flows` is. A dead one is left alone for a round of the
 * sweep, for programs that have just found it. */
enum flow_state {
	FLOW_FREE,
	FLOW_CLAIMED, /* by a program that is about to fill it */
	FLOW_LIVE,
	FLOW_DEAD,
};

/* A connection: its packets as they look where they come in, from the side
 * that opened it and from the side that answers. */
struct flow {
	struct flow_key opener;
	struct flow_key answer;
	__u64 opened; /* bpf_ktime_get_coarse_ns() */
	__u64 seen; /* the same clock, a second's precision */
	enum flow_flag flags;
	enum flow_state state;
};
_Static_assert(sizeof(struct flow) == 112, "struct flow");

enum flow_side {
	FLOW_OPENER,
	FLOW_ANSWER,
};

/* Which flow a packet is of, and of which side. */
struct flow_ref {
	__u32 slot; /* index into `flows` */
	enum flow_side side;
};
_Static_assert(sizeof(struct flow_ref) == 8, "struct flow_ref");

/* Goes round `flows` and ends those that have been idle for too long. */
struct sweeper {
	struct bpf_timer timer;
	__u32 hand; /* the next slot to look at */
	__u32 pad;
};
_Static_assert(sizeof(struct sweeper) == 24, "struct sweeper");

#endif
