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
	MAX_FLOWS = 524288,
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
 * A flow in one direction, as its packets look where they come in. `network`
 * is that of the endpoint that sends them, or NETWORK_OUTSIDE. For an ICMP
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
	FLOW_OUTSIDE = 8, /* keyed as the outside answers */
};

/*
 * A link's flow is one entry, keyed as the client sends. A translated flow is
 * two that name each other in `other`: one keyed as the inside sends, which
 * holds the timer, and one keyed as the outside answers.
 */
struct flow {
	struct bpf_timer timer;
	__u64 opened; /* bpf_ktime_get_coarse_ns() */
	__u64 seen; /* the same clock, a second's precision; 0: never */
	struct flow_key other; /* protocol 0: none */
	enum flow_flag flags;
};
_Static_assert(sizeof(struct flow) == 80, "struct flow");

#endif
