/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Every map. "agent" is whichever ebpnet command reconciles this host. Maps
 * are pinned and outlive programs. Hashes make entries when needed
 * (BPF_F_NO_PREALLOC), so that room nobody uses costs next to nothing.
 */
#ifndef EBPNET_MAPS_H
#define EBPNET_MAPS_H

#include <bpf/bpf_helpers.h>

#include "types.h"

/* ifindex of an endpoint's host-side veth -> who may send there. Written by
 * the agent, read once for every packet an endpoint sends; lives as long as
 * the veth. Full: the endpoint is refused. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_LOCAL_ENDPOINTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct device);
} devices SEC(".maps");

/* (network, MAC) -> station. Written by the agent, read once for every
 * bridged packet; lives as long as the endpoint. Full: the endpoint is
 * refused. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_STATIONS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct fdb_key);
	__type(value, struct station);
} fdb SEC(".maps");

/* IP address -> station. Subnets on a host do not overlap, so the address
 * alone is enough. Written by the agent, read to answer ARP and ND and for
 * routed packets; lives as long as the endpoint. Full: the endpoint is
 * refused. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_NEIGHBORS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct address);
	__type(value, struct station);
} neighbors SEC(".maps");

/* Network id -> its policy. Written by the agent, so that a change holds from
 * the next packet on; read for every packet. An array: never full, a network
 * past its end is refused. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_NETWORKS);
	__type(key, __u32);
	__type(value, struct network);
} networks SEC(".maps");

/* (network, 0..members-1) -> where it floods to: a local station, or a tunnel
 * as a station without a MAC. Written by the agent; lives as long as the
 * endpoint, or as the tunnel carries the network. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_LOCAL_ENDPOINTS + MAX_CARRIED);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct member_key);
	__type(value, struct station);
} members SEC(".maps");

/* Endpoint id, or the number of a network in a tunnel (flood_payer_tunnel()) ->
 * what has been flooded for it. Written by the datapath, read by metrics;
 * zeroed by the agent when an id is given out. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_FLOODERS);
	__type(key, __u32);
	__type(value, struct flood_budget);
} flood_budgets SEC(".maps");

/* Endpoint id of a trunk -> what is known of a loop through it. Written by the
 * datapath, read for each frame flooded to it and by status and metrics; zeroed
 * by the agent when an id is given out. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_LOCAL_ENDPOINTS);
	__type(key, __u32);
	__type(value, struct trunk);
} trunks SEC(".maps");

/* (tunnel, GRE key) -> network id. Written by the agent, read for every packet
 * out of a tunnel; lives as long as the tunnel carries the network. Full: the
 * tunnel or the network is refused. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_CARRIED);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct carried_key);
	__type(value, __u32);
} carried SEC(".maps");

/* (network, MAC) -> station that was seen behind a trunk or a tunnel. Written
 * by the datapath, read where `fdb` has none; until it has not been seen for
 * learned_timeout. Full, or the share of the network or the place used up: it
 * is not learned, and flooded to. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_LEARNED);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct fdb_key);
	__type(value, struct learned);
} learned_fdb SEC(".maps");

/* IP address -> station behind a trunk that spoke to the gateway. Written by
 * the datapath, read where `neighbors` has none; until it has not spoken to the
 * gateway for as long as a flow may live. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_LEARNED);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct address);
	__type(value, struct learned);
} learned_neigh SEC(".maps");

/* A record for each entry of the two above, in the order in which the sweep
 * looks at them. Written and read by the datapath; a record stays until the
 * sweep finds its entry gone. Full: nothing is learned. */
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 2 * MAX_LEARNED);
	__type(value, struct learned_record);
} learned_queue SEC(".maps");

