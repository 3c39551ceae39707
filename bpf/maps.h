/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Every map, with its kind:
 *
 * - configuration: the agent writes it, and writes all of it again at each load;
 * - state: flows, counters, learned stations; it is kept across loads;
 * - scratch: nothing in it has to be kept.
 *
 * The agent is any ebpnet command that reconciles this host. Maps are pinned
 * and outlive programs. Hashes allocate an entry when it is needed
 * (BPF_F_NO_PREALLOC), so unused room costs next to nothing.
 */
#ifndef EBPNET_MAPS_H
#define EBPNET_MAPS_H

#include <bpf/bpf_helpers.h>

#include "types.h"

/* Configuration. ifindex of an endpoint's host-side veth -> the endpoint that
 * may send there. The agent writes it; the datapath only sets the mark of a
 * blocked trunk. Read once for every packet of an endpoint. An entry lives as
 * long as the veth. Full: the endpoint is refused. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_LOCAL_ENDPOINTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct device);
} devices SEC(".maps");

/* Configuration. (network, MAC) -> static station. The agent writes it. Read
 * once for every bridged packet. An entry lives as long as the endpoint. Full:
 * the endpoint is refused. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_STATIONS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct fdb_key);
	__type(value, struct station);
} fdb SEC(".maps");

/* Configuration. IP address -> static station. Subnets on a host do not
 * overlap, so the address alone is enough. The agent writes it. Read to answer
 * ARP and ND, and for routed packets. An entry lives as long as the endpoint.
 * Full: the endpoint is refused. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_NEIGHBORS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct address);
	__type(value, struct station);
} neighbors SEC(".maps");

/* Configuration. Network id -> its policy. The agent writes it; a change holds
 * from the next packet on. Read for every packet. An array: never full; a
 * network beyond its end is refused. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_NETWORKS);
	__type(key, __u32);
	__type(value, struct network);
} networks SEC(".maps");

/* Configuration. (network, 0..members-1) -> a member to flood to: a local
 * station, or a tunnel as a station without a MAC. The agent writes it. An
 * entry lives as long as the endpoint, or as the tunnel carries the network. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_LOCAL_ENDPOINTS + MAX_TUNNEL_NETWORKS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct member_key);
	__type(value, struct station);
} members SEC(".maps");

/* State. Endpoint id, or the number of a network in a tunnel
 * (flood_payer_tunnel()) -> the budget of flooded copies, and how many frames
 * were dropped for it. The datapath writes it, metrics read it. The agent
 * zeroes an entry when it gives out the id. An array: never full. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_FLOODERS);
	__type(key, __u32);
	__type(value, struct flood_budget);
} flood_budgets SEC(".maps");

/* State. Endpoint id of a trunk -> its probes and whether it is blocked. The
 * datapath writes it. Read for each frame flooded to the trunk, and by status
 * and metrics. The agent zeroes an entry when it gives out the id. An array:
 * never full. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_LOCAL_ENDPOINTS);
	__type(key, __u32);
	__type(value, struct trunk);
} trunks SEC(".maps");

/* Configuration. (tunnel, GRE key) -> id of the network that the tunnel carries
 * under this key. The agent writes it. Read for every packet out of a tunnel.
 * An entry lives as long as the tunnel carries the network. Full: the tunnel or
 * the network is refused. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_TUNNEL_NETWORKS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct tunnel_network_key);
	__type(value, __u32);
} carried SEC(".maps");

/* State. (network, MAC) -> station that was seen behind a trunk or a tunnel.
 * The datapath writes it. Read if `fdb` has no entry. An entry lives until the
 * station has been silent for learned_timeout. Full, or the share of the
 * network or place used up: the station is not learned, and frames to it are
 * flooded. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_LEARNED);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct fdb_key);
	__type(value, struct learned);
} learned_fdb SEC(".maps");

/* State. IP address -> station behind a trunk that has sent to the gateway. The
 * datapath writes it. Read if `neighbors` has no entry. An entry lives until
 * the station has sent nothing to the gateway for as long as a flow may live.
 * Full: the address is not learned. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_LEARNED);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct address);
	__type(value, struct learned);
} learned_neigh SEC(".maps");

/* State. A record for each entry of `learned_fdb` and `learned_neigh`, in the
 * order in which the sweep looks at them. The datapath writes and reads it. A
 * record stays until the sweep finds that its entry is gone. Full: nothing is
 * learned. */
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 2 * MAX_LEARNED);
	__type(value, struct learned_record);
} learned_queue SEC(".maps");

