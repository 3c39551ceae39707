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

/*
 * A function that the verifier checks once, by itself, and not again at each
 * call. It must check its pointers for NULL, and callers know nothing of its
 * result.
 */
#define __verified_once __attribute__((noinline))

/* Capacities of the tables; Go reads them off the maps. */
enum {
	MAX_NETWORKS = 1024,
	MAX_LOCAL_ENDPOINTS = 16384,
	MAX_STATIONS = 131072,
	MAX_NEIGHBORS = 2 * MAX_STATIONS,
	MAX_LINKS = 131072,
	MAX_TUNNELS = 1024,
	TUNNEL_FLOODERS = 64, /* networks of a tunnel with a budget each */
	MAX_FLOODERS = MAX_LOCAL_ENDPOINTS + MAX_TUNNELS * TUNNEL_FLOODERS,
	MAX_CARRIED = 65536, /* a network of a tunnel each */
	MAX_LEARNED = 65536, /* stations, and as many neighbors */
	LEARNED_A_NETWORK = 4096, /* MACs, and as many addresses */
	LEARNED_A_PLACE = 1024, /* behind one trunk or tunnel */
	MAX_LEARNED_PLACES = MAX_NETWORKS + MAX_LOCAL_ENDPOINTS + MAX_CARRIED,
	MAX_UPLINKS = 64,
	MAX_PORTS = 262144,
	MAX_PORT_SOURCES = 65536,
	MAX_DATAGRAMS = 16384,
	FRAGMENTS_OF_ENDPOINT = 64, /* a power of two, as the next one */
	FRAGMENTS_OF_DEVICE = 4096,
	WAY_BITS = 8,
	MAX_WAYS = 1 << WAY_BITS, /* a CPU */
	DEFAULT_FLOWS = 262144, /* answered ones; set at load */
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

/* How many copies a second are flooded by default. A trunk has as many as a
 * tunnel, as both have many endpoints behind them. */
enum flood_limit {
	FLOODS_OF_ENDPOINT = 50000,
	FLOODS_OF_TUNNEL = 200000,
};

/* What has been flooded for an endpoint or a tunnel. */
struct flood_budget {
	__u64 due; /* bpf_ktime_get_coarse_ns(), when its copies are paid for */
	__u64 limited; /* frames that were not flooded */
};
_Static_assert(sizeof(struct flood_budget) == 16, "struct flood_budget");

/* What is known of a loop through a trunk: see loop.h. Times are those of
 * bpf_ktime_get_coarse_ns(). */
struct trunk {
	__u64 probed; /* when its last probe went out */
	__u64 blocked; /* until then; 0: it never was */
	__u32 network;
	__u32 nonce; /* of its last probe; 0: none */
	__u32 other; /* the trunk whose probe came in by this one */
	__u32 loops; /* how often it was blocked */
};
_Static_assert(sizeof(struct trunk) == 32, "struct trunk");

enum {
	LOOP_PROBE = 24, /* bytes of a probe */
};

enum trunk_flag {
	TRUNK = 1,
	TRUNK_BLOCKED = 2, /* see `trunks` */
};

/* Roles whose messages an endpoint may send. */
enum allow {
	ALLOW_DHCP_SERVER = 1,
	ALLOW_ROUTER = 2,
};

/* Who may send from a device: the value of `devices`, keyed by ifindex. */
struct device {
	__u32 network;
	__u32 endpoint;
	struct address ipv4; /* zero: none */
	struct address ipv6; /* zero: none */
	struct mac mac;
	__u8 trunk; /* enum trunk_flag; 0: nobody else is behind it */
	__u8 allow; /* enum allow */
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
	__u8 trunk; /* 1: other stations are behind it */
	__u8 napi; /* 1: its device takes frames from XDP */
};
_Static_assert(sizeof(struct station) == 28, "struct station");

/* A station that has been seen behind a trunk or a tunnel. */
struct learned {
	struct station station;
	__u32 number; /* of its record in `learned_queue`: see learn.h */
	__u64 seen; /* bpf_ktime_get_coarse_ns(), a second's precision */
};
_Static_assert(sizeof(struct learned) == 40, "struct learned");

enum learn_what {
	LEARN_STATIONS,
	LEARN_NEIGHBORS,
};

/* By which the sweep finds an entry of `learned_fdb` or `learned_neigh`. */
struct learned_record {
	__u32 key[4]; /* as long as the entry's, and zeros */
	__u32 number; /* as the entry's */
	enum learn_what what;
};
_Static_assert(sizeof(struct learned_record) == 24, "struct learned_record");

/* Where stations are learned: behind a trunk or a tunnel, or, where both are
 * zero, on a network as a whole. */
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

/* Which learned stations `forget_learned` is to forget; zero: all. */
struct learned_filter {
	__u32 network;
	__u32 endpoint;
	__u32 tunnel;
	__u32 pad;
	__u64 before; /* those not seen since then */
};
_Static_assert(sizeof(struct learned_filter) == 24, "struct learned_filter");

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
	NETWORK_OPEN =
		8, /* anybody may send to a mapped port: RFC 4787 REQ-8 */
	NETWORK_KEYED = 16, /* `key` is on the wire */
	NETWORK_ROUTED = 32, /* anybody may ping its endpoints' own addresses */
};