/* Place -> how many entries it has in `learned_fdb` and `learned_neigh`.
 * Written by the datapath; one without entries stays, as there are no more
 * places than that. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_LEARNED_PLACES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct learned_place);
	__type(value, struct learned_count);
} learned_counts SEC(".maps");

/* (client, server, protocol, port) -> the server's port is open to the
 * client. Written by the agent, read for a flow of a network with ICC off when
 * it opens, and whenever links have changed; lives as long as the link. Full:
 * the link is refused. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_LINKS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct link_key);
	__type(value, __u32);
} links SEC(".maps");

/* How often `links` has changed. Written by the agent after each change, so
 * that a flow need not look for its link while nothing has; read for every
 * packet of a network with ICC off. 0: not known. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} links_revision SEC(".maps");

/* Tunnel id -> its ends, and how packets are put into it. Written by the agent,
 * read for every packet into a tunnel; lives as long as the tunnel. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_TUNNELS);
	__type(key, __u32);
	__type(value, struct tunnel);
} tunnels SEC(".maps");

/* A tunnel's ends -> its id. Written by the agent, read for every packet out
 * of a tunnel; lives as long as the tunnel. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2 * MAX_TUNNELS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct tunnel_ends);
	__type(value, __u32);
} tunnel_ids SEC(".maps");

/* Tunnel id -> what the datapath knows of it. Written by the datapath, zeroed
 * by the agent when an id is given out. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_TUNNELS);
	__type(key, __u32);
	__type(value, struct tunnel_path);
} tunnel_paths SEC(".maps");

/* ifindex of an uplink -> its addresses; key 0 holds the uplink of the
 * default route, for kernels that refuse a route lookup. Written by the
 * agent, read when the routing table is asked. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_UPLINKS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct uplink);
} uplinks SEC(".maps");

/* Address that leads to the host but is not an address of the host: the
 * broadcast address of a subnet, or an anycast address. Written by the agent,
 * read when a flow to a published port opens; lives as long as the route.
 * Full: the agent leaves out the rest. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_BROADCASTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct address);
	__type(value, __u32);
} broadcasts SEC(".maps");

/* Ways that the routing table gave at this tick of the clock, at places that
 * follow from their addresses: see route_find(). Written and read by the
 * datapath; one takes the place of another. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_WAYS);
	__type(key, __u32);
	__type(value, struct way);
} ways SEC(".maps");

/* (host address, protocol, port) -> the endpoint's port that it is published
 * for. Written by the agent, read for the first packet of a flow to the host;
 * lives as long as the publication. Full: the port is refused. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_PORTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct port_key);
	__type(value, struct port);
} ports SEC(".maps");

/* A bit for each port that has an entry in `ports`, whatever its address.
 * Written by the agent; read for every packet to the host that is of no flow,
 * and when an endpoint is given a port. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PUBLISHED_PROTOCOLS *PUBLISHED_WORDS);
	__type(key, __u32);
	__type(value, __u64);
} published_ports SEC(".maps");

/* (publication, prefix) -> sources there may reach it. (publication and
 * PORT_ROUTES_ID, prefix) -> 1 if its endpoint's namespace answers to there by
 * another interface, 0 if by the endpoint's. Written by the agent, read for the
 * first packet of a flow to a restricted port or to an endpoint on several
 * networks; lives as long as the publication. Full: the port is refused. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, MAX_PORT_SOURCES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct port_source_key);
	__type(value, __u32);
} port_sources SEC(".maps");

/* Flows of links and of address translation, one a slot. Written and read by
 * the datapath; a slot is used until the sweep finds its flow idle for too
 * long, its endpoint or port goes, or it loses its place in `half_open`. As
 * many as `load` was told, and MAX_HALF_OPEN. Full: a new flow is refused. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, DEFAULT_FLOWS + MAX_HALF_OPEN);
	__type(key, __u32);
	__type(value, struct flow);
} flows SEC(".maps");

/* What a packet says of its flow -> the flow. Two entries a flow, or one if it
 * is inside a network, that live as long as it does, and two a mapping. Four
 * times as large as `flows`. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4 * (DEFAULT_FLOWS + MAX_HALF_OPEN));
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct flow_key);
	__type(value, struct flow_ref);
} flow_index SEC(".maps");

/* The half-open flows: slots in `flows` plus one. Written and read by the
 * datapath when a flow opens. Full: another half-open flow ends; see
 * flow_take_turn(). */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_HALF_OPEN);
	__type(key, __u32);
	__type(value, __u32);
} half_open SEC(".maps");