/* State. Place -> how many entries it has in `learned_fdb` and `learned_neigh`.
 * The datapath writes it. An entry with zero counts stays. The map has room for
 * all places that can exist, so it is never full. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_LEARNED_PLACES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct learned_place);
	__type(value, struct learned_count);
} learned_counts SEC(".maps");

/* Configuration. (client, server, protocol, port) -> the server's port is open
 * to the client. The agent writes it. Read when a flow of a network with ICC
 * off opens, and again after links have changed. An entry lives as long as the
 * link. Full: the link is refused. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_LINKS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct link_key);
	__type(value, __u32);
} links SEC(".maps");

/* State. How often `links` has changed; 0: not known. The agent writes it after
 * each change. A flow looks for its link again only if this number has changed.
 * Read for every packet of a network with ICC off. It is kept across loads,
 * because a number that was used before must not come again. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} links_revision SEC(".maps");

/* Configuration. Tunnel id -> its ends and its options. The agent writes it.
 * Read for every packet into a tunnel. An entry lives as long as the tunnel. An
 * array: never full. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_TUNNELS);
	__type(key, __u32);
	__type(value, struct tunnel);
} tunnels SEC(".maps");

/* Configuration. The hash of a tunnel's ends -> a bucket with its id: see
 * tunnel_find(). The agent writes it. Read for every packet out of a tunnel. A
 * slot is used as long as the tunnel lives. If a bucket is full, the tunnel is
 * refused. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TUNNEL_BUCKETS);
	__type(key, __u32);
	__type(value, struct tunnel_bucket);
} tunnel_buckets SEC(".maps");

/* State. Tunnel id -> the path MTU to its remote, and its last sequence number.
 * The datapath writes it. The agent zeroes an entry when it gives out the id.
 * An array: never full. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_TUNNELS);
	__type(key, __u32);
	__type(value, struct tunnel_path);
} tunnel_paths SEC(".maps");

/* Configuration. The hash of an uplink's ifindex -> a bucket with the uplink:
 * see uplink_find(). Key 0 has the uplink of the default route, for kernels
 * that refuse a route lookup. The agent writes it. Read with each lookup in the
 * routing table, and for every packet in XDP. If a bucket is full, the uplink
 * is refused. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, UPLINK_BUCKETS);
	__type(key, __u32);
	__type(value, struct uplink_bucket);
} uplink_buckets SEC(".maps");

/* Configuration. An address that leads to the host but is not an address of the
 * host: the broadcast address of a subnet, or an anycast address. The agent
 * writes it. Read when a flow to a published port opens. An entry lives as long
 * as the route. Full: the agent leaves out the rest. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_BROADCASTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct address);
	__type(value, __u32);
} broadcasts SEC(".maps");

/* Scratch. The route cache: routes that the routing table gave at this tick of
 * the clock. The addresses choose the place: see route_find(). The datapath
 * writes and reads it. A new route overwrites an old one. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_CACHED_ROUTES);
	__type(key, __u32);
	__type(value, struct cached_route);
} ways SEC(".maps");

/* Configuration. (host address, protocol, port) -> the endpoint's port that is
 * published there. The agent writes it. Read for the first packet of a flow to
 * the host. An entry lives as long as the publication. Full: the port is
 * refused. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_PORTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct port_key);
	__type(value, struct port);
} ports SEC(".maps");

/* Configuration. A bit for each port that has an entry in `ports`, for any
 * address. The agent writes it. Read for every packet to the host that has no
 * flow, and when an endpoint gets a port of the host. An array: never full. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PUBLISHED_PROTOCOLS *PUBLISHED_WORDS);
	__type(key, __u32);
	__type(value, __u64);
} published_ports SEC(".maps");

/* Configuration. (publication, prefix) -> sources in the prefix may reach it.
 * (publication and PORT_ROUTES_ID, prefix) -> 1 if the namespace of its
 * endpoint answers this prefix by another interface, 0 if by the endpoint's.
 * The agent writes it. Read for the first packet of a flow to a restricted port
 * or to an endpoint on several networks. An entry lives as long as the
 * publication. Full: the port is refused. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, MAX_PORT_SOURCES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct port_source_key);
	__type(value, __u32);
} port_sources SEC(".maps");

/* State. The flows, of links and of address translation, one in each slot. The
 * datapath writes and reads it. A slot is used until the sweep finds its flow
 * idle for too long, its endpoint or port goes, or it loses its place in
 * `half_open`. It has as many slots as `load` was given, and MAX_HALF_OPEN.
 * Full: a new flow is refused. With BPF_F_MMAPABLE the array begins at a
 * page, so each slot begins at a cache line. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, DEFAULT_FLOWS + MAX_HALF_OPEN);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct flow);
} flows SEC(".maps");

/* State. A packet's key -> its flow. A flow has two entries, or one if it is
 * inside a network, and a mapping has two. They live as long as the flow or the
 * mapping. It is four times as large as `flows`. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4 * (DEFAULT_FLOWS + MAX_HALF_OPEN));
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct flow_key);
	__type(value, struct flow_ref);
} flow_index SEC(".maps");

/* State. The half-open flows: their slots in `flows` plus one. The datapath
 * writes and reads it when a flow opens. Full: another half-open flow ends; see
 * half_open_reserve(). */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_HALF_OPEN);
	__type(key, __u32);
	__type(value, __u32);
} half_open SEC(".maps");

