/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Types that only the programs use: the current packet, its decision, and data
 * that is too large for the stack. */
#ifndef EBPNET_TYPES_INTERNAL_H
#define EBPNET_TYPES_INTERNAL_H

#include "types_common.h"
#include "types_flows.h"
#include "types_state.h"
#include "types_tables.h"

/* The size of the route cache of a CPU. */
enum {
	ROUTE_CACHE_BITS = 8,
	MAX_CACHED_ROUTES = 1 << ROUTE_CACHE_BITS,
};

enum {
	LOOP_PROBE = 24, /* bytes of a probe */
};

/* The size of scratch.piece: that many bytes of a packet are summed up or
 * written at once. */
enum {
	PIECE_SIZE = 128, /* a power of two */
};

/* Where the host's routing table sends a packet. */
struct route {
	__u32 ifindex; /* 0: to the host itself */
	__u32 mtu; /* the largest packet that fits; 0: not known */
	struct address source; /* the host's address on that route */
	struct bpf_redir_neigh next; /* nh_family 0: let the kernel find it */
	__u32 pad;
};
_Static_assert(sizeof(struct route) == 48, "struct route");

/* The route between two addresses, as the routing table gave it. */
struct cached_route {
	__u64 found; /* bpf_ktime_get_coarse_ns() */
	struct address src;
	struct address dst;
	struct route route;
	enum reason reason; /* REASON_NONE, or why there is no route */
	__u32 pad;
};
_Static_assert(sizeof(struct cached_route) == 96, "struct cached_route");

enum packet_flag {
	PACKET_UNSUMMED = 1, /* UDP without a checksum */
	PACKET_JUMBO = 2, /* a superframe with a Jumbo Payload option */
	PACKET_FRAGMENTABLE = 4, /* IPv4 without DF; fragment_send.h */
	PACKET_DISPLACED = 8, /* a later fragment: see fragment_recall() */
};

/* The current packet, as bpf/parse.h reads it. */
struct packet {
	struct address src;
	struct address dst;
	struct mac src_mac;
	struct mac dst_mac;
	__be16 ethertype;
	__be16 sport; /* ICMP echo: the identifier is the port of the side that
		       * asks */
	__be16 dport;
	__u8 l3_length; /* of the IP header, without extensions */
	__u8 flags; /* enum packet_flag */
	__u32 l3; /* offset of the IP or ARP header */
	__u32 length; /* of the IP packet, from l3 on, without the padding of
		       * Ethernet; 0 for ARP */
	__u32 l4; /* offset of the transport header; 0 until parse_l4() */
	__u8 protocol; /* the last header's, once parse_l4() went there */
	__u8 l4_length; /* of a TCP header; 0 for others */
	__u8 ttl;
	__u8 tos; /* IPv6: traffic class; 0 for ARP */
	__u8 fragment; /* enum fragment */
	__u8 tcp_flags; /* enum tcp_flag */
	__u8 icmp_type;
	__u8 echo; /* enum echo */
	__be32 fragment_id;
	__u32 sequence; /* of TCP */
	__u32 acknowledged;
};
_Static_assert(sizeof(struct packet) == 84, "struct packet");

/* What happens to a packet: the result of decide. */
enum action {
	ACTION_UNDECIDED, /* not decided, go on */
	ACTION_PASS, /* leave it to the kernel */
	ACTION_DROP, /* for decision.reason */
	ACTION_REFUSE, /* the same, and tell its sender by ICMP */
	ACTION_IGNORE, /* drop it uncounted: its receiver gets it anyway */
	ACTION_ANSWER, /* answer the ARP or ND request for decision.mac */
	ACTION_BRIDGE, /* of gateway_decide(): to scratch.station, which is on
			* the same network; act() never gets it */
	ACTION_FLOOD, /* copy it to the members of its network */
	ACTION_DELIVER, /* into the namespace of the local endpoint */
	ACTION_DELIVER_BY_VETH, /* the same, but the kernel reads it again */
	ACTION_HOST, /* to the host itself */
	ACTION_LOOPBACK, /* to a socket of the host that speaks to the host */
	ACTION_HAIRPIN, /* change it, and decide again as if from outside;
			 * act() never gets it */
	ACTION_SEND, /* by an uplink: scratch.route */
	ACTION_SEND_FRAGMENTS, /* the same, in fragments */
	ACTION_ENCAPSULATE, /* into decision.tunnel */
	ACTION_ENCAPSULATE_FRAGMENTS, /* the same, in fragments */
	ACTION_DETOUR, /* the same, by way of to_tunnel() */
};

