/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The keys and values of the flow tables: flows, their index, and the shares
 * and limits of their owners. */
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
 * The key of a packet where it comes in. `network` is the network of the
 * endpoint that sends it, or one of these two. The identifier of an ICMP echo
 * stands for the port of the side that asks.
 */
enum network_id {
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
	FLOW_MAPPING, /* the key of a mapping, not of packets: see mapping.h */
};

/* How far a connection has come: see flow_phase.h, also for the order. */
enum flow_phase {
	PHASE_NONE,
	PHASE_NEW,
	PHASE_NEW_CLOSING_ORIGINAL,
	PHASE_REFUSED,
	PHASE_REFUSED_CLOSING_REPLY,
	PHASE_REPLIED,
	PHASE_REPLIED_CLOSING_ORIGINAL,
	PHASE_REPLIED_CLOSING_REPLY,
	PHASE_REPLIED_CLOSED,
	PHASE_ESTABLISHED,
	PHASE_CLOSING_ORIGINAL,
	PHASE_CLOSING_REPLY,
	PHASE_RESET_ORIGINAL,
	PHASE_RESET_REPLY,
	PHASE_CLOSING_ORIGINAL_RESET_ORIGINAL,
	PHASE_CLOSING_ORIGINAL_RESET_REPLY,
	PHASE_CLOSING_REPLY_RESET_ORIGINAL,
	PHASE_CLOSING_REPLY_RESET_REPLY,
	PHASE_RESET_BOTH,
	PHASE_CLOSING_ORIGINAL_RESET_BOTH,
	PHASE_CLOSING_REPLY_RESET_BOTH,
	PHASE_CLOSED,
};

/* The state of a slot of `flows`. */
enum flow_state {
	FLOW_FREE,
	FLOW_CLAIMED, /* by a program that will fill it */
	FLOW_HALF_OPEN, /* not confirmed by both sides: see flow.h */
	FLOW_ESTABLISHED,
	FLOW_REVOKED, /* its port is gone; replies match it and are dropped */
	FLOW_ENDED, /* but other flows still use its mapping */
	FLOW_DEAD, /* grace period: other CPUs may still hold this slot */
};

enum mapping_slot {
	NO_MAPPING = 0xffffffff,
};

/* A flow's link in the list of an endpoint: the places before and after it. A
 * place is slot * 2 + side + 1; 0: none. */
struct flow_link {
	__u32 before;
	__u32 after;
};
_Static_assert(sizeof(struct flow_link) == 8, "struct flow_link");

/*
 * A connection. Its keys are those of the packets of the original side and of
 * the reply side, where they come in. A packet with the key of one side leaves
 * with the reversed key of the other.
 *
 * Each packet reads the first two cache lines, but few packets write them. The
 * counter of each side is in a line of its own. So there is no false sharing
 * between two CPUs that pass the two directions.
 */
struct flow {
	struct flow_key original;
	struct flow_key reply;
	enum flow_phase phase;
	enum flow_state state;
	__u64 seen; /* bpf_ktime_get_coarse_ns(), a second's precision; the end
		     * of a dead flow */
	__u32 uplink; /* ifindex; of a masqueraded flow: the uplink that it left
		       * by; of a flow to the host's own link-local address: the
		       * device that has the address */
	__u32 revision; /* of `links`, at which the flow's link existed; or 0 */
	__u32 owner; /* the owner that it counts for; of a link, its client */
	__u32 server; /* the endpoint that it was opened to, or 0 */
	__u64 opened; /* the clock of `seen` */
	__u32 mapping; /* slot of the flow that holds its mapping, or NO_MAPPING
			*/
	__u32 users; /* flows that use the mapping held here */
	__u32 half_open_at; /* half-open: its index in `half_open` */
	__u32 sequence; /* TCP, before the end of the handshake: the sequence
			 * number that the original side must acknowledge */
	__u32 place_own; /* the cells that count its port, or 0: see ports.h */
	__u32 place_all;
	struct flow_link
		links[2]; /* in the list of its owner, and of its server */
	struct counter sent[2] __attribute__((aligned(16))); /* by side */
	__u8 pad[48];
};
_Static_assert(sizeof(struct flow) == 256, "struct flow");
_Static_assert(__builtin_offsetof(struct flow, opened) == 120, "struct flow");
_Static_assert(__builtin_offsetof(struct flow, sent[FLOW_REPLY]) == 192,
	       "struct flow");

/* `port_counts` has two rows of cells for the ports of endpoints, and two for
 * the ports of all. */
enum port_cells {
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
 * The owners that flows count for: the endpoint that opened the flow, by its
 * id; the published port by which it came from outside, by OWNER_PORTS and its
 * id; OWNER_PINGS, if a ping from outside opened it; or the host.
 */
enum owner {
	OWNER_HOST = 0,
	OWNER_PORTS = 131072, /* more than any endpoint's id */
	OWNER_ALL = OWNER_PORTS, /* the sum of all; no port has the id 0 */
	OWNER_PINGS = OWNER_PORTS + 65536, /* no port has that id */
	MAX_OWNERS,
	OWNER_TUNNELS = MAX_OWNERS, /* of limits: plus a tunnel's id */
	MAX_LIMITED = OWNER_TUNNELS + MAX_TUNNELS,
	OWNER_UNKNOWN =
		0xffffffff, /* of an old flow; see flow_command_find_owner() */
};

/* The limits of an owner that the user has set. 0: the default. */
struct owner_limits {
	__u32 established; /* flows */
	__u32 half_open; /* flows */
	__u32 ports; /* towards one destination */
	__u32 fragments; /* datagrams, up to ENDPOINT_FRAGMENTS */
	__u32 flood; /* copies a second */
};
_Static_assert(sizeof(struct owner_limits) == 20, "struct owner_limits");

/* The share of an owner in the table of flows: see share.h. An endpoint has a
 * list of all flows from it and to it: see flow_list.h. */
struct flow_share {
	__u32 established;
	__u32 half_open;
	struct bpf_spin_lock lock; /* of the list */
	__u32 first; /* place in the list; 0: it is empty */
	__u32 unlisted; /* flows that the list lacks */
};
_Static_assert(sizeof(struct flow_share) == 20, "struct flow_share");

/* The flow of a packet, and its side. */
struct flow_ref {
	__u32 slot; /* index into `flows` */
	enum flow_side side;
};
_Static_assert(sizeof(struct flow_ref) == 8, "struct flow_ref");

/* The sweeper goes round `flows` and ends idle flows. */
struct sweeper {
	struct bpf_timer timer;
	__u32 cursor; /* the next slot to look at */
	__u32 pad;
};
_Static_assert(sizeof(struct sweeper) == 24, "struct sweeper");

/* The flows that `end_flows` ends. It looks at a range of slots or, if
 * `endpoint` is not 0, at the list of the endpoint. */
enum flow_choice {
	FLOWS_ALL,
	FLOWS_OF_ADDRESSES, /* of an endpoint */
	FLOWS_UNBACKED, /* whose endpoint or published port is gone */
};

struct flow_filter {
	enum flow_choice choice;
	__u32 network;
	__u32 endpoint;
	__u32 first; /* slot, or place in the list; 0: the first one */
	__u32 count; /* how many to look at from there */
	struct address ipv4;
	struct address ipv6;
};
_Static_assert(sizeof(struct flow_filter) == 52, "struct flow_filter");

#endif