struct network {
	enum network_flag flags;
	__be32 key; /* GRE key */
	__u32 members; /* how many entries `members` holds for it */
	__u32 shared; /* trunks and tunnels of these */
	struct address gateway4; /* zero: none */
	struct address gateway6; /* zero: none */
	__u8 prefix4; /* length of the gateway's subnet */
	__u8 prefix6;
	__u8 pad[2];
};
_Static_assert(sizeof(struct network) == 52, "struct network");

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
struct tunnel_ends {
	struct address local;
	struct address remote;
};
_Static_assert(sizeof(struct tunnel_ends) == 32, "struct tunnel_ends");

enum tunnel_flag {
	TUNNEL_CSUM = 1, /* sends checksums: RFC 2784 */
	TUNNEL_SEQ = 2, /* sends sequence numbers: RFC 2890 */
	TUNNEL_FRAGMENTABLE = 4, /* over IPv4, without DF */
	TUNNEL_COPY_DSCP = 8, /* of the inner packet */
};

struct tunnel {
	struct tunnel_ends ends;
	enum tunnel_flag flags;
	__u8 ttl; /* of the outer packets */
	__u8 pad[3];
};
_Static_assert(sizeof(struct tunnel) == 40, "struct tunnel");

/* A network as a tunnel carries it. */
struct carried_key {
	__u32 tunnel;
	__be32 key; /* 0 if there is none */
	__u8 keyed; /* 1: there is a key on the wire */
	__u8 pad[3];
};
_Static_assert(sizeof(struct carried_key) == 12, "struct carried_key");

/* What the datapath knows of a tunnel. */
struct tunnel_path {
	__u64 lowered; /* bpf_ktime_get_coarse_ns(), when the MTU was told */
	__u32 mtu; /* of the way to the remote, as far as it is lower; or 0 */
	__u32 sequence; /* packets sent with a number */
};
_Static_assert(sizeof(struct tunnel_path) == 16, "struct tunnel_path");

struct uplink {
	__u32 ifindex;
	__u32 mtu;
	struct mac mac;
	__u8 native; /* 1: XDP runs in its driver, before there is an skb */
	__u8 pad;
	struct address ipv4; /* zero: none */
	struct address ipv6; /* zero: none */
};
_Static_assert(sizeof(struct uplink) == 48, "struct uplink");

/* A port of the host that is published, or all of an address family if
 * `address` is unspecified (::, ::ffff:0.0.0.0). */
struct port_key {
	struct address address;
	__be16 port;
	__u8 protocol;
	__u8 pad;
};
_Static_assert(sizeof(struct port_key) == 20, "struct port_key");