/* Owner -> how many flows it has. Written and read by the datapath when a flow
 * opens, is established or ends; belongs to `flows`. An array: never full. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_OWNERS);
	__type(key, __u32);
	__type(value, struct flow_share);
} flow_shares SEC(".maps");

/* How many ports endpoints, and all together, have towards a destination: cells
 * of a sketch, see ports.h. Written and read by the datapath when a flow opens
 * or ends; belongs to `flows`. An array: never full. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PORT_ROWS *PORT_CELLS);
	__type(key, __u32);
	__type(value, __u32);
} port_counts SEC(".maps");

/* The one secret by which `port_counts` is used. Written by the loader when it
 * makes that map. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct port_secret);
} port_secrets SEC(".maps");

/* Endpoint, publication or tunnel -> its limits. Written by the agent for those
 * that have one that is not the default; read when a flow opens or is
 * established, for a fragment of an endpoint, and for a flooded frame. Lives as
 * long as the noun. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_LIMITED);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct owner_limits);
} limits SEC(".maps");

/* Endpoint id -> packets that were dropped for its limits. Written by the
 * datapath, read by metrics; zeroed by the agent when an id is given out. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_LOCAL_ENDPOINTS);
	__type(key, __u32);
	__type(value, struct refused);
} refusals SEC(".maps");

/* The one sweeper of `flows`. Started at load, runs as long as it is pinned. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct sweeper);
} sweepers SEC(".maps");

/* Place of a datagram in fragments -> its ports, from its first fragment. An
 * endpoint has FRAGMENTS_OF_ENDPOINT places, and a device of the host
 * FRAGMENTS_OF_DEVICE, so a flood displaces its own sender's datagrams. Written
 * and read by the datapath. Full: the least recently used make room, which
 * takes more than a hundred endpoints that have used all their places. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_DATAGRAMS);
	__type(key, struct fragment_place);
	__type(value, struct datagram);
} datagrams SEC(".maps");

/* Endpoint id -> when its next ICMP error is due; see icmp_may_send(). */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_LOCAL_ENDPOINTS);
	__type(key, __u32);
	__type(value, __u64);
} icmp_budgets SEC(".maps");

/* What is too large for the stack: used by one run of a program at a time. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SCRATCHES);
	__type(key, __u32);
	__type(value, struct scratch);
} scratches SEC(".maps");

/* enum reason -> what was dropped for it. Written by the datapath, read by
 * stats and metrics. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_REASONS);
	__type(key, enum reason);
	__type(value, struct counter);
} drops SEC(".maps");

/* Endpoint id -> traffic. Written by the datapath, zeroed by the agent when an
 * id is given out, read by stats and metrics. Only local endpoints have an id
 * below MAX_LOCAL_ENDPOINTS and are counted. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_LOCAL_ENDPOINTS);
	__type(key, __u32);
	__type(value, struct traffic);
} endpoint_stats SEC(".maps");

/* Network id -> what its local endpoints that have gone had sent and got: with
 * what those that are there have, the network's traffic, which no packet need
 * be counted for. Written by the agent when an endpoint goes, zeroed when an id
 * is given out; read by stats and metrics. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_NETWORKS);
	__type(key, __u32);
	__type(value, struct traffic);
} past_traffic SEC(".maps");

/* Tunnel id -> traffic. Written by the datapath, zeroed by the agent when an id
 * is given out, read by stats and metrics. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_TUNNELS);
	__type(key, __u32);
	__type(value, struct traffic);
} tunnel_stats SEC(".maps");

#endif