/* State. Owner -> how many flows it has. The datapath writes and reads it when
 * a flow opens, is established or ends. It belongs to `flows`. An array: never
 * full. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_OWNERS);
	__type(key, __u32);
	__type(value, struct flow_share);
} flow_shares SEC(".maps");

/* State. How many ports each endpoint, and all together, have towards a
 * destination: cells of a sketch, see ports.h. The datapath writes and reads it
 * when a flow opens or ends. It belongs to `flows`. An array: never full. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PORT_ROWS *PORT_CELLS);
	__type(key, __u32);
	__type(value, __u32);
} port_counts SEC(".maps");

/* State. The one secret by which `port_counts` is used. The loader writes it
 * when it makes that map. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct port_secret);
} port_secrets SEC(".maps");

/* Configuration. Endpoint, publication or tunnel -> its limits. The agent
 * writes an entry if a limit is not the default. Read when a flow opens or is
 * established, for a fragment of an endpoint, and for a flooded frame. An entry
 * lives as long as the noun. It has room for all of them, so it is never full.
 * */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_LIMITED);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct owner_limits);
} limits SEC(".maps");

/* State. Endpoint id -> packets that were dropped for its limits. The datapath
 * writes it, metrics read it. The agent zeroes an entry when it gives out the
 * id. An array: never full. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_LOCAL_ENDPOINTS);
	__type(key, __u32);
	__type(value, struct refused);
} refusals SEC(".maps");

/* State. The one sweeper of `flows`. It starts at load and runs as long as this
 * map is pinned. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct sweeper);
} sweepers SEC(".maps");

/* State. Place of a datagram in fragments -> its ports, from its first
 * fragment. An endpoint has ENDPOINT_FRAGMENTS places and a device of the host
 * DEVICE_FRAGMENTS, so a flood displaces only datagrams of its own sender. The
 * datapath writes and reads it. Full: the least recently used entries go. That
 * takes more than a hundred endpoints that use all their places. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_DATAGRAMS);
	__type(key, struct fragment_place);
	__type(value, struct datagram);
} datagrams SEC(".maps");

/* Scratch. Endpoint id -> when its next ICMP error is due; see icmp_may_send().
 * The datapath writes and reads it. An array: never full. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_LOCAL_ENDPOINTS);
	__type(key, __u32);
	__type(value, __u64);
} icmp_budgets SEC(".maps");

/* Scratch. Records of data that is too large for the stack. One run of a
 * program uses a record at a time. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SCRATCHES);
	__type(key, __u32);
	__type(value, struct scratch);
} scratches SEC(".maps");

/* State. enum reason -> packets that were dropped for it. The datapath writes
 * it, stats and metrics read it. An array: never full. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_REASONS);
	__type(key, enum reason);
	__type(value, struct counter);
} drops SEC(".maps");

/* State. Endpoint id -> traffic. The datapath writes it, stats and metrics read
 * it. The agent zeroes an entry when it gives out the id. Only local endpoints
 * have an id below MAX_LOCAL_ENDPOINTS and are counted. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_LOCAL_ENDPOINTS);
	__type(key, __u32);
	__type(value, struct traffic);
} endpoint_stats SEC(".maps");

/* State. Network id -> traffic of its local endpoints that are gone. With the
 * traffic of those that exist, it is the network's traffic, so no packet is
 * counted for its network. The agent adds to it when an endpoint goes, and
 * zeroes it when it gives out the id. Read by stats and metrics. An array:
 * never full. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_NETWORKS);
	__type(key, __u32);
	__type(value, struct traffic);
} past_traffic SEC(".maps");

/* State. Tunnel id -> traffic. The datapath writes it, stats and metrics read
 * it. The agent zeroes an entry when it gives out the id. An array: never full.
 * */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_TUNNELS);
	__type(key, __u32);
	__type(value, struct traffic);
} tunnel_stats SEC(".maps");

#endif
