/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The keys and values of the configuration tables. The agent writes them.
 */
#ifndef EBPNET_TYPES_TABLES_H
#define EBPNET_TYPES_TABLES_H

#include "types_common.h"

/* Capacities of the tables. */
enum table_capacity {
	MAX_NETWORKS = 1024,
	MAX_LOCAL_ENDPOINTS = 16384,
	MAX_STATIONS = 131072,
	MAX_NEIGHBORS = 2 * MAX_STATIONS,
	MAX_LINKS = 131072,
	MAX_TUNNELS = 1024,
	MAX_TUNNEL_NETWORKS = 65536, /* one for each network of each tunnel */
	MAX_BROADCASTS = 4096,
	MAX_PORTS = 262144,
	MAX_PORT_SOURCES = 65536,
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

/* The endpoint that may send from a device. */
struct device {
	__u32 network;
	__u32 endpoint;
	struct address ipv4; /* zero: none */
	struct address ipv6; /* zero: none */
	struct mac mac;
	__u8 trunk; /* enum trunk_flag; 0: no other station is behind it */
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
	__u32 network; /* the network and the MAC come first: see fdb.h */
	struct mac mac;
	__u8 trunk; /* 1: other stations are behind it */
	__u8 napi; /* 1: its device takes frames from XDP */
	__u32 endpoint;
	__u32 ifindex;
	__u32 tunnel;
	enum station_kind kind;
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
	NETWORK_OPEN =
		8, /* any host may send to a mapped port: RFC 4787 REQ-8 */
	NETWORK_KEYED = 16, /* `key` is on the wire */
	NETWORK_ROUTED =
		32, /* any host may ping its endpoints' own addresses */
};

struct network {
	enum network_flag flags;
	__be32 key; /* GRE key */
	__u32 members; /* how many entries `members` holds for it */
	__u32 shared; /* how many of these are trunks or tunnels */
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

/* The slots of a bucket. With so many, a bucket is practically never full. */
enum bucket_size {
	BUCKET_SLOTS = 8,
};

struct tunnel_slot {
	struct tunnel_ends ends;
	__u32 id;
};
_Static_assert(sizeof(struct tunnel_slot) == 36, "struct tunnel_slot");

/* A bucket of a hash table that is an array, because the kernel inlines lookups
 * in arrays. A program may read a bucket while the agent changes it. So the
 * agent fills a slot before it sets the slot's bit, and a slot whose bit was
 * cleared keeps its content until it is used again. */
struct tunnel_bucket {
	__u8 used; /* a bit for each slot in use */
	__u8 pad[3];
	struct tunnel_slot slot[BUCKET_SLOTS];
};
_Static_assert(sizeof(struct tunnel_bucket) == 292, "struct tunnel_bucket");

enum {
	TUNNEL_BUCKET_BITS = 11,
	TUNNEL_BUCKETS = 1 << TUNNEL_BUCKET_BITS,
};

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

/* The GRE key of a network in a tunnel. */
struct tunnel_network_key {
	__u32 tunnel;
	__be32 key; /* GRE key; 0 if there is none */
	__u8 keyed; /* 1: there is a key on the wire */
	__u8 pad[3];
};
_Static_assert(sizeof(struct tunnel_network_key) == 12,
	       "struct tunnel_network_key");

/* The fields of an uplink that XDP reads for each packet. */
struct receiver {
	struct mac mac;
	__u8 native; /* 1: XDP runs in the driver, before the kernel makes an
		      * skb */
	__u8 pad;
} __attribute__((aligned(4))); /* copied by 4 bytes at a time */
_Static_assert(sizeof(struct receiver) == 8, "struct receiver");

struct uplink {
	__u32 ifindex;
	__u32 mtu;
	struct receiver receiver;
	struct address ipv4; /* zero: none */
	struct address ipv6; /* zero: none */
};
_Static_assert(sizeof(struct uplink) == 48, "struct uplink");

struct uplink_slot {
	__u32 key;
	struct uplink uplink;
};
_Static_assert(sizeof(struct uplink_slot) == 52, "struct uplink_slot");

/* See struct tunnel_bucket. */
struct uplink_bucket {
	__u8 used; /* a bit for each slot in use */
	__u8 pad[3];
	struct uplink_slot slot[BUCKET_SLOTS];
};
_Static_assert(sizeof(struct uplink_bucket) == 420, "struct uplink_bucket");

enum {
	UPLINK_BUCKET_BITS = 6,
	UPLINK_BUCKETS = 1 << UPLINK_BUCKET_BITS,
};

/* A published port at an address of the host, or at all its addresses of a
 * family if `address` is unspecified (::, ::ffff:0.0.0.0). */
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

/* The endpoint's port that a published port leads to. */
struct port {
	struct address address; /* of a local endpoint */
	__u32 network;
	__u32 id; /* of the publication */
	enum port_flag flags;
	__u32 endpoint; /* the endpoint that has the address */
	__be16 port;
	__u8 pad[2];
};
_Static_assert(sizeof(struct port) == 36, "struct port");

/* A bit in the id of a struct port_source_key: the prefix is a route of the
 * namespace of the port's endpoint. Ids of publications are smaller. */
enum port_source_id {
	PORT_ROUTES_ID = 1 << 30,
};

/* A prefix from which a restricted port may be reached, or a route of the
 * namespace of its endpoint. */
struct port_source_key {
	__u32 length; /* in bits: 32 for the id, and the length of the prefix
		       * (up to 128) */
	__u32 id; /* of the publication; plus PORT_ROUTES_ID for a route */
	struct address prefix;
};
_Static_assert(sizeof(struct port_source_key) == 24, "struct port_source_key");

/* `published_ports` has a bit for each port of these, so that most packets need
 * no lookup in `ports`. */
enum published {
	PUBLISHED_TCP,
	PUBLISHED_UDP,
	PUBLISHED_SCTP,
	PUBLISHED_PROTOCOLS,
	PORTS_A_WORD = 64,
	PUBLISHED_WORDS = 65536 / PORTS_A_WORD,
};

#endif