enum port_flag {
	PORT_RESTRICTED = 1, /* only for sources in `port_sources` */
	PORT_ROUTED =
		2, /* the host routes to it: at the endpoint's own address */
	PORT_ROUTES = 4, /* its endpoint's routes are in `port_sources` */
};

/* Where what is sent to a published port goes. */
struct port {
	struct address address; /* of a local endpoint */
	__u32 network;
	__u32 id; /* of the publication */
	enum port_flag flags;
	__u32 endpoint; /* whose address it is */
	__be16 port;
	__u8 pad[2];
};
_Static_assert(sizeof(struct port) == 36, "struct port");

/* In the id of a struct port_source_key: the prefix is a route of the namespace
 * of the port's endpoint. Ids of publications are smaller. */
enum {
	PORT_ROUTES_ID = 1 << 30,
};

/* A prefix from which a restricted port may be reached, or a route of the
 * namespace of its endpoint. */
struct port_source_key {
	__u32 length; /* in bits, of what follows: 32 + the prefix's own of 128 */
	__u32 id; /* of the publication; of a route with PORT_ROUTES_ID */
	struct address prefix;
};
_Static_assert(sizeof(struct port_source_key) == 24, "struct port_source_key");

/* `published_ports` has a bit for each port of these, so that most packets
 * need no look into `ports`. */
enum {
	PUBLISHED_TCP,
	PUBLISHED_UDP,
	PUBLISHED_SCTP,
	PUBLISHED_PROTOCOLS,
	PORTS_A_WORD = 64,
	PUBLISHED_WORDS = 65536 / PORTS_A_WORD,
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
	FLOW_OPENER,
	FLOW_ANSWER,
	FLOW_MAPPING, /* not a packet's key but a mapping's: see mapping.h */
};

/* The first ones stand at 1 << enum flow_side. */
enum flow_flag {
	FLOW_OPENER_FIN = 1,
	FLOW_ANSWER_FIN = 2,
	FLOW_OPENER_RST = 4,
	FLOW_ANSWER_RST = 8,
	FLOW_REPLIED = 16, /* the answering side has sent, and no reset */
	FLOW_HANDSHAKEN = 32, /* TCP: the opener has acknowledged the answer */
};

/* How far a place in `flows` is. */
enum flow_state {
	FLOW_FREE,
	FLOW_CLAIMED, /* by a program that is about to fill it */
	FLOW_HALF_OPEN, /* not confirmed by both sides: see flow.h */
	FLOW_ANSWERED,
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
	struct flow_key opener;
	struct flow_key answer;
	__u64 opened; /* bpf_ktime_get_coarse_ns() */
	__u64 seen; /* the same clock, a second's precision; of a dead one its
		     * end */
	struct counter sent[2]; /* by side */
	__u32 mapping; /* slot of the flow that holds its mapping, or NO_MAPPING
			*/
	__u32 users; /* flows that use the mapping held here */
	__u32 turn; /* half-open: its index in `half_open` */
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
	OWNER_UNKNOWN =
		0xffffffff, /* of an old flow; see upkeep_find_owner() */
};

/* How much an owner may have, as the user has set it. 0: the default. */
struct owner_limits {
	__u32 established; /* flows */
	__u32 half_open; /* flows */
	__u32 ports; /* towards one destination */
	__u32 fragments; /* datagrams, up to FRAGMENTS_OF_ENDPOINT */
	__u32 flood; /* copies a second */
};
_Static_assert(sizeof(struct owner_limits) == 20, "struct owner_limits");

/* How many packets of an endpoint were dropped for its limits. */
struct refused {
	__u64 flows;
	__u64 ports;
	__u64 fragments;
};
_Static_assert(sizeof(struct refused) == 24, "struct refused");

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

/* How many half-open flows there are room for in `flows`. */
enum {
	MAX_HALF_OPEN = 65536, /* a power of two */
};