/* What is changed in a packet before its action. */
enum change {
	CHANGE_HOP = 1, /* decrement the TTL */
	CHANGE_ADDRESSES = 2, /* translate it to scratch.to */
	CHANGE_ERROR = 4, /* the same for an ICMP error and the packet in it */
	CHANGE_RECEIVER = 8, /* its destination MAC to decision.mac */
	CHANGE_SENDER = 16, /* its source MAC to the gateway's; only with
			     * CHANGE_RECEIVER */
	CHANGE_ROUTE = 32, /* replace the route that the host gave it */
	CHANGE_OUTER = 64, /* remove the outer headers: scratch.origin */
};

/* The details of an action. */
struct decision {
	enum reason reason; /* of DROP and REFUSE */
	__u32 changes; /* enum change */
	__u32 mtu; /* of REFUSE: the longest packet that would fit */
	__u32 endpoint; /* of DELIVER */
	__u32 ifindex; /* of DELIVER and LOOPBACK */
	__u32 tunnel; /* of ENCAPSULATE, its fragments, and DETOUR */
	__u32 room; /* of ENCAPSULATE_FRAGMENTS: bytes of payload in each */
	__u32 flood; /* of FLOOD: enum flood */
	__u32 payer; /* of FLOOD: whose budget pays */
	__u32 network; /* of the frame, if it is on one */
	__u32 sender; /* of REFUSE: the endpoint that gets the ICMP error */
	__u32 quoted_l3; /* of CHANGE_ERROR: offsets of the quoted headers */
	__u32 quoted_l4;
	struct mac mac;
	__u8 router; /* of CHANGE_ERROR: 1 if a router on the way sent it */
	__u8 pad;
};
_Static_assert(sizeof(struct decision) == 60, "struct decision");

/* A frame that came out of a tunnel. */
struct tunnel_origin {
	__u32 tunnel; /* 0: not ours, leave it to the host */
	__u32 network;
	__u32 inner; /* offset of the inner Ethernet header */
	__be16 outer; /* ethertype of the outer packet */
	__u8 tos; /* of the outer packet */
	__u8 pad;
};
_Static_assert(sizeof(struct tunnel_origin) == 16, "struct tunnel_origin");

/* Records of `scratches`. */
enum {
	SCRATCH_PACKET,
	SCRATCH_COMMAND, /* of the programs that the agent runs */
	SCRATCHES,
};

struct scratch {
	struct packet packet;
	struct decision decision;
	struct tunnel_origin origin;
	struct bpf_fib_lookup fib; /* of route_ask() */
	struct route route; /* of the current packet */
	struct port echo; /* stands for a published port: publish_open_echo() */
	struct flow_key key; /* of the current packet */
	struct flow_key mapping;
	struct flow_key original; /* of the flow that is being opened */
	struct flow_key reply;
	struct flow_filter filter; /* of end_flows */
	__u32 copies; /* how many copies bridge_flood() has tried to send */
	struct flow_key to; /* key of the other side: see flow_find_to() */
	__u32 claimed; /* the slot of `flows` that was claimed last */
	__u32 owner; /* of the flow that is being opened */
	__u32 server; /* the endpoint that it is opened to, or 0 */
	__u32 place_own; /* where its port is counted (ports.h), or 0 */
	__u32 place_all;
	__u32 max_ports; /* of the owner towards one destination, or 0 */
	struct station learned; /* the copy that fdb_copy_learned() made */
	struct station station; /* of ACTION_BRIDGE */
	__u8 piece[PIECE_SIZE];
	__u32 pad;
	__u8 flooded[LOOP_PROBE]; /* the bytes that a probe overwrites */
} __attribute__((aligned(8))); /* copied by 8 bytes at a time */
_Static_assert(sizeof(struct scratch) == 824, "struct scratch");

#endif
