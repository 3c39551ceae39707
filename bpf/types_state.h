/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The keys and values of state other than flows: learned stations, budgets of
 * floods, loops, datagrams in fragments.
 */
#ifndef EBPNET_TYPES_STATE_H
#define EBPNET_TYPES_STATE_H

#include "types_common.h"
#include "types_tables.h"

/* Capacities of the tables. */
enum state_capacity {
	TUNNEL_FLOODERS = 64, /* networks of a tunnel with a budget each */
	MAX_FLOODERS = MAX_LOCAL_ENDPOINTS + MAX_TUNNELS * TUNNEL_FLOODERS,
	MAX_LEARNED = 65536, /* stations, and as many neighbors */
	LEARNED_PER_NETWORK = 4096, /* MACs, and as many addresses */
	LEARNED_PER_PLACE = 1024, /* behind one trunk or tunnel */
	MAX_LEARNED_PLACES =
		MAX_NETWORKS + MAX_LOCAL_ENDPOINTS + MAX_TUNNEL_NETWORKS,
	MAX_DATAGRAMS = 16384,
	ENDPOINT_FRAGMENTS = 64, /* a power of two, as the next one */
	DEVICE_FRAGMENTS = 4096,
};

/* How many copies a second are flooded by default. A trunk may flood as many as
 * a tunnel, because both have many endpoints behind them. */
enum flood_limit {
	FLOODS_OF_ENDPOINT = 50000,
	FLOODS_OF_TUNNEL = 200000,
};

/* The budget of copies for floods of an endpoint or a tunnel. */
struct flood_budget {
	__u64 due; /* bpf_ktime_get_coarse_ns() at which its copies are paid for
		    */
	__u64 limited; /* frames that were dropped for the limit */
};
_Static_assert(sizeof(struct flood_budget) == 16, "struct flood_budget");

/* Probes of a trunk, and whether it is blocked: see loop.h. Times are those of
 * bpf_ktime_get_coarse_ns(). */
struct trunk {
	__u64 probed; /* the time of its last probe */
	__u64 blocked; /* the time until which it is blocked; 0: it never was */
	__u32 network;
	__u32 nonce; /* of its last probe; 0: none */
	__u32 other; /* the trunk whose probe came in by this trunk */
	__u32 loops; /* how often it was blocked */
};
_Static_assert(sizeof(struct trunk) == 32, "struct trunk");

/* A station that has been seen behind a trunk or a tunnel. */
struct learned {
	struct address address; /* the key in `learned_neigh`, or zero */
	struct station station;
	__u32 number; /* of its record in `learned_queue`: see learn.h */
	__u64 seen; /* bpf_ktime_get_coarse_ns(), a second's precision */
};
_Static_assert(sizeof(struct learned) == 56, "struct learned");

enum learn_what {
	LEARN_STATIONS,
	LEARN_NEIGHBORS,
};

/* Points the sweep to an entry of `learned_fdb` or `learned_neigh`. */
struct learned_record {
	__u32 key[4]; /* the entry's key, then zeros */
	__u32 number; /* the entry's number */
	enum learn_what what;
};
_Static_assert(sizeof(struct learned_record) == 24, "struct learned_record");

/* A place where stations are learned: a trunk or a tunnel; or a whole network,
 * if both are zero. */
struct learned_place {
	__u32 network;
	__u32 endpoint;
	__u32 tunnel;
};
_Static_assert(sizeof(struct learned_place) == 12, "struct learned_place");

/* How many entries a place has in `learned_fdb` and `learned_neigh`. */
struct learned_count {
	__u32 stations;
	__u32 neighbors;
	__u32 pad[2];
};
_Static_assert(sizeof(struct learned_count) == 16, "struct learned_count");

/* The learned stations that `forget_learned` removes. Zero fields match all. */
struct learned_filter {
	__u32 network;
	__u32 endpoint;
	__u32 tunnel;
	__u32 pad;
	__u64 before; /* stations not seen since this time */
};
_Static_assert(sizeof(struct learned_filter) == 24, "struct learned_filter");

/* The path of a tunnel, as the datapath has learned it. */
struct tunnel_path {
	__u64 lowered; /* bpf_ktime_get_coarse_ns() at which the MTU was lowered
			*/
	__u32 mtu; /* of the path to the remote, if it was lowered; or 0 */
	__u32 sequence; /* of the last packet, if the tunnel sends numbers */
};
_Static_assert(sizeof(struct tunnel_path) == 16, "struct tunnel_path");

/* How many packets of an endpoint were dropped for its limits. */
struct refused {
	__u64 flows;
	__u64 ports;
	__u64 fragments;
};
_Static_assert(sizeof(struct refused) == 24, "struct refused");

/* The place of a datagram in fragments, in its owner's share. */
struct fragment_place {
	__u32 owner; /* endpoint id, or a device: see fragment.h */
	__u32 index;
};
_Static_assert(sizeof(struct fragment_place) == 8, "struct fragment_place");

/* A datagram in fragments. Only the first fragment has the ports. */
struct datagram {
	__u64 seen; /* bpf_ktime_get_coarse_ns() */
	struct address src;
	struct address dst;
	__be32 id;
	__u32 network; /* as in struct flow_key */
	__be16 sport;
	__be16 dport;
	__u8 protocol;
	__u8 pad[3];
};
_Static_assert(sizeof(struct datagram) == 56, "struct datagram");

#endif
