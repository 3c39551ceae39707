/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The flows, their index, their owners' shares and limits. */
#ifndef EBPNET_TYPES_FLOWS_H
#define EBPNET_TYPES_FLOWS_H

#include "types_common.h"
#include "types_tables.h"

/* The numbers of flows. */
enum {
	DEFAULT_FLOWS = 262144, /* established ones; set at load */
	MAX_HALF_OPEN = 65536, /* a power of two */
};

/*
 * What a packet says of its flow, where it comes in. `network` is that of the
 * endpoint that sends it, or one of these two. For an ICMP echo the identifier
 * stands for the port of the one who asks.
 */
enum {
	NETWORK_OUTSIDE = 0, /* by an uplink */
	NETWORK_LOOPBACK =
		0xffffffff, /* the host to one of its own addresses */
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

enum flow_side {
	FLOW_ORIGINAL,
	FLOW_REPLY,
	FLOW_MAPPING, /* not a packet's key but a mapping's: see mapping.h */
};

/* The first ones stand at 1 << enum flow_side. */
enum flow_flag {
	FLOW_ORIGINAL_FIN = 1,
	FLOW_REPLY_FIN = 2,
	FLOW_ORIGINAL_RST = 4,
	FLOW_REPLY_RST = 8,
	FLOW_REPLIED = 16, /* the answering side has sent, and no reset */
	FLOW_HANDSHAKEN = 32, /* TCP: the opener has acknowledged the answer */
};

/* How far a place in `flows` is. */
enum flow_state {
	FLOW_FREE,
	FLOW_CLAIMED, /* by a program that is about to fill it */
	FLOW_HALF_OPEN, /* not confirmed by both sides: see flow.h */
	FLOW_ESTABLISHED,
	FLOW_REVOKED, /* its port has gone; what answers is stopped here */
	FLOW_ENDED, /* but other flows still use its mapping */
	FLOW_DEAD, /* grace period: other CPUs may still hold this slot */
};

enum {
	NO_MAPPING = 0xffffffff,
};

/* A flow's place in a list of an endpoint's: the places before and after it,
 * which are slot * 2 + side + 1; 0: none. */
struct flow_link {
	__u32 before;
	__u32 after;
};
_Static_assert(sizeof(struct flow_link) == 8, "struct flow_link");

/* A connection: its packets as they look where they come in, from the side
 * that opened it and from the side that answers. A packet with the key of one
 * side leaves with the reversed key of the other. */
struct flow {
	struct flow_key original;
	struct flow_key reply;
	__u64 opened; /* bpf_ktime_get_coarse_ns() */
	__u64 seen; /* the same clock, a second's precision; of a dead one its
		     * end */
	struct counter sent[2]; /* by side */
	__u32 mapping; /* slot of the flow that holds its mapping, or NO_MAPPING
			*/
	__u32 users; /* flows that use the mapping held here */
	__u32 half_open_at; /* half-open: its index in `half_open` */
	enum flow_flag flags;
	enum flow_state state;
	__u32 uplink; /* ifindex; of a masqueraded flow, by which it went out;
		       * of a flow to the host's own link-local address: the
		       * device that has the address */
	__u32 sequence; /* TCP, half-open: of what the opener has to acknowledge
			 */
	__u32 revision; /* of links, at which the flow's own was there; or 0 */
	__u32 owner; /* for whom it counts; of a link, its client */
	__u32 server; /* the endpoint that it was opened to, or 0 */
	__u32 place_own; /* where its port is counted, or 0: see ports.h */
	__u32 place_all;
	struct flow_link links[2]; /* among its owner's, and its server's */
};
_Static_assert(sizeof(struct flow) == 200, "struct flow");

/* `port_counts` has two rows of cells for what endpoints have, and two for what
 * all have. */
enum {
	PORT_CELLS = 65536,
	PORT_ROWS_ALL = 2,
	PORT_ROWS = 4,
};

/* The key of the hash that chooses places in `port_counts`. */
struct port_secret {
	__u64 first;
	__u64 second;
};
_Static_assert(sizeof(struct port_secret) == 16, "struct port_secret");

/*
 * For whom flows count: for the endpoint that opened them, by its id; for the
 * published port by which they came from outside, by OWNER_PORTS and its id;
 * for OWNER_PINGS, if a ping from outside opened them; or for the host.
 */
enum {
	OWNER_HOST = 0,
	OWNER_PORTS = 131072, /* more than any endpoint's id */
	OWNER_ALL = OWNER_PORTS, /* the sum of all; no port has the id 0 */
	OWNER_PINGS = OWNER_PORTS + 65536, /* no port has that id */
	MAX_OWNERS,
	OWNER_TUNNELS = MAX_OWNERS, /* of limits: plus a tunnel's id */
	MAX_LIMITED = OWNER_TUNNELS + MAX_TUNNELS,
};

/* How much an owner may have, as the user has set it. 0: the default. */
struct owner_limits {
	__u32 established; /* flows */
	__u32 half_open; /* flows */
	__u32 ports; /* towards one destination */
	__u32 fragments; /* datagrams, up to ENDPOINT_FRAGMENTS */
	__u32 flood; /* copies a second */
};
_Static_assert(sizeof(struct owner_limits) == 20, "struct owner_limits");

/* What an owner has of the table of flows: see share.h. An endpoint has a list
 * of all flows from it and to it: see flow_list.h. */
struct flow_share {
	__u32 established;
	__u32 half_open;
	struct bpf_spin_lock lock; /* of the list */
	__u32 first; /* place in the list; 0: it is empty */
	__u32 unlisted; /* flows that the list lacks */
};
_Static_assert(sizeof(struct flow_share) == 20, "struct flow_share");

/* Which flow a packet is of, and of which side. */
struct flow_ref {
	__u32 slot; /* index into `flows` */
	enum flow_side side;
};
_Static_assert(sizeof(struct flow_ref) == 8, "struct flow_ref");

/* Goes round `flows` and ends those that have been idle for too long. */
struct sweeper {
	struct bpf_timer timer;
	__u32 cursor; /* the next slot to look at */
	__u32 pad;
};
_Static_assert(sizeof(struct sweeper) == 24, "struct sweeper");

/* Which flows `end_flows` is to end, of those in some slots or, if `endpoint`
 * is not 0, of those in its list. */
enum flow_choice {
	FLOWS_ALL,
	FLOWS_OF_ADDRESSES, /* of an endpoint */
	FLOWS_UNBACKED, /* whose endpoint or published port is not there */
};

struct flow_filter {
	enum flow_choice choice;
	__u32 network;
	__u32 endpoint;
	__u32 first; /* slot, or place in the list; 0: the first one */
	__u32 count; /* how many are looked at from there on */
	struct address ipv4;
	struct address ipv6;
};
_Static_assert(sizeof(struct flow_filter) == 52, "struct flow_filter");

#endif