/* Goes round `flows` and ends those that have been idle for too long. */
struct sweeper {
	struct bpf_timer timer;
	__u32 hand; /* the next slot to look at */
	__u32 pad;
};
_Static_assert(sizeof(struct sweeper) == 24, "struct sweeper");

/* How much of a packet is summed up, or written, at once. */
enum {
	PIECE_SIZE = 128, /* a power of two */
};

/* Where the host's routing table sends a packet. */
struct route {
	__u32 ifindex; /* 0: to the host itself */
	__u32 mtu; /* what fits; 0: not known */
	struct address source; /* the host's address on that way */
	struct bpf_redir_neigh next; /* nh_family 0: let the kernel find it */
	__u32 pad;
};
_Static_assert(sizeof(struct route) == 48, "struct route");

/* The way between two addresses, as the routing table had it. */
struct way {
	__u64 found; /* bpf_ktime_get_coarse_ns() */
	struct address src;
	struct address dst;
	struct route route;
	enum reason reason; /* why there is none */
	__u32 pad;
};
_Static_assert(sizeof(struct way) == 96, "struct way");

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

enum packet_flag {
	PACKET_UNSUMMED = 1, /* UDP without a checksum */
	PACKET_JUMBO = 2, /* a superframe with a Jumbo Payload option */
	PACKET_FRAGMENTABLE = 4, /* IPv4 without DF; fragment_send.h */
	PACKET_DISPLACED = 8, /* a later fragment: see fragment_recall() */
};

/* The packet at hand, as bpf/parse.h reads it. */
struct packet {
	struct address src;
	struct address dst;
	struct mac src_mac;
	struct mac dst_mac;
	__be16 ethertype;
	__be16 sport; /* ICMP echo: the identifier, on the asking side */
	__be16 dport;
	__u8 l3_length; /* of the IP header, without extensions */
	__u8 flags; /* enum packet_flag */
	__u32 l3; /* offset of the IP or ARP header */
	__u32 length; /* of the IP packet, from l3 on: without what Ethernet
		       * pads it with; 0 for ARP */
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

/* Records of `scratches`. */
enum {
	SCRATCH_PACKET,
	SCRATCH_COMMAND, /* of the programs that the agent runs */
	SCRATCHES,
};

struct scratch {
	struct packet packet;
	struct bpf_fib_lookup fib; /* what route_ask() asks */
	struct route route; /* of the packet at hand */
	struct port echo; /* stands for one where echoes are let in */
	struct flow_key key; /* of the packet at hand */
	struct flow_key mapping;
	struct flow_key opener; /* of the flow that is being opened */
	struct flow_key answer;
	struct flow_filter filter; /* of end_flows */
	__u32 copies; /* that bridge_flood() has tried to make */
	struct learned_filter unused; /* only has Go told of the type */
	struct flow_key to; /* of the flow at hand: see flow_find_to() */
	__u32 tunnel_mtu; /* after TUNNEL_TOO_BIG: what would fit */
	__u32 claimed; /* the slot of `flows` that was claimed last */
	__u32 owner; /* of the flow that is being opened */
	__u32 server; /* the endpoint that it is opened to, or 0 */
	__u32 place_own; /* where its port is to be counted, or 0 */
	__u32 place_all;
	__u32 max_ports; /* of the owner towards one destination, or 0 */
	__u32 pad;
	struct station learned; /* the one that learn_find() has found */
	__u8 piece[PIECE_SIZE];
	__u8 flooded[LOOP_PROBE]; /* what a probe has taken the place of */
};
_Static_assert(sizeof(struct scratch) == 744, "struct scratch");

/* Where a datagram in fragments is kept: in its owner's share. */
struct fragment_place {
	__u32 owner; /* endpoint id, or a device: see fragment.h */
	__u32 index;
};
_Static_assert(sizeof(struct fragment_place) == 8, "struct fragment_place");

/* A datagram in fragments, of which only the first says the ports. */
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
